"""Plasticity injection: freeze the head and let a new one learn what is missing (Nikishin et al., 2023)."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.errors import IllegalConfiguration, NoEffect, NotYetSupported
from pliant.interventions.base import Context, Host, Intervention, require
from pliant.interventions.state import StateKind
from pliant.surgery import adopt, replace_module

__all__ = ["Injected", "PlasticityInjection"]


@final
class Injected(nn.Module):
    r"""What stands in a module's place: :math:`f(x) + g\,(f_{new}(x) - f_{copy}(x))`.

    The gate :math:`g` is 0 until the injection and 1 afterwards. As long as new and copy are equal, or the gate is 0,
    the output is that of :math:`f` bit by bit. Which parameters are trained follows from the gate, also when a
    ``state_dict`` is loaded.

    Args:
        base: The module :math:`f`.
    """

    gate: Tensor

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.new = base, copy.deepcopy(base)
        self.copy = copy.deepcopy(base).requires_grad_(False)
        self.register_buffer("gate", torch.zeros(()))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The sum; inputs are those of the module."""
        change: Tensor = self.new(*args, **kwargs) - self.copy(*args, **kwargs)
        out: Tensor = self.base(*args, **kwargs)
        return out + self.gate * change

    def __getattr__(self, name: str) -> Any:
        """As for every module; for the base's own tensors it says why they are not here."""
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            base = self.__dict__.get("_modules", {}).get("base")
            if base is None or name not in (*base._parameters, *base._buffers):
                raise
            raise AttributeError(
                f"PlasticityInjection: other code reads the {name!r} of a module in whose place Injected stands, and "
                "would pass by what is injected; name another module with module=..."
            ) from error

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        is_injected = bool(self.gate)  # a process may go on after the injection, or go back to before it
        for name, parameter in self.base.named_parameters():
            parameter.requires_grad_(self.new.get_parameter(name).requires_grad and not is_injected)


