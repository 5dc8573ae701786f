"""The algebra of axes: which entries of which tensor dimensions are the same hidden unit.

Every dimension of every tensor in the exported graph is an :data:`Axis`: a concatenation of segments, each a
row-major product of :class:`Atom` objects. A linear layer's 64 outputs are one atom; a flattened ``8x4x4`` feature
map is the product of a channel atom and two space atoms; a U-Net's skip connection is a concatenation. An operation
that needs two axes to be indexed alike *ties* them: atoms are union-find nodes and are refined lazily, as a product
when a view splits them and as a concatenation when a slice does. What is left at the end is the answer: an atom
that was never frozen is a set of units whose order the network cannot see.

Atoms are frozen, with a reason, as soon as something depends on their order: the data's own axes, the model's
output, a cumulative sum, an operation that no rule explains. Freezing can only shrink the result, so every doubt
ends there (fail closed).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import prod

__all__ = ["Atom", "Axis", "concat", "freeze", "fresh", "leaves", "merge", "positions", "resolve", "split", "tie"]


class Atom:
    """A union-find node: one set of interchangeable positions, or a refinement into smaller ones.

    Attributes:
        size: Number of positions.
        frozen: Why the positions may not be permuted, or ``None`` while they may.
        marks: Facts about how the units are used (``"mixed"``: normalised or reduced over the units).
    """

    __slots__ = ("_parent", "frozen", "is_product", "marks", "parts", "size")

    def __init__(self, size: int, frozen: str | None = None) -> None:
        self.size = size
        self.frozen = frozen
        self.marks: set[str] = set()
        self.parts: tuple[Atom, ...] | None = None
        self.is_product = False
        self._parent: Atom | None = None

    def root(self) -> Atom:
        """The representative of this atom's class, with path compression."""
        top = self
        while top._parent is not None:
            top = top._parent
        node = self
        while node._parent is not None:
            node._parent, node = top, node._parent
        return top

    def freeze(self, reason: str) -> None:
        """Forbid permutations of these positions; the first reason is kept."""
        top = self.root()
        if top.frozen is None:
            top.frozen = reason
        for part in top.parts or ():
            if part.root().frozen is None:
                part.freeze(reason)

    def mark(self, fact: str) -> None:
        """Note a fact about the units; parts made later inherit it."""
        top = self.root()
        top.marks.add(fact)
        for part in top.parts or ():
            part.mark(fact)

    def refine(self, sizes: Sequence[int], *, product: bool) -> None:
        """Split this leaf into parts, as a row-major product or as a concatenation."""
        top = self.root()
        parts = tuple(Atom(size, top.frozen) for size in sizes)
        for part in parts:
            part.marks |= top.marks
        top.parts, top.is_product = parts, product

    def unite(self, other: Atom) -> None:
        """Make two leaves of equal size one."""
        a, b = self.root(), other.root()
        if a is b:
            return
        if a.frozen is None and b.frozen is not None:
            a.frozen = b.frozen
        a.marks |= b.marks
        b._parent = a


Segment = tuple[Atom, ...]
Axis = tuple[Segment, ...]

_CUT_MINOR = "it is cut inside a repeating block (as rotary embeddings do), which fixes the order within the block"
_NO_COMMON = "two views of it do not share a common grid"


def fresh(size: int, frozen: str | None = None) -> Axis:
    """A new axis of one atom."""
    return ((Atom(size, frozen),),)


def size_of(segment: Iterable[Atom]) -> int:
    """Number of positions of a product of atoms."""
    return prod(atom.size for atom in segment)


def resolve(axis: Axis) -> Axis:
    """The axis in terms of today's unrefined atoms; size-one factors are dropped from products."""
    result: list[Segment] = []
    for segment in axis:
        result.extend(_resolve_segment(segment))
    return tuple(result)


def _resolve_segment(segment: Segment) -> list[Segment]:
    done: list[Segment] = [()]
    for atom in segment:
        expanded = _expand(atom.root())
        if len(expanded) == 1:
            done = [prefix + expanded[0] for prefix in done]
        elif len(done) == 1 and size_of(done[0]) == 1:
            done = [done[0] + piece for piece in expanded]
        else:  # a concatenation below a larger factor interleaves: keep the atom whole, and fixed
            _coarsen(atom.root())
            done = [(*prefix, atom.root()) for prefix in done]
    trimmed = [tuple(atom for atom in piece if atom.size != 1) or piece[:1] for piece in done]
    return trimmed


