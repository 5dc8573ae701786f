"""Experiments with a method that changes the model: seeds one by one, resumed with the same bits, whole records."""

from __future__ import annotations

import pytest
import torch
from test_bench_runner import SERIES, tiny

from pliant import records
from pliant.bench.engine import Members, Stopped, can_stack
from pliant.bench.runner import plan_jobs, run_experiments
from pliant.errors import IllegalConfiguration

METHODS = [("plasticity_injection", {"at": 5})]


def test_its_seeds_are_not_stacked(tmp_path):
    experiment = tiny(methods=METHODS)
    assert can_stack(tiny())
    assert not can_stack(experiment)
    jobs = plan_jobs(experiment, [0, 1, 2], tmp_path)
    assert [job.seeds for job in jobs] == [(0,), (1,), (2,)]
    assert not any(job.stacked for job in jobs)
    with pytest.raises(IllegalConfiguration, match="PlasticityInjection changes the model"):
        Members(experiment, [0, 1], None, stacked=True)


def test_it_leaves_whole_records(tmp_path):
    experiment = tiny(methods=METHODS)
    report = run_experiments([experiment], [0, 1], tmp_path, num_workers=1)
    assert not report.failures
    for seed in (0, 1):
        record = records.read_record(records.record_path(tmp_path, experiment.id, seed))
        assert record.status == "complete"
        assert set(record.series) >= SERIES


def test_a_run_that_was_stopped_after_the_injection_goes_on_with_the_same_bits(tmp_path):
    experiment = tiny(methods=METHODS)
    whole = Members(experiment, [0], None, stacked=False)
    whole.run()
    stops = iter([False, False, True])
    first = Members(experiment, [0], tmp_path, stacked=False, should_stop=lambda: next(stops))
    with pytest.raises(Stopped):
        first.run()
    rest = Members(experiment, [0], tmp_path, stacked=False)
    assert rest.next_task == 2
    assert not all(parameter.requires_grad for parameter in rest.model.parameters())
    rest.run()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, rest.model.state_dict()[name]), name
    for name, values in whole.series.items():
        assert torch.equal(torch.stack(values), torch.stack(rest.series[name])), name
