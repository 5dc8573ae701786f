"""Steps written by hand are those of autograd and the optimizer; a stack's members are single runs."""

from __future__ import annotations

import copy

import pytest
import torch

import pliant
from pliant.bench import fused, fused_layers
from pliant.bench.batches import chunk_multiple
from pliant.bench.ensemble import stack, unstack
from pliant.bench.fused import FusedMLP, Part, can_fuse, steps_by_hand
from pliant.bench.fused_layers import Postponed, PostponedFirst
from pliant.bench.models import MLP
from pliant.bench.objective import Heads, Objective

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "sgd_decay": lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=3e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True),
}
METHODS = {
    "none": [],
    "continual_backprop": [pliant.ContinualBackprop(0.05, maturity_threshold=5, decay_rate=0.9)],
    "adaptable": [pliant.ContinualBackprop(0.05, maturity_threshold=5, utility="adaptable_contribution")],
    "l2_and_noise": [pliant.L2(0.01), pliant.ShrinkAndPerturb(0.99, 0.01, every=7)],
    "redo": [pliant.ReDo(tau=0.5, every=10)],
    "snr": [pliant.SelfNormalizedReset()],
    "regrama": [pliant.ReGraMa(every=10)],  # reads gradients
    "gradient_noise": [pliant.GradientNoise(0.1)],  # acts before the step
}
SEEDS = (3, 14, 15)
STEPS = 100


def networks(dtype, hidden=(9, 7), count=3):
    return [MLP(6, 4, hidden, generator=torch.Generator().manual_seed(s)).to(dtype) for s in range(count)]


def batches(steps, count, batch, dtype, width=6):
    rng = torch.Generator().manual_seed(9)
    x = torch.randn(steps, count, batch, width, generator=rng, dtype=dtype)
    return x, torch.randint(0, 4, (steps, count, batch), generator=rng)


def attached(model, optimizer, methods, units, seeds):
    return pliant.attach(model, optimizer, methods, units=units, seed=seeds, init="kaiming_uniform")


def train(model, make_optimizer, methods, x, y, *, by_hand, units, seeds):
    """Train on batches ``x [T, S, B, I]``; returns the handle and the outputs before each update."""
    optimizer = make_optimizer(model.parameters())
    handle = attached(model, optimizer, methods, units, seeds)
    single = isinstance(seeds, int)
    heads = Heads(Objective(), 4)
    constants = heads.constant(y, x.dtype, None)
    outputs = torch.empty(*x.shape[:3], 4, dtype=x.dtype)
    part = Part(slice(0, x.shape[1]), tuple(model.parameters()), optimizer, handle.by_hand() if by_hand else None)
    steps = FusedMLP(model, [part], leave_gradients=not steps_by_hand(methods)) if by_hand else None
    half = len(x) // 2
    if steps is not None:
        for part in (slice(0, half), slice(half, None)):
            if part.start:
                handle.task_boundary()
            own = constants[part]
            steps.run(x[part], outputs[part], lambda step, out, own=own: heads.gradient(out, own[step], None))
        return handle, outputs
    for step in range(len(x)):
        if step == half:
            handle.task_boundary()
        optimizer.zero_grad()
        out = model(x[step][0]).unsqueeze(0) if single else model(x[step])
        out.backward(heads.gradient(out.detach(), constants[step], None))
        optimizer.step()
        outputs[step] = out.detach()
    return handle, outputs


CASES = [
    *((optimizer, "continual_backprop", batch) for optimizer in OPTIMIZERS for batch in (1, 5)),
    *(("sgd", method, 1) for method in METHODS),
    *(("adam", method, 5) for method in METHODS),
]


@pytest.fixture(scope="module")
def units():
    return pliant.find_units(networks(torch.float64)[0], torch.randn(4, 6).double())


