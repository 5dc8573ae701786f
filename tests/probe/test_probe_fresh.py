"""A fresh twin is what the model would be if its training began today, and making it leaves no trace."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from zoo import NAMES, ZOO

import pliant
from pliant.errors import IllegalConfiguration, NoEffect
from pliant.fresh import copy_of, fresh_twin
from pliant.probe import RandomLabels

MANY = 64  # entries from which moments of a draw say something


def every_random_state():
    return [torch.get_rng_state(), torch.tensor(np.random.get_state()[1].astype(np.int64)), random.getstate()]


def same(a, b):
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b, strict=True))


def aged(model):
    """Every trained value, running statistic and gradient moved far away from where it began."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
            if tensor.requires_grad or tensor.ndim == 1:
                tensor.mul_(3).add_(0.5)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_twins_of_the_zoo_are_as_fresh_networks_are(name):
    case = ZOO[name]
    born = case.model(1)
    model = aged(case.model(0))
    before, randomness = copy.deepcopy(model.state_dict()), every_random_state()
    twin = fresh_twin(model, seed=7, init=case.init)
    assert same(every_random_state(), randomness)
    assert same(model.state_dict().values(), before.values())
    assert all(bool((p.grad == 1).all()) for p in model.parameters())
    assert all(p.grad is None for p in twin.parameters())

    state, fresh = twin.state_dict(), born.state_dict()
    assert list(state) == list(before)
    assert {k: (v.shape, v.dtype) for k, v in state.items()} == {k: (v.shape, v.dtype) for k, v in before.items()}
    trained = {key for key, parameter in twin.named_parameters() if parameter.requires_grad}
    for key in trained:
        assert not torch.equal(state[key], before[key]), key
    if case.init is not None:  # what the author of the case said replaces what the constructor draws
        return
    for key in trained:
        drawn, expected = state[key].double(), fresh[key].double()
        if drawn.numel() > 1 and expected.unique().numel() == 1:
            assert torch.equal(drawn, expected), key
        elif drawn.numel() >= MANY:
            spread = expected.std()
            assert abs(drawn.std() / spread - 1) < 5 / drawn.numel() ** 0.5, key
            assert abs(drawn.mean() - expected.mean()) < 6 * spread / drawn.numel() ** 0.5, key
            assert drawn.unique().numel() > drawn.numel() / 2, key


def test_seeds():
    model = ZOO["mlp"].model()
    one, again, other = (fresh_twin(model, seed=seed) for seed in (0, 0, 1))
    assert same(one.state_dict().values(), again.state_dict().values())
    weights = [net.get_parameter(next(iter(net.state_dict()))) for net in (model, one, other)]
    assert not (weights[0] == weights[1]).any()
    assert not (weights[1] == weights[2]).any()


def test_running_statistics_start_again_and_tied_weights_stay_tied():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[3].weight = model[2].weight
    model(torch.randn(16, 4) + 3)
    twin = fresh_twin(model, seed=0)
    assert twin[3].weight is twin[2].weight
    assert twin[2].weight is not model[2].weight
    assert int(twin[1].num_batches_tracked) == 0
    assert torch.equal(twin[1].running_mean, torch.zeros(8))
    assert int(model[1].num_batches_tracked) == 1


def test_what_is_not_trained_is_kept():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    model(torch.randn(16, 4) + 3)
    model[:2].requires_grad_(False)
    twin = fresh_twin(model, seed=0)
    assert same(twin[:2].state_dict().values(), model[:2].state_dict().values())
    assert not (twin[2].weight == model[2].weight).any()
    model.requires_grad_(False)
    with pytest.raises(NoEffect, match="requires_grad_"):
        fresh_twin(model, seed=0)


def test_spectral_norm_estimates_belong_to_the_new_weights():
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(12, 12)))
    with torch.no_grad():
        model[0].parametrizations.weight.original.copy_(torch.diag(torch.tensor([9.0] + [1.0] * 11)))
    model(torch.randn(2, 12))
    twin = fresh_twin(model, seed=3).eval()
    assert float(torch.linalg.matrix_norm(twin[0].weight.detach(), 2)) == pytest.approx(1.0, abs=0.05)


def test_an_unknown_distribution_is_named_and_nothing_is_guessed():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.scale = nn.Linear(3, 3), nn.Parameter(torch.ones(3))

    model = Scaled()
    with pytest.raises(IllegalConfiguration, match="'scale'"):
        fresh_twin(model, seed=0)
    with torch.no_grad():
        model.scale.fill_(5.0)
    assert fresh_twin(model, seed=0, init={"scale": "ones"}).scale.tolist() == [1.0, 1.0, 1.0]
    assert fresh_twin(model, seed=0, init={"scale": "ones"}).inner.weight.abs().max() <= 3**-0.5


