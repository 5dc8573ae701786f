"""UPGD (Elsayed & Mahmood, 2024): gradient descent that perturbs what is of little use and protects the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional as F

from pliant.errors import IllegalConfiguration, NotYetSupported
from pliant.search import Domain, Range
from pliant.sharded import is_sharded

__all__ = ["UPGD"]


@final
class UPGD(torch.optim.Optimizer):
    r"""Utility-based perturbed gradient descent, with the first-order utility of each weight.

    .. math::

        U &\leftarrow \beta U + (1 - \beta)\,(-g \odot w), \qquad \hat U = U / (1 - \beta^t) \\
        w &\leftarrow (1 - \alpha\lambda)\,w - \alpha\,(g + \sigma\xi)\,(1 - \operatorname{sigmoid}(\hat U / \eta)),
        \qquad \xi \sim \mathcal N(0, 1)

    The utility :math:`-g w` is, to first order, by how much the loss would grow without the weight. With global
    utility :math:`\eta` is the largest :math:`U` of all weights; with local utility, :math:`\hat U / \eta` is
    :math:`\hat U` divided by its length along the last dimension. The non-protecting variant gates the noise only:
    :math:`w \leftarrow (1 - \alpha\lambda) w - \alpha (g + \sigma\xi (1 - \operatorname{sigmoid}(\hat U / \eta)))`.

    Args:
        params: Parameters, or groups of them.
        lr: :math:`\alpha >= 0`.
        weight_decay: :math:`\lambda >= 0`, decoupled.
        beta: :math:`\beta` in [0, 1), of the running mean of the utility.
        sigma: :math:`\sigma >= 0`, standard deviation of the noise.
        utility: ``"global"`` or ``"local"``.
        protect: Whether useful weights are also protected from the gradient; ``False``: the non-protecting variant.
        seed: Of the noise, the same on all ranks of DDP. A sequence says that the parameters are those of a stack of
            members, one seed each: every member has noise and a largest utility of its own.

    State:
        ``avg_utility``, :math:`U`, and ``step`` per parameter. The noise of a step depends on the seed and on
        ``num_steps``, a count in the first parameter group: what ``state_dict`` saves continues with the same bits.

    Deviations from the published code:
        :math:`\eta` is the largest utility without bias correction while :math:`\hat U` has it, as there. The code of
        the experiments steps by :math:`\alpha`, as here; the short version in the repository's README by
        :math:`2\alpha`. If all utilities are zero, all gates are one half (there: NaN). Parameters without a gradient
        are left alone.

    Source:
        Elsayed & Mahmood, Addressing Loss of Plasticity and Catastrophic Forgetting in Continual Learning (2024),
        arXiv:2404.00781; the defaults are those of the authors' README.

    Raises:
        IllegalConfiguration: For an option out of range, or parameters that are no stack of as many members.
        NotYetSupported: At the first step, for sparse gradients, complex or sharded parameters.

    Example:
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = UPGD(model.parameters(), lr=0.1)
        >>> model(torch.ones(2, 3)).sum().backward()
        >>> optimizer.step()
        >>> sorted(optimizer.state[model.weight])
        ['avg_utility', 'step']
    """

    search: ClassVar[Mapping[str, Domain]] = {
        "lr": Range(1e-5, 1.0, log=True),
        "sigma": Range(1e-4, 1e-1, log=True),
        "weight_decay": Range(1e-5, 1e-2, log=True),
    }

    def __init__(
        self,
        params: Any,
        lr: float = 1e-5,
        weight_decay: float = 1e-3,
        beta: float = 0.999,
        sigma: float = 1e-3,
        utility: str = "global",
        protect: bool = True,
        seed: int | Sequence[int] = 0,
    ) -> None:
        for name, value, valid, is_valid in (
            ("lr", lr, ">= 0", lr >= 0),
            ("weight_decay", weight_decay, ">= 0", weight_decay >= 0),
            ("beta", beta, "in [0, 1)", 0 <= beta < 1),
            ("sigma", sigma, ">= 0", sigma >= 0),
            ("utility", utility, "'global' or 'local'", utility in ("global", "local")),
            ("seed", seed, "a number, or one for each member", isinstance(seed, int) or len(seed) > 0),
        ):
            if not is_valid:
                raise IllegalConfiguration(f"UPGD: {name}={value!r} is out of range; it must be {valid}.")
        defaults: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "beta": beta, "sigma": sigma}
        defaults |= {"utility": utility, "protect": protect, "num_steps": 0}
        defaults["seed"] = seed if isinstance(seed, int) else tuple(seed)
        super().__init__(params, defaults)
        for group in self.param_groups if isinstance(defaults["seed"], tuple) else ():
            for parameter in group["params"]:
                if parameter.ndim == 0 or parameter.shape[0] != len(defaults["seed"]):
                    raise IllegalConfiguration(
                        f"UPGD: {len(defaults['seed'])} seeds are for a stack of as many members, and a parameter of "
                        f"shape {tuple(parameter.shape)} is none."
                    )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step.

        Args:
            closure: Computes the loss anew, with gradients; optional.

        Returns:
            What the closure returned, or ``None``.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        lists = [self._update_utility(group) for group in self.param_groups]
        is_global = any(group["utility"] == "global" for group in self.param_groups)
        largest = self._largest([item for (_, _, averages, _) in lists for item in averages]) if is_global else None
        first = self.param_groups[0]
        generators: dict[torch.device, list[torch.Generator]] = {}
        for group, (params, grads, averages, steps) in zip(self.param_groups, lists, strict=True):
            if params:
                gates = self._gates(group, averages, steps, largest)
                sigma = group["sigma"]
                noise = [self._noise(parameter, generators, first["num_steps"], sigma) for parameter in params]
                self._apply(group, params, grads, gates, noise)
        first["num_steps"] += 1
        return loss

    @property
    def _seeds(self) -> tuple[int, ...]:
        seed = self.param_groups[0]["seed"]
        return (seed,) if isinstance(seed, int) else seed

    @property
    def _has_members(self) -> bool:
        return not isinstance(self.param_groups[0]["seed"], int)

    def _update_utility(self, group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[float]]:
        """Parameters with gradients, their gradients, average utilities (up to date), and numbers of steps."""
        params = [parameter for parameter in group["params"] if parameter.grad is not None]
        grads: list[Tensor] = [parameter.grad for parameter in params]
        for parameter, grad in zip(params, grads, strict=True):
            if grad.is_sparse or parameter.is_complex() or is_sharded(parameter):
                kind = "has a sparse gradient" if grad.is_sparse else "is complex or sharded"
                raise NotYetSupported(f"UPGD: a parameter of shape {tuple(parameter.shape)} {kind}.")
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros(())
                state["avg_utility"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        averages = [self.state[parameter]["avg_utility"] for parameter in params]
        counts = [self.state[parameter]["step"] for parameter in params]
        if params:
            torch._foreach_add_(counts, 1)
            torch._foreach_mul_(averages, group["beta"])
            torch._foreach_addcmul_(averages, grads, params, value=group["beta"] - 1)
        return params, grads, averages, [float(count) for count in counts]

    def _largest(self, averages: list[Tensor]) -> Tensor | None:
        """The largest utility, ``[]``, or ``[S]``; 1 where it is zero, so that nothing is divided by it."""
        if not averages:
            return None
        home = averages[0].device
        if self._has_members:
            each = torch.stack([item.flatten(1).amax(1).to(home) if item.ndim > 1 else item for item in averages])
            largest = each.amax(0)
        else:
            largest = torch.stack([item.amax().to(home) for item in averages]).amax()
        return torch.where(largest == 0, 1, largest)

    def _gates(
        self, group: dict[str, Any], averages: list[Tensor], steps: list[float], largest: Tensor | None
    ) -> list[Tensor]:
        """One minus the scaled utility, of each weight: the sigmoid of its negative, which saves two passes."""
        by = [group["beta"] ** step - 1 for step in steps]
        if group["utility"] == "local":
            gates = list(torch._foreach_div(averages, by))
            is_flat = 1 if self._has_members else 0  # a scalar per member has no dimension but that of the members
            gates = [F.normalize(gate.unsqueeze(-1) if gate.ndim == is_flat else gate, dim=-1) for gate in gates]
            gates = [gate.view_as(average) for gate, average in zip(gates, averages, strict=True)]
        else:
            assert largest is not None  # some group is global, and this one has gradients
            scales = [largest.to(average) * each for average, each in zip(averages, by, strict=True)]
            if self._has_members:
                scales = [each.view(-1, *[1] * (item.ndim - 1)) for each, item in zip(scales, averages, strict=True)]
            gates = [average / each for average, each in zip(averages, scales, strict=True)]
        torch._foreach_sigmoid_(gates)
        return gates

    def _noise(
        self, parameter: Tensor, generators: dict[torch.device, list[torch.Generator]], step: int, sigma: float
    ) -> Tensor:
        """Normal of this standard deviation, one generator for each member, begun anew at every step."""
        device = parameter.device
        if device not in generators:
            generators[device] = [torch.Generator(device).manual_seed(_mixed(seed, step)) for seed in self._seeds]
        noise = torch.empty_like(parameter, memory_format=torch.contiguous_format)
        for part, generator in zip(noise if self._has_members else (noise,), generators[device], strict=True):
            part.normal_(std=sigma, generator=generator)
        return noise

    def _apply(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], gates: list[Tensor], noise: list[Tensor]
    ) -> None:
        if group["protect"]:
            torch._foreach_add_(noise, grads)
            torch._foreach_mul_(noise, gates)
        else:
            torch._foreach_mul_(noise, gates)
            torch._foreach_add_(noise, grads)
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(params, noise, alpha=-group["lr"])


def _mixed(seed: int, step: int) -> int:
    """A seed for each step: all bits of both matter for each bit of it (splitmix64)."""
    mask = 2**64 - 1
    value = (seed * 0x9E3779B97F4A7C15 + (step + 1) * 0xD1B54A32D192ED03) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return (value ^ (value >> 31)) & (2**63 - 1)
