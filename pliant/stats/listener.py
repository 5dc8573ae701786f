"""Forward hooks that listen to training, and only to training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from pliant.units.export import is_exporting
from pliant.units.group import Tap

__all__ = ["Listener", "Sink"]


class Sink(Protocol):
    """Something that takes what a tap's hook sees.

    Attributes:
        tap: Where it listens.
        in_forward: Whether it heard a forward pass since the last optimizer step (set by the listener).
        in_backward: Whether what it heard has been through a backward pass (set by the listener).
    """

    tap: Tap
    in_forward: bool
    in_backward: bool

    def add(self, seen: Any) -> None:
        """Take ``(args, kwargs)`` of the module for an input tap, its output for an output tap."""

    def forget(self) -> None:
        """Drop what was heard since the last optimizer step."""


class Listener:
    """Hooks on the taps of some sinks.

    They hear only what trains: the module is in training mode, gradients are enabled, and the forward is not the
    recomputation of a checkpointed one. Evaluation passes, rollouts under ``no_grad`` and target networks leave no
    trace. Neither do forwards whose gradients were thrown away before a step, as mixed precision does when they
    overflow (the scaler then never calls the optimizer): a backward pass is noticed on one parameter, and if that
    parameter's gradient is gone at the next forward, what was heard before that backward pass is forgotten.

    Args:
        model: The model that is hooked.
        sinks: What listens; sinks of one module share a hook.
    """

    def __init__(self, model: nn.Module, sinks: Iterable[Sink]) -> None:
        self.enabled = True
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._sinks = tuple(sinks)
        self._went_back = False
        hooks: dict[tuple[str, str], list[Sink]] = {}
        for sink in self._sinks:
            hooks.setdefault((sink.tap.module, sink.tap.kind), []).append(sink)
        for (name, kind), listening in hooks.items():
            module = model.get_submodule(name)
            if kind == "input":
                self._handles.append(
                    module.register_forward_pre_hook(self._on_input(module, listening), with_kwargs=True)
                )
            else:
                self._handles.append(module.register_forward_hook(self._on_output(module, listening)))
        places = [*(model.get_submodule(name) for name, _ in hooks), *([model] if hooks else [])]
        self._watched = next((p for place in places for p in place.parameters() if p.requires_grad), None)
        if self._watched is not None:
            self._handles.append(self._watched.register_post_accumulate_grad_hook(self._on_backward))  # type: ignore[no-untyped-call]

    def _on_input(self, own: nn.Module, sinks: Sequence[Sink]) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if module is own and self._hears(module, sinks):  # a deep copy brings its hooks along
                for sink in sinks:
                    sink.add((args, kwargs))

        return hook

    def _on_output(self, own: nn.Module, sinks: Sequence[Sink]) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if module is own and self._hears(module, sinks):  # a deep copy brings its hooks along
                for sink in sinks:
                    sink.add(output)

        return hook

    def _on_backward(self, parameter: torch.Tensor) -> None:
        self._went_back = True
        for sink in self._sinks:
            sink.in_backward = sink.in_forward

    def _hears(self, module: nn.Module, sinks: Sequence[Sink]) -> bool:
        if is_exporting():
            return False
        if torch.compiler.is_compiling():  # no branch on the step: it would recompile; unwanted samples are dropped
            return module.training and torch.is_grad_enabled()
        if not self.enabled or not module.training or not torch.is_grad_enabled():
            return False
        if torch._C._current_graph_task_id() != -1:  # inside backward: a checkpointed forward is run again
            # non-reentrant checkpoints were heard in the forward; reentrant ones ran it without gradients
            return not any(sink.in_forward for sink in sinks)
        if self._went_back and self._watched is not None and self._watched.grad is None:
            self._went_back = False
            for sink in self._sinks:
                if sink.in_backward:
                    sink.forget()
        for sink in sinks:
            sink.in_forward = True
        return True

    def remove(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def silence(model: nn.Module, taps: Iterable[Tap]) -> str:
    """Why nothing was heard although the optimizer stepped, and what to do."""
    if not any(model.get_submodule(tap.module).training for tap in taps):
        return (
            "the optimizer stepped while the model was in evaluation mode, so no activation was recorded and "
            "nothing can be protected or measured: call model.train() before the training loop."
        )
    return (
        "the optimizer stepped, but no training forward pass went through the hooks. Call the module that was "
        "given to pliant (not a copy), with gradients enabled; if a whole step function is compiled, attach "
        "before torch.compile and compile the model instead of the step."
    )
