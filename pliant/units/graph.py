"""The unit graph: every group of hidden units of a model, and why everything else is none."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pliant.errors import IllegalConfiguration, NoEffect
from pliant.units.group import UnitGroup

if TYPE_CHECKING:
    from pliant.units.replay import Replay
    from pliant.units.several import Models
    from pliant.units.verify import Verification

__all__ = ["UnitGraph"]

_NAMED_ONLY = ("head_dims", "residual", "experts")


@dataclass(frozen=True)
class UnitGraph:
    """The unit groups of one model: names and positions, no tensors.

    Iterating gives the :class:`~pliant.units.group.UnitGroup` objects; ``units["fc1"]`` gives one; ``print(units)``
    shows what was found, and what was not and why.

    Attributes:
        groups: The unit groups, in the model's order.
        excluded: ``(tensor name, dimension from the end)`` to the reason why (part of) it belongs to no group. Each
            dimension of each parameter and buffer is in a group, in here, or (when a fixed factor such as the
            dimensions inside a head remains) in both.
        unknown_ops: Operations of the forward pass that no rule explains, with the number of occurrences.
        replays: For groups whose tap recomputes part of the forward pass: the exported subgraph.
        depths: Tensor name to the number of layers that follow it, see :func:`pliant.units.depth.depths_in_graph`;
            empty where no graph was exported (declared units).

    Example:
        >>> import torch, pliant
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> units = pliant.find_units(model, torch.randn(3, 4))
        >>> [group.name for group in units], units["0"].size, [group.name for group in units.select("0*")]
        (['0'], 8, ['0'])
    """

    groups: tuple[UnitGroup, ...]
    excluded: Mapping[tuple[str, int], str] = field(default_factory=dict)
    unknown_ops: Mapping[str, int] = field(default_factory=dict)
    replays: Mapping[str, Replay] = field(default_factory=dict, repr=False, compare=False)
    depths: Mapping[str, int] = field(default_factory=dict, repr=False, compare=False)

    def __iter__(self) -> Iterator[UnitGroup]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __contains__(self, name: object) -> bool:
        return any(group.name == name for group in self.groups)

    def __getitem__(self, name: str) -> UnitGroup:
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(f"no unit group {name!r}; there are: {', '.join(group.name for group in self.groups)}")

    def select(self, pattern: str = "*") -> tuple[UnitGroup, ...]:
        """The groups whose name, or a module that contains it, matches a shell-style pattern.

        ``"*"`` selects hidden units and attention heads. Residual streams, the dimensions inside heads and whole
        experts are selected only by a pattern that spells out their ``":residual"``, ``":head_dims"`` or
        ``":experts"`` ending.

        Args:
            pattern: For example ``"blocks.*.mlp"``, ``"*:heads"``, ``"*:residual"``; several, separated by commas.
        """
        chosen = []
        for group in self.groups:
            for part in (piece.strip() for piece in pattern.split(",")):
                if group.site in _NAMED_ONLY and not part.endswith(f":{group.site}"):
                    continue
                if any(fnmatch.fnmatchcase(group.name, form) for form in (part, f"{part}.*", f"{part}:*")):
                    chosen.append(group)
                    break
        return tuple(chosen)

    def verify(self, model: Models, example_inputs: Any, *, seed: int = 0) -> Verification:
        """Prove every group on this model: permuting its units must not change the output, see :func:`verify`."""
        from pliant.units.verify import verify

        return verify(self, model, example_inputs, seed=seed)

    def require(self, pattern: str = "*") -> tuple[UnitGroup, ...]:
        """Like :meth:`select`, but finding nothing is an error.

        Raises:
            NoEffect: If no group matches; the message lists what there is.
        """
        chosen = self.select(pattern)
        if not chosen:
            names = ", ".join(group.name for group in self.groups) or "none at all"
            raise NoEffect(
                f"no unit group matches where={pattern!r}, so nothing would be protected or measured. "
                f"The model's groups are: {names}. Try `print(pliant.find_units(model, example_inputs))`."
            )
        return chosen

    def prefixed(self, prefix: str) -> UnitGraph:
        """The same groups as part of a larger model, under the name that the module has there.

        Args:
            prefix: Name of the submodule that the units were found in, for example ``"encoder"``.

        Example:
            >>> import torch, pliant
            >>> encoder = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
            >>> units = pliant.find_units(encoder, torch.randn(3, 4)).prefixed("encoder")
            >>> [(group.name, str(group.tap)) for group in units]
            [('encoder.0', 'input of encoder.2')]
        """
        start = prefix.rstrip(".") + "."

        def module(name: str) -> str:
            return (start + name).rstrip(".")

        groups = tuple(
            replace(
                group,
                name=start + group.name,
                slices=tuple(replace(piece, name=start + piece.name) for piece in group.slices),
                tap=replace(group.tap, module=module(group.tap.module)) if group.tap else None,
            )
            for group in self.groups
        )
        replays = {
            start + name: replace(
                replay, module=module(replay.module), names=tuple(start + tensor for tensor in replay.names)
            )
            for name, replay in self.replays.items()
        }
        excluded = {(start + name, dim): reason for (name, dim), reason in self.excluded.items()}
        depths = {start + name: depth for name, depth in self.depths.items()}
        return UnitGraph(groups, excluded, dict(self.unknown_ops), replays, depths)

    def renamed(self, names: Mapping[str, str]) -> UnitGraph:
        """The same groups over tensors of other names.

        Args:
            names: Old name to new name; tensors that are not in it keep theirs.
        """

        def new(name: str) -> str:
            return names.get(name, name)

        groups = tuple(
            replace(group, slices=tuple(replace(piece, name=new(piece.name)) for piece in group.slices))
            for group in self.groups
        )
        replays = {name: replace(replay, names=tuple(map(new, replay.names))) for name, replay in self.replays.items()}
        excluded = {(new(name), dim): reason for (name, dim), reason in self.excluded.items()}
        depths = {new(name): depth for name, depth in self.depths.items()}
        return UnitGraph(groups, excluded, dict(self.unknown_ops), replays, depths)

    def __or__(self, other: UnitGraph) -> UnitGraph:
        """The groups of both graphs, of one model.

        Raises:
            IllegalConfiguration: If both have a group of one name, or groups of both own the same positions.
        """
        owned = {key: group.name for group in self.groups for key in _places(group)}
        for group in other.groups:
            for key in _places(group):
                if key in owned:
                    raise IllegalConfiguration(
                        f"{key[0]!r} (dimension {key[1]}) belongs to {owned[key]!r} and to {group.name!r}: groups of "
                        "two graphs cannot share positions. Find or declare them together."
                    )
        both = [group.name for group in other.groups if group.name in self]
        if both:
            raise IllegalConfiguration(f"both graphs have a group {both[0]!r}.")
        named = [{(p.name, p.dim) for group in graph.groups for p in group.slices} for graph in (self, other)]
        excluded = {key: reason for key, reason in other.excluded.items() if key not in named[0]}
        excluded |= {key: reason for key, reason in self.excluded.items() if key not in named[1]}
        unknown = dict(self.unknown_ops)
        for name, count in other.unknown_ops.items():
            unknown[name] = unknown.get(name, 0) + count
        replays, depths = {**self.replays, **other.replays}, {**self.depths, **other.depths}
        return UnitGraph((*self.groups, *other.groups), excluded, unknown, replays, depths)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able summary: the groups with all positions, and the exclusions."""
        return {
            "groups": [group.to_dict() for group in self.groups],
            "excluded": [[name, dim, reason] for (name, dim), reason in self.excluded.items()],
            "unknown_ops": dict(self.unknown_ops),
        }

    def __str__(self) -> str:
        rows = [("group", "units", "site", "members", "tap", "reset preserves function")]
        for group in self.groups:
            members = ", ".join(piece.label for piece in group.slices[:3])
            more = len(group.slices) - 3
            rows.append(
                (
                    group.name,
                    str(group.size),
                    group.site,
                    members + (f" and {more} more" if more > 0 else ""),
                    str(group.tap) if group.tap else "none",
                    "yes" if group.reset_preserves_function else "no",
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        reasons: dict[str, list[str]] = {}
        for (name, dim), reason in self.excluded.items():
            reasons.setdefault(reason, []).append(f"{name}[{dim}]")
        if reasons:
            lines.append("")
            lines.append("not units:")
            for reason, names in reasons.items():
                shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
                lines.append(f"  {shown}: {reason}")
        return "\n".join(lines)


def _places(group: UnitGroup) -> set[tuple[Any, ...]]:
    return {(piece.name, piece.dim, piece.at, place) for piece in group.slices for row in piece.table for place in row}
