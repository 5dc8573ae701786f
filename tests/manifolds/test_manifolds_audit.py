"""Which settings leave the cloning manifold: the measured table, and what breaks the symmetry."""

from __future__ import annotations

import copy
import math
from functools import cache

import pytest
import torch
from nets import tanh_net
from torch import Tensor, nn

import pliant
from pliant import manifolds
from pliant.errors import IllegalConfiguration
from pliant.manifolds import Clone, Confinement

STEPS = 150


@cache
def tripled() -> Clone:
    own = tanh_net()
    return manifolds.clone(own.model, 3, own.batch, units=own.units)


@cache
def leaf() -> nn.Module:
    model = copy.deepcopy(tripled().model)
    model.load_state_dict(manifolds.redistributed(model, tripled().partition), strict=False)
    return model


def minibatch(step: int):
    generator = torch.Generator().manual_seed(step)
    rows = torch.randint(0, 64, (16,), generator=generator)
    target = torch.randn(16, 2, generator=generator, dtype=torch.float64)  # labels of pure noise
    return tanh_net().batch[rows], lambda output: (output - target).square().mean()


def trained(start: nn.Module, make, steps: int = STEPS) -> Confinement:
    return manifolds.confinement(start, tripled().partition, minibatch, loss, make, steps=steps)


def loss(output: Tensor) -> Tensor:
    return (output - 1).square().mean()


o = torch.optim
STAY = {
    "SGD": lambda m: o.SGD(m.parameters(), lr=0.05),
    "nesterov": lambda m: o.SGD(m.parameters(), lr=0.05, momentum=0.9, nesterov=True),
    "RMSprop": lambda m: o.RMSprop(m.parameters(), lr=1e-3),
    "Adagrad": lambda m: o.Adagrad(m.parameters(), lr=1e-2),
    "Rprop": lambda m: o.Rprop(m.parameters(), lr=1e-3),
    "Adam": lambda m: o.Adam(m.parameters(), lr=1e-3),
}


@pytest.mark.parametrize("name", STAY)
def test_these_stay_on_their_leaf(name: str):
    assert trained(tripled().model, STAY[name]).distance <= 1e-12
    found = trained(leaf(), STAY[name])
    limit = 1e-10 if name == "nesterov" else 1e-12  # momentum amplifies rounding
    assert found.distance <= limit
    assert found.residual_drift <= limit
    assert found.residual_ratio == pytest.approx(1, abs=limit)


@pytest.mark.parametrize(
    ("make", "per_step"),
    [
        (lambda m: o.SGD(m.parameters(), lr=0.05, weight_decay=0.05), 1 - 0.05 * 0.05),
        (lambda m: o.AdamW(m.parameters(), lr=3e-3, weight_decay=0.05), 1 - 3e-3 * 0.05),
    ],
)
def test_linear_and_decoupled_decay_slide_between_leaves_by_a_law(make, per_step: float):
    assert trained(tripled().model, make).distance <= 1e-12
    found = trained(leaf(), make)
    assert found.distance <= 1e-12
    assert found.residual_ratio == pytest.approx(per_step**STEPS, rel=1e-11)


def test_coupled_decay_under_adam_leaves_but_only_from_a_redistributed_leaf():
    def make(model: nn.Module) -> o.Optimizer:
        return o.Adam(model.parameters(), lr=1e-2, weight_decay=0.05)

    assert trained(tripled().model, make).distance <= 1e-12
    assert trained(leaf(), make).distance > 1e-3


def test_pairs_stay_even_then_because_their_blocks_have_one_form():
    own = tanh_net()
    pairs = manifolds.clone(own.model, 2, own.batch, units=own.units)
    pairs.model.load_state_dict(manifolds.redistributed(pairs.model, pairs.partition), strict=False)
    found = manifolds.confinement(
        pairs.model, pairs.partition, minibatch, loss, lambda m: o.Adam(m.parameters(), lr=1e-2, weight_decay=0.05)
    )
    assert found.distance <= 1e-12
    assert found.residual_ratio < 0.9


