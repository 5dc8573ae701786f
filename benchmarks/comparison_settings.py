"""What the comparison of all methods runs; written down before anything was run, and not changed afterwards.

Every way of training has :data:`NUM_SETTINGS` settings on each stream. Those without an option to tune spend them on
the step size; the others on two step sizes and two values of the option that matters most. Options that are not
listed have the defaults of their source, except for periods, which are one task where the default is longer than that.

The lengths and the two step sizes of most methods were set by looking at plain training, ReDo and continual backprop
on the tuning seeds: the random labels are such that plain training falls at the step sizes at which it learns well.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pliant.bench.experiment import Experiment

__all__ = ["ENTRIES", "NUM_SETTINGS", "NUM_TASKS", "STREAMS", "Entry", "settings"]

NUM_TASKS, NUM_SETTINGS = 30, 4
STREAMS: dict[str, dict[str, Any]] = {
    "random_label_digits": {"num_examples": 128, "num_epochs": 20, "batch_size": 8},
    "permuted_digits": {"num_examples": 512, "num_test": 597, "num_epochs": 5, "batch_size": 16},
}
"""The streams of the demo; the first with half as many passes over each task."""
TASK = {"random_label_digits": 320, "permuted_digits": 160}
"""Steps of a task: what a period ``"task"`` in the options stands for."""
RATES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "random_label_digits": ((0.03, 0.1), (0.015, 0.03, 0.06, 0.1)),
    "permuted_digits": ((0.1, 0.2), (0.03, 0.1, 0.2, 0.3)),
}
"""Step sizes of SGD: two where an option is tuned, too, or four."""
MODEL = "benchmarks.activations:ActivationMLP"


@dataclass(frozen=True)
class Entry:
    """One way of training.

    Attributes:
        label: Name in the tables.
        methods: Interventions with the options that all settings share.
        tuned: Where (``"methods"``, for the last of them, ``"optimizer"`` or ``"model"``), which option, two values.
        optimizer: Laid over the streams' SGD.
        model: Another model.
        rates: Step sizes, if not those of :data:`RATES`: one row for both streams, or one for each.
        baseline: The entry that it is held against.
        page: Whose page shows it; empty for none.
    """

    label: str
    methods: Sequence[tuple[str, Mapping[str, Any]]] = ()
    tuned: tuple[str, str, tuple[Any, Any]] | None = None
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    rates: Mapping[str, Sequence[float]] | None = None
    baseline: str = "none"
    page: str = ""


def _one(name: str, label: str, option: str = "", *values: Any, **fixed: Any) -> tuple[str, Entry]:
    tuned = ("methods", option, (values[0], values[1])) if option else None
    return name, Entry(label, ((name, fixed),), tuned, page=name)


def _both(*rates: float) -> dict[str, Sequence[float]]:
    return dict.fromkeys(STREAMS, rates)


_MOMENTUM = {"name": "sgd", "momentum": 0.9}
_SMALLER = {"random_label_digits": (0.0015, 0.003, 0.006, 0.01), "permuted_digits": (0.003, 0.01, 0.02, 0.03)}
_NORMS = ("insert_normalization", {"kind": "layer"})

ENTRIES: dict[str, Entry] = dict([
    ("none", Entry("no protection")),
    _one("fresh_start", "fresh network per task"),
    # selective resets
    _one("continual_backprop", "continual backprop", "replacement_rate", 1e-4, 1e-3),
    _one("redo", "ReDo", "tau", 0.025, 0.1, every="task"),
    _one("self_normalized_reset", "self-normalized reset", "percentile", 0.95, 0.99, update_every="task"),
    _one("regrama", "ReGraMa", "tau", 0.01, 0.1, every="task"),
    _one("selective_weight_reset", "selective weight reset", "factor", 1e-3, 1e-1, every="task"),
    # whole layers and networks
    _one("layer_reset", "layer reset", "layers", 1, 2),
    _one("shrink_and_perturb", "shrink and perturb", "shrink", 0.4, 0.8),
    _one("fire", "FIRE", "iterations", 5, 10),
    _one("plasticity_injection", "plasticity injection"),
    _one("hare_and_tortoise", "hare and tortoise", "decay", 0.99, 0.999),
    # regularisers
    _one("l2", "L2", "strength", 1e-3, 1e-2),
    _one("l2_init", "L2 init", "strength", 1e-3, 1e-2),
    _one("spectral_regularisation", "spectral regularisation", "strength", 1e-3, 1e-2),
    _one("parseval", "Parseval", "strength", 1e-3, 1e-2),
    _one("feature_norm", "feature norm", "strength", 1e-4, 1e-3),
    _one("l2_effective_rank", "L2-ER", "strength", 1e-3, 1e-2),
    _one("weight_clipping", "weight clipping", "kappa", 1.0, 3.0),
    _one("c_chain", "C-CHAIN", "share", 0.01, 0.1),
    _one("gradient_noise", "gradient noise", "noise_scale", 0.001, 0.01),
    _one("weight_noise", "weight noise", "noise_scale", 0.001, 0.01),
    # normalisation
    _one("insert_normalization", "inserted LayerNorm", "kind", "layer", "batch"),
    ("normalize_and_project", Entry(
        "LayerNorm, normalise and project", (_NORMS, ("normalize_and_project", {})),
        ("methods", "affine", ("decay", "project")), page="normalize_and_project",
    )),
    _one("insert_dropout", "inserted dropout", "p", 0.05, 0.2),
    _one("adaptive_normalization", "adaptive normalisation", "rate", 0.1, 0.5),
    # layers; their widths are those behind the activation
    ("crelu", Entry("CReLU", model={"name": MODEL, "activation": "crelu"}, page="crelu")),
    ("deep_fourier_features", Entry(
        "deep Fourier features", model={"name": MODEL, "activation": "deep_fourier_features"},
        page="deep_fourier_features",
    )),
    ("smooth_leaky_relu", Entry(
        "smooth leaky ReLU", (), ("model", "negative_slope", (0.1, 0.3)),
        model={"name": MODEL, "activation": "smooth_leaky_relu"}, page="smooth_leaky_relu",
    )),
    # optimizers
    ("upgd", Entry("UPGD", (), ("optimizer", "sigma", (1e-3, 1e-2)), {"name": "upgd"}, page="upgd")),
    ("momentum", Entry("no protection, momentum 0.9", optimizer=_MOMENTUM, rates=_SMALLER)),
    ("optimizer_reset", Entry(
        "optimizer reset, momentum 0.9", (("optimizer_reset", {}),), None, _MOMENTUM, rates=_SMALLER,
        baseline="momentum", page="optimizer_reset",
    )),
    ("adam", Entry("no protection, Adam", optimizer={"name": "adam"}, rates=_both(3e-4, 1e-3, 3e-3, 1e-2))),
    ("adam_equal_betas", Entry(
        "Adam with equal betas", optimizer={"name": "adam_equal_betas"}, rates=_both(3e-4, 1e-3, 3e-3, 1e-2),
        baseline="adam", page="adam_equal_betas",
    )),
    # against forgetting
    _one("experience_replay", "experience replay", "ratio", 0.5, 1.0),
])  # fmt: skip
"""All ways of training, in the order of the tables."""


def settings(name: str, stream: str, num_tasks: int = NUM_TASKS) -> list[Experiment]:
    """The grid of one entry on one stream: the step sizes, and for each the values of its option."""
    entry = ENTRIES[name]
    two, four = RATES[stream]
    rates = entry.rates[stream] if entry.rates else two if entry.tuned else four
    where, option, values = entry.tuned or ("", "", (None,))
    found = []
    for rate, value in itertools.product(rates, values):
        methods = [(method, _periods(options, stream)) for method, options in entry.methods]
        changes = {"optimizer": {**entry.optimizer, "lr": rate}, "model": dict(entry.model)}
        if where == "methods":
            methods[-1][1][option] = value
        elif where:
            changes[where][option] = value
        found.append(
            Experiment.from_preset(
                stream, "demo", methods, entry.label, stream_options=STREAMS[stream], num_tasks=num_tasks, **changes
            )
        )
    return found


def _periods(options: Mapping[str, Any], stream: str) -> dict[str, Any]:
    return {key: TASK[stream] if value == "task" else value for key, value in options.items()}
