"""Certificates: they hold where the mathematics says so, on any data, and fail when any condition is dropped."""

from __future__ import annotations

import copy

import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import NAMES, doubled, generic, net
from test_manifolds_projection import blocks_of
from torch import nn

import pliant
from pliant import manifolds
from pliant.errors import IllegalConfiguration
from pliant.manifolds import Partition, TrapTest
from pliant.manifolds.structure import Kind, block_structure


def placed(name: str, blocks: Partition, kind: Kind, seed: int = 0) -> nn.Module:
    """A random network on a manifold."""
    model = net(name).copy()
    model.load_state_dict(manifolds.project(model, blocks, kind, state=generic(model, seed=seed)), strict=False)
    return model


def looked(name: str, model: nn.Module, blocks: Partition) -> TrapTest:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return manifolds.trap_test(model, blocks, net(name).batch, zoo.loss_of, optimizer=optimizer)


def spread(found: TrapTest) -> tuple[float, float]:
    """Of all groups: forward, backward."""
    return max(s.forward for s in found.spread.values()), max(s.backward or 0.0 for s in found.spread.values())


LOSSES = {
    "of the zoo": zoo.loss_of,
    "squares": lambda output: output.square().sum(),
    "another": lambda output: (output.flatten(1).softmax(-1)[:, 0] + output.sin().flatten(1).sum(1)).exp().mean(),
}


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    st.sampled_from([*NAMES, "conv_grouped", "swiglu", "mlp_reused"]), st.sampled_from(sorted(LOSSES)),
    st.integers(0, 99),
)  # fmt: skip
def test_any_partition_of_any_architecture_is_a_trap_for_any_loss_on_any_batch(name: str, loss: str, seed: int):
    # random blocks of every group at once, and different weights inside each block
    blocks = blocks_of(name, seed)
    model = placed(name, blocks, "both", seed)
    assert manifolds.certificate(model, blocks).holds
    generator = torch.Generator().manual_seed(seed)
    batch = torch.randn(net(name).batch.shape, generator=generator, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = manifolds.trap_test(model, blocks, batch, LOSSES[loss], optimizer=optimizer)
    assert found.gradient.share <= 1e-12
    assert found.update.share <= 1e-12
    assert spread(found)[0] <= 1e-12
    assert spread(found)[1] <= 1e-12
    assert found.stays


o = torch.optim
OPTIMIZERS = {
    "SGD": lambda m: o.SGD(m.parameters(), lr=0.05),
    "nesterov and decay": lambda m: o.SGD(m.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "RMSprop": lambda m: o.RMSprop(m.parameters(), lr=1e-3),
    "Adagrad": lambda m: o.Adagrad(m.parameters(), lr=1e-2),
    "Rprop": lambda m: o.Rprop(m.parameters(), lr=1e-3),
    "Adam": lambda m: o.Adam(m.parameters(), lr=1e-3),
    "AdamW": lambda m: o.AdamW(m.parameters(), lr=1e-3, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_update_of_every_listed_optimizer_is_tangent_and_that_of_coupled_decay_is_not(name: str):
    own = net("mlp")
    wide = manifolds.clone(own.model, 3, own.batch, units=own.units)
    model = wide.model
    model.load_state_dict(manifolds.redistributed(model, wide.partition), strict=False)
    for make, tangent in ((OPTIMIZERS[name], True), (lambda m: o.Adam(m.parameters(), weight_decay=0.5), False)):
        optimizer = make(model)
        found = manifolds.trap_test(model, wide.partition, own.batch, zoo.loss_of, optimizer=optimizer)
        assert found.update is not None
        assert (found.update.share <= 1e-11) == tangent
        assert found.gradient.share <= 1e-12


INERT = {"0.bias", "3.bias"}  # a batch norm in training mode takes them out of the function


@pytest.mark.parametrize("name", ["mlp", "conv_bn_flatten", "resnet_basic"])
@pytest.mark.parametrize(("dropped", "kept"), [("incoming", "outgoing"), ("outgoing", "incoming")])
def test_with_one_condition_of_one_tensor_dropped_the_certificate_fails_there_and_the_gradient_leaves(
    name: str, dropped: str, kept: str
):
    # everything else is on the manifold: what only one of the two conditions forbids is really needed
    blocks = doubled(name).partition
    model = doubled(name).model
    on = manifolds.project(model, blocks, "both", state=generic(model, seed=4))
    for tensor in (n for n, _ in model.named_parameters() if n in block_structure(model, blocks)):
        other = manifolds.project(model, blocks, kept, state=generic(model, seed=5))[tensor]
        off = copy.deepcopy(model)
        off.load_state_dict({**on, tensor: other}, strict=False)
        found = manifolds.certificate(off, blocks)
        broken = {(failure.tensor, failure.condition) for failure in found.failures}
        if not broken:  # a bias, or the first or last matrix: it has the other condition alone
            assert not block_structure(model, blocks)[tensor].has("receiving" if dropped == "incoming" else "sending")
            continue
        assert broken == {(tensor, dropped)}
        seen = manifolds.trap_test(off, blocks, net(name).batch, zoo.loss_of)
        if name == "conv_bn_flatten" and tensor in INERT:
            assert seen.gradient.share <= 1e-12
            continue
        assert seen.gradient.share > 1e-6, tensor


@pytest.mark.parametrize("name", NAMES)
def test_every_condition_is_needed(name: str):
    blocks = doubled(name).partition
    wide = doubled(name).model
    state = manifolds.redistributed(wide, blocks)
    clone = copy.deepcopy(wide)
    clone.load_state_dict(state, strict=False)
    assert manifolds.certificate(clone, blocks).holds
    assert not manifolds.certificate(clone, blocks, "block_constant").holds
    assert looked(name, clone, blocks).stays
    trained = dict(clone.named_parameters())
    for number, tensor in enumerate(manifolds.normal_part(clone, blocks)):
        off = copy.deepcopy(clone)
        own = dict((*off.named_parameters(), *off.named_buffers()))[tensor]
        with torch.no_grad():
            own.view(-1)[0] += 1e-6
        found = manifolds.certificate(off, blocks)
        assert {failure.tensor for failure in found.failures} == {tensor}
        if tensor in trained and number % 4 == 0:  # a forward and a backward pass each
            seen = looked(name, off, blocks)
            assert not seen.stays
            assert "near is not trapped" in str(seen)


def test_incoming_sums_alone_make_equal_activations_and_nothing_more():
    blocks = manifolds.partition(net("mlp").units, {"0": [0, 0, 0, 1, 1, 1, 2, 2], "2": [0, 0, 0, 1, 1, 1]})
    only = placed("mlp", blocks, "incoming")
    assert manifolds.certificate(only, blocks, "incoming").holds
    assert not manifolds.certificate(only, blocks, "outgoing").holds
    found = looked("mlp", only, blocks)
    assert spread(found)[0] <= 1e-12
    assert spread(found)[1] > 1e-3
    assert found.gradient.share > 1e-3
    other = placed("mlp", blocks, "outgoing")
    assert manifolds.certificate(other, blocks, "outgoing").holds
    assert spread(looked("mlp", other, blocks))[0] > 1e-3
    assert looked("mlp", other, blocks).gradient.share > 1e-3


@pytest.mark.parametrize(
    ("name", "blamed"),
    [("weight_standardised", ("3.weight",)), ("mlp", ()), ("conv_grouped", ()), ("noisy_network", ())],
)
def test_weights_that_are_not_used_as_they_are_must_be_block_constant(name: str, blamed: tuple[str, ...]):
    own, blocks = net(name), blocks_of(name, 1)
    assert set(blamed) <= set(manifolds.transformed_tensors(own.model, blocks, own.batch))
    model = placed(name, blocks, "both")
    assert manifolds.certificate(model, blocks, example_inputs=own.batch).holds == (not blamed)
    assert (looked(name, model, blocks).gradient.share <= 1e-12) == (not blamed)
    exact = placed(name, blocks, "block_constant")
    assert manifolds.certificate(exact, blocks, example_inputs=own.batch).holds
    assert looked(name, exact, blocks).gradient.share <= 1e-12


def test_a_normalised_weight_is_found_though_a_relu_is_off_for_the_whole_batch():
    """Between two blocks, a ReLU is off for a whole batch in some draws of the parameters."""
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 4),
        torch.nn.ReLU(),
        torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 4)),
        torch.nn.ReLU(),
        torch.nn.Linear(4, 1),
    )
    x = torch.randn(3, 4)
    blocks = manifolds.partition(pliant.find_units(model, x), {"0": [0, 0, 1, 1], "2": [0, 0, 1, 1]})
    for seed in range(40):
        assert manifolds.transformed_tensors(model, blocks, x, seed=4 * seed) == (
            "2.parametrizations.weight.original1",
        )


