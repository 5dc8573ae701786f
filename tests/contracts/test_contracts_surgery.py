"""Contracts of the methods that change the model: owners, resuming, nulls, and the function where it is kept."""

from __future__ import annotations

import pytest
import torch
import zoo
from contract_tools import OPTIMIZERS, Run, assert_same_bits, differ, num_hooks
from test_contracts_accelerator import NoReadback
from torch import nn
from zoo import ZOO

import pliant
from pliant import devices
from pliant.interventions import (
    AdaptiveNormalization,
    ContinualBackprop,
    InsertDropout,
    InsertNormalization,
    NormalizeAndProject,
    ReDo,
)
from pliant.nn.wrapped import Normalized

INSERTING = {
    "layer_norm": InsertNormalization(),
    "layer_norm_gated": InsertNormalization(gate=True),
    "batch_norm": InsertNormalization(kind="batch"),
    "dropout": InsertDropout(0.5),
    "adaptive_normalization": AdaptiveNormalization(rate=0.5, every=2, dormant_above=0.0, dormant_below=0.0, tau=0.9),
}
WHERE = {
    "layer_norm": ("mlp", "conv_grouped", "vit"),
    "layer_norm_gated": ("mlp_functional", "mlp_reused", "hf_bert"),
    "batch_norm": ("mlp_functional", "actor_critic", "conv_crelu"),
    "dropout": ("mlp", "resnet_basic", "dueling_dqn"),
    "adaptive_normalization": ("mlp_functional", "conv_depthwise", "dueling_dqn"),
}
PLACES = [(method, name) for method, names in WHERE.items() for name in names]
PAIRS = [(*place, list(OPTIMIZERS)[(5 * i) % len(OPTIMIZERS)]) for i, place in enumerate(PLACES)]
KEEPS_THE_FUNCTION = ("layer_norm_gated", "batch_norm", "dropout", "adaptive_normalization")


