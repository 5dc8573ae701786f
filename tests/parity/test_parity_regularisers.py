"""The regularisers against slow re-derivations, step by step, in float64."""

from __future__ import annotations

import pytest
import torch
from parity_tools import OPTIMIZERS, Pair

from pliant.interventions import L2, L2Init, Parseval, SpectralRegularisation
from references import l2, l2_init, parseval
from references.spectral_regularisation import SlowSpectral


def started(method, optimizer, kind="mlp", **attach):
    pair = Pair(method, optimizer, kind, **attach)
    return pair, list(pair.slow.parameters()), [p.detach().clone() for p in pair.slow.parameters()]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("apply", ["decoupled", "gradient", "loss"])
def test_l2_is_the_textbooks(apply, optimizer):
    pair, parameters, _ = started(L2(0.3, apply=apply), optimizer)
    for number in range(20):
        if apply == "decoupled":
            pair.step(number, after=lambda: l2.shrink(parameters, pair.rate, 0.3))
        else:
            pair.step(number, penalty=lambda _: 0.3 * l2.penalty(parameters))
    pair.check()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("apply", ["decoupled", "gradient", "loss"])
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_l2_init_is_the_papers(norm, apply, optimizer):
    pair, parameters, initial = started(L2Init(0.3, apply=apply, norm=norm), optimizer)
    for number in range(20):
        if apply == "decoupled":
            pair.step(number, after=lambda: l2_init.pull(parameters, initial, pair.rate, 0.3, norm))
        else:
            pair.step(number, penalty=lambda _: 0.3 * l2_init.penalty(parameters, initial, norm))
    pair.check()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("apply", ["decoupled", "gradient", "loss"])
@pytest.mark.parametrize(("kind", "k", "every"), [("mlp", 2.0, 1), ("mlp", 1.0, 3), ("conv", 2.0, 2)])
def test_spectral_regularisation_is_the_papers(kind, k, every, apply, optimizer):
    method = SpectralRegularisation(0.01, apply=apply, k=k, every=every)
    torch.manual_seed(5)
    pair = Pair(method, optimizer, kind)
    start = {}
    for name, parameter in pair.slow.named_parameters():  # both start the iteration from the same vectors
        if parameter.ndim > 1:
            vector = torch.randn(parameter[0].numel(), dtype=torch.float64)
            start[name] = vector / vector.norm()
            pair.handle._memory[0].parameters["right"][name].copy_(start[name])
    reference = SlowSpectral(pair.slow, start, k)
    if apply != "decoupled":
        reference.iterate()
        method.refresh(pair.handle._contexts[0][0], dict(pair.fast.named_parameters()))

    for number in range(6):
        due = (number + 1) % every == 0
        if apply == "decoupled":

            def pull(due=due):
                if due:
                    reference.iterate()
                    parameters = list(pair.slow.parameters())
                    gradients = torch.autograd.grad(reference.penalty(), parameters)
                    with torch.no_grad():
                        for parameter, gradient in zip(parameters, gradients, strict=True):
                            parameter -= pair.rate * 0.01 * every * gradient

            pair.step(number, after=pull)
        else:
            pair.step(
                number,
                penalty=lambda _, due=due: 0.01 * every * due * reference.penalty(),
                after=lambda number=number: reference.iterate() if (number + 2) % every == 0 else None,
            )
    pair.check()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("apply", ["decoupled", "gradient", "loss"])
@pytest.mark.parametrize("normalise_rows", [False, True])
@pytest.mark.parametrize(("kind", "every"), [("mlp", 1), ("conv", 3)])
def test_parseval_is_the_papers(kind, every, normalise_rows, apply, optimizer):
    options = {"scale": 1.5, "normalise_rows": normalise_rows, "reference_width": 10}
    pair = Pair(Parseval(0.02, apply=apply, every=every, **options), optimizer, kind)
    hidden = ("0.weight", "2.weight") if kind == "mlp" else ("0.weight", "4.weight")
    weights = [pair.slow.get_parameter(name) for name in hidden]
    for number in range(6):
        due = (number + 1) % every == 0
        if apply == "decoupled":
            pull = lambda due=due: due and parseval.decoupled(weights, pair.rate, 0.02 * every, **options)  # noqa: E731
            pair.step(number, after=pull)
        else:
            pair.step(number, penalty=lambda _, due=due: 0.02 * every * due * parseval.penalty(weights, **options))
    pair.check()
