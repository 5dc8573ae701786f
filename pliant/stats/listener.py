"""Forward hooks that listen to training, and only to training."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from pliant import quiet
from pliant.devices import can_read
from pliant.units.group import Tap
from pliant.units.several import Several

__all__ = ["Dated", "Kept", "Listener", "Listeners", "Passes", "Sink", "is_in_graph", "silence", "that_count"]


class Passes:
    """How many backward passes a listener has noticed; what its sinks hear is dated by it.

    Attributes:
        count: The number so far.
    """

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Dated(NamedTuple):
    """Something that was heard in a forward pass.

    Attributes:
        value: What the sink makes of it.
        num_samples: Samples per unit behind it.
        after: Backward passes noticed before it was heard.
        inside: Whether it was heard inside a backward pass (a checkpointed forward that is run again).
    """

    value: Any
    num_samples: int
    after: int
    inside: bool


class Kept(NamedTuple):
    """An activation that nobody has looked at yet.

    Attributes:
        act: The activation, detached.
        version: How often it had been changed in place when it was heard.
        after: As for :class:`Dated`.
        inside: As for :class:`Dated`.
    """

    act: Tensor
    version: int
    after: int
    inside: bool


_Heard = TypeVar("_Heard", Dated, Dated | Kept)


def that_count(heard: list[_Heard], passes: int) -> list[_Heard]:
    """Of what was heard since the last step, what belongs to it: what has been through a backward pass.

    Where no backward pass was noticed after any of it, all counts. (A checkpointed forward may be run again inside its
    own backward pass, after that was noticed.)
    """
    if not any(entry.after < passes for entry in heard):
        return heard
    return [entry for entry in heard if entry.after < passes or entry.inside]


class Sink(Protocol):
    """Something that takes what a tap's hook sees.

    Attributes:
        tap: Where it listens.
        in_forward: Whether it heard a forward pass since the last optimizer step (set by the listener).
        passes: The listener's count of backward passes (set by the listener).
        keeps_graph: Whether it must let go of what it heard once that has been through a backward pass.
    """

    tap: Tap
    in_forward: bool
    passes: Passes
    keeps_graph: bool

    def add(self, seen: Any, *, in_graph: bool) -> None:
        """Take ``(args, kwargs)`` of the module for an input tap, its output for an output tap.

        Args:
            seen: What the hook saw.
            in_graph: Whether this becomes part of a graph that runs again without the Python around it.
        """

    def forget(self) -> None:
        """Drop what has been through a backward pass since the last optimizer step: its gradients are gone."""

    def let_go(self) -> None:
        """Drop what has a graph: it has been through a backward pass. Only asked where ``keeps_graph``."""


def is_in_graph(accelerated: bool) -> bool:
    """Whether what runs now becomes part of a graph that runs again without the Python around it.

    Either ``torch.compile`` traces it, or (asked only where ``accelerated``) CUDA captures it.
    """
    return torch.compiler.is_compiling() or (accelerated and torch.cuda.is_current_stream_capturing())


class _Place:
    """One hook on one module, shared by the sinks that listen there.

    The hook is registered once. Between samples it is taken out of the module's table and put back by hand, since
    registering costs more than all else that a sample does.
    """

    def __init__(self, listener: Listener, module: nn.Module, kind: str, sinks: list[Sink]) -> None:
        self.listener, self.module, self.sinks = listener, module, sinks
        self.heard_eagerly = False
        self.hook: Callable[..., None]
        if kind == "output":
            self.hook = self.on_output
            self.handle = module.register_forward_hook(self.hook)
        else:
            self.hook = self.on_input
            self.handle = module.register_forward_pre_hook(self.hook, with_kwargs=True)
        self.table: dict[int, Callable[..., None]] = self.handle.hooks_dict_ref() or {}

    def listen(self) -> None:
        self.table[self.handle.id] = self.hook

    def rest(self) -> None:
        self.table.pop(self.handle.id, None)

    def remove(self) -> None:
        self.listen()  # so that the handle finds it, and takes what belongs to it along
        self.handle.remove()

    # a deep copy of a module brings its hooks along: only the own one is heard
    def on_input(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if module is self.module and (how := self.listener.hears(self)):
            seen = args, kwargs
            for sink in self.sinks:
                sink.add(seen, in_graph=how == "in_graph")

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

    While nothing is to be heard (:meth:`rest`), the hooks of modules that run eagerly are taken off, so that
    steps which are not sampled cost nothing. Hooks that became part of a compiled or captured graph stay in it.

    Args:
        model: The model that is hooked.
        sinks: What listens; sinks of one module share a hook.

    Attributes:
        enabled: Whether forwards are heard at present.
    """

    def __init__(self, model: nn.Module, sinks: Iterable[Sink]) -> None:
        self.enabled = True
        self._passes = Passes()
        self._sinks = tuple(sinks)
        for sink in self._sinks:
            sink.passes = self._passes
        self._with_graph = [sink for sink in self._sinks if sink.keeps_graph]
        self._went_back = False
        self._gradient: weakref.ref[Tensor] | None = None
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
        self._backward: torch.utils.hooks.RemovableHandle | None = None
        self._backward_table: dict[int, Callable[..., None]] = {}
        if self._watched is not None:
            self._backward = self._watched.register_post_accumulate_grad_hook(self._on_backward)  # type: ignore[no-untyped-call]
            self._backward_table = self._backward.hooks_dict_ref() or {}

    def listen(self) -> None:
        """Hear the forwards that follow."""
        self.enabled = True
        for place in self._places:
            place.listen()
        if self._backward is not None:
            self._backward_table[self._backward.id] = self._on_backward

    def rest(self) -> None:
        """Hear nothing until :meth:`listen`."""
        self.enabled = False
        if not self._accelerated:  # a graph needs its hooks whenever it is captured
            for place in self._places:
                if place.heard_eagerly:
                    place.rest()
            self._went_back, self._gradient = False, None
            if self._backward is not None:
                self._backward_table.pop(self._backward.id, None)

    def _on_backward(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        if self._went_back and (self._gradient() if self._gradient is not None else None) is not gradient:
            for sink in self._sinks:
                sink.forget()
        self._went_back, self._gradient = True, None if gradient is None else weakref.ref(gradient)
        self._passes.count += 1
        for sink in self._with_graph:
            sink.let_go()

    def hears(self, place: _Place) -> Literal["eagerly", "in_graph"] | None:
        """Whether the forward that reached a hook is one that counts, and whether it becomes part of a graph.

        ``torch.compile`` traces a forward, or CUDA captures it, and the graph runs again without the Python around
        it: nothing may branch on the step there (it would recompile), and unwanted samples are dropped later.
        """
        if quiet.depth:
            return None
        if is_in_graph(self._accelerated):
            return "in_graph" if place.module.training and torch.is_grad_enabled() else None
        if not self.enabled or not place.module.training or not torch.is_grad_enabled():
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
        if self._backward is not None:
            self._backward_table[self._backward.id] = self._on_backward
            self._backward.remove()


class Listeners:
    """One listener for each of several models, since each has gradients of its own; for one model, just one.

    Args:
        model: The model, or the container of several.
        sinks: As for :class:`Listener`.

    Attributes:
        enabled: Whether forwards are heard at present.
    """

    def __init__(self, model: nn.Module, sinks: Iterable[Sink]) -> None:
        everything = tuple(sinks)
        parts = [f"{name}." for name, _ in model.named_children()] if isinstance(model, Several) else [""]
        self._listeners = [
            Listener(model, [sink for sink in everything if f"{sink.tap.module}.".startswith(part)]) for part in parts
        ]
        self.enabled = True

    def listen(self) -> None:
        """Hear the forwards that follow."""
        if not self.enabled:
            self.enabled = True
            for listener in self._listeners:
                listener.listen()

    def rest(self) -> None:
        """Hear nothing until :meth:`listen`."""
        if self.enabled:
            self.enabled = False
            for listener in self._listeners:
                listener.rest()

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
