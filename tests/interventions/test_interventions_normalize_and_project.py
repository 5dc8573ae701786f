"""Normalize-and-Project: exact projections, what is projected and what is not, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import pliant
from pliant import IllegalConfiguration, NoEffect, NoEffectWarning
from pliant.bench.ensemble import stack
from pliant.interventions import L2, NormalizeAndProject


def normed() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 2))


def attach(model, method, lr=0.5, **more):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return optimizer, pliant.attach(model, optimizer, method, example_inputs=torch.ones(2, 4), **more)


def step(model, optimizer, seed=0):
    torch.manual_seed(seed)
    optimizer.zero_grad()
    (model(torch.randn(8, 4)) - torch.randn(8, 2)).square().mean().backward()
    optimizer.step()


def test_weights_keep_their_norm_and_their_direction():
    model, plain = normed(), normed()
    optimizer, _ = attach(model, NormalizeAndProject(affine="keep"))
    norms = [float(model[at].weight.detach().norm()) for at in (0, 3)]
    step(model, optimizer)
    step(plain, torch.optim.SGD(plain.parameters(), lr=0.5))
    for at, norm in zip((0, 3), norms, strict=True):
        assert float(plain[at].weight.detach().norm()) != pytest.approx(norm, rel=1e-4)
        assert float(model[at].weight.detach().norm()) == pytest.approx(norm, rel=1e-6)
        free = plain[at].weight.detach()
        assert torch.allclose(model[at].weight, free * (norm / free.norm()), atol=1e-6)
    for name in ("0.bias", "1.weight", "1.bias", "3.bias"):
        assert torch.equal(model.get_parameter(name), plain.get_parameter(name)), name


def test_a_norm_behind_the_layer_keeps_the_function():
    """With a norm behind it and no bias, a layer's scale is no part of the function."""
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.LayerNorm(6, eps=0.0), nn.ReLU(), nn.Linear(6, 2)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.randn(5, 4).double()
    pliant.attach(model, optimizer, NormalizeAndProject(affine="keep", where="0.*"), example_inputs=x, measure_change=x)
    with torch.no_grad():
        model[0].weight.mul_(7)
    before = model(x).detach()
    model(x).sum().backward()
    optimizer.step()
    assert torch.allclose(model(x), before, atol=1e-12)
    assert float(model[0].weight.detach().norm()) < 7


def test_gains_and_offsets_by_hand():
    for affine, gain, offset in (
        ("project", torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.0, 4.0, 0.0])),
        ("decay", torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.0, 4.0, 0.0])),
        ("keep", torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.0, 4.0, 0.0])),
    ):
        model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.ReLU(), nn.Linear(3, 2))
        optimizer, _ = attach(model, NormalizeAndProject(affine=affine, decay=0.25), lr=0.0)
        with torch.no_grad():
            model[1].weight.copy_(gain)
            model[1].bias.copy_(offset)
        step(model, optimizer)
        if affine == "project":  # (3, 4) has norm 5; three gains
            gain, offset = gain * math.sqrt(3) / 5, offset * math.sqrt(3) / 5
        elif affine == "decay":
            gain, offset = torch.tensor([2.5, 0.25, 0.25]), offset * 0.75
        assert torch.allclose(model[1].weight, gain), affine
        assert torch.allclose(model[1].bias, offset), affine


