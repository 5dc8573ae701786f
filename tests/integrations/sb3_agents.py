"""Small agents of every kind, and what tests look at."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from zoo_sb3 import CONTINUOUS, DISCRETE, SB3, VECTOR, RandomEnv, sb3

from pliant.agents import parts_of_agent
from pliant.interventions import ContinualBackprop

contrib = pytest.importorskip("sb3_contrib", reason="recurrent and quantile agents are in sb3-contrib")

EAGER = ContinualBackprop(replacement_rate=0.05, maturity_threshold=3)
ROLLOUT: dict[str, Any] = {"n_steps": 64, "batch_size": 16, "n_epochs": 2}
REPLAY: dict[str, Any] = {"buffer_size": 500, "learning_starts": 20, "batch_size": 16}


class Masked(RandomEnv):
    """The third action is never allowed."""

    def action_masks(self) -> np.ndarray:
        return np.array([True, True, False])


def agent_of(kind: Any, policy: str = "MlpPolicy", action: Any = DISCRETE, *, env: Any = None, **more: Any) -> Any:
    options = {"net_arch": [8, 6], **more.pop("policy_kwargs", {})}
    env = RandomEnv(VECTOR, action) if env is None else env
    return kind(policy, env, policy_kwargs=options, device="cpu", seed=0, **more)


def ppo(**more: Any) -> Any:
    return SB3["ppo"].make(**{**ROLLOUT, **more})


def sac(**more: Any) -> Any:
    return SB3["sac"].make(**{"batch_size": 16, **more})


def weights(agent: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in agent.policy.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def no_hooks(agent: Any) -> bool:
    optimizers = parts_of_agent(agent).optimizers
    modules = agent.policy.modules()
    return not any(m._forward_hooks or m._forward_pre_hooks for m in modules) and not any(
        item._optimizer_step_post_hooks or item._optimizer_step_pre_hooks for item in optimizers
    )


LSTM = {"policy_kwargs": {"lstm_hidden_size": 7}}
AGENTS: dict[str, tuple[Any, int, list[int], set[str]]] = {
    "ppo_continuous": (lambda: SB3["ppo_continuous"].make(**ROLLOUT), 64, [8], set(SB3["ppo_continuous"].groups)),
    "ppo_image": (
        lambda: SB3["ppo_image"].make(n_steps=16, batch_size=8, n_epochs=4),
        16,
        [8],
        set(SB3["ppo_image"].groups),
    ),
    "a2c": (lambda: SB3["a2c"].make(n_steps=8), 80, [10], set(SB3["a2c"].groups)),
    "sac_dict": (lambda: SB3["sac_dict"].make(batch_size=16), 50, [30, 30], set(SB3["sac_dict"].groups)),
    "td3": (lambda: SB3["td3"].make(batch_size=16), 50, [30, 15], set(SB3["td3"].groups)),
    "ddpg": (
        lambda: agent_of(sb3.DDPG, action=CONTINUOUS, **REPLAY),
        40,
        [20, 20],
        {"actor.mu.0", "actor.mu.2", "critic.qf0.0", "critic.qf0.2"},
    ),
    "dqn": (lambda: SB3["dqn"].make(train_freq=1), 50, [30], {"q_net.0", "q_net.2"}),
    "qrdqn": (
        lambda: agent_of(contrib.QRDQN, train_freq=1, **REPLAY),
        50,
        [30],
        {"quantile_net.0", "quantile_net.2"},
    ),
    "tqc": (lambda: agent_of(contrib.TQC, action=CONTINUOUS, **REPLAY), 40, [20, 20], set(SB3["sac"].groups)),
    "recurrent": (
        lambda: agent_of(contrib.RecurrentPPO, "MlpLstmPolicy", **{**ROLLOUT, "batch_size": 32}, **LSTM),
        128,
        [8],
        set(SB3["ppo"].groups) | {"lstm_actor", "lstm_critic"},
    ),
    "maskable": (
        lambda: agent_of(contrib.MaskablePPO, env=Masked(VECTOR, DISCRETE), **ROLLOUT),
        64,
        [8],
        set(SB3["ppo"].groups),
    ),
}


def some_wide(names: Any, wide: tuple[str, ...]) -> list[Any]:
    """The others are enough where time is short."""
    return [pytest.param(name, marks=[pytest.mark.wide] if name in wide else []) for name in names]
