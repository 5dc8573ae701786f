"""Stable-Baselines3 policies on spaces of a few numbers, with the unit groups that must be found in them.

As in the zoo, the expected groups are written by hand from the architectures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

gymnasium = pytest.importorskip("gymnasium", reason="Stable-Baselines3 policies need gymnasium")
sb3 = pytest.importorskip("stable_baselines3", reason="the tests of Stable-Baselines3 policies need it")
spaces = gymnasium.spaces

VECTOR = spaces.Box(-1.0, 1.0, (5,))
IMAGE = spaces.Box(0, 255, (3, 36, 36), dtype=np.uint8)
DICT = spaces.Dict({"velocity": spaces.Box(-1.0, 1.0, (5,)), "room": spaces.Discrete(4)})
DISCRETE, CONTINUOUS = spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,))
SEVERAL_DISCRETE, SWITCHES = spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3)


class RandomEnv(gymnasium.Env):
    """Observations are noise; the reward is the action."""

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.time = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.time = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        return self.observation_space.sample(), float(np.sum(action)), self.time >= 20, False, {}


def observation(space: Any, size: int = 4) -> Any:
    """A batch as the algorithm passes it to its policy."""
    if isinstance(space, spaces.Dict):
        return {key: observation(item, size) for key, item in space.spaces.items()}
    if isinstance(space, spaces.Discrete):
        return torch.randint(0, int(space.n), (size, 1))
    if space.dtype == np.uint8:
        return torch.randint(0, 256, (size, *space.shape), dtype=torch.uint8)
    return torch.randn(size, *space.shape)


def chain(*layers: str) -> list[str]:
    """Members of the groups between consecutive layers; several consumers are separated by ``|``."""
    found = []
    for producer, consumers in pairwise(layers):
        first = producer.split("|")[0]
        found.append(
            f"{first}.weight[-2] {first}.bias[-1] " + " ".join(f"{c}.weight[-1]" for c in consumers.split("|"))
        )
    return found


def groups(sizes: list[int], members: list[str]) -> dict[str, tuple[int, str]]:
    return {m.split(".weight")[0]: (size, m) for size, m in zip(sizes, members, strict=True)}


_MLP_PI = chain("mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2", "action_net")
_MLP_VF = chain("mlp_extractor.value_net.0", "mlp_extractor.value_net.2", "value_net")
ON_POLICY = groups([8, 6], _MLP_PI) | groups([8, 6], _MLP_VF)


def nature(prefix: str, consumers: str) -> dict[str, tuple[int, str]]:
    """The convolutions of NatureCNN; the last one's channels feed a flatten, and its linear layer feeds the nets."""
    cnn, linear = f"{prefix}cnn", f"{prefix}linear.0"
    return {
        f"{cnn}.0": (32, f"{cnn}.0.weight[-4] {cnn}.0.bias[-1] {cnn}.2.weight[-3]"),
        f"{cnn}.2": (64, f"{cnn}.2.weight[-4] {cnn}.2.bias[-1] {cnn}.4.weight[-3]"),
        f"{cnn}.4": (64, f"{cnn}.4.weight[-4] {cnn}.4.bias[-1] {linear}.weight[-1]"),
        linear: (
            16,
            f"{linear}.weight[-2] {linear}.bias[-1] " + " ".join(f"{c}.weight[-1]" for c in consumers.split()),
        ),
    }


def prefixed(prefix: str, found: Mapping[str, tuple[int, str]]) -> dict[str, tuple[int, str]]:
    return {
        prefix + name: (size, " ".join(prefix + member for member in members.split()))
        for name, (size, members) in found.items()
    }


ACTOR_SAC = groups([8, 6], chain("latent_pi.0", "latent_pi.2", "mu|log_std"))
ACTOR_TD3 = groups([8, 6], chain("mu.0", "mu.2", "mu.4"))
CRITIC = groups([8, 6], chain("qf0.0", "qf0.2", "qf0.4")) | groups([8, 6], chain("qf1.0", "qf1.2", "qf1.4"))


def policy(algorithm: Any) -> Any:
    return algorithm.policy


