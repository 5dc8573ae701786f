"""Settings that share a stack: each leaves the records that it would leave alone, whatever happens to the others."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_bench_runner import METHODS, series, tiny

from pliant import interventions, records
from pliant.bench import checkpoint
from pliant.bench.jobs import Job, Plan
from pliant.bench.memory import fitting_members
from pliant.bench.runner import run_experiments, run_job
from pliant.bench.stacks import _share, find_stacks, make_stack, survey_all
from pliant.bench.tune import grid
from pliant.bench.workers import Waiting
from pliant.errors import IllegalConfiguration

HERE = Path(__file__).parent
RATES = (0.05, 0.02, 0.01)


def settings(rates=RATES, method="continual_backprop", momentum=0.9, **options):
    methods = METHODS[method]
    return [tiny(methods=methods, optimizer=("sgd", {"lr": rate, "momentum": momentum}), **options) for rate in rates]


def run(experiments, results, seeds=(0, 1), **options):
    return run_experiments(experiments, list(seeds), results, num_workers=0, **{"max_settings": 8, **options})


def everything(results, experiments):
    return {experiment.id: series(results, experiment) for experiment in experiments}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run leaves that nobody stops."""
    folder = tmp_path_factory.mktemp("whole")
    seen = []
    report = run(settings(num_tasks=6), folder, on_progress=seen.append)
    assert report.num_complete == 6
    return folder, seen


def test_every_setting_has_the_records_that_it_has_alone(whole, tmp_path):
    folder, seen = whole
    experiments = settings(num_tasks=6)
    run(experiments, tmp_path, max_settings=1)
    assert everything(folder, experiments) == everything(tmp_path, experiments)
    assert {record.meta["num_stacked"] for record in records.read_records(folder)} == {6}
    assert {record.meta["num_stacked"] for record in records.read_records(tmp_path)} == {2}
    assert not list(folder.glob(".*"))
    for experiment in experiments:
        mine = [progress for progress in seen if progress.experiment_id == experiment.id]
        assert [progress.num_done for progress in mine] == [1, 2, 3, 4, 5, 6]
        assert {progress.seeds for progress in mine} == {(0, 1)}
        last = [record.series["online_accuracy"][-1] for record in records.read_records(folder / experiment.id)]
        assert mine[-1].score == pytest.approx(sum(last) / 2)


def test_plain_sgd_with_several_step_sizes_is_the_same_up_to_rounding(tmp_path):
    experiments = settings(method="none", momentum=0.0, num_tasks=2)
    run(experiments, tmp_path / "together")
    run(experiments, tmp_path / "alone", max_settings=1)
    pairs = zip(records.read_records(tmp_path / "together"), records.read_records(tmp_path / "alone"), strict=True)
    for mine, theirs in pairs:
        assert mine.experiment_id == theirs.experiment_id
        for name, values in theirs.series.items():
            assert mine.series[name] == pytest.approx(values, abs=1e-5, nan_ok=True), name


SCRIPT = """
import sys
sys.path.insert(0, {here!r})
from test_bench_stacks import run, settings
if __name__ == "__main__":
    run(settings(num_tasks=6, seconds=0.05), {results!r}, checkpoint_every=0,
        on_progress=lambda p: print(p.num_done, flush=True))
"""


def test_killed_and_resumed_the_records_are_the_same_bits(whole, tmp_path):
    experiments = settings(num_tasks=6)
    path = tmp_path / "run.py"
    path.write_text(SCRIPT.format(here=str(HERE), results=str(tmp_path / "results")))
    process = subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True)
    for _ in range(7):  # in the third task, after the checkpoint of the first at least
        assert process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    (stack,) = find_stacks(tmp_path / "results")
    assert [experiment.id for experiment in stack.experiments] == [experiment.id for experiment in experiments]
    assert stack.seeds == (0, 1)
    seen = []
    # Others may be asked for as well, in another order, and without stacks of their own.
    more = [*settings((0.3,), num_tasks=6), *reversed(experiments)]
    report = run(more, tmp_path / "results", max_settings=1, on_progress=seen.append)
    assert report.num_complete == 8
    assert 0 < sum(progress.experiment_id == experiments[0].id for progress in seen) < 6
    assert everything(tmp_path / "results", experiments) == everything(whole[0], experiments)
    assert not list((tmp_path / "results").glob(".*"))