def test_samples_one_by_one_certify_more_than_a_batch():
    own, wide = net("mlp"), doubled("mlp")

    def single(number: int):
        target = torch.full((1, 3), float(number), dtype=torch.float64)
        return own.batch[number : number + 1], lambda output: (output - target).square().sum()

    found = manifolds.trap_test(
        wide.model, wide.partition, own.batch, zoo.loss_of, samples=map(single, range(len(own.batch)))
    )
    assert found.samples is not None
    assert found.samples <= 1e-12


def test_the_update_is_the_optimizers_own_and_may_leave_where_the_gradient_does_not():
    own, wide = net("mlp"), doubled("mlp")
    optimizer = torch.optim.SGD(wide.model.parameters(), lr=0.1, momentum=0.9)
    even = manifolds.trap_test(wide.model, wide.partition, own.batch, zoo.loss_of, optimizer=optimizer)
    assert even.update is not None
    assert even.update.norm == pytest.approx(0.1 * even.gradient.norm, rel=1e-9)
    weight = wide.model[0].weight
    optimizer.state[weight]["momentum_buffer"] = torch.randn_like(weight)  # gathered before they were clones
    found = manifolds.trap_test(wide.model, wide.partition, own.batch, zoo.loss_of, optimizer=optimizer)
    assert found.gradient.share <= 1e-12
    assert found.update is not None
    assert found.update.share > 0.1
    assert not found.stays
    assert even.stays


