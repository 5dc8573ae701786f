"""Convolutional members, side by side as grouped convolutions, are single networks, also under interventions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pliant
from pliant.bench.engine import Members, can_stack
from pliant.bench.ensemble import needs_device, stack, unstack
from pliant.bench.experiment import Experiment
from pliant.bench.models import ConvNet, ResNet
from pliant.bench.stacked import StackedBatchNorm, StackedConv2d, StackedLinear
from pliant.errors import IllegalConfiguration, NotYetSupported

SEEDS = (3, 14)
IMAGE = (3, 10, 10)
MODELS = {
    "convnet": lambda: ConvNet(300, 3, channels=(4, 6), kernels=(3, 3), hidden=(8,), image=IMAGE),
    "resnet": lambda: ResNet(300, 3, width=4, blocks=(1, 1), image=IMAGE),
}
METHODS = {
    "continual_backprop": pliant.ContinualBackprop(0.05, maturity_threshold=5, decay_rate=0.9),
    "l2_and_noise": [pliant.L2(0.01), pliant.ShrinkAndPerturb(0.99, 0.01, every=7)],
    "redo": pliant.ReDo(tau=0.6, every=10),
}


def build(name, seed):
    torch.manual_seed(seed)
    return MODELS[name]().double()


def batch(member, step):
    rng = torch.Generator().manual_seed(1000 * member + step)
    return torch.randn(6, *IMAGE, generator=rng, dtype=torch.float64), torch.randint(0, 3, (6,), generator=rng)


def attached(model, optimizer, method, units, seed):
    return pliant.attach(model, optimizer, method, units=units, seed=seed, init=getattr(model, "init", None))


@pytest.fixture(scope="module")
def graphs():
    return {name: pliant.find_units(build(name, 0), torch.randn(4, *IMAGE).double()) for name in MODELS}


CASES = [("convnet", method) for method in METHODS] + [("resnet", "continual_backprop")]


@pytest.mark.parametrize(("name", "method"), CASES)
def test_a_member_is_its_single_run(name, method, graphs):
    """A hundred float64 steps of momentum to 1e-6, with the same resets, and a batch normalisation's own statistics."""
    units = graphs[name]
    singles = [build(name, seed) for seed in SEEDS]
    model = stack(singles, torch.zeros(2, *IMAGE))
    runs = []
    for one, seed in [(model, SEEDS), *zip(singles, SEEDS, strict=True)]:
        optimizer = torch.optim.SGD(one.parameters(), lr=0.01, momentum=0.9)
        runs.append((one, optimizer, attached(one, optimizer, METHODS[method], units, seed)))
    for step in range(100):
        parts = [batch(member, step) for member in range(2)]
        for number, (one, optimizer, handle) in enumerate(runs):
            optimizer.zero_grad()
            if number:
                F.cross_entropy(one(parts[number - 1][0]), parts[number - 1][1]).backward()
            else:
                outputs = one(torch.stack([x for x, _ in parts]))
                sum(F.cross_entropy(out, y) for out, (_, y) in zip(outputs, parts, strict=True)).backward()
            optimizer.step()
            if step == 50:
                handle.task_boundary()
    for member, single in enumerate(singles):
        for key, value in unstack(model, member).items():
            torch.testing.assert_close(
                value, single.state_dict()[key], rtol=0, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}"
            )
        counts = [
            {n: int(t[member]) for n, t in runs[0][2].num_resets.items()},
            {n: int(t) for n, t in runs[member + 1][2].num_resets.items()},
        ]
        assert counts[0] == counts[1]
    if method != "l2_and_noise":
        assert sum(int(total.sum()) for total in runs[0][2].num_resets.values()) > 0


def test_evaluation_uses_each_members_own_statistics(graphs):
    singles = [build("resnet", seed) for seed in SEEDS]
    model = stack(singles, torch.zeros(2, *IMAGE))
    x = torch.stack([batch(member, 0)[0] for member in range(2)])
    for member, single in enumerate(singles):
        single(3 * x[member])
    model(3 * x)
    model.eval()
    for member, single in enumerate(singles):
        torch.testing.assert_close(model(x)[member], single.eval()(x[member]))
    found = pliant.stats.capture(model, graphs["resnet"], x, members=2)
    alone = pliant.stats.capture(singles[1], graphs["resnet"], x[1])
    for name, act in alone.items():
        torch.testing.assert_close(found[name][1], act)


