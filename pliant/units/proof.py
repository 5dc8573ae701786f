"""Proving declared unit groups by running the model, and finding what is wrong with those that are not proved.

Models that are declared by hand branch on their data, so a wholly random state would send them down other roads than
training does (or into loops without end). The states here stay near the model's own: every parameter gets noise of a
tenth or more of its size, which is plenty to break the symmetry of constant vectors in float64. Several states and
inputs are used, and which tensors they read is recorded: what was never read was not proved.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pliant.errors import IllegalConfiguration
from pliant.units.call import distinct
from pliant.units.export import Inputs, as_call, canonical_names
from pliant.units.group import TensorSlice, UnitGroup
from pliant.units.replay import tensor_leaves
from pliant.units.several import Several
from pliant.units.verify import Probe, moved, permute, relative_difference

__all__ = ["TOLERANCE", "Proof", "order_of"]

TOLERANCE = 1e-9
_NOTICED = 1e-7
_MOST_OPERATIONS = 1_000_000
_NOISE = (0.1, 0.3, 0.5)  # relative noise on parameters, one state each; all but the first have noise on the inputs


class _TooLong(Exception):
    pass


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which tensors of a state are read (the run works on copies of them), and stops a run without end."""

    def __init__(self, state: dict[str, Tensor], limit: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.originals = {tensor.untyped_storage().data_ptr(): name for name, tensor in state.items()}
        self.copies: dict[int, str] = {}
        self.read: set[str] = set()
        self.limit, self.count = limit, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at the arguments of one operation."""
        self.count += 1
        if self.count > self.limit:
            raise _TooLong
        result = func(*args, **(kwargs or {}))
        for leaf in tensor_leaves((args, kwargs)):
            place = leaf.untyped_storage().data_ptr()
            if place in self.copies:
                self.read.add(self.copies[place])
            elif place in self.originals and func is torch.ops.aten.clone.default:
                self.copies[result.untyped_storage().data_ptr()] = self.originals[place]
        return result


class _Run(Probe):
    """One state near the model's own, with inputs: reference outputs in both modes."""

    def __init__(self, model: nn.Module, inputs: Inputs, seed: int, noise: float, limit: int) -> None:
        self.model, self.dtype, self.seed, self.limit = model, torch.float64, seed, limit
        self.generator = torch.Generator().manual_seed(seed)
        self.names = canonical_names(model)
        self.state = self._near(noise)
        self.read: set[str] = set()
        self.count = 0
        jitter = noise > 0.2

        def generic(leaf: Any) -> Any:
            if isinstance(leaf, Tensor) and leaf.dtype.is_floating_point:
                exact = leaf.detach().double()
                extra = torch.randn(leaf.shape, generator=self.generator, dtype=torch.float64).to(leaf.device)
                return exact + extra if jitter else exact
            return leaf

        self.args, self.kwargs = pytree.tree_map(generic, distinct(as_call(inputs)))
        self.baseline()

    def _near(self, noise: float) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        parameters = {name for name, _ in self.model.named_parameters()}
        for name in dict.fromkeys(self.names.values()):
            tensor = tensors[name].detach()
            if not tensor.dtype.is_floating_point or (name not in parameters and tensor.ndim > 1):
                state[name] = tensor.double() if tensor.dtype.is_floating_point else tensor.clone()
                continue
            exact = tensor.double().cpu()
            drawn = torch.randn(exact.shape, generator=self.generator, dtype=torch.float64)
            if name not in parameters and bool((exact >= 0).all()) and bool((exact > 0).any()):
                moved = exact * torch.exp(0.3 * drawn)  # variances stay positive
            else:
                size = float(exact.square().mean().sqrt()) if exact.numel() else 0.0
                moved = exact + max(size, 0.1) * noise * drawn
            state[name] = moved.to(tensor.device)
        return state

    def run(
        self, state: dict[str, Tensor], group: UnitGroup | None = None, order: Tensor | None = None
    ) -> list[Tensor]:
        """Outputs in both modes; the first run also notes what is read."""
        watch = _Watch(self.state, self.limit)
        with watch:
            outputs = super().run(state, group, order)
        self.count = watch.count
        if state is self.state:
            self.read = watch.read
        return outputs

    def observe(self, state: dict[str, Tensor]) -> dict[tuple[str, str], list[list[Tensor]]]:
        """What the hooks of every module see in one run: ``(module, kind)`` to tensors by call and slot."""
        seen: dict[tuple[str, str], list[list[Tensor]]] = {}

        def note(name: str, kind: str, tree: Any) -> None:
            leaves = [leaf.clone() for leaf in tensor_leaves(tree)]
            seen.setdefault((name, kind), []).append(leaves)

        handles = []
        for name, module in self.model.named_modules():
            if isinstance(module, Several):
                continue
            before = partial(_before, note, name)
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(partial(_after, note, name)))
        try:
            self.run(state)
        finally:
            for handle in handles:
                handle.remove()
        return seen


def _before(note: Callable[..., None], name: str, _: nn.Module, args: Any, kwargs: Any) -> None:
    note(name, "input", (args, kwargs))


def _after(note: Callable[..., None], name: str, _: nn.Module, __: Any, output: Any) -> None:
    note(name, "output", output)


