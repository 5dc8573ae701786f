"""Two processes report the same, and what one process says on the whole batch."""

from __future__ import annotations

import sys
from pathlib import Path

import monitor_ddp_worker
import pytest

sys.path.append(str(Path(__file__).parents[1] / "contracts"))
import two_processes


@pytest.mark.slow
def test_every_process_reports_what_one_would_say_on_the_whole_batch(tmp_path):
    first, second = two_processes.run("monitor_ddp_worker", "both", tmp_path)
    assert first["planted"] == second["planted"]
    alone = monitor_ddp_worker.planted(None)
    assert [alarm["step"] for alarm in first["planted"]["alarms"]] == [alarm["step"] for alarm in alone["alarms"]]
    assert alone["alarms"][0]["mechanism"] == "dead_units"
    for (step, values, counts), (expected_step, expected, expected_counts) in zip(
        first["planted"]["history"], alone["history"], strict=True
    ):
        assert (step, counts) == (expected_step, expected_counts)
        assert values.keys() == expected.keys()
        for metric, places in values.items():
            assert places == pytest.approx(expected[metric], rel=1e-4, abs=1e-5), metric
    assert first["planted"]["why_no_twin"] == ""
    assert (tmp_path / "readings.0.csv").exists()
    assert not (tmp_path / "readings.1.csv").exists(), "one process writes"
    assert first["budgeted"] == second["budgeted"]
    assert first["budgeted"]["ledger"]["spent"] > 0
    assert "evaluation mode" in first["eval"]
    assert "evaluation mode" in second["eval"]
    assert "the same number of batches" in first["join"]
