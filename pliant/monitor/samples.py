"""What the monitor's hooks keep of a training step: some rows of each group's activations."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pliant.stats.listener import Dated, Passes, that_count
from pliant.stats.reader import TapReader
from pliant.units.group import Tap
from pliant.units.several import Several

__all__ = ["Padding", "Rows", "gathered", "paddings", "thinned"]

_MAX_FORWARDS = 8


def thinned(rows_NU: Tensor, limit: int) -> Tensor:
    """At most ``limit`` rows, evenly spread."""
    return rows_NU[:: -(-rows_NU.shape[0] // limit)]


class Padding:
    """Hears with which mask a model is called, so that padded positions can be left out below it.

    Args:
        module: Name of the module that is given the mask.
        argument: Its keyword, or its place among the positional arguments.

    Attributes:
        mask: That of the forward pass that is running, ``[B, T]``, or ``None``.
    """

    def __init__(self, module: str, argument: str | int) -> None:
        self.tap = Tap("input", module, 0, -1, ((0,),))
        self.in_forward = self.keeps_graph = False
        self.passes = Passes()
        self.mask: Tensor | None = None
        self._argument = argument

    def add(self, seen: Any, *, in_graph: bool) -> None:
        """Take the mask of a call."""
        args, kwargs = seen
        if isinstance(self._argument, str):
            found = kwargs.get(self._argument)
        else:
            found = args[self._argument] if len(args) > self._argument else None
        self.mask = found if isinstance(found, Tensor) and found.ndim == 2 else None

    def forget(self) -> None:
        """A mask is of the forward pass that is running."""

    def let_go(self) -> None:
        """It has no graph."""

    def clear(self) -> None:
        """Before a step that is listened to."""
        self.mask, self.in_forward = None, False


def paddings(model: nn.Module, argument: str | int | None) -> dict[str, Padding]:
    """Prefix of tap names to what hears the mask there: one for each of several models."""
    if argument is None:
        return {}
    names = [name for name, _ in model.named_children()] if isinstance(model, Several) else [""]
    return {f"{name}." if name else "": Padding(name, argument) for name in names}


class Rows:
    """Keeps up to ``limit`` samples of one group's activations, evenly spread over each batch.

    Args:
        reader: Reads them at the group's tap.
        limit: Rows that are kept.
        like: A tensor on the device of the activations.
        padding: What hears the mask of the model's calls.

    Attributes:
        seconds: Time spent in eager forwards since :meth:`clear`.
        heard_padding: Whether padded positions were left in although there was a mask, which did not fit.
    """

    def __init__(self, reader: TapReader, limit: int, like: Tensor, padding: Padding | None) -> None:
        self.reader, self.tap, self.limit, self.padding = reader, reader.tap, limit, padding
        self.in_forward = self.keeps_graph = False
        self.passes = Passes()
        self.heard: list[Dated] = []
        self.seconds, self.heard_padding = 0.0, False
        size = reader.group.size
        self.compiled = torch.zeros(limit, size, dtype=torch.float32, device=like.device)
        self.compiled_count = torch.zeros((), dtype=torch.long, device=like.device)
        self.compiled_valid = torch.ones(limit, dtype=torch.bool, device=like.device)

    def add(self, seen: Any, *, in_graph: bool) -> None:
        """Take what a hook saw."""
        if in_graph:
            return self._add_in_graph(seen)
        if len(self.heard) >= _MAX_FORWARDS:  # many micro-batches: the first ones stand for the step
            return None
        began = time.perf_counter()
        value = self.reader.value(seen)
        rows, valid = self.reader.matrix(value), self._valid(value)
        rows = thinned(rows if valid is None else rows[valid], self.limit)
        if rows.shape[0]:
            inside = torch._C._current_graph_task_id() != -1
            self.heard.append(Dated(rows.clone(), rows.shape[0], self.passes.count, inside))
        self.seconds += time.perf_counter() - began
        return None

    def _add_in_graph(self, seen: Any) -> None:
        """A list would break the graph, and a mask make shapes depend on data: the latest batch is in fixed buffers."""
        value = self.reader.value(seen)
        rows, valid = thinned(self.reader.matrix(value), self.limit), self._valid(value)
        count = rows.shape[0]
        self.compiled[:count].copy_(rows)
        self.compiled_count.fill_(count)
        if valid is not None:
            self.compiled_valid[:count].copy_(thinned(valid, self.limit))
        else:
            self.compiled_valid.fill_(True)

    def _valid(self, value: Tensor) -> Tensor | None:
        """Which rows of the matrix are no padding, bool ``[N]``; ``None`` if nothing is known."""
        mask = None if self.padding is None else self.padding.mask
        if mask is None:
            return None
        lead = value.movedim(self.tap.dim, -1).shape[:-1]
        if lead[:2] == mask.shape:
            inner = lead[2:].numel()
        elif lead == (mask.numel(),):
            inner = 1
        else:
            self.heard_padding = True
            return None
        return (mask != 0).flatten().to(value.device).repeat_interleave(inner * self.reader.width)

    def take(self) -> Tensor | None:
        """The samples since the last call, ``[N, U]`` with N at most the limit; ``None`` if there are none."""
        if self.heard:
            rows = torch.cat([entry.value for entry in that_count(self.heard, self.passes.count)])
        elif count := int(self.compiled_count):
            rows = self.compiled[:count][self.compiled_valid[:count]]
        else:
            return None
        self.clear()
        return thinned(rows, self.limit) if rows.shape[0] else None

    def forget(self) -> None:
        """Drop the samples of what has been through a backward pass."""
        self.heard = [entry for entry in self.heard if entry.after >= self.passes.count]

    def let_go(self) -> None:
        """Nothing here has a graph."""

    def clear(self) -> None:
        """Start anew."""
        self.heard, self.in_forward, self.seconds = [], False, 0.0
        self.compiled_count.zero_()


def gathered(rows: Mapping[str, Tensor | None], sinks: Mapping[str, Rows], process_group: Any) -> dict[str, Tensor]:
    """The rows of all processes, the same on each of them; groups that nobody has seen are left out.

    Args:
        rows: Group name to this process's rows ``[N, U]``, for the same groups in the same order everywhere.
        sinks: What they come from.
        process_group: The processes, or ``None`` for one.
    """
    if process_group is None:
        return {name: value for name, value in rows.items() if value is not None}
    world, me = torch.distributed.get_world_size(process_group), torch.distributed.get_rank(process_group)
    some = next(iter(sinks.values())).compiled_count
    counts = torch.zeros(len(rows), world, dtype=torch.long, device=some.device)
    mine: dict[str, Tensor] = {}
    for index, (name, value) in enumerate(rows.items()):
        if value is not None:
            mine[name] = thinned(value, max(1, sinks[name].limit // world)).to(torch.float32)
            counts[index, me] = mine[name].shape[0]
    torch.distributed.all_reduce(counts, group=process_group)
    found: dict[str, Tensor] = {}
    for name, row in zip(rows, counts.tolist(), strict=True):
        if not max(row):
            continue
        padded = sinks[name].compiled.new_zeros(max(row), sinks[name].reader.group.size)
        if name in mine:
            padded[: mine[name].shape[0]] = mine[name]
        pieces = [torch.empty_like(padded) for _ in range(world)]
        torch.distributed.all_gather(pieces, padded, group=process_group)
        found[name] = torch.cat([piece[:count] for piece, count in zip(pieces, row, strict=True)])
    return found


def clear(sinks: Sequence[Rows | Padding]) -> None:
    """Start anew with all of them."""
    for sink in sinks:
        sink.clear()
