"""The kinds of state that a method can declare; the handle creates it, saves it, and puts it on the right device.

Under DistributedDataParallel every rank holds the same state, because everything that goes into it is the same on all
ranks: statistics are reduced before a method sees them, gradients are averaged, draws come from the same seed. State
itself is never reduced; a method that puts rank-local values into it would let the replicas drift apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pliant.errors import IllegalConfiguration
from pliant.sharded import whole
from pliant.units.group import UnitGroup
from pliant.units.patterns import matches

__all__ = [
    "Host",
    "Memory",
    "PerParameter",
    "PerUnit",
    "Scalar",
    "Snapshot",
    "StateKind",
    "Tensors",
    "cloned",
    "copy_of",
    "matches",
    "tensor_norms",
]

_DTYPES = {"bool": torch.bool, "int64": torch.int64, "float32": torch.float32, "float64": torch.float64}
Plain = bool | int | float | str


@dataclass(frozen=True)
class PerUnit:
    """A tensor with one entry per unit: ``[U, *shape]``, or ``[S, U, *shape]`` for a stack of members.

    Read with ``ctx.state(group)[name]``, changed in place.

    Attributes:
        fill: Initial value.
        dtype: ``"float32"`` (float64 for a float64 model), ``"float64"``, ``"int64"`` for counters (which must not
            saturate), or ``"bool"``.
        per_group: One entry per group (and member) instead of one per unit: ``[1, *shape]``.
        shape: Trailing dimensions, for example ``(bins,)`` for a histogram per unit.
    """

    fill: float = 0.0
    dtype: str = "float32"
    per_group: bool = False
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class PerParameter:
    """A tensor of the shape of each parameter that the method's ``parameter_pattern()`` matches.

    Read with ``ctx.parameter_state(name)``, a mapping from parameter names; changed in place.

    Attributes:
        fill: Initial value, or ``"initial"``: a copy of the parameter when the handle is made; or ``"norm"``: its
            Frobenius norm then, one entry per parameter (and member), in a shape that broadcasts to it.
        dtype: As for :class:`PerUnit`; ``None``: the parameter's own (of a norm or a vector along it, at least
            float32).
        along: ``None``, or a vector instead of the whole shape, for parameters of two and more dimensions (others have
            none): one entry per row (``"rows"``, the first dimension) or per column of the matrix that is left when
            all other dimensions are flattened (``"columns"``): ``[O]`` and ``[I]``, or ``[S, O]`` and ``[S, I]``.
            Plain also where the parameter is sharded, and the same in every process.
    """

    fill: float | Literal["initial", "norm"] = 0.0
    dtype: str | None = None
    along: Literal["rows", "columns"] | None = None


@dataclass(frozen=True)
class Snapshot:
    """A copy of the whole network, parameters and buffers, as it is when the handle is made (a slow network).

    Read with ``ctx.snapshot(name)``, a mapping from tensor names; changed in place, and usable as the ``params`` of
    ``ctx.call``.
    """


@dataclass(frozen=True)
class Host:
    """A number, a flag or a string on the host, one per optimizer.

    Read and assigned as ``ctx.host[name]``.

    Attributes:
        fill: Initial value.
    """

    fill: Plain = 0


@dataclass(frozen=True)
class Tensors:
    """Tensors by name whose number and shapes are known only once a run has begun (a replay buffer); none at first.

    Read, filled and changed with ``ctx.tensors(name)``, a mapping. Loading puts in what was saved; only
    ``torch.distributed.checkpoint`` loads into what is there, so that the method must have made them before.
    """


@dataclass(frozen=True)
class Scalar:
    """A number on the device, one per optimizer: ``[]``, or ``[S]`` for a stack of members.

    Read with ``ctx.scalar(name)``, changed in place: for running means that the host must not wait for. It is float32,
    and float64 for a float64 model.

    Attributes:
        fill: Initial value.
    """

    fill: float = 0.0


StateKind = PerUnit | PerParameter | Snapshot | Host | Scalar | Tensors


class Memory:
    """The state of one method, made from what it declares.

    Attributes:
        units: Group name to the tensors per unit.
        parameters: State name to parameter name to tensor.
        snapshots: State name to tensor name to tensor.
        tensors: State name to the method's own names to tensor.
        scalars: State name to the optimizer's number (as a string) to tensor.
        host: One mapping per optimizer.
    """

    def __init__(
        self,
        declared: Mapping[str, StateKind],
        *,
        groups: Sequence[UnitGroup],
        trained: Mapping[str, Tensor],
        pattern: str,
        tensors: Mapping[str, Tensor],
        num_members: int | None,
        num_optimizers: int,
    ) -> None:
        self.units: dict[str, dict[str, Tensor]] = {group.name: {} for group in groups}
        self.parameters: dict[str, dict[str, Tensor]] = {}
        self.snapshots: dict[str, dict[str, Tensor]] = {}
        self.tensors: dict[str, dict[str, Tensor]] = {}
        self.scalars: dict[str, dict[str, Tensor]] = {}
        self.host: list[dict[str, Plain]] = [{} for _ in range(num_optimizers)]
        self._declared, self._pattern, self._cleared = dict(declared), pattern, False
        self._num_members = num_members
        self._flat: dict[str, Tensor] = {}
        for key, kind in declared.items():
            if isinstance(kind, PerUnit):
                for group in groups:
                    self.units[group.name][key] = _per_unit(kind, key, group, tensors, num_members)
                self._flatten(key)
            elif isinstance(kind, PerParameter):
                self.parameters[key] = {}
            elif isinstance(kind, Snapshot):
                self.snapshots[key] = {name: tensor.detach().clone() for name, tensor in tensors.items()}
            elif isinstance(kind, Tensors):
                self.tensors[key] = {}
            elif isinstance(kind, Scalar):
                like = next(iter(tensors.values()))
                dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
                shape = () if num_members is None else (num_members,)
                filled = torch.full(shape, kind.fill, dtype=dtype, device=like.device)
                self.scalars[key] = {str(index): filled.clone() for index in range(num_optimizers)}
            else:
                for host in self.host:
                    host[key] = kind.fill
        self.extend(trained)

    def _flatten(self, key: str) -> None:
        """Let the groups' tensors be views of one, where they are vectors of one type on one device."""
        each = [state[key] for state in self.units.values()]
        if any(item.ndim != 1 or (item.dtype, item.device) != (each[0].dtype, each[0].device) for item in each):
            return
        self._flat[key] = torch.cat(each) if each else torch.empty(0)
        parts = torch.split(self._flat[key], [len(item) for item in each])
        for state, part in zip(self.units.values(), parts, strict=True):
            state[key] = part

    def together(self, key: str, groups: Sequence[UnitGroup]) -> list[Tensor]:
        """One state of some groups as few tensors: a single one, if the groups are all that there are."""
        if len(groups) == len(self.units) and key in self._flat:
            return [self._flat[key]]
        return [self.units[group.name][key] for group in groups]

    def state_dict(self) -> dict[str, Any]:
        """Copies of everything but the state per unit (the handle saves that by itself).

        Raises:
            IllegalConfiguration: If a method has put something else than plain values into its host state, or if the
                handle is detached and copies of the network or kept examples are gone.
        """
        if self._cleared:
            raise IllegalConfiguration("the handle is detached and its copies of the network are gone: save it before.")
        for host in self.host:
            for key, value in host.items():
                if key not in self._declared or not isinstance(value, (bool, int, float, str)):
                    raise IllegalConfiguration(
                        f"host state {key!r} is {type(value).__name__}; declare it with Host(...) and keep plain "
                        "numbers, flags or strings in it."
                    )
        return {
            "parameters": cloned(self.parameters),
            "snapshots": cloned(self.snapshots),
            "tensors": cloned(self.tensors),
            "scalars": cloned(self.scalars),
            "host": [dict(host) for host in self.host],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`, with ``"units"`` beside it, in place."""
        for mine, saved in (
            (self.units, state["units"]),
            (self.parameters, state["parameters"]),
            (self.snapshots, state["snapshots"]),
            (self.scalars, state.get("scalars", {})),
        ):
            for outer, tensors in mine.items():
                for inner, tensor in tensors.items():
                    tensor.copy_(saved[outer][inner])
        for key, free in self.tensors.items():
            theirs = state["tensors"][key]
            for name in set(free) - set(theirs):
                del free[name]
            for name, tensor in theirs.items():  # a copy: the method may change it in place
                free[name] = tensor.clone().to(free[name].device) if name in free else tensor.clone()
        for host, values in zip(self.host, state["host"], strict=True):
            host.update(values)

    def clear(self) -> None:
        """Free what is as large as the network; what is kept per unit stays readable."""
        self._cleared = self._cleared or bool(self.parameters or self.snapshots or self.tensors)
        self.parameters, self.snapshots, self.tensors = {}, {}, {}

    def extend(self, trained: Mapping[str, Tensor]) -> None:
        """State for parameters that an optimizer has taken on later; what is there is kept."""
        for key, kind in self._declared.items():
            if isinstance(kind, PerParameter):
                for name, parameter in trained.items():
                    if name in self.parameters[key] or not matches(name, self._pattern):
                        continue
                    if kind.along is None:
                        self.parameters[key][name] = _per_parameter(kind, key, parameter, self._num_members)
                    elif parameter.ndim - (self._num_members is not None) >= 2:
                        self.parameters[key][name] = _along(kind, key, parameter, self._num_members)


def _per_unit(
    kind: PerUnit, key: str, group: UnitGroup, tensors: Mapping[str, Tensor], num_members: int | None
) -> Tensor:
    tensor = tensors[group.slices[0].name]
    lead = () if num_members is None else (num_members,)
    dtype = _dtype(kind.dtype, key)
    if dtype == torch.float32 and tensor.dtype == torch.float64:
        dtype = torch.float64
    shape = (*lead, 1 if kind.per_group else group.size, *kind.shape)
    return torch.full(shape, kind.fill, dtype=dtype, device=tensor.device)


def tensor_norms(tensors: Sequence[Tensor], num_members: int | None) -> Tensor:
    """The Frobenius norm of each tensor, ``[n]``, or of each member of each, ``[n * S]``; at least float32.

    Every member is reduced by itself: its norm has the bits that its single run would find.
    """
    parts = list(tensors) if num_members is None else [member for tensor in tensors for member in tensor.unbind()]
    if any(part.dtype in (torch.bfloat16, torch.float16) for part in parts):
        return torch.stack([torch.linalg.vector_norm(part, dtype=_norm_dtype(part)) for part in parts])
    return torch.stack(torch._foreach_norm(parts))


def _norm_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _per_parameter(kind: PerParameter, key: str, parameter: Tensor, num_members: int | None) -> Tensor:
    if kind.fill == "norm":
        dtype = _norm_dtype(parameter) if kind.dtype is None else _dtype(kind.dtype, key)
        shape = (num_members or 1, *[1] * (parameter.ndim - 1)) if parameter.ndim else ()
        return tensor_norms([whole(parameter)], num_members).to(dtype).reshape(shape)
    dtype = parameter.dtype if kind.dtype is None else _dtype(kind.dtype, key)
    copy = parameter.detach().clone().to(dtype)
    return copy if kind.fill == "initial" else copy.fill_(kind.fill)


def _along(kind: PerParameter, key: str, parameter: Tensor, num_members: int | None) -> Tensor:
    if isinstance(kind.fill, str):
        raise IllegalConfiguration(f"state {key!r}: a vector along a parameter starts at a number, not at its values.")
    lead = () if num_members is None else (num_members,)
    rows, *columns = parameter.shape[len(lead) :]
    dtype = torch.promote_types(parameter.dtype, torch.float32) if kind.dtype is None else _dtype(kind.dtype, key)
    size = rows if kind.along == "rows" else math.prod(columns)
    return torch.full((*lead, size), kind.fill, dtype=dtype, device=parameter.device)


def _dtype(name: str, key: str) -> torch.dtype:
    if name not in _DTYPES:
        raise IllegalConfiguration(f"state {key!r}: dtype={name!r}; known are {', '.join(_DTYPES)}.")
    return _DTYPES[name]


def cloned(tree: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """A copy, tensors included."""
    return {outer: {inner: tensor.clone() for inner, tensor in tensors.items()} for outer, tensors in tree.items()}


def copy_of(name: str, memories: Sequence[Memory]) -> dict[str, Tensor]:
    """A copy of the only snapshot of a name that the methods keep.

    Raises:
        IllegalConfiguration: If there is none, or more than one.
    """
    found = [memory.snapshots[name] for memory in memories if name in memory.snapshots]
    if len(found) != 1:
        names = sorted({repr(key) for memory in memories for key in memory.snapshots})
        raise IllegalConfiguration(
            f"{len(found) or 'none'} of the methods {'keep' if len(found) > 1 else 'keeps'} a network called "
            f"{name!r}; there {'are' if names else 'is'}: {', '.join(names) or 'none at all'}."
        )
    return {key: tensor.detach().clone() for key, tensor in found[0].items()}
