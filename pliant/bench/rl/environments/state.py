"""The whole state of an environment, so that a run goes on to the bit."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import numpy as np
from gymnasium import wrappers

from pliant.bench.rl.environments.changing import Changing, layers
from pliant.bench.rl.environments.presets import ZeroPadded
from pliant.bench.rl.environments.tasks import SwitchingTasks
from pliant.errors import IllegalConfiguration, NotYetSupported

__all__ = ["environment_state", "load_environment_state"]

_STATELESS = (
    *(wrappers.TransformObservation, wrappers.TransformReward, wrappers.TransformAction),
    *(wrappers.PassiveEnvChecker, ZeroPadded),
)
_COUNTS: dict[str, tuple[str, ...]] = {
    "TimeLimit": ("_elapsed_steps",),
    "OrderEnforcing": ("_has_reset",),
    # of Stable-Baselines3, known by name so that it need not be there
    "Monitor": ("rewards", "needs_reset", "episode_returns", "episode_lengths", "episode_times", "total_steps"),
}
_CLASSIC = ("state", "steps_beyond_terminated", "last_u")
# What a step reads of the step before, and what observations are made of; all else follows from the state.
_DERIVED = ("xpos", "xquat", "xmat", "xipos", "ximat", "site_xpos", "geom_xpos", "cinert", "cvel", "cfrc_ext")

_simulation = attrgetter("data")  # of MuJoCo: what moves, beside the model; no tensor has anything to do with it


def environment_state(environment: Any) -> dict[str, Any]:
    """Return all that an environment and its wrappers remember, in plain numbers, strings, lists and dicts.

    Known are the environments of MuJoCo and of classic control, Pliant's wrappers, ``Monitor`` of Stable-Baselines3,
    and those of Gymnasium that limit time or transform without a memory; and everything that has ``state_dict()`` and
    ``load_state_dict()`` of its own. Attributes that a subclass adds to an environment are not known.

    Args:
        environment: Of Gymnasium, in the middle of an episode or not.

    Raises:
        NotYetSupported: for a wrapper or environment whose memory is not known.
    """
    *outside, base = layers(environment)
    states: list[dict[str, Any]] = []
    for layer in outside:
        states.append(_layer_state(layer))
        if isinstance(layer, SwitchingTasks):
            states[-1]["tasks"] = [environment_state(task) for task in layer.envs]
            return {"layers": states, "base": None}
    return {"layers": states, "base": _base_state(base)}


def load_environment_state(environment: Any, state: dict[str, Any]) -> None:
    """Go on where :func:`environment_state` was called, on an environment that was made with the same arguments.

    Args:
        environment: Of Gymnasium, new or used.
        state: What was returned.

    Raises:
        IllegalConfiguration: if its wrappers are others.
    """
    *outside, base = layers(environment)
    if len(outside) < len(state["layers"]):
        raise IllegalConfiguration(
            f"the state is of {len(state['layers'])} wrappers round an environment, and {environment} has "
            f"{len(outside)}; make it with the same arguments."
        )
    for layer, layer_state in zip(outside, state["layers"], strict=False):
        if layer_state["name"] != type(layer).__name__:
            raise IllegalConfiguration(
                f"the state is of a {layer_state['name']}, and {environment} has a {type(layer).__name__} in its "
                f"place; make it with the same arguments."
            )
        if "tasks" in layer_state:
            layer.load_state_dict(layer_state["own"])
            for task, task_state in zip(layer.envs, layer_state["tasks"], strict=True):
                load_environment_state(task, task_state)
            return
        if "own" in layer_state:
            layer.load_state_dict(layer_state["own"])
        if isinstance(layer, wrappers.PassiveEnvChecker):  # it looks at the first steps of an environment's life
            layer.checked_reset = layer.checked_step = layer.checked_data_reuse = True
        for name, value in layer_state.get("counts", {}).items():
            setattr(layer, name, list(value) if isinstance(value, list) else value)
    _load_base(base, state["base"])


def _unknown(thing: Any, what: str) -> NotYetSupported:
    return NotYetSupported(
        f"the {what} {type(thing).__name__} has a memory that is not known, so that a run could not go on to the bit; "
        f"give it state_dict() and load_state_dict(), or leave it out."
    )


def _layer_state(layer: Any) -> dict[str, Any]:
    name = type(layer).__name__
    if isinstance(layer, Changing) or (hasattr(type(layer), "state_dict") and hasattr(type(layer), "load_state_dict")):
        return {"name": name, "own": layer.state_dict()}
    if name in _COUNTS:
        counts = {key: getattr(layer, key) for key in _COUNTS[name]}
        return {"name": name, "counts": {key: _plain(value) for key, value in counts.items()}}
    if isinstance(layer, _STATELESS):
        return {"name": name}
    raise _unknown(layer, "wrapper")


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value.item() if isinstance(value, np.generic) else value


def _base_state(base: Any) -> dict[str, Any]:
    if hasattr(type(base), "state_dict") and hasattr(type(base), "load_state_dict"):
        return {"own": base.state_dict()}
    random = getattr(base, "_np_random", None)
    state: dict[str, Any] = {"random": None if random is None else random.bit_generator.state}
    if _simulated(base):
        from pliant.bench.rl.environments.simulator import mujoco

        wanted = mujoco.mjtState.mjSTATE_INTEGRATION
        full = np.empty(mujoco.mj_stateSize(base.model, wanted))
        mujoco.mj_getState(base.model, _simulation(base), full, wanted)
        state["simulator"] = full.tolist()
        state["derived"] = {name: getattr(_simulation(base), name).tolist() for name in _DERIVED}
        return state
    known = [name for name in _CLASSIC if hasattr(base, name)]
    if "state" not in known:
        raise _unknown(base, "environment")
    state["classic"] = {name: _array_state(getattr(base, name)) for name in known}
    return state


def _simulated(base: Any) -> bool:
    return type(getattr(base, "data", None)).__name__ == "MjData"


def _array_state(value: Any) -> Any:
    """Arrays with their dtype, and everything else as it is: float32 and float64 go on differently."""
    if isinstance(value, np.ndarray | np.generic):
        return {"dtype": str(value.dtype), "shape": list(value.shape), "values": value.reshape(-1).tolist()}
    if isinstance(value, tuple | list):
        return {"dtype": "float64", "shape": [len(value)], "values": [float(entry) for entry in value]}
    return value


def _array(state: Any) -> Any:
    if not isinstance(state, dict):
        return state
    return np.array(state["values"], dtype=state["dtype"]).reshape(state["shape"])[()]


def _load_base(base: Any, state: dict[str, Any]) -> None:
    if "own" in state:
        base.load_state_dict(state["own"])
        return
    if state["random"] is not None:
        base.np_random.bit_generator.state = state["random"]
    if "simulator" in state:
        from pliant.bench.rl.environments.simulator import mujoco

        mujoco.mj_setState(
            base.model, _simulation(base), np.asarray(state["simulator"]), mujoco.mjtState.mjSTATE_INTEGRATION
        )
        for name, values in state["derived"].items():
            found = getattr(_simulation(base), name)
            found[...] = np.asarray(values).reshape(found.shape)
        return
    for name, value in state["classic"].items():
        setattr(base, name, _array(value))