@pytest.mark.parametrize("written", [0, 3])
def test_killed_while_the_records_are_written_nothing_is_computed_again(whole, tmp_path, written, monkeypatch):
    experiments = settings(num_tasks=6)
    write, count = records.write_record, []

    def killed(record, results):
        if len(count) == written:
            raise KeyboardInterrupt
        count.append(record.seed)
        return write(record, results)

    monkeypatch.setattr(records, "write_record", killed)
    assert run(experiments, tmp_path).interrupted
    monkeypatch.undo()
    assert len(records.read_records(tmp_path)) == written
    seen = []
    assert run(experiments, tmp_path, on_progress=seen.append).num_complete == 6
    assert seen == []
    assert everything(tmp_path, experiments) == everything(whole[0], experiments)
    assert not list(tmp_path.glob(".*"))


def test_stopped_at_a_task_boundary_it_goes_on_as_it_was(whole, tmp_path):
    experiments = settings(num_tasks=6)
    _, (stack,) = survey_all(experiments, [0, 1], tmp_path, max_settings=3)
    assert list(tmp_path.iterdir()) == []  # nothing is written to make a plan
    job = make_stack(stack, tmp_path, checkpoint_every=0)
    stops = iter([False, False, True])
    assert not run_job(job, should_stop=lambda: next(stops))
    # One of its experiments alone begins anew: the others' members would have to go on with it.
    plans, stacks = survey_all(experiments[:1], [0, 1], tmp_path)
    assert (plans[0].going_on, stacks) == ((), [])
    _, stacks = survey_all(experiments, [0, 1, 2], tmp_path, max_settings=8)
    assert [(len(item.experiments), item.seeds) for item in stacks] == [(3, (0, 1)), (3, (2,))]
    assert run(experiments, tmp_path).num_complete == 6
    assert everything(tmp_path, experiments) == everything(whole[0], experiments)


def test_a_checkpoint_whose_records_are_all_there_is_tidied_up(whole, tmp_path):
    folder = whole[0]
    (job,) = [Job(tuple(settings(num_tasks=6)), (0, 1), str(tmp_path), True)]
    run(settings(num_tasks=6), tmp_path)
    state = {"experiment": json.dumps({"experiments": [item.to_dict() for item in job.experiments]})}
    checkpoint.save_checkpoint(job.folder, job.members, state)
    assert len(find_stacks(tmp_path)) == 1
    assert run(settings(num_tasks=6), tmp_path).num_complete == 6
    assert not list(tmp_path.glob(".*"))
    assert everything(tmp_path, job.experiments) == everything(folder, job.experiments)


# -- what goes wrong -----------------------------------------------------------------------------------------------


def test_a_setting_that_diverges_leaves_the_others_alone(whole, tmp_path):
    experiments = settings((*RATES[:2], 1e30), num_tasks=6)
    report = run(experiments, tmp_path)
    assert (report.num_complete, report.num_failed) == (4, 2)
    failed = [record for record in records.read_records(tmp_path) if record.status == "failed"]
    assert {record.experiment_id for record in failed} == {experiments[2].id}
    assert all(record.meta["failure"] == "diverged" for record in failed)
    assert everything(tmp_path, experiments[:2]) == everything(whole[0], experiments[:2])
    assert run(experiments, tmp_path).num_failed == 2  # it would diverge again, and is not tried again


@dataclasses.dataclass(frozen=True)
class Breaks(interventions.WeightClipping):
    """A method from elsewhere that raises in one of its settings."""

    def after_step(self, ctx):
        if self.kappa == 5.0 and ctx.clock.step > 7:
            raise RuntimeError("no such luck")
        super().after_step(ctx)


