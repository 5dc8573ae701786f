"""Unit groups by hand, for models that cannot be exported; proved by running the model, or refused."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor

from pliant.errors import IllegalConfiguration, NoEffect
from pliant.units.diagnose import explain, unread_suspects
from pliant.units.discover import check_call
from pliant.units.export import refuse_wrapped
from pliant.units.graph import UnitGraph
from pliant.units.group import Role, Site, Tap, TensorSlice, UnitGroup
from pliant.units.layout import Names, layouts_of
from pliant.units.proof import TOLERANCE, Proof, order_of
from pliant.units.several import Models, joined

__all__ = ["declare_units"]

_ROLES: tuple[Role, ...] = get_args(Role)
_KEYS = ("size", *_ROLES, "tap", "site")
_TAP = re.compile(r"(?P<kind>input|output) of (?P<module>.*?)(\[(?P<dim>-?\d+)\])?")


def declare_units(
    model: Models,
    example_inputs: Any,
    groups: Mapping[str, Any],
    *,
    more_inputs: Sequence[Any] = (),
    base: UnitGraph | None = None,
    ignore: str = "",
) -> UnitGraph:
    """State the unit groups of a model by hand, where its forward pass branches on the data and cannot be exported.

    A declaration is proved before it is believed: the model runs in float64 on several states near its own
    parameters, and permuting a group's units must change no output, while leaving out any member must. A wrong one is
    refused with the member that is missing, misread or too many. Whether a reset preserves the function is measured.

    A group is named after the module that produces its units. The shortest declaration names the module that consumes
    them, ``{"fc1": "fc2"}``; in full it is a mapping with

    - ``incoming``: what produces the units; by default all tensors of the module that the group is named after;
    - ``carried``: per-unit state on the way, for example ``"norm"``;
    - ``outgoing``: what consumes them;
    - ``tap``: where the activations can be read, ``"output of act1"`` or ``"input of fc2"`` (``"output of conv[1]"``
      says which dimension), or ``None``; by default the first hook that sees what the consuming modules read;
    - ``size``: the number of units, where the first incoming tensor has several positions for each;
    - ``site``: ``"hidden"`` (the default), ``"heads"``, ``"head_dims"`` or ``"residual"``.

    Members are one or a list of: a module (its weight and bias, or its vectors); a tensor, ``"fc2.weight"``, with the
    usual dimension (rows of a weight produce, columns consume); ``"fc2.weight[0]"`` with another; or a mapping for
    other layouts: ``{"tensor": "qkv.weight", "dim": 0, "blocks": 3, "each": 8, "start": 0}`` is three blocks of all
    units in order, each unit with 8 consecutive positions. ``each`` follows from the size, so a flattened feature map
    needs no words; ``positions`` gives any table ``[units, positions of each]``.

    Args:
        model: The model, before DDP, FSDP and ``torch.compile``; or several by name.
        example_inputs: One small batch, as for :func:`~pliant.units.discover.find_units`.
        groups: Group name to declaration.
        more_inputs: Further batches, where one does not take every branch.
        base: Groups found in parts that can be exported, ``find_units(model.encoder, x).prefixed("encoder")``. They
            are checked on the whole model, too.
        ignore: Patterns, separated by commas, of tensors that may stay unread in all runs although units of a group
            would fit in (target networks).

    Returns:
        The unit graph: the groups of ``base`` and the declared ones.

    Raises:
        IllegalConfiguration: If a declaration is wrong, names nothing, or cannot be checked because no run reads one
            of its members.
        NoEffect: If nothing is declared.

    Example:
        >>> import torch, pliant
        >>> class Route(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.fc1 = torch.nn.Linear(4, 8)
        ...         self.left, self.right = torch.nn.Linear(8, 2), torch.nn.Linear(8, 2)
        ...     def forward(self, x):
        ...         h = torch.relu(self.fc1(x))
        ...         return self.left(h) if x.mean() > 0 else self.right(h)
        >>> x = torch.rand(3, 4)
        >>> units = pliant.declare_units(Route(), x, {"fc1": ["left", "right"]}, more_inputs=[-x])
        >>> units["fc1"].tensors
        ('fc1.weight', 'fc1.bias', 'left.weight', 'right.weight')
        >>> pliant.declare_units(Route(), x, {"fc1": "left"}, more_inputs=[-x])
        Traceback (most recent call last):
        pliant.errors.IllegalConfiguration: ... 'right.weight[-1]' is missing. ...
    """
    if not groups:
        raise NoEffect("no unit group is declared: pass for example {'fc1': 'fc2'}.")
    module, inputs = joined(model, example_inputs)
    refuse_wrapped(module)
    calls = [inputs, *(joined(model, item)[1] for item in more_inputs)]
    for call in calls:
        check_call(module, call)
    names = Names(module)
    wishes = {name: _Wish.read(name, given, names) for name, given in groups.items()}
    proof = Proof(module, calls)
    done = []
    for wish in wishes.values():
        _check(wish.group, names, proof, ignore)
        group = replace(wish.group, reset_preserves_function=proof.reset_preserves_function(wish.group))
        done.append(replace(group, tap=_tap(group, wish, proof)))
    declared = UnitGraph(tuple(done), _remaining(done, names))
    if base is None:
        return declared
    base = _in_whole(base, names)
    for group in base:
        _check(group, names, proof, ignore)
    return base | declared


def _in_whole(base: UnitGraph, names: Names) -> UnitGraph:
    """Groups of a part, by the names that the whole model gives its tensors."""
    unknown = [name for group in base for name in group.tensors if name not in names.canonical]
    if unknown:
        raise IllegalConfiguration(
            f"base names {unknown[0]!r}, which {type(names.model).__name__} does not have. Units found in a submodule "
            "need its name in front: find_units(model.encoder, x).prefixed('encoder')."
        )
    return base.renamed(names.canonical)


class _Wish:
    """One declaration, read: the group without its tap, and which tap is wanted."""

    def __init__(self, group: UnitGroup, tap: str | None, given: bool) -> None:
        self.group, self.tap, self.tap_is_given = group, tap, given

    @classmethod
    def read(cls, name: str, given: Any, names: Names) -> _Wish:
        what = f"declaration of {name!r}"
        if not isinstance(given, Mapping) or "tensor" in given:
            given = {"outgoing": given}
        unknown = set(given) - set(_KEYS)
        if unknown:
            raise IllegalConfiguration(
                f"{what}: unknown {', '.join(map(repr, sorted(unknown)))}; the keys are {', '.join(map(repr, _KEYS))}, "
                "names of modules and tensors are their values: {'incoming': 'fc1', 'outgoing': ['fc2.weight']}."
            )
        site: Site = given.get("site", "hidden")
        if site not in get_args(Site):
            raise IllegalConfiguration(f"{what}: site={site!r} is none of {', '.join(get_args(Site))}.")
        wanted = {"incoming": name.partition(":")[0], **given}
        size = given.get("size")
        pieces: list[TensorSlice] = []
        for role in _ROLES:
            for reference in _as_list(wanted.get(role, ())):
                found = names.pieces(reference, role, size, what)
                size = size or len(found[0].table)
                if any(len(piece.table) != size for piece in found):  # the module's first tensor set the size
                    found = names.pieces(reference, role, size, what)
                pieces.extend(found)
        if not any(piece.role == "incoming" for piece in pieces):
            raise IllegalConfiguration(f"{what}: nothing produces its units; name 'incoming' weights.")
        if size is None or size < 2:
            raise IllegalConfiguration(f"{what}: it has {size} unit; there is nothing to permute.")
        _check_apart(pieces, what)
        tap = given.get("tap")
        return cls(UnitGroup(name, int(size), tuple(pieces), site, None, False), tap, "tap" in given)


def _as_list(value: Any) -> list[Any]:
    return [value] if isinstance(value, (str, Mapping)) else list(value)


def _check_apart(pieces: Sequence[TensorSlice], what: str) -> None:
    seen: set[tuple[str, int, int]] = set()
    for piece in pieces:
        places = {(piece.name, piece.dim, place) for row in piece.table for place in row}
        if places & seen:
            raise IllegalConfiguration(f"{what}: '{piece.label}' is named twice.")
        seen |= places


def _check(group: UnitGroup, names: Names, proof: Proof, ignore: str) -> None:
    """Refuse a group that is no symmetry, or about which the runs prove nothing."""
    patterns = [part.strip() for part in ignore.split(",") if part.strip()]
    unread = proof.unread(group.slices)
    if unread:
        raise IllegalConfiguration(
            f"no run of the model reads {', '.join(map(repr, dict.fromkeys(unread)))} of {group.name!r}, so nothing "
            "can be proved about it: pass more_inputs=[...] that take the branch it is in."
        )
    change = proof.change(group.slices, group.size)
    if not change <= TOLERANCE:
        raise IllegalConfiguration(explain(group, names, proof, change))
    unnoticed = proof.unnoticed(group)
    if unnoticed:
        piece = unnoticed[0]
        raise IllegalConfiguration(
            f"'{piece.label}' is no part of {group.name!r}: leaving it out of the permutation changes "
            "nothing, although the output depends on it. Remove it from the declaration."
        )
    part = proof.halves(group)
    if part is not None:
        rest = tuple(piece for piece in group.slices if piece not in part)
        raise IllegalConfiguration(
            f"{group.name!r} is two groups: {_listed(part)} can be permuted without {_listed(rest)}. Declare them "
            "apart."
        )
    suspects = unread_suspects(group, names, proof)
    suspects = [name for name in suspects if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    if suspects:
        shown = ", ".join(map(repr, suspects[:4])) + (f" and {len(suspects) - 4} more" if len(suspects) > 4 else "")
        raise IllegalConfiguration(
            f"no run of the model reads {shown}, where units of {group.name!r} would fit, so a member may be missing "
            f"unnoticed: pass more_inputs=[...] that take every branch, or ignore={suspects[0]!r} if it belongs to "
            "another network."
        )


def _listed(pieces: Sequence[TensorSlice]) -> str:
    return ", ".join(f"'{piece.label}'" for piece in pieces)


# ---- taps ----
def _tap(group: UnitGroup, wish: _Wish, proof: Proof) -> Tap | None:
    """The wanted tap, if the units are seen there; without a wish, what the consuming modules read."""
    if wish.tap_is_given and wish.tap is None:
        return None
    seen = _Seen(group, proof)
    if not wish.tap_is_given:
        return seen.default()
    text = wish.tap if isinstance(wish.tap, str) else ""
    match = _TAP.fullmatch(text)
    if match is None:
        raise IllegalConfiguration(
            f"tap={wish.tap!r} of {group.name!r} is none: write 'output of act1', 'input of fc2', or None."
        )
    kind, module = match["kind"], match["module"]
    dim = int(match["dim"]) if match["dim"] else None
    tap = seen.tap(kind, module, dim)
    if tap is None:
        others = ", ".join(map(repr, seen.everywhere()[:6]))
        why = (
            "the values there do not permute with the units"
            if (module, kind) in seen.pairs[0][0]
            else "no such hook fires in the runs"
        )
        raise IllegalConfiguration(
            f"the activations of {group.name!r} cannot be read at {text!r}: {why}. "
            + (f"They can be read at: {others}." if others else "No hook sees them: tap=None.")
        )
    return tap


class _Seen:
    """What all hooks see of a group's units, with and without a permutation, in every run."""

    def __init__(self, group: UnitGroup, proof: Proof) -> None:
        self.group = group
        self.order = order_of(group.size)
        self.pairs = [(run.observe(run.state), run.observe(proof.permuted(run, group))) for run in proof.runs]

    def tap(self, kind: str, module: str, dim: int | None) -> Tap | None:
        """The tap at one hook, if every call that it hears shows the units."""
        calls = [
            (before, after)
            for first, second in self.pairs
            for before, after in zip(first.get((module, kind), ()), second.get((module, kind), ()), strict=False)
        ]
        if not calls:
            return None
        for slot, example in enumerate(calls[0][0]):
            for at in self._dims(example, dim):
                for layout in layouts_of(self.group.size, example.shape[at]):
                    table = layout.table(self.group.size)
                    if all(self._permutes(before, after, slot, at, table) for before, after in calls):
                        return Tap(kind, module, slot, at, table)  # type: ignore[arg-type]
        return None

    def default(self) -> Tap | None:
        """The earliest hook that sees, in every run, all that the consuming modules read, else one of their inputs.

        The earliest, because dropout may lie before a consumer (it is off here, so that the values are the same);
        in every run, because a consumer may sit in a branch.
        """
        owners = list(dict.fromkeys(piece.name.rpartition(".")[0] for piece in self.group.role("outgoing")))
        for module, kind in self.pairs[0][0]:
            tap = self.tap(kind, module, None) if module else None
            if tap is not None and all(self._covers(first, tap, owners) for first, _ in self.pairs):
                return tap
        return next((tap for owner in owners if (tap := self.tap("input", owner, None)) is not None), None)

    def _covers(self, seen: dict[tuple[str, str], list[list[Tensor]]], tap: Tap, owners: list[str]) -> bool:
        wanted = [leaves[0] for owner in owners for leaves in seen.get((owner, "input"), ()) if leaves]
        here = [leaves[tap.slot] for leaves in seen.get((tap.module, tap.kind), ())]
        return bool(wanted) and all(any(torch.equal(tensor, other) for other in here) for tensor in wanted)

    def everywhere(self) -> list[str]:
        """All hooks at which the units are seen."""
        return [f"{kind} of {module}" for module, kind in self.pairs[0][0] if module and self.tap(kind, module, None)]

    def _dims(self, tensor: Tensor, dim: int | None) -> list[int]:
        if dim is not None:
            return [dim if dim < 0 else dim - tensor.ndim] if -tensor.ndim <= dim < tensor.ndim else []
        return [-1, *range(-tensor.ndim, -1)] if tensor.ndim else []

    def _permutes(
        self, before: list[Tensor], after: list[Tensor], slot: int, dim: int, table: tuple[tuple[int, ...], ...]
    ) -> bool:
        if slot >= min(len(before), len(after)):
            return False
        old, new = before[slot], after[slot]
        if old.shape != new.shape or old.ndim < -dim or not old.dtype.is_floating_point:
            return False
        positions = torch.tensor(table)
        if old.shape[dim] != positions.numel():
            return False
        index = torch.arange(old.shape[dim])
        index[positions.flatten()] = positions[self.order].flatten()
        expected = old.index_select(dim, index.to(old.device))
        scale = float(old.abs().max()) + 1e-300
        moved = float((expected - old).abs().max()) / scale
        return moved > 1e-6 and float((expected - new).abs().max()) / scale <= TOLERANCE


def _remaining(groups: Sequence[UnitGroup], names: Names) -> dict[tuple[str, int], str]:
    """Every dimension that is not wholly in a group."""
    covered: dict[tuple[str, int], int] = {}
    for group in groups:
        for piece in group.slices:
            covered[piece.name, piece.dim] = covered.get((piece.name, piece.dim), 0) + group.size * piece.width
    return {
        (name, dim): "it was not declared"
        for name, tensor in names.tensors.items()
        for dim in range(-tensor.ndim, 0)
        if covered.get((name, dim), 0) < tensor.shape[dim]
    }
