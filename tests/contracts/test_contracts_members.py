"""A stack of members is its single runs: one generator, one budget, one set of ages each."""

from __future__ import annotations

import pytest
import torch
from contract_tools import METHODS, listed, suited
from torch import nn

import pliant
from pliant.bench.ensemble import stack, unstack

SEEDS = (3, 14, 15)
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=3e-3),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
}


def build(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def batch(seed: int, step: int):
    generator = torch.Generator().manual_seed(1000 * seed + step)
    x = torch.randn(16, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (16,), generator=generator)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
def test_a_member_is_its_single_run(method, optimizer):
    """A hundred float64 steps with resets, to 1e-6, and with the same events (the products of small matrices differ in
    their last bits between one and many; where they do not, see below)."""
    if suited(method, optimizer) != optimizer:
        pytest.skip("plain SGD keeps no state, which the method refuses")
    units = pliant.find_units(build(0), torch.randn(4, 5).double())
    stacked = stack([build(seed) for seed in SEEDS])
    opt = OPTIMIZERS[optimizer](stacked.parameters())
    handle = pliant.attach(stacked, opt, METHODS[method], units=units, seed=SEEDS)
    singles = [build(seed) for seed in SEEDS]
    single_opts = [OPTIMIZERS[optimizer](model.parameters()) for model in singles]
    handles = [
        pliant.attach(model, one, METHODS[method], units=units, seed=seed)
        for model, one, seed in zip(singles, single_opts, SEEDS, strict=True)
    ]
    for step in range(100):
        batches = [batch(seed, step) for seed in SEEDS]
        opt.zero_grad()
        others = [batch(seed, step + 500)[0] for seed in SEEDS]
        x, y = handle.batch((torch.stack([x for x, _ in batches]), torch.stack([y for _, y in batches])))
        losses = [nn.functional.cross_entropy(out, label) for out, label in zip(stacked(x), y, strict=True)]
        (sum(losses) + handle.penalty(loss=torch.stack(losses), reference=torch.stack(others))).backward()
        opt.step()
        for model, one, own, pair, other in zip(singles, single_opts, handles, batches, others, strict=True):
            one.zero_grad()
            x, y = own.batch(pair)
            loss = nn.functional.cross_entropy(model(x), y)
            (loss + own.penalty(loss=loss, reference=other)).backward()
            one.step()
        if step in (30, 60):
            for one in (handle, *handles):
                one.task_boundary()
    for member, (model, one) in enumerate(zip(singles, handles, strict=True)):
        for key, value in unstack(stacked, member).items():
            want = model.state_dict()[key]
            assert torch.allclose(value, want, rtol=0, atol=1e-6), key
        totals = {name: int(total[member]) for name, total in handle.num_resets.items()}
        assert {name: count for name, count in totals.items() if count} == {
            name: int(total) for name, total in one.num_resets.items()
        }
        mine = [
            (e.step, e.group, tuple(u for u, m in zip(e.units, e.members, strict=True) if m == member))
            for e in handle.events
        ]
        assert [item for item in mine if item[2]] == [(e.step, e.group, e.units) for e in one.events if e.units]
    if any(item.redraws and item.unit_pattern() is not None for item in listed(METHODS[method])):
        assert any(event.units for event in handle.events)


@pytest.mark.parametrize("method", METHODS)
def test_a_member_is_its_single_run_bit_by_bit_at_the_sizes_of_the_benchmarks(method):
    def model(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))

    units = pliant.find_units(model(0), torch.randn(4, 64))
    models = [model(seed) for seed in SEEDS[:2]]
    stacked = stack(models)
    runs = [(stacked, SEEDS[:2]), *zip(models, SEEDS[:2], strict=True)]
    attached = []
    for one, seed in runs:
        optimizer = torch.optim.SGD(one.parameters(), lr=0.05, momentum=0.5)
        handle = pliant.attach(one, optimizer, METHODS[method], units=units, seed=seed, init="kaiming_uniform")
        attached.append((one, optimizer, handle))
    for step in range(40):
        torch.manual_seed(step)
        both = torch.randn(2, 32, 64), torch.randint(0, 10, (2, 32))
        for number, (one, optimizer, handle) in enumerate(attached):
            optimizer.zero_grad()
            x, y = handle.batch(tuple(part[number - 1] for part in both) if number else both)
            if number:
                loss = nn.functional.cross_entropy(one(x), y)
            else:
                loss = sum(nn.functional.cross_entropy(out, label) for out, label in zip(one(x), y, strict=True))
            loss.backward()
            optimizer.step()
            if step == 20:
                handle.task_boundary()
    for member, one in enumerate(models):
        for key, value in unstack(stacked, member).items():
            assert torch.equal(value, one.state_dict()[key]), key


def test_captured_activations_of_a_stack():
    units = pliant.find_units(build(0), torch.randn(4, 5).double())
    models = [build(seed) for seed in SEEDS]
    stacked = stack(models)
    x = torch.stack([batch(seed, 0)[0] for seed in SEEDS])
    found = pliant.stats.capture(stacked, units, x, members=3)
    for member, model in enumerate(models):
        single = pliant.stats.capture(model, units, x[member])
        for name in ("0", "2"):
            assert found[name].shape == (3, 16, units[name].size)
            assert torch.allclose(found[name][member], single[name], rtol=0, atol=1e-12)


def test_a_broken_member_does_not_stop_the_others():
    """One member diverges: it is not edited any more, the others go on as if nothing had happened."""
    units = pliant.find_units(build(0), torch.randn(4, 5).double())
    runs = []
    for broken in (False, True):
        stacked = stack([build(seed) for seed in SEEDS])
        opt = OPTIMIZERS["sgd"](stacked.parameters())
        handle = pliant.attach(stacked, opt, METHODS["continual_backprop"], units=units, seed=SEEDS)
        for step in range(20):
            if broken and step == 10:
                with torch.no_grad():
                    stacked[0].weight[1] = float("nan")
            opt.zero_grad()
            batches = [batch(seed, step) for seed in SEEDS]
            logits = stacked(torch.stack([x for x, _ in batches]))
            sum(nn.functional.cross_entropy(out, y) for out, (_, y) in zip(logits, batches, strict=True)).backward()
            opt.step()
        runs.append((stacked, list(handle.events)))
    for member in (0, 2):
        a, b = (unstack(stacked, member) for stacked, _ in runs)
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert not any(1 in event.members for event in runs[1][1] if event.step > 11)


def test_a_stack_of_another_size_is_refused():
    units = pliant.find_units(build(0), torch.randn(4, 5).double())
    stacked = stack([build(seed) for seed in SEEDS])
    optimizer = torch.optim.SGD(stacked.parameters(), lr=0.1)
    with pytest.raises(pliant.IllegalConfiguration, match="stack of 2 members"):
        pliant.attach(stacked, optimizer, METHODS["redo"], units=units, seed=(1, 2))
    single = build(0)
    with pytest.raises(pliant.IllegalConfiguration, match="does not fit"):
        pliant.attach(single, torch.optim.SGD(single.parameters(), lr=0.1), METHODS["redo"], units=units, seed=SEEDS)
