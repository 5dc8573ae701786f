"""Frozen and cloned units in a diagnosis: never more than the mathematics says, and what would leave."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import Tensor, nn

import pliant
from pliant import manifolds
from pliant.diagnosis import Trap, traps
from pliant.manifolds import Clone
from pliant.mechanisms import MECHANISMS


def data(size: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, 6, generator=generator), torch.randint(3, (size,), generator=generator)


def base(activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return nn.Sequential(nn.Linear(6, 12), activation(), nn.Linear(12, 8), activation(), nn.Linear(8, 3))


@pytest.fixture(scope="module")
def wide() -> Clone:
    return manifolds.clone(base(), 3, data()[0])


def looked(model: nn.Module, kind: str, **more: object) -> Trap | None:
    """The diagnosis's traps of one kind; no twin is needed for them."""
    found = pliant.diagnose(model, data(), twins=0, **more).traps
    return next((trap for trap in found if trap.kind == kind), None)


def test_clones_on_the_manifold_are_held_and_what_leaves_is_measured(wide):
    model = copy.deepcopy(wide.model)
    before = copy.deepcopy(model.state_dict())
    found = looked(model, "cloned", units=wide.units)
    assert found.holds
    assert found.units == {"0": 36, "2": 24}
    assert found.distance <= 1e-7
    assert found.normal_share <= 1e-6
    assert set(found.leaving) == set(traps.TRIED) <= set(MECHANISMS["cloned_units"].methods)
    assert "on the cloning manifold, up to rounding" in found.sentence
    assert "SGD does not" in found.sentence
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_my_own_optimizer_is_measured_too(wide):
    model = copy.deepcopy(wide.model)
    adam = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=0.1)
    found = looked(model, "cloned", units=wide.units, optimizer=adam)
    assert "Adam" in found.leaving  # coupled decay, from a redistributed leaf
    adam = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    assert "AdamW" not in looked(model, "cloned", units=wide.units, optimizer=adam).leaving


def test_near_is_not_trapped(wide):
    model = copy.deepcopy(wide.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1e-3 * parameter.std() * torch.randn_like(parameter))
    found = looked(model, "cloned", units=wide.units)
    assert not found.holds
    assert 1e-4 < found.distance < 1e-2
    assert found.normal_share > 1e-5
    assert "near is not trapped" in found.sentence


def test_copies_that_are_read_differently_are_no_trap():
    model = base()
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = model[0].weight[0], model[0].bias[0]
    found = looked(model, "cloned")
    assert found.units == {"0": 2}
    assert not found.holds
    assert found.distance > 1e-3  # of the cloning manifold; of equal activations on any input it is zero
    assert found.normal_share > 1e-3
    assert found.sentence.endswith("No trap.")


def test_copies_on_a_batch_whose_weights_differ_are_not_called_clones():
    model, (x, y) = base(), data()
    x = x.clone()
    x[:, 1] = x[:, 0]
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = model[0].weight[0], model[0].bias[0]
        model[0].weight[1, 0] += 2
        model[0].weight[1, 1] -= 2
    found = next(trap for trap in pliant.diagnose(model, (x, y), twins=0).traps if trap.kind == "cloned")
    assert found.distance is None
    assert not found.holds
    assert "near no manifold of clones" in found.sentence


def test_dropout_treats_clones_differently():
    layers = list(base())
    model = nn.Sequential(layers[0], layers[1], nn.Dropout(0.3), *layers[2:])
    own = manifolds.clone(model, 2, data()[0])
    found = looked(own.model, "cloned", units=own.units)
    assert not found.holds
    assert found.normal_share > 1e-3
    assert "Dropout (2.p=0.3) treats copies differently" in found.sentence
    assert "2.p=0.3" in found.leaving


def test_what_is_too_large_to_be_looked_at_is_said(wide, monkeypatch):
    monkeypatch.setattr(traps, "MOST_AUDITED", 1)
    found = looked(wide.model, "cloned", units=wide.units)
    assert found.holds
    assert found.leaving == ()
    assert "not measured on a network and batch of this size" in found.sentence
    monkeypatch.setattr(traps, "MOST_SEARCHED", 1)
    found = looked(wide.model, "cloned", units=wide.units)
    assert not found.holds
    assert found.distance is None
    assert "was not looked at" in found.sentence


def test_frozen_units_are_counted_with_their_weights_and_what_still_moves_them():
    model, (x, y) = base(), data()
    with torch.no_grad():
        model[0].bias[:3] = -100
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    nn.functional.cross_entropy(model(x + 100), y).backward()
    optimizer.step()
    with torch.no_grad():
        model[0].bias[:3] = -1e4
        model[0].weight[:3] = 0
    found = looked(model, "frozen", optimizer=optimizer)
    assert found.units["0"] == 3
    assert found.distance == 0
    num = 3 * 7 + 13 * (found.units.get("2", 0))
    assert f"no gradient reaches their {num} incoming weights" in found.sentence
    assert "SGD still moves these weights, by" in found.sentence
    assert "may wake them" in found.sentence
    assert "redo" in found.leaving
    adam = torch.optim.Adam(model.parameters(), weight_decay=0.1)
    assert "is not known" in looked(model, "frozen", optimizer=adam).sentence


def test_a_smooth_activation_that_is_flat_is_slow_and_no_trap():
    model = base(nn.Tanh)
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0] = 0, 4.0
    found = looked(model, "frozen")
    assert found.units == {"0": 1}
    assert not found.holds
    assert 0 < found.distance < 0.05
    assert "That is slow, and no trap." in found.sentence


def test_healthy_networks_show_none_and_pages_show_all(wide):
    assert pliant.diagnose(base(), data(), twins=0).traps == ()
    found = pliant.diagnose(wide.model, data(), twins=1, units=wide.units)
    assert "Frozen and cloned units" in str(found)
    assert "Frozen and cloned units" in found.to_html()
    kept = json.loads(json.dumps(found.to_dict(), allow_nan=False))["traps"]
    assert kept[0]["kind"] == "cloned"
    assert kept[0]["holds"]