def q_net(algorithm: Any) -> Any:
    return algorithm.q_net


def actor_and_critic(algorithm: Any) -> Any:
    return {"actor": algorithm.policy.actor, "critic": algorithm.policy.critic}


@dataclass(frozen=True)
class Sb3Case:
    """An algorithm, which of its networks are trained, and the groups expected of them."""

    algorithm: str
    policy: str
    observation: Any
    action: Any
    models: Callable[[Any], Any]
    groups: Mapping[str, tuple[int, str]]
    more: Mapping[str, Any] = field(default_factory=dict)

    def make(self, **more: Any) -> Any:
        architecture: dict[str, Any] = {"net_arch": [8, 6]}
        if self.policy == "CnnPolicy":
            architecture["features_extractor_kwargs"] = {"features_dim": 16}
        architecture |= self.more.get("policy_kwargs", {})
        rest = {key: value for key, value in self.more.items() if key != "policy_kwargs"}
        return getattr(sb3, self.algorithm)(
            self.policy,
            RandomEnv(self.observation, self.action),
            policy_kwargs=architecture,
            device="cpu",
            seed=0,
            **{**rest, **more},
        )

    def inputs(self, models: Any, size: int = 4) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            obs = observation(self.observation, size)
            if not isinstance(models, Mapping):
                return (obs,)
            return {"actor": (obs,), "critic": (obs, torch.rand(size, *self.action.shape))}


_BUFFER = {"buffer_size": 500, "learning_starts": 20}
_TWO = prefixed("actor.", ACTOR_SAC) | prefixed("critic.", CRITIC)
SB3: dict[str, Sb3Case] = {
    "ppo": Sb3Case("PPO", "MlpPolicy", VECTOR, DISCRETE, policy, ON_POLICY),
    "ppo_continuous": Sb3Case("PPO", "MlpPolicy", VECTOR, CONTINUOUS, policy, ON_POLICY),
    "ppo_multi_discrete": Sb3Case("PPO", "MlpPolicy", VECTOR, SEVERAL_DISCRETE, policy, ON_POLICY),
    "ppo_multi_binary": Sb3Case("PPO", "MlpPolicy", VECTOR, SWITCHES, policy, ON_POLICY),
    "ppo_dict": Sb3Case("PPO", "MultiInputPolicy", DICT, DISCRETE, policy, ON_POLICY),
    "ppo_image": Sb3Case(
        "PPO",
        "CnnPolicy",
        IMAGE,
        DISCRETE,
        policy,
        nature("features_extractor.", "mlp_extractor.policy_net.0 mlp_extractor.value_net.0") | ON_POLICY,
    ),
    "a2c": Sb3Case("A2C", "MlpPolicy", VECTOR, CONTINUOUS, policy, ON_POLICY),
    "dqn": Sb3Case(
        "DQN", "MlpPolicy", VECTOR, DISCRETE, q_net, groups([8, 6], chain("q_net.0", "q_net.2", "q_net.4")), _BUFFER
    ),
    "dqn_image": Sb3Case(
        "DQN",
        "CnnPolicy",
        IMAGE,
        DISCRETE,
        q_net,
        nature("features_extractor.", "q_net.0") | groups([8, 6], chain("q_net.0", "q_net.2", "q_net.4")),
        _BUFFER,
    ),
    "sac": Sb3Case("SAC", "MlpPolicy", VECTOR, CONTINUOUS, actor_and_critic, _TWO, _BUFFER),
    "sac_dict": Sb3Case("SAC", "MultiInputPolicy", DICT, CONTINUOUS, actor_and_critic, _TWO, _BUFFER),
    "td3": Sb3Case(
        "TD3",
        "MlpPolicy",
        VECTOR,
        CONTINUOUS,
        actor_and_critic,
        prefixed("actor.", ACTOR_TD3) | prefixed("critic.", CRITIC),
        _BUFFER,
    ),
}
"""The networks that the algorithms train; target networks are left out by giving those that are trained."""


def tensors_in(batch: Any) -> list[Tensor]:
    return [batch] if isinstance(batch, Tensor) else [leaf for item in batch.values() for leaf in tensors_in(item)]
