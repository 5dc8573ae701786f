"""The ways that are compared, at both sizes: as published, and on the small problem with what is tuned."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pliant.bench.experiment import Experiment

__all__ = ["GRID", "NUM_SETTINGS", "WAYS", "Way", "mini", "paper"]

EQUAL = (0.99, 0.99)


@dataclass(frozen=True)
class Way:
    """One way to train.

    Attributes:
        label: its name on paper.
        methods: the interventions on the small problem, in order, with what is not tuned.
        equal_betas: Adam's two decay rates are both 0.99, as in all published runs but the first.
        layer_norm: normalised layers.
        published: the interventions with the published settings; None: the paper has no such run.
    """

    label: str
    methods: tuple[tuple[str, dict[str, Any]], ...] = ()
    equal_betas: bool = True
    layer_norm: bool = False
    published: tuple[tuple[str, dict[str, Any]], ...] | None = field(default=None, hash=False)


def _l2(strength: float) -> tuple[str, dict[str, Any]]:
    return "l2", {"strength": strength, "apply": "gradient"}  # the weight_decay of torch.optim.Adam


WAYS: dict[str, Way] = {
    "preset": Way("PPO, not tuned", equal_betas=False),
    "ppo": Way("PPO", equal_betas=False, published=()),
    "equal_betas": Way("PPO, equal betas", published=()),
    "l2": Way("L2", (_l2(1e-3),), published=(_l2(1e-3),)),
    "continual_backprop": Way(
        "Continual backprop + L2",
        (("continual_backprop", {"replacement_rate": 1e-3, "maturity_threshold": 100}), _l2(1e-4)),
        published=(
            ("continual_backprop", {"replacement_rate": 1e-4, "maturity_threshold": 10_000, "accumulate": False}),
            _l2(1e-4),
        ),
    ),
    "redo": Way(
        "ReDo + L2",
        (("redo", {"tau": 0.1, "every": 100}), _l2(1e-4)),
        published=(("redo", {"tau": 0.1, "every": 100}), _l2(1e-4)),
    ),
    "l2_init": Way("L2 Init", (("l2_init", {"strength": 1e-3, "apply": "gradient"}),)),
    "layer_norm": Way("Layer norm", layer_norm=True),
    "fresh_start": Way("Fresh start", (("fresh_start", {}),)),
}
"""By name; whatever is protected at all has equal betas, as published. The first is the preset as it stands."""

_STEP_SIZES = tuple({"lr": lr} for lr in (3e-3, 1e-2, 3e-2, 3e-4, 1e-3, 1e-1))


def _at_both(*settings: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """Settings of a method at the preset's step size, and at three tenths of it."""
    return (*settings, *({"lr": 3e-3, **setting} for setting in settings))


GRID: dict[str, tuple[dict[str, Any], ...]] = {
    **dict.fromkeys(("ppo", "equal_betas", "layer_norm", "fresh_start"), _STEP_SIZES),
    "l2": _at_both({"l2.strength": 1e-4}, {"l2.strength": 1e-3}, {"l2.strength": 1e-2}),
    "continual_backprop": _at_both(
        {"continual_backprop.replacement_rate": 1e-4, "l2.strength": 1e-4},
        {"continual_backprop.replacement_rate": 1e-3, "l2.strength": 1e-4},
        {"continual_backprop.replacement_rate": 1e-3, "l2.strength": 1e-3},
    ),
    "redo": _at_both(
        {"redo.every": 100, "l2.strength": 1e-4},
        {"redo.every": 1000, "l2.strength": 1e-4},
        {"redo.every": 100, "l2.strength": 1e-3},
    ),
    "l2_init": _at_both({"l2_init.strength": 1e-4}, {"l2_init.strength": 1e-3}, {"l2_init.strength": 1e-2}),
}
"""What is tried of each tuned way on the tuning seeds, equally many settings; ``lr`` is Adam's."""

NUM_SETTINGS = 6


def mini(name: str, setting: dict[str, Any] | None = None, num_tasks: int | None = None) -> Experiment:
    """A way on the small problem.

    Args:
        name: which way.
        setting: of :data:`GRID`; None: as the way says.
        num_tasks: None: the preset's.
    """
    way, given = WAYS[name], dict(setting or {})
    optimizer = {"lr": given.pop("lr")} if "lr" in given else {}
    if way.equal_betas:
        optimizer["betas"] = list(EQUAL)
    methods = []
    for method, options in way.methods:
        mine = {key.partition(".")[2]: value for key, value in given.items() if key.partition(".")[0] == method}
        methods.append((method, {**options, **mine}))
    changes: dict[str, Any] = {"optimizer": optimizer, "model": {"layer_norm": True} if way.layer_norm else {}}
    if num_tasks is not None:
        changes["num_tasks"] = num_tasks
    return Experiment.from_preset("changing_control", "mini", methods, way.label, **changes)


def paper(stream: str, name: str) -> Experiment:
    """A way on a robot, with the published settings.

    Args:
        stream: ``slippery_ant``, ``ant``, ``hopper`` or ``walker``.
        name: one of those that were published.
    """
    way = WAYS[name]
    if way.published is None:
        raise ValueError(f"there is no published run of {way.label}")
    return Experiment.from_preset(stream, "equal_betas" if way.equal_betas else "paper", way.published, way.label)