def test_an_exception_in_one_setting_is_not_the_others(tmp_path):
    experiments = [tiny(2, [(f"{__name__}:Breaks", {"kappa": kappa})]) for kappa in (3.0, 5.0, 4.0)]
    assert len(survey_all(experiments, [0, 1], tmp_path, max_settings=3)[1]) == 1
    report = run(experiments, tmp_path)
    assert (report.num_complete, report.num_failed) == (4, 2)
    failed = [record for record in records.read_records(tmp_path) if record.status == "failed"]
    assert {record.experiment_id for record in failed} == {experiments[1].id}
    assert all("no such luck" in record.error for record in failed)
    assert not list(tmp_path.glob(".*"))


def test_a_stack_whose_worker_dies_twice_is_run_one_by_one(tmp_path):
    job = Job(tuple(settings()), (0, 1), str(tmp_path), True)
    waiting = Waiting([job])
    assert waiting.take() == job
    waiting.died(job, 2, "gone")
    assert waiting.take() == job  # from its checkpoint
    waiting.died(job, 2, "gone")
    assert [waiting.take() for _ in range(4)] == [*job.alone(), None]
    assert records.read_records(tmp_path) == []


# -- which share a stack -------------------------------------------------------------------------------------------


def stacks_of(experiments, tmp_path, max_settings=8, seeds=(0, 1)):
    plans, stacks = survey_all(experiments, list(seeds), tmp_path, max_settings=max_settings)
    left = [plan.experiment for plan in plans if plan.groups]
    assert len(left) + sum(len(stack.experiments) for stack in stacks) == len(experiments)
    return [list(stack.experiments) for stack in stacks], left


def test_settings_of_one_way_of_training_share_a_stack(tmp_path):
    rates = settings((0.1, 0.2, 0.3, 0.4, 0.5))
    assert stacks_of(rates, tmp_path, 2) == ([rates[:2], rates[2:4]], rates[4:])
    assert stacks_of(rates, tmp_path, 1) == ([], rates)
    plain = settings(method="none")
    assert stacks_of([rates[0], plain[0], rates[1], plain[1]], tmp_path) == ([rates[:2], plain[:2]], [])
    longer = [*settings((0.1,)), *settings((0.2,), num_tasks=7)]
    assert stacks_of(longer, tmp_path) == ([], longer)  # of another length
    terms = [tiny(methods=[("feature_norm", {"strength": value})]) for value in (0.1, 0.2)]
    assert stacks_of(terms, tmp_path) == ([], terms)  # each needs a forward pass of its own
    changed = [tiny(methods=[("insert_normalization", {"gate": gate})]) for gate in (True, False)]
    assert stacks_of(changed, tmp_path) == ([], changed)
    with pytest.raises(IllegalConfiguration, match="at least one setting"):
        survey_all(rates, [0], tmp_path, max_settings=0)


def test_no_more_settings_than_fit_into_the_memory(tmp_path):
    rates = settings((0.1, 0.2, 0.3, 0.4))
    plans = [Plan(experiment, ((0, 1),), True, fitting=16) for experiment in rates]
    assert [len(stack.experiments) for stack in _share(plans, 8)] == [2, 2]  # a quarter of 16 members, two seeds each
    assert _share([dataclasses.replace(plan, fitting=3) for plan in plans], 8) == []
    assert fitting_members(rates[0], None, 0) == 0
    assert fitting_members(rates[0], None, 10**9) > 10**4


def test_a_grid_chooses_the_same_stacked_and_alone(tmp_path):
    methods = {name: settings(method=name, num_tasks=2) for name in ("none", "l2")}
    options = {"tuning_seeds": [100], "last_fraction": 1.0, "num_workers": 0}
    together = grid(methods, tmp_path / "together", **options)
    alone = grid(methods, tmp_path / "alone", max_settings=1, **options)
    assert together.trials == alone.trials
    stacked = {record.meta["num_stacked"] for record in records.read_records(tmp_path / "together")}
    assert stacked == {1, 2}  # of three settings two and one, so that two processes have work
    assert grid(methods, tmp_path / "late", max_seconds=1e-9, **options) is None
