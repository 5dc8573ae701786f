"""Alarms come soon after something has gone wrong, name it, act if they are asked to, and stay silent otherwise."""

from __future__ import annotations

import math

import pytest
import torch
from monitor_tools import INPUTS, PLANTED, Run, kill, second_layer
from torch.optim.optimizer import _global_optimizer_post_hooks

import pliant
from pliant.mechanisms import MECHANISMS
from pliant.monitor.alarms import RULES, Alarms
from pliant.monitor.watched import DEFAULT, METRICS

EVERY, ONSET = 5, 60


@pytest.mark.parametrize(
    ("mechanism", "name"), [(mechanism, name) for mechanism, (_, names) in PLANTED.items() for name in names]
)
def test_an_alarm_comes_within_two_readings_of_the_onset(mechanism, name):
    run = Run(name, seed=3, every=EVERY).train(ONSET)
    assert run.watch.alarm_log == ()
    PLANTED[mechanism][0](run.model)
    run.train(2 * EVERY)
    found = [alarm for alarm in run.watch.alarms if alarm.mechanism == mechanism]
    assert found, run.watch.alarm_log
    layer, _ = second_layer(run.model)
    where = next(key for key, module in run.model.named_modules() if module is layer)
    assert any(alarm.where in (where, f"{where}.weight", "model") for alarm in found)
    for alarm in found:
        assert ONSET < alarm.step <= ONSET + 2 * EVERY
        assert alarm.metric in run.watch.latest.values
        assert MECHANISMS[mechanism].title.lower() in str(alarm)
        assert alarm.methods == MECHANISMS[mechanism].methods


@pytest.mark.parametrize("name", ["mlp", "tanh", "convnet", "tanh_convnet"])
def test_healthy_runs_raise_none(name):
    """Five seeds of each network, with Adam and with plain gradient descent."""
    for seed in range(5):
        run = Run(name, seed=seed, adam=seed % 2 == 0, lr=2e-3 if seed % 2 == 0 else 0.05, every=10).train(150)
        assert run.watch.alarm_log == (), (name, seed, *map(str, run.watch.alarm_log))
        assert len(run.watch.history) == 15
        run.watch.detach()


def test_the_fresh_twin_speaks_where_there_is_no_past():
    """A network that was broken from the beginning has nothing to compare with but a fresh one."""
    run = Run("mlp")
    with torch.no_grad():
        run.model[2].weight.zero_()
        run.model[2].bias.fill_(-1)
    run.train(10)
    alarm = next(alarm for alarm in run.watch.alarms if alarm.mechanism == "dead_units")
    assert (alarm.where, alarm.against, alarm.step) == ("2", "fresh twin", 10)
    assert alarm.value == 1.0
    assert alarm.reference < 0.4
    assert "freshly initialised" in str(alarm)
    without = Run("mlp", reference=False)
    kill(without.model)
    without.train(10)
    assert not [alarm for alarm in without.watch.alarms if alarm.mechanism == "dead_units"]
    assert "reference=False" in without.watch.why_no_twin
    assert "no freshly initialised twin" in str(without.watch)


def test_an_alarm_is_withdrawn_when_the_cause_is_gone():
    run = Run("mlp", metrics=["dead_fraction"]).train(ONSET)
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    kill(run.model)
    run.train(10)
    assert [alarm.cleared for alarm in run.watch.alarms] == [None]
    run.model.load_state_dict(before)
    run.train(5)
    assert run.watch.alarms, "one good reading is not enough"
    run.train(5)
    assert run.watch.alarms == ()
    assert [alarm.cleared for alarm in run.watch.alarm_log] == [None, ONSET + 20]


