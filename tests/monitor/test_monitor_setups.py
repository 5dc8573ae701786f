"""Mixed precision, compilation, checkpointing, accumulation, bad values: a defined reading or a clear error."""

from __future__ import annotations

import math

import pytest
import torch
from monitor_tools import DEFAULT, INPUTS, TARGETS, Run, mlp, units_of
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

import pliant
from pliant import metrics

ACTS = ["dead_fraction", "feature_norm", "effective_rank"]


def norm_of(model: nn.Sequential, x: torch.Tensor, stop: int = 4) -> float:
    with torch.no_grad():
        return float(metrics.feature_norm(model[:stop](x)))


# ---- it fails loudly ----
def test_a_loop_in_evaluation_mode_is_an_error_at_the_first_step():
    run = Run("mlp", every=500)
    run.model.eval()
    with pytest.raises(pliant.IllegalConfiguration, match=r"model\.train\(\)"):
        run.train(1)


def test_a_step_that_goes_by_the_model_is_an_error():
    run = Run("mlp", every=500)
    run.called = mlp()  # a copy is trained
    with pytest.raises(pliant.IllegalConfiguration, match="no training forward pass went through the hooks"):
        run.train(1)


def test_evaluation_from_the_middle_of_a_run_on_is_an_error_at_the_next_reading():
    run = Run("mlp").train(7)
    run.model.eval()
    with pytest.raises(pliant.IllegalConfiguration, match=r"model\.train\(\)"):
        run.train(10)
    assert [reading.step for reading in run.watch.history] == [5]


def test_other_tensors_than_at_the_beginning_are_an_error():
    """Replaced with load_state_dict(assign=True), or with their layer: the old ones would be measured for ever."""
    run = Run("mlp", metrics=["weight_growth"]).train(6)
    run.model.load_state_dict({key: value.clone() for key, value in run.model.state_dict().items()}, assign=True)
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.1)
    run.optimizer.register_step_post_hook(lambda *_: run.watch.step())
    with pytest.raises(pliant.IllegalConfiguration, match=r"'0\.weight'.*make it anew"):
        run.train(5)


def test_heads_that_are_not_used_are_listed():
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = (nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1)) for _ in range(2))
            self.both = True

        def forward(self, x):
            return self.left(x) + self.right(x) if self.both else self.left(x)

    model = Heads()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = pliant.monitor(model, optimizer, ACTS, example_inputs=torch.randn(8, 4), every=1, budget=None)
    model.both = False
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
    assert set(watch.latest.values["dead_fraction"]) == {"left.0"}
    assert watch.unheard == ("right.0",)
    assert "not seen so far: right.0" in str(watch)
    watch.detach()


