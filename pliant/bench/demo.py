"""What the demo runs: three streams, six ways of training each, with the settings that tuning chose for each.

The settings lie in ``pliant/bench/tuned/<stream>.toml``, one file per stream::

    stream = "random_label_digits"
    preset = "demo"               # of pliant.bench.presets: everything that all runs share

    [tuning]
    text = "how the settings were chosen, for the report"

    [[runs]]                      # one table per way of training, in the order in which reports show them
    label = "continual backprop"
    optimizer = { lr = 0.1 }      # laid over the preset's
    methods = [{ name = "continual_backprop", replacement_rate = 1e-3 }]
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from pliant.bench.experiment import Experiment
from pliant.bench.names import unknown
from pliant.errors import IllegalConfiguration

__all__ = ["STREAMS", "Tuned", "demo", "read_tuned"]

STREAMS: tuple[str, ...] = ("random_label_digits", "permuted_digits", "stationary_digits")
"""The demo's streams: where plain training fails; the same with held-out digits; a control in which nothing changes."""

QUICK_TASKS = 12


@dataclass(frozen=True)
class Tuned:
    """The content of one tuned file: the experiments, and the text that says how their settings were chosen."""

    stream: str
    experiments: tuple[Experiment, ...]
    text: str


def read_tuned(text: str, where: str) -> Tuned:
    """Read the text of a tuned file.

    Args:
        text: TOML, in the form that this module's docstring shows.
        where: its name, for errors.

    Raises:
        IllegalConfiguration: not TOML, a field that does not exist, a stream, method or option that does not exist,
            or two runs that are the same.
    """
    try:
        data = tomllib.loads(text)
        _only(data, {"stream", "preset", "tuning", "runs"}, "field")
        for key in ("stream", "preset", "tuning", "runs"):
            if key not in data:
                raise IllegalConfiguration(f"{key} is missing")
        _only(data["tuning"], {"text"}, "field of tuning")
        experiments = tuple(_experiment(data["stream"], data["preset"], run) for run in data["runs"])
    except (tomllib.TOMLDecodeError, IllegalConfiguration) as error:
        raise IllegalConfiguration(f"{where}: {error}") from error
    labels = [experiment.label for experiment in experiments]
    if len(set(experiments)) != len(experiments) or len(set(labels)) != len(labels):
        raise IllegalConfiguration(f"{where}: two runs are the same, or have the same label")
    return Tuned(data["stream"], experiments, " ".join(str(data["tuning"].get("text", "")).split()))


def demo(*, quick: bool = False) -> list[Tuned]:
    """Return what the demo runs, stream by stream.

    Args:
        quick: only the first tasks of each stream: to see that it works, not what becomes of a network.

    >>> [(tuned.stream, len(tuned.experiments)) for tuned in demo()][0]
    ('random_label_digits', 6)
    """
    folder = resources.files("pliant.bench") / "tuned"
    found = []
    for stream in STREAMS:
        name = f"{stream}.toml"
        tuned = read_tuned((folder / name).read_text(encoding="utf-8"), name)
        if quick:
            short = tuple(
                experiment.replace(num_tasks=min(QUICK_TASKS, experiment.num_tasks)) for experiment in tuned.experiments
            )
            tuned = Tuned(tuned.stream, short, tuned.text)
        found.append(tuned)
    return found


def _experiment(stream: str, preset: str, run: Mapping[str, Any]) -> Experiment:
    _only(run, {"label", "methods", "optimizer", "model"}, "field of a run")
    for key in ("label", "methods"):
        if key not in run:
            raise IllegalConfiguration(f"a run without {key}")
    methods = [
        (entry["name"], {key: value for key, value in entry.items() if key != "name"}) for entry in run["methods"]
    ]
    changes = {key: run[key] for key in ("optimizer", "model") if key in run}
    return Experiment.from_preset(stream, preset, methods, run["label"], **changes)


def _only(table: Mapping[str, Any], valid: set[str], kind: str) -> None:
    for key in table:
        if key not in valid:
            raise unknown(kind, key, valid)
