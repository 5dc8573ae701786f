"""The value types of discovery: tensor slices, unit groups and taps. Names, not objects; JSON-able; frozen."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["Role", "Site", "StateSlice", "Tap", "TensorSlice", "UnitGroup"]

Role = Literal["incoming", "carried", "outgoing", "both"]
Site = Literal["hidden", "heads", "head_dims", "residual", "experts"]


@dataclass(frozen=True)
class TensorSlice:
    """The part of one tensor that belongs to a group of units.

    Attributes:
        name: Fully qualified name of the parameter or buffer.
        dim: Dimension, counted from the end (``-1`` is the last), so that leading ensemble dimensions pass through.
        role: ``"incoming"``: weights and biases that produce the unit; ``"carried"``: per-unit state on the way
            (norm affine, running statistics, per-channel scales); ``"outgoing"``: weights that consume it;
            ``"both"``: the same entries produce the unit and consume it (an autoencoder whose decoder is the
            encoder's matrix transposed). A reset draws them anew: zeroed, the unit would stay dead.
        table: ``table[u]`` are the positions along ``dim`` that unit ``u`` owns, ``[U][M]``.
        at: ``(dim, index)`` where the units own only what lies at one index of another dimension, left of ``dim`` and
            counted from the end: those of one expert, of a tensor in which several are stacked.

    Example:
        >>> import torch, pliant
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(2 * 2 * 2, 3)
        ... )
        >>> part = pliant.find_units(model, torch.randn(5, 1, 4, 4))["0"].slices[-1]
        >>> part.name, part.positions().tolist()  # a flattened channel has four columns
        ('3.weight', [[0, 1, 2, 3], [4, 5, 6, 7]])
    """

    name: str
    dim: int
    role: Role
    table: tuple[tuple[int, ...], ...] = field(repr=False)
    at: tuple[int, int] | None = None

    def positions(self) -> Tensor:
        """Positions along ``dim``: ``LongTensor [U, M]``; unit ``u`` owns row ``u``."""
        return torch.tensor(self.table, dtype=torch.long)

    def within(self, tensor: Tensor) -> Tensor:
        """The part of the tensor (or of another of its shape) in which the slice lies: a view; ``dim`` is the same."""
        return tensor if self.at is None else tensor.select(*self.at)

    def rank(self, tensor: Tensor, *, is_stack: bool = False) -> int:
        """Dimensions of the tensor as one network has it: without members and experts."""
        return tensor.ndim - is_stack - (self.at is not None)

    @property
    def label(self) -> str:
        """The tensor, the index in it (if any), and the dimension: ``"fc.weight[-2]"``, ``"experts.w[0][-1]"``."""
        return f"{self.name}[{self.dim}]" if self.at is None else f"{self.name}[{self.at[1]}][{self.dim}]"

    @property
    def width(self) -> int:
        """M, the number of positions that each unit owns."""
        return len(self.table[0])


@dataclass(frozen=True)
class StateSlice:
    """Where units appear in a recurrent state that the caller passes in and gets back.

    A symmetry of such a network permutes the state along with the weights.

    Attributes:
        kind: ``"input"`` or ``"output"``.
        slot: Which tensor of the flattened call, or of the flattened result.
        row: Index along the first dimension (layers and directions), or ``None`` where there is no such dimension.
        table: Positions along the last dimension, ``[U][M]``.
    """

    kind: Literal["input", "output"]
    slot: int
    row: int | None
    table: tuple[tuple[int, ...], ...] = field(repr=False)


@dataclass(frozen=True)
class Tap:
    """Where a group's activations can be read, after the nonlinearity and before dropout.

    Attributes:
        kind: ``"input"``: forward pre-hook on ``module``; ``"output"``: its forward hook.
        module: Fully qualified module name (``""`` is the root).
        slot: Which tensor among the hook's flattened arguments or results.
        dim: Dimension of the units, counted from the end.
        table: Positions along ``dim``, ``[U][M]``.
        replay: Whether the operations from the hook to the site have to be recomputed, on sampled steps only,
            because no hook sees the activations themselves.

    Example:
        >>> import torch, pliant
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> tap = pliant.find_units(model, torch.randn(3, 4))["0"].tap
        >>> tap.kind, tap.module  # the units are read where the second linear layer gets them
        ('input', '2')
    """

    kind: Literal["input", "output"]
    module: str
    slot: int
    dim: int
    table: tuple[tuple[int, ...], ...] = field(repr=False)
    replay: bool = False

    def __str__(self) -> str:
        where = f"{self.kind} of {self.module or 'the model'}"
        return f"replayed from {where}" if self.replay else where


@dataclass(frozen=True)
class UnitGroup:
    """A set of interchangeable hidden units: permuting them leaves the network's function unchanged.

    Attributes:
        name: Name of the module (or parameter) that produces the units; ``":heads"``, ``":head_dims"``,
            ``":residual"`` and ``":experts"`` mark sites other than hidden units.
        size: Number of units, U.
        slices: Every tensor slice that belongs to the units.
        site: ``"hidden"``, ``"heads"``, ``"head_dims"`` (dimensions inside heads), ``"residual"``, or ``"experts"``
            (whole networks whose weights are stacked in one tensor). The last three are found and shown, but edited
            only when a method names them.
        tap: Where the activations can be read; ``None`` if nowhere (the group can still be edited).
        reset_preserves_function: Whether a unit whose outgoing weights are zero can be redrawn without changing the
            network's output. False under a norm across the units, and where no outgoing weights exist.
        state: Where the units appear in a recurrent state that is passed in and out.

    Example:
        >>> import torch, pliant
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> group = pliant.find_units(model, torch.randn(3, 4))["0"]
        >>> group.size, group.site, [(part.name, part.dim, part.role) for part in group.slices]
        (8, 'hidden', [('0.weight', -2, 'incoming'), ('0.bias', -1, 'incoming'), ('2.weight', -1, 'outgoing')])
    """

    name: str
    size: int
    slices: tuple[TensorSlice, ...]
    site: Site
    tap: Tap | None
    reset_preserves_function: bool
    state: tuple[StateSlice, ...] = ()

    def role(self, role: Role) -> tuple[TensorSlice, ...]:
        """The slices with the given role; those with both are incoming and outgoing."""
        either = ("both",) if role in ("incoming", "outgoing") else ()
        return tuple(piece for piece in self.slices if piece.role in (role, *either))

    @property
    def tensors(self) -> tuple[str, ...]:
        """The distinct tensor names of the group, in order."""
        return tuple(dict.fromkeys(piece.name for piece in self.slices))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form; :meth:`from_dict` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> UnitGroup:
        """The group that :meth:`to_dict` described."""

        def rows(table: Any) -> tuple[tuple[int, ...], ...]:
            return tuple(tuple(int(i) for i in row) for row in table)

        slices = tuple(
            TensorSlice(
                **{**piece, "table": rows(piece["table"]), "at": tuple(piece["at"]) if piece.get("at") else None}
            )
            for piece in data["slices"]
        )
        state = tuple(StateSlice(**{**item, "table": rows(item["table"])}) for item in data.get("state", ()))
        tap = data["tap"]
        data = {**data, "state": state}
        return cls(**{**data, "slices": slices, "tap": Tap(**{**tap, "table": rows(tap["table"])}) if tap else None})
