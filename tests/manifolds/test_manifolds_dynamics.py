"""A clone's trajectory from its base, curvature away from the manifold, and the speed of leaving it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import zoo
from nets import doubled, net, stationary, tanh_net
from torch import nn

from pliant import manifolds
from pliant.errors import IllegalConfiguration, NotYetSupported
from pliant.manifolds.stability import _verdict
from pliant.spectrum.products import hessian_operator

o = torch.optim
FOLLOWED = {
    "SGD": lambda p: o.SGD(p, lr=0.05),
    "momentum and decay": lambda p: o.SGD(p, lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.05),
    "Adam": lambda p: o.Adam(p, lr=1e-2),
    "Adam with decay": lambda p: o.Adam(p, lr=1e-2, weight_decay=0.05),
    "AdamW": lambda p: o.AdamW(p, lr=1e-2, weight_decay=0.05),
}


def follow(pairs: list[tuple[nn.Module, o.Optimizer]], steps: int) -> None:
    """Each network sees the same minibatches."""
    own = tanh_net()
    target = torch.randn(64, 2, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    for step in range(steps):
        rows = torch.randint(0, 64, (16,), generator=torch.Generator().manual_seed(step))
        for model, optimizer in pairs:
            optimizer.zero_grad()
            (model(own.batch[rows]) - target[rows]).square().mean().backward()
            optimizer.step()


def apart(one: nn.Module, two: nn.Module) -> float:
    with torch.no_grad():
        mine, theirs = (model(tanh_net().batch) for model in (one, two))
    return float((mine - theirs).abs().max() / mine.abs().max())


@pytest.mark.parametrize(("towards", "steps"), [("base", 500), ("clone", 100)])
@pytest.mark.parametrize("kind", FOLLOWED)
def test_a_base_with_other_step_sizes_is_the_clone_and_the_other_way_round(kind: str, towards: str, steps: int):
    own = tanh_net()
    base = own.copy()
    wide = manifolds.clone(base, {"0": 3, "2": 2}, own.batch, units=own.units)
    pair = (wide.model, base) if towards == "base" else (base, wide.model)
    first = FOLLOWED[kind](pair[0].parameters())
    second = manifolds.matching_optimizer(first, base, wide, own.units, towards=towards)
    assert not second._optimizer_step_pre_hooks  # options alone say it
    follow([(pair[0], first), (pair[1], second)], steps)
    assert apart(base, wide.model) <= 1e-12


def test_a_base_with_the_clones_own_step_size_is_another_network():
    own = tanh_net()
    base = own.copy()
    wide = manifolds.clone(base, 3, own.batch, units=own.units)
    follow([(model, o.SGD(model.parameters(), lr=0.05)) for model in (base, wide.model)], 100)
    assert apart(base, wide.model) > 1e-2


UNEQUAL = {
    **FOLLOWED,
    "RMSprop": lambda p: o.RMSprop(p, lr=1e-3, momentum=0.5),
    "Adagrad": lambda p: o.Adagrad(p, lr=1e-2),
    "Rprop": lambda p: o.Rprop(p, lr=1e-3),
    "NAdam": lambda p: o.NAdam(p, lr=1e-3),
}


@pytest.mark.parametrize(
    ("kind", "towards"), [*((kind, "base") for kind in UNEQUAL), ("Adam with decay", "clone"), ("Rprop", "clone")]
)
def test_units_copied_unequally_often_are_followed_entry_by_entry(kind: str, towards: str):
    own = tanh_net()
    base = own.copy()
    wide = manifolds.clone(base, {"0": [1, 2, 3, 1], "2": [2, 1, 1, 4]}, own.batch, units=own.units)
    pair = (wide.model, base) if towards == "base" else (base, wide.model)
    first = UNEQUAL[kind](pair[0].parameters())
    follow([(pair[0], first)], 3)  # state that must be taken along
    if towards == "base":
        base.load_state_dict(manifolds.collapse(wide.model, wide.partition, own.batch).model.state_dict())
    else:
        wide = manifolds.clone(base, {"0": [1, 2, 3, 1], "2": [2, 1, 1, 4]}, own.batch, units=own.units)
        pair = (base, wide.model)
    second = manifolds.matching_optimizer(first, base, wide, own.units, towards=towards)
    before = [parameter.detach().clone() for parameter in pair[1].parameters()]
    follow([(pair[0], first), (pair[1], second)], 100)
    assert apart(base, wide.model) <= 1e-12
    assert all(not torch.equal(a, b) for a, b in zip(before, pair[1].parameters(), strict=True))


def test_the_gradient_that_a_follower_was_given_is_there_afterwards():
    own = tanh_net()
    base = own.copy()
    wide = manifolds.clone(base, {"0": [1, 2, 3, 1]}, own.batch, units=own.units)
    follower = manifolds.matching_optimizer(o.SGD(wide.model.parameters(), lr=0.1), base, wide, own.units)
    zoo.loss_of(base(own.batch)).backward()
    gradients = [parameter.grad for parameter in base.parameters()]
    follower.step()
    assert all(a is b.grad for a, b in zip(gradients, base.parameters(), strict=True))
    with pytest.raises(NotYetSupported, match="closure"):
        follower.step(lambda: zoo.loss_of(base(own.batch)))
    with pytest.raises(NotYetSupported, match="LBFGS"):
        manifolds.matching_optimizer(o.LBFGS(wide.model.parameters()), base, wide, own.units)
    with pytest.raises(IllegalConfiguration, match="'up'"):
        manifolds.matching_optimizer(o.SGD(wide.model.parameters(), lr=0.1), base, wide, own.units, towards="up")


def test_what_is_gathered_before_counts_for_convolutions_and_batch_norm_too():
    own = net("conv_bn_flatten")
    base = own.copy().train()
    leader = o.SGD(base.parameters(), lr=1e-3, momentum=0.9)
    for _ in range(3):
        leader.zero_grad()
        zoo.loss_of(base(own.batch)).backward()
        leader.step()
    wide = manifolds.clone(base, 2, own.batch, units=own.units)
    follower = manifolds.matching_optimizer(leader, base, wide, own.units, towards="clone")
    for model, optimizer in ((base, leader), (wide.model.train(), follower)):
        for _ in range(5):
            optimizer.zero_grad()
            zoo.loss_of(model(own.batch)).backward()
            optimizer.step()
    for mode in (True, False):
        with torch.no_grad():
            mine, theirs = (model.train(mode)(own.batch) for model in (base, wide.model))
        assert float((mine - theirs).abs().max() / mine.abs().max()) <= 1e-12


# ---- stability and escape
def test_extremal_curvature_is_that_of_the_dense_projected_hessian():
    wide, x, y = stationary()
    found = manifolds.stability(wide.model, wide.partition, (x, y), "mse", steps=1000)
    hessian = hessian_operator(wide.model, (x, y), "mse").dense()
    sizes = dict(wide.model.named_parameters())
    identity = torch.eye(len(hessian), dtype=torch.float64)
    rows = []
    for row in identity:
        parts = torch.split(row, [p.numel() for p in sizes.values()])
        state = {n: part.view_as(p) for (n, p), part in zip(sizes.items(), parts, strict=True)}
        off = manifolds.normal_part(wide.model, wide.partition, "both", state=state)
        rows.append(torch.cat([(off[n] if n in off else torch.zeros_like(p)).flatten() for n, p in state.items()]))
    normal = torch.stack(rows)
    values = torch.linalg.eigvalsh(normal @ hessian @ normal)
    assert round(float(normal.trace())) == found.num_normal
    assert found.smallest == pytest.approx(float(values[0]), rel=1e-9)
    assert found.largest == pytest.approx(float(values[-1]), rel=1e-9)
    assert found.verdict == "saddle"
    assert found.gradient_norm <= 1e-10
    assert found.cross <= 1e-12  # symmetry: normal directions do not couple to those along
    assert float(((identity - normal) @ hessian @ normal).norm() / hessian.norm()) <= 1e-13
    assert manifolds.kicked(wide.model, wide.partition, 1e-3, direction=found.direction)


def test_kicks_have_their_size_and_a_normal_one_leaves_what_is_along_the_manifold():
    wide = doubled("resnet_basic")
    before = {name: p.detach() for name, p in wide.model.named_parameters()}
    for direction in ("normal", "isotropic"):
        after = manifolds.kicked(wide.model, wide.partition, 0.01, direction=direction, seed=3)
        size = math.sqrt(sum(float((after[name] - p).square().sum()) for name, p in before.items()))
        assert size == pytest.approx(0.01, rel=1e-9)
        along = manifolds.project(wide.model, wide.partition, "both", state=after)
        moved = max(float((along[name] - p).abs().max()) for name, p in before.items())
        assert (moved < 1e-14) == (direction == "normal")
    with pytest.raises(IllegalConfiguration, match="size=0"):
        manifolds.kicked(wide.model, wide.partition, 0.0)
    with pytest.raises(IllegalConfiguration, match="'sideways'"):
        manifolds.kicked(wide.model, wide.partition, 0.1, direction="sideways")
    with pytest.raises(IllegalConfiguration, match="length zero"):
        manifolds.kicked(wide.model, wide.partition, 0.1, direction={"stem.weight": torch.zeros(8, 3, 3, 3)})


def test_an_antisymmetric_kick_of_incoming_weights_changes_the_function_in_second_order():
    own, wide = tanh_net(), manifolds.clone(tanh_net().model, 2, tanh_net().batch, units=tanh_net().units)
    direction = {"0.weight": torch.randn(4, 5, dtype=torch.float64).repeat_interleave(2, 0)}
    direction["0.weight"][1::2] *= -1

    def change(size: float) -> float:
        model = copy.deepcopy(wide.model)
        model.load_state_dict(manifolds.kicked(wide.model, wide.partition, size, direction=direction))
        return float((model(own.batch) - wide.model(own.batch)).detach().abs().max())

    assert change(1e-2) / change(5e-3) == pytest.approx(4, rel=0.02)


def test_treatments_leave_and_the_variance_ratio_falls():
    own = tanh_net()
    layers = list(own.copy())
    model = nn.Sequential(*layers[:2], nn.Dropout(0.0), *layers[2:])
    wide = manifolds.clone(model, 3, own.batch)
    assert manifolds.variance_ratio(wide.model, wide.partition, own.batch, zoo.loss_of) == pytest.approx(1, abs=1e-12)

    def run(**more: object) -> manifolds.Escape:
        return manifolds.escape(
            wide.model, wide.partition, own.batch, zoo.loss_of, lambda m: o.SGD(m.parameters(), lr=0.1), steps=4, **more
        )

    assert max(run().distances) < 1e-12
    noisy = run(treatment=manifolds.NoiseBurst(0.5), ratios=True)
    assert noisy.ratios[0] == pytest.approx(1, abs=1e-12)
    assert noisy.ratios[1] < 1 - 1e-6
    assert len(noisy.ratios) == len(noisy.steps)
    assert noisy.distances[0] < 1e-12 < 1e-4 < noisy.distances[1]
    assert run(treatment=manifolds.DropoutBurst(0.5)).distances[1] > 1e-4
    assert all(module.p == 0 for module in wide.model.modules() if isinstance(module, nn.Dropout))
    with pytest.raises(IllegalConfiguration, match="dropout modules"):
        manifolds.escape(
            own.model, manifolds.partition(own.units, {"0": [0, 0, 1, 1]}), own.batch, zoo.loss_of,
            lambda m: o.SGD(m.parameters(), lr=0.1), steps=1, treatment=manifolds.DropoutBurst(0.5),
        )  # fmt: skip
    reset = copy.deepcopy(wide.model)
    reset.load_state_dict(manifolds.reset_clones(wide.model, wide.partition), strict=False)
    torch.testing.assert_close(reset(own.batch), wide.model(own.batch), rtol=0, atol=1e-12)
    assert manifolds.variance_ratio(reset, wide.partition, own.batch) < 0.9


def test_noise_has_the_stated_norm_beside_the_gradient():
    wide = doubled("mlp")
    model = copy.deepcopy(wide.model)
    zoo.loss_of(model(net("mlp").batch)).backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    manifolds.NoiseBurst(0.02)(model, 0)
    for name, parameter in model.named_parameters():
        added = (parameter.grad - before[name]).norm()
        assert float(added / before[name].norm()) == pytest.approx(0.02, rel=1e-9)
    manifolds.NoiseBurst(0.02)(model, 1)  # over
    assert float((model[0].weight.grad - before["0.weight"]).norm() / before["0.weight"].norm()) < 0.0201


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        *((1.0, 2.0, "stable"), (-2.0, -1.0, "unstable"), (-1.0, 1.0, "saddle"), (0.0, 0.0, "flat")),
        *((1e-12, 2.0, "not unstable"), (-2.0, -1e-12, "not stable")),
    ],
)
def test_verdicts_have_a_tolerance(low: float, high: float, verdict: str):
    assert _verdict(low, high, 1e-8 * max(abs(low), abs(high))) == verdict
