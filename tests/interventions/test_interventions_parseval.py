"""What is particular to Parseval regularisation: which layers, which rows, what it converges to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pliant
from pliant import IllegalConfiguration, NoEffect
from pliant.interventions import Parseval


def attached(method, model=None, x=None):
    torch.manual_seed(0)
    model = (
        nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
        if model is None
        else model
    )
    x = torch.randn(8, 12) if x is None else x
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer, pliant.attach(model, optimizer, method, example_inputs=x), x


def run(model, optimizer, handle, x, steps=300):
    for _ in range(steps):
        optimizer.zero_grad()
        (0.0 * model(x).square().mean() + handle.penalty()).backward()
        optimizer.step()


@pytest.mark.parametrize("apply", ["decoupled", "gradient", "loss"])
def test_hidden_rows_become_orthogonal_and_the_head_stays(apply):
    model, optimizer, handle, x = attached(Parseval(0.2, apply=apply, scale=1.5, reference_width=None))
    head, biases = model[4].weight.detach().clone(), [model[i].bias.detach().clone() for i in (0, 2)]
    run(model, optimizer, handle, x)
    for index in (0, 2):
        rows = model[index].weight.detach()
        assert torch.allclose(rows @ rows.T, 1.5 * torch.eye(len(rows)), atol=1e-3)
    assert torch.equal(head, model[4].weight)
    assert all(torch.equal(b, model[i].bias) for b, i in zip(biases, (0, 2), strict=True))


def test_normalised_rows_become_orthogonal_and_keep_their_lengths():
    model, optimizer, handle, x = attached(Parseval(0.5, normalise_rows=True, reference_width=None))
    lengths = model[0].weight.detach().norm(dim=1)
    run(model, optimizer, handle, x, 500)
    rows = model[0].weight.detach()
    unit = rows / rows.norm(dim=1, keepdim=True)
    assert torch.allclose(unit @ unit.T, torch.eye(6), atol=1e-3)
    assert ((rows.norm(dim=1) / lengths) < 1.3).all()  # a step along the sphere leaves it in second order only
    method, ctx = handle.methods[0], handle._contexts[0][0]
    with torch.no_grad():
        model[0].weight.normal_()
        gradient = method.gradient(ctx, {"0.weight": model[0].weight})[0]
    assert gradient.abs().max() > 0.1
    assert (gradient * model[0].weight).sum(1).abs().max() < 1e-5


def test_the_rows_of_a_transposed_matrix_are_its_columns():
    class Raw(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Parameter(torch.randn(12, 6) * 0.2)
            self.head = nn.Parameter(torch.randn(6, 3) * 0.2)

        def forward(self, x):
            return torch.relu(x @ self.first) @ self.head

    model, optimizer, handle, x = attached(Parseval(0.2, scale=1.0, reference_width=None), Raw())
    head = model.head.detach().clone()
    run(model, optimizer, handle, x)
    assert torch.allclose(model.first.T @ model.first, torch.eye(6), atol=1e-3)
    assert torch.equal(head, model.head)


def test_a_kernels_row_is_everything_that_makes_one_channel():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    model, optimizer, handle, x = attached(
        Parseval(0.2, scale=1.0, reference_width=None), model, torch.randn(8, 2, 4, 4)
    )
    run(model, optimizer, handle, x)
    rows = model[0].weight.detach().flatten(1)
    assert torch.allclose(rows @ rows.T, torch.eye(4), atol=1e-3)


def test_the_width_enters_as_in_the_published_code():
    values = []
    for width in (None, 12):
        method = Parseval(1.0, apply="loss", reference_width=width, where="0.*")
        values.append(attached(method)[2].penalty().item())
    assert values[1] == pytest.approx(values[0] * (12 / 6) ** 2)


def test_what_cannot_work_is_refused():
    for wrong in (Parseval(scale=0.0), Parseval(reference_width=0), Parseval(every=0)):
        with pytest.raises(IllegalConfiguration, match="out of range"):
            attached(wrong)
    with pytest.raises(NoEffect, match="no parameter that it can act on"):
        attached(Parseval(where="4.weight"))  # the head
    with pytest.raises(NoEffect, match="no parameter that it can act on"):
        attached(Parseval(where="*bias"))