def _expand(atom: Atom) -> list[Segment]:
    if atom.parts is None:
        return [(atom,)]
    if atom.is_product:
        return _resolve_segment(atom.parts)
    return [piece for part in atom.parts for piece in _expand(part.root())]


def _coarsen(atom: Atom) -> None:
    atom.freeze(_CUT_MINOR)
    atom.parts = None


def leaves(axis: Axis) -> list[Atom]:
    """The distinct unrefined atoms of an axis, in order."""
    seen: dict[int, Atom] = {}
    for segment in resolve(axis):
        for atom in segment:
            seen.setdefault(id(atom), atom)
    return list(seen.values())


def freeze(axis: Axis, reason: str) -> None:
    """Freeze every atom of an axis."""
    for atom in leaves(axis):
        atom.freeze(reason)


def mark(axis: Axis, fact: str) -> None:
    """Note a fact on every atom of an axis."""
    for atom in leaves(axis):
        atom.mark(fact)


def tie(first: Axis, second: Axis) -> None:
    """Require that two axes of equal size are indexed alike.

    Atoms are refined until both axes have the same shape and then united; where no common refinement exists, both
    axes are frozen.
    """
    while True:
        a, b = resolve(first), resolve(second)
        if sum(map(size_of, a)) != sum(map(size_of, b)):
            raise AssertionError(f"axes of different sizes cannot be tied: {a} and {b}")
        outcome = _tie_once(a, b)
        if outcome == "done":
            return
        if outcome == "clash":
            freeze(first, _NO_COMMON)
            freeze(second, _NO_COMMON)
            return


def _tie_once(a: Axis, b: Axis) -> str:
    """One pass over the segments: 'done', 'again' after a refinement, or 'clash'."""
    for left, right in zip(a, b, strict=False):
        size_left, size_right = size_of(left), size_of(right)
        if size_left != size_right:
            big, small = (left, size_right) if size_left > size_right else (right, size_left)
            return "again" if _cut(big, small) else "clash"
        outcome = _tie_products(left, right)
        if outcome != "done":
            return outcome
    return "done"


