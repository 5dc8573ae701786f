"""How units are told by hand: which positions of which tensor belong to each of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from pliant.errors import IllegalConfiguration
from pliant.units.export import canonical_names
from pliant.units.group import Role, TensorSlice

__all__ = ["Layout", "Names", "layouts_of"]

_INDEXED = re.compile(r"(?P<name>.+)\[(?P<dim>-?\d+)\]")
_KEYS = ("tensor", "dim", "blocks", "each", "start", "positions")


@dataclass(frozen=True)
class Layout:
    """Units along a dimension: ``blocks`` times all units in order, each unit with ``each`` consecutive positions.

    Attributes:
        blocks: 3 for a fused query, key and value; 4 for the gates of an LSTM; else 1.
        each: Pixels per channel after a flatten, dimensions per head; else 1.
        start: Where the first block begins.
    """

    blocks: int = 1
    each: int = 1
    start: int = 0

    def table(self, size: int) -> tuple[tuple[int, ...], ...]:
        """Positions of each of ``size`` units, ``[U][M]``.

        Example:
            >>> Layout(blocks=2, each=1).table(3)
            ((0, 3), (1, 4), (2, 5))
            >>> Layout(blocks=1, each=2).table(3)
            ((0, 1), (2, 3), (4, 5))
        """
        return tuple(
            tuple(
                self.start + (block * size + unit) * self.each + inner
                for block in range(self.blocks)
                for inner in range(self.each)
            )
            for unit in range(size)
        )

    def __str__(self) -> str:
        words = [
            f"'{key}': {value}"
            for key, value, plain in (("blocks", self.blocks, 1), ("each", self.each, 1), ("start", self.start, 0))
            if value != plain
        ]
        return ", ".join(words)


def layouts_of(size: int, length: int) -> Iterator[Layout]:
    """The layouts in which ``size`` units fill a dimension of ``length`` positions, likeliest first."""
    if size < 1 or length % size:
        return
    ratio = length // size
    yield Layout(each=ratio)
    for blocks in range(ratio, 1, -1):
        if ratio % blocks == 0:
            yield Layout(blocks=blocks, each=ratio // blocks)


class Names:
    """Reads references to tensors and modules of one model.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.canonical = canonical_names(model)
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        floating = {name for name, tensor in tensors.items() if tensor.dtype.is_floating_point}
        self.tensors: dict[str, Tensor] = {
            name: tensors[name] for name in dict.fromkeys(self.canonical.values()) if name in floating
        }
        self.modules = dict(model.named_modules(remove_duplicate=False))

    def module(self, name: str, what: str) -> nn.Module:
        """A module by name.

        Raises:
            IllegalConfiguration: If there is none.
        """
        if name not in self.modules:
            raise IllegalConfiguration(f"{what}: there is no module {name!r}. {self._near(name, self.modules)}")
        found: nn.Module = self.modules[name]
        return found

    def pieces(self, reference: Any, role: Role, size: int | None, what: str) -> list[TensorSlice]:
        """The slices that a reference means.

        Args:
            reference: A module (all its tensors that fit the role), ``"tensor"``, ``"tensor[dim]"``, or a mapping
                with ``tensor`` and any of ``dim``, ``blocks``, ``each``, ``start``, ``positions``.
            role: Their role, which gives the default dimension.
            size: Number of units; ``None`` to take it from the first tensor.
            what: For messages.

        Raises:
            IllegalConfiguration: If the name is unknown, or the units do not fit the dimension.
        """
        if isinstance(reference, Mapping):
            unknown = set(reference) - set(_KEYS)
            if unknown or "tensor" not in reference:
                raise IllegalConfiguration(
                    f"{what}: {dict(reference)} is no reference to a tensor; it has 'tensor' and any of "
                    f"{', '.join(map(repr, _KEYS[1:]))}."
                )
            return [self._piece(str(reference["tensor"]), reference, role, size, what)]
        if not isinstance(reference, str):
            raise IllegalConfiguration(f"{what}: {reference!r} is no name of a module or tensor.")
        if reference in self.canonical or _INDEXED.fullmatch(reference):
            return [self._piece(reference, {}, role, size, what)]
        found = self._of_module(reference, role, what)
        return [self._piece(name, {}, role, size, what) for name in found]

    def _of_module(self, name: str, role: Role, what: str) -> list[str]:
        module = self.module(name, what)
        own = [
            f"{name}.{leaf}" if name else leaf
            for leaf, tensor in (*module._parameters.items(), *module._buffers.items())
            if tensor is not None and tensor.dtype.is_floating_point and tensor.ndim > 0
        ]
        if role == "outgoing":
            own = [item for item in own if self._tensor(item).ndim > 1]
        elif role == "carried":
            own = [item for item in own if self._tensor(item).ndim == 1]
        if not own:
            raise IllegalConfiguration(
                f"{what}: the module {name!r} ({type(module).__name__}) has no tensors of its own that could be "
                f"{role}; name the module inside it, or the tensors."
            )
        return own

    def _tensor(self, name: str) -> Tensor:
        return self.tensors[self.canonical[name]]

    def _piece(self, name: str, given: Mapping[str, Any], role: Role, size: int | None, what: str) -> TensorSlice:
        indexed = _INDEXED.fullmatch(name)
        dim = given.get("dim")
        if indexed and name not in self.canonical:
            name, dim = indexed["name"], int(indexed["dim"])
        if name in self.modules and name not in self.canonical:
            raise IllegalConfiguration(f"{what}: {name!r} is a module; a dimension belongs to one of its tensors.")
        if name not in self.canonical or self.canonical[name] not in self.tensors:
            raise IllegalConfiguration(
                f"{what}: there is no floating-point tensor {name!r}. {self._near(name, self.canonical)}"
            )
        tensor = self._tensor(name)
        if dim is None:
            dim = self._default_dim(name, tensor, role, what)
        if not -tensor.ndim <= dim < tensor.ndim:
            raise IllegalConfiguration(f"{what}: {name!r} of shape {tuple(tensor.shape)} has no dimension {dim}.")
        back = dim if dim < 0 else dim - tensor.ndim
        length = tensor.shape[back]
        if "positions" in given:
            table = torch.as_tensor(given["positions"])
            table = table.unsqueeze(-1) if table.ndim == 1 else table
            wrong = table.ndim != 2 or (size is not None and len(table) != size)
            if (
                wrong
                or int(table.min()) < 0
                or int(table.max()) >= length
                or len(set(table.flatten().tolist())) != table.numel()
            ):
                raise IllegalConfiguration(
                    f"{what}: the positions of {name!r} are a table [{size or 'units'}, positions of each unit] of "
                    f"different numbers below {length}; given: shape {tuple(table.shape)}."
                )
            return TensorSlice(self.canonical[name], back, role, tuple(tuple(row) for row in table.tolist()))
        blocks, start, each = int(given.get("blocks", 1)), int(given.get("start", 0)), given.get("each")
        if size is None:
            size = (length - start) // (blocks * int(each or 1))
        if each is None:
            each = 1 if "start" in given else length // (size * blocks)
        layout = Layout(blocks, int(each), start)
        fits = start + size * blocks * layout.each
        if size < 1 or layout.each < 1 or fits > length or ("start" not in given and fits != length):
            raise IllegalConfiguration(
                f"{what}: dimension {back} of {name!r} has {length} positions, which {size} units "
                f"{f'in {blocks} blocks ' if blocks > 1 else ''}do not fill. Name another dimension "
                f"('{name}[dim]'), or say where they are: {{'tensor': '{name}', 'dim': {back}, 'start': 0}} or "
                "'positions' [units, positions of each]."
            )
        return TensorSlice(self.canonical[name], back, role, layout.table(size))

    def _default_dim(self, name: str, tensor: Tensor, role: Role, what: str) -> int:
        path, _, leaf = name.rpartition(".")
        module = self.modules.get(path)
        if tensor.ndim == 1:
            return -1
        if role == "carried" or tensor.ndim == 0:
            raise IllegalConfiguration(
                f"{what}: {name!r} has shape {tuple(tensor.shape)}; say along which dimension the units lie, as in "
                f"'{name}[0]'."
            )
        inputs_first = leaf == "weight" and (
            isinstance(module, (nn.modules.conv._ConvTransposeNd, nn.Embedding, nn.EmbeddingBag))
            or type(module).__name__ == "Conv1D"  # Hugging Face stores inputs x outputs
        )
        return int(inputs_first) if role == "incoming" else int(not inputs_first)

    def _near(self, name: str, known: Mapping[str, Any]) -> str:
        near = get_close_matches(name, list(known), n=3, cutoff=0.5) or [item for item in known if item][:5]
        return f"There are: {', '.join(near)}."
