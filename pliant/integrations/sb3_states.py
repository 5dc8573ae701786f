"""States that an agent of Stable-Baselines3 has visited, from its buffer or from a short rollout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from torch import Tensor

from pliant.agents.observations import as_tensors
from pliant.errors import IllegalConfiguration, NoEffect
from pliant.isolation import preserved_randomness

__all__ = ["States", "num_stored", "states_of"]


@dataclass(frozen=True)
class States:
    """Transitions of an agent, on its device.

    Attributes:
        observations: As its networks get them, ``[N, ...]`` or a mapping of such.
        actions: As its critics get them, ``[N, ...]``.
        returns: Discounted returns, ``[N, 1]``, of an agent with rollouts; else ``None``.
        advantages: Returns minus estimated values, ``[N, 1]``, of an agent with rollouts; else ``None``.
        rewards: ``[N, 1]``, of an agent with a replay buffer; else ``None``. So are the following.
        next_observations: The states after.
        discounts: What the value of the next state counts for, ``[N, 1]``; zero where an episode ended.
        source: Where they come from, in words.
    """

    observations: Any
    actions: Tensor
    source: str
    returns: Tensor | None = None
    advantages: Tensor | None = None
    rewards: Tensor | None = None
    next_observations: Any = None
    discounts: Tensor | None = None

    def cut(self, num: int) -> States:
        """The first states alone.

        Raises:
            NoEffect: If there would be none.
        """
        if num < 1:
            raise NoEffect(f"{self.source} are too few for one sequence.")

        def first(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {key: item[:num] for key, item in value.items()}
            return value[:num] if isinstance(value, Tensor) else value

        return replace(self, **{item.name: first(getattr(self, item.name)) for item in fields(self)})


def num_stored(agent: BaseAlgorithm) -> int:
    """Transitions in the agent's buffer."""
    buffer = _buffer(agent)
    return 0 if buffer is None else buffer.size() * buffer.n_envs


def _buffer(agent: BaseAlgorithm) -> BaseBuffer | None:
    return getattr(agent, "replay_buffer", None) or getattr(agent, "rollout_buffer", None)


def states_of(agent: BaseAlgorithm, num: int, *, env: Any = None, seed: int = 0) -> States:
    """States that the agent has visited, with what its losses need; nothing about the agent changes.

    Args:
        agent: The agent.
        num: How many; fewer where the buffer holds fewer.
        env: An environment for a rollout of its present policy, exploring as in training, with observations normalised
            as in training. ``None``: its buffer, which holds the last rollout, or a random choice out of all replayed
            experience.
        seed: Of that choice, and of the rollout.

    Raises:
        IllegalConfiguration: If ``num`` is no positive number.
        NoEffect: If the buffer is empty and no environment is given.
    """
    if num < 1:
        raise IllegalConfiguration(f"the number of states must be at least 1, not {num}.")
    if env is None and not num_stored(agent):
        raise NoEffect(
            f"this {type(agent).__name__} has no states of its own: its buffer is empty (a loaded agent's is, until it "
            "trains or load_replay_buffer is called). Pass env=..., an environment in which its policy is run."
        )
    with preserved_randomness(agent.policy):
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        if env is not None:
            return _rolled_out(agent, env, num, seed)
        return _replayed(agent, num) if hasattr(agent, "replay_buffer") else _last_rollout(agent, num)


def _replayed(agent: Any, num: int) -> States:
    found = agent.replay_buffer.sample(min(num, num_stored(agent)), env=agent._vec_normalize_env)
    discounts = agent.gamma if getattr(found, "discounts", None) is None else found.discounts
    return States(
        observations=found.observations,
        actions=found.actions,
        source=f"{len(found.actions)} states out of the replay buffer",
        rewards=found.rewards,
        next_observations=found.next_observations,
        discounts=(1 - found.dones) * discounts,
    )


def _last_rollout(agent: Any, num: int) -> States:
    """Out of the last rollout, evenly spaced; consecutive ones where the policy remembers."""
    buffer = agent.rollout_buffer
    total = num_stored(agent)
    wanted = min(num, total)
    chosen = np.arange(wanted) if hasattr(agent, "_last_lstm_states") else np.arange(wanted) * total // wanted

    def rows(array: np.ndarray) -> np.ndarray:
        if not buffer.generator_ready:  # [steps, environments, ...]: put together as it is for training
            array = buffer.swap_and_flatten(array[: buffer.size()])
        return array.reshape(total, *array.shape[1:])[chosen]

    def tensor(array: np.ndarray) -> Tensor:
        return torch.as_tensor(rows(array), device=agent.device)

    observations = buffer.observations
    if isinstance(observations, Mapping):
        observations = {key: tensor(value) for key, value in observations.items()}
    else:
        observations = tensor(observations)
    return States(
        observations=observations,
        actions=tensor(buffer.actions),
        source=f"{wanted} states of the last rollout",
        returns=tensor(buffer.returns).reshape(-1, 1),
        advantages=tensor(buffer.advantages).reshape(-1, 1),
    )


