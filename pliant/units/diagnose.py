"""What is wrong with a declaration that is no symmetry: a member too many, one misread, or some forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

from pliant.units.group import Role, TensorSlice, UnitGroup
from pliant.units.layout import Layout, Names, layouts_of
from pliant.units.proof import Proof

__all__ = ["explain", "unread_suspects"]

_MOST_TRIALS = 500


def explain(group: UnitGroup, names: Names, proof: Proof, change: float) -> str:
    """A sentence or two on why a group is no symmetry, found by trying to repair it.

    Args:
        group: The group, as declared.
        names: The model's names.
        proof: Runs of the model.
        change: How much permuting its units changed the outputs.
    """
    head = f"permuting the {group.size} units of {group.name!r}, as declared, changes the output by {change:.0e}"
    for piece in group.slices:
        rest = tuple(other for other in group.slices if other is not piece)
        if any(other.role == "incoming" for other in rest) and proof.is_symmetry(rest, group.size):
            return f"{head}: {_label(piece)} does not belong to them. Without it the permutation leaves no trace."
    for piece in group.slices:
        for other, layout in _rereadings(piece, names, group.size):
            changed = tuple(other if item is piece else item for item in group.slices)
            if proof.is_symmetry(changed, group.size):
                how = f"{{'tensor': {other.name!r}, 'dim': {other.dim}{', ' if str(layout) else ''}{layout}}}"
                return f"{head}: {_label(piece)} is not where the units are. With {how} in its place it is a symmetry."
    trials = 0
    bundles = list(_additions(group, names))
    for count in (1, 2, 3):
        for chosen in combinations(bundles, count):
            trials += 1
            if trials > _MOST_TRIALS:
                break
            extra = tuple(piece for bundle in chosen for piece in bundle)
            if len({(p.name, p.dim) for p in extra}) < len(extra):
                continue
            if proof.is_symmetry((*group.slices, *extra), group.size):
                return f"{head}: {_listed(extra)} {'is' if len(extra) == 1 else 'are'} missing. {_hint(extra)}"
    near = sorted({_label(piece) for bundle in bundles for piece in bundle})
    shown = ", ".join(near[:8]) + (f" and {len(near) - 8} more" if len(near) > 8 else "")
    return (
        f"{head}, and no change of one member or addition of up to three repairs it. Declared are "
        f"{_listed(group.slices)}; other tensors with a dimension that fits are: {shown or 'none'}."
    )


def unread_suspects(group: UnitGroup, names: Names, proof: Proof) -> list[str]:
    """Tensors that could hold units of a group, but that no run reads: nothing is proved about them."""
    found = [piece.name for bundle in _additions(group, names) for piece in bundle if piece.name not in proof.read]
    return list(dict.fromkeys(found))


def _label(piece: TensorSlice) -> str:
    return f"'{piece.label}'"


def _listed(pieces: tuple[TensorSlice, ...]) -> str:
    return ", ".join(map(_label, pieces))


def _hint(extra: tuple[TensorSlice, ...]) -> str:
    by_role: dict[Role, list[str]] = {}
    for piece in extra:
        by_role.setdefault(piece.role, []).append(f"{piece.label}")
    said = ", ".join(f"'{role}': {found!r}" for role, found in by_role.items())
    return f"Add {said}."


def _rereadings(piece: TensorSlice, names: Names, size: int) -> Iterator[tuple[TensorSlice, Layout]]:
    """The same tensor along another dimension, or in other blocks."""
    shape = names.tensors[piece.name].shape
    for dim in range(-len(shape), 0):
        for layout in layouts_of(size, shape[dim]):
            other = replace(piece, dim=dim, table=layout.table(size))
            if other != piece:
                yield other, layout


def _additions(group: UnitGroup, names: Names) -> Iterator[tuple[TensorSlice, ...]]:
    """Undeclared slices that would fit: alone, and the vectors of one module together (a norm and its statistics)."""
    taken = {(piece.name, piece.dim) for piece in group.slices}
    producers = {piece.name.rpartition(".")[0] for piece in group.role("incoming")}
    together: dict[str, list[TensorSlice]] = {}
    alone: list[TensorSlice] = []
    for name, tensor in names.tensors.items():
        for dim in range(-tensor.ndim, 0):
            if (name, dim) in taken:
                continue
            for layout in layouts_of(group.size, tensor.shape[dim]):
                if tensor.ndim == 1:
                    role: Role = "incoming" if name.rpartition(".")[0] in producers else "carried"
                else:
                    role = "incoming" if dim == -tensor.ndim else "outgoing"
                piece = TensorSlice(name, dim, role, layout.table(group.size))
                alone.append(piece)
                if tensor.ndim == 1 and layout.each * layout.blocks == 1:
                    together.setdefault(name.rpartition(".")[0], []).append(piece)
    yield from ((piece,) for piece in alone)
    yield from (tuple(pieces) for pieces in together.values() if len(pieces) > 1)