# ---- bad values ----
def test_what_is_not_finite_gives_nan_and_no_healthy_verdict():
    run = Run("mlp", every=1)
    with torch.no_grad():
        run.model[0].weight[0, 0] = math.inf
    run.train(1)
    values = run.watch.latest.values
    for metric in ("dead_fraction", "dormant_fraction", "effective_rank", "cloned_fraction", "feature_norm"):
        assert math.isnan(values[metric]["2"]), metric
    assert math.isnan(values["gradient_norm"]["model"])
    assert values["non_finite_fraction"]["model"] > 0
    assert {alarm.mechanism for alarm in run.watch.alarms} == {"non_finite"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_a_batch_of_one_and_constant_features(dtype):
    torch.manual_seed(0)
    model = mlp().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watch = pliant.monitor(
        model, optimizer, units=units_of("mlp"), every=1, budget=None, reference=INPUTS[:2].to(dtype)
    )
    for x in (INPUTS[:1], INPUTS[:1].expand(8, -1)):
        optimizer.zero_grad()
        cross_entropy(model(x.to(dtype)), TARGETS[: len(x)]).backward()
        optimizer.step()
        values = watch.latest.values
        assert set(values) == set(DEFAULT)
        known = {k: v for k, v in values.items() if k != "cloned_fraction"}  # nothing varies: no verdict
        assert all(math.isfinite(value) for places in known.values() for value in places.values())
        assert values["effective_rank"]["0"] == pytest.approx(1.0, abs=1e-2)
        assert watch.latest.num_samples["0"] == len(x)
    watch.detach()


# ---- mixed precision ----
@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_the_scaler_skips_are_none_and_gradients_are_unscaled(fused):
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
    names = ["gradient_norm", "update_to_weight_ratio", "gradient_dormant_fraction", *ACTS]
    watch = pliant.monitor(model, optimizer, names, units=units_of("mlp"), every=2, budget=None)
    expected, norm = [], math.nan
    for step in range(6):
        x, y = INPUTS[64 * step : 64 * step + 64], TARGETS[64 * step : 64 * step + 64]
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = cross_entropy(model(x), y)
        grads = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        norm = float(metrics.gradient_norm(grads))
        scaler.scale(loss * (math.inf if step in (1, 4) else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        expected.append(norm)
    assert [reading.step for reading in watch.history] == [2, 4]
    first, second = (reading.values for reading in watch.history)
    assert first["gradient_norm"]["model"] == pytest.approx(expected[2], rel=1e-3), "the second real step"
    assert second["gradient_norm"]["model"] == pytest.approx(expected[5], rel=1e-3), "the fourth"
    assert all(ratio > 0 for ratio in second["update_to_weight_ratio"].values())
    assert watch.latest.num_samples == {"0": 64, "2": 64}
    watch.detach()
    assert not optimizer._optimizer_step_pre_hooks


def test_where_reading_back_is_not_free_a_skipped_step_is_noticed_at_the_reading(monkeypatch):
    """On an accelerator the host does not know that a fused optimizer has skipped; the next step is read instead."""
    monkeypatch.setattr("pliant.devices._as_accelerator", True)
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1000)
    watch = pliant.monitor(model, optimizer, ["gradient_norm", *ACTS], units=units_of("mlp"), every=2, budget=None)
    for step in range(4):
        rows = slice(32 * step, 32 * step + 32)
        optimizer.zero_grad()
        loss = cross_entropy(model(INPUTS[rows]), TARGETS[rows])
        scaler.scale(loss * (math.inf if step == 1 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert [reading.step for reading in watch.history] == [3]
    assert watch.latest.num_samples == {"0": 32, "2": 32}
    assert math.isfinite(watch.latest.values["gradient_norm"]["model"])
    watch.detach()


# ---- accumulation ----
def test_micro_batches_are_samples_of_one_step():
    run = Run("mlp", every=1, metrics=[*ACTS, "gradient_norm"])
    for part in (0, 1, 2):
        (
            cross_entropy(run.model(INPUTS[16 * part : 16 * part + 16]), TARGETS[16 * part : 16 * part + 16]) / 3
        ).backward()
    expected, norm = norm_of(run.model, INPUTS[:48]), metrics.gradient_norm([p.grad for p in run.model.parameters()])
    run.optimizer.step()
    assert run.watch.latest.num_samples == {"0": 48, "2": 48}
    assert run.watch.latest.values["feature_norm"]["2"] == pytest.approx(expected, rel=1e-5)
    assert run.watch.latest.values["gradient_norm"]["model"] == pytest.approx(float(norm), rel=1e-5)


def test_a_closure_and_an_evaluation_in_between():
    run = Run("mlp", every=1, metrics=[*ACTS, "gradient_norm", "update_to_weight_ratio"])

    def closure():
        run.optimizer.zero_grad()
        loss = cross_entropy(run.model(INPUTS[:32]), TARGETS[:32])
        loss.backward()
        return loss

    for _ in range(2):
        run.model.eval()
        run.model(100 * INPUTS[:64])
        run.model.train()
        with torch.no_grad():
            run.model(100 * INPUTS[:64])
        expected = norm_of(run.model, INPUTS[:32])
        run.optimizer.step(closure)
        assert run.watch.latest.values["feature_norm"]["2"] == pytest.approx(expected, rel=1e-5)
        assert run.watch.latest.values["gradient_norm"]["model"] > 0
        assert run.watch.latest.values["update_to_weight_ratio"]["0.weight"] > 0


# ---- compilation ----
def test_a_compiled_model_is_one_graph_and_reads_the_same():
    torch._dynamo.reset()
    eager, compiled = Run("mlp", every=4), Run("mlp", every=4)
    torch._dynamo.utils.counters.clear()
    compiled.called = torch.compile(compiled.model, backend="eager", fullgraph=True)
    eager.train(12)
    compiled.train(12)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert [reading.step for reading in compiled.watch.history] == [4, 8, 12]
    of_graphs = {"saturated_fraction", "frozen_fraction"}
    for metric, places in eager.watch.latest.values.items():
        if metric in of_graphs:  # there is no graph to follow, which is said
            assert metric not in compiled.watch.latest.values
            assert set(compiled.watch.without_derivatives) == set(places)
        else:
            assert compiled.watch.latest.values[metric] == pytest.approx(places, rel=1e-4, abs=1e-6), metric
    assert "saturation is not known in: 0, 2" in str(compiled.watch)
    torch._dynamo.reset()


def test_a_compiled_model_is_refused():
    model = mlp()
    with pytest.raises(pliant.IllegalConfiguration, match="compile"):
        pliant.monitor(
            torch.compile(model, backend="eager"), torch.optim.SGD(model.parameters(), lr=0.1), units=units_of("mlp")
        )


# ---- checkpointing ----
class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.stem, self.reentrant = nn.Linear(64, 16), reentrant
        self.block = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 16))
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        h = torch.tanh(self.stem(x))
        wrap = self.reentrant is not None and self.training and torch.is_grad_enabled()
        return self.head(h + (checkpoint(self.block, h, use_reentrant=self.reentrant) if wrap else self.block(h)))


@pytest.mark.parametrize("torch_is_old", [False, True])
def test_checkpointed_forwards_count_once(torch_is_old, monkeypatch):
    if torch_is_old:  # before 2.8 nothing but the stack says that a forward is checkpointed
        monkeypatch.delattr("torch._C._autograd._top_saved_tensors_default_hooks", raising=False)
    readings = {}
    for kind in (None, True, False):
        torch.manual_seed(0)
        model = Checkpointed(kind)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watch = pliant.monitor(model, optimizer, example_inputs=INPUTS[:4], every=2, budget=None, where="block.*")
        for step in range(4):
            optimizer.zero_grad()
            rows = slice(32 * step, 32 * step + 32)
            cross_entropy(model(INPUTS[rows]), TARGETS[rows]).backward()
            optimizer.step()
        readings[kind] = watch.latest
        if kind is False:  # what it has saved for the backward pass can be asked for only once
            assert "checkpointing" in watch.without_derivatives["block.0"]
        else:
            assert watch.without_derivatives == {}
        watch.detach()
    assert readings[None].num_samples == {"block.0": 32}
    for kind in (True, False):
        assert readings[kind].num_samples == readings[None].num_samples
        for metric, places in readings[kind].values.items():
            assert places == pytest.approx(readings[None].values[metric], rel=1e-4, abs=1e-6), (kind, metric)
