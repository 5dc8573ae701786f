"""Tensors that ``fully_shard`` (FSDP2) splits over processes: which part of one is here.

A plain in-place write to rows of a ``DTensor`` is silently lost, so that all reads and writes of sharded tensors work
on the local part, with the offset that it has in the whole tensor.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pliant.errors import IllegalConfiguration, NotYetSupported

__all__ = [
    "Entries",
    "Part",
    "Whole",
    "here",
    "is_sharded",
    "part_like",
    "part_of",
    "process_group_of",
    "refuse_join",
    "reshard",
    "shard_like",
    "sharded_modules",
    "whole",
]


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a ``DTensor``; importing their module is left to those who have one."""
    distributed = sys.modules.get("torch.distributed.tensor")
    return distributed is not None and isinstance(tensor, distributed.DTensor)


@dataclass(frozen=True)
class Part:
    """The part of a sharded tensor that this process holds.

    Attributes:
        local: Its values; writes to them change the sharded tensor.
        dim: The dimension that is split, counted from the front; ``None`` if every process holds all of it.
        start: Where the part begins along ``dim``.
        size: Its length along ``dim``; 0 where there are fewer entries than processes.
        group: The processes that hold the other parts.
    """

    local: Tensor
    dim: int | None
    start: int
    size: int
    group: Any

    def cut(self, whole: Tensor, dim: int) -> Tensor:
        """This process's part of a plain tensor whose dimension ``dim`` is the one that is split."""
        return whole.narrow(dim, self.start, self.size)

    def total(self, partial: Tensor) -> Tensor:
        """The sum of a plain tensor over all processes, in place; the same bits on all of them."""
        torch.distributed.all_reduce(partial, group=self.group)
        return partial


