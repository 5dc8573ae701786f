"""A stacked model is its members: bitwise where the arithmetic allows; what cannot be proven equal is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pliant.bench.ensemble import StackedLinear, stack, unstack
from pliant.bench.models import MLP
from pliant.bench.objective import logit_gradient
from pliant.errors import IllegalConfiguration, NotYetSupported

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, foreach=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3, foreach=True),
}


def members(count=3, hidden=(100, 100, 100), dtype=torch.float32):
    return [MLP(64, 10, hidden, generator=torch.Generator().manual_seed(s)).to(dtype) for s in range(count)]


def train(single_models, make_optimizer, batch, dtype=torch.float32, steps=60):
    """Train singly with autograd's cross-entropy, and stacked with the engine's gradient; return both."""
    rng = torch.Generator().manual_seed(9)
    count = len(single_models)
    x = torch.rand(steps, count, batch, 64, generator=rng, dtype=dtype)
    y = torch.randint(0, 10, (steps, count, batch), generator=rng)
    stacked = stack(single_models)
    optimizer = make_optimizer(stacked.parameters())
    for t in range(steps):
        target = torch.zeros(count, batch, 10, dtype=dtype).scatter_(2, y[t].unsqueeze(-1), -1.0 / batch)
        logits = stacked(x[t])
        optimizer.zero_grad()
        logits.backward(logit_gradient(logits.detach(), target))
        optimizer.step()
    for s, model in enumerate(single_models):
        optimizer = make_optimizer(model.parameters())
        for t in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(x[t, s]), y[t, s]).backward()
            optimizer.step()
    return stacked


@pytest.mark.parametrize("batch", [1, 16, 32])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_stacked_training_is_bitwise_single_training(name, batch):
    models = members()
    stacked = train(models, OPTIMIZERS[name], batch)
    for s, model in enumerate(models):
        for key, value in unstack(stacked, s).items():
            assert torch.equal(value, model.state_dict()[key]), f"{name}, batch {batch}: {key} of member {s}"


@pytest.mark.parametrize("batch", [3, 50])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_stacked_training_in_float64_is_single_training(name, batch):
    models = members(hidden=(17, 5), dtype=torch.float64)
    stacked = train(models, OPTIMIZERS[name], batch, torch.float64)
    for s, model in enumerate(models):
        for key, value in unstack(stacked, s).items():
            torch.testing.assert_close(value, model.state_dict()[key], rtol=1e-6, atol=1e-9)


def test_names_are_those_of_the_single_model_and_members_load_back():
    models = members()
    stacked = stack(models)
    assert [name for name, _ in stacked.named_parameters()] == [name for name, _ in models[0].named_parameters()]
    assert [name for name, _ in stacked.named_modules()] == [name for name, _ in models[0].named_modules()]
    fresh = MLP(64, 10)
    fresh.load_state_dict(unstack(stacked, 2))
    x = torch.rand(4, 64)
    assert torch.equal(fresh(x), models[2](x))
    with torch.no_grad():
        stacked.head.weight.zero_()
    assert float(models[0].head.weight.detach().abs().sum()) > 0


def test_inputs_may_have_more_axes():
    layers = [nn.Linear(3, 2) for _ in range(2)]
    x = torch.rand(2, 4, 5, 3)
    got = StackedLinear(layers)(x)
    torch.testing.assert_close(got, torch.stack([layer(x[s]) for s, layer in enumerate(layers)]))
    with pytest.raises(IllegalConfiguration, match="should be"):
        StackedLinear(layers)(torch.rand(4, 3))


def test_the_gradient_is_right():
    layer = StackedLinear([nn.Linear(3, 2, dtype=torch.float64) for _ in range(2)])
    x = torch.rand(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(layer, (x,))


class Mean(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.layer(x) * self.scale


def tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), "LayerNorm"),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), "outputs differ"),
        (lambda: nn.Sequential(nn.Linear(4, 4), Mean()), "outputs differ"),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.Softmax(0)), "outputs differ"),
        (lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Flatten(-2), nn.Linear(4, 4)), "fails on inputs"),
        (Own, "scale"),
        (tied, "shares"),
        (lambda: nn.Sequential(nn.ReLU()), "no nn.Linear"),
    ],
)
def test_what_cannot_be_proven_equal_is_refused(make, says):
    with pytest.raises(NotYetSupported, match=says):
        stack([make() for _ in range(2)])


def test_a_reused_layer_is_stacked_once():
    def make():
        layer = nn.Linear(4, 4)
        return nn.Sequential(layer, nn.Tanh(), layer)

    models = [make() for _ in range(2)]
    x = torch.rand(2, 3, 4)
    torch.testing.assert_close(stack(models)(x)[1], models[1](x[1]))
    assert len(list(stack(models).parameters())) == 2


def test_models_that_differ_are_refused():
    with pytest.raises(IllegalConfiguration, match="no models"):
        stack([])
    with pytest.raises(IllegalConfiguration, match="not built alike"):
        stack([MLP(4, 2, (3,)), MLP(4, 2, (3, 3))])
    with pytest.raises(IllegalConfiguration, match="different shape"):
        stack([MLP(4, 2, (3,)), MLP(4, 2, (5,))])
    hooked = MLP(4, 2, (3,))
    hooked.head.register_forward_hook(lambda *_: None)
    with pytest.raises(IllegalConfiguration, match="hooks"):
        stack([hooked])


def test_mlp_initialisation():
    model = MLP(64, 10, (100, 50), generator=torch.Generator().manual_seed(0))
    for layer in model:
        if isinstance(layer, nn.Linear):
            bound = (6 / layer.in_features) ** 0.5
            assert 0.95 * bound < float(layer.weight.detach().abs().max()) <= bound
            assert float(layer.bias.detach().abs().max()) == 0
    with pytest.raises(IllegalConfiguration, match="hidden"):
        MLP(4, 2, ())
