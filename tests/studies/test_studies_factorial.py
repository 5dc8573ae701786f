"""Effects, interactions and correlations of the factorial, against cases that can be done by hand."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from benchmarks.manifolds import normalisation_findings
from benchmarks.manifolds.factorial import Factorial, correlation, effect, fall_correlation, interaction

Value = Callable[[str, str, bool, bool, int], float]


def made(value: Value, seeds: int = 3, networks: tuple[str, ...] = ("mlp",)) -> Factorial:
    records: list[dict[str, Any]] = [
        {
            "cell": {"network": n, "norm": norm, "dropout": d, "noise": s},
            "seed": seed,
            "value": value(n, norm, d, s, seed),
        }
        for n, norm, d, s in product(networks, ("none", "batch", "layer"), (False, True), (False, True))
        for seed in range(seeds)
    ]  # fmt: skip
    return Factorial(records, lambda record: record["value"])


def additive(network: str, norm: str, dropout: bool, noise: bool, seed: int) -> float:
    return {"none": 0.0, "batch": 0.2, "layer": 0.3}[norm] - 0.1 * dropout + 0.05 * noise + seed


def test_effects_of_what_adds_up() -> None:
    data = made(additive)
    assert effect(data, "mlp", "norm", "batch").mean == pytest.approx(0.2)
    assert effect(data, "mlp", "norm", "layer").mean == pytest.approx(0.3)
    assert effect(data, "mlp", "dropout").mean == pytest.approx(-0.1)
    assert effect(data, "mlp", "noise").mean == pytest.approx(0.05)
    # Seeds that differ by a constant do not widen the interval: differences are taken within them.
    assert effect(data, "mlp", "noise").half_width == pytest.approx(0, abs=1e-9)
    assert data.mean("mlp", "none").half_width > 1


def test_what_adds_up_has_no_interaction() -> None:
    data = made(additive)
    for pair in (("norm", "dropout"), ("norm", "noise"), ("dropout", "noise")):
        assert interaction(data, "mlp", *pair).mean == pytest.approx(0, abs=1e-9)


def test_an_interaction_by_hand() -> None:
    """LayerNorm takes away what dropout costs: 0.4 without, nothing with."""
    data = made(lambda n, norm, d, s, seed: 1.0 - 0.4 * (d and norm == "none") + seed)
    assert interaction(data, "mlp", "norm", "dropout", "layer").mean == pytest.approx(0.4)
    assert interaction(data, "mlp", "dropout", "norm", "batch").mean == pytest.approx(0.4)
    assert interaction(data, "mlp", "norm", "noise").mean == pytest.approx(0, abs=1e-9)
    assert effect(data, "mlp", "norm").mean == pytest.approx(0.2)
    assert effect(data, "mlp", "dropout").mean == pytest.approx(-0.4 / 3)


def test_unknown_factors_are_refused() -> None:
    with pytest.raises(ValueError, match="no factor"):
        effect(made(additive), "mlp", "width")
    with pytest.raises(ValueError, match="between two"):
        interaction(made(additive), "mlp", "norm", "norm")


def test_a_missing_run_leaves_its_seed_out() -> None:
    data = made(additive)
    del data.values[("mlp", "layer", True, True), 1]
    found = effect(data, "mlp", "norm", "layer")
    assert (found.num, found.num_excluded) == (2, 1)
    assert effect(data, "mlp", "norm", "batch").num == 3


def test_correlations_of_levels_and_falls() -> None:
    symptom = made(lambda n, norm, d, s, seed: {"none": 3.0, "batch": 2.0, "layer": 1.0}[norm] + 0.1 * d + 0.01 * s)
    score = made(lambda n, norm, d, s, seed: -{"none": 3.0, "batch": 2.0, "layer": 1.0}[norm] - 0.1 * d - 0.01 * s)
    assert correlation(symptom, score, ["mlp"]).mean == pytest.approx(-1)
    assert fall_correlation(symptom, score, ["mlp"]).mean > 0.8
    # A symptom that does not move says nothing, whatever accuracy does.
    still = made(lambda *_: 1.0)
    assert correlation(still, score, ["mlp"]).mean == 0
    assert fall_correlation(still, score, ["mlp"]).mean == 0


def test_a_level_is_not_a_fall() -> None:
    """Cells with dropout have more of the symptom and learn worse; the norm changes the symptom only."""
    symptom = made(lambda n, norm, d, s, seed: 5.0 * d + {"none": 2.0, "batch": 1.0, "layer": 0.0}[norm] + 0.1 * s * d)
    score = made(lambda n, norm, d, s, seed: -float(d))
    assert correlation(symptom, score, ["mlp"]).mean < -0.8
    assert fall_correlation(symptom, score, ["mlp"]).mean == 0


def run(online: list[float], looks: list[tuple[int, float]]) -> dict[str, Any]:
    return {"online": online, "looks": [{"task": task, "dead": value, "rank": value} for task, value in looks]}


def test_levels_and_accuracies_of_a_run() -> None:
    found = run([0.9, 0.7, 0.5, 0.5, 0.4, 0.4, 0.2, 0.4], [(3, 0.9), (6, 0.1), (7, 0.3)])
    assert normalisation_findings.accuracy(found) == pytest.approx(0.3)
    assert normalisation_findings.early(found) == pytest.approx(0.8)
    assert normalisation_findings.level(found, "dead") == pytest.approx(0.2)
    assert normalisation_findings.level(found, "rank") == pytest.approx(0.8)  # what is missing of one
