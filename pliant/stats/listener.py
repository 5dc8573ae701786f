"""Forward hooks that listen to training, and only to training."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from pliant.devices import can_read
from pliant.stats.quiet import is_unrecorded
from pliant.units.export import is_exporting
from pliant.units.group import Tap
from pliant.units.several import Several

__all__ = ["Listener", "Listeners", "Sink", "is_in_graph", "silence"]


class Sink(Protocol):
    """Something that takes what a tap's hook sees.

    Attributes:
        tap: Where it listens.
        in_forward: Whether it heard a forward pass since the last optimizer step (set by the listener).
    """

    tap: Tap
    in_forward: bool

    def add(self, seen: Any, *, in_graph: bool) -> None:
        """Take ``(args, kwargs)`` of the module for an input tap, its output for an output tap.

        Args:
            seen: What the hook saw.
            in_graph: Whether this becomes part of a graph that runs again without the Python around it.
        """

    def settle(self, *, cleared: bool) -> None:
        """What was heard since the last backward pass has been through one now.

        Args:
            cleared: The gradients of earlier backward passes were thrown away in between: what belonged to them is
                forgotten.
        """

    def forget(self) -> None:
        """Drop what has been through a backward pass since the last optimizer step."""


def is_in_graph(accelerated: bool) -> bool:
    """Whether what runs now becomes part of a graph that runs again without the Python around it.

    Either ``torch.compile`` traces it, or (asked only where ``accelerated``) CUDA captures it.
    """
    return torch.compiler.is_compiling() or (accelerated and torch.cuda.is_current_stream_capturing())


class _Place:
    """One hook on one module, shared by the sinks that listen there."""

    def __init__(self, listener: Listener, module: nn.Module, kind: str, sinks: list[Sink]) -> None:
        self.listener, self.module, self.kind, self.sinks = listener, module, kind, sinks
        self.heard_eagerly = False
        self.handle: torch.utils.hooks.RemovableHandle | None = None

    def install(self) -> None:
        if self.handle is not None:
            return
        if self.kind == "output":
            self.handle = self.module.register_forward_hook(self.on_output)
        else:
            self.handle = self.module.register_forward_pre_hook(self.on_input, with_kwargs=True)

    def remove(self) -> None:
        if self.handle is not None:
            self.handle.remove()
            self.handle = None

    # a deep copy of a module brings its hooks along: only the own one is heard
    def on_input(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if module is self.module and (how := self.listener.hears(self)):
            for sink in self.sinks:
                sink.add((args, kwargs), in_graph=how == "in_graph")

    def on_output(self, module: nn.Module, args: Any, output: Any) -> None:
        if module is self.module and (how := self.listener.hears(self)):
            for sink in self.sinks:
                sink.add(output, in_graph=how == "in_graph")


class Listener:
    """Hooks on the taps of some sinks.

    They hear only what trains: the module is in training mode, gradients are enabled, and the forward is not the
    recomputation of a checkpointed one. Evaluation passes, rollouts under ``no_grad`` and target networks leave no
    trace. Neither do forwards whose gradients were thrown away before a step: those that mixed precision skips when
    they overflow (the scaler then never calls the optimizer), or a critic's in the actor's loss. A backward pass is
    noticed on one parameter; if that parameter's gradient is gone at the next forward, or a new tensor after the next
    backward, what belonged to the earlier pass is forgotten. (Gradients that are zeroed in place, not removed, are
    noticed at the next forward, on a CPU.)

    While nothing is to be heard (``enabled = False``), the hooks of modules that run eagerly are taken off, so that
    steps which are not sampled cost nothing. Hooks that became part of a compiled or captured graph stay in it.

    Args:
        model: The model that is hooked.
        sinks: What listens; sinks of one module share a hook.
    """

    def __init__(self, model: nn.Module, sinks: Iterable[Sink]) -> None:
        self._enabled = True
        self._sinks = tuple(sinks)
        self._went_back = False
        self._gradient: weakref.ref[Tensor] | None = None
        self._backward: torch.utils.hooks.RemovableHandle | None = None
        found: dict[tuple[str, str], list[Sink]] = {}
        for sink in self._sinks:
            found.setdefault((sink.tap.module, sink.tap.kind), []).append(sink)
        self._places = [_Place(self, model.get_submodule(name), kind, sinks) for (name, kind), sinks in found.items()]
        modules = [place.module for place in self._places]  # gradients elsewhere may be cleared at other times
        near = [p for module in modules for p in module.parameters() if p.requires_grad]
        trained = near or [p for p in model.parameters() if p.requires_grad and modules]
        # the first matrix: what is upstream has a part in most backward passes, and a bias may well have no gradient
        self._watched = min(trained, key=lambda p: p.ndim < 2, default=None)
        self._accelerated = any(parameter.is_cuda for parameter in model.parameters())
        self._install()

    @property
    def enabled(self) -> bool:
        """Whether forwards are heard at present."""
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        if value == self._enabled:
            return
        self._enabled = value
        if value:
            self._install()
        elif not self._accelerated:  # a graph needs its hooks whenever it is captured
            for place in self._places:
                if place.heard_eagerly:
                    place.remove()
            self._forget_backward()

    def _install(self) -> None:
        for place in self._places:
            place.install()
        if self._watched is not None and self._backward is None:
            self._backward = self._watched.register_post_accumulate_grad_hook(self._on_backward)  # type: ignore[no-untyped-call]

    def _on_backward(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        before = self._gradient() if self._gradient is not None else None
        cleared = self._went_back and before is not gradient
        self._went_back, self._gradient = True, None if gradient is None else weakref.ref(gradient)
        for sink in self._sinks:
            sink.settle(cleared=cleared)

    def _forget_backward(self) -> None:
        self._went_back, self._gradient = False, None
        if self._backward is not None:
            self._backward.remove()
            self._backward = None

    def hears(self, place: _Place) -> Literal["eagerly", "in_graph"] | None:
        """Whether the forward that reached a hook is one that counts, and whether it becomes part of a graph.

        ``torch.compile`` traces a forward, or CUDA captures it, and the graph runs again without the Python around
        it: nothing may branch on the step there (it would recompile), and unwanted samples are dropped later.
        """
        if is_exporting() or is_unrecorded():
            return None
        if is_in_graph(self._accelerated):
            return "in_graph" if place.module.training and torch.is_grad_enabled() else None
        if not self._enabled or not place.module.training or not torch.is_grad_enabled():
            return None
        if torch._C._current_graph_task_id() != -1:  # inside backward: a checkpointed forward is run again
            # non-reentrant checkpoints were heard in the forward; reentrant ones ran it without gradients
            return None if any(sink.in_forward for sink in place.sinks) else "eagerly"
        if self._went_back and self._is_cleared():
            self._went_back, self._gradient = False, None
            for sink in self._sinks:
                sink.forget()
        place.heard_eagerly = True
        for sink in place.sinks:
            sink.in_forward = True
        return "eagerly"

    def _is_cleared(self) -> bool:
        """Whether the gradients of the last backward pass are gone; zeroed ones are noticed on a CPU only."""
        gradient = None if self._watched is None else self._watched.grad
        return gradient is None or (can_read(gradient) and not bool(gradient.any()))

    def remove(self) -> None:
        """Remove every hook."""
        for place in self._places:
            place.remove()
        self._forget_backward()


class Listeners:
    """One listener for each of several models, since each has gradients of its own; for one model, just one.

    Args:
        model: The model, or the container of several.
        sinks: As for :class:`Listener`.
    """

    def __init__(self, model: nn.Module, sinks: Iterable[Sink]) -> None:
        everything = tuple(sinks)
        parts = [f"{name}." for name, _ in model.named_children()] if isinstance(model, Several) else [""]
        self._listeners = [
            Listener(model, [sink for sink in everything if f"{sink.tap.module}.".startswith(part)]) for part in parts
        ]

    @property
    def enabled(self) -> bool:
        """Whether forwards are heard at present."""
        return self._listeners[0].enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        for listener in self._listeners:
            listener.enabled = value

    def remove(self) -> None:
        """Remove every hook."""
        for listener in self._listeners:
            listener.remove()


def silence(model: nn.Module, taps: Iterable[Tap]) -> str:
    """Why nothing was heard although the optimizer stepped, and what to do."""
    if not any(model.get_submodule(tap.module).training for tap in taps):
        return (
            "the optimizer stepped while the model was in evaluation mode, so no activation was recorded and "
            "nothing can be protected or measured: call model.train() before the training loop."
        )
    return (
        "the optimizer stepped, but no training forward pass went through the hooks. Call the module that was "
        "given to pliant (not a copy), with gradients enabled. With torch.compile, attach first, compile the model "
        "(not the whole step) right after, and only then begin to train. When a CUDA graph is captured, call "
        "handle.step() after each replay."
    )
