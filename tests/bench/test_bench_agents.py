"""Agents under the runner: the same bits from a seed, also after an interruption, and records that reports can read."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3", reason="agents are those of Stable-Baselines3")

from benchmarks.rl import page, ways
from pliant import records
from pliant.bench import calibrate, tune
from pliant.bench.checkpoint import find_checkpoints
from pliant.bench.engine import can_stack
from pliant.bench.experiment import Experiment
from pliant.bench.jobs import survey
from pliant.bench.models import ActorCritic
from pliant.bench.presets import PRESETS
from pliant.bench.rl.agents import Agent
from pliant.bench.rl.worlds import entropy_of_counts
from pliant.bench.runner import run_experiments
from pliant.bench.streams import STREAMS, ChangingControl, SlipperyAnt, traits
from pliant.bench.trainer import Stopped
from pliant.cli import main
from pliant.errors import IllegalConfiguration, NoEffect
from pliant.interventions import ContinualBackprop

TINY: dict[str, Any] = {
    "num_envs": 2,
    "rollout_length": 8,
    "batch_size": 8,
    "num_epochs": 2,
    "phase_steps": 32,
    "num_sensors": 6,
    "size": 4,
    "episode_steps": 5,
}
EAGER = ("continual_backprop", {"replacement_rate": 0.2, "maturity_threshold": 1, "sample_every": 1, "decide_every": 1})
SLIPPERY = {"rollout_length": 16, "batch_size": 8, "num_epochs": 1, "phase_steps": 40, "parts": 2}


def tiny(methods: Any = (), num_tasks: int = 4, **changes: Any) -> Experiment:
    stream = {**TINY, **changes.pop("stream", {})}
    model = {"hidden": [4, 4], **changes.pop("model", {})}
    return Experiment.from_preset(
        "changing_control", "mini", methods, stream_options=stream, model=model, num_tasks=num_tasks, **changes
    )


def run(experiment: Experiment, seed: int = 3, folder: Path | None = None) -> Agent:
    agent = Agent(experiment, [seed], folder, stacked=False)
    agent.run()
    agent.close()
    return agent


def same(one: Any, other: Any) -> None:
    """Series to the bit, NaN included, and weights."""
    assert json.dumps(one.series_of(0)) == json.dumps(other.series_of(0))
    for name, value in one.learner.policy.state_dict().items():
        assert torch.equal(value, other.learner.policy.state_dict()[name]), name


def test_the_same_seed_has_the_same_bits_whatever_ran_before():
    experiment = tiny([EAGER])
    first = run(experiment)
    torch.manual_seed(99)
    np.random.seed(99)
    torch.rand(7)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    again = run(experiment)
    same(first, again)
    assert torch.equal(torch.get_rng_state(), before[0]), "the state of the user's generators is the user's"
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert run(experiment, 4).series_of(0) != first.series_of(0)


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "continual_backprop and l2": ([EAGER, ("l2", {"strength": 0.01, "apply": "gradient"})], {}),
    "redo": ([("redo", {"tau": 0.5, "every": 3})], {"optimizer": {"name": "sgd", "lr": 0.1}}),
    "l2_init, layer norm, a schedule": (["l2_init"], {"model": {"layer_norm": True}, "schedule": {"name": "cosine"}}),
    "fresh_start, continuous": (["fresh_start"], {"stream": {"actions": "continuous"}}),
}


@pytest.mark.filterwarnings("ignore:FreshStart acts at task boundaries")  # stopped before the first
@pytest.mark.parametrize("case", CASES)
def test_a_run_that_was_stopped_goes_on_to_the_bit(case, tmp_path):
    methods, changes = CASES[case]
    experiment = tiny(methods, **changes)
    whole = run(experiment)
    for stop in (1, 3):  # in one run, twice
        asked = iter([False] * (stop if stop == 1 else 2) + [True])
        part = Agent(experiment, [3], tmp_path, stacked=False, should_stop=lambda asked=asked: next(asked))
        with pytest.raises(Stopped):
            part.run()
        part.close()
        assert find_checkpoints(tmp_path) == [(3,)]
    same(whole, run(experiment, folder=tmp_path))
    assert len(whole.series["online_return"]) == 4
    if case.startswith("continual"):
        assert sum(whole.series_of(0)["num_resets"]) == sum(int(n) for n in whole_resets(experiment))


def whole_resets(experiment: Experiment) -> list[int]:
    """Counted by the handle over a whole run."""
    agent = Agent(experiment, [3], None, stacked=False)
    agent.run()
    counts = [int(count) for count in agent.handle.num_resets.values()]
    agent.close()
    assert sum(counts) > 0
    return counts


def test_a_task_is_a_phase_of_the_environment_and_every_update_is_counted():
    experiment = tiny([("continual_backprop", {"replacement_rate": 0.0})], num_tasks=3)
    phases = []
    agent = Agent(experiment, [0], None, stacked=False)
    handle, environment = agent.handle, agent.world.environment
    watched = agent.learner.collect_rollouts

    def noted(*args: Any, **kwargs: Any) -> Any:
        phases.append(int(environment.shift[0]))
        return watched(*args, **kwargs)

    agent.learner.collect_rollouts = noted
    agent.run()
    assert phases == [0, 0, 1, 1, 2, 2]
    task = agent.stream.task(0, 0)
    assert task.num_steps == 8  # 2 rollouts, 2 epochs, 2 batches
    assert handle.num_steps == 3 * 8
    assert agent.learner.num_timesteps == environment.steps == 3 * 32
    assert [task.cut(n).num_env_steps for n in (1, 4, 7, 8, 100)] == [16, 16, 16, 32, 32]
    agent.close()


def test_without_steps_nothing_is_learnt_and_the_measures_say_so():
    """A step size of zero: weights and policy stay, and a random policy earns about nothing."""
    stream = {"phase_steps": 640, "num_envs": 8, "batch_size": 64}
    agent = run(tiny(num_tasks=3, optimizer={"name": "sgd", "lr": 0.0}, stream=stream))
    series = agent.series_of(0)
    assert len(set(series["weight_magnitude"])) == 1
    assert series["approx_kl"] == [0.0] * 3
    fresh = agent.experiment.build_model(3)
    assert torch.equal(fresh.policy_net[0].weight, agent.learner.policy.network.policy_net[0].weight)
    assert all(abs(value) < 0.35 for value in series["online_return"])
    assert all(0.5 * math.log(4) < value <= math.log(4) for value in series["policy_entropy"])
    assert all(0.5 < value <= 1 for value in series["state_coverage"])


@pytest.mark.wide
def test_an_agent_learns_a_phase():
    stream = {"num_envs": 16, "rollout_length": 16, "num_epochs": 10, "batch_size": 64, "phase_steps": 2048}
    agent = run(
        tiny(num_tasks=1, stream={**stream, "num_sensors": 16, "episode_steps": 20}, model={"hidden": [32, 32]})
    )
    series = agent.series_of(0)
    assert series["end_return"][0] > 0.5, series
    assert series["policy_entropy"][0] < 1.2


def test_coverage_of_states():
    rng = np.random.default_rng(0)
    assert entropy_of_counts(rng.integers(0, 16, (20000, 3)), 16) > 0.998
    assert entropy_of_counts(np.zeros((50, 3), dtype=np.int64), 16) == 0.0
    half = entropy_of_counts(np.arange(800).reshape(-1, 1) % 8, 64)
    assert half == pytest.approx(0.5)  # log 8 / log 64


def test_the_networks_are_drawn_as_the_source_says():
    torch.manual_seed(0)
    model = ActorCritic(27, 8, hidden=(256, 256))
    for layer, fan in ((model.policy_net[2], 256), (model.value_net[0], 27), (model.policy_head, 256)):
        weight = layer.weight.detach()
        assert float(weight.abs().max()) <= math.sqrt(3 / fan)
        assert float(weight.var()) == pytest.approx(1 / fan, rel=0.05)
        assert not layer.bias.any()
    with pytest.raises(IllegalConfiguration, match="activation='sine' must be one of"):
        ActorCritic(4, 2, activation="sine")


def test_records_and_a_report(tmp_path, capsys):
    """Two ways, two seeds, through the command line: what supervised streams have, agents have."""
    options = [f"stream.{key}={value}" for key, value in TINY.items()] + ["model.hidden=[4,4]"]
    command = ["run", "changing_control", "--seeds", "2", "--tasks", "4", "--workers", "0", "--out", str(tmp_path)]
    for method in (["none"], ["redo", "l2"]):
        assert main([*command, "--method", *method, "--set", *options]) == 0
    out = capsys.readouterr().out
    assert "return while learning" in out
    found = [records.read_record(path) for path in sorted(tmp_path.glob("*/seed-*.json"))]
    assert len(found) == 4
    for record in found:
        assert record.status == "complete"
        assert len(record.series["online_return"]) == 4
        assert {"end_return", "policy_entropy", "state_coverage", "dormant_fraction"} <= set(record.series)
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "report.html")]) == 0
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(text in html for text in ("Return while learning", "Policy entropy", "State coverage"))
    experiment = Experiment.from_dict(found[0].experiment)
    assert not can_stack(experiment)
    assert survey(experiment, [0, 1, 7, 8], tmp_path).groups == ((7,), (8,))


def test_weights_that_are_not_finite_are_a_failed_record_with_a_reason(tmp_path):
    experiment = tiny(optimizer={"name": "sgd", "lr": 1e30})
    report = run_experiments([experiment], [0], tmp_path, num_workers=0)
    assert report.num_failed == 1
    record = records.read_record(records.record_path(tmp_path, experiment.id, 0))
    assert record.meta["failure"] == "diverged"
    assert "weights or outputs are not finite in task 0" in str(record.error)
    trial = tune.score(experiment, [0], tmp_path, 1.0)
    assert trial.score == -math.inf  # a return may be below zero, so 0 would not be the last
    assert "makes its setting the last" in tune.rule(experiment, 1.0)


def test_a_forecast_takes_whole_rollouts(tmp_path):
    found = calibrate._measure([tiny([EAGER])], [0], False, 0.2, tmp_path)
    assert found.num_steps == 8
    assert found.seconds_per_step > 0
    assert found.checkpoint > 0
    assert found.record > 0


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a phase of less than a rollout": ({"phase_steps": 8}, "less than one rollout of 16 steps"),
    "a phase of broken rollouts": ({"phase_steps": 40}, "must be whole rollouts of 16 steps"),
    "a batch that divides nothing": ({"batch_size": 5}, "batch_size=5 must be at least 2, and divide the 16 steps"),
    "a batch of one": ({"batch_size": 1}, "batch_size=1 must be at least 2"),
    "a change that is none": ({"changes": ["gaol"]}, r"changes=\('gaol',\) must be some of goal, sensors, actions"),
    "actions that are none": ({"actions": "some"}, "actions='some' must be one of discrete, continuous"),
    "an option that is none": ({"entropy": 0.1}, "there is no option of stream changing_control 'entropy'"),
    "a discount above one": ({"gamma": 1.5}, r"gamma must be in \[0, 1\]"),
    "no instance": ({"num_envs": 0}, "num_envs must be at least 1"),
    "a negative weight": ({"entropy_weight": -1.0}, "entropy_weight must not be negative"),
    "gradients of no length": ({"max_grad_norm": 0.0}, "max_grad_norm must be above zero"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_are_refused_at_once(case):
    options, message = WRONG[case]
    with pytest.raises(IllegalConfiguration, match=message):
        tiny(stream=options)


def test_what_an_agent_cannot_have_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(IllegalConfiguration, match="an agent needs a model with policy_net"):
        survey(tiny(model={"name": "mlp", "hidden": [4]}), [0], tmp_path)
    with pytest.raises(IllegalConfiguration, match=r"L2Init: needs handle.penalty\(\) in the training loop"):
        survey(tiny([("l2_init", {"apply": "loss"})]), [0], tmp_path)
    with pytest.raises(NoEffect):
        survey(tiny([("redo", {"where": "nothing.*"})]), [0], tmp_path)
    with pytest.raises(IllegalConfiguration, match="agents are trained one at a time"):
        Agent(tiny(), [0, 1], None, stacked=True)
    with pytest.raises(IllegalConfiguration, match="friction="):
        SlipperyAnt(friction=(2.0, 0.02))
    with pytest.raises(IllegalConfiguration, match="no task -1"):
        ChangingControl().task(-1, 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["gymnasium", "stable_baselines3"])
def test_what_is_not_installed_is_named(module, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(IllegalConfiguration, match=r"needs (Gymnasium|Stable-Baselines3).*pip install 'pliant\[rl\]'"):
        survey(tiny(), [0], tmp_path)


def test_the_presets_are_as_published():
    """Dohare et al. (2024), the configurations in the authors' repository."""
    for name, (inputs, outputs) in {
        "slippery_ant": (105, 8),
        "ant": (105, 8),
        "hopper": (11, 3),
        "walker": (17, 6),
    }.items():
        experiment = Experiment.from_preset(name, "paper")
        stream: Any = experiment.build_stream()
        assert (stream.num_inputs, stream.num_classes) == (inputs, outputs)
        task = stream.task(0, 0)
        assert (task.rollout_steps, task.steps_per_rollout) == (2048, 160)
        assert (stream.gamma, stream.gae_lambda, stream.clip_range) == (0.99, 0.95, 0.2)
        assert (stream.entropy_weight, stream.value_weight) == (0.0, 1.0)
        assert experiment.build_model(0).hidden == (256, 256)
        assert experiment.to_dict()["optimizer"] == {"name": "adam", "lr": 1e-4}
        assert experiment.num_tasks * stream.task_steps == (2e7 if name == "slippery_ant" else 5e7)
        betas = Experiment.from_preset(name, "equal_betas").optimizer.options["betas"]
        assert betas == (0.99, 0.99)
        assert traits(stream).score == "return"
        assert {"paper", "equal_betas", "mini"} == set(PRESETS[name])
        assert stream.phase_steps == (2_000_000 if name == "slippery_ant" else 1_000_000)
        assert (stream.friction == (0.02, 2.0)) == (name == "slippery_ant")
        assert getattr(STREAMS[name], "control", False) == (name != "slippery_ant")


