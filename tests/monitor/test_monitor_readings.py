"""What the monitor reads is what the metrics say of the step that was made, in any loop."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
import torch
from monitor_tools import DEFAULT, INPUTS, TARGETS, Run, mlp, units_of
from torch import nn
from torch.nn.functional import cross_entropy

import pliant
from pliant import metrics
from pliant.monitor import METRICS, History, Reading
from pliant.monitor.alarms import RULES
from pliant.monitor.watched import WATCHED

PAGE = Path(__file__).parents[2] / "docs" / "monitor.md"


@pytest.fixture(scope="module")
def step():
    """One plain step with every metric, and what it was made of."""
    torch.manual_seed(1)
    model = mlp(nn.Tanh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = pliant.monitor(model, optimizer, METRICS, units=units_of("tanh"), every=1, budget=None, num_samples=64)
    initial = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        model[0].weight.mul_(2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    x, y = INPUTS[:48], TARGETS[:48]
    with torch.no_grad():
        acts = {"0": model[:2](x), "2": model[:4](x)}
    cross_entropy(model(x), y).backward()
    optimizer.step()
    watch.detach()
    return {"model": model, "watch": watch, "acts": acts, "before": before, "initial": initial}


def test_every_metric_is_read(step):
    reading = step["watch"].latest
    assert set(reading.values) == set(METRICS)
    assert reading.num_samples == {"0": 48, "2": 48}
    assert step["watch"].without_derivatives == {}


@pytest.mark.parametrize("metric", [name for name, item in WATCHED.items() if item.of == "activations"])
def test_metrics_of_activations(step, metric):
    function = WATCHED[metric].function
    for group, act in step["acts"].items():
        assert step["watch"].latest.values[metric][group] == pytest.approx(float(function(act)), abs=1e-6)


def test_metrics_of_derivatives(step):
    for metric in ("saturated_fraction", "frozen_fraction"):
        for group, act in step["acts"].items():
            expected = float(getattr(metrics, metric)(1 - act**2))
            assert step["watch"].latest.values[metric][group] == pytest.approx(expected)


def test_metrics_of_gradients(step):
    model, values = step["model"], step["watch"].latest.values
    grads = [p.grad for p in model.parameters()]
    assert values["gradient_norm"]["model"] == pytest.approx(float(metrics.gradient_norm(grads)), rel=1e-5)
    for group, layer in (("0", model[0]), ("2", model[2])):
        expected = float(metrics.gradient_dormant_fraction(layer.weight.grad.abs().mean(1)))
        assert values["gradient_dormant_fraction"][group] == pytest.approx(expected)


def test_metrics_of_weights(step):
    model, values = step["model"], step["watch"].latest.values
    now = {name: p.detach() for name, p in model.named_parameters() if p.ndim == 2}
    names = list(now)
    assert values["weight_magnitude"]["model"] == pytest.approx(float(metrics.weight_magnitude(now.values())))
    for name in names:
        growth = metrics.weight_growth([now[name]], [step["initial"][name]])
        assert values["weight_growth"][name] == pytest.approx(float(growth), rel=1e-5)
        ratio = metrics.update_to_weight_ratio([step["before"][name]], [now[name]])
        assert values["update_to_weight_ratio"][name] == pytest.approx(float(ratio), rel=1e-4)
    distance = metrics.distance_from_initialisation(now.values(), [step["initial"][name] for name in names])
    assert values["distance_from_initialisation"]["model"] == pytest.approx(float(distance), rel=1e-5)
    assert values["weight_growth"]["0.weight"] > 1.9


def test_readings_come_every_so_many_steps_and_watching_changes_nothing():
    watched, plain = Run("mlp", every=3), Run("mlp", every=10**6, metrics=["weight_magnitude"], reference=False)
    watched.train(10)
    plain.train(10)
    assert [reading.step for reading in watched.watch.history] == [3, 6, 9]
    for mine, theirs in zip(watched.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert not plain.watch.history
    with pytest.raises(pliant.NoEffect, match="after 1000000 steps"):
        _ = plain.watch.latest


def test_detach_leaves_no_hook():
    run = Run("mlp").train(3)
    run.watch.detach()
    assert not run.optimizer._optimizer_step_post_hooks
    assert not run.optimizer._optimizer_step_pre_hooks
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in run.model.modules())
    assert not any(p._post_accumulate_grad_hooks for p in run.model.parameters())
    run.train(10)
    assert run.watch.num_steps == 3


def test_several_models_and_optimizers():
    """Gradients and updates are those of the optimizer that owns the weights, at its own latest step."""
    torch.manual_seed(0)
    nets = {"actor": mlp(), "critic": mlp()}
    optimizers = [torch.optim.SGD(net.parameters(), lr=lr) for net, lr in zip(nets.values(), (0.1, 0.001), strict=True)]
    inputs = dict.fromkeys(nets, INPUTS[:4])
    names = ["gradient_norm", "gradient_dormant_fraction", "update_to_weight_ratio", "effective_rank", "dead_fraction"]
    watch = pliant.monitor(nets, optimizers, names, example_inputs=inputs, every=2, budget=None)
    expected: list[float] = []
    for index in range(4):
        norms = []
        for net, optimizer in reversed(list(zip(nets.values(), optimizers, strict=True))):
            optimizer.zero_grad()
            cross_entropy(net(INPUTS[index * 32 : index * 32 + 32]), TARGETS[index * 32 : index * 32 + 32]).backward()
            norms += [p.grad.clone() for p in net.parameters()]
            optimizer.step()
        expected.append(float(metrics.gradient_norm(norms)))
    values = watch.latest.values
    assert set(values["dead_fraction"]) == set(values["effective_rank"]) == {f"{n}.{i}" for n in nets for i in (0, 2)}
    assert values["gradient_norm"]["model"] == pytest.approx(expected[3], rel=1e-5)
    ratios = values["update_to_weight_ratio"]
    assert ratios["actor.0.weight"] > 20 * ratios["critic.0.weight"] > 0
    assert set(values["gradient_dormant_fraction"]) == set(values["dead_fraction"])
    assert watch.why_no_twin == "", "one twin of both"
    watch.detach()
    assert not any(item._optimizer_step_post_hooks or item._optimizer_step_pre_hooks for item in optimizers)


# ---- padding ----
class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.down = nn.Embedding(10, 6), nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, tokens, attention_mask=None):
        return self.down(torch.relu(self.up(self.table(tokens))))


@pytest.mark.parametrize("compiled", [False, True])
def test_padded_positions_are_no_samples(compiled):
    torch.manual_seed(0)
    model = Tagger()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    tokens = torch.randint(1, 10, (5, 7))
    mask = (torch.arange(7) < torch.tensor([7, 3, 2, 5, 1])[:, None]).long()
    with torch.no_grad():
        act = torch.relu(model.up(model.table(tokens)))[mask.bool()]
    batch = {"tokens": tokens, "attention_mask": mask}
    watch = pliant.monitor(model, optimizer, ["feature_norm"], example_inputs=batch, every=1, budget=None)
    torch._dynamo.reset()
    called = torch.compile(model, backend="eager", fullgraph=True) if compiled else model
    for _ in range(2):
        optimizer.zero_grad()
        called(**batch).square().mean().backward()
        optimizer.step()
    assert watch.latest.num_samples["up"] == int(mask.sum())
    assert watch.latest.values["feature_norm"]["up"] == pytest.approx(float(metrics.feature_norm(act)), rel=1e-5)
    assert watch.with_padding == ()
    watch.detach()
    torch._dynamo.reset()
    everything = pliant.monitor(
        model, optimizer, ["feature_norm"], example_inputs=batch, every=1, budget=None, padding=None
    )
    model(**batch).square().mean().backward()
    optimizer.step()
    assert everything.latest.num_samples["up"] == 35
    everything.detach()
    with pytest.raises(pliant.IllegalConfiguration, match="takes the argument"):
        pliant.monitor(model, optimizer, ["feature_norm"], example_inputs=batch, padding="pad_mask")


# ---- history and state ----
def test_history_is_thinned_and_keeps_both_ends():
    history = History(20)
    for step in range(1, 1001):
        rare = {"effective_rank": {"fc": 1.0}} if step % 100 == 0 else {}
        history.append(Reading(step, {"dead_fraction": {"fc": 0.0}, **rare}, {"fc": 4}))
        assert len(history) <= 20
        assert history[-1].step == step
        assert history[0].step == 1
    steps = [reading.step for reading in history]
    assert steps == sorted(set(steps))
    assert steps[-10:] == list(range(991, 1001)), "the latest ones are all there"
    assert max(b - a for a, b in zip([1, *steps], [*steps, 1000], strict=True)) <= 4 * 1000 / 20, "no part is missing"
    assert len(history.series("effective_rank", "fc")[0]) >= 4, "rare readings are kept in preference to others"
    short = History(4)
    short.load_state_dict(history.state_dict())
    assert (len(short), short[-1].step) == (4, 1000)
    same = History(20)
    same.load_state_dict(history.state_dict())
    for step in range(1001, 1100):
        for one in (same, history):
            one.append(Reading(step, {}, {}))
    assert list(same) == list(history)
    both_ways = range(-len(history), len(history))
    assert [history[i] for i in both_ways] == [list(history)[i] for i in both_ways]


def test_resuming_goes_on_as_if_nothing_had_happened(tmp_path):
    """The same readings, references and alarms; the state is plain, so it loads without unpickling objects."""
    names = [*DEFAULT, "distance_from_initialisation"]
    whole = Run("mlp", metrics=names).train(30)
    cut = Run("mlp", metrics=names).train(17)
    buffer = io.BytesIO()
    torch.save([cut.model.state_dict(), cut.optimizer.state_dict(), cut.watch.state_dict()], buffer)
    buffer.seek(0)
    model, optimizer, state = torch.load(buffer, weights_only=True)
    rest = Run("mlp", metrics=names, reference=False, seed=0)
    rest.model.load_state_dict(model)
    rest.optimizer.load_state_dict(optimizer)
    rest.watch.load_state_dict(state)
    rest.done = 17
    rest.train(13)
    assert [reading.step for reading in rest.watch.history] == [5, 10, 15, 20, 25, 30]
    assert list(rest.watch.history) == list(whole.watch.history)
    assert rest.watch.current == whole.watch.current
    mine, theirs = rest.watch.state_dict()["alarms"], whole.watch.state_dict()["alarms"]
    assert mine == theirs
    assert mine["series"]
    other = Run("convnet")
    with pytest.raises(pliant.IllegalConfiguration, match="unit groups"):
        other.watch.load_state_dict(state)
    with pytest.raises(pliant.IllegalConfiguration, match="version"):
        rest.watch.load_state_dict({**state, "version": 0})


# ---- what cannot be ----
def test_what_does_not_fit_is_refused():
    model, x = mlp(), INPUTS[:4]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for wrong, match in (
        ({"metrics": ["efective_rank"]}, "nearest: effective_rank"),
        ({"budget": 0.0}, "budget is a share"),
        ({"budget": float("nan")}, "budget is a share"),
        ({"every": 0}, "at least 1"),
        ({"reference": torch.randn(4, 5)}, "given as reference fails in training mode"),
    ):
        with pytest.raises(pliant.IllegalConfiguration, match=match):
            pliant.monitor(model, optimizer, **{"example_inputs": x, **wrong})
    for nothing in ({"metrics": []}, {"where": "no_such_group"}):
        with pytest.raises(pliant.NoEffect):
            pliant.monitor(model, optimizer, **{"example_inputs": x, **nothing})
    assert not optimizer._optimizer_step_post_hooks
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_twin_that_cannot_be_drawn_is_said_and_only_an_error_if_asked_for():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.up, self.down = nn.Parameter(torch.ones(4, 4)), nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.down(torch.relu(self.up(x @ self.scale)))

    model = Own()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = pliant.monitor(model, optimizer, ["dead_fraction"], example_inputs=torch.randn(3, 4))
    assert "'scale'" in watch.why_no_twin
    watch.detach()
    with pytest.raises(pliant.IllegalConfiguration, match="'scale'"):
        pliant.monitor(model, optimizer, example_inputs=torch.randn(3, 4), reference=torch.randn(3, 4))
    assert not optimizer._optimizer_step_post_hooks


# ---- the page ----
def test_the_snippets_of_the_page_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    snippets = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(snippets) == 3
    for snippet in snippets:
        exec(compile(snippet, PAGE.name, "exec"), names)
    out = capsys.readouterr().out
    assert out.endswith("1 70\nstep,metric,where,value\n")
    assert "dead units in '0'" in out


def test_the_page_lists_the_lines_and_the_metrics():
    text = PAGE.read_text(encoding="utf-8")
    for rule in RULES:
        assert any(f"`{rule.metric}`" in line and "|" in line for line in text.splitlines()), rule.metric
    for metric in METRICS:
        assert f"`{metric}`" in text, metric