class OnePlusNorm(nn.Module):
    """Its gain is one plus a parameter that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return nn.functional.rms_norm(x, (3,)) * (1 + self.weight)


def test_a_gain_that_is_one_plus_its_parameter():
    model = nn.Sequential(nn.Linear(4, 3), OnePlusNorm(), nn.ReLU(), nn.Linear(3, 2))
    optimizer, _ = attach(model, NormalizeAndProject(affine="project"), lr=0.0, init={"1.weight": "zeros"})
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([2.0, -1.0, 3.0]))  # gains 3, 0, 4
    step(model, optimizer)
    assert torch.allclose(1 + model[1].weight, torch.tensor([3.0, 0.0, 4.0]) * math.sqrt(3) / 5)


def test_kernels_are_projected_as_a_whole_and_norm_gains_of_any_shape_are_not_weights():
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.LayerNorm([3, 3, 3]), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    pliant.attach(model, optimizer, NormalizeAndProject(affine="keep"), example_inputs=torch.ones(2, 1, 4, 4))
    norm = float(model[0].weight.detach().norm())
    model(torch.randn(4, 1, 4, 4)).square().mean().backward()
    optimizer.step()
    assert float(model[0].weight.detach().norm()) == pytest.approx(norm, rel=1e-6)
    assert float(model[1].weight.detach().norm()) != pytest.approx(math.sqrt(27), rel=1e-6)


def test_a_weight_of_zeros_and_one_that_is_not_finite_stay_as_they_are():
    model = normed()
    optimizer, _ = attach(model, NormalizeAndProject(affine="keep"), lr=0.0)
    with torch.no_grad():
        model[0].weight.zero_()
        model[3].weight[0, 0] = math.inf
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert not model[0].weight.any()
    assert model[3].weight[0, 1:].isfinite().all()


def test_the_norm_is_that_of_the_moment_of_attaching_and_is_saved():
    model = normed()
    with torch.no_grad():
        model[0].weight.mul_(3)
    norm = float(model[0].weight.detach().norm())
    optimizer, handle = attach(model, NormalizeAndProject())
    state = handle.state_dict()["memory"]["0"]["parameters"]["norm"]
    assert state["0.weight"].shape == (1, 1)
    assert float(state["0.weight"]) == pytest.approx(norm)
    step(model, optimizer)
    assert float(model[0].weight.detach().norm()) == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_norms_are_no_less_exact_than_float32(dtype):
    model = normed().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    units = pliant.find_units(normed(), torch.ones(2, 4))
    handle = pliant.attach(model, optimizer, NormalizeAndProject(), units=units)
    state = handle.state_dict()["memory"]["0"]["parameters"]["norm"]["0.weight"]
    assert state.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert float(state) == pytest.approx(float(model[0].weight.detach().double().norm()), rel=1e-6)


def test_members_have_norms_of_their_own():
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        models.append(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)))
    units = pliant.find_units(models[0], torch.ones(2, 4))
    stacked = stack(models)
    optimizer = torch.optim.SGD(stacked.parameters(), lr=0.5)
    method = NormalizeAndProject(unnormalised="ignore")
    pliant.attach(stacked, optimizer, method, units=units, seed=(0, 1, 2))
    before = stacked[0].weight.detach().flatten(1).norm(dim=1)
    assert len({round(float(norm), 4) for norm in before}) == 3
    stacked(torch.randn(3, 5, 4)).square().mean().backward()
    optimizer.step()
    assert torch.allclose(stacked[0].weight.detach().flatten(1).norm(dim=1), before, rtol=1e-6)


def test_parameters_that_come_later_keep_the_norm_they_come_with():
    model = normed()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.5)
    pliant.attach(model, optimizer, NormalizeAndProject(affine="keep"), example_inputs=torch.ones(2, 4))
    step(model, optimizer)
    optimizer.add_param_group({"params": [model[3].weight]})
    norm = float(model[3].weight.detach().norm())
    step(model, optimizer, 1)
    first = float(model[3].weight.detach().norm())  # adopted at this step, after it
    step(model, optimizer, 2)
    assert first != pytest.approx(norm, rel=1e-5)
    assert float(model[3].weight.detach().norm()) == pytest.approx(first, rel=1e-6)


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


def test_a_model_without_norms():
    with pytest.raises(IllegalConfiguration, match=r"no normalisation layer.*unnormalised='ignore'"):
        attach(plain(), NormalizeAndProject())
    with pytest.warns(NoEffectWarning, match="no normalisation layer"):
        attach(plain(), NormalizeAndProject(unnormalised="warn"))
    attach(plain(), NormalizeAndProject(unnormalised="ignore"))


def test_what_is_refused():
    for options, message in (
        ({"every": 0}, "every=0"),
        ({"affine": "both"}, "affine='both'"),
        ({"decay": 1.5}, "decay=1.5"),
        ({"unnormalised": "maybe"}, "unnormalised='maybe'"),
    ):
        with pytest.raises(IllegalConfiguration, match=message):
            attach(normed(), NormalizeAndProject(**options))
    with pytest.raises(NoEffect, match=r"where='\*bias'"):
        attach(normed(), NormalizeAndProject(where="*bias"))
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 2))
    model[1].register_parameter("weight", None)
    with pytest.raises(IllegalConfiguration, match=r"'1\.bias' has no gain"):
        attach(model, NormalizeAndProject(affine="project"))


def test_l2_on_the_same_weights_is_refused():
    with pytest.raises(IllegalConfiguration, match=r"L2.*gives every weight back"):
        attach(normed(), [L2(1e-3), NormalizeAndProject()])
    attach(normed(), [L2(0.0), NormalizeAndProject()])
    attach(normed(), [L2(1e-3), NormalizeAndProject().null()])
    attach(normed(), [L2(1e-3, where="3.*"), NormalizeAndProject(where="0.*")])


def test_only_what_undoes_the_projection_is_a_conflict():
    nap = pliant.NormalizeAndProject()
    assert nap.conflicts_with(pliant.L2(0.1)) is not None
    assert nap.conflicts_with(pliant.L2(0.1, apply="gradient")) is None  # it turns the step, not the norm
    assert nap.conflicts_with(pliant.WeightClipping()) is not None
    assert nap.conflicts_with(pliant.WeightClipping().null()) is None
    assert nap.null().conflicts_with(pliant.L2(0.1)) is None
