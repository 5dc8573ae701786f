"""Methods that act through the loss against slow re-derivations, step by step, in float64."""

from __future__ import annotations

import pytest
from parity_tools import OPTIMIZERS, Pair, batch

from pliant.interventions import CChain, FeatureNorm
from references import feature_norm
from references.c_chain import SlowCChain


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_feature_norm_is_the_papers(optimizer):
    pair = Pair(FeatureNorm(0.3), optimizer)
    for number in range(10):
        x, _ = batch("mlp", number)
        pair.step(number, penalty=lambda _, x=x: 0.3 * feature_norm.penalty(pair.slow, x))
    pair.check()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("lag", "start", "window"), [(1, 0, 100), (2, 5, 3), (3, 1, 5)])
def test_c_chain_is_the_papers(lag, start, window, optimizer):
    options = {"share": 0.5, "lag": lag, "start": start, "window": window}
    pair = Pair(CChain(**options), optimizer)
    reference = SlowCChain(pair.slow, **options)
    for number in range(12):
        x, _ = batch("mlp", number + 1000)
        pair.step(number, penalty=lambda loss, x=x: reference.penalty(loss, x), after=reference.after_step)
    assert len(reference.coefficients) >= 6
    pair.check()
    assert pair.handle.record()["CChain.churn"] == pytest.approx(reference.mean_churn, rel=1e-9)