@pytest.mark.parametrize(("optimizer", "method", "batch"), list(dict.fromkeys(CASES)))
def test_a_step_by_hand_is_a_step_through_autograd(optimizer, method, batch, units):
    """A hundred float64 steps to 1e-6, with the same resets."""
    x, y = batches(STEPS, 3, batch, torch.float64)
    runs = []
    for by_hand in (True, False):
        model = stack(networks(torch.float64))
        runs.append(
            (
                model,
                *train(model, OPTIMIZERS[optimizer], METHODS[method], x, y, by_hand=by_hand, units=units, seeds=SEEDS),
            )
        )
    (mine, handle, outputs), (theirs, other, wanted) = runs
    torch.testing.assert_close(outputs, wanted, rtol=0, atol=1e-6)
    for (name, a), b in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6), name
    assert [event.units for event in handle.events] == [event.units for event in other.events]
    assert handle.num_steps == other.num_steps == STEPS
    if method in ("continual_backprop", "adaptable", "redo"):
        assert any(event.units for event in handle.events)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_a_member_by_hand_is_its_single_run_bit_by_bit(optimizer, batch):
    x, y = batches(40, 2, batch, torch.float32)
    singles = networks(torch.float32, hidden=(100, 100), count=2)
    units = pliant.find_units(singles[0], torch.randn(4, 6))
    model = stack(singles)
    method = METHODS["continual_backprop"]
    together, _ = train(model, OPTIMIZERS[optimizer], method, x, y, by_hand=True, units=units, seeds=SEEDS[:2])
    for member, single in enumerate(singles):
        own = slice(member, member + 1)
        alone, _ = train(
            single, OPTIMIZERS[optimizer], method, x[:, own], y[:, own], by_hand=True, units=units, seeds=SEEDS[member]
        )
        for name, value in unstack(model, member).items():
            assert torch.equal(value, single.state_dict()[name]), name
        assert {n: int(v[member]) for n, v in together.num_resets.items()} == {
            n: int(v) for n, v in alone.num_resets.items()
        }


@pytest.fixture
def everything_waits(monkeypatch):
    """Updates of layers of any size wait, and products of any size are done in parts where that goes."""
    for module in (fused, fused_layers):
        monkeypatch.setattr(module, "LARGE", 1)
    monkeypatch.setattr(fused, "LARGE_FIRST", 1)


@pytest.mark.parametrize("transposed_from", [2, fused_layers.LONG])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("method", ["none", "continual_backprop", "adaptable", "l2_and_noise", "redo"])
def test_updates_that_wait_are_the_same_step(method, batch, transposed_from, units, everything_waits, monkeypatch):
    """Also where blocks of different lengths share a transposed copy, and interventions write weights in between."""
    monkeypatch.setattr(fused_layers, "LONG", transposed_from)
    x, y = batches(STEPS, 3, batch, torch.float64)
    runs = []
    for by_hand in (True, False):
        model = stack(networks(torch.float64))
        run = train(model, OPTIMIZERS["sgd"], METHODS[method], x, y, by_hand=by_hand, units=units, seeds=SEEDS)
        runs.append((model, *run))
    (mine, handle, outputs), (theirs, other, wanted) = runs
    torch.testing.assert_close(outputs, wanted, rtol=0, atol=1e-6)
    for (name, a), b in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6), name
    assert [event.units for event in handle.events] == [event.units for event in other.events]


def test_updates_do_wait_and_end_with_every_call(everything_waits):
    x, y = batches(72, 2, 1, torch.float64)
    singles = networks(torch.float64, count=2)
    model = stack(singles)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    steps = FusedMLP(model, [Part(slice(0, 2), tuple(model.parameters()), optimizer, None)])
    heads = Heads(Objective(), 4)
    constants, out = heads.constant(y, x.dtype, None), torch.empty(72, 2, 1, 4, dtype=torch.float64)
    steps.run(x, out, lambda step, o: heads.gradient(o, constants[step], None))
    first, *others = steps._blocks[1]
    assert type(first) is PostponedFirst
    assert {type(layer) for layer in others} == {Postponed}
    assert not any(layer.is_transposed for layer in others)  # a copy is not worth it in the last block, of eight steps,
    assert all(layer.transposed is not None for layer in others)  # but was in that of sixty-four
    direct = stack(singles)
    optimizer = torch.optim.SGD(direct.parameters(), lr=0.05)
    part = Part(slice(0, 2), tuple(direct.parameters()), optimizer, None)
    FusedMLP(direct, [part], postpone=False).run(x, out, lambda step, o: heads.gradient(o, constants[step], None))
    for a, b in zip(model.parameters(), direct.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["none", "continual_backprop"])
