"""What the monitor's hooks keep of a training step: some rows of each group's activations."""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from pliant.observation.rows import Masks, row_mask
from pliant.stats.derivative import activation_derivative
from pliant.stats.listener import Dated, Passes, that_count
from pliant.stats.reader import TapReader
from pliant.units.several import Several

__all__ = ["Padding", "Rows", "paddings", "taken", "thinned"]

_MAX_FORWARDS = 8
_CHECKPOINT = torch.utils.checkpoint.__file__


def thinned(rows_NU: Tensor, limit: int) -> Tensor:
    """At most ``limit`` rows, evenly spread."""
    return rows_NU[:: -(-rows_NU.shape[0] // limit)]


class Padding:
    """Hears with which mask a model is called, so that padded positions can be left out below it.

    It has a hook of its own, and not one of the listener's: those watch the gradients of the modules that they are on.

    Args:
        module: The module that is given the mask.
        argument: Its keyword, or its place among the positional arguments.
    """

    def __init__(self, module: nn.Module, argument: str | int) -> None:
        self._module, self._argument = module, argument
        self._masks: Masks | None = None
        self._handle = module.register_forward_pre_hook(self._hook, with_kwargs=True)

    def _hook(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if module is not self._module:  # of a deep copy
            return
        if isinstance(self._argument, str):
            renamed = {**kwargs, "attention_mask": kwargs.get(self._argument)}
            self._masks = Masks(module, renamed, None)
        else:
            found = args[self._argument] if len(args) > self._argument else None
            self._masks = Masks(module, {"attention_mask": found}, None)

    def of(self, name: str) -> Tensor | None:
        """The mask for a unit group in the forward pass that is running, bool ``[B, T]``, or ``None``."""
        return None if self._masks is None else self._masks.of(name)

    def remove(self) -> None:
        """Remove the hook."""
        self._handle.remove()


def paddings(model: nn.Module, argument: str | int | None) -> dict[str, Padding]:
    """Prefix of tap names to what hears the mask there: for each of several models, if its forward can take one."""
    if argument is None:
        return {}
    parts = dict(model.named_children()) if isinstance(model, Several) else {"": model}
    return {
        f"{name}." if name else "": Padding(part, argument)
        for name, part in parts.items()
        if not isinstance(argument, str) or _takes(part, argument)
    }


def _takes(module: nn.Module, argument: str) -> bool:
    found = inspect.signature(module.forward).parameters
    return argument in found or any(one.kind is one.VAR_KEYWORD for one in found.values())


class Rows:
    """Keeps up to ``limit`` samples of one group's activations, evenly spread over each batch.

    Args:
        reader: Reads them at the group's tap.
        limit: Rows that are kept.
        like: A tensor on the device of the activations.
        padding: What hears the mask of the model's calls.
        with_derivatives: Whether the derivative of the activation function is kept beside each activation.

    Attributes:
        seconds: Time spent in eager forwards since :meth:`clear`.
        heard_padding: Whether padded positions were left in although there was a mask, which did not fit.
        why_no_derivatives: Why there were none in the latest sample; empty if there were.
    """

    def __init__(
        self, reader: TapReader, limit: int, like: Tensor, padding: Padding | None, *, with_derivatives: bool
    ) -> None:
        self.reader, self.tap, self.limit, self.padding = reader, reader.tap, limit, padding
        self.with_derivatives, self.why_no_derivatives = with_derivatives, ""
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
        valid = self._valid(value)
        rows = self._chosen(value, valid).clone()
        if rows.shape[0]:
            inside = torch._C._current_graph_task_id() != -1
            derivatives = self._derivatives(seen, valid) if self.with_derivatives else None
            self.heard.append(Dated((rows, derivatives), rows.shape[0], self.passes.count, inside))
        self.seconds += time.perf_counter() - began
        return None

    def _chosen(self, value: Tensor, valid: Tensor | None) -> Tensor:
        rows = self.reader.matrix(value)
        return thinned(rows if valid is None else rows[valid], self.limit)

    def _derivatives(self, seen: Any, valid: Tensor | None) -> Tensor | None:
        """Of the rows that were chosen; ``None`` where the graph cannot be followed, with the reason kept."""
        found: Tensor | str
        if self.reader.replay is not None:
            found = "its activations are recomputed apart from the forward pass"
        elif _packs_away():  # what a checkpointed forward has saved may be asked for only once
            found = "what its forward pass saves for the backward pass is packed away (activation checkpointing)"
        else:
            with torch.no_grad():
                found = activation_derivative(self.reader.live(seen))
        self.why_no_derivatives = found if isinstance(found, str) else ""
        return None if isinstance(found, str) else self._chosen(found, valid)

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
        mask = None if self.padding is None else self.padding.of(self.reader.group.name)
        if mask is None:
            return None
        counts = row_mask(value.movedim(self.tap.dim, -1).shape[:-1], mask)
        if counts is None:
            self.heard_padding = True
            return None
        return counts.to(value.device).repeat_interleave(self.reader.width)

    def take(self) -> tuple[Tensor | None, Tensor | None]:
        """The samples since the last call, ``[N, U]`` with N at most the limit, and derivatives; ``None`` if none."""
        if self.heard:
            heard = [entry.value for entry in that_count(self.heard, self.passes.count)]
            self.clear()
            rows = thinned(torch.cat([act_NU for act_NU, _ in heard]), self.limit)
            known = [derivative_NU for _, derivative_NU in heard if derivative_NU is not None]
            return rows, thinned(torch.cat(known), self.limit) if len(known) == len(heard) else None
        if count := int(self.compiled_count):
            rows = self.compiled[:count][self.compiled_valid[:count]]
            self.clear()
            self.why_no_derivatives = "it runs inside a compiled or captured graph"
            return (rows if rows.shape[0] else None), None
        return None, None

    def forget(self) -> None:
        """Drop the samples of what has been through a backward pass."""
        self.heard = [entry for entry in self.heard if entry.after >= self.passes.count]

    def let_go(self) -> None:
        """Nothing here has a graph."""

    def clear(self) -> None:
        """Start anew."""
        self.heard, self.in_forward, self.seconds = [], False, 0.0
        self.compiled_count.zero_()


def _packs_away() -> bool:
    """Whether what is computed now does not keep what its backward pass needs: it is checkpointed, or moved away."""
    hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    if hooks is not None:
        return hooks(True) is not None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:  # before PyTorch 2.8 only the stack tells
        if frame.f_code.co_name == "checkpoint" and frame.f_code.co_filename == _CHECKPOINT:
            return True
        frame = frame.f_back
    return False


def taken(sinks: Mapping[str, Rows], process_group: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What all sinks have heard, put together from all processes: activations and derivatives by unit group."""
    pairs = {name: item.take() for name, item in sinks.items()}
    rows = _gathered({name: act_NU for name, (act_NU, _) in pairs.items()}, sinks, process_group)
    if not any(item.with_derivatives for item in sinks.values()):
        return rows, {}
    return rows, _gathered({name: derivative_NU for name, (_, derivative_NU) in pairs.items()}, sinks, process_group)


def _gathered(rows: Mapping[str, Tensor | None], sinks: Mapping[str, Rows], process_group: Any) -> dict[str, Tensor]:
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
