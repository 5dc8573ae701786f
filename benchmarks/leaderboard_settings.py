"""What the leaderboard runs: streams, ways of training, and how their settings are drawn; fixed before it was run.

Every way of training has the same number of settings on each stream: a step size and values of what the method declares
in its class variable ``search``. They are drawn at random in layers (a Latin hypercube): every range is cut into as
many parts as there are settings, and each part is drawn from once, in an order that is random for every option.
Independent draws, of which half a dozen often miss most of a range, would reward luck. The k-th setting of all ways
that use SGD has the same step size, and the k-th of those with Adam lies at the same place of their range. Options that
are not searched have the method's own defaults.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from pliant.bench.experiment import Experiment
from pliant.bench.spaces import apply, default_space
from pliant.search import Choice, Domain, Range

__all__ = ["NUM_SETTINGS", "PARTS", "REPORTED", "TUNING", "WAYS", "Part", "Way", "base", "settings", "streams", "ways"]

TUNING = (100, 101, 102)
REPORTED = tuple(range(10))
SPAN = 10.0
"""Step sizes of SGD are drawn from the preset's divided by this to three times the preset's, on a logarithmic scale."""
ADAM = Range(3e-4, 9e-3, log=True)
"""Step sizes of Adam: as wide a range."""
NUM_SETTINGS = 6


@dataclass(frozen=True)
class Part:
    """Streams that are run together, with the ways of training that can be.

    Attributes:
        streams: Stream to preset.
        changes: Stream to what differs from the preset, as ``Experiment.from_preset`` takes it.
        num_settings: Settings of each way on each stream.
    """

    streams: Mapping[str, str]
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    num_settings: int = NUM_SETTINGS


PARTS: dict[str, Part] = {
    "stacked": Part(
        {
            "random_label_digits": "demo",
            "permuted_digits": "demo",
            "label_permuted": "mini",
            "input_permuted": "mini",
            "slowly_changing_regression": "mini",
            "stationary_digits": "demo",
        },
        # Half as long as the presets: at this rate of change plain training loses as much.
        {
            "input_permuted": {"stream_options": {"num_examples": 500}},
            "slowly_changing_regression": {"stream_options": {"task_length": 1000}},
        },
    ),
    # Seeds of convolutional networks run one by one on a CPU: fewer settings.
    "convolutional": Part(
        {"continual_imagenet": "mini", "five_plus_one": "mini"},
        {
            "five_plus_one": {
                "stream_options": {"flat": False},
                "model": {
                    "name": "convnet", "channels": [8, 16], "kernels": [3, 2], "hidden": [32], "image": [1, 8, 8],
                },
            },
        },
        num_settings=5,
    ),
}  # fmt: skip
"""The parts of the leaderboard. In the last stream of the first nothing changes: it is the control."""


@dataclass(frozen=True)
class Way:
    """One way of training.

    Attributes:
        label: Name in the tables.
        methods: Interventions, with the options that are not searched.
        optimizer: Laid over the preset's.
        model: Another model for the streams whose network is an MLP; its widths are the preset's.
        page: Whose page describes it; empty for none.
        variant_of: The way that it is a variant of, and is compared with on its page; empty for none.
    """

    label: str
    methods: Sequence[tuple[str, Mapping[str, Any]]] = ()
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    page: str = ""
    variant_of: str = ""


def _one(name: str, label: str, **fixed: Any) -> tuple[str, Way]:
    return name, Way(label, ((name, fixed),), page=name)


WAYS: dict[str, Way] = dict([
    ("none", Way("no protection")),
    _one("fresh_start", "fresh network per task"),
    _one("l2", "L2"),
    _one("l2_init", "L2 init"),
    _one("shrink_and_perturb", "shrink and perturb"),
    _one("continual_backprop", "continual backprop"),
    _one("redo", "ReDo"),
    _one("regrama", "ReGraMa"),
    _one("layer_reset", "layer reset"),
    _one("hare_and_tortoise", "hare and tortoise"),
    _one("weight_clipping", "weight clipping"),
    # A power iteration at every tenth step, each with ten times the strength: every step would take hours.
    _one("spectral_regularisation", "spectral regularisation", every=10),
    ("layer_norm", Way("LayerNorm", model={"name": "benchmarks.activations:NormedMLP"}, page="insert_normalization")),
    ("crelu", Way(
        "CReLU", model={"name": "benchmarks.activations:ActivationMLP", "activation": "crelu"}, page="crelu",
    )),
    ("adam", Way("no protection, Adam", optimizer={"name": "adam"})),
    ("adam_equal_betas", Way(
        "Adam with equal betas", optimizer={"name": "adam_equal_betas"}, page="adam_equal_betas", variant_of="adam",
    )),
    _one("self_normalized_reset", "self-normalized reset"),
    ("upgd", Way("UPGD", optimizer={"name": "upgd"}, page="upgd")),
])  # fmt: skip
"""All ways of training, in the order of the tables."""


def streams(part: str) -> list[str]:
    """The streams of a part."""
    return list(PARTS[part].streams)


def ways(part: str) -> list[str]:
    """The ways of training that a part runs: those that are another MLP are of no use to convolutional networks."""
    return [name for name, way in WAYS.items() if part == "stacked" or not way.model]


def _part_of(stream: str) -> Part:
    return next(part for part in PARTS.values() if stream in part.streams)


def base(stream: str, way: str, num_tasks: int | None = None) -> Experiment:
    """A way of training with the preset's step size and the defaults of its method."""
    chosen, part = WAYS[way], _part_of(stream)
    changes: dict[str, Any] = {key: dict(value) for key, value in part.changes.get(stream, {}).items()}
    preset = Experiment.from_preset(stream, part.streams[stream], **changes)
    if chosen.optimizer:
        changes["optimizer"] = {"lr": preset.optimizer.options["lr"], **chosen.optimizer}
    if chosen.model:
        changes["model"] = {"hidden": _widths(preset, chosen), **chosen.model}
    if num_tasks is not None:
        changes["num_tasks"] = num_tasks
    return Experiment.from_preset(stream, part.streams[stream], chosen.methods, chosen.label, **changes)


