"""Methods on features and outputs against slow re-derivations, step by step, in float64."""

from __future__ import annotations

import pytest
from parity_tools import OPTIMIZERS, Pair, batch

from pliant.interventions import CChain, FeatureNorm, L2EffectiveRank
from references import feature_norm
from references.c_chain import SlowCChain
from references.l2_effective_rank import SlowL2EffectiveRank


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_feature_norm_is_the_papers(optimizer):
    pair = Pair(FeatureNorm(0.3), optimizer)
    for number in range(10):
        x, _ = batch("mlp", number)
        pair.step(number, penalty=lambda _, x=x: 0.3 * feature_norm.penalty(pair.slow, x))
    pair.check()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("lag", "start", "window", "every"), [(1, 0, 100, 1), (2, 5, 3, 1), (3, 1, 5, 1), (1, 2, 6, 3)]
)
def test_c_chain_is_the_papers(lag, start, window, every, optimizer):
    options = {"share": 0.5, "lag": lag, "start": start, "window": window, "every": every}
    pair = Pair(CChain(**options), optimizer)
    reference = SlowCChain(pair.slow, **options)
    for number in range(12 if every == 1 else 21):
        x, _ = batch("mlp", number + 1000)
        pair.step(number, penalty=lambda loss, x=x: reference.penalty(loss, x), after=reference.after_step)
    assert len(reference.coefficients) >= 6
    pair.check()
    assert pair.handle.record()["CChain.churn"] == pytest.approx(reference.mean_churn, rel=1e-9)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("every", "repeats", "keep", "rank"), [(3, 1, None, "singular"), (4, 2, 2, "gram")])
def test_steps_of_effective_rank_are_the_authors(every, repeats, keep, rank, optimizer):
    options = {"strength": 0.03, "l2": 0.01, "every": every, "repeats": repeats, "keep": keep, "rank": rank}
    pair = Pair(L2EffectiveRank(**options), optimizer)
    reference = SlowL2EffectiveRank(pair.slow, **options)
    for number in range(9):
        inputs = batch("mlp", number)
        assert pair.handle.batch(inputs) is inputs
        pair.step(number, before=reference.before_step, after=lambda x=inputs[0]: reference.after_step(x))
    pair.check()


@pytest.mark.parametrize("rank", ["singular", "gram"])
def test_effective_rank_in_the_loss_is_the_reference(rank):
    pair = Pair(L2EffectiveRank(0.05, l2=0.02, every=2, apply="loss", rank=rank), "adam")
    reference = SlowL2EffectiveRank(pair.slow, 0.05, 0.02, 1, 1, None, rank)
    for number in range(8):
        x, _ = batch("mlp", number)
        penalty = (lambda _, x=x: 0.05 * reference.loss(x)) if number % 2 else None
        pair.step(number, penalty=penalty, before=reference.before_step)
    pair.check()