def test_the_report_names_what_breaks_the_symmetry():
    own = tanh_net()
    layers = list(copy.deepcopy(own.model))
    model = nn.Sequential(*layers[:2], nn.Dropout(0.2), *layers[2:])
    wide = manifolds.clone(model, 3, own.batch)
    optimizer = o.Adam(wide.model.parameters(), lr=1e-2, weight_decay=0.05)
    for parameter in wide.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = copy.deepcopy(wide.model.state_dict())
    optimizer.step()  # moments that differ between clones
    wide.model.load_state_dict(before)

    def noise(model: nn.Module, _: o.Optimizer, step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1e-3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))

    def shrink(model: nn.Module, _: o.Optimizer, step: int) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.999)

    def reset(model: nn.Module, _: o.Optimizer, step: int) -> None:
        with torch.no_grad():  # one unit of a block, as a reset by utility does
            model[0].weight[0] = torch.randn(5, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            model[3].weight[:, 0] = 0

    found = manifolds.audit(
        wide.model,
        wide.partition,
        own.batch,
        loss,
        optimizer,
        after_step={"noise": noise, "shrink": shrink, "reset": reset},
        steps=20,
    )
    verdicts = {item.name: item.verdict for item in found.settings}
    assert verdicts == {
        "plain SGD": "stays",
        "Adam": "leaves from a redistributed leaf",
        "state of the optimizer": "leaves",
        "2.p=0.2": "leaves",
        "noise": "leaves",
        "shrink": "moves between leaves",
        "reset": "leaves",
    }
    assert set(found.breaking) == {name for name, verdict in verdicts.items() if verdict.startswith("leaves")}
    for name in verdicts:
        assert name in str(found)
    assert all(torch.equal(value, before[key]) for key, value in wide.model.state_dict().items())


def test_attached_methods_are_measured_as_they_are():
    own = tanh_net()
    wide = tripled()

    def attached(method: pliant.interventions.Intervention):
        def make(model: nn.Module) -> o.Optimizer:
            optimizer = o.SGD(model.parameters(), lr=0.05)
            pliant.attach(model, optimizer, method, units=wide.units, seed=0)
            return optimizer

        return make

    methods = {
        "stays": (),
        "moves between leaves": (pliant.L2(strength=0.01),),
        "leaves": (
            pliant.ShrinkAndPerturb(shrink=0.9, noise_scale=0.01, every=5),
            pliant.WeightNoise(noise_scale=1e-3),
        ),
    }
    found = manifolds.audit(
        wide.model,
        wide.partition,
        own.batch,
        loss,
        o.SGD(wide.model.parameters(), lr=0.05),
        others={repr(method): attached(method) for chosen in methods.values() for method in chosen},
        steps=10,
    )
    verdicts = {item.name: item.verdict for item in found.settings}
    for verdict, chosen in methods.items():
        assert all(verdicts[repr(method)] == verdict for method in chosen), verdicts


def test_a_network_in_single_precision_is_audited_in_double():
    own = tanh_net()
    model, x = copy.deepcopy(own.model).float(), own.batch.float()
    wide = manifolds.clone(model, 3, x)
    adam = o.Adam(wide.model.parameters(), lr=1e-2, weight_decay=0.05)
    labels = torch.randint(0, 2, (64,))
    for inputs in (x, lambda step: (x[step : step + 9], lambda output: output.square().sum())):
        found = manifolds.audit(
            wide.model, wide.partition, inputs, lambda y: nn.functional.cross_entropy(y, labels), adam, steps=10
        )
        assert [item.verdict for item in found.settings] == ["stays", "leaves from a redistributed leaf"]
    assert next(wide.model.parameters()).dtype == torch.float32
    assert manifolds.trap_test(wide.model, wide.partition, x, lambda y: y.square().sum(), optimizer=adam).stays
    assert manifolds.certificate(wide.model, wide.partition).holds


def test_a_partition_with_blocks_on_one_side_only_has_no_other_leaf():
    own = tanh_net()
    wide = manifolds.clone(own.model, {"0": 2}, own.batch, units=own.units)
    found = manifolds.audit(
        wide.model, wide.partition, own.batch, loss, o.Adam(wide.model.parameters(), weight_decay=0.1), steps=5
    )
    assert all(item.from_leaf is None and item.verdict == "stays" for item in found.settings)
    assert math.isnan(found.settings[0].from_clones.residual_ratio)
    trivial = manifolds.partition(wide.units, {})
    with pytest.raises(IllegalConfiguration, match="no clones to audit"):
        manifolds.audit(wide.model, trivial, own.batch, loss, o.SGD(wide.model.parameters(), lr=0.1))
