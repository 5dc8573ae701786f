"""What is particular to spectral regularisation: the iteration, the targets, and when state moves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pliant
from pliant import IllegalConfiguration, NoEffect
from pliant.interventions import SpectralRegularisation


def attached(method, model=None, x=None, lr=0.1):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)).double() if model is None else model
    x = torch.randn(8, 6).double() if x is None else x
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return model, optimizer, pliant.attach(model, optimizer, method, example_inputs=x), x


def step(model, optimizer, handle, x, scale=0.0):
    optimizer.zero_grad()
    (scale * model(x).square().mean() + handle.penalty()).backward()
    optimizer.step()


@pytest.mark.parametrize("start", [0.3, 3.0])
@pytest.mark.parametrize("apply", ["decoupled", "gradient", "loss"])
def test_the_largest_singular_value_goes_to_one_and_the_others_stay(apply, start):
    model, optimizer, handle, x = attached(SpectralRegularisation(0.05, apply=apply))
    with torch.no_grad():
        left, _, right = torch.linalg.svd(model[0].weight, full_matrices=False)
        model[0].weight.copy_(left * torch.tensor([start, 0.2, 0.15, 0.1, 0.05, 0.02]) @ right)
        model[0].bias.fill_(0.5)
    for _ in range(300):
        step(model, optimizer, handle, x)
    values = torch.linalg.svdvals(model[0].weight.detach())
    assert values[0] == pytest.approx(1, abs=0.01)
    assert values[1] == pytest.approx(0.2, abs=0.05)
    assert model[0].bias.norm() < 1.5 * 0.9


def test_the_vectors_find_the_largest_singular_value():
    model, optimizer, handle, x = attached(SpectralRegularisation(1e-9))
    for _ in range(200):
        step(model, optimizer, handle, x)
    memory = handle._memory[0].parameters
    for name in ("0.weight", "2.weight"):
        u, v = memory["left"][name], memory["right"][name]
        weight = model.get_parameter(name).detach()
        assert u.shape == weight.shape[:1]
        assert v.shape == weight.shape[1:]
        assert u @ weight @ v == pytest.approx(float(torch.linalg.matrix_norm(weight, ord=2)), rel=1e-6)


def test_gains_go_to_one_and_slopes_to_where_they_began():
    model = nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9), nn.PReLU(), nn.Linear(9, 3)).double()
    model, optimizer, handle, x = attached(SpectralRegularisation(0.5), model)
    with torch.no_grad():
        model[1].weight.fill_(1.7)
        model[2].weight.fill_(0.9)
    for _ in range(100):
        step(model, optimizer, handle, x)
    assert torch.allclose(model[1].weight, torch.ones(9).double(), atol=1e-3)
    assert float(model[2].weight.detach()) == pytest.approx(0.25, abs=1e-3)


def test_penalty_is_pure_and_evaluation_moves_nothing():
    model, optimizer, handle, x = attached(SpectralRegularisation(0.1, apply="loss"))
    before = handle.state_dict()["memory"]["0"]["parameters"]["right"]["0.weight"]
    assert handle.penalty().item() == handle.penalty().item()
    with torch.no_grad():
        model(x)
    assert torch.equal(before, handle.state_dict()["memory"]["0"]["parameters"]["right"]["0.weight"])
    step(model, optimizer, handle, x)
    assert not torch.equal(before, handle.state_dict()["memory"]["0"]["parameters"]["right"]["0.weight"])


def test_now_and_then_is_as_strong_on_average():
    drops = []
    for every in (1, 5):
        model, optimizer, handle, x = attached(SpectralRegularisation(1e-3, every=every), lr=0.01)
        with torch.no_grad():
            model[0].weight.mul_(5)
            _, _, right = torch.linalg.svd(model[0].weight, full_matrices=False)
            handle._memory[0].parameters["right"]["0.weight"].copy_(right[0])
        start = torch.linalg.matrix_norm(model[0].weight, ord=2).item()
        for number in range(50):
            before = model[0].weight.detach().clone()
            step(model, optimizer, handle, x)
            assert torch.equal(before, model[0].weight) == ((number + 1) % every != 0)
        drops.append(start - torch.linalg.matrix_norm(model[0].weight, ord=2).item())
    assert drops[0] == pytest.approx(drops[1], rel=0.1)


def test_what_cannot_work_is_refused():
    for wrong in (SpectralRegularisation(k=0.5), SpectralRegularisation(every=0)):
        with pytest.raises(IllegalConfiguration, match="out of range"):
            attached(wrong)

    class Scaled(nn.Linear):
        def __init__(self):
            super().__init__(6, 9)
            self.scale = nn.Parameter(torch.ones(9))

        def forward(self, x):
            return super().forward(x) * self.scale

    with pytest.raises(IllegalConfiguration, match=r"'0\.scale' was initialised is not known"):
        attached(SpectralRegularisation(), nn.Sequential(Scaled(), nn.ReLU(), nn.Linear(9, 3)).double())
    with pytest.raises(NoEffect):
        attached(SpectralRegularisation(where="nothing"))