def test_nobody_hears_the_copy():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    heard = []
    model[0].register_forward_hook(lambda *_: heard.append("hook"))
    model.register_forward_pre_hook(lambda *_: heard.append("pre"))
    model.register_full_backward_hook(lambda *_: heard.append("backward"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = pliant.attach(
        model, optimizer, pliant.ContinualBackprop(replacement_rate=0.1), example_inputs=torch.zeros(2, 4)
    )
    heard.clear()
    twin = copy_of(model)
    twin(torch.randn(3, 4)).sum().backward()
    assert heard == []
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in twin.modules())
    model(torch.randn(3, 4))
    assert heard == ["pre", "hook"]
    handle.detach()


def test_hooks_that_are_a_part_of_the_model_come_along():
    class Doubling(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)
            self.fc.register_forward_hook(self.double)
            self.calls = 0

        def double(self, module, args, output):
            self.calls += 1
            return 2 * output

        def forward(self, x):
            return self.fc(x)

    model, x = Doubling(), torch.randn(3, 2)
    twin = copy_of(model)
    assert torch.equal(twin(x), model(x))
    assert (twin.calls, model.calls) == (1, 1)
    pruned = prune.random_unstructured(nn.Linear(4, 4), "weight", amount=0.5)
    pruned(x.new_ones(1, 4)).sum()  # leaves a tensor with its graph in an attribute
    fresh = fresh_twin(pruned, seed=0)
    fresh(x.new_ones(1, 4))
    assert torch.equal(fresh.weight == 0, pruned.weight_mask == 0)
    assert not torch.equal(fresh.weight, pruned.weight)


def test_models_that_cannot_be_copied_say_why():
    import threading

    model = nn.Linear(2, 2)
    model.lock = threading.Lock()
    with pytest.raises(IllegalConfiguration, match="Linear cannot be copied"):
        copy_of(model)
    with pytest.raises(IllegalConfiguration, match="no values yet"):
        fresh_twin(nn.LazyLinear(3), seed=0)
    with pytest.raises(IllegalConfiguration, match="meta"):
        fresh_twin(nn.Linear(2, 2, device="meta"), seed=0)
    with pytest.raises(IllegalConfiguration, match="DataParallel"):
        fresh_twin(nn.DataParallel(nn.Linear(2, 2)), seed=0)
    generator = torch.Generator().manual_seed(3)
    model = nn.Linear(2, 2)
    model.generator = generator
    twin = copy_of(model)
    expected = torch.rand(2, generator=torch.Generator().manual_seed(3))
    assert torch.equal(torch.rand(2, generator=twin.generator), expected)
    assert torch.equal(torch.rand(2, generator=generator), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_data_types_are_kept(dtype):
    twin = fresh_twin(nn.Linear(64, 64).to(dtype), seed=0)
    assert twin.weight.dtype == dtype
    assert float(twin.weight.detach().double().std()) == pytest.approx(0.125 / 3**0.5, rel=0.05)


def orthogonal() -> nn.Module:
    """A model that initialises its layers itself, which nobody can see."""
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    nn.init.orthogonal_(model[0].weight)
    return model


def is_orthogonal(weight):
    return torch.allclose(weight @ weight.T, torch.eye(6), atol=1e-5)


def test_a_model_that_initialises_itself_is_made_anew_by_its_maker():
    model = orthogonal()
    model(torch.randn(8, 6))  # running statistics move
    model[3].weight.requires_grad_(False)
    before, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    twin = pliant.fresh_twin(model, seed=3, make_model=orthogonal)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert is_orthogonal(twin[0].weight)
    assert not torch.equal(twin[0].weight, model[0].weight)
    assert torch.equal(twin[3].weight, model[3].weight)  # frozen
    assert torch.equal(twin[1].running_mean, torch.zeros(6))
    assert twin[1].num_batches_tracked == 0
    again = pliant.fresh_twin(model, seed=3, make_model=orthogonal)
    assert torch.equal(twin[0].weight, again[0].weight)
    assert not torch.equal(twin[0].weight, pliant.fresh_twin(model, seed=4, make_model=orthogonal)[0].weight)
    assert not is_orthogonal(pliant.fresh_twin(model, seed=3)[0].weight)


@pytest.mark.parametrize(
    ("maker", "options", "words"),
    [
        (lambda: nn.Linear(2, 2), {}, "another network"),
        (lambda: "a network", {}, "not an nn.Module"),
        (orthogonal, {"init": "kaiming_uniform"}, "not both"),
    ],
)
def test_a_maker_that_does_not_fit_is_refused(maker, options, words):
    with pytest.raises(pliant.IllegalConfiguration, match=words):
        pliant.fresh_twin(orthogonal(), seed=0, make_model=maker, **options)


def test_probes_and_live_twins_begin_where_the_maker_does():
    """A fresh network is no worse than those that are made as it was."""
    made = []

    def maker():
        made.append(orthogonal())
        return made[-1]

    result = pliant.probe(
        orthogonal(),
        RandomLabels(inputs=torch.randn(32, 6), num_classes=2),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        steps=5,
        seeds=2,
        make_model=maker,
    )
    assert len(made) == result.gap.num == 2
    model = orthogonal()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    live = pliant.live_twin(model, optimizer, make_model=maker)
    assert len(made) == 3
    del live
