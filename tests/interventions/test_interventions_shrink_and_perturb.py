"""Where parameters go when they shrink, what the noise is, and when it happens."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pliant
from pliant import L2, IllegalConfiguration, NoEffect, ShrinkAndPerturb


def attached(method, model=None, lr: float = 0.1, **kwargs):
    torch.manual_seed(0)
    if model is None:
        model = nn.Sequential(nn.Linear(4, 300), nn.LayerNorm(300), nn.ReLU(), nn.Linear(300, 200))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return model, optimizer, pliant.attach(model, optimizer, method, example_inputs=torch.randn(6, 4), **kwargs)


def values(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def test_without_noise_weights_go_to_the_origin_and_gains_to_one():
    model, _, handle = attached(ShrinkAndPerturb(0.25, 0.0))
    with torch.no_grad():
        model[1].weight.fill_(3.0)
        model[1].bias.fill_(8.0)
    before = values(model)
    handle.task_boundary()
    after = values(model)
    for name in ("0.weight", "0.bias", "3.weight", "3.bias", "1.bias"):
        assert torch.equal(after[name], before[name] * 0.25), name
    assert torch.allclose(after["1.weight"], torch.full((300,), 1.5))  # 1 + 0.25 * (3 - 1)


@pytest.mark.parametrize(("noise", "deviation"), [("init", 0.5 * (3 * 300) ** -0.5), ("normal", 0.5)])
def test_the_noise_has_the_scale_that_was_asked_for(noise, deviation):
    model, _, handle = attached(ShrinkAndPerturb(1.0, 0.5, noise=noise))
    before = values(model)
    handle.task_boundary()
    change = values(model)["3.weight"] - before["3.weight"]
    assert float(change.std()) == pytest.approx(deviation, rel=0.02)
    assert abs(float(change.mean())) < 4 * deviation / 60_000**0.5
    if noise == "init":
        assert float(change.abs().max()) <= 0.5 * 300**-0.5
        assert torch.equal(model[1].weight, torch.ones(300))  # starts at a constant: no noise
    else:
        assert float(change.abs().max()) > 3 * deviation
        assert float((model[1].weight - 1).detach().std()) == pytest.approx(0.5, rel=0.2)


def test_normal_noise_needs_no_initial_distribution():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.head = nn.Parameter(torch.ones(4, 8)), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(torch.relu(x @ self.w))

    with pytest.raises(IllegalConfiguration, match="how 'w' was initialised is not known"):
        attached(ShrinkAndPerturb(), Bare())
    model, _, handle = attached(ShrinkAndPerturb(0.5, 0.01, noise="normal"), Bare())
    handle.task_boundary()
    assert float(model.w.mean().detach()) == pytest.approx(0.5, abs=0.01)


def test_the_form_of_the_nature_paper_is_l2_and_noise():
    """With plain SGD: the step, then theta * (1 - lr * lambda), then noise; the same as weight decay to first order."""
    model, optimizer, handle = attached([L2(0.1), ShrinkAndPerturb(1.0, 1e-3, every=1, noise="normal")])
    before = values(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    residue = values(model)["3.weight"] - before["3.weight"] * (1 - 0.1 * 0.1)
    assert float(residue.std()) == pytest.approx(1e-3, rel=0.02)
    assert [event.action for event in handle.events] == ["shrink", "add_noise"]


def test_the_padding_row_of_an_embedding_stays_zero():
    model = nn.Sequential(nn.Embedding(5, 8, padding_idx=0), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for noise in ("init", "normal"):
        handle = pliant.attach(
            model, optimizer, ShrinkAndPerturb(0.5, 0.5, noise=noise), example_inputs=torch.tensor([[1, 2]])
        )
        handle.task_boundary()
        handle.detach()
        assert not model[0].weight[0].any()
        assert model[0].weight[1:].all()


def test_where_and_when():
    model, optimizer, handle = attached(ShrinkAndPerturb(0.5, 0.0, every=2, where="3, *.bias"), lr=0.0)
    before = values(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    handle.task_boundary()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in values(model).items())
    optimizer.step()
    after = values(model)
    assert {name for name in after if not torch.equal(after[name], before[name])} == {"0.bias", "3.weight", "3.bias"}
    assert not ShrinkAndPerturb(every=2).needs_boundary
    assert ShrinkAndPerturb().needs_boundary
    assert not ShrinkAndPerturb().null().needs_boundary


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"shrink": 1.5}, IllegalConfiguration, r"shrink=1.5 .* in \[0, 1\]"),
        ({"shrink": -0.1}, IllegalConfiguration, "shrink=-0.1"),
        ({"noise_scale": -1.0}, IllegalConfiguration, "noise_scale=-1.0"),
        ({"every": 0}, IllegalConfiguration, "every=0"),
        ({"noise": "gaussian"}, IllegalConfiguration, "'init' or 'normal'"),
        ({"where": "nothing*"}, NoEffect, r"where='nothing\*'"),
    ],
)
def test_what_cannot_be_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        attached(ShrinkAndPerturb(**options))
