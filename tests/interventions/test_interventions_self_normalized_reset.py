"""Self-normalised resets: silences counted by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

import pliant
from pliant import IllegalConfiguration, SelfNormalizedReset, devices
from pliant.units.init import Init

NUM_UNITS = 4


class Steps:
    """One layer of four units, of which an input of k makes the first k fire; training itself changes next to nothing.

    A unit that was reset never fires again (its fresh weights are constants here), unless ``fresh`` says otherwise.
    """

    def __init__(self, method: SelfNormalizedReset, monkeypatch, *, fresh: float = -1.0, **attach) -> None:
        monkeypatch.setattr(Init, "draw", lambda self, shape, generator: torch.full(shape, fresh))
        self.model = nn.Sequential(nn.Linear(1, NUM_UNITS), nn.ReLU(), nn.Linear(NUM_UNITS, 1))
        with torch.no_grad():
            self.model[0].weight.fill_(1.0)
            self.model[0].bias.copy_(-torch.arange(NUM_UNITS) - 0.5)
            self.model[2].weight.fill_(1.0)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-9)
        self.handle = pliant.attach(
            self.model, self.optimizer, method, example_inputs=torch.zeros(2, 1), seed=0, **attach
        )

    def __call__(self, *counts: int) -> Steps:
        for count in counts:
            self.optimizer.zero_grad()
            self.model(torch.tensor([[float(count)], [0.0]])).sum().backward()
            self.optimizer.step()
        return self

    @property
    def state(self):
        return self.handle.state_dict()["state"][0]["0"]

    @property
    def resets(self):
        return [(event.step, event.units) for event in self.handle.events]


def method(**changes) -> SelfNormalizedReset:
    return SelfNormalizedReset(
        **({"percentile": 0.5, "initial_threshold": 3, "max_threshold": 8, "update_every": 100} | changes)
    )


def test_a_silence_as_long_as_the_threshold_ends_in_a_reset(monkeypatch):
    steps = Steps(method(), monkeypatch)
    steps(2, 2, 1, 2, 1, 1)
    assert steps.resets == [(3, (2, 3)), (6, (2, 3))]  # reset units stay silent here; unit 1 was silent for two steps
    assert steps.state["silent"].tolist() == [0, 2, 0, 0]
    steps(1)
    assert steps.resets[2:] == [(7, (1,))]
    assert [row.tolist()[:5] for row in steps.state["gaps"]] == [
        [7, 0, 0, 0, 0],
        [2, 1, 0, 1, 0],
        [0, 0, 0, 2, 0],
        [0, 0, 0, 2, 0],
    ]


def test_a_reset_renews_the_unit_and_leaves_the_function_of_the_network(monkeypatch):
    steps = Steps(method(), monkeypatch, fresh=0.25)
    with torch.no_grad():
        before = steps.model(torch.tensor([[2.0]]))
    steps(2, 2, 2)
    assert steps.model[0].weight.flatten().tolist() == pytest.approx([1, 1, 0.25, 0.25], abs=1e-6)
    assert steps.model[0].bias.tolist() == pytest.approx([-0.5, -1.5, 0, 0], abs=1e-6)
    assert steps.model[2].weight.flatten().tolist() == pytest.approx([1, 1, 0, 0], abs=1e-6)
    with torch.no_grad():
        assert torch.allclose(steps.model(torch.tensor([[2.0]])), before, atol=1e-6)
    assert steps(2, 2, 2, 2).resets == [(3, (2, 3))]  # they fire now


def test_thresholds_follow_the_gaps(monkeypatch):
    """Unit 0 always fires; unit 1 has gaps 1, 1, 2; unit 2 has gaps 4, 4; unit 3 none, since it never fires."""
    steps = Steps(method(initial_threshold=5, update_every=14), monkeypatch)
    steps(3, 1, 2, 1, 2, 3, 1, 1, 2, 2, 3)
    assert steps.resets == [(5, (3,)), (10, (3,))]
    steps(3, 3, 3)
    assert steps.state["threshold"].tolist() == [1, 1, 4, 8]  # expanded to 10, and clipped: its gaps 5, 5 are no less
    assert int(steps.state["gaps"].sum()) == 0
    steps(1)
    assert steps.resets[2:] == [(15, (1,))]  # never silent for more than half as long


def test_the_percentile_is_the_smallest_gap_that_reaches_the_share(monkeypatch):
    """Gaps 1, 1, 2, 3: shares 2/4, 3/4, 4/4."""
    wanted = {0.5: 1, 0.51: 2, 0.75: 2, 0.76: 3, 1.0: 3}
    for percentile, threshold in wanted.items():
        steps = Steps(method(percentile=percentile, initial_threshold=8, update_every=12), monkeypatch)
        steps(1, 0, 1, 0, 1, 0, 0, 1, 0, 0, 0, 1)
        assert int(steps.state["threshold"][0]) == threshold, percentile


def test_a_unit_of_which_nothing_is_known_keeps_its_threshold(monkeypatch):
    steps = Steps(method(initial_threshold=6, update_every=3), monkeypatch)
    steps(1, 1, 1)
    assert steps.state["threshold"].tolist() == [1, 6, 6, 6]
    steps(1, 1)
    assert not steps.resets
    assert steps(1).resets == [(6, (1, 2, 3))]


def test_the_least_threshold_protects_units_that_have_always_fired(monkeypatch):
    steps = Steps(method(min_threshold=2, update_every=3), monkeypatch)
    steps(4, 4, 4)
    assert steps.state["threshold"].tolist() == [2, 2, 2, 2]
    assert steps(3).resets == []
    assert steps(3).resets == [(5, (3,))]


def test_a_share_of_the_samples_can_be_asked_for(monkeypatch):
    """Each batch has two samples, of which the second makes no unit fire."""
    assert Steps(method(min_active=0.49), monkeypatch)(4, 4, 4).resets == []
    assert Steps(method(min_active=0.5), monkeypatch)(4, 4, 4).resets == [(3, (0, 1, 2, 3))]


def test_looking_less_often_is_later_and_loses_no_silence(monkeypatch):
    steps = Steps(method(check_every=5), monkeypatch)
    steps(4, 1, 1, 1, 4)  # a silence of three has come and gone
    assert steps.resets == []
    assert steps.state["gaps"][1].tolist() == [1, 0, 0, 1, 0, 0, 0, 0, 0]
    assert steps(1, 1, 1, 1, 1).resets == [(10, (1, 2, 3))]
    assert steps.state["gaps"][1, 5] == 1
    assert steps(*[0] * 40).state["silent"].max() <= 8


def test_both_forms_decide_alike(monkeypatch):
    counts = [4, 2, 3, 1, 1, 0, 4, 1, 2, 0, 0, 0, 3, 4, 1, 1, 1, 2]
    host = Steps(method(update_every=4), monkeypatch, fresh=0.3)(*counts)
    monkeypatch.setattr(devices, "_as_accelerator", True)
    device = Steps(method(update_every=4), monkeypatch, fresh=0.3)(*counts)
    assert host.resets == device.resets
    assert len(host.resets) > 2
    for key, value in host.state.items():
        assert torch.equal(value, device.state[key])


def test_a_step_that_mixed_precision_skips_is_no_silence(monkeypatch):
    monkeypatch.setattr(devices, "_as_accelerator", True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9, fused=True)
    handle = pliant.attach(model, optimizer, method(), example_inputs=torch.zeros(2, 3))
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([-9.0, 9, -9, 9, -9, 9]))
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    silent = []
    for step in range(4):
        optimizer.zero_grad()
        loss = model(torch.randn(4, 3)).sum()
        scaler.scale(loss * math.inf if step in (1, 2) else loss).backward()
        scaler.step(optimizer)
        scaler.update()
        silent.append(handle.state_dict()["state"][0]["0"]["silent"].tolist())
    assert silent == [[1, 0, 1, 0, 1, 0]] * 3 + [[2, 0, 2, 0, 2, 0]]
    assert handle.state_dict()["state"][0]["0"]["gaps"].sum(-1).tolist() == [0, 2, 0, 2, 0, 2]
    assert not int(handle.num_resets.get("0", torch.tensor(0)).sum())


def test_units_that_a_step_does_not_use_do_not_age_in_it():
    actor, critic = (nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 1)) for _ in range(2))
    optimizer = torch.optim.SGD([*actor.parameters(), *critic.parameters()], lr=1e-3)
    handle = pliant.attach(
        {"actor": actor, "critic": critic},
        optimizer,
        method(initial_threshold=4),
        example_inputs={"actor": torch.zeros(2, 2), "critic": torch.zeros(2, 2)},
    )
    with torch.no_grad():
        actor[0].bias.fill_(-9)
        critic[0].bias.fill_(-9)
    for step in range(6):
        optimizer.zero_grad(set_to_none=True)
        (actor if step % 3 else critic)(torch.randn(4, 2)).sum().backward()
        optimizer.step()
    state = handle.state_dict()["state"][0]
    assert {name: entries["silent"].tolist() for name, entries in state.items()} == {
        "actor.0": [0] * 5,  # after four of its steps they were reset
        "critic.0": [2] * 5,
    }
    assert [(event.step, event.group) for event in handle.events] == [(6, "actor.0")]


def test_broken_activations_stop_the_run_before_they_count_as_silence(monkeypatch):
    steps = Steps(method(), monkeypatch)
    with torch.no_grad():
        steps.model[0].bias[0] = math.nan
    steps(4, 4)
    with pytest.raises(IllegalConfiguration, match=r"not finite at step 3.*Nothing was reset"):
        steps(4)
    assert steps.resets == []


def test_the_null_hears_nothing_and_a_dry_run_writes_nothing(monkeypatch):
    steps = Steps(method().null(), monkeypatch)(0, 0, 0, 0, 0)
    assert steps.resets == []
    assert int(steps.state["silent"].sum()) == 0
    steps = Steps(method(), monkeypatch, dry_run=True)
    weights = [p.clone() for p in steps.model.parameters()]
    steps(2, 2, 2)
    assert steps.resets == [(3, (2, 3))]
    for p, before in zip(steps.model.parameters(), weights, strict=True):
        assert torch.allclose(p, before, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("percentile", 0.0),
        ("percentile", 1.1),
        ("percentile", math.nan),
        ("initial_threshold", 0),
        ("initial_threshold", 9),
        ("min_threshold", 0),
        ("max_threshold", 0),
        ("max_threshold", -5),
        ("expansion", 1.0),
        ("update_every", 0),
        ("min_active", -0.1),
        ("min_active", 1.0),
        ("check_every", 0),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(field, value):
    model = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(IllegalConfiguration, match=f"SelfNormalizedReset: {field}="):
        pliant.attach(model, optimizer, method(**{field: value}), example_inputs=torch.zeros(2, 1))


def test_every_default_has_a_source():
    assert set(SelfNormalizedReset.defaults) == {field.name for field in dataclasses.fields(SelfNormalizedReset)}
    assert SelfNormalizedReset.source