def test_the_models_are_the_published_ones():
    assert sum(p.numel() for p in ConvNet(3 * 32 * 32, 2).parameters()) == 177_218
    model = ResNet(3 * 32 * 32, 100)
    # ResNet-18 with 100 outputs has 11,220,132 parameters; 4,800 biases of convolutions come on top
    assert sum(p.numel() for p in model.parameters()) == 11_220_132 + 4_800
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 100)
    weight = model.blocks[2].conv1.weight.detach()
    assert float(weight.std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert float(model.head.weight.detach().std()) == pytest.approx((1 / 512) ** 0.5, rel=0.02)


@pytest.mark.parametrize("name", MODELS)
def test_flat_examples_are_images(name):
    model = build(name, 0).eval()
    x = batch(0, 0)[0]
    torch.testing.assert_close(model(x.flatten(1)), model(x))


def test_a_reset_draws_from_the_models_own_initialisation(graphs):
    model = build("resnet", 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attached(model, optimizer, pliant.FreshStart(), graphs["resnet"], 0)
    handle.task_boundary()
    weight = model.blocks[0].conv2.weight.detach()
    assert float(weight.std()) == pytest.approx((2 / (4 * 9)) ** 0.5, rel=0.2)
    assert not model.blocks[0].conv2.bias.detach().any()
    assert (model.bn.weight.detach() == 1).all()


def test_impossible_networks_are_refused():
    with pytest.raises(IllegalConfiguration, match="channels, height and width"):
        ConvNet(784, 2)
    with pytest.raises(IllegalConfiguration, match="too small"):
        ConvNet(192, 2, image=(3, 8, 8))
    with pytest.raises(IllegalConfiguration, match="as many kernels"):
        ConvNet(3072, 2, channels=(4, 4))
    with pytest.raises(IllegalConfiguration, match="positive"):
        ResNet(3072, 2, width=0)


def test_convnets_are_stacked_on_an_accelerator_only():
    assert needs_device(build("convnet", 0))
    experiment = Experiment(
        "task_zoo:Pictures",
        model=("convnet", {"channels": (4,), "kernels": (3,), "hidden": (8,), "image": (3, 8, 8)}),
        num_tasks=2,
    )
    assert not can_stack(experiment)
    assert can_stack(experiment, "cuda")
    members = Members(experiment, (5,), None, stacked=False)
    members.run()
    together = Members(experiment, (4, 5), None, stacked=True)
    together.run()
    for name, values in members.series_of(0).items():
        assert together.series_of(1)[name] == pytest.approx(values, abs=1e-5), name


def test_layers_that_differ_are_refused():
    with pytest.raises(IllegalConfiguration, match="different shape"):
        StackedConv2d([nn.Conv2d(3, 4, 3), nn.Conv2d(3, 5, 3)])
    with pytest.raises(IllegalConfiguration, match="padding_mode"):
        StackedConv2d([nn.Conv2d(3, 4, 3, padding_mode="circular")] * 2)
    with pytest.raises(IllegalConfiguration, match="cumulative"):
        StackedBatchNorm([nn.BatchNorm2d(3, momentum=None)] * 2)
    for layer, x in (
        (StackedConv2d([nn.Conv2d(3, 4, 3)] * 2), torch.rand(2, 3, 8, 8)),
        (StackedBatchNorm([nn.BatchNorm2d(3)] * 2), torch.rand(3, 4, 3, 8)),
        (StackedLinear([nn.Linear(3, 4)] * 2), torch.rand(2, 3)),
    ):
        with pytest.raises(IllegalConfiguration, match="should be"):
            layer(x)
    with pytest.raises(NotYetSupported, match="LayerNorm"):
        stack([nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(2)])