def part_of(tensor: Tensor) -> Part | None:
    """The local part of a sharded tensor, ``None`` for a plain one. Call it under ``torch.no_grad``.

    Raises:
        NotYetSupported: If it is laid out in another way than FSDP2's; :func:`process_group_of` says so earlier, with
            the parameter's name.
    """
    if not is_sharded(tensor):
        return None
    sharded: Any = tensor
    wrong = _why_not(sharded)
    if wrong:
        raise NotYetSupported(f"a tensor of shape {tuple(tensor.shape)} {wrong}")
    local: Tensor = sharded.to_local()
    for axis, placement in enumerate(sharded.placements):
        if placement.is_shard():
            dim, length = placement.dim % tensor.ndim, tensor.shape[placement.dim]
            chunk = -(-length // sharded.device_mesh.size(axis))  # as torch.chunk: the last ones may be short or empty
            start = min(sharded.device_mesh.get_local_rank(axis) * chunk, length)
            size = min(chunk, length - start)
            if local.shape[dim] != size:
                raise NotYetSupported(
                    f"a tensor of shape {tuple(tensor.shape)} has {local.shape[dim]} entries of dimension {dim} in "
                    f"this process where {size} were expected: parts of unusual sizes are not supported."
                )
            return Part(local, dim, start, size, sharded.device_mesh.get_group(axis))
    return Part(local, None, 0, 0, None)


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """A plain tensor, equal on all processes, laid out as another one (itself if that one is plain)."""
    part = part_of(like)
    if part is None:
        return value
    sharded: Any = like
    result: Tensor = torch.distributed.tensor.DTensor.from_local(
        value if part.dim is None else part.cut(value, part.dim).contiguous(),
        sharded.device_mesh,
        sharded.placements,
        run_check=False,
        shape=like.shape,
        stride=torch.empty(like.shape, device="meta").stride(),
    )
    return result


def whole(tensor: Tensor) -> Tensor:
    """The values of a tensor, detached and plain; of a sharded one all processes must ask at once."""
    if not is_sharded(tensor):
        return tensor.detach()
    gathered: Tensor = tensor.detach().full_tensor()  # type: ignore[attr-defined]
    return gathered


def here(tensor: Tensor) -> Tensor:
    """The values that this process holds."""
    return part_like(tensor, part_of(tensor))


def part_like(tensor: Tensor, part: Part | None) -> Tensor:
    """This process's part of a tensor, plain or sharded, that has the shape of one of which it holds ``part``."""
    mine = part_of(tensor)
    if mine is not None:
        return mine.local
    return tensor if part is None or part.dim is None else part.cut(tensor, part.dim)


@dataclass(frozen=True)
class Entries:
    """Entries that are written: those at ``index`` of ``view``, ``[n, *rest]``.

    Attributes:
        view: The tensor in this process, the units' dimension in front (behind the members).
        index: Positions ``[n]``, behind those of the members.
        active: Which of them are really written, or ``None`` if all.
        part: The part of a sharded tensor that ``view`` is.
        rest_dim: Where the sharded dimension is in values ``[n, *rest]``, if it is not that of the units.
        inside: Which of the selection's positions are in this process, where only those are in ``index``.
        home: Where ``view`` is copied to in the end, if it has a row more, for what is not in this process.
    """

    view: Tensor
    index: tuple[Tensor, ...]
    active: Tensor | None
    part: Part | None = None
    rest_dim: int | None = None
    inside: Tensor | None = None
    home: Tensor | None = None

    @classmethod
    def in_part(cls, part: Part, dim: int, where: Tensor, active: Tensor | None) -> Entries:
        """In the local part of a sharded tensor.

        Args:
            part: The local part.
            dim: The dimension of the units, counted from the front.
            where: Positions along it in the whole tensor ``[n]``.
            active: Which of them are really written, or ``None`` if all.
        """
        view = part.local.movedim(dim, 0)
        if part.dim != dim:  # every unit is here, with a part of its entries
            across = None if part.dim is None else part.dim + 1 if part.dim < dim else part.dim
            return cls(view, (where,), active, part, across)
        local = where - part.start
        inside = (local >= 0) & (local < part.size)
        if active is None:
            return cls(view, (local[inside],), None, part, None, inside)
        # nothing is read back from an accelerator: what is not here goes to a row that is thrown away
        row = torch.where(inside & active, local, part.size)
        return cls(_with_a_row_more(view), (row,), None, part, None, None, view)

    def cut(self, values: Tensor | None, *, values_have_rest: bool = False) -> Tensor | None:
        """What belongs in this process of something given for every position of the selection."""
        if values is None or not values.ndim:
            return values
        if self.inside is not None:
            return values[self.inside]
        if values_have_rest and self.rest_dim is not None and self.part is not None:
            return self.part.cut(values, self.rest_dim)
        return values

    def read(self, other: Tensor) -> Tensor:
        """The same entries of another tensor, laid out as ``view`` is without its extra row."""
        return (other if self.home is None else _with_a_row_more(other))[self.index]

    def write(self, new: Tensor | None, shares: Tensor | None, add: bool) -> None:
        """Write new values (``None``: zero), or go a share of the way towards them, or add a share of them."""
        view, index = self.view, self.index
        shape = (-1, *([1] * (view.ndim - len(index))))
        if shares is not None:
            old, share = view[index], shares.view(shape).to(view.dtype)
            fresh = torch.zeros((), dtype=view.dtype, device=view.device) if new is None else new
            new = old + share * fresh if add else torch.lerp(old, fresh.expand_as(old), share)
        if self.active is not None:
            value = torch.zeros((), dtype=view.dtype, device=view.device) if new is None else new
            view[index] = torch.where(self.active.view(shape), value, view[index])
        elif new is None:
            view[index] = 0
        else:
            view[index] = new
        if self.home is not None:
            self.home.copy_(view[:-1])


def _with_a_row_more(view: Tensor) -> Tensor:
    return torch.cat([view, view.new_zeros(1, *view.shape[1:])])


class Whole(Mapping[str, Tensor]):
    """Tensors by name as the forward pass computes with them.

    A sharded one is gathered when it is read, by all processes at once, and cast as its mixed-precision policy says.

    Args:
        tensors: Plain or sharded tensors by name.
        model: The model that they are of.
    """

    def __init__(self, tensors: Mapping[str, Tensor], model: nn.Module) -> None:
        self._tensors = tensors
        self._dtypes: dict[str, torch.dtype] = {}
        for path, module in model.named_modules():  # the outermost first: the nearest one decides
            if _is_fsdp(module):
                state: Any = module
                dtype = state._get_fsdp_state()._mp_policy.param_dtype
                prefix = f"{path}." if path else ""
                self._dtypes |= {name: dtype for name in tensors if name.startswith(prefix)}

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        return whole(tensor).to(self._dtypes.get(name) or tensor.dtype) if is_sharded(tensor) else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def sharded_modules(model: nn.Module) -> tuple[Any, ...]:
    """The modules on which ``fully_shard`` was called."""
    return tuple(module for module in model.modules() if _is_fsdp(module))


def _is_fsdp(module: nn.Module) -> bool:
    return any(cls.__name__ == "FSDPModule" for cls in type(module).__mro__)


def reshard(modules: Sequence[Any]) -> None:
    """Free the unsharded copies of parameters that a forward pass without a backward pass leaves behind.

    The next forward would read them, and not what was written to the parts.
    """
    for module in modules:
        module.reshard()


def process_group_of(model: nn.Module) -> Any:
    """The processes over which a model is sharded, each of which sees its own data; ``None`` for a plain model.

    Raises:
        NotYetSupported: For other uses of ``DTensor`` (tensor parallelism), naming the parameter and its placements.
        IllegalConfiguration: If a sharded parameter is still on the meta device.
    """
    modules = sharded_modules(model)
    reshard(modules)
    mesh: Any = None
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not is_sharded(tensor):
            continue
        sharded: Any = tensor
        wrong = _why_not(sharded)
        if not modules:
            wrong = "belongs to no module on which fully_shard was called: tensor parallelism is not supported yet."
        elif mesh is not None and sharded.device_mesh != mesh:
            wrong = f"lies on another mesh than the parameters before it ({sharded.device_mesh} instead of {mesh})."
        if wrong:
            placements = ", ".join(map(str, sharded.placements))
            raise NotYetSupported(
                f"{name!r} (shape {tuple(tensor.shape)}, placements {placements}) {wrong} Pliant edits parameters that "
                "fully_shard splits along one dimension, over one mesh."
            )
        if tensor.device.type == "meta":
            raise IllegalConfiguration(
                f"{name!r} is on the meta device: call model.to_empty(device=...), initialise it and make the "
                "optimizer before pliant.attach."
            )
        mesh = sharded.device_mesh
    if mesh is None:
        return None
    if mesh.ndim == 1:
        return mesh.get_group()
    if mesh.size() == torch.distributed.get_world_size():  # hybrid sharding: replicas see different data, too
        return torch.distributed.group.WORLD
    raise NotYetSupported(f"the model is sharded over {mesh}, which is not the whole world of processes.")


def refuse_join(wrappers: Sequence[nn.Module]) -> Callable[..., None]:
    """A hook before an optimizer's step, which refuses ``DistributedDataParallel.join()``.

    Under it, processes that ran out of data go on without steps; the others would wait for their statistics for ever.
    """

    def hook(*_: Any) -> None:
        for wrapper in wrappers:
            config: Any = getattr(wrapper, "_join_config", None)
            if config is not None and config.enable and not config.throw_on_early_termination:
                raise IllegalConfiguration(
                    "inside DistributedDataParallel.join(), processes may stop at different steps, but statistics are "
                    "averaged over all of them. Give every process the same number of batches (drop_last=True), or "
                    "use join(throw_on_early_termination=True)."
                )

    return hook


def _why_not(sharded: Any) -> str:
    kinds = [type(placement).__name__ for placement in sharded.placements]
    if kinds.count("Shard") > 1 or not set(kinds) <= {"Shard", "Replicate"}:
        return "is split in a way that fully_shard alone does not."
    return ""