# ---- slower ones --------------------------------------------------------------------------------------------------


@pytest.mark.wide
def test_a_robot_goes_on_to_the_bit(tmp_path):
    pytest.importorskip("mujoco")
    experiment = Experiment.from_preset(
        "slippery_ant", "paper", [EAGER], stream_options=SLIPPERY, model={"hidden": [8]}, num_tasks=6
    )
    whole = run(experiment)
    asked = iter([False, False, False, True])
    part = Agent(experiment, [3], tmp_path, stacked=False, should_stop=lambda: next(asked))
    with pytest.raises(Stopped):
        part.run()
    part.close()
    same(whole, run(experiment, folder=tmp_path))
    assert whole.learner.num_timesteps == 128  # the first end of a rollout at or after 120 steps
    environment = whole.world.vector.envs[0]
    assert [shift for _, shift in environment.env.changes] == list(range(1, environment.env.shift + 1))


@pytest.mark.wide
@pytest.mark.parametrize("name", ["slippery_ant", "ant", "hopper", "walker"])
def test_the_paper_presets_run_with_the_published_settings(name):
    pytest.importorskip("mujoco")
    methods = [
        ("continual_backprop", {"replacement_rate": 1e-4, "maturity_threshold": 10_000, "accumulate": False}),
        ("l2", {"strength": 1e-4, "apply": "gradient"}),
    ]
    experiment = Experiment.from_preset(name, "equal_betas", methods if name == "slippery_ant" else [], num_tasks=1)
    agent = Agent(experiment, [0], None, stacked=False)
    num_env_steps = 4096 if name == "slippery_ant" else 2048
    short = dataclasses.replace(agent.stream.task(0, 0), num_env_steps=num_env_steps)

    class Short:
        """The first rollouts of a task that has hundreds."""

        def task(self, index: int, seed: int) -> Any:
            return short

    agent.stream = Short()  # type: ignore[assignment]
    agent.run()
    series = agent.series_of(0)
    assert agent.learner.num_timesteps == num_env_steps
    assert np.isfinite([series["online_return"][0], series["weight_magnitude"][0], series["state_coverage"][0]]).all()
    assert all(math.isfinite(value) for value in series["policy_entropy"])
    agent.close()