def outputs(model, batch):
    with torch.no_grad():
        result = zoo.call(model, batch)
    return [leaf for leaf in torch.utils._pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize(("method", "name", "optimizer"), PAIRS)
def test_the_optimizer_owns_what_is_put_in_and_nothing_is_left_behind(method, name, optimizer):
    plain = Run(name, optimizer)
    before = dict(plain.model.named_parameters())
    run = Run(name, optimizer, INSERTING[method])
    owned = [p for group in run.optimizer.param_groups for p in group["params"]]
    assert len({id(p) for p in owned}) == len(owned)
    assert {id(p) for p in owned} == {id(p) for p in run.model.parameters()}
    known = {id(p) for p in before.values()}
    names = dict(run.model.named_parameters())
    round_layers = [path for path, module in run.model.named_modules() if isinstance(module, Normalized)]
    new = {key for key in names for path in round_layers if key.startswith(f"{path}.norm.") or key == f"{path}.gate"}
    assert bool(new) == (method != "dropout")
    assert len(names) == len(before) + len(new)
    assert not known & {id(p) for p in names.values()}  # another model, of the same sizes
    assert sorted(p.shape for key, p in names.items() if key not in new) == sorted(p.shape for p in before.values())
    start = {key: p.detach().clone() for key, p in run.model.named_parameters()}
    (event, *_) = list(run.handle.events)
    assert (event.action, event.step) == ("surgery", 0)
    run.train()
    assert all(p.isfinite().all() for p in run.model.parameters())
    changed = {key for key, p in run.model.named_parameters() if not torch.equal(p, start[key])}
    if method in ("layer_norm", "batch_norm"):
        assert new & changed
    run.handle.detach()
    assert num_hooks(run.model, run.optimizer) == 0


@pytest.mark.parametrize(("method", "name", "optimizer"), PAIRS)
def test_resuming_is_bitwise(method, name, optimizer):
    whole = Run(name, optimizer, INSERTING[method]).train(0, 4)
    file = whole.checkpoint()
    whole.train(4)
    resumed = Run(name, optimizer, INSERTING[method], seed=5, handle_seed=99).load(file).train(4)
    assert_same_bits(whole.bits(), resumed.bits())


@pytest.mark.parametrize(("method", "name", "optimizer"), PAIRS[::2])
def test_the_null_puts_nothing_in(method, name, optimizer):
    plain = Run(name, optimizer).train()
    run = Run(name, optimizer, INSERTING[method].null()).train()
    assert_same_bits(plain.bits(), {key: value for key, value in run.bits().items() if not key.startswith("handle")})
    assert [event for event in run.handle.events if event.tensors] == []


@pytest.mark.parametrize(("method", "name"), [(m, n) for m, n in PLACES if m in KEEPS_THE_FUNCTION])
def test_the_function_is_kept_in_evaluation_mode(method, name):
    """On batches that were not seen when the norms were put in."""
    case = ZOO[name]
    plain, changed = case.model().double().eval(), case.model().double()
    batch = zoo.cast(case.batch(), torch.float64)
    handle = pliant.attach(
        changed, torch.optim.SGD(changed.parameters(), lr=0.1), INSERTING[method], example_inputs=batch, init=case.init
    )
    assert [event.action for event in handle.events] == ["surgery"]
    changed.eval()
    for seed in (3, 4):
        other = zoo.cast(case.batch(seed=seed), torch.float64)
        for a, b in zip(outputs(plain, other), outputs(changed, other), strict=True):
            if a.is_floating_point():
                assert torch.allclose(a, b, rtol=1e-9, atol=1e-9), name


@pytest.mark.parametrize("name", ["mlp", "mlp_functional", "vit"])
def test_a_layer_norm_without_a_gate_changes_it(name):
    plain, changed = ZOO[name].model().eval(), ZOO[name].model()
    optimizer = torch.optim.SGD(changed.parameters(), lr=0.1)
    pliant.attach(changed, optimizer, InsertNormalization(), example_inputs=ZOO[name].batch())
    batch = ZOO[name].batch(seed=3)
    assert not torch.allclose(outputs(plain, batch)[0], outputs(changed.eval(), batch)[0], atol=1e-3)


@pytest.mark.parametrize("method", INSERTING)
def test_units_are_those_of_before_and_are_proved(method):
    """The same groups of the same sizes, with the norms' gains and offsets as part of them."""
    for name in WHERE[method]:
        before = pliant.find_units(ZOO[name].model(), ZOO[name].batch())
        run = Run(name, "sgd", INSERTING[method])
        units = run.handle.units
        assert sorted(group.size for group in units) == sorted(group.size for group in before)
        assert [group.site for group in units] == [group.site for group in before]
        assert units.verify(run.model, ZOO[name].batch()).ok
        if method != "dropout":
            pieces = [piece for group in units for piece in group.slices if ".norm." in piece.name]
            assert pieces
            assert {piece.role for piece in pieces} == {"carried"}


@pytest.mark.parametrize("name", ["mlp", "mlp_functional", "conv_bn_flatten"])
@pytest.mark.parametrize(
    "other",
    [ContinualBackprop(0.2, maturity_threshold=1, decide_every=1), ReDo(tau=1.0, every=3), NormalizeAndProject()],
)
def test_other_methods_act_on_the_changed_model(name, other):
    run = Run(name, "adam", [InsertNormalization(), other]).train()
    alone = Run(name, "adam", InsertNormalization()).train()
    assert differ(alone.bits(), run.bits())
    if not isinstance(other, NormalizeAndProject):
        assert sum(int(total) for total in run.handle.num_resets.values()) > 0


def test_a_stack_or_units_of_before_are_refused():
    run = Run("mlp", "sgd")
    units = pliant.find_units(run.model, run.batch(0))
    with pytest.raises(pliant.IllegalConfiguration, match=r"InsertNormalization changes the model.*example_inputs"):
        pliant.attach(run.model, run.optimizer, InsertNormalization(), units=units)
    with pytest.raises(pliant.IllegalConfiguration, match=r"InsertDropout changes the model: pass example_inputs"):
        pliant.attach(run.model, run.optimizer, InsertDropout())
    assert [type(module) for module in run.model] == [type(module) for module in ZOO["mlp"].model()]


def test_several_models_and_optimizers():
    actor = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    critic = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 1))
    optimizers = [torch.optim.Adam(actor.parameters(), lr=1e-3), torch.optim.SGD(critic.parameters(), lr=0.1)]
    inputs = {"actor": torch.randn(4, 3), "critic": torch.randn(4, 5)}
    handle = pliant.attach({"actor": actor, "critic": critic}, optimizers, InsertNormalization(), example_inputs=inputs)
    assert [group.name for group in handle.units] == ["actor.0.layer", "critic.0.layer"]
    for model, optimizer in zip((actor, critic), optimizers, strict=True):
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert owned == {id(p) for p in model.parameters()}
        assert isinstance(model[0].norm, nn.LayerNorm)


@pytest.mark.parametrize("optimizer", ["sgd_fused", "adam_fused"])
def test_opening_gates_never_waits_for_the_device(optimizer, monkeypatch):
    monkeypatch.setattr(devices, "_as_accelerator", True)
    run = Run("mlp_functional", optimizer, INSERTING["adaptive_normalization"]).train(0, 5)
    batches = [run.batch(step) for step in range(5, 9)]
    before = run.model.fc1.gate.clone()
    with NoReadback():
        for x in batches:
            run.optimizer.zero_grad()
            run.model(x).square().mean().backward()
            run.optimizer.step()
    assert float(run.model.fc1.gate) > float(before)


def test_a_skipped_amp_step_opens_no_gate():
    ends = []
    for overflow in (True, False):
        run = Run("mlp", "sgd", AdaptiveNormalization(rate=0.5, every=1, dormant_above=0.0, dormant_below=0.0, tau=2.0))
        scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
        for step in range(3):
            if step == 1 and not overflow:
                continue
            run.optimizer.zero_grad()
            loss = zoo.loss_of(run.model(run.batch(step)))
            scaler.scale(loss * torch.inf if step == 1 else loss).backward()
            scaler.step(run.optimizer)
            scaler.update()
        ends.append(float(run.model[0].gate))
    assert ends[0] == ends[1] == pytest.approx(0.75)
