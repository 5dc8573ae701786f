"""The live twin races beside a run that it does not change, keeps its budget, and says what the probe says."""

from __future__ import annotations

import copy
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from probe_tools import adam, damaged, everything, inputs, is_same, network, plain
from torch import nn

import pliant
from pliant.errors import IllegalConfiguration, NoEffect
from pliant.probe import RandomLabels, agreement, live_twin
from pliant.probe import live as live_module

TASK = RandomLabels(inputs=inputs(), num_classes=4, batch_size=16)


def train(model, optimizer, live, batches):
    for x, y in batches:
        optimizer.zero_grad()
        noise = 0.01 * torch.randn_like(x) + 0.01 * float(np.random.rand()) + 0.01 * random.random()
        nn.functional.cross_entropy(model(x + noise), y).backward()
        optimizer.step()
        if live is not None:
            live.step((x, y))


def a_run(watched, steps=200):
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    handle = pliant.attach(model, optimizer, pliant.ReDo(tau=0.3, every=30), example_inputs=inputs(4))
    live = live_twin(model, optimizer, every=30, window=20) if watched else None
    train(model, optimizer, live, TASK.batches(0, steps))
    handle_state = handle.state_dict()
    handle.detach()
    return live, everything(model, optimizer), handle_state


def test_the_live_run_is_the_same_to_the_bit():
    live, with_races, handle = a_run(True)
    _, without, handle_without = a_run(False)
    assert len(live.races) >= 5
    assert is_same(with_races, without)
    assert is_same(handle, handle_without)


def test_a_race_is_between_the_network_as_it_is_and_a_fresh_one():
    """By hand: the copy goes on as the live network does, where nothing is random."""
    model = plain()
    optimizer = adam(model.parameters())
    live = live_twin(model, optimizer, every=10, window=10)
    losses = []
    for x, y in TASK.batches(0, 40):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        live.step((x, y))
    assert [race.step for race in live.races] == [10, 20, 30]
    assert [race.live for race in live.races] == [losses[19], losses[29], losses[39]]
    assert live.races[0].fresh > live.races[0].live  # the live network has had ten steps more
    assert live.num_races == 4


def test_who_cannot_learn_any_more_is_behind_and_who_has_learnt_is_ahead():
    dead = damaged(1.0)
    optimizer = adam(dead.parameters())
    live = live_twin(dead, optimizer, start="boundary", every=1, window=60)
    for task in range(4):
        live.task_boundary()
        train(dead, optimizer, live, TASK.batches(task, 60))
    assert live.outcome == "fresh ahead"
    assert live.gap.low > 0
    assert "A fresh network is ahead after 60 steps" in live.answer

    model = plain(seed=5)
    optimizer = adam(model.parameters())
    train(model, optimizer, None, TASK.batches(0, 100))
    live = live_twin(model, optimizer, every=1, window=10)
    train(model, optimizer, live, TASK.batches(0, 60))
    assert live.outcome == "live ahead"
    assert "The live network is ahead" in str(live)


def test_too_few_races_are_said_to_be_too_few():
    model = plain()
    optimizer = adam(model.parameters())
    live = live_twin(model, optimizer, every=5, window=5, min_races=3)
    assert live.outcome == "not enough races yet"
    assert math.isnan(live.cost_share)
    train(model, optimizer, live, TASK.batches(0, 15))
    assert len(live.races) == 2
    assert live.outcome == "not enough races yet"
    assert "2 of 3" in live.answer
    assert "unknown" not in str(live)


