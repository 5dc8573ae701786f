"""Methods that reset units or single weights against slow re-derivations of them, step by step, in float64."""

from __future__ import annotations

import pytest
import torch
from parity_tools import OPTIMIZERS, Mlp, assert_equal, drawer, events, step

import pliant
from pliant.interventions import ReGraMa, SelectiveWeightReset, SelfNormalizedReset
from references.regrama import SlowReGraMa
from references.selective_weight_reset import SlowSelectiveWeightReset
from references.self_normalized_reset import SlowSelfNormalizedReset

UNITS = (13, 10)


class Pair:
    """The same network twice: one protected by the product, the other by the reference."""

    def __init__(self, optimizer: str, method, reference, *, batch: int = 8, **settings) -> None:
        torch.manual_seed(1)
        self.fast, self.slow, self.batch = Mlp().double(), Mlp().double(), batch
        self.slow.load_state_dict(self.fast.state_dict())
        self.fast_optimizer = OPTIMIZERS[optimizer](self.fast.parameters())
        self.slow_optimizer = OPTIMIZERS[optimizer](self.slow.parameters())
        units = pliant.find_units(Mlp(), torch.randn(2, 6))
        self.handle = pliant.attach(self.fast, self.fast_optimizer, method, units=units, seed=11)
        self.reference = reference(list(self.slow.linears), self.slow_optimizer, drawer(11), **settings)

    def run(self, start: int, stop: int) -> None:
        for number in range(start, stop):
            for model, optimizer in ((self.fast, self.fast_optimizer), (self.slow, self.slow_optimizer)):
                step(model, optimizer, number, size=self.batch)
            self.reference.after_step(self.slow.features)

    @property
    def events(self):
        return events(self.handle)

    def assert_equal(self) -> None:
        assert_equal(self.fast, self.fast_optimizer, self.slow, self.slow_optimizer)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("percentile", "initial", "bounds", "expansion", "every", "min_active", "check"),
    [
        (0.9, 6, (1, 12), 2.0, 20, 0.0, 1),
        (0.5, 3, (2, 5), 1.5, 7, 0.0, 1),
        (1.0, 4, (1, 40), 3.0, 15, 0.3, 1),
        (0.8, 5, (3, 9), 2.0, 11, 0.2, 4),
    ],
)
def test_self_normalized_reset_is_the_published_algorithm(
    optimizer, percentile, initial, bounds, expansion, every, min_active, check
):
    settings = {
        "percentile": percentile,
        "initial_threshold": initial,
        "min_threshold": bounds[0],
        "max_threshold": bounds[1],
        "expansion": expansion,
        "update_every": every,
        "min_active": min_active,
        "check_every": check,
    }
    method = SelfNormalizedReset(**settings)
    pair = Pair(optimizer, method, SlowSelfNormalizedReset, batch=2 if min_active == 0 else 8, **settings)
    seen = set()
    for start in range(0, 120, 10):
        pair.run(start, start + 10)
        assert pair.events == pair.reference.replaced, f"by step {start + 10}"
        pair.assert_equal()
        state = pair.handle.state_dict()["state"][0]
        for layer in (0, 1):
            entry = state[f"linears.{layer}"]
            assert entry["silent"].tolist() == pair.reference.silent[layer]
            assert entry["threshold"].tolist() == pair.reference.threshold[layer]
            seen |= set(pair.reference.threshold[layer])
            for unit, lengths in enumerate(pair.reference.lengths[layer]):
                counts = [lengths.count(length) for length in range(bounds[1] + 1)]
                assert entry["gaps"][unit].tolist() == counts
    assert len(pair.reference.replaced) >= 5
    assert len(seen) >= 3  # thresholds went up and down


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("tau", "every"), [(0.5, 5), (0.9, 1), (0.0, 3)])
def test_regrama_is_the_published_algorithm(optimizer, tau, every):
    settings = {"tau": tau, "every": every}
    pair = Pair(optimizer, ReGraMa(**settings), SlowReGraMa, **settings)
    with torch.no_grad():
        for model in (pair.fast, pair.slow):
            model.linears[0].bias[:3] = -100.0  # dead from the start, so that tau = 0 has something to do
    for start in range(0, 40, 10):
        pair.run(start, start + 10)
        assert pair.events == pair.reference.replaced
        pair.assert_equal()
    assert pair.reference.replaced


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("to", ["resample", "mean"])
@pytest.mark.parametrize("utility", ["gradient", "magnitude"])
@pytest.mark.parametrize(("rule", "factor", "every"), [("threshold", 0.2, 4), ("proportional", 0.03, 1)])
def test_selective_weight_reset_is_the_published_algorithm(optimizer, to, utility, rule, factor, every):
    settings = {"factor": factor, "rule": rule, "utility": utility, "to": to, "every": every}
    pair = Pair(optimizer, SelectiveWeightReset(**settings), SlowSelectiveWeightReset, **settings)
    for start in range(0, 32, 8):
        pair.run(start, start + 8)
        pair.assert_equal()
    counts = {count for _, count in pair.reference.replaced}
    assert max(counts) > 1
    assert rule == "threshold" or len(counts) > 2  # chance decides about the rest
