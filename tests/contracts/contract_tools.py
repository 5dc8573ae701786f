"""What the contract tests share: the methods, the optimizers, and a training loop that a user would write."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import settings_networks
import settings_normalisation
import settings_others
import settings_regularisers
import settings_units
import torch
import zoo
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree
from zoo import NAMES, ZOO, Case

import pliant
from pliant.interventions import L2EffectiveRank, OptimizerReset
from pliant.units import UnitGraph

FULL = bool(os.environ.get("PLIANT_FULL_MATRIX"))
STEPS, CUT, BOUNDARIES = 8, 4, (3, 6)

_FAMILIES = (settings_units, settings_networks, settings_regularisers, settings_normalisation, settings_others)

METHODS: dict[str, Any] = {name: method for family in _FAMILIES for name, method in family.METHODS.items()}
SEEDLESS: frozenset[str] = frozenset().union(*(family.SEEDLESS for family in _FAMILIES))

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "sgd_momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "sgd_fused": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adam_amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "adam_foreach": lambda p: torch.optim.Adam(p, lr=1e-2, foreach=True),
    "adam_fused": lambda p: torch.optim.Adam(p, lr=1e-2, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "adamw_fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "rmsprop_foreach": lambda p: torch.optim.RMSprop(p, lr=1e-3, foreach=True),
    "adagrad_fused": lambda p: torch.optim.Adagrad(p, lr=1e-2, fused=True),
    "adamax": lambda p: torch.optim.Adamax(p, lr=1e-2),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "radam": lambda p: torch.optim.RAdam(p, lr=1e-2),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.5),
}


def suited(method: str, optimizer: str) -> str:
    """The optimizer, or one with momentum where a method needs state and plain SGD has none (it refuses that)."""
    needs_state = any(isinstance(item, OptimizerReset) for item in listed(METHODS[method]))
    return "sgd_momentum" if needs_state and optimizer == "sgd" else optimizer


WHOLE_ZOO = ("continual_backprop", "redo", "several")
"""The methods that meet every architecture in the fast suite; the others meet a sixth each, in rotation, and a third
together with the wide suite."""


def pairs() -> list[tuple[str, str, str]]:
    """(method, architecture, optimizer): everything in the full matrix, else pairs with rotating optimizers."""
    if FULL:
        return [(m, a, o) for m in METHODS for a in NAMES for o in OPTIMIZERS if suited(m, o) == o]
    chosen = []
    optimizers = list(OPTIMIZERS)
    for i, method in enumerate(METHODS):
        for j, name in enumerate(NAMES):
            if method in WHOLE_ZOO or (i + j) % 3 == 0:
                chosen.append((method, name, suited(method, optimizers[(5 * i + j) % len(optimizers)])))
    return chosen


def params(chosen: list[tuple[str, str, str]]) -> list[Any]:
    """Pairs for ``parametrize``; of the methods that do not meet every architecture, half wait for the wide suite."""

    def is_wide(method: str, name: str) -> bool:
        return not FULL and method not in WHOLE_ZOO and (list(METHODS).index(method) + NAMES.index(name)) % 6 == 3

    return [pytest.param(*pair, marks=pytest.mark.wide) if is_wide(*pair[:2]) else pair for pair in chosen]


def fast_pairs(num: int) -> list[tuple[str, str, str]]:
    """Every num-th pair, which still meets every method, architecture and optimizer; everything in the full matrix."""
    return pairs() if FULL else pairs()[::num]


@cache
def units_of(name: str) -> UnitGraph:
    return pliant.find_units(ZOO[name].model(), ZOO[name].batch())


class Run:
    """A model, its optimizer and, perhaps, a handle; ``train`` is a loop as a user writes it."""

    def __init__(
        self,
        name: str,
        optimizer: str,
        methods: Any = None,
        *,
        seed: int = 0,
        handle_seed: int = 7,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        **attach: Any,
    ) -> None:
        self.case: Case = ZOO[name]
        self.model: nn.Module = self.case.model(seed).to(device, dtype)
        self.dtype, self.device = dtype, device
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.handle: pliant.Handle | None = None
        if methods is not None:
            changes_model = any(method.changes_model for method in listed(methods))
            self.handle = pliant.attach(
                self.model,
                self.optimizer,
                methods,
                units=None if changes_model else units_of(name),
                example_inputs=self.batch(0) if changes_model else None,
                seed=handle_seed,
                init=self.case.init,
                **attach,
            )

    def batch(self, step: int, size: int = 4) -> Any:
        batch = zoo.cast(self.case.batch(size, seed=step), self.dtype)
        return pytree.tree_map(lambda leaf: leaf.to(self.device), batch)

    def train(self, start: int = 0, stop: int = STEPS) -> Run:
        for step in range(start, stop):
            torch.manual_seed(step)  # for dropout
            self.optimizer.zero_grad()
            attached = self.handle is not None and self.handle._hooks
            batch = self.handle.batch(self.batch(step)) if attached else self.batch(step)
            loss = zoo.loss_of(zoo.call(self.model, batch))
            if attached:
                loss = loss + self.handle.penalty(loss=loss, reference=self.batch(step + 1000))
            loss.backward()
            self.optimizer.step()
            if self.handle is not None and step + 1 in BOUNDARIES:
                self.handle.task_boundary()
        return self

    def checkpoint(self) -> io.BytesIO:
        file = io.BytesIO()
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "pliant": self.handle.state_dict() if self.handle else None,
            },
            file,
        )
        file.seek(0)
        return file

    def load(self, file: io.BytesIO) -> Run:
        saved = torch.load(file, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.handle is not None:
            self.handle.load_state_dict(saved["pliant"])
        return self

    def bits(self) -> dict[str, Any]:
        """Everything that training depends on, as named tensors and numbers."""
        found: dict[str, Any] = {f"model.{key}": value.clone() for key, value in self.model.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                found[f"optimizer.{index}.{key}"] = value.clone() if isinstance(value, Tensor) else value
        if self.handle is not None:
            flatten("handle", self.handle.state_dict(), found)
        return found


def flatten(prefix: str, tree: Any, found: dict[str, Any]) -> None:
    if isinstance(tree, dict):
        for key, value in tree.items():
            flatten(f"{prefix}.{key}", value, found)
    elif isinstance(tree, (list, tuple)):
        for key, value in enumerate(tree):
            flatten(f"{prefix}.{key}", value, found)
    else:
        found[prefix] = tree


def assert_same_bits(a: dict[str, Any], b: dict[str, Any], only: str = "") -> None:
    keys = [key for key in a if key.startswith(only)]
    assert keys == [key for key in b if key.startswith(only)]
    for key in keys:
        if isinstance(a[key], Tensor):
            assert a[key].dtype == b[key].dtype, key
            assert torch.equal(a[key], b[key]), f"{key} differs by {(a[key].double() - b[key].double()).abs().max()}"
        else:
            assert a[key] == b[key], key


def differ(a: dict[str, Any], b: dict[str, Any], only: str = "model.") -> bool:
    return any(not torch.equal(a[key], b[key]) for key in a if key.startswith(only) and a[key].is_floating_point())


def listed(methods: Any) -> list[Any]:
    return list(methods) if isinstance(methods, list) else [methods]


def supported(method: str, name: str) -> bool:
    """Inside a projected LSTM's cell there is no tap: methods that read activations refuse it (tested by name).

    So do those that need them with their graph, where all are recomputed apart from the forward pass.
    """
    needs = frozenset().union(*(item.needs for item in listed(METHODS[method])))
    if any(isinstance(item, L2EffectiveRank) for item in listed(METHODS[method])):  # it listens to passes of its own
        needs |= {"features"}
    if name in ("mlp_raw", "parameter_products", "tied_autoencoder") and needs & {"features", "mean_abs_gradient"}:
        return False
    return not (name == "lstm_projected" and needs)


def num_hooks(model: nn.Module, optimizer: Optimizer) -> int:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    count = sum(len(getattr(module, name)) for module in model.modules() for name in names)
    count += sum(
        len(p._backward_hooks or ()) + len(getattr(p, "_post_accumulate_grad_hooks", None) or ())
        for p in model.parameters()
    )
    return count + len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)
