"""What is particular to L2-ER: the gradient of the rank, which inputs, dead layers, several optimizers, cheap forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pliant
from pliant import IllegalConfiguration, NoEffect, NoEffectWarning, metrics
from pliant.bench.ensemble import stack
from pliant.interventions import L2EffectiveRank


def make(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 2)).double()


X = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def attached(method, model=None, x=X, **attach):
    model = make() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return model, optimizer, pliant.attach(model, optimizer, method, example_inputs=x, **attach)


def one_step(model, optimizer, handle, batch=X, x=X):
    """A step of size zero: whatever changes is the method's."""
    handle.batch(batch)
    optimizer.zero_grad()
    out = model(*x) if isinstance(x, tuple) else model(x)
    (out.square().mean() + handle.penalty()).backward()
    optimizer.step()


def features(model, x=X):
    with torch.no_grad():
        return model[:2](x), model[:4](x)


def ranks(model, x=X):
    return sum(float(metrics.effective_rank(act)) for act in features(model, x)) / 2


def test_the_gradient_is_that_of_the_closed_form():
    r"""d erank / d sigma_i = -(erank / sum)(ln p_i + H), and that of a singular value is the product of its vectors."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 4, bias=False), nn.Identity(), nn.Linear(4, 2, bias=False)).double()
    before = model[0].weight.detach().clone()
    model, optimizer, handle = attached(L2EffectiveRank(0.1, l2=0.0, every=1), model)
    act = (X @ before.T).detach()
    left, sigma, right = torch.linalg.svd(act, full_matrices=False)
    p = sigma / sigma.sum()
    entropy = torch.special.entr(p).sum()
    slope = -(entropy.exp() / sigma.sum()) * (p.log() + entropy)
    # The same with the 1e-8 of the authors' code inside the logarithm.
    inner = (p + 1e-8).log() + p / (p + 1e-8)
    rank = (-(p * (p + 1e-8).log()).sum()).exp()
    exact = -(rank / sigma.sum()) * (inner - (p * inner).sum())
    assert (slope - exact).abs().max() < 1e-6 * slope.abs().max()
    wanted = (left * exact) @ right  # in the features
    one_step(model, optimizer, handle)
    found = (model[0].weight - before) / 0.1
    assert (found - wanted.T @ X).abs().max() < 1e-13 * found.abs().max() + 1e-14


def test_it_raises_the_rank_and_decay_alone_does_not():
    found = {}
    for name, method in {
        "singular": L2EffectiveRank(0.02, l2=0.0, every=2),
        "gram": L2EffectiveRank(0.02, l2=0.0, every=2, rank="gram"),
        "projected": L2EffectiveRank(0.02, l2=0.0, every=2, project=8),
        "nothing": L2EffectiveRank(0.0, l2=0.1),
    }.items():
        model, optimizer, handle = attached(method)
        for _ in range(40):
            one_step(model, optimizer, handle)
        found[name] = ranks(model) - ranks(make())
    assert found["nothing"] == 0
    assert all(value > 0.3 for name, value in found.items() if name != "nothing"), found


def test_the_minibatches_of_a_period_are_put_together_and_no_more():
    method = L2EffectiveRank(0.1, l2=0.0, every=2)
    together, apart = attached(method), attached(L2EffectiveRank(0.1, l2=0.0, every=1))
    for part in (X[:4], X[4:8], X[8:10], X[10:]):
        one_step(*together, part, part)
    for part in (X[:8], X[8:]):
        one_step(*apart, part, part)
    for mine, theirs in zip(together[0].parameters(), apart[0].parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-12)
    last, alone = (
        attached(L2EffectiveRank(0.1, l2=0.0, every=2, keep=1)),
        attached(L2EffectiveRank(0.1, l2=0.0, every=1)),
    )
    for part in (X[:4], X[4:]):
        one_step(*last, part, part)
    one_step(*alone, X[4:], X[4:])
    assert all(torch.equal(a, b) for a, b in zip(last[0].parameters(), alone[0].parameters(), strict=True))


def test_which_part_of_a_batch_the_model_takes():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(5, 6).double(), nn.Linear(6, 2).double()

        def forward(self, x, shift, *, scale=1.0):
            return self.b(torch.tanh(self.a(x) + shift) * scale)

    shift = torch.randn(12, 1).double()
    results = []
    for batch in ((X, shift), (X, shift, torch.zeros(12)), [X, shift], {"x": X, "shift": shift, "scale": 1.0, "y": 0}):
        model, optimizer, handle = attached(L2EffectiveRank(0.1, l2=0.0, every=1), Two(), (X, shift))
        one_step(model, optimizer, handle, batch, (X, shift))
        results.append(model.a.weight.detach().clone())
    assert all(torch.equal(result, results[0]) for result in results)
    assert not torch.equal(results[0], Two().a.weight)
    method = L2EffectiveRank(0.1, l2=0.0, every=1, inputs=1)
    model, optimizer, handle = attached(method)
    one_step(model, optimizer, handle, (X, torch.zeros(12)))
    for wrong in (3.0, {"z": X}, (object(), X)):
        with pytest.raises(IllegalConfiguration, match=r"handle.batch|none of which"):
            handle.batch(wrong)


def test_examples_of_several_shapes_cannot_be_put_together():
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU(), nn.Conv1d(3, 1, 1)).double()
    x = torch.randn(3, 2, 6).double()
    model, optimizer, handle = attached(L2EffectiveRank(0.1, every=2), model, x)
    handle.batch(x)
    optimizer.step()
    handle.batch(x[..., :5])
    with pytest.raises(IllegalConfiguration, match="several shapes"):
        optimizer.step()
    handle.detach()
    model, optimizer, handle = attached(L2EffectiveRank(0.1, every=2, keep=1), model, x)
    for part in (x, x[..., :5]):
        handle.batch(part)
        optimizer.step()


def test_a_layer_that_is_almost_silent_gets_a_step_of_any_size_unless_there_is_a_limit():
    moved = {}
    for name, max_norm, scale in (
        ("plain", None, 1.0),
        ("silent", None, 1e-6),
        ("limited", 0.5, 1e-6),
        ("free", 1e9, 1.0),
    ):
        model = make()
        with torch.no_grad():
            model[0].weight.mul_(scale), model[0].bias.mul_(scale)
        before = [item.detach().clone() for item in model.parameters()]
        model, optimizer, handle = attached(L2EffectiveRank(0.1, l2=0.0, every=1, where="0", max_norm=max_norm), model)
        one_step(model, optimizer, handle)
        changes = [after.detach() - start for start, after in zip(before, model.parameters(), strict=True)]
        moved[name] = float(torch.cat([change.flatten() for change in changes]).norm())
    assert moved["silent"] == pytest.approx(1e6 * moved["plain"], rel=1e-3)
    assert moved["limited"] == pytest.approx(0.05, rel=1e-6)
    assert moved["free"] == pytest.approx(moved["plain"], rel=1e-12)
    stacked = stack([make(0), make(1)])
    with torch.no_grad():
        next(iter(stacked.parameters()))[1].mul_(1e-3)
    start = [item.detach().clone() for item in stacked.parameters()]
    optimizer = torch.optim.SGD(stacked.parameters(), lr=0.0)
    units, xs = pliant.find_units(make(), X), torch.stack([X, X])
    method = L2EffectiveRank(0.1, l2=0.0, every=1, max_norm=0.02)
    handle = pliant.attach(stacked, optimizer, method, units=units, seed=(1, 2))
    one_step(stacked, optimizer, handle, (xs, None), xs)
    changes = [after.detach() - before for before, after in zip(start, stacked.parameters(), strict=True)]
    lengths = torch.cat([change.flatten(1) for change in changes], 1).norm(dim=1)
    assert torch.allclose(lengths, torch.tensor([0.002, 0.002]).double(), rtol=1e-6)


@pytest.mark.parametrize("apply", ["step", "loss"])
def test_a_dead_layer_is_reported_once_and_leaves_everything_finite(apply):
    model = make()
    with torch.no_grad():
        model[2].bias.fill_(-100.0)
    before = [item.detach().clone() for item in model[2:4].parameters()]
    model, optimizer, handle = attached(L2EffectiveRank(0.1, l2=0.0, every=1, apply=apply), model)
    with pytest.warns(NoEffectWarning, match="all units of '2' are zero"):
        one_step(model, optimizer, handle)
    one_step(model, optimizer, handle)  # it is not said again
    assert handle.record()["L2EffectiveRank.dead_groups"] == 1
    assert all(item.isfinite().all() for item in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model[2:4].parameters(), strict=True))
    if apply == "step":
        assert not torch.equal(model[0].weight, make()[0].weight), "the other layer goes on"
    with torch.no_grad():
        model[2].bias.zero_()
    one_step(model, optimizer, handle)
    assert handle.record()["L2EffectiveRank.dead_groups"] == 0


def test_a_member_of_a_stack_is_its_single_run():
    models = [make(0), make(1)]
    stacked = stack([make(0), make(1)])
    optimizer = torch.optim.SGD(stacked.parameters(), lr=0.0)
    units = pliant.find_units(make(), X)
    xs = torch.stack([X, X.flip(1)])
    handle = pliant.attach(stacked, optimizer, L2EffectiveRank(0.05, l2=0.0, every=2), units=units, seed=(1, 2))
    for _ in range(4):
        one_step(stacked, optimizer, handle, (xs, None), xs)
    for s, model in enumerate(models):
        single = attached(L2EffectiveRank(0.05, l2=0.0, every=2), model)
        for _ in range(4):
            one_step(*single, xs[s], xs[s])
        for mine, theirs in zip(stacked.parameters(), model.parameters(), strict=True):
            assert torch.allclose(mine[s], theirs, rtol=1e-9, atol=1e-12)


def test_each_optimizer_moves_its_own_parameters_and_buffers_stay():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU()).double()
    model = nn.ModuleDict({"body": body, "head": nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)).double()})

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, x):
            return self.parts["head"](self.parts["body"](x))

    net = Net()
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.0) for part in (model["body"], model["head"])]
    handle = pliant.attach(net, optimizers, L2EffectiveRank(0.1, l2=0.0, every=1), example_inputs=X)
    weights = [model["body"][0].weight.detach().clone(), model["head"][0].weight.detach().clone()]
    handle.batch((X, None))
    net(X).square().mean().backward()
    running = model["body"][1].running_mean.clone()
    for index, optimizer in enumerate(optimizers):
        optimizer.step()
        changed = [
            not torch.equal(model["body"][0].weight, weights[0]),
            not torch.equal(model["head"][0].weight, weights[1]),
        ]
        assert changed == [True, index == 1]
    assert torch.equal(running, model["body"][1].running_mean)


def test_what_cannot_work_is_refused():
    for options, message in (
        ({"strength": -1.0}, "strength"),
        ({"strength": float("nan")}, "strength"),
        ({"l2": -1.0}, "l2"),
        ({"every": 0}, "every"),
        ({"repeats": 0}, "repeats"),
        ({"apply": "gradient"}, "apply"),
        ({"rank": "log-det"}, "rank"),
        ({"project": 0}, "project"),
        ({"keep": 0}, "keep"),
        ({"max_norm": 0.0}, "max_norm"),
        ({"inputs": 0}, "inputs"),
    ):
        with pytest.raises(IllegalConfiguration, match=message):
            attached(L2EffectiveRank(**options))
    with pytest.raises(NoEffect, match="nowhere"):
        attached(L2EffectiveRank(where="nowhere"))
    model, _, handle = attached(L2EffectiveRank(every=1, apply="loss"))
    with pytest.raises(IllegalConfiguration, match="without a training forward"):
        handle.penalty()
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).double()
    x = torch.randn(2, 3, 8).double()
    _, _, handle = attached(L2EffectiveRank(), model, x)
    apart = next(group.name for group in handle.units.select("*") if group.name in handle.units.replays)
    handle.detach()
    with pytest.raises(NoEffect, match="can be listened to with gradients"):
        attached(L2EffectiveRank(where=apart), model, x)
