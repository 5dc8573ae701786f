"""What a run will take: the right quantities, from a piece of the run, and nothing written."""

from __future__ import annotations

import pytest
from test_bench_runner import METHODS, stop_after, tiny

from pliant import records
from pliant.bench import checkpoint
from pliant.bench.calibrate import Forecast, _measure, _Short, calibrate, forecast, total_seconds
from pliant.bench.engine import Members
from pliant.bench.experiment import Experiment
from pliant.bench.jobs import make_jobs, survey
from pliant.bench.runner import run_experiments
from pliant.errors import IllegalConfiguration


def test_tasks_are_cut_to_so_many_steps():
    short = _Short(tiny().build_stream(), 4)  # 22 examples, batch 8, twice: 6 steps
    whole = short._stream.task(1, 0)
    for limit, steps, examples, is_whole in ((2, 2, 16, False), (3, 3, 22, False), (5, 3, 22, False), (9, 6, 22, True)):
        short.limit = limit
        task = short.task(5, 0)  # tasks begin again behind the last
        assert (short.num_steps, len(task.targets), short.whole) == (steps, examples, is_whole)
        assert task.inputs.equal(whole.inputs[:examples])
        assert task.num_steps == steps


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """An experiment of which two tasks of nine are done, its forecast, and what was there before it was made."""
    results = tmp_path_factory.mktemp("forecast")
    experiment = tiny(num_tasks=9, methods=METHODS["continual_backprop"])
    make_jobs(survey(experiment, [0, 1], results), results)
    members = Members(experiment, [0, 1], results / experiment.id, stacked=True, checkpoint_every=0)
    with pytest.raises(KeyboardInterrupt):
        members.run(stop_after(3))
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    return experiment, results, before, forecast(survey(experiment, [0, 1, 2], results), results, budget=0.2)


def test_a_forecast_counts_what_is_left(started):
    experiment, _, _, found = started
    assert found.num_seeds == 3
    about = found.calibration
    assert about.num_steps == 6
    assert about.seconds_per_step > 0
    state_of_two, whole_of_one = found.job_seconds
    assert state_of_two == pytest.approx(7 * about.task_seconds)
    assert whole_of_one == pytest.approx(9 * about.task_seconds / 2)
    assert found.experiment == experiment
    assert found.disk == 3 * about.record + 2 * 2 * about.checkpoint


def test_it_writes_nothing(started):
    _, results, before, _ = started
    assert {path: path.read_bytes() for path in results.rglob("*") if path.is_file()} == before


def test_memory_and_disk_are_those_of_the_run(started, tmp_path):
    experiment, results, _, found = started
    about = found.calibration
    path = checkpoint.checkpoint_path(results / experiment.id, (0, 1))
    assert about.checkpoint == pytest.approx(path.stat().st_size, rel=0.1)
    run_experiments([experiment], [0], tmp_path, num_workers=0)
    record = records.record_path(tmp_path, experiment.id, 0)
    assert about.record == pytest.approx(record.stat().st_size, rel=0.2)
    assert 50e6 < about.memory < 5e9  # a process with PyTorch


def test_nothing_left_takes_nothing(tmp_path):
    run_experiments([tiny(num_tasks=1)], [0], tmp_path, num_workers=0)
    found = forecast(survey(tiny(num_tasks=1), [0], tmp_path), tmp_path)
    assert found == Forecast(tiny(num_tasks=1), None, 0, (), 0)
    assert total_seconds([found], 2) == 0


@pytest.mark.wide
def test_an_error_while_it_is_tried_out_is_said():
    with pytest.raises(IllegalConfiguration, match="RuntimeError: no such luck"):
        calibrate(tiny(fail=(0, 2)), [0], stacked=False, budget=0.1)


@pytest.mark.wide
def test_what_fails_while_it_is_tried_out_is_said():
    with pytest.raises(IllegalConfiguration, match="exit code -9 while it was tried out"):
        calibrate(tiny(die=(0, 2)), [0], stacked=False, budget=0.1)


def test_a_schedule_with_an_entry_for_each_task_can_be_tried_out(tmp_path):
    schedule = ("per_task", {"tasks": [["cosine", 1.0], ["constant", 0.5]]})
    experiment = Experiment("stream_zoo:Tiny", model=("mlp", {"hidden": [8]}), num_tasks=2, schedule=schedule)
    assert _measure([experiment], [0], True, 0.1, tmp_path).task_seconds > 0


def test_settings_that_share_a_stack_are_tried_out_together(tmp_path):
    settings = [tiny(optimizer=("sgd", {"lr": rate, "momentum": 0.9})) for rate in (0.1, 0.05, 0.01)]
    together = _measure(settings, [0, 1], True, 0.1, tmp_path / "together")
    alone = _measure(settings[:1], [0, 1], True, 0.1, tmp_path / "alone")
    assert together.num_steps == alone.num_steps == 6
    assert together.checkpoint > 2 * alone.checkpoint  # of six members, and of two
    assert together.record == pytest.approx(alone.record, rel=0.05)
