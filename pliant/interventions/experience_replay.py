"""Experience replay (against forgetting): each batch is extended by examples kept from the past."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pliant.errors import IllegalConfiguration
from pliant.interventions.base import Context, Host, Intervention, Tensors, require
from pliant.interventions.state import StateKind
from pliant.search import Domain, Range
from pliant.write import stream_of

__all__ = ["ExperienceReplay"]

_EXAMPLES = "examples"
_OWN_STREAM = 0x7265706C6179
"""Draws of this method come from generators of its own: it must not shift what other methods draw."""


@final
@dataclass(frozen=True)
class ExperienceReplay(Intervention):
    r"""Keep a uniform sample of all examples so far, and append some of it to every batch.

    Of the :math:`t`-th example (counted from 1), with :math:`j` uniform on :math:`\{1, \dots, t\}`,

    .. math:: \text{slot } t \text{ if } t \le C, \text{ else slot } j \text{ if } j \le C, \text{ else nowhere,}

    keeps each example so far with the same probability :math:`C / t`. A batch of :math:`B` examples is followed by
    :math:`rB` different ones drawn uniformly from what is kept, before it is kept itself.

    Every batch goes through the handle, inputs and targets together, in any nested structure of tensors whose first
    dimension is the batch: ``x, y = handle.batch((x, y))``.

    Args:
        capacity: :math:`C`, how many examples are kept, ``>= 1``.
        ratio: :math:`r`, replayed examples for each new one, ``>= 0``, rounded for each batch to at least one example;
            fewer as long as fewer are kept. ``0`` is a no-op.
        keep_on: ``"batch"``: examples are kept on the device of the batches; ``"cpu"``: in the memory of the host, at
            the price of copies that wait for an accelerator.

    State:
        ``examples``: one tensor ``[C, ...]`` per tensor of the batch, or ``[S, C, ...]`` for a stack of members, made
        at the first batch; ``seen``, the examples so far; ``seeds``, of the draws. Under DDP every rank keeps and
        replays examples of its own data. With ``torch.distributed.checkpoint``, pass one batch through the handle
        before loading: it loads into tensors that are there.

    Edits:
        Batches; no weights, and no moments.

    Deviations from the published code:
        The paper compares several memories, some of them balanced over classes; this is its reservoir, which needs no
        labels. Drawing without replacement and keeping a batch only after it was extended follow
        ``aimagelab/mammoth``.

    Source:
        Chaudhry et al., On Tiny Episodic Memories in Continual Learning (2019), arXiv:1902.10486; the reservoir is
        algorithm R of Vitter, Random Sampling with a Reservoir, ACM TOMS 11 (1985).

    Raises:
        IllegalConfiguration: At ``attach``, for a hyper-parameter out of range; at a batch that holds something else
            than tensors with one common first dimension, or other tensors than the batches before.

    Example:
        >>> import torch, pliant
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> handle = pliant.attach(model, optimizer, ExperienceReplay(), example_inputs=torch.randn(3, 4))
        >>> for _ in range(3):
        ...     x, y = handle.batch((torch.randn(16, 4), torch.randint(2, (16,))))
        ...     print(tuple(x.shape), tuple(y.shape))
        (16, 4) (16,)
        (32, 4) (32,)
        (32, 4) (32,)
        >>> handle.detach()
    """

    capacity: int = 1000
    ratio: float = 1.0
    keep_on: str = "batch"

    state: ClassVar[Mapping[str, StateKind]] = {_EXAMPLES: Tensors(), "seen": Host(0), "seeds": Host("")}
    source: ClassVar[str] = "Chaudhry et al. 2019"
    search: ClassVar[Mapping[str, Domain]] = {
        "ratio": Range(0.1, 2.0, log=True),
        "capacity": Range(100, 10_000, log=True, integer=True),
    }
    defaults: ClassVar[Mapping[str, str]] = {
        "capacity": "a choice of this library",
        "ratio": "as many replayed as new, as in Chaudhry et al. (2019); from memory of the paper, not checked",
        "keep_on": "a choice of this library: nothing waits for an accelerator",
    }

    @property
    def needs_batch(self) -> bool:
        """Unless it replays nothing."""
        return self.ratio > 0

    def null(self) -> ExperienceReplay:
        """Nothing is kept or replayed."""
        return replace(self, ratio=0.0)

    def prepare(self, ctx: Context) -> None:
        """Check the hyper-parameters."""
        require(isinstance(self.capacity, int) and self.capacity >= 1, self, "capacity", "a whole number >= 1")
        require(0 <= self.ratio < float("inf"), self, "ratio", ">= 0 and finite")
        require(self.keep_on in ("batch", "cpu"), self, "keep_on", "'batch' or 'cpu'")
        ctx.host["seeds"] = ",".join(map(str, ctx.edit.seeds))  # a checkpoint brings those that it was drawn with

    def on_batch(self, ctx: Context, batch: Any) -> Any:
        """Append what is drawn from the past, then keep some of the new."""
        if self.ratio == 0 or ctx.edit.dry_run:
            return batch
        leaves, form = pytree.tree_flatten_with_path(batch)
        named = [(pytree.keystr(path) or "batch", leaf) for path, leaf in leaves]
        rows = {name: leaf for name, leaf in named if leaf is not None}
        num_members = ctx.num_members
        size, seen = _batch_size(rows, num_members), int(ctx.host["seen"])
        kept = self._kept(ctx, rows, seen)
        read, write, taken = self._plan(str(ctx.host["seeds"]), size, seen)
        extended = [None if leaf is None else _extended(leaf, kept[name], read, num_members) for name, leaf in named]
        for name, row in rows.items():
            store = kept[name] if num_members is None else kept[name].flatten(0, 1)
            fresh = (row if num_members is None else row.flatten(0, 1)).detach().to(store.device)
            store.index_copy_(0, _on(write, store.device), fresh.index_select(0, _on(taken, store.device)))
        ctx.host["seen"] = seen + size
        return pytree.tree_unflatten(extended, form)

    def _kept(self, ctx: Context, rows: Mapping[str, Tensor], seen: int) -> dict[str, Tensor]:
        """The examples, on their device; made at the first batch."""
        kept, lead = ctx.tensors(_EXAMPLES), 1 if ctx.num_members is None else 2
        if not kept:
            if seen:
                raise IllegalConfiguration(
                    "ExperienceReplay: the checkpoint was loaded into tensors that were not there yet, so its examples "
                    "are missing. Pass one batch through handle.batch(...) before loading it."
                )
            for name, row in rows.items():
                shape = (*row.shape[: lead - 1], self.capacity, *row.shape[lead:])
                kept[name] = torch.zeros(shape, dtype=row.dtype, device=self._place(row))
        if list(kept) != list(rows):
            raise IllegalConfiguration(
                f"ExperienceReplay: this batch holds {', '.join(rows)}, those before it {', '.join(kept)}. Pass "
                "batches of one structure through handle.batch(...)."
            )
        for name, row in rows.items():
            mine = kept[name]
            if mine.shape[lead:] != row.shape[lead:] or mine.dtype != row.dtype:
                raise IllegalConfiguration(
                    f"ExperienceReplay: {name} of this batch has examples of shape {tuple(row.shape[lead:])} and type "
                    f"{row.dtype}, those before it {tuple(mine.shape[lead:])} and {mine.dtype}. Give all examples one "
                    "shape (pad them) and one type before handle.batch(...)."
                )
            kept[name] = mine.to(self._place(row))  # it may have been loaded from elsewhere
        return kept

    def _place(self, row: Tensor) -> torch.device:
        return torch.device("cpu") if self.keep_on == "cpu" else row.device

    def _plan(self, seeds: str, size: int, seen: int) -> tuple[Tensor | None, Tensor, Tensor]:
        """Which slots are replayed, which are written, and with which rows; flat over members, on the host.

        All of it follows from a seed, the examples so far and the size of the batch, so that nothing has to be read
        from a device, and a resumed run draws the same.
        """
        num_kept = min(seen, self.capacity)
        count = min(max(1, round(self.ratio * size)), num_kept)
        read, write, taken = [], [], []
        for member, seed in enumerate(seeds.split(",")):
            key = [stream_of(int(seed)), _OWN_STREAM]
            draw = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, seen]))
            read.append(draw.choice(num_kept, count, replace=False, shuffle=False) + member * self.capacity)
            slots, rows = reservoir_slots(draw.random(size), seen, self.capacity)
            write.append(slots + member * self.capacity)
            taken.append(rows + member * size)
        return _flat(read) if count else None, _flat(write), _flat(taken)


def reservoir_slots(uniform: np.ndarray[Any, Any], seen: int, capacity: int) -> tuple[Any, Any]:
    """Algorithm R for a whole batch: the slots that are written, each once, and the examples that end there.

    Args:
        uniform: One draw from [0, 1) per example, ``[B]``.
        seen: Examples before this batch.
        capacity: Number of slots.

    Returns:
        Slots and indices of examples, both ``[n]``; of several examples for one slot, the last.

    >>> reservoir_slots(np.array([0.9, 0.9, 0.0, 0.3, 0.2]), seen=1, capacity=3)
    (array([0, 1, 2]), array([2, 4, 1]))
    """
    count = seen + np.arange(len(uniform))  # examples before each of them
    slots = np.where(count < capacity, count, np.floor(uniform * (count + 1)).astype(np.int64))
    written, from_the_end = np.unique(slots[::-1], return_index=True)
    rows = len(uniform) - 1 - from_the_end
    return written[written < capacity], rows[written < capacity]


def _batch_size(rows: Mapping[str, Any], num_members: int | None) -> int:
    """The common size of all leaves.

    Raises:
        IllegalConfiguration: Naming the leaf that is no tensor, or has another size.
    """
    lead = () if num_members is None else (num_members,)
    size: int | None = None
    for name, row in rows.items():
        if not isinstance(row, Tensor):
            raise IllegalConfiguration(
                f"ExperienceReplay: {name} of the batch is of type {type(row).__name__}. Pass tensors (and None) in "
                "tuples, lists and dicts through handle.batch(...)."
            )
        if row.ndim <= len(lead) or row.shape[: len(lead)] != lead or size not in (None, row.shape[len(lead)]):
            wanted = ", ".join(map(str, (*lead, "batch" if size is None else size, "...")))
            raise IllegalConfiguration(
                f"ExperienceReplay: {name} of the batch has shape {tuple(row.shape)} instead of [{wanted}]: all "
                "tensors need one common batch dimension, the first (after that of members). Put it there, and pass "
                "the rest of what the model needs around handle.batch(...)."
            )
        size = row.shape[len(lead)]
    if size is None:
        raise IllegalConfiguration("ExperienceReplay: the batch holds no tensors.")
    return size


def _extended(row: Tensor, kept: Tensor, read: Tensor | None, num_members: int | None) -> Tensor:
    """New rows, and the replayed ones behind them."""
    if read is None:
        return row
    if num_members is None:
        return torch.cat([row, kept.index_select(0, _on(read, kept.device)).to(row.device)])
    drawn = kept.flatten(0, 1).index_select(0, _on(read, kept.device)).to(row.device)
    return torch.cat([row, drawn.view(num_members, -1, *drawn.shape[1:])], dim=1)


def _flat(parts: Sequence[Any]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def _on(index: Tensor, device: torch.device) -> Tensor:
    """On the device, without waiting for it."""
    return index if device.type == "cpu" else index.pin_memory().to(device, non_blocking=True)
