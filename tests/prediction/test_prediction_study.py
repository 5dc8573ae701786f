"""The study of the metrics: its scores against loops, its streams, and its page against its records."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.prediction import analysis, problems, study
from benchmarks.prediction.scores import (
    auroc_over_seeds,
    lead_times,
    mean_over_seeds,
    onset_of,
    partial_rank_correlation,
    rank_correlation,
)

VALUES = st.lists(st.tuples(st.sampled_from([0.0, 1.0, 2.0, 2.5]), st.booleans()), min_size=2, max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=3))
def test_auroc_counts_pairs_over_all_seeds(seeds: list[list[tuple[float, bool]]]) -> None:
    yes, no = ([value for pairs in seeds for value, event in pairs if event is kind] for kind in (True, False))
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in yes for b in no]
    columns = [[[pair[i] for pair in pairs] for pairs in seeds] for i in (0, 1)]
    found = auroc_over_seeds(*columns)
    if not wins:
        assert math.isnan(found.mean)
        return
    assert found.mean == pytest.approx(sum(wins) / len(wins))
    # A draw that holds one seed three times is that seed alone: the interval holds such draws.
    alone = [auroc_over_seeds([scores], [events]).mean for scores, events in zip(*columns, strict=True)]
    if len(seeds) == 1:
        assert found.low == pytest.approx(alone[0])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=3, max_size=9))
def test_rank_correlation_is_that_of_ranks(pairs: list[tuple[int, int]]) -> None:
    def rank(values: list[int]) -> list[float]:
        return [sum(v < x for v in values) + (sum(v == x for v in values) - 1) / 2 for x in values]

    a, b = zip(*pairs, strict=True)
    found = rank_correlation(a, b)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert found == 0
    else:
        assert found == pytest.approx(np.corrcoef(rank(list(a)), rank(list(b)))[0, 1])


def test_what_the_clock_explains_is_taken_out() -> None:
    clock = list(range(40))
    noise = np.random.default_rng(0).standard_normal(40)
    drifting, gap = np.arange(40) + 5 * np.random.default_rng(1).standard_normal(40), np.arange(40) + 5 * noise
    assert rank_correlation(drifting, gap) > 0.7
    assert abs(partial_rank_correlation(drifting, gap, clock)) < 0.3
    assert partial_rank_correlation(gap, gap, clock) == pytest.approx(1)


def test_onset_and_lead() -> None:
    gaps = [0.0] * 10 + [0.5] * 5
    assert onset_of(gaps, 0.1) == 10
    assert onset_of([0.0, 0.5, 0.0, 0.5], 0.1) is None
    early = [0.0] * 7 + [1.0] * 8
    late = [0.0] * 12 + [1.0] * 3
    assert lead_times([early] * 3, [gaps] * 3, 0.1, 5) == (3.0, 3, 3, 0)
    assert lead_times([late] * 3, [gaps] * 3, 0.1, 5) == (-math.inf, 0, 3, 0)
    # A run that never gets worse has false alarms only.
    assert lead_times([early, early, early], [gaps, gaps, [0.0] * 15], 0.1, 5)[2:] == (2, 1)


def test_the_interval_is_over_seeds() -> None:
    found = mean_over_seeds([float(seed % 2) for seed in range(10)])
    assert found.mean == 0.5
    assert 0.1 <= found.low < 0.5 < found.high <= 0.9
    # Ten boundaries of one seed are one seed: the interval does not shrink.
    events = [[True, False]] * 2
    wide = auroc_over_seeds([[1.0, 0.0], [0.0, 1.0]], events)
    many = auroc_over_seeds([[1.0, 0.0] * 10, [0.0, 1.0] * 10], [pair * 10 for pair in events])
    assert wide == many == (0.5, 0.0, 1.0)


def test_bit_flips_are_random_access_and_change_one_bit() -> None:
    stream = problems.BitFlips(num_examples=16)
    before, after = stream.task(3, 0)[0], stream.task(4, 0)[0]
    assert torch.equal(stream.task(4, 0)[0], after)
    assert len(before[:, :15].unique(dim=0)) == 1
    assert int((before[0, :15] != after[0, :15]).sum()) == 1
    targets = torch.cat([stream.task(index, 0)[1] for index in range(3)])
    assert len(targets.unique()) > 3
    assert not torch.equal(stream.task(3, 1)[0], before)


def test_a_run_has_every_metric_at_every_boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny one, on the very code of the study; what is expected is written down for all that it records."""
    small = dataclasses.replace(problems._bit_flips(("adam", {"lr": 0.01}), 3, 20, 10, 8))
    monkeypatch.setattr(study, "PROBLEMS", {"bit_flips": small})
    record = json.loads(json.dumps(study.run("bit_flips", 0), allow_nan=False))
    expected = json.loads(analysis.EXPECTATIONS.read_text(encoding="utf-8"))
    assert [boundary["task"] for boundary in record["boundaries"]] == [0, 1, 2]
    known = set(record["boundaries"][2]["incoming"]) | {"entropy", "end_loss", "previous_gap", "task"}
    assert known == set(expected["direction"])
    for boundary in record["boundaries"][1:]:
        for where in ("incoming", "trained"):
            assert len(boundary[where]["dead_fraction"]) == 2
            assert len(boundary[where]["churn"]) == len(boundary[where]["gradient_interference"]) == 1
    assert record["boundaries"][0]["incoming"]["weight_growth"] == [1.0]
    again = study.run("bit_flips", 0)
    assert json.loads(json.dumps(again["boundaries"])) == record["boundaries"]


def test_twins_are_drawn_as_the_networks_are() -> None:
    """Otherwise the gap would be that of two initialisations."""
    from pliant.fresh import fresh_twin

    for problem in problems.PROBLEMS.values():
        model = problem.model()
        twin = fresh_twin(model, seed=0, init=problem.init)
        for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
            if ours.ndim == 2:
                assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.35), name
            else:
                assert (ours == 0).all() == (theirs == 0).all(), name


def test_the_page_and_the_evidence_are_what_the_records_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert analysis.main(["--check"]) == 0, capsys.readouterr().out
    evidence = json.loads(analysis.EVIDENCE.read_text(encoding="utf-8"))
    page = analysis.PAGE.read_text(encoding="utf-8")
    for name, entry in evidence.items():
        if name != "about":
            assert f"`{name}`" in page
            assert entry["interval"][0] <= entry["auroc"] <= entry["interval"][1]
            assert entry["seeds"] >= 10
            assert len(entry["streams"]) == (2 if name == "entropy" else 3)