# ---- the rules ----
def test_one_rule_per_metric_and_every_name_exists():
    assert len({rule.metric for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.metric in METRICS
        assert rule.metric in MECHANISMS[rule.mechanism].metrics
        assert not rule.besides or rule.besides in METRICS
    assert {"dead_units", "cloned_units", "weight_growth"} <= {r.mechanism for r in RULES if r.metric in DEFAULT}


def feed(alarms: Alarms, metric: str, values: list[float], twin: float | None = None) -> list[tuple[int, int | None]]:
    told = [alarms.take(metric, "fc", value, twin, step) for step, value in enumerate(values)]
    return [(alarm.step, alarm.cleared) for some in told for alarm in some]


def test_hysteresis():
    """Flickering at the line neither raises nor withdraws; what is beyond it never becomes normal."""
    calm = [0.02, 0.0, 0.01] * 4
    assert feed(Alarms(), "dead_fraction", [*calm, *[0.3, 0.0] * 10]) == []
    told = feed(Alarms(), "dead_fraction", [*calm, *[0.5] * 50, *[0.0, 0.5] * 5, 0.0, 0.0])
    assert told == [(13, None), (13, 73)]
    assert feed(Alarms(), "dead_fraction", [*calm, 0.5, 0.5, *[0.13] * 10]) == [(13, None)], "half way is not back"


def test_noisy_metrics_need_more():
    """Six times the spread of the past, in units of the metric or as a factor."""
    generator = torch.Generator().manual_seed(0)
    noise = (0.4 + 0.1 * torch.randn(200, generator=generator)).clamp(0, 1).tolist()
    assert feed(Alarms(), "dead_fraction", noise) == []
    assert feed(Alarms(), "dead_fraction", [*noise[:40], 0.7, 0.7]) == []
    ranks = [20.0 * math.exp(0.5 * x) for x in torch.randn(60, generator=generator).tolist()]
    assert feed(Alarms(), "effective_rank", [*ranks, 4.0, 4.0]) == []
    assert feed(Alarms(), "effective_rank", [*[20.0] * 10, 4.0, 4.0]) == [(11, None)]


def test_what_is_not_finite_is_no_verdict_and_an_alarm_of_its_own():
    alarms = Alarms()
    told = feed(alarms, "dead_fraction", [*[0.0] * 10, 0.9, math.nan, 0.9, math.nan, math.nan])
    assert told == [(12, None)]
    assert len(alarms.active) == 1, "NaN does not withdraw it"
    assert feed(Alarms(), "non_finite_fraction", [0.0, 0.001]) == [(1, None)]


def test_dead_units_are_not_reported_twice():
    run = Run("mlp").train(ONSET)
    kill(run.model)
    run.train(10)
    assert {alarm.mechanism for alarm in run.watch.alarms if alarm.where == "2"} == {"dead_units"}
    assert run.watch.latest.values["frozen_fraction"]["2"] >= 0.5, "although they are frozen, too"


# ---- callbacks ----
def test_a_callback_attaches_a_method_that_brings_the_units_back():
    handles = []

    def protect(alarm: pliant.Alarm) -> None:
        if alarm.mechanism == "dead_units" and not handles:
            method = pliant.ReDo(tau=0.0, every=4)
            handles.append(pliant.attach(run.model, run.optimizer, method, example_inputs=INPUTS[:4]))

    run = Run("mlp", metrics=["dead_fraction"], on_alarm=protect, reference=False).train(ONSET)
    kill(run.model)
    run.train(10)
    assert len(handles) == 1
    assert handles[0].num_steps == 0, "attached after the step that raised the alarm"
    run.train(20)
    assert sum(int(count) for count in handles[0].num_resets.values()) >= 16
    assert run.watch.alarms == ()


def test_a_callback_raises_a_rate():
    rates = [1e-6, 0.05]

    def attach(rate: float) -> pliant.Handle:
        method = pliant.ContinualBackprop(rate, maturity_threshold=2, decay_rate=0.5)
        return pliant.attach(run.model, run.optimizer, method, example_inputs=INPUTS[:4])

    def raise_rate(alarm: pliant.Alarm) -> None:
        if alarm.cleared is None and len(rates) > 1:
            rates.pop(0)
            handles[-1].detach()  # takes hooks off while the optimizer steps
            handles.append(attach(rates[0]))

    run = Run("mlp", metrics=["dead_fraction"], on_alarm=[raise_rate], reference=False)
    handles = [attach(rates[0])]
    run.train(ONSET)
    kill(run.model)
    run.train(20)
    assert [handle.methods[0].replacement_rate for handle in handles] == [1e-6, 0.05]
    assert not any(int(count) for count in handles[0].num_resets.values())
    assert sum(int(count) for count in handles[1].num_resets.values()) > 0


def test_what_a_callback_raises_comes_out_of_the_step():
    def fail(alarm: pliant.Alarm) -> None:
        raise RuntimeError("stop the run")

    run = Run("mlp", metrics=["dead_fraction"], on_alarm=fail).train(ONSET)
    kill(run.model)
    with pytest.raises(RuntimeError, match="stop the run") as caught:
        run.train(10)
    assert "on_alarm" in caught.value.__notes__[0]
    run.train(10)
    run.watch.detach()
    assert not _global_optimizer_post_hooks
