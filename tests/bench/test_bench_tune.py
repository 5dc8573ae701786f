"""Tuning: equal budgets, seeds of its own, the stated rule, every trial on record."""

from __future__ import annotations

import json

import pytest
from test_bench_runner import tiny

from pliant import records
from pliant.bench.tune import grid, variations
from pliant.errors import IllegalConfiguration


def settings():
    plain = tiny(num_tasks=3, label="plain")
    decayed = tiny(num_tasks=3, methods=["l2"], label="L2")
    return {
        "plain": variations(plain, {"lr": [1e-5, 0.1, 0.01, 0.2]}),
        "L2": variations(decayed, {"lr": [1e-5, 0.1]}, [{"strength": [1e-3, 1.0]}]),
    }


def test_the_best_setting_of_each_method_is_chosen(tmp_path):
    chosen_from = settings()
    tuning = grid(chosen_from, tmp_path, tuning_seeds=[100, 101], num_workers=0)
    assert len(records.read_records(tmp_path)) == 16
    for name, trials in tuning.trials.items():
        assert [trial.experiment for trial in trials] == chosen_from[name]
        for trial in trials:
            half = [
                list(
                    records.read_record(records.record_path(tmp_path, trial.experiment.id, seed)).series[
                        "online_accuracy"
                    ]
                )[1:]
                for seed in (100, 101)
            ]
            assert trial.score == pytest.approx(sum(map(sum, half)) / 4)
        assert max(trial.score for trial in trials) == next(
            trial.score for trial in trials if trial.experiment == tuning.chosen[name]
        )
    summary = json.loads((tmp_path / "tuning.json").read_text())
    assert summary["num_settings"] == 4
    assert summary["methods"]["L2"]["chosen"] == tuning.chosen["L2"].id
    assert len(summary["methods"]["plain"]["trials"]) == 4
    assert "last 2 of 3 tasks" in summary["rule"]


def test_a_failed_seed_counts_as_zero(tmp_path):
    calm, wild = tiny(num_tasks=2), tiny(num_tasks=2, explode=(100, 1))
    tuning = grid({"plain": [wild, calm]}, tmp_path, tuning_seeds=[100, 101], num_workers=0)
    failed, fine = tuning.trials["plain"]
    assert failed.num_failed == 1
    assert failed.score < fine.score
    assert tuning.chosen["plain"] == calm


def test_unequal_budgets_and_reported_seeds_are_refused(tmp_path):
    chosen_from = settings()
    with pytest.raises(IllegalConfiguration, match="same number"):
        grid({"plain": chosen_from["plain"], "L2": chosen_from["L2"][:3]}, tmp_path)
    with pytest.raises(IllegalConfiguration, match="twice"):
        grid({"plain": [tiny(), tiny()]}, tmp_path)
    with pytest.raises(IllegalConfiguration, match="reported"):
        grid(chosen_from, tmp_path, tuning_seeds=[9, 10])
    for wrong in (0.0, 1.5):
        with pytest.raises(IllegalConfiguration, match="last_fraction"):
            grid(chosen_from, tmp_path, last_fraction=wrong)
    with pytest.raises(IllegalConfiguration, match="one number of tasks"):
        grid({"plain": [tiny(num_tasks=2), tiny(num_tasks=3)]}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_whole_stream_may_count(tmp_path):
    experiment = tiny(num_tasks=3)
    tuning = grid({"plain": [experiment]}, tmp_path, tuning_seeds=[100], last_fraction=1.0, num_workers=0)
    (record,) = records.read_records(tmp_path)
    assert tuning.trials["plain"][0].score == pytest.approx(sum(record.series["online_accuracy"]) / 3)