class Proof:
    """Runs of one model, on which declared groups are checked.

    Args:
        model: The model; it is not changed.
        inputs: Example inputs, one or more.

    Raises:
        IllegalConfiguration: If the model fails, returns nothing to compare, or does not end near its own parameters.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[Inputs]) -> None:
        self.model = model
        self.runs: list[_Run] = []
        limit = _MOST_OPERATIONS
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for number, (given, noise) in enumerate((item, noise) for item in inputs for noise in _NOISE):
                try:
                    run = _Run(model, given, seed=number, noise=noise, limit=limit)
                except _TooLong as error:
                    raise IllegalConfiguration(
                        f"{type(model).__name__} did not end within {limit} operations on parameters near its own; a "
                        "loop whose end depends on the data cannot be checked. Declare the units of its submodules."
                    ) from error
                except IllegalConfiguration:
                    raise
                except Exception as error:
                    raise IllegalConfiguration(
                        f"{type(model).__name__} fails on the example inputs, in float64 and on parameters near its "
                        f"own: {type(error).__name__}: {error}"
                    ) from error
                if not all(bool(torch.isfinite(output).all()) for output in run.reference):
                    raise IllegalConfiguration(
                        f"{type(model).__name__} returns numbers that are not finite on parameters near its own, so "
                        "nothing can be compared."
                    )
                limit = min(limit, 10_000 + 100 * run.count)
                self.runs.append(run)
        self.read = set().union(*(run.read for run in self.runs))
        self.names = set(self.runs[0].names.values())

    def change(self, pieces: tuple[TensorSlice, ...], size: int) -> float:
        """Largest relative output change over all runs when the units of some slices are permuted."""
        worst = 0.0
        for run in self.runs:
            change = self._change(run, pieces, size)
            if not change <= TOLERANCE:
                return change
            worst = max(worst, change)
        return worst

    def _change(self, run: _Run, pieces: tuple[TensorSlice, ...], size: int) -> float:
        try:
            return run.change(permute(run.state, pieces, order_of(size)))
        except Exception:  # permuted in part, the parameters sent it down a road where it fails
            return math.inf

    def permuted(self, run: _Run, group: UnitGroup) -> dict[str, Tensor]:
        """A run's state with a group's units permuted by :func:`order_of`."""
        return permute(run.state, group.slices, order_of(group.size))

    def is_symmetry(self, pieces: tuple[TensorSlice, ...], size: int) -> bool:
        """Whether permuting the units leaves the outputs of all runs unchanged."""
        return self.change(pieces, size) <= TOLERANCE

    def unread(self, pieces: Iterable[TensorSlice]) -> list[str]:
        """Members that no run reads, so that nothing is proved about them."""
        return [piece.name for piece in pieces if piece.name not in self.read]

    def unnoticed(self, group: UnitGroup) -> list[TensorSlice]:
        """Members that may be left out although the output depends on them: they are no part of this symmetry."""
        found = []
        for piece in group.slices:
            rest = tuple(other for other in group.slices if other is not piece)
            if any(self._change(run, rest, group.size) >= _NOTICED for run in self.runs):
                continue
            if not all(run.is_inert(piece) for run in self.runs):
                found.append(piece)
        return found

    def halves(self, group: UnitGroup) -> tuple[TensorSlice, ...] | None:
        """Some of the members that are a symmetry without the others, if there are any (two groups declared as one)."""
        pieces = group.slices
        if len(pieces) > 8:
            return None
        for count in range(1, len(pieces) // 2 + 1):
            for part in combinations(pieces, count):
                if self.is_symmetry(part, group.size) and not all(
                    run.is_inert(piece) for piece in part for run in self.runs
                ):
                    return part
        return None

    def reset_preserves_function(self, group: UnitGroup) -> bool:
        """Whether units without outgoing weights can be redrawn without any change of the outputs."""
        if not group.role("outgoing"):
            return False
        chosen = order_of(group.size)[: (group.size + 1) // 2]
        for run in self.runs:
            generator = torch.Generator().manual_seed(7)
            redrawn = dict(run.state)
            for piece in (*group.role("incoming"), *group.role("carried")):
                redrawn[piece.name] = _filled(redrawn[piece.name], piece, chosen, generator)
            outcomes = []
            for state in (dict(run.state), redrawn):
                for piece in group.role("outgoing"):
                    state[piece.name] = _filled(state[piece.name], piece, chosen, None)
                try:
                    outcomes.append(run.run(state))
                except Exception:  # without these units it takes a road where it fails
                    return False
            changes = [relative_difference(a, b) for a, b in zip(*outcomes, strict=True)]
            if not all(change <= TOLERANCE for change in changes):
                return False
        return True


def order_of(size: int) -> Tensor:
    """A permutation that moves every unit, the same at every call, ``LongTensor [U]``."""
    return moved(size, torch.Generator().manual_seed(size))


def _filled(tensor: Tensor, piece: TensorSlice, units: Tensor, generator: torch.Generator | None) -> Tensor:
    """A copy in which what some units own is drawn anew, or zero."""
    filled = tensor.clone()
    result = piece.within(filled).movedim(piece.dim, 0)  # a view
    where = piece.positions()[units].flatten().to(tensor.device)
    if generator is None:
        result[where] = 0
    else:
        drawn = 0.5 + torch.rand(result[where].shape, generator=generator, dtype=torch.float64)
        result[where] = drawn.to(result)
    return filled
