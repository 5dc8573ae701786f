"""UPGD: the published algorithm, noise that resumes bit by bit, members, resets, the command line's names."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

import pliant
from pliant import IllegalConfiguration, NotYetSupported
from pliant.bench.engine import can_stack
from pliant.bench.ensemble import stack, unstack
from pliant.bench.experiment import Experiment, optimizer_table
from pliant.interventions import ContinualBackprop, ReDo
from pliant.optim import UPGD, adam_equal_betas
from pliant.optim.upgd import _mixed
from references.upgd import SlowUPGD

VARIANTS = [("global", True), ("local", True), ("global", False), ("local", False)]


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def gradients(model, number: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(1000 * seed + number)
    x = torch.randn(16, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(16, 3, generator=generator, dtype=torch.float64)
    for p in model.parameters():
        p.grad = None
    (model(x) - y).square().mean().backward()


def drawer(seed: int):
    def at(step: int):
        generator = torch.Generator().manual_seed(_mixed(seed, step))
        return lambda shape: torch.empty(shape, dtype=torch.float64).normal_(generator=generator)

    return at


@pytest.mark.parametrize(("utility", "protect"), VARIANTS)
def test_it_is_the_published_algorithm(utility, protect):
    options = {"lr": 0.05, "weight_decay": 0.1, "beta": 0.9, "sigma": 0.2, "utility": utility, "protect": protect}
    fast, slow = network(), network()
    optimizer = UPGD(fast.parameters(), seed=7, **options)
    reference = SlowUPGD(slow.parameters(), drawer(7), **options)
    for number in range(30):
        for model, item in ((fast, optimizer), (slow, reference)):
            gradients(model, number)
            item.step()
    for (name, p), q in zip(fast.named_parameters(), slow.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-10, atol=1e-12), name
    for p, average in zip(fast.parameters(), reference.average, strict=True):
        assert torch.allclose(optimizer.state[p]["avg_utility"], average, atol=1e-13)


def test_the_most_useful_weight_by_hand():
    """Two weights, no noise: the utilities are -g w = 2 and 0; the gates are 1 - sigmoid(1) and one half."""
    weight = nn.Parameter(torch.tensor([1.0, 0.0], dtype=torch.float64))
    optimizer = UPGD([weight], lr=1.0, weight_decay=0.0, beta=0.0, sigma=0.0)
    weight.grad = torch.tensor([-2.0, 4.0], dtype=torch.float64)
    optimizer.step()
    gate = 1 - torch.sigmoid(torch.tensor(1.0, dtype=torch.float64))
    assert weight.tolist() == pytest.approx([1 + 2 * float(gate), -2.0])


def test_nothing_useful_yet_is_no_number_problem():
    weight = nn.Parameter(torch.zeros(3))
    optimizer = UPGD([weight], lr=1.0, sigma=0.0)
    weight.grad = torch.ones(3)
    optimizer.step()
    assert weight.tolist() == pytest.approx([-0.5] * 3)


def test_noise_has_its_size_and_differs_from_step_to_step():
    weight = nn.Parameter(torch.zeros(100, 100))
    optimizer = UPGD([weight], lr=1.0, sigma=0.4)
    seen = []
    for _ in range(2):
        with torch.no_grad():
            weight.zero_()
        weight.grad = torch.zeros(100, 100)
        state = torch.get_rng_state()
        optimizer.step()
        assert torch.equal(torch.get_rng_state(), state)
        seen.append(weight.detach().clone())
    assert float(seen[0].std()) == pytest.approx(0.2, rel=0.05)  # the gate of no utility is one half
    assert abs(float(torch.corrcoef(torch.stack([item.flatten() for item in seen]))[0, 1])) < 0.05


@pytest.mark.parametrize(("utility", "protect"), VARIANTS)
def test_resuming_is_bitwise(utility, protect):
    def start(seed, model_seed):
        model = network(model_seed)
        return model, UPGD(model.parameters(), lr=0.1, sigma=0.3, utility=utility, protect=protect, seed=seed)

    model, optimizer = start(3, 0)
    for number in range(4):
        gradients(model, number)
        optimizer.step()
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, resumed = start(99, 5)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    for number in range(4, 8):
        for one, item in ((model, optimizer), (other, resumed)):
            gradients(one, number)
            item.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize(("utility", "protect"), VARIANTS)
def test_a_member_is_its_single_run(utility, protect):
    seeds = (3, 14, 15)
    options = {"lr": 0.1, "sigma": 0.3, "beta": 0.9, "utility": utility, "protect": protect}
    singles = [network(seed) for seed in seeds]
    stacked = stack(singles)
    optimizer = UPGD(stacked.parameters(), seed=seeds, **options)
    optimizers = [UPGD(model.parameters(), seed=seed, **options) for model, seed in zip(singles, seeds, strict=True)]
    for number in range(20):
        for model, item, seed in zip(singles, optimizers, seeds, strict=True):
            gradients(model, number, seed)
            item.step()
        for p in stacked.parameters():
            p.grad = None
        for member, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(1000 * seed + number)
            x = torch.zeros(3, 16, 5, dtype=torch.float64)
            x[member] = torch.randn(16, 5, generator=generator, dtype=torch.float64)
            y = torch.randn(16, 3, generator=generator, dtype=torch.float64)
            (stacked(x)[member] - y).square().mean().backward()
        optimizer.step()
    for member, model in enumerate(singles):
        for key, value in unstack(stacked, member).items():
            assert torch.allclose(value, model.state_dict()[key], rtol=0, atol=1e-10), key


def test_resets_know_its_state():
    model = network()
    optimizer = UPGD(model.parameters(), lr=1e-3)
    method = ReDo(tau=2.0, every=5)  # everything is dormant
    handle = pliant.attach(model, optimizer, method, example_inputs=torch.ones(2, 5).double())
    for number in range(5):
        gradients(model, number)
        optimizer.step()
    (event,) = handle.events
    units = list(event.units)
    assert units
    assert not optimizer.state[model[0].weight]["avg_utility"][units].any()
    assert not optimizer.state[model[2].weight]["avg_utility"][:, units].any()
    assert optimizer.state[model[2].bias]["avg_utility"].any()


def test_continual_backprop_with_it_resumes_bitwise():
    def start(seed):
        model = network(seed)
        optimizer = UPGD(model.parameters(), lr=0.05, sigma=0.1, seed=seed)
        method = ContinualBackprop(0.2, maturity_threshold=1, decide_every=1)
        return model, optimizer, pliant.attach(model, optimizer, method, example_inputs=torch.ones(2, 5).double())

    def train(model, optimizer, first, last):
        for number in range(first, last):
            gradients(model, number)
            optimizer.step()

    model, optimizer, handle = start(0)
    train(model, optimizer, 0, 6)
    states = [item.state_dict() for item in (model, optimizer, handle)]
    other = start(1)
    for item, state in zip(other, [torch.load(_file(state), weights_only=True) for state in states], strict=True):
        item.load_state_dict(state)
    train(model, optimizer, 6, 12)
    train(*other[:2], 6, 12)
    assert sum(int(total) for total in handle.num_resets.values()) > 0
    for p, q in zip(model.parameters(), other[0].parameters(), strict=True):
        assert torch.equal(p, q)


def _file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_a_closure_groups_and_parameters_without_gradients():
    model = network()
    before = model[2].bias.detach().clone()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.0}]
    optimizer = UPGD(groups, lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = model[0](torch.ones(2, 5).double()).sum()
        loss.backward()
        return loss

    first = model[0].weight.detach().clone()
    assert float(optimizer.step(closure).detach()) == pytest.approx(float(closure().detach()), abs=100)
    assert not torch.equal(first, model[0].weight)
    assert torch.equal(before, model[2].bias)
    assert model[2].bias not in optimizer.state


def test_what_is_refused():
    for options in (
        {"lr": -1.0},
        {"beta": 1.0},
        {"sigma": -0.1},
        {"weight_decay": -1.0},
        {"utility": "both"},
        {"seed": ()},
    ):
        with pytest.raises(IllegalConfiguration, match=next(iter(options))):
            UPGD(network().parameters(), **options)
    with pytest.raises(IllegalConfiguration, match=r"2 seeds.*\(8, 5\) is none"):
        UPGD(network().parameters(), seed=(1, 2))
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(NotYetSupported, match="sparse"):
        UPGD(table.parameters()).step()
    weight = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    weight.grad = torch.ones_like(weight)
    with pytest.raises(NotYetSupported, match="complex"):
        UPGD([weight]).step()


def test_adam_with_equal_betas():
    optimizer = adam_equal_betas(network().parameters(), lr=0.1, beta=0.9, weight_decay=0.2)
    assert type(optimizer) is torch.optim.Adam
    assert (optimizer.defaults["betas"], optimizer.defaults["weight_decay"]) == ((0.9, 0.9), 0.2)
    with pytest.raises(IllegalConfiguration, match=r"beta=1\.0"):
        adam_equal_betas(network().parameters(), beta=1.0)


def test_a_gradient_that_jumps_moves_adam_less_with_equal_betas():
    moves = []
    for make in (lambda p: torch.optim.Adam(p, lr=1.0), lambda p: adam_equal_betas(p, lr=1.0)):
        weight = nn.Parameter(torch.zeros(1))
        optimizer = make([weight])
        for _ in range(5000):  # long enough for the bias corrections to end
            weight.grad = torch.full((1,), 1e-6)
            optimizer.step()
        before = float(weight.detach())
        weight.grad = torch.full((1,), 1.0)
        optimizer.step()
        moves.append(abs(float(weight.detach()) - before))
    assert moves[0] == pytest.approx(0.1 / 0.001**0.5, rel=1e-2)
    assert moves[1] == pytest.approx(0.1, rel=1e-2)


def test_the_command_line_knows_them():
    assert {"upgd", "adam_equal_betas"} <= set(optimizer_table())
    experiment = Experiment("random_label_digits", optimizer=("upgd", {"lr": 0.01, "sigma": 0.1}), num_tasks=1)
    model = experiment.build_model(0)
    assert experiment.build_optimizer(model, 5).defaults["seed"] == 5
    assert can_stack(experiment)
    stacked = stack([experiment.build_model(seed) for seed in (1, 2)])
    assert experiment.build_optimizer(stacked, (1, 2)).defaults["seed"] == (1, 2)
    other = Experiment("random_label_digits", optimizer=("adam_equal_betas", {"beta": 0.9}), num_tasks=1)
    assert other.build_optimizer(model).defaults["betas"] == (0.9, 0.9)
    with pytest.raises(IllegalConfiguration, match=r"beta=2\.0"):
        Experiment("random_label_digits", optimizer=("adam_equal_betas", {"beta": 2.0}), num_tasks=1)