class Clock:
    """Time passes when somebody works, and not otherwise."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.mark.parametrize("share", [0.02, 0.2])
def test_races_keep_the_budget(monkeypatch, share):
    clock = Clock()
    monkeypatch.setattr(live_module, "time", SimpleNamespace(perf_counter=clock.perf_counter))

    def objective(net, batch):
        clock.now += 1.5
        return net(batch).square().mean()

    model = nn.Linear(2, 1)
    live = live_twin(model, torch.optim.SGD(model.parameters(), lr=0.1), objective=objective, share=share, window=5)
    shares = []
    for _ in range(3000):
        clock.now += 1.0  # the step of the run
        live.step(torch.ones(1, 2))
        if live._race is None and len(live.races) > 1:
            shares.append(live.cost_share)
    assert max(shares) <= share * 1.01
    assert live.cost_share > share / 2
    expected = share * 3000 / (2 * 1.5 * 5)
    assert expected / 2 < live.num_races <= expected + 1


def test_memory_is_bounded_and_networks_are_thrown_away():
    model = plain()
    live = live_twin(model, adam(model.parameters()), every=1, window=2, recent=4, history=5)
    for batch in TASK.batches(0, 60):
        live.step(batch)
    assert live.num_races > 10
    assert len(live.races) == 5
    assert live.gap.num == 4
    assert len(live.state_dict()["races"]) == 5
    live.task_boundary()
    live.step(TASK.batches(0, 1)[0])
    assert live._race is None or len(live._race.losses[0]) <= 2


def test_a_race_does_not_cross_a_boundary():
    model = plain()
    live = live_twin(model, adam(model.parameters()), start="boundary", every=1, window=10)
    for batch in TASK.batches(0, 5):
        live.step(batch)
    assert live.num_races == 0
    live.task_boundary()
    for batch in TASK.batches(1, 5):
        live.step(batch)
    live.task_boundary()
    for batch in TASK.batches(2, 10):
        live.step(batch)
    assert (live.num_races, live.num_abandoned) == (2, 1)
    assert [race.step for race in live.races] == [10]


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    def setting():
        model = network()
        optimizer = adam(model.parameters())
        return model, optimizer, live_twin(model, optimizer, every=15, window=12)

    batches = TASK.batches(0, 60)
    model, optimizer, live = setting()
    for number, batch in enumerate(batches):
        if number == 21:  # in the middle of a race
            assert live._race is not None
            state = [copy.deepcopy(item.state_dict()) for item in (model, optimizer, live)]
            torch.save([*state, torch.get_rng_state()], tmp_path / "checkpoint")
            others = np.random.get_state(), random.getstate()
        train(model, optimizer, live, [batch])
    *saved, random_state = torch.load(tmp_path / "checkpoint", weights_only=True)
    again = setting()
    for item, part in zip(again, saved, strict=True):
        item.load_state_dict(part)
    torch.set_rng_state(random_state)
    np.random.set_state(others[0])
    random.setstate(others[1])
    train(*again, batches[21:])
    for mine, theirs in zip(again[2].races, live.races, strict=True):
        assert (mine.step, mine.live, mine.fresh, mine.mean_gap) == (
            theirs.step,
            theirs.live,
            theirs.fresh,
            theirs.mean_gap,
        )
    assert len(live.races) == 3
    assert again[2].cost_share > 0
    with pytest.raises(IllegalConfiguration, match="window=12"):
        live_twin(model, optimizer, window=5).load_state_dict(saved[2])


def test_a_copy_that_diverges_is_said_to():
    model = plain()
    with torch.no_grad():
        model[0].weight.mul_(1e4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    live = live_twin(model, optimizer, loss="mse", every=1, window=8)
    for _ in range(30):
        live.step((inputs(8), torch.ones(8, 4)))
    assert all(math.isnan(race.live) for race in live.races)
    assert live.outcome == "not enough races yet"
    assert "diverged in" in live.answer


def test_errors_leave_the_run_alone():
    model, bad = network(), (inputs(8), torch.arange(8))
    optimizer = adam(model.parameters())
    live = live_twin(model, optimizer, every=1, window=4)
    live.step(bad)
    before = everything(model, optimizer)
    with pytest.raises(IllegalConfiguration, match="label 4"):
        live.step(bad)
    assert is_same(everything(model, optimizer), before)


@pytest.mark.parametrize(
    "options",
    [
        {"share": 0.0},
        {"share": 1.5},
        {"every": 0},
        {"window": 0},
        {"start": "never"},
        {"min_races": 1},
        {"min_races": 11},
        {"history": 3},
        {"seed": -1},
    ],
    ids=str,
)
def test_bad_options(options):
    model = plain()
    with pytest.raises(IllegalConfiguration, match=next(iter(options))):
        live_twin(model, adam(model.parameters()), **options)


def test_what_cannot_race_is_refused_at_once():
    model = plain()
    with pytest.raises(IllegalConfiguration, match="owns no parameter"):
        live_twin(model, adam(plain().parameters()))
    model.scale = nn.Parameter(torch.ones(3))
    with pytest.raises(IllegalConfiguration, match="'scale'"):
        live_twin(model, adam(model.parameters()))
    with pytest.raises(NoEffect):
        live_twin(plain().requires_grad_(False), adam(plain().parameters()))


def test_the_live_twin_agrees_with_the_probe():
    """Five networks of which more and more is dead."""
    networks = {f"{share:.0%}": damaged(share) for share in (0.0, 0.4, 0.7, 0.85, 1.0)}
    before = {name: everything(net) for name, net in networks.items()}
    found = agreement(networks, TASK, optimizer=adam, steps=50, seeds=2, races=2)
    assert found.rank_correlation >= 0.8
    assert found.live["100%"] > found.live["0%"] + 0.2
    assert "rank correlation" in str(found)
    assert all(is_same(everything(net), before[name]) for name, net in networks.items())
    with pytest.raises(IllegalConfiguration, match="three networks"):
        agreement({"one": plain()}, TASK, optimizer=adam)
