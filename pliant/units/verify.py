"""The proof of a unit graph: permuting a group's units leaves the output unchanged, and every member matters.

The check runs on a float64 state in which every parameter and buffer is a random draw, because a freshly
initialised network cannot see a forgotten bias, gamma or running statistic. It checks itself, too: if any single
member of a group is left out of the permutation, the output has to change; a member that the output does not depend
on at all (the key bias of an attention layer) is reported as inert.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pliant.errors import IllegalConfiguration
from pliant.units.call import call_with
from pliant.units.exact import FullPrecision, NoNoise
from pliant.units.export import Inputs, as_call, canonical_names, model_outputs, plain_attention
from pliant.units.group import TensorSlice, UnitGroup
from pliant.units.jitter import jittered
from pliant.units.several import Models, joined

if TYPE_CHECKING:
    from pliant.units.graph import UnitGraph

__all__ = ["GroupCheck", "Probe", "Verification", "moved", "permute", "random_rates", "relative_difference", "verify"]


@dataclass(frozen=True)
class GroupCheck:
    """The verdict on one group.

    Attributes:
        name: The group.
        change: Largest relative output change when all members are permuted, over both modes; zero up to rounding.
        smallest_omission: Smallest relative output change when one member is left out; clearly not zero. NaN when
            the group has only inert members.
        weakest: The member whose omission changed the output least.
        inert: Members that the output does not depend on, so that no check can see them.
    """

    name: str
    change: float
    smallest_omission: float
    weakest: str
    inert: tuple[str, ...]


@dataclass(frozen=True)
class Verification:
    """The result of :func:`verify`; ``print`` gives a table.

    Attributes:
        groups: One verdict per group.
        tolerance: Largest change that counts as rounding.
        precision: Floating-point type that the check ran in.
        modes: The modes that were checked.
    """

    groups: tuple[GroupCheck, ...]
    tolerance: float
    precision: str
    modes: tuple[str, ...]

    @property
    def failures(self) -> tuple[str, ...]:
        """A sentence for each group that is no permutation symmetry, or whose check could not have failed."""
        found = []
        for check in self.groups:
            if not check.change <= self.tolerance:
                found.append(f"permuting the units of {check.name!r} changes the output by {check.change:.1e}")
            elif not check.weakest:
                found.append(
                    f"no output depends on any member of {check.name!r} for these inputs (an expert that no token is "
                    "sent to), so nothing is proved about it; pass a larger batch"
                )
            elif not check.smallest_omission > 100 * self.tolerance:
                found.append(
                    f"leaving {check.weakest!r} out of {check.name!r} goes unnoticed "
                    f"(change {check.smallest_omission:.1e}), so the check proves nothing"
                )
        return tuple(found)

    @property
    def ok(self) -> bool:
        """Whether every group passed."""
        return not self.failures

    def raise_if_failed(self) -> None:
        """Raise on any failure.

        Raises:
            IllegalConfiguration: Naming the groups and members at fault.
        """
        if not self.ok:
            raise IllegalConfiguration(
                f"the unit graph does not fit this model: {'; '.join(self.failures)}. "
                "If the groups were found on this very model, please report it with the model's code."
            )

    def __str__(self) -> str:
        head = f"{'group':<40} {'permuted':>9} {'one left out':>13}  ({self.precision}; {', '.join(self.modes)})"
        rows = [
            f"{check.name:<40} {check.change:>9.1e} {check.smallest_omission:>13.1e}"
            + (f"  inert: {', '.join(check.inert)}" if check.inert else "")
            for check in self.groups
        ]
        return "\n".join([head, *rows, *(f"FAILED: {failure}" for failure in self.failures)])


def permute(state: dict[str, Tensor], pieces: tuple[TensorSlice, ...], order: Tensor) -> dict[str, Tensor]:
    """A copy of a state in which the units of some slices are permuted.

    Args:
        state: Name to tensor.
        pieces: The slices to permute; several slices of one tensor are applied one after the other.
        order: ``LongTensor [U]``; unit ``u`` becomes what unit ``order[u]`` was.

    Returns:
        A new mapping; tensors without slices are shared with ``state``.
    """
    result = dict(state)
    for piece in pieces:
        tensor = result[piece.name]
        where = piece.positions().to(tensor.device)
        index = torch.arange(tensor.shape[piece.dim], device=tensor.device)
        index[where.flatten()] = where[order.to(tensor.device)].flatten()
        moved = piece.within(tensor).index_select(piece.dim, index)
        result[piece.name] = moved if piece.at is None else tensor.select_scatter(moved, *piece.at)
    return result


def moved(size: int, generator: torch.Generator) -> Tensor:
    """A permutation that moves every unit: a cyclic shift of a random order, ``LongTensor [U]``."""
    shuffled = torch.randperm(size, generator=generator)
    order = torch.empty_like(shuffled)
    order[shuffled] = shuffled.roll(1)
    return order


def verify(units: UnitGraph, model: Models, example_inputs: Any, *, seed: int = 0) -> Verification:
    """Check every group of a unit graph on a model, by running it.

    Args:
        units: The unit graph.
        model: The model, or the mapping of models that the units were found in; it is not changed.
        example_inputs: As for :func:`~pliant.units.discover.find_units`.
        seed: Seed of the random state, inputs and permutations.

    Returns:
        The verdicts; nothing is raised for a failed group, see :meth:`Verification.raise_if_failed`.

    Raises:
        IllegalConfiguration: If a group names tensors that the model does not have.

    Example:
        >>> import torch, pliant
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> units = pliant.find_units(model, torch.randn(3, 4))
        >>> pliant.verify(units, model, torch.randn(3, 4)).ok
        True
    """
    model, example_inputs = joined(model, example_inputs)
    missing = {name for group in units for name in group.tensors} - set(canonical_names(model).values())
    if missing:
        raise IllegalConfiguration(
            f"the unit graph names tensors that {type(model).__name__} does not have: {', '.join(sorted(missing))}. "
            "Find the units of this model, or rename the graph."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            probe = Probe(model, example_inputs, seed, torch.float64)
            probe.baseline()
            tolerance = 1e-9
        except RuntimeError:  # kernels that exist in float32 only
            probe = Probe(model, example_inputs, seed, torch.float32)
            probe.baseline()
            tolerance = 1e-4
        checks = []
        for group in units:
            found = probe.check(group)
            for more in range(1, _MORE_STATES if group.slices[0].at is not None else 1):
                if found.weakest:
                    break  # else an expert that no token was sent to: another state of the router may send some
                other = Probe(model, example_inputs, seed + more, probe.dtype)
                other.baseline()
                found = other.check(group)
            checks.append(found)
    return Verification(tuple(checks), tolerance, str(probe.dtype).removeprefix("torch."), ("eval", "train"))


_MORE_STATES = 9


class Probe:
    """A model on a generic state, run in evaluation and in training mode with dropout off."""

    def __init__(self, model: nn.Module, example_inputs: Inputs, seed: int, dtype: torch.dtype) -> None:
        self.model, self.dtype, self.seed = model, dtype, seed
        self.generator = torch.Generator().manual_seed(seed)
        self.state = jittered(model, seed=seed, dtype=dtype)
        self.names = canonical_names(model)

        def generic(leaf: Any) -> Any:
            if isinstance(leaf, Tensor) and leaf.dtype.is_floating_point:
                noise = torch.randn(leaf.shape, generator=self.generator, dtype=torch.float64)
                return leaf.detach().to(dtype) + noise.to(leaf.device, dtype)
            return leaf

        self.args, self.kwargs = pytree.tree_map(generic, as_call(example_inputs))

    def baseline(self) -> None:
        """Keep the outputs on the state as it is: what :meth:`change` compares with."""
        self.reference = self.run(self.state)
        if not self.reference:
            raise IllegalConfiguration(
                f"{type(self.model).__name__} returns no floating-point tensor (only actions or indices), in which no "
                "small change can be seen. Check the network inside it that computes values, for example "
                "policy.q_net instead of policy."
            )

    def run(
        self, state: dict[str, Tensor], group: UnitGroup | None = None, order: Tensor | None = None
    ) -> list[Tensor]:
        """Outputs in evaluation mode, then in training mode; a group's recurrent state goes in permuted, and back."""
        args, kwargs = _move_state((self.args, self.kwargs), group, order, "input")
        full = {name: state[name].clone() for name in self.names.values()}
        outputs: list[Tensor] = []
        flags = [(module, module.training) for module in self.model.modules()]
        rates = [(m, key, getattr(m, key)) for m in self.model.modules() for key in _DROPOUT_RATES if _is_rate(m, key)]
        try:
            for module, key, _ in rates:
                setattr(module, key, 0.0)
            for mode in (False, True):
                self.model.train(mode)
                with (
                    torch.no_grad(),
                    torch.random.fork_rng(),
                    plain_attention(),
                    _NoFunctionalDropout(),
                    NoNoise(),
                    _PlainKernels(),
                    FullPrecision() if self.dtype == torch.float64 else contextlib.nullcontext(),
                ):
                    torch.manual_seed(self.seed)
                    result = call_with(self.model, full, args, kwargs)
                if order is not None:
                    result = _move_state(result, group, order.argsort(), "output")
                outputs.extend(leaf for leaf in model_outputs(result) if leaf.dtype.is_floating_point)
        finally:
            for module, flag in flags:
                module.training = flag
            for module, key, rate in rates:
                setattr(module, key, rate)
        return outputs

    def change(self, state: dict[str, Tensor], group: UnitGroup | None = None, order: Tensor | None = None) -> float:
        """Largest relative difference to the baseline over all outputs and both modes."""
        changes = [
            relative_difference(a, b) for a, b in zip(self.reference, self.run(state, group, order), strict=True)
        ]
        return float("nan") if any(map(math.isnan, changes)) else max(changes, default=0.0)

    def check(self, group: UnitGroup) -> GroupCheck:
        """The verdict on one group: all of its members permuted, then all but each one."""
        order = moved(group.size, self.generator)
        change = self.change(permute(self.state, group.slices, order), group, order)
        omissions: dict[str, float] = {}
        inert: list[str] = []
        for index, piece in enumerate(group.slices):
            rest = (*group.slices[:index], *group.slices[index + 1 :])
            label = piece.label
            omission = self.change(permute(self.state, rest, order), group, order)
            if omission < 1e-7 and self.is_inert(piece):
                inert.append(label)
            else:
                omissions[label] = omission
        weakest = min(omissions, key=omissions.__getitem__) if omissions else ""
        return GroupCheck(group.name, change, omissions.get(weakest, float("nan")), weakest, tuple(inert))

    def is_inert(self, piece: TensorSlice) -> bool:
        """Whether the outputs do not depend on a tensor at all."""
        tensor = self.state[piece.name]
        factor = 0.5 + torch.rand(tensor.shape, generator=self.generator, dtype=torch.float64).to(tensor)
        if piece.at is not None:  # that other experts are used says nothing about this one
            factor = torch.ones_like(factor).select_scatter(piece.within(factor), *piece.at)
        other = tensor * factor
        return self.change({**self.state, piece.name: other}) < 1e-7


