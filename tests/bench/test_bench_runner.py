"""The engine and the runner: equal members, interrupted runs that resume with the same bits, failures that stay."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import pliant
from pliant import records
from pliant.bench import checkpoint, engine, runner
from pliant.bench.data import mnist
from pliant.bench.engine import Members
from pliant.bench.experiment import Experiment
from pliant.bench.objective import logit_gradient
from pliant.bench.runner import plan_jobs, run_experiments, run_job
from pliant.errors import IllegalConfiguration, RecordError

HERE = Path(__file__).parent
SERIES = {
    "online_accuracy",
    "end_accuracy",
    "test_accuracy",
    "loss",
    "dead_fraction",
    "dormant_fraction",
    "effective_rank_fraction",
    "stable_rank",
    "weight_magnitude",
    "num_resets",
}


def tiny(num_tasks=4, methods=(), label="tiny", optimizer=("sgd", {"lr": 0.05, "momentum": 0.9}), **options):
    return Experiment(
        ("stream_zoo:Tiny", options),
        methods=methods,
        optimizer=optimizer,
        model=("mlp", {"hidden": [16, 16]}),
        num_tasks=num_tasks,
        label=label,
    )


METHODS = {
    "none": [],
    "continual_backprop": [("continual_backprop", {"replacement_rate": 0.05, "maturity_threshold": 3})],
    "redo": [("redo", {"tau": 0.3, "every": 5})],
    "l2": [("l2", {"strength": 1e-2})],
    "shrink_and_perturb": [("shrink_and_perturb", {"shrink": 0.7, "noise_scale": 0.3})],
    "fresh_start": ["fresh_start"],
    "experience_replay": [("experience_replay", {"capacity": 20, "ratio": 0.5})],
    "c_chain": [("c_chain", {"share": 0.1, "start": 3, "window": 5})],
}


def series(results, experiment):
    """Everything that a run measured, by seed, as text: equal text is equal bits."""
    found = [r for r in records.read_records(results) if r.experiment_id == experiment.id]
    return {r.seed: json.dumps([r.status, r.error, r.series], sort_keys=True) for r in found}


# -- one run -------------------------------------------------------------------------------------------------------


def test_a_run_leaves_one_record_per_seed(tmp_path):
    experiment = tiny()
    seen = []
    report = run_experiments([experiment, experiment], [0, 2], tmp_path, num_workers=0, on_progress=seen.append)
    assert (report.num_complete, report.num_failed, report.num_wanted) == (2, 0, 2)
    assert [p.num_done for p in seen] == [1, 2, 3, 4]
    assert seen[0].seeds == (0, 2)
    found = records.read_records(tmp_path)
    assert [r.seed for r in found] == [0, 2]
    for record in found:
        assert set(record.series) == SERIES
        assert record.num_tasks == 4
        assert record.experiment == json.loads(json.dumps(experiment.to_dict()))
        assert record.meta["label"] == "tiny"
        assert {"pliant", "torch", "numpy", "python", "git_commit", "platform", "threads", "seconds"} <= set(
            record.meta
        )
        for name in ("online_accuracy", "end_accuracy", "test_accuracy", "dead_fraction", "effective_rank_fraction"):
            assert all(0 <= value <= 1 for value in record.series[name]), name
    accuracy = sum(r.series["online_accuracy"][-1] for r in found) / 2
    assert seen[-1].score == pytest.approx(accuracy)
    assert not (tmp_path / experiment.id / checkpoint.FOLDER).exists()


def test_the_gradient_is_that_of_autograd():
    rng = torch.Generator().manual_seed(0)
    for shape in ((1, 10), (16, 10), (32, 3)):
        logits = torch.randn(shape, generator=rng, requires_grad=True)
        targets = torch.randint(0, shape[1], (shape[0],), generator=rng)
        (wanted,) = torch.autograd.grad(F.cross_entropy(logits, targets), logits)
        target = torch.zeros(shape).scatter_(1, targets.unsqueeze(1), -1.0 / shape[0])
        assert torch.equal(logit_gradient(logits.detach(), target), wanted)


@pytest.mark.parametrize("name", METHODS)
def test_stacked_seeds_equal_single_seeds(name, tmp_path):
    experiment = tiny(methods=METHODS[name], num_examples=32)
    together = Members(experiment, [3, 5, 8], tmp_path, stacked=True)
    together.run()
    for position, seed in enumerate(together.seeds):
        alone = Members(experiment, [seed], tmp_path, stacked=False)
        alone.run()
        mine, theirs = together.series_of(position), alone.series_of(0)
        for key in mine:
            assert mine[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-5), f"{key} of seed {seed}"
        for key in ("online_accuracy", "num_resets"):
            assert mine[key] == theirs[key], f"{key} of seed {seed}"
        alone.close()
    together.close()


def test_the_methods_do_something(tmp_path):
    outcomes = {name: tiny(methods=methods, num_tasks=3) for name, methods in METHODS.items()}
    run_experiments(list(outcomes.values()), [0], tmp_path, num_workers=0)
    weights = {
        name: tuple(r.series["weight_magnitude"])
        for r in records.read_records(tmp_path)
        for name in outcomes
        if outcomes[name].id == r.experiment_id
    }
    assert len(set(weights.values())) == len(outcomes)
    resets = {
        r.experiment["methods"][0]["name"]: sum(r.series["num_resets"])
        for r in records.read_records(tmp_path)
        if r.experiment["methods"]
    }
    assert resets["continual_backprop"] > 0
    assert resets["l2"] == 0


def test_online_accuracy_is_measured_before_the_update(tmp_path):
    """By hand: one seed, plain torch, accuracy of every batch before its step."""
    experiment = tiny(num_tasks=2)
    run_experiments([experiment], [4], tmp_path, num_workers=0)
    (record,) = records.read_records(tmp_path)
    model, stream = experiment.build_model(4), experiment.build_stream()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for index in range(2):
        task = stream.task(index, 4)
        hits = 0
        for epoch in range(task.num_epochs):
            order = task.order(epoch)
            for start in range(0, len(order), task.batch_size):
                batch = order[start : start + task.batch_size]
                logits = model(task.inputs[batch])
                hits += int((logits.argmax(1) == task.targets[batch]).sum())
                optimizer.zero_grad()
                F.cross_entropy(logits, task.targets[batch]).backward()
                optimizer.step()
        assert record.series["online_accuracy"][index] == pytest.approx(hits / (2 * len(task.targets)), abs=1e-12)


def test_a_model_that_cannot_be_stacked_runs_singly(tmp_path):
    experiment = Experiment("stream_zoo:Tiny", model="stream_zoo:Normed", num_tasks=2)
    assert not engine.can_stack(experiment)
    state = torch.get_rng_state()
    jobs = plan_jobs(experiment, [0, 1, 2], tmp_path)
    assert [job.seeds for job in jobs] == [(0,), (1,), (2,)]
    report = run_experiments([experiment], [0, 1, 2], tmp_path, num_workers=0)
    assert report.num_complete == 3
    assert torch.equal(torch.get_rng_state(), state)


# -- seeds, folders ------------------------------------------------------------------------------------------------


def test_complete_seeds_are_skipped_and_seeds_can_be_added(tmp_path):
    experiment = tiny()
    run_experiments([experiment], [0, 1], tmp_path, num_workers=0)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / experiment.id).glob("seed-*.json")}
    seen = []
    report = run_experiments([experiment], [0, 1, 2], tmp_path, num_workers=0, on_progress=seen.append)
    assert report.num_complete == 3
    assert {p.seeds for p in seen} == {(2,)}
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())


def test_a_different_experiment_is_refused(tmp_path):
    experiment, other = tiny(), tiny(num_tasks=5)
    run_experiments([experiment], [0], tmp_path, num_workers=0)
    with pytest.raises(RecordError, match="folder of one experiment"):
        run_experiments([experiment], [1], tmp_path / experiment.id, num_workers=0)
    (tmp_path / experiment.id).rename(tmp_path / other.id)
    before = sorted(p.name for p in (tmp_path / other.id).iterdir())
    with pytest.raises(RecordError, match="different experiment"):
        run_experiments([other], [0], tmp_path, num_workers=0)
    assert sorted(p.name for p in (tmp_path / other.id).iterdir()) == before


def test_a_damaged_record_is_named(tmp_path):
    experiment = tiny()
    run_experiments([experiment], [0], tmp_path, num_workers=0)
    path = records.record_path(tmp_path, experiment.id, 0)
    path.write_text(path.read_text()[:-40])
    with pytest.raises(RecordError, match=r"seed-0000\.json"):
        run_experiments([experiment], [0], tmp_path, num_workers=0)


def test_a_damaged_checkpoint_is_named(tmp_path):
    experiment = tiny()
    members = Members(experiment, [0], tmp_path / experiment.id, stacked=True)
    members.save()
    (path,) = (tmp_path / experiment.id / checkpoint.FOLDER).iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RecordError, match=r"damaged .*delete it"):
        run_experiments([experiment], [0], tmp_path, num_workers=0)


def test_seeds_must_make_sense(tmp_path):
    for seeds in ([1, 1], [-1]):
        with pytest.raises(IllegalConfiguration, match="seeds must be"):
            run_experiments([tiny()], seeds, tmp_path, num_workers=0)


def test_two_runs_of_one_experiment_at_once_are_refused(tmp_path):
    experiment = tiny()
    plan_jobs(experiment, [0], tmp_path)
    with runner._locked(tmp_path / experiment.id), pytest.raises(RecordError, match="another process"):
        run_experiments([experiment], [0], tmp_path, num_workers=0)


def test_what_cannot_run_is_an_error_and_no_failed_seed(tmp_path, monkeypatch):
    experiment = tiny(methods=[("continual_backprop", {"replacement_rate": 2.0})])
    with pytest.raises(IllegalConfiguration, match="replacement_rate"):
        run_experiments([experiment], [0], tmp_path, num_workers=0)
    missing = Experiment(("permuted_mnist", {"data_dir": str(tmp_path / "nothing")}), num_tasks=1)
    monkeypatch.setattr(mnist.download, "__defaults__", ((), mnist._fetch))
    with pytest.raises(mnist.DataError, match="train-images-idx3-ubyte"):
        run_experiments([missing], [0], tmp_path, num_workers=0)
    assert list(tmp_path.iterdir()) == []


# -- failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["none", "continual_backprop"])
def test_a_diverged_seed_is_recorded_and_the_others_go_on_unharmed(name, tmp_path):
    calm = tiny(methods=METHODS[name])
    wild = tiny(methods=METHODS[name], explode=(1, 2))
    run_experiments([calm, wild], [0, 1, 2], tmp_path, num_workers=0)
    by_id = {(r.experiment_id, r.seed): r for r in records.read_records(tmp_path)}
    for seed in (0, 2):
        assert by_id[wild.id, seed].status == "complete"
        assert by_id[wild.id, seed].series == by_id[calm.id, seed].series
    failed = by_id[wild.id, 1]
    assert failed.status == "failed"
    assert "task 2" in failed.error
    assert failed.meta["failed_task"] == 2
    assert failed.num_tasks == 2
    for key, values in failed.series.items():
        assert values == by_id[calm.id, 1].series[key][:2]
    # It would diverge again in the same way: it stays as it is.
    stamp = records.record_path(tmp_path, wild.id, 1).stat().st_mtime_ns
    report = run_experiments([wild], [0, 1, 2], tmp_path, num_workers=0)
    assert (report.num_complete, report.num_failed) == (2, 1)
    assert "seed 1" in report.message
    assert records.record_path(tmp_path, wild.id, 1).stat().st_mtime_ns == stamp


def test_a_diverged_single_seed_is_recorded_too(tmp_path):
    experiment = tiny(methods=METHODS["continual_backprop"], explode=(1, 2))
    members = Members(experiment, [1], tmp_path, stacked=False)
    members.run()
    assert members.failures[0].task == 2
    assert len(members.series_of(0)["loss"]) == 2


def test_an_exception_is_recorded_for_its_seeds_and_tried_again(tmp_path):
    experiment = tiny(fail=(1, 2))
    other = tiny(num_tasks=2)
    report = run_experiments([experiment, other], [0, 1], tmp_path, num_workers=0)
    assert (report.num_complete, report.num_failed) == (2, 2)
    failed = [r for r in records.read_records(tmp_path) if r.status == "failed"]
    assert {r.seed for r in failed} == {0, 1}
    assert all("no such luck" in r.error and r.num_tasks == 2 for r in failed)
    assert [job.seeds for job in plan_jobs(experiment, [0, 1], tmp_path)] == [(0, 1)]


def test_workers_survive_a_death_among_them(tmp_path):
    """One experiment kills its worker; the others complete, and its seeds are failed, not gone."""
    deadly = tiny(num_tasks=3, die=(1, 2))
    others = [tiny(num_tasks=n) for n in (2, 5)]
    seen = []
    report = run_experiments([deadly, *others], [0, 1], tmp_path, num_workers=2, on_progress=seen.append)
    assert (report.num_complete, report.num_failed) == (4, 2)
    failed = [r for r in records.read_records(tmp_path) if r.status == "failed"]
    assert {r.experiment_id for r in failed} == {deadly.id}
    assert all("worker process ended" in r.error and "task 2" in r.error for r in failed)
    assert {p.experiment_id for p in seen} == {deadly.id, *(e.id for e in others)}
    alone = tmp_path.with_name(tmp_path.name + "-alone")
    run_experiments(others, [0, 1], alone, num_workers=0)
    for experiment in others:
        assert series(tmp_path, experiment) == series(alone, experiment)


# -- interruptions -------------------------------------------------------------------------------------------------

SCRIPT = """
import sys
sys.path.insert(0, {here!r})
from test_bench_runner import METHODS, tiny
from pliant.bench.runner import run_experiments
if __name__ == "__main__":
    experiments = [tiny(num_tasks=12, methods=METHODS[name], seconds=0.01) for name in {names!r}]
    report = run_experiments(experiments, [0, 1], {results!r}, num_workers={workers}, checkpoint_every=0,
                             on_progress=lambda p: print(p.num_done, flush=True))
    print(report.message, flush=True)
