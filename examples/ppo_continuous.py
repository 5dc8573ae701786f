"""PPO for continuous actions in one file, protected by two lines: look for ``pliant``.

    python examples/ppo_continuous.py                                   # a pendulum
    python examples/ppo_continuous.py --env Ant-v5 --steps 1000000
    python examples/ppo_continuous.py --method none                     # the same without protection
    python examples/ppo_continuous.py --checkpoint agent.pt             # saves there, and goes on from there

One environment, no library for learning but PyTorch. Needs ``pip install 'pliant[rl]'``. The algorithm is that of
Schulman et al. (2017), arXiv:1707.06347, with generalised advantages, normalised observations and clipped gradients.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import deque
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Normal

import pliant

METHODS: dict[str, list[pliant.interventions.Intervention]] = {
    "none": [],
    "continual_backprop": [pliant.ContinualBackprop(replacement_rate=1e-4, maturity_threshold=1000)],
    "continual_backprop_l2": [pliant.L2(1e-4), pliant.ContinualBackprop(1e-4, maturity_threshold=1000)],
    "redo": [pliant.ReDo(tau=0.025, every=1000)],
    "l2_init": [pliant.L2Init(1e-3)],
}


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Pendulum-v1", help="an environment of Gymnasium with continuous actions")
    parser.add_argument("--method", default="continual_backprop", choices=METHODS)
    parser.add_argument("--steps", type=int, default=100_000, help="time steps in the environment")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rollout", type=int, default=2048, help="time steps between two updates")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--gamma", type=float, default=0.99)
    parser.add_argument("--lam", type=float, default=0.95, help="of the generalised advantage")
    parser.add_argument("--clip", type=float, default=0.2)
    parser.add_argument("--checkpoint", type=Path, help="where to save; training goes on from what is there")
    return parser.parse_args(arguments)


class Agent(nn.Module):
    """A Gaussian actor and a critic that share nothing."""

    def __init__(self, observations: int, actions: int, width: int) -> None:
        super().__init__()
        self.actor = self._network(observations, width, actions, scale=0.01)
        self.critic = self._network(observations, width, 1, scale=1.0)
        self.log_std = nn.Parameter(torch.zeros(actions))

    @staticmethod
    def _network(inputs: int, width: int, outputs: int, scale: float) -> nn.Sequential:
        layers = [nn.Linear(inputs, width), nn.Linear(width, width), nn.Linear(width, outputs)]
        with torch.no_grad():
            layers[-1].weight.mul_(scale)
            layers[-1].bias.zero_()
        return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])

    def policy(self, obs_BD: Tensor) -> Normal:
        """The distribution of actions, ``[B, A]``."""
        return Normal(self.actor(obs_BD), self.log_std.exp())


class Running:
    """Mean and variance of everything seen so far, to normalise observations with."""

    def __init__(self, size: int) -> None:
        self.count, self.mean, self.square = 0, np.zeros(size), np.zeros(size)

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """Take a value in, and return it normalised."""
        self.count += 1
        step = value - self.mean
        self.mean = self.mean + step / self.count
        self.square = self.square + step * (value - self.mean)
        deviation = np.sqrt(self.square / self.count + 1e-8)
        return np.clip((value - self.mean) / deviation, -10, 10).astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        """To be saved."""
        return {"count": self.count, "mean": self.mean.tolist(), "square": self.square.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From what was saved."""
        self.count, self.mean, self.square = state["count"], np.array(state["mean"]), np.array(state["square"])


class World:
    """The environment with normalised observations, reset when an episode ends."""

    def __init__(self, name: str, seed: int) -> None:
        self.env = gymnasium.make(name)
        if not isinstance(self.env.action_space, gymnasium.spaces.Box):
            raise SystemExit(f"{name} has the actions {self.env.action_space}; this file is for continuous ones.")
        assert self.env.observation_space.shape is not None
        self.low, self.high = self.env.action_space.low, self.env.action_space.high
        self.sizes = math.prod(self.env.observation_space.shape), math.prod(self.env.action_space.shape)
        self.normal = Running(self.sizes[0])
        self.returns: deque[float] = deque(maxlen=20)
        self.total = 0.0
        self.seen = self._flat(self.env.reset(seed=seed)[0])

    def _flat(self, observation: Any) -> np.ndarray:
        return self.normal(np.asarray(observation, dtype=np.float64).ravel())

    def step(self, action: np.ndarray) -> tuple[float, bool, np.ndarray | None]:
        """Act; the reward, whether the episode was over, and what was last seen of one that only ran out of time."""
        clipped = np.clip(action, self.low.ravel(), self.high.ravel()).reshape(self.low.shape)
        observation, reward, terminated, truncated, _ = self.env.step(clipped)
        self.seen, self.total, last = self._flat(observation), self.total + float(reward), None
        if terminated or truncated:
            last = self.seen if truncated and not terminated else None
            self.returns.append(self.total)
            self.seen, self.total = self._flat(self.env.reset()[0]), 0.0
        return float(reward), terminated or truncated, last