@final
@dataclass(frozen=True)
class PlasticityInjection(Intervention):
    r"""Once, freeze a part of the network and add to it the difference of a new one to its own frozen copy.

    .. math:: f(x) \;\rightarrow\; f_\theta(x) + f_{\theta'_1}(x) - f_{\theta'_2}(x), \qquad
              \theta'_1 = \theta'_2 \sim \text{the initial distribution}

    Only :math:`\theta'_1` is trained from then on. The function is the same, bit by bit, before and after.

    The structure is laid out by ``attach`` (:class:`Injected` stands in the module's place, and the optimizer of the
    old parameters owns the new ones), so that the injection itself changes no module, and a resumed process attaches
    first and then loads.

    Args:
        module: Name of the module :math:`f`: the output layer, or a whole head; ``None``: the linear layer that was
            registered last.
        at: When: after so many optimizer steps (``0``: by ``attach``), at the first task ``"boundary"``, or
            ``"never"`` (a no-op: the model is not changed).

    State:
        Whether it has happened.

    Edits:
        At the injection: the new parameters, their copies (both the same draws from the initial distribution), the new
        parameters' optimizer state, and the gate. The old parameters are frozen.

    Deviations from the published code:
        See the method's page.

    Source:
        Nikishin et al., Deep Reinforcement Learning with Plasticity Injection (2023), arXiv:2305.15555.

    Raises:
        IllegalConfiguration: At ``attach``, for an argument out of range, a module that does not exist, shares
            parameters with others or is trained by several optimizers, units that were found before, ``dry_run``, or
            a stack of members.
        NotYetSupported: At ``attach``, for a module with dropout.
        NoEffect: At ``attach``, if the module is not trained.

    Example:
        >>> PlasticityInjection("head", at=10_000).null()
        PlasticityInjection(module='head', at='never')
    """

    module: str | None = None
    at: int | Literal["boundary", "never"] = "boundary"

    changes_model: ClassVar[bool] = True
    redraws: ClassVar[bool] = True
    state: ClassVar[Mapping[str, StateKind]] = {"is_injected": Host(False)}
    acts_in_quiet: ClassVar[bool] = True
    source: ClassVar[str] = "Nikishin et al. 2023"
    defaults: ClassVar[Mapping[str, str]] = {
        "module": "a choice of this library: the smallest head (the paper splits its networks after the convolutions)",
        "at": "a choice of this library; the paper injects once, after 50 million frames of Atari",
    }

    @property
    def needs_boundary(self) -> bool:
        """Whether it waits for a task boundary."""
        return self.at == "boundary"

    def null(self) -> PlasticityInjection:
        """Never, and the model is left as it is."""
        return replace(self, at="never")

    def conflicts_with(self, other: Intervention) -> str | None:
        """Two of them need two modules, by name."""
        if not isinstance(other, PlasticityInjection) or "never" in (self.at, other.at):
            return None
        are_apart = self.module is not None and other.module is not None and self.module != other.module
        return None if are_apart else "each needs a module of its own: name them with module=..."

    def surgery(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Put an :class:`Injected` in the module's place; the optimizers own what is new from the start."""
        if self.at == "never":
            return
        is_step = isinstance(self.at, int) and self.at >= 0
        require(self.at == "boundary" or is_step, self, "at", "a number >= 0, 'boundary' or 'never'")
        name = _last_linear(model) if self.module is None else self.module
        base = _checked(model, name)
        new = Injected(base)
        for key, parameter in base.named_parameters():
            if parameter.requires_grad:
                adopt(optimizers, [new.new.get_parameter(key)], like=parameter)
        replace_module(model, optimizers, name, new)

    def next_step(self, ctx: Context) -> int:
        """The step of the injection."""
        return self.at if isinstance(self.at, int) and ctx.clock.step < self.at else sys.maxsize

    def prepare(self, ctx: Context) -> None:
        """Check that the module is trained, and that new weights can be drawn; the arguments are checked before."""
        if self.at == "never":
            return
        prefix = self._prefix(ctx)
        owners = {id(ctx.edit.owners[name]) for name in ctx.edit.owners if name.startswith(f"{prefix}.new.")}
        if len(owners) > 1:
            raise IllegalConfiguration(
                f"PlasticityInjection: several optimizers train {prefix!r}; it must be one that does."
            )
        mine = self._new(ctx, prefix)
        if not mine:
            raise NoEffect(f"PlasticityInjection: this optimizer trains no parameter of {prefix!r}.")
        for name in mine:
            ctx.edit.init_of(name)
        if self.at == 0:
            self._inject(ctx)

    def after_step(self, ctx: Context) -> None:
        """At the step that was asked for."""
        if self.at == ctx.clock.step:
            self._inject(ctx)

    def at_task_boundary(self, ctx: Context, data: Any = None) -> None:
        """At the first boundary."""
        if self.at == "boundary":
            self._inject(ctx)

    def on_record(self, ctx: Context) -> Mapping[str, float]:
        """Whether it has happened, for the optimizer that trains the module."""
        return {"is_injected": float(ctx.host["is_injected"])}

    def _inject(self, ctx: Context) -> None:
        prefix = self._prefix(ctx)
        new = self._new(ctx, prefix)
        if ctx.host["is_injected"] or not new:
            return
        if ctx.is_quiet:  # there is no second time
            raise IllegalConfiguration(
                f"PlasticityInjection is due at step {ctx.clock.step}, in a quiet period, in which nothing is edited. "
                "Call handle.resume() before."
            )
        ctx.host["is_injected"] = True
        live, ctx.edit.live = ctx.edit.live, None  # it happens, whether the step at its time was skipped or not
        tensors = {name: item for name, item in ctx.edit.tensors.items() if name.startswith(f"{prefix}.new.")}
        for name in tensors:
            if ctx.edit.inits.get(name) is not None:  # running statistics begin again, too
                ctx.edit.assign(name, ctx.edit.draw(name), moments="zero", reason="injection")
            twin = f"{prefix}.copy.{name.removeprefix(f'{prefix}.new.')}"
            ctx.edit.assign(twin, ctx.whole(name), moments="keep", reason="injection")
        gate = f"{prefix}.gate"
        ctx.edit.assign(gate, torch.ones_like(ctx.edit.tensors[gate]), moments="keep", reason="injection")
        ctx.freeze([name for name in ctx.edit.owners if name.startswith(f"{prefix}.base.")])
        ctx.edit.live = live

    def _new(self, ctx: Context, prefix: str) -> list[str]:
        """The parameters of the new module that this optimizer trains."""
        return [name for name in ctx.parameters() if name.startswith(f"{prefix}.new.")]

    def _prefix(self, ctx: Context) -> str:
        """The name of the module that was injected into."""
        places = [name.removesuffix(".gate") for name, kind in ctx.layer_types.items() if kind is Injected]
        return self.module if self.module in places else places[-1]


def _last_linear(model: nn.Module) -> str:
    linears: list[str] = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name]
    if not linears:
        raise IllegalConfiguration(
            f"PlasticityInjection: {type(model).__name__} has no linear layer; say which module with module=..."
        )
    return linears[-1]


def _checked(model: nn.Module, name: str) -> nn.Module:
    """The module, if it can be injected into."""
    try:
        base = model.get_submodule(name)
    except AttributeError as error:
        known = ", ".join(repr(key) for key, _ in model.named_children())
        raise IllegalConfiguration(
            f"PlasticityInjection: the model has no module {name!r}. Its parts are: {known}."
        ) from error
    above = [model.get_submodule(name[:end]) for end, letter in enumerate(name) if letter == "."]
    if any(isinstance(module, Injected) for module in (*above, *base.modules())):
        raise IllegalConfiguration(f"PlasticityInjection: {name!r} has been injected into already.")
    inside = {id(parameter) for parameter in base.parameters()}
    for key, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in inside and not key.startswith(f"{name}."):
            raise IllegalConfiguration(
                f"PlasticityInjection: {name!r} shares a parameter with {key!r}, which would be frozen with it."
            )
    for key, module in base.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            raise NotYetSupported(
                f"PlasticityInjection: {'.'.join(filter(None, (name, key)))!r} is dropout, which would draw other "
                "masks for the new weights than for their copy. Inject behind it, or set its p to 0."
            )
    return base