_KILLED = """
import sys, torch
torch.set_num_threads(1)
from pliant.bench.experiment import Experiment
from pliant.bench.runner import run_experiments
import json
experiment = Experiment.from_dict(json.loads(sys.argv[1]))
run_experiments([experiment], [3], sys.argv[2], num_workers=0, checkpoint_every=0)
"""


@pytest.mark.wide
def test_a_killed_run_goes_on_to_the_bit(tmp_path):
    experiment = tiny([EAGER], num_tasks=40)
    command = [sys.executable, "-c", _KILLED, json.dumps(experiment.to_dict()), str(tmp_path)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    folder = tmp_path / experiment.id
    while not list(folder.glob(".checkpoint/seeds-*.pt")):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert find_checkpoints(folder) == [(3,)]
    run_experiments([experiment], [3], tmp_path, num_workers=0)
    run_experiments([experiment], [3], tmp_path / "whole", num_workers=0)
    resumed, whole = (
        records.read_record(records.record_path(root, experiment.id, 3)) for root in (tmp_path, tmp_path / "whole")
    )
    assert resumed.status == "complete"
    assert json.dumps({k: list(v) for k, v in resumed.series.items()}) == json.dumps(
        {k: list(v) for k, v in whole.series.items()}
    )


@pytest.mark.wide
def test_processes_have_the_same_bits(tmp_path):
    experiment = tiny([EAGER])
    found = []
    for workers in (0, 2):
        root = tmp_path / str(workers)
        report = run_experiments([experiment], [0, 1], root, num_workers=workers)
        assert report.num_complete == 2, report.message
        read = [records.read_record(records.record_path(root, experiment.id, seed)) for seed in (0, 1)]
        found.append(json.dumps([{key: list(values) for key, values in record.series.items()} for record in read]))
    assert found[0] == found[1]


def test_the_method_that_is_attached_is_the_one_that_was_asked_for():
    agent = Agent(tiny([("continual_backprop", {"replacement_rate": 0.5})]), [0], None, stacked=False)
    assert agent.handle.methods[0] == ContinualBackprop(replacement_rate=0.5)
    assert {group.name.split(".")[1] for group in agent.handle.units} == {"policy_net", "value_net"}
    agent.close()


# ---- the study ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ways.WAYS)
def test_every_way_of_the_study_runs_through_a_change(name):
    small = tiny().stream
    for setting in ways.GRID.get(name, ({},))[:1]:
        experiment = ways.mini(name, setting, num_tasks=2).replace(stream=small)
        agent = run(experiment)
        series = agent.series_of(0)
        assert len(series["online_return"]) == 2
        assert all(math.isfinite(value) for values in series.values() for value in values)
        layers = [type(layer).__name__ for layer in agent.learner.policy.network.policy_net]
        assert ("LayerNorm" in layers) == (name == "layer_norm")
        assert (experiment.optimizer.options.get("betas") == (0.99, 0.99)) == (name not in ("ppo", "preset"))


def test_settings_are_equally_many_and_the_published_ones_are_those_of_the_authors():
    assert set(ways.GRID) == set(ways.WAYS) - {"preset"}
    for name, settings in ways.GRID.items():
        found = {ways.mini(name, setting).id for setting in settings}
        assert len(found) == len(settings) == ways.NUM_SETTINGS, name
    published = {name: ways.paper("slippery_ant", name).to_dict() for name, way in ways.WAYS.items() if way.published}
    assert {name: config["methods"][-1]["strength"] for name, config in published.items()} == {
        "l2": 1e-3,
        "continual_backprop": 1e-4,
        "redo": 1e-4,
    }
    cbp = published["continual_backprop"]["methods"][0]
    assert (cbp["replacement_rate"], cbp["maturity_threshold"], cbp["decay_rate"]) == (1e-4, 10_000, 0.99)
    redo = published["redo"]["methods"][0]
    assert (redo["tau"], redo["every"]) == (0.1, 100)
    with pytest.raises(ValueError, match="no published run of L2 Init"):
        ways.paper("ant", "l2_init")


def test_the_page_of_the_study_is_what_its_records_say(capsys):
    assert page.main(["--check"]) == 0, capsys.readouterr().out
    study = page.Study()
    assert {claim["claim"] for claim in study.expected["expectations"]} == set(page.CLAIMS)
    assert not {row["seed"] for row in study.search["rows"]} & set(tune.REPORTED_SEEDS)


def test_what_the_page_says_follows_from_the_numbers(tmp_path, monkeypatch):
    """Invented records of two seeds: plain PPO falls, everything else stays."""
    series = {key: [0.5] * 50 for key in (*page.PANELS, "policy_dormant_fraction", "value_dormant_fraction")}
    series |= {"end_return": [0.5] * 50, "approx_kl": [0.01] * 50, "num_resets": [1.0] * 50}
    for index, name in enumerate(ways.WAYS):
        runs = []
        for seed in range(2):
            level = 0.4 + 0.01 * index + 0.001 * seed
            falling = [level * (1 - 0.8 * k / 49) if name == "ppo" else level for k in range(50)]
            mine = {**series, "online_return": falling}
            runs.append({"seed": seed, "status": "complete", "series": mine, "seconds": 60.0, "commit": "abc"})
        data = {"bin": 20, "experiment": {"num_tasks": 1000}, "seeds": runs}
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    (tmp_path / "search.json").write_text(json.dumps({"rows": []}))
    study = page.Study(tmp_path)
    assert page.CLAIMS["lost"](study) is True
    assert page.CLAIMS["below_fresh"](study) is True
    assert page.CLAIMS["equal_betas"](study) is False
    assert page.CLAIMS["dormant"](study) is False
    text = page.page(study)
    assert "18 of 72 runs" in text
    assert "the preset's step size, 7" in text, text[:2000]
    assert "worse: L2 Init" not in text
    assert page.picture(study).count("<polyline") >= 9 * 6 + 9