def test_a_redistribution_has_the_distance_that_was_asked_for():
    wide = doubled("resnet_basic")
    state = manifolds.redistributed(wide.model, wide.partition, scale=0.25)
    before = {name: p.detach() for name, p in wide.model.named_parameters()}
    for name, off in manifolds.residual(wide.model, wide.partition, state=state).items():
        if float(off.norm()) > 0:
            assert float(off.norm() / before[name].norm()) == pytest.approx(0.25, rel=1e-12)
    square = manifolds.distance(wide.model, wide.partition, "block_constant", state=state).total ** 2
    assert square == pytest.approx(sum(float((state[n] - p).square().sum()) for n, p in before.items()), rel=1e-12)


def test_training_stays_on_one_leaf_and_another_leaf_is_told_apart():
    own, wide = net("mlp"), doubled("mlp")
    model = copy.deepcopy(wide.model)
    model.load_state_dict(manifolds.redistributed(model, wide.partition), strict=False)
    start = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        zoo.loss_of(model(own.batch)).backward()
        optimizer.step()
    assert manifolds.certificate(model, wide.partition, "leaf", reference=start).holds
    other = manifolds.redistributed(wide.model, wide.partition, seed=1)
    found = manifolds.certificate(model, wide.partition, "leaf", reference=other)
    assert {failure.condition for failure in found.failures} == {"leaf"}


def test_dropout_is_refused_by_its_place():
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Dropout(0.3), nn.Linear(4, 2)).double()
    x = torch.randn(6, 5).double()
    wide = manifolds.clone(model, 2, x)
    with pytest.raises(IllegalConfiguration, match=r"dropout is on in 2 \(p=0\.3\)"):
        manifolds.trap_test(wide.model, wide.partition, x, zoo.loss_of)
    assert manifolds.trap_test(wide.model.eval(), wide.partition, x, zoo.loss_of).stays
    own = net("mlp_functional")  # a function, not a module
    wide = manifolds.clone(own.model, 2, own.batch, units=own.units)
    with pytest.raises(IllegalConfiguration, match="two forward passes of Functional"):
        manifolds.trap_test(wide.model.train(), wide.partition, own.batch, zoo.loss_of)