@torch.no_grad()
def rollout(agent: Agent, world: World, given: argparse.Namespace) -> tuple[Tensor, ...]:
    """Observations, actions, their log-probabilities, advantages and returns of one rollout."""
    obs_TD, act_TA = torch.zeros(given.rollout, world.sizes[0]), torch.zeros(given.rollout, world.sizes[1])
    log_prob_T, value_T, reward_T, over_T = (torch.zeros(given.rollout) for _ in range(4))
    for t in range(given.rollout):
        obs_TD[t] = torch.from_numpy(world.seen)
        policy = agent.policy(obs_TD[t])
        act_TA[t] = policy.sample()
        log_prob_T[t] = policy.log_prob(act_TA[t]).sum()
        value_T[t] = agent.critic(obs_TD[t])[0]
        reward, over, last = world.step(act_TA[t].numpy())
        if last is not None:  # time was up, and not the episode: what would have come counts
            reward += given.gamma * float(agent.critic(torch.from_numpy(last))[0])
        reward_T[t], over_T[t] = reward, float(over)
    advantage_T = torch.zeros(given.rollout)
    following, advantage = agent.critic(torch.from_numpy(world.seen))[0], torch.zeros(())
    for t in reversed(range(given.rollout)):
        goes_on = 1 - over_T[t]
        error = reward_T[t] + given.gamma * goes_on * following - value_T[t]
        advantage = error + given.gamma * given.lam * goes_on * advantage
        advantage_T[t], following = advantage, value_T[t]
    return obs_TD, act_TA, log_prob_T, advantage_T, advantage_T + value_T


def update(agent: Agent, optimizer: torch.optim.Optimizer, data: tuple[Tensor, ...], given: argparse.Namespace) -> None:
    """Several passes over a rollout."""
    for _ in range(given.epochs):
        for chosen in torch.randperm(given.rollout).split(given.batch):
            obs, act, old_log_prob, advantage, target = (item[chosen] for item in data)
            policy = agent.policy(obs)
            ratio = (policy.log_prob(act).sum(1) - old_log_prob).exp()
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            clipped = ratio.clamp(1 - given.clip, 1 + given.clip)
            loss = -torch.minimum(ratio * advantage, clipped * advantage).mean()
            loss = loss + 0.5 * (agent.critic(obs)[:, 0] - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()


def main(arguments: list[str] | None = None) -> list[float]:
    """Train; returns the mean return of the latest episodes after every rollout."""
    given = options(arguments)
    torch.manual_seed(given.seed)
    world = World(given.env, given.seed)
    agent = Agent(*world.sizes, given.width)
    optimizer = torch.optim.Adam(agent.parameters(), lr=given.lr, eps=1e-5)

    # The two lines: the networks, their optimizer, the methods. The loop below does not know of them.
    inputs, networks = torch.zeros(2, world.sizes[0]), {"actor": agent.actor, "critic": agent.critic}
    handle = pliant.attach(
        networks, optimizer, METHODS[given.method], example_inputs=dict.fromkeys(networks, (inputs,)), seed=given.seed
    )

    done, history = 0, []
    if given.checkpoint is not None and given.checkpoint.exists():
        saved = torch.load(given.checkpoint, weights_only=True)
        done = saved["done"]
        for name, item in (("agent", agent), ("optimizer", optimizer), ("normal", world.normal), ("pliant", handle)):
            item.load_state_dict(saved[name])
    began, start = time.perf_counter(), done
    while done < given.steps:
        update(agent, optimizer, rollout(agent, world, given), given)
        done += given.rollout
        history.append(float(np.mean(world.returns)) if world.returns else math.nan)
        speed = (done - start) / (time.perf_counter() - began)
        print(
            f"step {done:>9,}  return {history[-1]:9.1f}  units reset {handle.record()['num_resets']:5.0f}  "
            f"{speed:6.0f} steps/s",
            flush=True,
        )
        if given.checkpoint is not None:
            items = {"agent": agent, "optimizer": optimizer, "normal": world.normal, "pliant": handle}
            torch.save({"done": done} | {name: item.state_dict() for name, item in items.items()}, given.checkpoint)
    handle.detach()
    return history


if __name__ == "__main__":
    main()