def _rolled_out(agent: Any, env: Any, num: int, seed: int) -> States:
    """A rollout of the present policy in an environment, which is reset before."""
    vector: VecEnv = env if isinstance(env, VecEnv) else type(agent)._wrap_env(env, 0)
    if vector.observation_space != agent.observation_space or vector.action_space != agent.action_space:
        raise IllegalConfiguration(
            f"the environment has the spaces {vector.observation_space} and {vector.action_space}, the agent "
            f"{agent.observation_space} and {agent.action_space}."
        )
    normal = agent._vec_normalize_env if unwrap_vec_normalize(vector) is None else None

    def seen_by_agent(observation: Any) -> Any:
        """As in training: an agent that learns on normalised observations gets them here, too."""
        return _copied(observation if normal is None else normal.normalize_obs(observation))

    vector.seed(seed)
    flags = [(module, module.training) for module in agent.policy.modules()]
    state: Any = None
    starts = np.ones(vector.num_envs, dtype=bool)
    rounds = -(-num // vector.num_envs)
    seen: list[Any] = [seen_by_agent(vector.reset())]
    actions, rewards, ends = [], [], []
    try:
        for _ in range(rounds):
            action, state = agent.predict(seen[-1], state=state, episode_start=starts, deterministic=False)
            observation, reward, starts, infos = vector.step(action)
            truncated = [bool(info.get("TimeLimit.truncated")) for info in infos]
            seen.append(seen_by_agent(observation))
            actions.append(action)
            rewards.append(np.asarray(reward, dtype=np.float32))
            ends.append(np.asarray(starts) & ~np.asarray(truncated))
    finally:
        for module, flag in flags:
            module.training = flag
    return _as_states(agent, seen, actions, rewards, ends, vector.num_envs)


def _copied(observation: Any) -> Any:
    if isinstance(observation, Mapping):
        return {key: np.array(value) for key, value in observation.items()}
    return np.array(observation)


def _as_states(
    agent: Any, seen: list[Any], actions: list[Any], rewards: list[Any], ends: list[Any], num_envs: int
) -> States:
    """Transitions of all environments, one environment after the other."""

    def tensor(arrays: list[Any]) -> Tensor:
        array = np.stack(arrays).swapaxes(0, 1)
        return torch.as_tensor(array.reshape(-1, *array.shape[2:]), device=agent.device)

    def of_space(space: Any, arrays: list[Any]) -> Any:
        parts = getattr(space, "spaces", None)
        if isinstance(parts, Mapping):
            return {key: of_space(part, [item[key] for item in arrays]) for key, part in parts.items()}
        found = tensor(arrays)
        return found.reshape(len(found), *(space.shape or (1,)))

    observations = of_space(agent.observation_space, seen[:-1])
    following = of_space(agent.observation_space, seen[1:])
    taken = tensor(actions)
    taken = taken.reshape(len(taken), *(agent.action_space.shape or (1,)))
    source = f"{len(taken)} states of a rollout in the given environment"
    reward_B1, end_B1 = tensor(rewards).reshape(-1, 1), tensor(ends).float().reshape(-1, 1)
    if hasattr(agent, "replay_buffer"):
        if hasattr(agent.action_space, "low"):
            scaled = agent.policy.scale_action(taken.cpu().numpy())
            taken = as_tensors(np.asarray(scaled, dtype=np.float32), agent.device)
        discounts = (1 - end_B1) * agent.gamma
        return States(observations, taken, source, rewards=reward_B1, next_observations=following, discounts=discounts)
    returns = _returns(reward_B1.reshape(num_envs, -1), end_B1.reshape(num_envs, -1), agent.gamma).reshape(-1, 1)
    return States(observations, taken, source, returns=returns, advantages=returns - returns.mean())


def _returns(reward_ET: Tensor, end_ET: Tensor, gamma: float) -> Tensor:
    """Discounted sums of the rewards that follow, up to the end of an episode or of the rollout."""
    total, sums = torch.zeros_like(reward_ET[:, 0]), torch.zeros_like(reward_ET)
    for t in range(reward_ET.shape[1] - 1, -1, -1):
        total = reward_ET[:, t] + gamma * total * (1 - end_ET[:, t])
        sums[:, t] = total
    return sums