def _cut(segment: Segment, at: int) -> bool:
    """Split a segment after its first ``at`` positions by splitting its major atom."""
    minor = size_of(segment[1:])
    if at % minor or segment[0].size <= at // minor:
        return False
    segment[0].refine([at // minor, segment[0].size - at // minor], product=False)
    return True


def _tie_products(left: Segment, right: Segment) -> str:
    a, b = list(left), list(right)
    while a and b:
        x, y = a[-1].root(), b[-1].root()
        if x.parts is not None or y.parts is not None:
            return "again"
        if x.size == y.size:
            x.unite(y)
            a.pop()
            b.pop()
            continue
        big, small = (x, y) if x.size > y.size else (y, x)
        if big.size % small.size:
            return "clash"
        big.refine([big.size // small.size, small.size], product=True)
        return "again"
    return "done"


def concat(axes: Sequence[Axis]) -> Axis:
    """The axis of ``torch.cat`` along it."""
    return tuple(segment for axis in axes for segment in axis)


def split(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """The axes of ``torch.split`` along it; refines atoms where a cut falls inside one."""
    bounds = [0]
    for size in sizes:
        bounds.append(bounds[-1] + size)
    for bound in bounds[1:-1]:
        if not _cut_axis(axis, bound):
            freeze(axis, _NO_COMMON)
            return [fresh(size, _NO_COMMON) for size in sizes]
    pieces = resolve(axis)
    starts = [0]
    for segment in pieces:
        starts.append(starts[-1] + size_of(segment))
    if not set(bounds) <= set(starts):  # resolving coarsened an atom that the cuts had refined
        freeze(axis, _CUT_MINOR)
        return [fresh(size, _CUT_MINOR) for size in sizes]
    return [
        tuple(piece for piece, start in zip(pieces, starts, strict=False) if low <= start < high)
        for low, high in pairwise(bounds)
    ]


def _cut_axis(axis: Axis, at: int) -> bool:
    start = 0
    for segment in resolve(axis):
        end = start + size_of(segment)
        if at in (start, end):
            return True
        if start < at < end:
            return _cut(segment, at - start)
        start = end
    return True


def merge(axes: Sequence[Axis]) -> Axis:
    """The row-major product of axes: what a view that joins dimensions makes of them."""
    result: Axis = ((),)
    for axis in axes:
        pieces = resolve(axis)
        if len(pieces) > 1 and sum(map(size_of, result)) != 1:
            total = sum(map(size_of, pieces))
            freeze(axis, _CUT_MINOR)
            pieces = resolve(fresh(total, _CUT_MINOR))
        result = tuple(prefix + piece for prefix in result for piece in pieces)
    return tuple(segment or (Atom(1),) for segment in result)


def factor(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """The axes that a view which splits a dimension into ``sizes`` (row-major) makes of it."""
    if len(sizes) == 1:
        return [axis]
    minor = sizes[-1]
    while True:
        pieces = resolve(axis)
        taken = [_take_minor(piece, minor) for piece in pieces]
        if any(outcome is None for outcome in taken):
            freeze(axis, _NO_COMMON)
            return [fresh(size, _NO_COMMON) for size in sizes]
        done = [outcome for outcome in taken if isinstance(outcome, tuple)]
        if len(done) == len(taken):
            break
    tails = [tail for _, tail in done]
    for tail in tails[1:]:  # every block of a concatenation shares the minor index
        tie((tails[0],), (tail,))
    majors: Axis = tuple(head or (Atom(1),) for head, _ in done)
    return [*factor(majors, sizes[:-1]), (tails[0],)]


def _take_minor(segment: Segment, size: int) -> tuple[Segment, Segment] | str | None:
    """Split a product into (major, minor of ``size``); 'again' after a refinement, ``None`` if impossible."""
    if size == 1:
        return segment, (Atom(1),)
    head: list[Atom] = list(segment)
    tail: list[Atom] = []
    while head and size_of(tail) < size:
        need = size // size_of(tail)
        atom = head[-1]
        if size % size_of(tail):
            return None
        if atom.size <= need:
            if need % atom.size:
                return None
            tail.insert(0, head.pop())
            continue
        if atom.size % need:
            return None
        atom.refine([atom.size // need, need], product=True)
        return "again"
    return (tuple(head), tuple(tail)) if size_of(tail) == size else None


def blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The smallest groups of dimensions of ``old`` and ``new`` shapes that a row-major view maps onto each other.

    Example:
        >>> blocks([2, 12, 5], [2, 3, 4, 5])
        [([0], [0]), ([1], [1, 2]), ([2], [3])]
    """
    result: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        if i >= len(old):  # only sizes of one are left on one side
            result.append(([], [j]))
            j += 1
            continue
        if j >= len(new):
            result.append(([i], []))
            i += 1
            continue
        left, right = [i], [j]
        i, j = i + 1, j + 1
        while (a := prod(old[k] for k in left)) != (b := prod(new[k] for k in right)):
            if a < b:
                left.append(i)
                i += 1
            else:
                right.append(j)
                j += 1
        result.append((left, right))
    return result


def reshape(axes: Sequence[Axis], old: Sequence[int], new: Sequence[int]) -> list[Axis]:
    """The axes after ``view(new)`` of a tensor of shape ``old``: blocks of equal size are merged, then factored."""
    result: list[Axis] = []
    for left, right in blocks(old, new):
        if not left:
            result.append(fresh(1))
        elif len(left) == len(right) == 1:
            result.append(axes[left[0]])
        elif right:
            result.extend(_rearrange([axes[k] for k in left], [new[k] for k in right]))
    return result


def _rearrange(axes: Sequence[Axis], sizes: Sequence[int]) -> list[Axis]:
    return factor(merge(axes), sizes)


def positions(axis: Axis, atom: Atom) -> list[list[int]]:
    """For each unit of ``atom``, its positions along ``axis`` (``[U][M]``, M may be 0).

    Raises:
        ValueError: If the atom occurs twice in one product: such a unit has no separate positions.
    """
    target = atom.root()
    found: list[list[int]] = [[] for _ in range(target.size)]
    offset = 0
    for segment in resolve(axis):
        if sum(part is target for part in segment) > 1:
            raise ValueError("a unit occurs twice in one product of axes")
        if target in segment:
            where = segment.index(target)
            stride = size_of(segment[where + 1 :])
            block = stride * target.size
            for major in range(size_of(segment[:where])):
                for unit in range(target.size):
                    start = offset + major * block + unit * stride
                    found[unit].extend(range(start, start + stride))
        offset += size_of(segment)
    return found
