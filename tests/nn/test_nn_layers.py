"""Activations as layers: values by hand, what a unit owns, resets that keep the function."""

from __future__ import annotations

import math

import pytest
import torch
import zoo
from torch import nn
from zoo import ZOO

import pliant
from pliant import IllegalConfiguration
from pliant.interventions import ContinualBackprop, ReDo
from pliant.nn import CReLU, DeepFourierFeatures, SmoothLeakyReLU


@pytest.mark.parametrize(
    ("layer", "first", "second"),
    [
        (CReLU, lambda x: max(x, 0.0), lambda x: max(-x, 0.0)),
        (DeepFourierFeatures, math.sin, math.cos),
    ],
)
def test_two_halves_along_any_dimension(layer, first, second):
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    for dim in (1, -1):
        out = layer(dim)(x).movedim(dim, 0)
        size = x.shape[dim]
        assert out.shape[0] == 2 * size
        for entry, a, b in zip(
            x.movedim(dim, 0).flatten().tolist(),
            out[:size].flatten().tolist(),
            out[size:].flatten().tolist(),
            strict=True,
        ):
            assert (a, b) == pytest.approx((first(entry), second(entry)), abs=1e-14)
    assert repr(layer(1)) == f"{layer.__name__}(dim=1)"


@pytest.mark.parametrize(("slope", "p", "c"), [(0.1, 3.0, 5.0), (0.0, 1.0, 1.0), (0.5, 2.0, 7.0)])
def test_smooth_leaky_is_its_formula(slope, p, c):
    x = torch.linspace(-8, 8, 33, dtype=torch.float64, requires_grad=True)
    out = SmoothLeakyReLU(slope, p, c)(x)
    for entry, value in zip(x.tolist(), out.tolist(), strict=True):
        assert value == pytest.approx(slope * entry + (1 - slope) * entry / (1 + math.exp(-c * entry / p)), abs=1e-13)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert float(gradient[16]) == pytest.approx((1 + slope) / 2)  # at zero


def test_smooth_leaky_between_its_limits():
    act = SmoothLeakyReLU(0.2)
    x = torch.tensor([-200.0, 200.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(act(x).sum(), x)
    assert torch.allclose(gradient, torch.tensor([0.2, 1.0]))
    assert torch.equal(SmoothLeakyReLU(1.0)(x), x)
    assert torch.allclose(SmoothLeakyReLU(0.0, p=1.0, c=1.0)(x), nn.functional.silu(x))
    for options, message in (
        ({"negative_slope": -0.1}, "negative_slope=-0.1"),
        ({"p": 0.0}, "p=0.0"),
        ({"c": -1.0}, "c="),
    ):
        with pytest.raises(IllegalConfiguration, match=message):
            SmoothLeakyReLU(**options)
    assert "negative_slope=0.2" in repr(act)


@pytest.mark.parametrize("name", ["mlp_crelu", "mlp_fourier"])
def test_a_unit_owns_two_columns_of_its_consumer(name):
    units = pliant.find_units(ZOO[name].model(), ZOO[name].batch())
    tables = {piece.name: piece.table for piece in units["0"].slices}
    assert tables["0.weight"] == tuple((u,) for u in range(8))
    assert tables["2.weight"] == tuple((u, 8 + u) for u in range(8))


def test_a_filter_owns_two_blocks_behind_a_flatten():
    units = pliant.find_units(ZOO["conv_crelu"].model(), ZOO["conv_crelu"].batch())
    (piece,) = units["2"].role("outgoing")
    assert piece.table[1] == (4, 5, 6, 7, 20, 21, 22, 23)


@pytest.mark.parametrize(
    "method", [ReDo(tau=2.0, every=1), ContinualBackprop(0.9, maturity_threshold=0, decide_every=1)]
)
@pytest.mark.parametrize("name", ["mlp_crelu", "mlp_fourier", "conv_crelu"])
def test_a_reset_clears_both_columns_and_says_nothing_at_first(name, method):
    model = ZOO[name].model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    units = pliant.find_units(model, ZOO[name].batch())
    handle = pliant.attach(model, optimizer, method, units=units)
    for number in range(3):
        optimizer.zero_grad()
        zoo.loss_of(model(ZOO[name].batch(8, seed=number))).backward()
        optimizer.step()
    assert len(handle.events) > 0
    for event in handle.events:
        if event.group != list(units)[-1].name:
            continue  # a later reset of the next group draws these columns anew
        (piece,) = units[event.group].role("outgoing")
        columns = [position for unit in event.units for position in piece.table[unit]]
        assert len(columns) >= 2 * len(event.units)
        assert not model.get_parameter(piece.name)[:, columns].any()


def test_the_activity_of_a_unit_counts_both_of_its_outputs():
    """A CReLU unit that is always negative is not dead: its second half speaks."""
    model = nn.Sequential(nn.Linear(2, 3), CReLU(), nn.Linear(6, 1))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([1.0, -2.0, 0.0]))
    units = pliant.find_units(model, torch.ones(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = pliant.attach(model, optimizer, ReDo(tau=0.0, every=1), units=units)
    model(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    assert [event.units for event in handle.events] == [(2,)]
