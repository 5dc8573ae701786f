"""Contracts that hold for every intervention on every architecture with every optimizer.

Some methods meet every architecture and each meets a third (half of these in the fast suite, the rest in the wide one),
optimizers in rotation; ``PLIANT_FULL_MATRIX=1`` runs all combinations.
"""

from __future__ import annotations

import pytest
import torch
from contract_tools import (
    METHODS,
    SEEDLESS,
    Run,
    assert_same_bits,
    differ,
    fast_pairs,
    num_hooks,
    pairs,
    params,
    supported,
    units_of,
)
from zoo import NAMES

import pliant
from pliant import interventions
from pliant.interventions import ReDo

# four samples leave small groups without a single positive activation
pytestmark = pytest.mark.filterwarnings("ignore:L2EffectiveRank. all units")

PAIRS = params([pair for pair in pairs() if supported(pair[0], pair[1])])


def nulls(methods):
    return [m.null() for m in methods] if isinstance(methods, list) else methods.null()


@pytest.mark.parametrize(("method", "name", "optimizer"), PAIRS)
def test_a_method_acts_repeatably_and_leaves_nothing_behind(method, name, optimizer):
    plain = Run(name, optimizer)
    keys = list(plain.model.state_dict())
    vars_before = [sorted(vars(module)) for module in plain.model.modules()]
    plain.train()
    run = Run(name, optimizer, METHODS[method])
    assert num_hooks(run.model, run.optimizer) > 0
    run.train()
    result = run.bits()
    # it did something
    assert differ(plain.bits(), result), "the method changed nothing, so the contracts below would be empty"
    # names, types and owners are what they were
    assert list(run.model.state_dict()) == keys
    assert [p.dtype for p in run.model.parameters()] == [p.dtype for p in plain.model.parameters()]
    owned = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert owned == {id(p) for p in run.model.parameters()}
    assert all(p.isfinite().all() for p in run.model.parameters())
    assert [sorted(vars(module)) for module in run.model.modules()] == vars_before
    # detached: nothing remains, and training goes on as without it
    file = run.checkpoint()  # copies of the network that a method keeps are gone afterwards
    run.handle.detach()
    assert num_hooks(run.model, run.optimizer) == 0
    run.handle = None
    again = Run(name, optimizer).load(file)
    assert_same_bits(again.train(8, 10).bits(), run.train(8, 10).bits())


@pytest.mark.parametrize(("method", "name", "optimizer"), params([p for p in fast_pairs(2) if supported(*p[:2])]))
def test_null_is_a_bitwise_no_op(method, name, optimizer):
    plain = Run(name, optimizer).train().bits()
    run = Run(name, optimizer, nulls(METHODS[method])).train()
    assert_same_bits(plain, {key: value for key, value in run.bits().items() if not key.startswith("handle")})
    assert list(run.handle.events) == []
    assert not run.handle.num_resets


@pytest.mark.parametrize(("method", "name", "optimizer"), PAIRS)
def test_resuming_is_bitwise(method, name, optimizer):
    """Also: same seed, same bits (two whole runs are compared)."""
    whole = Run(name, optimizer, METHODS[method])
    whole.train(0, 4)
    file = whole.checkpoint()
    whole.train(4)
    # another initialisation, another seed: everything has to come from the checkpoint
    resumed = Run(name, optimizer, METHODS[method], seed=5, handle_seed=99).load(file).train(4)
    assert_same_bits(whole.bits(), resumed.bits())


@pytest.mark.parametrize("method", METHODS)
def test_another_seed_gives_other_draws(method):
    if method in SEEDLESS:
        runs = [Run("mlp", "adam", METHODS[method], handle_seed=seed).train().bits() for seed in (1, 2)]
        return assert_same_bits(*runs, only="model")
    a, b, c = (Run("mlp", "adam", METHODS[method], handle_seed=seed).train().bits() for seed in (1, 2, 1))
    assert differ(a, b)
    assert_same_bits(a, c)


@pytest.mark.parametrize("method", [m for m in METHODS if not isinstance(METHODS[m], list)])
def test_a_method_is_its_own_name(method):
    spec = METHODS[method]
    names = {**vars(interventions), type(spec).__name__: type(spec)}
    assert eval(repr(spec), names) == spec
    assert eval(repr(spec.null()), names) == spec.null()
    assert hash(spec) == hash(eval(repr(spec), names))
    with pytest.raises(AttributeError):
        spec.anything = 1


@pytest.mark.parametrize("name", NAMES)
def test_events_name_the_units_whose_weights_changed(name):
    if not supported("redo", name):
        pytest.skip("the group has no tap, which its own test covers")
    run = Run(name, "sgd", ReDo(tau=1.0, every=1))
    units = units_of(name)
    run.train(0, 1)  # one step; then a step whose weight update is nothing
    for group in run.optimizer.param_groups:
        group["lr"] = 0.0
    before = {k: v.clone() for k, v in run.model.named_parameters()}
    seen = len(run.handle.events)
    run.train(1, 2)
    events = list(run.handle.events)[seen:]
    assert events
    for event in events:
        assert (event.step, event.action, event.intervention, event.members) == (2, "reset", "ReDo", ())
        assert "dormant" in event.reason
    hit = {event.group: set(event.units) for event in events}
    tensors = dict(run.model.named_parameters())
    for group in units.select("*"):
        names = [piece.name for piece in group.slices]
        piece = next(p for p in group.role("incoming") if tensors[p.name].ndim > 1)
        if names.count(piece.name) > 1:
            continue  # a recurrent matrix: zeroed columns change the rows of the other units too
        where = torch.tensor(piece.table)
        changed = piece.within(tensors[piece.name] != before[piece.name]).movedim(piece.dim, 0).flatten(1).any(1)
        others = {
            p
            for g in units.select("*")
            if g is not group
            for s in g.slices
            if (s.name, s.at) == (piece.name, piece.at)
            for r in s.table
            for p in r
        }
        if others & set(where.flatten().tolist()):
            continue  # another group's units share these entries
        units_changed = {u for u in range(group.size) if changed[where[u]].any()}
        assert units_changed == hit.get(group.name, set()), group.name
    assert {k: int(v) for k, v in run.handle.num_resets.items()} == {
        name: sum(len(e.units) for e in run.handle.events if e.group == name) for name in run.handle.num_resets
    }


def test_dry_run_reports_and_edits_nothing():
    plain = Run("conv_bn_flatten", "adam").train().bits()
    for method in METHODS.values():
        run = Run("conv_bn_flatten", "adam", method, dry_run=True).train()
        assert_same_bits(plain, {key: value for key, value in run.bits().items() if not key.startswith("handle")})
    assert isinstance(run.handle, pliant.Handle)
    assert len(run.handle.events) > 0