def _move_state(tree: Any, group: UnitGroup | None, order: Tensor | None, kind: str) -> Any:
    """A call or a result in which the units of a recurrent state are permuted."""
    pieces = [piece for piece in (group.state if group else ()) if piece.kind == kind]
    if not pieces or order is None:
        return tree
    leaves, spec = pytree.tree_flatten(tree)
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    for piece in pieces:
        tensor = leaves[places[piece.slot]].clone()
        view = tensor if piece.row is None else tensor[piece.row]
        where = torch.tensor(piece.table, device=tensor.device)
        view[..., where.flatten()] = view[..., where[order.to(tensor.device)].flatten()]
        leaves[places[piece.slot]] = tensor
    return pytree.tree_unflatten(leaves, spec)


_DROPOUT_RATES = ("p", "dropout", "dropout_p", "attention_dropout", "attn_dropout", "dropout_prob", "drop_prob")


def _is_rate(module: nn.Module, key: str) -> bool:
    if key == "p" and not isinstance(module, nn.modules.dropout._DropoutNd):
        return False
    return isinstance(getattr(module, key, None), float)


def random_rates(model: nn.Module) -> list[tuple[str, str, float]]:
    """The rates of dropout that are in effect: of modules in training mode, above zero.

    Returns:
        Name of the module, name of the attribute, rate.

    Example:
        >>> random_rates(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)))
        [('1', 'p', 0.5)]
    """
    return [
        (path, key, getattr(module, key))
        for path, module in model.named_modules()
        for key in _DROPOUT_RATES
        if module.training and _is_rate(module, key) and getattr(module, key) > 0
    ]


