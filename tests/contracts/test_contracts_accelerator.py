"""The forms that run on accelerators, run on a CPU: the same resets, and not one look at a value on the device.

``pliant.devices`` decides where values may be read back; here it says "nowhere", so that the paths of a GPU are
covered on machines that have none. What only a GPU can show is in ``test_contracts_cuda.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import pytest
import torch
import zoo
from contract_tools import METHODS, Run, assert_same_bits
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pliant import devices
from pliant.interventions.base import Intervention
from pliant.units.init import Init

# CUDA kernels whose result has a size that depends on values, or that hand a value to Python: all wait for the device
WAITS = {
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim"),
    *("unique_consecutive", "bincount", "repeat_interleave.Tensor", "lift_fresh", "histc"),
}


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.setattr(devices, "_as_accelerator", True)


class NoReadback(TorchDispatchMode):
    """Raises at every operation that would make the host wait for a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in WAITS or str(func).removeprefix("aten.") in WAITS:
            raise AssertionError(f"{func} waits for the device")
        if name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"):
            masks = [leaf for leaf in pytree.tree_leaves(args[1]) if isinstance(leaf, torch.Tensor)]
            assert all(mask.dtype not in (torch.bool, torch.uint8) for mask in masks), f"{func} with a boolean mask"
        return func(*args, **(kwargs or {}))


def test_the_guard_finds_what_it_is_for():
    x = torch.randn(4)
    for wait in (
        lambda: float(x.sum()),
        lambda: bool((x > 0).any()),
        lambda: x[x > 0],
        lambda: x.masked_select(x > 0),
        lambda: (x > 0).nonzero(),
        lambda: x.clone().__setitem__(x > 0, torch.ones(1)),
        lambda: torch.tensor([1.0, 2.0]),
        lambda: x.repeat_interleave(torch.arange(4)),
    ):
        with pytest.raises(AssertionError), NoReadback():
            wait()


@pytest.mark.parametrize("optimizer", ["sgd_fused", "adam_fused"])
@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits_for_the_device(method, optimizer, accelerator):
    """Warm-up may (tables go to the device once); after that no value is read, decisions and resets included."""
    run = Run("conv_bn_flatten", optimizer, METHODS[method])
    run.train(0, 7)
    batches = [run.batch(step) for step in range(7, 13)]
    with NoReadback():
        for x in batches:
            run.optimizer.zero_grad()
            run.model(x).square().mean().backward()
            run.optimizer.step()
            run.handle.task_boundary()
    if method in ("continual_backprop", "redo"):
        assert sum(int(total) for total in run.handle.num_resets.values()) > 0


@final
@dataclass(frozen=True)
class Silence(Intervention):
    """Zeroes the units with small outgoing weights, halves others: edits without randomness."""

    where: str = "*"

    def null(self):
        return self

    def unit_pattern(self):
        return self.where

    def after_step(self, ctx):
        for group in ctx.groups():
            size = ctx.magnitude(group)
            order = size.argsort(dim=-1).argsort(dim=-1)
            at = (ctx.clock.step + torch.arange(2)) % group.size
            ctx.edit.reset(group, (order == at[0]) | (order == at[1]), incoming="zero", at_most=3, reason="small")
            ctx.edit.scale(group, torch.where(order == at[0], 0.5, 1.0), role="incoming")


@pytest.mark.parametrize("optimizer", ["sgd_momentum", "adam_amsgrad", "rmsprop"])
@pytest.mark.parametrize("name", ["mlp", "conv_bn_flatten", "transformer_post_norm"])
def test_edits_without_randomness_are_the_same_bits(name, optimizer, monkeypatch):
    host = Run(name, optimizer, Silence()).train()
    monkeypatch.setattr(devices, "_as_accelerator", True)
    device = Run(name, optimizer, Silence()).train()
    assert len(host.handle.events) > 0
    assert list(host.handle.events) == list(device.handle.events)
    assert_same_bits(host.bits(), device.bits())


@pytest.mark.parametrize(
    "method",
    ["continual_backprop", "continual_backprop_exact", "redo", "regrama", "self_normalized_reset", "several"],
)
@pytest.mark.parametrize("name", ["mlp", "conv_bn_flatten", "unet"])
def test_decisions_are_the_same_bits(name, method, monkeypatch):
    """Draws differ where fewer units are reset than there might be; with constants in their place nothing does."""
    monkeypatch.setattr(Init, "draw", lambda self, shape, generator: torch.full(shape, self.scale))
    host = Run(name, "adam", METHODS[method]).train()
    monkeypatch.setattr(devices, "_as_accelerator", True)
    device = Run(name, "adam", METHODS[method]).train()
    assert len(host.handle.events) > 0
    assert list(host.handle.events) == list(device.handle.events)
    ends = [run.bits() for run in (host, device)]
    for end in ends:  # a device counts edits that may have hit no unit
        del end["handle.num_edits"]
    assert_same_bits(*ends)


@pytest.mark.parametrize("optimizer", ["sgd_fused", "adam_fused"])
@pytest.mark.parametrize(
    "method",
    [
        *("continual_backprop", "redo", "l2", "shrink_and_perturb", "several"),
        *("regrama", "selective_weight_reset", "selective_weight_reset_magnitude", "self_normalized_reset"),
    ],
)
def test_a_skipped_step_changes_nothing_although_the_host_does_not_know(method, optimizer, accelerator):
    run = Run("mlp", optimizer, METHODS[method])
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=1000)
    for step in range(9):
        run.optimizer.zero_grad()
        loss = zoo.loss_of(run.model(run.batch(step)))
        overflows = step in (2, 5)  # the third and sixth step, at which the periodic methods are due
        scaler.scale(loss * math.inf if overflows else loss).backward()
        before = run.bits()
        resets = {name: total.clone() for name, total in run.handle.num_resets.items()}
        scaler.step(run.optimizer)
        scaler.update()
        if overflows:
            after = run.bits()
            for key in before:
                if key.startswith(("model.", "optimizer.")):
                    assert torch.equal(before[key], after[key]), key
            assert all(torch.equal(total, resets[name]) for name, total in run.handle.num_resets.items() if resets)
    for per_group in run.handle.state_dict()["state"].values():
        for entries in per_group.values():
            if "age" in entries:
                assert int(entries["age"].max()) <= 7  # seven real steps


def test_a_run_on_the_device_path_resumes_bit_by_bit(accelerator):
    for method in ("continual_backprop", "redo", "selective_weight_reset", "self_normalized_reset"):
        whole = Run("conv_bn_flatten", "adam", METHODS[method]).train()
        cut = Run("conv_bn_flatten", "adam", METHODS[method]).train(0, 4)
        rest = Run("conv_bn_flatten", "adam", METHODS[method], seed=1, handle_seed=8).load(cut.checkpoint()).train(4)
        assert_same_bits(whole.bits(), rest.bits())
