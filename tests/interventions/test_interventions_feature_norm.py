"""What is particular to the feature norm: which features, how samples count, what it needs of the loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pliant
from pliant import IllegalConfiguration, NoEffect
from pliant.bench.ensemble import stack
from pliant.interventions import FeatureNorm


def make():
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def attached(method, model=None, x=None, **attach):
    torch.manual_seed(0)
    model = make() if model is None else model
    x = torch.randn(8, 5).double() if x is None else x
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer, pliant.attach(model, optimizer, method, example_inputs=x, **attach), x


def features(model, x, layers):
    return model[:layers](x).square().sum(1).mean()


def test_the_penultimate_features_and_others_by_name():
    for where, wanted in ((None, (4,)), ("2", (4,)), ("0", (2,)), ("*", (2, 4))):
        model, _, handle, x = attached(FeatureNorm(0.5, where))
        model(x)
        assert handle.penalty().item() == pytest.approx(0.5 * sum(features(model, x, n).item() for n in wanted))


def test_several_forwards_count_by_their_samples_and_go_with_the_backward_pass():
    model, optimizer, handle, x = attached(FeatureNorm(1.0))
    (model(x[:2]).sum() + model(x[2:]).sum() + handle.penalty()).backward()
    optimizer.step()
    for part in (x[:3], x):
        optimizer.zero_grad()
        out = model(part)
        term = handle.penalty()
        assert term.item() == pytest.approx(features(model, part, 4).item())
        (out.sum() + term).backward()  # afterwards they are gone: the second part would see the first
    model(x[:2])
    model(x[2:])
    assert handle.penalty().item() == pytest.approx(features(model, x, 4).item())


def test_positions_of_a_feature_map_are_samples():
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Conv2d(3, 4, 1)).double()
    model, _, handle, x = attached(FeatureNorm(1.0), model, torch.randn(5, 2, 4, 4).double())
    model(x)
    assert handle.penalty().item() == pytest.approx(model[:2](x).square().sum(1).mean().item())


def test_members_add_up():
    torch.manual_seed(1)
    models = [make(), make()]
    stacked = stack(models)
    optimizer = torch.optim.SGD(stacked.parameters(), lr=0.1)
    x = torch.randn(2, 8, 5).double()
    units = pliant.find_units(make(), x[0])
    handle = pliant.attach(stacked, optimizer, FeatureNorm(1.0), units=units, seed=(1, 2))
    stacked(x)
    wanted = sum(features(model, x[s], 4).item() for s, model in enumerate(models))
    assert handle.penalty().item() == pytest.approx(wanted)


def test_it_shrinks_the_features():
    lengths = []
    for strength in (0.0, 0.1):
        model, optimizer, handle, x = attached(FeatureNorm(strength))
        for _ in range(30):
            optimizer.zero_grad()
            ((model(x) - 1).square().mean() + handle.penalty()).backward()
            optimizer.step()
        lengths.append(features(model, x, 4).item())
    assert lengths[1] < 0.5 * lengths[0]


def test_what_cannot_work_is_refused():
    with pytest.raises(IllegalConfiguration, match="strength"):
        attached(FeatureNorm(-1.0))
    model, _, handle, x = attached(FeatureNorm())
    with pytest.raises(IllegalConfiguration, match="without a training forward"):
        handle.penalty()
    model.eval()
    model(x)
    with pytest.raises(IllegalConfiguration, match="without a training forward"):
        handle.penalty()

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.one, self.two, self.head = (
                nn.Linear(5, 6), nn.Linear(6, 7), nn.Linear(7, 6), nn.Linear(6, 2)
            )  # fmt: skip

        def forward(self, x):
            h = self.stem(x)
            return self.head(h + self.two(torch.relu(self.one(h))))

    with pytest.raises(NoEffect, match="feeds an output directly"):
        attached(FeatureNorm(), Residual().double())
    name = next(group.name for group in pliant.find_units(Residual(), torch.randn(2, 5)) if group.site == "residual")
    model, _, handle, x = attached(FeatureNorm(1.0, name), Residual().double())
    model(x)
    with torch.no_grad():  # what is not trained on is not heard; a stream is read where it begins
        wanted = model.stem(x).square().sum(1).mean().item()
    assert handle.penalty().item() == pytest.approx(wanted)


def test_heads_without_a_tensor_of_the_forward_are_left_out():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    model, _, handle, x = attached(FeatureNorm(1.0, "*"), model, torch.randn(2, 3, 8))
    assert any(group.name in handle.units.replays for group in handle.units.select("*"))
    model(x)
    assert handle.penalty().item() > 0
    apart = next(group.name for group in handle.units.select("*") if group.name in handle.units.replays)
    handle.detach()
    with pytest.raises(NoEffect, match="recomputed apart"):
        attached(FeatureNorm(1.0, apart), model, x)