"""


def start(results, names, workers, tmp_path):
    path = tmp_path / "run.py"
    path.write_text(SCRIPT.format(here=str(HERE), names=names, results=str(results), workers=workers))
    return subprocess.Popen(
        [sys.executable, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for(process, num_lines):
    for _ in range(num_lines):
        assert process.stdout.readline(), process.stderr.read()


def test_killed_at_a_random_moment_and_resumed_the_records_are_the_same_bits(tmp_path):
    names = ["continual_backprop", "shrink_and_perturb"]
    experiments = [tiny(num_tasks=12, methods=METHODS[name], seconds=0.01) for name in names]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_experiments(experiments, [0, 1], whole, num_workers=0)
    moment = random.Random()
    process = start(broken, names, 0, tmp_path)
    wait_for(process, moment.randrange(3, 20))  # the checkpoint of the first task is written by then
    time.sleep(moment.random() * 0.03)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    left = [e for e in experiments if len(series(broken, e)) < 2]
    assert left, "it was killed before its end"
    seen = []
    report = run_experiments(experiments, [0, 1], broken, num_workers=0, on_progress=seen.append)
    assert report.num_complete == 4
    assert len(seen) < 24, "it went on, it did not start again"
    for experiment in experiments:
        assert series(broken, experiment) == series(whole, experiment)
        assert not (broken / experiment.id / checkpoint.FOLDER).exists()


@pytest.mark.parametrize("written", [1, 2])
def test_killed_while_the_records_are_written_nothing_is_computed_again(tmp_path, written, monkeypatch):
    experiment = tiny(num_tasks=6)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_experiments([experiment], [0, 1], whole, num_workers=0)
    write, count = records.write_record, []

    def killed(record, results):
        if len(count) == written:
            raise KeyboardInterrupt
        count.append(record.seed)
        return write(record, results)

    monkeypatch.setattr(records, "write_record", killed)
    monkeypatch.setattr(checkpoint, "remove_checkpoint", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_job(plan_jobs(experiment, [0, 1], broken, checkpoint_every=0)[0])
    monkeypatch.undo()
    assert len(series(broken, experiment)) == written
    before = {path: path.read_bytes() for path in broken.rglob("*.json")}
    seen = []
    report = run_experiments([experiment], [0, 1], broken, num_workers=0, on_progress=seen.append)
    assert report.num_complete == 2
    assert len(seen) <= 1, "at most the last task, after the last checkpoint"
    assert all(path.read_bytes() == text for path, text in before.items())
    assert series(broken, experiment) == series(whole, experiment)
    assert not (broken / experiment.id / checkpoint.FOLDER).exists()


def test_ctrl_c_leaves_complete_records_and_says_how_to_resume(tmp_path):
    names = ["none", "continual_backprop"]
    experiments = [tiny(num_tasks=12, methods=METHODS[name], seconds=0.01) for name in names]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_experiments(experiments, [0, 1], whole, num_workers=0)
    process = start(broken, names, 1, tmp_path)
    wait_for(process, 15)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert "interrupted" in out, err
    assert "run the same command again" in out
    assert "Traceback" not in err
    done = {experiment.id: series(broken, experiment) for experiment in experiments}
    assert sum(map(len, done.values())) == 2, "the first experiment is complete, the second is not"
    seen = []
    report = run_experiments(experiments, [0, 1], broken, num_workers=0, on_progress=seen.append)
    assert report.num_complete == 4
    assert not report.interrupted
    assert len(seen) < 12
    for experiment in experiments:
        assert series(broken, experiment) == series(whole, experiment)


def test_resuming_with_more_seeds_continues_the_old_ones_as_they_were(tmp_path):
    experiment = tiny(num_tasks=6)
    whole = tmp_path / "whole"
    run_experiments([experiment], [0, 1], whole, num_workers=0)
    folder = tmp_path / "part" / experiment.id
    plan_jobs(experiment, [0, 1], tmp_path / "part")
    members = Members(experiment, [0, 1], folder, stacked=True, checkpoint_every=0)
    with pytest.raises(KeyboardInterrupt):
        members.run(stop_after(3))
    jobs = plan_jobs(experiment, [0, 1, 2], tmp_path / "part")
    assert [job.seeds for job in jobs] == [(0, 1), (2,)]
    run_experiments([experiment], [0, 1, 2], tmp_path / "part", num_workers=0)
    after = series(tmp_path / "part", experiment)
    assert {seed: after[seed] for seed in (0, 1)} == series(whole, experiment)


def stop_after(num_tasks):
    def on_task(members):
        if members.next_task == num_tasks:
            raise KeyboardInterrupt

    return on_task


def test_predictions_of_replayed_examples_do_not_count(tmp_path):
    """By hand: the loop trains on what handle.batch() returns, and scores the first examples of it."""
    experiment = tiny(num_tasks=2, methods=METHODS["experience_replay"])
    run_experiments([experiment], [4], tmp_path, num_workers=0)
    (record,) = records.read_records(tmp_path)
    model, stream = experiment.build_model(4), experiment.build_stream()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    example = torch.zeros(5, stream.num_inputs)
    handle = pliant.attach(model, optimizer, experiment.build_methods(), example_inputs=example, seed=4)
    for index in range(2):
        task = stream.task(index, 4)
        hits = 0
        for epoch in range(task.num_epochs):
            order = task.order(epoch)
            for start in range(0, len(order), task.batch_size):
                batch = order[start : start + task.batch_size]
                inputs, targets = handle.batch((task.inputs[batch], task.targets[batch]))
                logits = model(inputs)
                hits += int((logits.argmax(1) == targets)[: len(batch)].sum())
                optimizer.zero_grad()
                F.cross_entropy(logits, targets).backward()
                optimizer.step()
        assert len(inputs) > len(batch)
        assert record.series["online_accuracy"][index] == pytest.approx(hits / (2 * len(task.targets)), abs=1e-12)


def test_methods_that_change_the_model_run_seed_by_seed(tmp_path):
    """Their units are those of the changed model, and checkpoints hold what was put in."""
    experiment = tiny(methods=[("insert_normalization", {"kind": "batch"}), ("redo", {"tau": 0.3, "every": 5})])
    assert not engine.can_stack(experiment)
    assert engine.can_stack(tiny(methods=[("redo", {"every": 5})]))
    run_experiments([experiment], [0, 1], tmp_path, num_workers=0)
    found = records.read_records(tmp_path / experiment.id)
    assert [(record.seed, record.status) for record in found] == [(0, "complete"), (1, "complete")]
    members = Members(experiment, [0], None, stacked=False)
    assert [group.name for group in members.units] == ["hidden_0.layer", "hidden_1.layer"]
    assert "hidden_0.norm.running_mean" in members.model.state_dict()