def _widths(preset: Experiment, way: Way) -> list[int]:
    """The preset's; where units with two outputs cannot make an odd width, there are as many units instead."""
    hidden = preset.model.options["hidden"]
    two = way.model.get("activation") == "crelu"
    return [2 * width if two and width % 2 else width for width in hidden]


@cache
def _steps_per_task(stream: str) -> int:
    return base(stream, "none").build_stream().task(0, TUNING[0]).num_steps


def settings(stream: str, way: str, num_tasks: int | None = None, num_settings: int | None = None) -> list[Experiment]:
    """The settings of one way of training on one stream."""
    start = base(stream, way, num_tasks)
    space: dict[str, Domain] = {key: domain for key, domain in default_space(start).items() if key != "optimizer.lr"}
    size = base(stream, "none").optimizer.options["lr"]
    plain = Range(size / SPAN, 3 * size, log=True)
    space["optimizer.lr"] = ADAM if start.optimizer.name.startswith("adam") else plain
    num = _part_of(stream).num_settings if num_settings is None else num_settings
    shares = {key: _layers(num, stream, "" if key == "optimizer.lr" else way, key) for key in space}
    return [
        apply(
            start,
            space,
            {key: _at(domain, shares[key][number]) for key, domain in space.items()},
            _steps_per_task(stream),
        )
        for number in range(num)
    ]


def _layers(num: int, *names: object) -> list[float]:
    """A number from each of ``num`` equal parts of [0, 1), in random order; they depend on these names alone."""
    seed = int.from_bytes(hashlib.sha256(repr(names).encode()).digest()[:8], "little")
    rng = np.random.default_rng(seed)
    return [float(value) for value in (rng.permutation(num) + rng.random(num)) / num]


def _at(domain: Domain, share: float) -> Any:
    """The value at this share of a domain; of numbers on a logarithmic scale, three digits."""
    if isinstance(domain, Choice):
        return domain.values[int(share * len(domain.values))]
    low, high = (math.log(domain.low), math.log(domain.high)) if domain.log else (domain.low, domain.high)
    value = low + share * (high - low)
    value = math.exp(value) if domain.log else value
    return round(value) if domain.integer else float(f"{value:.3g}")