@pytest.mark.parametrize("batch", [1, 3, 8, 10])
def test_blocks_do_not_depend_on_how_large_chunks_are(batch, method, units, everything_waits):
    """Not even where interventions, which decide at every seventh step, end blocks early."""
    chunk = chunk_multiple(batch)
    methods = [pliant.ContinualBackprop(0.01, maturity_threshold=5, decide_every=7)] if method != "none" else []
    x, y = batches(3 * chunk, 2, batch, torch.float32)
    heads, ends = Heads(Objective(), 4), []
    constants = heads.constant(y, x.dtype, None)
    for parts in ([slice(0, 3 * chunk)], [slice(0, chunk), slice(chunk, 3 * chunk)]):
        model = stack(networks(torch.float32, count=2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        follower = None
        if methods:
            handle = pliant.attach(model, optimizer, copy.deepcopy(methods), units=units, seed=SEEDS[:2])
            follower = handle.by_hand()
        steps = FusedMLP(model, [Part(slice(0, 2), tuple(model.parameters()), optimizer, follower)])
        for part in parts:
            out = torch.empty(len(x[part]), 2, batch, 4)
            own = constants[part]
            steps.run(x[part], out, lambda step, o, own=own: heads.gradient(o, own[step], None))
        if methods:
            assert any(event.units for event in handle.events)
        ends.append([parameter.detach().clone() for parameter in model.parameters()])
    for a, b in zip(*ends, strict=True):
        assert torch.equal(a, b)


def test_chunks_hold_whole_blocks():
    for batch in range(1, 65):
        for rows in (fused._MAX_ROWS, fused._MAX_ROWS_OF_LARGE):
            assert chunk_multiple(batch) % fused.longest_block(max(rows, batch), batch) == 0


def test_a_member_whose_updates_wait_is_its_single_run_bit_by_bit():
    """At the size of permuted MNIST, whose first layer is large; steps after which units are replaced end a block."""
    rng = torch.Generator().manual_seed(0)
    x, y = torch.rand(40, 2, 1, 784, generator=rng), torch.randint(0, 4, (40, 2, 1), generator=rng)
    singles = [MLP(784, 4, (100, 100), generator=rng) for _ in range(2)]
    units = pliant.find_units(singles[0], torch.rand(4, 784))
    model = stack(singles)
    method = [pliant.ContinualBackprop(1e-3, maturity_threshold=5, decay_rate=0.9, decide_every=10)]
    handle, _ = train(model, OPTIMIZERS["sgd"], method, x, y, by_hand=True, units=units, seeds=SEEDS[:2])
    assert sum(int(total.sum()) for total in handle.num_resets.values()) > 0
    for member, single in enumerate(singles):
        own = slice(member, member + 1)
        train(single, OPTIMIZERS["sgd"], method, x[:, own], y[:, own], by_hand=True, units=units, seeds=SEEDS[member])
        for name, value in unstack(model, member).items():
            assert torch.equal(value, single.state_dict()[name]), name


def test_members_with_their_own_step_sizes():
    """Two optimizers on the halves of one stack: plain SGD is done for all at once, with a step size each."""
    x, y = batches(30, 4, 3, torch.float64)
    singles = networks(torch.float64, count=4)
    model = stack(singles)
    rates = (0.1, 0.01)
    halves = [[torch.nn.Parameter(p.detach()[2 * k : 2 * k + 2]) for p in model.parameters()] for k in (0, 1)]
    optimizers = [torch.optim.SGD(half, lr=rate) for half, rate in zip(halves, rates, strict=True)]
    parts = [Part(slice(2 * k, 2 * k + 2), tuple(halves[k]), optimizers[k], None) for k in (0, 1)]
    heads = Heads(Objective(), 4)
    constants = heads.constant(y, x.dtype, None)
    out = torch.empty(30, 4, 3, 4, dtype=torch.float64)
    FusedMLP(model, parts).run(x, out, lambda step, o: heads.gradient(o, constants[step], None))
    for member, single in enumerate(singles):
        optimizer = torch.optim.SGD(single.parameters(), lr=rates[member // 2])
        for step in range(30):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(single(x[step, member]), y[step, member]).backward()
            optimizer.step()
        for name, value in unstack(model, member).items():
            assert torch.allclose(value, single.state_dict()[name], rtol=0, atol=1e-6), name


def test_what_can_be_done_by_hand():
    assert can_fuse(MLP(4, 2, (3,)))
    assert can_fuse(stack([MLP(4, 2, (3,)) for _ in range(2)]))
    linear = torch.nn.Linear
    assert not can_fuse(torch.nn.Sequential(linear(4, 3), torch.nn.Tanh(), linear(3, 2)))
    assert not can_fuse(torch.nn.Sequential(linear(4, 3, bias=False), torch.nn.ReLU(), linear(3, 2)))
    assert not can_fuse(torch.nn.Sequential(linear(4, 3), torch.nn.ReLU()))
    assert not can_fuse(linear(4, 3))
    frozen = MLP(4, 2, (3,))
    frozen.head.weight.requires_grad_(False)
    assert not can_fuse(frozen)
    assert steps_by_hand([pliant.L2(0.1), pliant.ContinualBackprop()])
    assert not steps_by_hand([pliant.L2(0.1, apply="gradient")])
    assert not steps_by_hand([pliant.ReGraMa()])


def test_what_a_step_by_hand_cannot_tell_is_refused(units):
    model = networks(torch.float64)[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attached(model, optimizer, [pliant.FeatureNorm(0.1)], units, 0)
    with pytest.raises(pliant.NotYetSupported, match="graph or gradients"):
        handle.by_hand()
    with pytest.raises(pliant.IllegalConfiguration, match="say which"):
        handle.by_hand(torch.optim.SGD(model.parameters(), lr=0.1))