class _NoFunctionalDropout(torch.overrides.TorchFunctionMode):
    """Turns functional dropout into the identity and noise of a tensor's shape into a constant.

    Noise has the same distribution for every unit, but not the same values, so that a right group (the latent
    variables of an autoencoder) would look wrong.
    """

    _NAMES = frozenset({"dropout", "alpha_dropout", "feature_dropout", "dropout1d", "dropout2d", "dropout3d"})
    _NOISE = frozenset({"randn_like", "rand_like"})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self._NAMES and args:
            return args[0]
        if getattr(func, "__name__", "") in self._NOISE:
            return torch.full_like(args[0], 0.5, **(kwargs or {}))
        kwargs = dict(kwargs or {})
        if getattr(func, "__name__", "") == "scaled_dot_product_attention":
            kwargs["dropout_p"] = 0.0
            args = args[:4] + args[5:] if len(args) > 4 else args
        return func(*args, **kwargs)


class _PlainKernels(torch.overrides.TorchFunctionMode):
    """Grouped matrix products of mixtures of experts, whose kernels exist in short types only, one by one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(func, "__name__", "") not in ("_grouped_mm", "grouped_mm", "grouped_mm_fallback"):
            return func(*args, **kwargs)
        rows, weight, offsets = [*args, *(kwargs[key] for key in ("offs",) if key in kwargs)][:3]
        starts = [0, *offsets.tolist()]
        parts = [rows[a:b] @ weight[i] for i, (a, b) in enumerate(pairwise(starts))]
        return torch.cat([*parts, rows.new_zeros(len(rows) - starts[-1], weight.shape[-1])])


def relative_difference(reference: Tensor, other: Tensor) -> float:
    """Largest difference, relative to the largest absolute value of the reference; NaN where that is not finite."""
    scale = float(reference.abs().max()) if reference.numel() else 0.0
    if not torch.isfinite(reference).all() or reference.numel() == 0:
        return float("nan") if reference.numel() else 0.0
    return float((reference - other).abs().max()) / max(scale, 1e-300)
