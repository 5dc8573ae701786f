"""Learning-rate schedules: the right step size at every update, resumed to the bit; no trace where there is none."""

from __future__ import annotations

import json
import math

import pytest
import torch
from test_bench_runner import series, stop_after, tiny

from pliant import records
from pliant.bench.engine import Members
from pliant.bench.experiment import Experiment
from pliant.bench.runner import plan_jobs, run_experiments
from pliant.bench.schedules import SCHEDULES, Constant, Cosine, Linear, PerTask, StepDecay, StepSizes
from pliant.errors import IllegalConfiguration

SOME = {
    "warm": ("constant", {"warmup": 0.5}),
    "step": "step",
    "cosine": ("cosine", {"final": 0.1, "warmup": 0.2}),
    "stream": ("linear", {"over": "stream"}),
    "per_task": ("per_task", {"tasks": [["cosine", 0.5], ["constant", 2.0], ["step", 1.0], ["linear", 1.0]]}),
}


def scheduled(schedule, **options):
    return tiny(**options).replace(schedule=schedule)


def test_factors_by_hand():
    assert [Constant(warmup=0.4).factor(0, s, 5, 1) for s in range(5)] == [0.5, 1, 1, 1, 1]
    decayed = StepDecay(milestones=(0.5,), decay=0.1, warmup=0.25)  # 2 of 8 steps warm up; of the other 6, 3 are whole
    assert [decayed.factor(3, s, 8, 9) for s in range(8)] == pytest.approx([0.5, 1, 1, 1, 1, 0.1, 0.1, 0.1])
    assert [Cosine(final=0.2).factor(0, s, 4, 1) for s in range(4)] == pytest.approx(
        [0.2 + 0.8 * (1 + math.cos(math.pi * q)) / 2 for q in (0, 0.25, 0.5, 0.75)]
    )
    over = Linear(over="stream", warmup=0.25)  # 4 tasks of 4 steps: the first task warms up, then 12 steps down
    found = [over.factor(task, step, 4, 4) for task in range(4) for step in range(4)]
    assert found == pytest.approx([0.25, 0.5, 0.75, 1, *(1 - k / 12 for k in range(12))])
    assert [Linear().factor(task, 0, 4, 4) for task in range(4)] == [1, 1, 1, 1]  # begins anew at each task
    each = PerTask(tasks=(("constant", 0.5), ("linear", 2.0)))
    assert [each.factor(task, 2, 4, 2) for task in (0, 1)] == [0.5, 1.0]


def test_the_optimizer_gets_them_in_every_group():
    one, two = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [one], "lr": 0.1}, {"params": [two], "lr": 1.0}])
    sizes = StepSizes(Linear(), optimizer, 2)
    for task in range(2):
        sizes.begin_task(task, 2)
        for factor in (1.0, 0.5):
            sizes.before_step()
            assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1 * factor, factor])
    captured = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))], lr=torch.tensor(0.5), capturable=False)
    rate = captured.param_groups[0]["lr"]
    sizes = StepSizes(Linear(), captured, 1)
    sizes.begin_task(0, 2)
    sizes.before_step()
    sizes.before_step()
    assert captured.param_groups[0]["lr"] is rate  # the very tensor that a captured step reads
    assert float(rate) == 0.25


def test_the_engine_steps_with_them():
    """By hand: plain torch with the step sizes of the formula gives the same losses."""
    experiment = scheduled(("cosine", {"warmup": 0.3}), num_tasks=2, optimizer=("sgd", {"lr": 0.3}))
    members = Members(experiment, [3], None, stacked=False)
    members.run()
    model, stream, schedule = experiment.build_model(3), experiment.build_stream(), experiment.build_schedule()
    for index in range(2):
        task, step, total = stream.task(index, 3), 0, 0.0
        for epoch in range(task.num_epochs):
            for batch in task.order(epoch).split(task.batch_size):
                loss = torch.nn.functional.cross_entropy(model(task.inputs[batch]), task.targets[batch])
                total += loss.item() * len(batch)
                model.zero_grad()
                loss.backward()
                rate = 0.3 * schedule.factor(index, step, task.num_steps, 2)
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter -= rate * parameter.grad
                step += 1
        expected = total / (task.num_epochs * len(task.targets))
        assert members.series_of(0)["loss"][index] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "name", [name if name in ("cosine", "per_task") else pytest.param(name, marks=pytest.mark.wide) for name in SOME]
)
def test_stopped_and_resumed_a_schedule_goes_on_with_the_same_bits(name, tmp_path):
    experiment = scheduled(SOME[name], num_tasks=4)
    run_experiments([experiment], [0, 1], tmp_path / "whole", num_workers=0)
    plan_jobs(experiment, [0, 1], tmp_path / "part")
    members = Members(experiment, [0, 1], tmp_path / "part" / experiment.id, stacked=True, checkpoint_every=0)
    with pytest.raises(KeyboardInterrupt):
        members.run(stop_after(3))
    seen = []
    run_experiments([experiment], [0, 1], tmp_path / "part", num_workers=0, on_progress=seen.append)
    assert 1 <= len(seen) <= 2
    assert series(tmp_path / "part", experiment) == series(tmp_path / "whole", experiment)


def test_it_is_part_of_the_experiment_and_a_constant_step_size_is_not():
    plain = tiny()
    for spelt in ("constant", ("constant", {"over": "stream"}), ("constant", {"warmup": 0})):
        again = plain.replace(schedule=spelt)
        assert again == plain
        assert again.id == plain.id
        assert "schedule" not in again.to_dict()
    ids = {scheduled(schedule).id for schedule in SOME.values()}
    assert len(ids | {plain.id}) == len(SOME) + 1
    for schedule in SOME.values():
        experiment = scheduled(schedule)
        again = Experiment.from_dict(json.loads(records.canonical_json(experiment.to_dict())))
        assert again == experiment
        assert again.id == experiment.id
    preset = Experiment.from_preset("random_label_digits", "demo", schedule={"name": "cosine", "final": 0.1})
    assert preset.schedule.options["final"] == 0.1


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("cosin", "nearest: cosine"),
        (("cosine", {"finl": 0}), "nearest: final"),
        (("cosine", {"final": -1.0}), r"in \[0, 1\]"),
        (("linear", {"final": 2.0}), r"in \[0, 1\]"),
        (("constant", {"warmup": 1.0}), r"in \[0, 1\)"),
        (("step", {"milestones": [0.5, 0.2]}), "must rise"),
        (("step", {"decay": 0.0}), r"in \(0, 1\]"),
        (("step", {"over": "epoch"}), "'task' or 'stream'"),
        (("per_task", {"tasks": [["cosine", 1.0]]}), "1 entries for 4 tasks"),
        (("per_task", {"tasks": [["per_task", 1.0]] * 4}), "name of another schedule"),
        (("per_task", {"tasks": [["cosine", float("nan")]] * 4}), "at least 0 and finite"),
        (("per_task", {"tasks": [["cosine", 1.0]] * 4, "warmup": 0.5}), "neither warmup nor over"),
    ],
)
def test_what_cannot_be_is_refused(schedule, message):
    with pytest.raises(IllegalConfiguration, match=message):
        scheduled(schedule)
    assert set(SCHEDULES) == {"constant", "step", "cosine", "linear", "per_task"}
