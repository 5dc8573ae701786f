"""Searches: the same number of trials for every method, all on record, and the same trials when they are resumed."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from typing import ClassVar

import pytest
from test_bench_runner import tiny

from pliant import interventions, records
from pliant.bench import spaces
from pliant.bench.experiment import Experiment, method_table
from pliant.bench.runner import RunReport, run_experiments
from pliant.bench.study import _ask, best_of_k, read_study, run_study
from pliant.errors import IllegalConfiguration, PliantError, RecordError
from pliant.search import Choice, Range

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:optuna")
SEEDS = [100, 101]


def start(methods=("redo",), **options):
    return tiny(num_tasks=2, methods=list(methods), **options)


def optuna_or_skip():
    return pytest.importorskip("optuna", reason="tuning needs Optuna, which is not installed here")


def search(folder, num_trials=6, experiment=None, space=None, **options):
    experiment = experiment or start()
    space = space or spaces.default_space(experiment)
    return run_study(experiment, space, num_trials, folder, tuning_seeds=SEEDS, **options)[0]


def test_all_trials_of_a_random_search_are_asked_at_once_and_share_stacks(tmp_path):
    optuna_or_skip()
    rounds = []
    together = search(tmp_path / "together", num_trials=6, sampler="random", on_round=rounds.append)
    assert [len(study.trials) for study in rounds] == [6]

    def alone(experiments, seeds, results, seconds):
        return run_experiments(experiments, seeds, results, num_workers=0)

    one_by_one = search(tmp_path / "alone", num_trials=6, sampler="random", run=alone)
    assert together.trials == one_by_one.trials
    stacked = {record.meta["num_stacked"] for record in records.read_records(tmp_path / "together")}
    assert stacked == {6}  # two stacks of three settings, two seeds each
    raised = search(tmp_path / "alone", num_trials=9, sampler="random", extend=True)
    assert raised.trials[:6] == together.trials
    assert raised.trials == search(tmp_path / "at_once", num_trials=9, sampler="random").trials


# ---- spaces


def test_what_methods_declare_is_what_is_searched():
    assert list(spaces.default_space(start(["redo", "l2"]))) == [
        "optimizer.lr",
        "redo.tau",
        "redo.every",
        "l2.strength",
    ]
    assert list(spaces.default_space(start([]))) == ["optimizer.lr"]
    upgd = spaces.default_space(start([], optimizer=("upgd", {})))
    assert list(upgd) == ["optimizer.lr", "optimizer.sigma", "optimizer.weight_decay"]


@dataclasses.dataclass(frozen=True)
class Mine(interventions.L2):
    """A method from elsewhere that declares what it wants searched, in one place."""

    search: ClassVar = {"strength": Range(0.5, 2.0), "apply": Choice(("decoupled", "gradient"))}


@dataclasses.dataclass(frozen=True)
class Wrong(interventions.L2):
    """Declares what it has not."""

    search: ClassVar = {"strenght": Range(0.5, 2.0)}


def test_a_method_from_elsewhere_declares_its_own():
    space = spaces.default_space(start([f"{__name__}:Mine"]))
    assert space["mine.strength"] == Range(0.5, 2.0)
    assert space["mine.apply"].values == ("decoupled", "gradient")
    with pytest.raises(IllegalConfiguration, match=r"Wrong\.search: 'strenght' is no option"):
        spaces.default_space(start([f"{__name__}:Wrong"]))


@pytest.mark.wide
@pytest.mark.parametrize("name", sorted(method_table()))
def test_both_ends_of_every_declared_range_can_be_run(name):
    """Both bounds of all, and every choice: the method is built, attached and stepped."""
    from pliant.bench.engine import Members

    needs = {"normalize_and_project": ["insert_normalization"], "optimizer_reset": []}
    experiment = start([*needs.get(name, []), name], num_examples=8)
    space = {key: domain for key, domain in spaces.default_space(experiment).items() if key.startswith(name)}
    ends = {
        key: domain.values if isinstance(domain, Choice) else (domain.low, domain.high) for key, domain in space.items()
    }
    for values in itertools.zip_longest(*ends.values()):
        chosen = {
            key: ends[key][0] if value is None and None not in ends[key] else value
            for key, value in zip(ends, values, strict=True)
        }
        chosen = {
            key: int(value) if isinstance(space[key], Range) and space[key].integer else value
            for key, value in chosen.items()
        }
        setting = spaces.apply(experiment, space, chosen, 2)
        members = Members(setting, [0], None, stacked=False)
        members.run()
        members.close()


def test_what_is_given_is_not_searched_and_what_is_searched_may_be_changed():
    redo = start()
    space = spaces.with_overrides(redo, {"lr": Range(0.1, 0.2), "every": Choice((1, 2))}, {"redo.tau"})
    assert space == {"optimizer.lr": Range(0.1, 0.2), "redo.every": Choice((1, 2))}
    assert list(spaces.with_overrides(redo, {}, {"redo.tau", "redo.every"})) == ["optimizer.lr"]
    for searched, fixed, message in (
        ({"taw": Range(0, 1)}, set(), "nearest: tau"),
        ({"ridu.tau": Range(0, 1)}, set(), "nearest: redo"),
        ({"tau": Range(0, 1)}, {"redo.tau"}, "both given and searched"),
        ({}, {"redo.tau", "redo.every", "optimizer.lr"}, "nothing is left"),
    ):
        with pytest.raises(IllegalConfiguration, match=message):
            spaces.with_overrides(redo, searched, fixed)


def test_periods_are_searched_in_tasks():
    redo = start()
    space = {"redo.every": Range(0.1, 10, log=True, unit="task")}
    assert spaces.apply(redo, space, {"redo.every": 2.5}, 640).methods[0].options["every"] == 1600
    assert spaces.apply(redo, space, {"redo.every": 0.1}, 2).methods[0].options["every"] == 1
    assert spaces.present(redo, space, 500) == {"redo.every": 2.0}  # its default is 1000 steps
    assert spaces.present(redo, space, 50) is None  # 20 tasks: outside


@pytest.mark.parametrize(
    "make",
    [
        lambda: Range(1, 1),
        lambda: Range(0, 1, log=True),
        lambda: Range(0, math.inf),
        lambda: Range(0.5, 2, integer=True),
        lambda: Range(0, 1, unit="steps"),
        lambda: Choice((1,)),
        lambda: Choice((1, 1)),
    ],
)
def test_domains_that_cannot_be(make):
    with pytest.raises(PliantError):
        make()


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("1e-3:1e-1", Range(1e-3, 1e-1)),
        ("log:1e-3:1e-1", Range(1e-3, 1e-1, log=True)),
        ("log:int:1:100", Range(1, 100, log=True, integer=True)),
        ("log:task:0.1:10", Range(0.1, 10, log=True, unit="task")),
        ("[0.1,none,l2]", Choice((0.1, None, "l2"))),
    ],
)
def test_typed_domains(text, domain):
    assert spaces.parse_domain("x", text) == domain
    assert spaces.domain_from_json(json.loads(json.dumps(spaces.domain_to_json(domain)))) == domain


# ---- best of k


def test_the_best_of_k_is_what_all_subsets_give():
    scores = [0.3, 0.9, 0.1, 0.5, 0.5]
    for k, expected in enumerate(best_of_k(scores), start=1):
        subsets = list(itertools.combinations(scores, k))
        assert expected == pytest.approx(sum(map(max, subsets)) / len(subsets))
    for k, expected in enumerate(best_of_k(scores, lower_is_better=True), start=1):
        subsets = list(itertools.combinations(scores, k))
        assert expected == pytest.approx(sum(map(min, subsets)) / len(subsets))
    assert best_of_k([math.inf, 1.0], lower_is_better=True) == [math.inf, 1.0]
    many = best_of_k([float(i) for i in range(1200)])  # of 0 to n-1 the best of k is k (n + 1) / (k + 1) - 1
    assert many == pytest.approx([k * 1201 / (k + 1) - 1 for k in range(1, 1201)])


# ---- studies


def test_all_trials_are_on_record_and_the_best_is_chosen(tmp_path):
    optuna_or_skip()
    rounds = []
    study = search(tmp_path, on_round=rounds.append)
    assert [len(found.trials) for found in rounds] == [4, 6]
    assert [trial.number for trial in study.trials] == list(range(6))
    assert study.trials[0].experiment_id == start().id  # it starts from the defaults
    data = json.loads(study.path.read_text())
    assert len(data["trials"]) == 6
    assert data["setting"]["space"]["redo.tau"] == {"low": 1e-3, "high": 0.5, "log": True, "integer": False, "unit": ""}
    assert data["setting"]["tuning_seeds"] == SEEDS
    assert "online accuracy" in data["rule"]
    for trial in study.trials:
        found = [records.read_record(records.record_path(tmp_path / "trials", trial.experiment_id, s)) for s in SEEDS]
        mean = sum(sum(record.series["online_accuracy"]) / 2 for record in found) / 2
        assert trial.score == pytest.approx(mean)
        if trial.number:
            tau = found[0].experiment["methods"][0]["tau"]
            assert tau == trial.values["redo.tau"]
            assert 1e-3 <= tau <= 0.5
            assert found[0].experiment["methods"][0]["every"] == max(1, round(6 * trial.values["redo.every"]))
    assert study.best.score == max(trial.score for trial in study.trials)
    assert study.chosen.id == study.best.experiment_id
    again = read_study(study.path)
    assert again.chosen == study.chosen
    assert again.trials == study.trials
    assert again.curve == pytest.approx(data["best_of_k"])


@pytest.mark.parametrize("sampler", ["tpe", pytest.param("random", marks=pytest.mark.wide)])
def test_an_interrupted_study_goes_on_with_the_same_trials(tmp_path, sampler):
    optuna_or_skip()
    whole = search(tmp_path / "whole", 10, sampler=sampler)
    calls = []

    def interrupted(experiments, seeds, results, seconds):
        calls.append(len(experiments))
        if len(calls) % 2:  # every other round is stopped behind its first trial
            run_experiments(experiments[:1], seeds, results, num_workers=0)
            return RunReport(str(results), interrupted=True)
        return run_experiments(experiments, seeds, results, num_workers=0)

    for _ in range(4):
        study = search(tmp_path / "part", 10, sampler=sampler, run=interrupted)
        if study.finished:
            break
        with pytest.raises(IllegalConfiguration, match="of 10 trials are done"):
            read_study(study.path).chosen if study.path.exists() else study.chosen
    assert study.finished
    assert study.trials == whole.trials
    assert len({json.dumps(dict(trial.values)) for trial in study.trials}) == 10


def test_every_method_of_a_folder_has_the_same_budget(tmp_path):
    optuna_or_skip()
    search(tmp_path, 2)
    plain = start([])
    with pytest.raises(IllegalConfiguration, match=r"budget of 2 trials, this one of 3.*--extend"):
        search(tmp_path, 3, plain)
    with pytest.raises(IllegalConfiguration, match="has another num_tasks"):
        search(tmp_path, 2, plain.replace(num_tasks=3))
    with pytest.raises(IllegalConfiguration, match="has last_fraction"):
        search(tmp_path, 2, plain, last_fraction=0.5)
    assert len(list(tmp_path.glob("*.json"))) == 1
    search(tmp_path, 2, plain)
    raised = search(tmp_path, 4, extend=True)
    assert len(raised.trials) == 4
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_the_choice_can_be_for_another_stream(tmp_path):
    optuna_or_skip()
    target = start(num_examples=44)  # 12 steps a task instead of 6
    space = {"redo.every": Range(0.5, 4, unit="task")}
    study = search(tmp_path, 4, start(), space, target=target)
    assert study.chosen.stream == target.stream
    if study.best.values:
        assert study.chosen.methods[0].options["every"] == max(1, round(12 * study.best.values["redo.every"]))
    assert read_study(study.path).chosen == study.chosen


def test_errors_are_tuned_downwards(tmp_path):
    """A stream whose score is an error: the smallest is chosen, and a diverged setting is the last."""
    optuna_or_skip()
    stream = ("slowly_changing_regression", {"task_length": 16, "batch_size": 4})
    plain = Experiment(stream, optimizer=("sgd", {"lr": 0.01}), model=("mlp", {"hidden": [5]}), num_tasks=2)
    study = search(tmp_path, 3, plain, {"optimizer.lr": Choice((0.01, 0.05, 1e30))})
    assert study.lower_is_better
    assert "lowest online mse" in study.rule
    scores = {trial.values["optimizer.lr"]: trial.score for trial in study.trials}
    assert scores[1e30] is None
    assert study.best.score == min(scores[0.01], scores[0.05])
    two = (2 * study.best.score + max(scores[0.01], scores[0.05])) / 3  # of two, one at least has not diverged
    assert read_study(study.path).curve == [math.inf, pytest.approx(two), study.best.score]
    assert json.loads(study.path.read_text())["best_of_k"][0] is None


def test_where_lower_is_better_a_failed_seed_makes_a_setting_the_last(tmp_path):
    optuna_or_skip()
    study = search(tmp_path, 4)
    trials = tuple(
        dataclasses.replace(trial, score=score, num_failed=int(score is None))
        for trial, score in zip(study.trials, (0.5, None, 0.2, 0.3), strict=True)
    )
    lower = dataclasses.replace(study, trials=trials, lower_is_better=True, num_trials=8)
    assert lower.best.number == 2
    assert lower.curve[0] == math.inf
    assert lower.curve[-1] == 0.2
    assert all(values is not None for values in _ask(lower, range(4, 8), "tpe", 0))


def test_what_cannot_be_tuned_is_refused_and_nothing_is_written(tmp_path):
    optuna_or_skip()
    for options, message in (
        ({"num_trials": 0}, "at least one trial"),
        ({"last_fraction": 0.0}, "last_fraction in"),
        ({"sampler": "grid"}, "tpe, random"),
        ({"reported_seeds": [101, 102]}, "both have"),
    ):
        with pytest.raises(IllegalConfiguration, match=message):
            search(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "tiny-redo-0.json").write_text("{}")
    with pytest.raises(RecordError, match="no study, or a damaged one"):
        search(tmp_path)


def test_the_default_space_of_a_preset_starts_inside():
    experiment = Experiment.from_preset("random_label_digits", "demo", ["continual_backprop"])
    space = spaces.default_space(experiment)
    assert spaces.present(experiment, space, 640) == {
        "optimizer.lr": 0.03,
        "continual_backprop.replacement_rate": 1e-4,
        "continual_backprop.maturity_threshold": 100,
    }


def test_on_a_stream_of_errors_the_smallest_wins(tmp_path):
    """The direction is the stream's own, all the way from its task to the chosen trial."""
    optuna_or_skip()
    experiment = Experiment(
        ("slowly_changing_regression", {"task_length": 200}),
        methods=[],
        optimizer=("sgd", {"lr": 0.01}),
        model=("mlp", {"hidden": [5]}),
        num_tasks=2,
    )
    study = search(tmp_path, 4, experiment, {"optimizer.lr": Range(1e-4, 3e-2, log=True)})
    scores = [trial.score for trial in study.trials]
    assert study.lower_is_better
    assert len(set(scores)) > 1
    assert study.best.score == min(scores)
