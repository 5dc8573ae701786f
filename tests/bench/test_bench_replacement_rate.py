"""The page of the replacement rate is what its records say, and its budgets are equal."""

from __future__ import annotations

import json

from benchmarks import replacement_rate as study


def test_the_page_is_what_the_records_say():
    assert study.tables() in study.PAGE.read_text(encoding="utf-8")


def test_both_ways_of_training_had_the_same_budget_on_other_seeds():
    budgets = set()
    for where in study.TUNED_ON:
        found = study.searches(study.RESULTS / where)
        assert [("-none-" in path.name) for path in found] == [True, False]
        for path in found:
            data = json.loads(path.read_text(encoding="utf-8"))
            assert len(data["trials"]) == data["num_trials"]
            assert data["experiment"]["stream"]["name"] == where
            series = study.reported(path, study.RESULTS)
            assert not set(series) & set(data["setting"]["tuning_seeds"])
            budgets.add((data["num_trials"], tuple(data["setting"]["tuning_seeds"]), tuple(sorted(series))))
    assert budgets == {(study.NUM_TRIALS, (100, 101, 102, 103, 104), tuple(range(10)))}
