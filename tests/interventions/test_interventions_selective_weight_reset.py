"""Selective weight reinitialisation: which weights, what they become, and what stops it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

import pliant
from pliant import IllegalConfiguration, NoEffect, SelectiveWeightReset, devices
from pliant.bench.ensemble import stack
from pliant.units.init import Init

TINY = 1e-9


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2))


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def attach(model, optimizer, method, size=4, **more):
    return pliant.attach(model, optimizer, method, example_inputs=torch.randn(2, size), **{"seed": 0, **more})


def step(model, optimizer, x):
    optimizer.zero_grad()
    model(x).sum().backward()
    optimizer.step()


def changed(model, before):
    return (model.weight.detach() - torch.tensor([before])).abs().flatten().gt(1e-6).tolist()


WEIGHTS = [1.0, -0.2, 0.5, -3.0, 0.3, 0.1]


class Classifier(nn.Module):
    """A row of weights behind a unit, so that the model has hidden units at all."""

    def __init__(self, weights) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, len(weights)), nn.Linear(len(weights), 1, bias=False)
        with torch.no_grad():
            self.first.weight.zero_()
            self.first.bias.fill_(1.0)
            self.last.weight.copy_(torch.tensor([weights]))

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))

    @property
    def weight(self):
        return self.last.weight


def selected(method, weights=WEIGHTS, features=None, seed=0):
    """Which of the last weights are renewed in one step; their gradients are the features."""
    torch.manual_seed(0)
    model = Classifier(weights)
    if features is not None:
        with torch.no_grad():
            model.first.bias.copy_(torch.tensor(features))
    optimizer = torch.optim.SGD(model.parameters(), lr=TINY)
    handle = attach(model, optimizer, method, 2, seed=seed)
    step(model, optimizer, torch.zeros(1, 2))
    return changed(model, weights), handle


def test_the_threshold_is_a_factor_of_the_mean_utility():
    """Magnitudes have the mean 0.85; products with the gradients are 0.5, 0.8, 0.05, 0.3, 0.3, 0.9, of mean 0.475."""
    method = SelectiveWeightReset(0.3, utility="magnitude", every=1, where="last.*")
    assert selected(method)[0] == [False, True, False, False, False, True]  # at most 0.255
    method = SelectiveWeightReset(0.7, every=1, where="last.*")
    products, handle = selected(method, features=[0.5, 4.0, 0.1, 0.1, 1.0, 9.0])
    assert products == [False, False, True, True, True, False]  # at most 0.3325
    (event,) = handle.events
    assert (event.action, event.tensors, event.step) == ("reset_weights", ("last.weight",), 1)


def test_the_share_is_met_on_average():
    """6 * 0.4 = 2.4 weights: two or three, the smallest ones."""
    counts = []
    method = SelectiveWeightReset(0.4, "proportional", "magnitude", to="mean", every=1, where="last.*")
    for seed in range(200):
        found = [place for place, hit in enumerate(selected(method, seed=seed)[0]) if hit]
        assert found in ([1, 5], [1, 4, 5])
        counts.append(len(found))
    assert sum(counts) / 200 == pytest.approx(2.4, abs=0.12)  # three and a half standard deviations


def test_of_equal_utilities_the_first_are_taken():
    method = SelectiveWeightReset(0.5, "proportional", "magnitude", to="mean", every=1, where="last.*")
    assert selected(method, [1.0] * 6)[0] == [True] * 3 + [False] * 3


def test_new_values_are_what_the_tensor_was_born_with():
    for to in ("resample", "mean"):
        model = mlp()
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(3.0)
        optimizer = torch.optim.Adam(model.parameters(), lr=TINY)
        attach(model, optimizer, SelectiveWeightReset(1.0, "proportional", "magnitude", to, every=1))
        step(model, optimizer, torch.randn(5, 4))
        bound = 4**-0.5 if to == "resample" else 0.0
        assert model[0].weight.abs().max() <= bound
        assert model[0].weight.unique().numel() == (32 if to == "resample" else 1)
        assert (model[1].weight == 1).all()
        assert (model[1].bias == 0).all()


def test_moments_of_renewed_weights_and_of_no_others_are_cleared():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    handle = attach(model, optimizer, SelectiveWeightReset(0.3, "proportional", "magnitude", "mean", every=3))
    for number in range(3):
        step(model, optimizer, torch.randn(5, 4))
        assert bool(list(handle.events)) == (number == 2)
    weight, state = model[0].weight, optimizer.state[model[0].weight]
    assert torch.equal(state["exp_avg"] == 0, weight == 0)
    assert torch.equal(state["exp_avg_sq"] == 0, weight == 0)
    assert int((weight == 0).sum()) in (9, 10)  # 32 * 0.3 = 9.6


def test_directions_are_not_taken_away():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=TINY)
    attach(model, optimizer, SelectiveWeightReset(1.0, "proportional", to="mean", utility="magnitude", every=1))
    step(model, optimizer, torch.randn(5, 4))
    direction = dict(model.named_parameters())["0.parametrizations.weight.original1"]
    assert (direction.norm(dim=1) > 0).all()
    assert model(torch.randn(3, 4)).isfinite().all()


def test_the_row_of_padding_stays():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.out = nn.Embedding(5, 6, padding_idx=0), nn.Linear(6, 1)

        def forward(self, x):
            return self.out(torch.relu(self.embedding(x)).mean(1))

    model, x = Tokens(), torch.randint(0, 5, (8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = SelectiveWeightReset(1.0, "proportional", "magnitude", every=1)
    pliant.attach(model, optimizer, method, example_inputs=x, seed=0)
    step(model, optimizer, x)
    assert (model.embedding.weight[0] == 0).all()
    assert (model.embedding.weight[1:] != 0).all()


def test_a_tensor_without_any_utility_is_left_alone():
    for method in (SelectiveWeightReset(1.0, every=1), SelectiveWeightReset(0.5, "proportional", every=1)):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        handle = attach(model, optimizer, method)
        before = [p.clone() for p in model.parameters()]
        (model(torch.randn(3, 4)).sum() * 0).backward()
        optimizer.step()
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
        assert list(handle.events) == []


def test_tensors_without_a_gradient_and_frozen_ones_are_left_out():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=TINY)
    handle = attach(model, optimizer, SelectiveWeightReset(0.9, every=1))
    model[0].weight.requires_grad_(False)
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer.zero_grad()
    model(torch.randn(3, 4)).sum().backward()
    model[3].bias.grad = None
    optimizer.step()
    (event,) = handle.events
    assert set(event.tensors) <= {"0.bias", "1.weight", "1.bias", "3.weight"}
    assert "3.weight" in event.tensors
    for name in ("0.weight", "3.bias"):
        assert torch.equal(dict(model.named_parameters())[name], before[name])


def test_the_gradient_is_that_of_the_step_under_a_closure_and_over_micro_batches():
    x, found = torch.randn(8, 4), []
    for way in ("plain", "closure", "micro-batches"):
        model = mlp().double()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        units = pliant.find_units(mlp(), torch.randn(2, 4))
        pliant.attach(model, optimizer, SelectiveWeightReset(0.5, every=1), units=units, seed=3)

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = model(x.double()).square().mean()
            loss.backward()
            return loss

        if way == "closure":
            optimizer.step(closure)
        elif way == "plain":
            closure()
            optimizer.step()
        else:
            for part in x.double().chunk(4):
                (model(part).square().mean() / 4).backward()
            optimizer.step()
        found.append([p.clone() for p in model.parameters()])
    for other in found[1:]:
        for p, q in zip(found[0], other, strict=True):
            assert torch.allclose(p, q, rtol=0, atol=1e-12)


def test_the_scale_of_mixed_precision_drops_out():
    found = []
    for scale in (1.0, 2.0**12):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, fused=True)
        attach(model, optimizer, SelectiveWeightReset(0.5, every=1))
        torch.manual_seed(1)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(model(torch.randn(8, 4)).square().mean()).backward()
        scaler.step(optimizer)
        found.append([p.clone() for p in model.parameters()])
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(*found, strict=True))


def test_gradients_that_are_gone_are_an_error():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer, SelectiveWeightReset(every=2))

    def closure():
        loss = model(torch.randn(4, 4)).square().mean()
        loss.backward()
        optimizer.zero_grad()
        return loss

    optimizer.step(closure)
    with pytest.raises(IllegalConfiguration, match=r"gradients of step 2.*closure.*magnitude"):
        optimizer.step(closure)


def test_broken_gradients_stop_the_run_or_spare_their_member():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attach(model, optimizer, SelectiveWeightReset(0.9, every=1))
    model(torch.randn(4, 4)).square().mean().backward()
    model[3].bias.grad[1] = math.inf
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(IllegalConfiguration, match=r"gradients of '3.bias' are not finite.*Nothing was reset"):
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(list(model.parameters())[:5], before[:5], strict=True))

    for method in (SelectiveWeightReset(0.9, every=1), SelectiveWeightReset(0.5, "proportional", every=1)):
        stacked = stack([plain(), plain()])
        optimizer = torch.optim.SGD(stacked.parameters(), lr=TINY)
        units = pliant.find_units(plain(), torch.randn(2, 4))
        pliant.attach(stacked, optimizer, method, units=units, seed=(0, 1))
        before = stacked[2].weight.detach().clone()
        stacked(torch.randn(2, 8, 4)).square().mean().backward()
        stacked[2].weight.grad[1, 0, 0] = math.inf
        optimizer.step()
        moved = ((stacked[2].weight - before).abs() > 1e-6).flatten(1)
        assert moved[0].any()
        assert not moved[1, 1:].any()


@pytest.mark.parametrize(
    "method",
    [
        SelectiveWeightReset(0.5, every=2),
        SelectiveWeightReset(0.123, "proportional", every=1),
        SelectiveWeightReset(0.001, "proportional", "magnitude", every=1),
    ],
)
def test_both_forms_choose_alike(method, monkeypatch):
    """With constants in the place of draws, whose number differs; the chance of the share is the same in both."""
    monkeypatch.setattr(Init, "draw", lambda self, shape, generator: torch.full(shape, self.scale))
    found = []
    for accelerated in (False, True):
        monkeypatch.setattr(devices, "_as_accelerator", accelerated)
        model = mlp()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        attach(model, optimizer, method)
        torch.manual_seed(1)
        start = [p.clone() for p in model.parameters()]
        for _ in range(12):
            step(model, optimizer, torch.randn(6, 4))
        found.append([*model.parameters(), *(state["exp_avg"] for state in optimizer.state.values())])
        assert not torch.equal(start[0], model[0].weight)
    assert all(torch.equal(p, q) for p, q in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"factor": -1.0}, "factor"),
        ({"factor": math.inf}, "factor"),
        ({"factor": math.nan}, "factor"),
        ({"factor": 1.5, "rule": "proportional"}, "factor"),
        ({"rule": "lowest"}, "rule"),
        ({"utility": "activation"}, "utility"),
        ({"to": "zero"}, "to"),
        ({"every": 0}, "every"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(changes, field):
    model = mlp()
    with pytest.raises(IllegalConfiguration, match=f"SelectiveWeightReset: {field}="):
        attach(model, torch.optim.SGD(model.parameters(), lr=0.1), SelectiveWeightReset(**changes))


def test_nothing_to_act_on_and_unknown_beginnings_are_refused():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(NoEffect, match="no parameter matches where='nothing'"):
        attach(model, optimizer, SelectiveWeightReset(where="nothing"))

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.scale = mlp(), nn.Parameter(torch.ones(2))

        def forward(self, x):
            return self.body(x) * self.scale

    model = Scaled()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(IllegalConfiguration, match=r"how 'scale' was initialised is not known"):
        attach(model, optimizer, SelectiveWeightReset())
    attach(model, optimizer, SelectiveWeightReset(where="body.*"))


def test_every_default_has_a_source():
    assert set(SelectiveWeightReset.defaults) == {field.name for field in dataclasses.fields(SelectiveWeightReset)}
    assert SelectiveWeightReset.source