NOT_IN_FLOAT64 = {"hf_mixtral"}


@pytest.mark.wide
@pytest.mark.parametrize("name", [name for name in zoo.NAMES if name not in NOT_IN_FLOAT64])
def test_the_certificate_is_right_on_the_whole_zoo(name: str):
    own = zoo.ZOO[name]
    model, batch = own.model().double().eval(), zoo.cast(own.batch(), torch.float64)
    units = pliant.find_units(model, batch)
    generator = torch.Generator().manual_seed(1)
    blocks = manifolds.partition(
        units, {g.name: torch.randint(0, max(1, g.size // 2), (g.size,), generator=generator).tolist() for g in units}
    )
    known = manifolds.project(model, blocks, "both")
    state = {key: value for key, value in generic(model, seed=1).items() if key in known}
    model.load_state_dict(manifolds.project(model, blocks, "both", state=state), strict=False)
    found = manifolds.trap_test(model, blocks, batch, None if isinstance(batch, dict) else zoo.loss_of)
    certified = manifolds.certificate(model, blocks, example_inputs=batch).holds
    assert certified == (found.gradient.share <= 1e-10)
    assert certified == (name not in ("weight_standardised", "tcn_weight_norm"))


def test_dropout_is_refused_where_curvature_is_measured():
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Dropout(0.3), nn.Linear(4, 2)).double()
    x, y = torch.randn(6, 5).double(), torch.randn(6, 2).double()
    wide = manifolds.clone(model, 2, x)
    with pytest.raises(IllegalConfiguration, match=r"dropout is on in 2 \(p=0\.3\)"):
        manifolds.stability(wide.model, wide.partition, (x, y), "mse")
    assert manifolds.stability(wide.model.eval(), wide.partition, (x, y), "mse").num_normal > 0


def test_a_partition_of_another_model_is_refused_everywhere():
    own, blocks = net("mlp"), manifolds.partition(net("resnet_basic").units, {"stem:residual": [0, 0, 1, 1]})

    def adam(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters())

    calls = {
        "certificate": lambda: manifolds.certificate(own.model, blocks),
        "trap_test": lambda: manifolds.trap_test(own.model, blocks, own.batch, zoo.loss_of),
        "variance_ratio": lambda: manifolds.variance_ratio(own.model, blocks, own.batch),
        "distance": lambda: manifolds.distance(own.model, blocks),
        "project": lambda: manifolds.project(own.model, blocks),
        "dimension": lambda: manifolds.dimension(own.model, blocks),
        "redistributed": lambda: manifolds.redistributed(own.model, blocks),
        "kicked": lambda: manifolds.kicked(own.model, blocks, 0.1),
        "reset_clones": lambda: manifolds.reset_clones(own.model, blocks),
        "collapse": lambda: manifolds.collapse(own.model, blocks, own.batch),
        "confinement": lambda: manifolds.confinement(own.model, blocks, own.batch, zoo.loss_of, adam),
        "audit": lambda: manifolds.audit(own.model, blocks, own.batch, zoo.loss_of, adam(own.model)),
        "escape": lambda: manifolds.escape(own.model, blocks, own.batch, zoo.loss_of, adam, steps=1),
        "stability": lambda: manifolds.stability(own.model, blocks, (own.batch, torch.zeros(len(own.batch), 3)), "mse"),
        "find_partition": lambda: manifolds.find_partition(own.model, own.units, candidates=blocks),
    }
    for call in calls.values():
        with pytest.raises(IllegalConfiguration, match=r"has no tensor 'stem\.weight'"):
            call()
    with pytest.raises(IllegalConfiguration, match="'0' has 8 units, and the partition gives 2"):
        manifolds.Partition(own.units, {"0": (0, 0)})
    with pytest.raises(IllegalConfiguration, match="'nothing' is no unit group"):
        manifolds.Partition(own.units, {"nothing": (0, 0)})
