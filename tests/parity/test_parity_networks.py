"""Methods for whole layers and networks against slow re-derivations, step by step, in float64."""

from __future__ import annotations

import pytest
import torch
from parity_tools import OPTIMIZERS, step
from torch import nn

import pliant
from pliant.interventions import (
    FIRE,
    FreshStart,
    HareAndTortoise,
    LayerReset,
    OptimizerReset,
    PlasticityInjection,
    ShrinkAndPerturb,
)
from pliant.write import stream_of
from references.fire import SlowFIRE
from references.fresh_start import SlowFreshStart
from references.hare_and_tortoise import SlowHareAndTortoise
from references.layer_reset import SlowLayerReset
from references.optimizer_reset import SlowOptimizerReset
from references.plasticity_injection import SlowInjection
from references.shrink_and_perturb import SlowShrinkAndPerturb


def mlp() -> nn.Sequential:
    torch.manual_seed(1)
    layers = [nn.Linear(6, 13), nn.ReLU(), nn.Linear(13, 10), nn.Tanh(), nn.Linear(10, 3)]
    return nn.Sequential(*layers).double()


UNITS = pliant.find_units(mlp(), torch.randn(2, 6).double())


def linears(model: nn.Sequential) -> list[nn.Linear]:
    return [module for module in model if isinstance(module, nn.Linear)]


def drawer(seed: int):
    """The product's protocol: one generator per model, float32 draws, scaled to [-bound, bound]."""
    generator = torch.Generator().manual_seed(stream_of(seed))
    return lambda shape, bound: torch.rand(shape, generator=generator) * (2 * bound) - bound


def gaussian(seed: int):
    """The same for normal draws of a standard deviation."""
    generator = torch.Generator().manual_seed(stream_of(seed))
    return lambda shape, deviation: torch.randn(shape, generator=generator) * deviation


def compare(method, make_reference, optimizer: str, steps: int = 30, boundaries: tuple[int, ...] = ()):
    """Train two copies, one with the product and one with the reference; they and their optimizers stay equal."""
    fast, slow, plain = mlp(), mlp(), mlp()
    optimizers = [OPTIMIZERS[optimizer](model.parameters()) for model in (fast, slow, plain)]
    handle = pliant.attach(fast, optimizers[0], method, units=UNITS, seed=11)
    reference = make_reference(linears(slow), optimizers[1])
    for number in range(1, steps + 1):
        for model, item in zip((fast, slow, plain), optimizers, strict=True):
            step(model, item, number)
        reference.after_step()
        if number in boundaries:
            handle.task_boundary()
            reference.at_task_boundary()
        for (name, p), q in zip(fast.named_parameters(), slow.parameters(), strict=True):
            assert torch.allclose(p, q, rtol=1e-10, atol=1e-12), (number, name)
        a, b = (item.state_dict()["state"] for item in optimizers[:2])
        for index in a:
            for key, value in a[index].items():
                other = b.get(index, {}).get(key)  # the reference may throw away what the product sets to zero
                other = torch.zeros_like(value) if other is None and value is not None else other
                assert value is other is None or torch.allclose(value, other, rtol=1e-9), (number, index, key)
    assert not torch.allclose(fast[4].weight, plain[4].weight), "the method did nothing"
    return handle, reference


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("last", "every"), [(1, 7), (2, 5), (3, 10)])
def test_layer_reset_is_the_papers_algorithm(optimizer, last, every):
    def reference(layers, item):
        return SlowLayerReset(layers, item, drawer(11), last=last, every=every)

    handle, _ = compare(LayerReset(last, every=every), reference, optimizer)
    assert [event.step for event in handle.events] == list(range(every, 31, every))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("noise", ["init", "normal"])
@pytest.mark.parametrize(("shrink", "scale", "every"), [(0.4, 0.1, None), (0.8, 0.2, 7), (0.999, 0.01, 1)])
def test_shrink_and_perturb_is_the_papers_algorithm(optimizer, noise, shrink, scale, every):
    def reference(layers, item):
        uniform, normal = (drawer(11), None) if noise == "init" else (None, gaussian(11))
        return SlowShrinkAndPerturb(layers, uniform, normal, shrink=shrink, noise_scale=scale, every=every)

    method = ShrinkAndPerturb(shrink, scale, every=every, noise=noise)
    compare(method, reference, optimizer, boundaries=(10, 20))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_fresh_start_is_a_new_network_and_a_new_optimizer(optimizer):
    def reference(layers, item):
        return SlowFreshStart(layers, item, drawer(11))

    compare(FreshStart(), reference, optimizer, boundaries=(10, 20))


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name != "sgd"])
@pytest.mark.parametrize("part", ["all", "moments", "step"])
@pytest.mark.parametrize("every", [None, 7])
def test_optimizer_reset_is_the_papers_algorithm(optimizer, part, every):
    if part == "step" and optimizer != "adam":
        pytest.skip("refused: the step counter plays no part")

    def reference(layers, item):
        return SlowOptimizerReset(item, part=part, every=every)

    compare(OptimizerReset(every, part), reference, optimizer, boundaries=(10, 20))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("iterations", "every"), [(10, None), (5, 7), (1, 10)])
def test_fire_is_the_papers_algorithm(optimizer, iterations, every):
    def reference(layers, item):
        return SlowFIRE(layers, item, iterations=iterations, every=every)

    compare(FIRE(iterations, every), reference, optimizer, boundaries=(10, 20))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("decay", "every"), [(0.9, 7), (0.999, 10), (0.0, 3)])
def test_hare_and_tortoise_is_the_papers_algorithm(optimizer, decay, every):
    if decay == 0:  # the tortoise is the hare: nothing changes
        with pytest.raises(AssertionError, match="did nothing"):
            compare(HareAndTortoise(0.0, 3), lambda *_: SlowHareAndTortoise([], decay=0.0, every=3), optimizer)
        return
    handle, reference = compare(
        HareAndTortoise(decay, every),
        lambda layers, _: SlowHareAndTortoise(layers, decay=decay, every=every),
        optimizer,
    )
    for value, wanted in zip(handle.snapshot("tortoise").values(), reference.slow, strict=True):
        assert torch.allclose(value, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("at", [1, 9])
def test_plasticity_injection_is_the_papers_algorithm(optimizer, at):
    fast, slow = mlp(), mlp()
    optimizers = [OPTIMIZERS[optimizer](model.parameters()) for model in (fast, slow)]
    inputs = torch.randn(2, 6).double()
    handle = pliant.attach(fast, optimizers[0], PlasticityInjection(at=at), example_inputs=inputs, seed=11)
    reference = SlowInjection(list(slow), OPTIMIZERS[optimizer], drawer(11), at=at)
    for number in range(1, 25):
        step(fast, optimizers[0], number)
        step(reference, optimizers[1], number)
        reference.after_step()
        assert torch.allclose(fast(inputs), reference(inputs), rtol=1e-9, atol=1e-11), number
    assert torch.allclose(fast[4].new.weight, reference.new.weight, rtol=1e-9, atol=1e-11)
    assert torch.allclose(fast[4].copy.weight, reference.copy_weight)
    assert not torch.allclose(fast[4].new.weight, reference.copy_weight)
    assert [event.step for event in handle.events if event.action == "assign"] == [at]
