"""One agent over the phases of its environment: PPO of Stable-Baselines3, in its own ``learn()``, under the runner."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import stable_baselines3
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from torch import Tensor

from pliant import metrics, stats
from pliant.bench import measure
from pliant.bench.cohorts import find_units_of
from pliant.bench.experiment import Experiment
from pliant.bench.rl.policy import Policy
from pliant.bench.rl.worlds import World, entropy_of_counts
from pliant.bench.streams.agents import AgentStream
from pliant.bench.streams.base import generator
from pliant.bench.trainer import Failure, Trainer
from pliant.errors import IllegalConfiguration, UnsupportedError

__all__ = ["Agent"]

_NETS = {"policy": "*policy_net*", "value": "*value_net*"}


@final
class Agent(Trainer):
    """An agent that learns through every phase of its environment, with everything that it needs.

    The networks, the optimizer, the schedule of step sizes and the interventions are those of the experiment; PPO's
    own options are the stream's. ``learn()`` is called once for each task, and interventions act in it by themselves.

    Series, one value for each task:

    ``online_return``
        mean return of the episodes that ended in the task, or the mean reward of its steps where the stream says so.
    ``end_return``
        the same over its last rollout (over the last episode that ended, where none ended in it).
    ``policy_entropy``
        mean entropy of the policy after the task, in nats, in the states of the last rollout.
    ``state_coverage``
        how evenly the agent visited the cells of a fixed grid, see :func:`~pliant.bench.rl.worlds.entropy_of_counts`.
    ``dormant_fraction``, ``dead_fraction``, ``effective_rank_fraction``, ``stable_rank``
        of the units of both networks in the agent's own states: those of the last rollout.
    ``policy_dormant_fraction``, ``value_dormant_fraction``
        of one network.
    ``weight_magnitude``
        mean |w| over the weight matrices of both.
    ``approx_kl``, ``value_loss``, ``explained_variance``
        of the last update, as Stable-Baselines3 logs them.
    ``num_resets``
        units reset in the task.

    Args:
        experiment: what is run.
        seeds: exactly one.
        folder: see :class:`~pliant.bench.trainer.Trainer`, as the others.
        stacked: agents cannot be stacked.
        checkpoint_every: seconds between checkpoints.
        should_stop: polled at task boundaries.

    Raises:
        IllegalConfiguration: several seeds or experiments, a model that is no actor and critic, or a method that needs
            a call in the training loop, which is Stable-Baselines3's.
        RecordError: a checkpoint of something else.
    """

    version: ClassVar[str] = "agent 1"

    def __init__(
        self,
        experiment: Experiment | Sequence[Experiment],
        seeds: Sequence[int],
        folder: Path | None,
        *,
        stacked: bool,
        checkpoint_every: float = 30.0,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        chosen = [experiment] if isinstance(experiment, Experiment) else list(experiment)
        if stacked or len(chosen) != 1 or len(seeds) != 1:
            raise IllegalConfiguration("agents are trained one at a time: give one experiment and one seed")
        super().__init__(chosen, seeds, folder, checkpoint_every, should_stop)
        stream = self.experiment.build_stream()
        if not isinstance(stream, AgentStream):
            raise IllegalConfiguration(f"{self.experiment.stream.name} is no stream of an agent")
        self.options = stream
        self.seed = seeds[0]
        self.schedule = self.experiment.build_schedule()
        self.world: World = stream.make_world(self.seed, self.experiment.num_tasks)
        self._begin_task(0)
        with self._randomness("construction", 0):
            self.learner = self._make_learner()
            self._attach()
        self._restore()

    # -- construction ------------------------------------------------------------------------------------------

    def _make_learner(self) -> PPO:
        stream = self.options
        network = self.experiment.build_model(self.seed)
        base = float(self.experiment.build_optimizer(network).param_groups[0].get("lr", 0.0))
        learner = PPO(
            Policy,
            self.world.vector,
            learning_rate=lambda _: base * self._step_size_factor(),
            n_steps=stream.rollout_length,
            batch_size=stream.batch_size,
            n_epochs=stream.num_epochs,
            gamma=stream.gamma,
            gae_lambda=stream.gae_lambda,
            clip_range=stream.clip_range,
            ent_coef=stream.entropy_weight,
            vf_coef=stream.value_weight,
            max_grad_norm=stream.max_grad_norm,
            policy_kwargs={
                "network": network,
                "make_optimizer": lambda policy: self.experiment.build_optimizer(policy, self.seed),
            },
            device="cpu",
        )
        learner.set_logger(Logger(None, []))  # its own would make a folder for every task
        return learner

    def _attach(self) -> None:
        policy, methods = self.learner.policy, self.experiment.build_methods()
        example = torch.zeros(5, self.options.num_inputs)
        self.handle: Any = None
        if methods:
            from pliant.attach import attach

            self.handle = attach(
                policy,
                policy.optimizer,
                methods,
                example_inputs=(example,),
                seed=self.seed,
                init=_known(getattr(policy.network, "init", None), policy),
            )
            self._check_needs()
        self.units = self.handle.units if self.handle is not None else find_units_of(policy, example, required=False)
        self._num_resets = 0

    def _check_needs(self) -> None:
        from pliant.bench.cohorts import adds_to_loss, changes_batches

        for method in self.handle.methods:
            for needs, call in ((adds_to_loss, "handle.penalty()"), (changes_batches, "handle.batch()")):
                if needs(method):
                    raise IllegalConfiguration(
                        f"{type(method).__name__}: needs {call} in the training loop, and the loop of an agent is "
                        "Stable-Baselines3's; where the method has an option apply, 'decoupled' and 'gradient' need "
                        "no call"
                    )

    # -- running -----------------------------------------------------------------------------------------------

    def _begin_task(self, index: int) -> None:
        self._task = index
        self._updates = 0

    def _step_size_factor(self) -> float:
        """Of the schedule; Stable-Baselines3 sets the step size once for each rollout."""
        if self.schedule is None:
            return 1.0
        num_steps = self.stream.task(self._task, self.seed).num_steps
        done = min(self._updates, num_steps - 1)
        return self.schedule.factor(self._task, done, num_steps, self.experiment.num_tasks)

    @contextmanager
    def _randomness(self, purpose: str, index: int) -> Iterator[None]:
        """What is drawn depends on the purpose, the seed and the task alone; the states are put back afterwards.

        Actions are drawn by PyTorch, and the order of transitions by NumPy's global state.
        """
        of_numpy, of_python = np.random.get_state(), random.getstate()
        draws = generator(f"agent {purpose}", self.seed, index)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(draws.integers(2**63)))
                np.random.seed(int(draws.integers(2**32)))
                random.seed(int(draws.integers(2**63)))
                yield
        finally:
            np.random.set_state(of_numpy)
            random.setstate(of_python)

    def _run_task(self, index: int) -> None:
        phase: Any = self.stream.task(index, self.seed)
        self._begin_task(index)
        watch = _Watch(self, phase)
        with self._randomness("training", index):
            if index > 0 and index % self.options.num_parts == 0 and self.handle is not None:
                self.handle.task_boundary()
            try:
                # Phases follow the environment's own clock, so a rollout that went beyond the last one is not repeated.
                left = max(1, self._end_of(index, phase) - self.learner.num_timesteps)
                self.learner.learn(left, callback=watch, log_interval=None, reset_num_timesteps=False)  # type: ignore[arg-type]
            except (UnsupportedError, ValueError):  # distributions refuse what is not finite, and so do methods
                if self._is_finite():
                    raise
            if not self._is_finite():
                where = f"task {index} (the first is 0)"
                message = f"diverged: weights or outputs are not finite in {where}; try a smaller step size"
                self.failures.setdefault(0, Failure(index, message))
                return
            self._add_row({name: torch.tensor([value]) for name, value in self._measure(watch).items()})

    def _end_of(self, index: int, phase: Any) -> int:
        if phase.num_env_steps == self.options.task_steps:
            return int((index + 1) * phase.num_env_steps)
        return int(self.learner.num_timesteps + phase.num_env_steps)  # a task that was cut short

    def _is_finite(self) -> bool:
        """Whether weights are, and what the networks make of the present observations."""
        policy: Any = self.learner.policy
        seen: Any = self.learner._last_obs
        with torch.no_grad():
            outputs = [] if seen is None else policy.network(torch.as_tensor(seen, dtype=torch.float32))
        return all(bool(tensor.isfinite().all()) for tensor in (*policy.parameters(), *outputs))

    # -- measuring ---------------------------------------------------------------------------------------------

    def _measure(self, watch: _Watch) -> dict[str, float]:
        policy, buffer = self.learner.policy, self.learner.rollout_buffer
        seen = torch.as_tensor(buffer.observations).reshape(-1, *buffer.obs_shape)
        states = seen[torch.linspace(0, len(seen) - 1, min(len(seen), measure.NUM_PROBE)).long()]
        with torch.no_grad():
            entropy = policy.get_distribution(states).entropy()
        logged = self.learner.logger.name_to_value
        online, end = watch.returns()
        row = {
            "online_return": online,
            "end_return": end,
            "policy_entropy": float("nan") if entropy is None else float(entropy.mean()),
            "state_coverage": entropy_of_counts(np.concatenate(watch.places), self.world.num_cells),
        }
        row |= self._unit_health(states)
        weights = [parameter.detach() for parameter in policy.parameters() if parameter.ndim >= 2]
        row["weight_magnitude"] = float(metrics.weight_magnitude(weights))
        for name in ("approx_kl", "value_loss", "explained_variance"):
            row[name] = float(logged.get(f"train/{name}", float("nan")))
        resets = 0 if self.handle is None else int(sum(int(count) for count in self.handle.num_resets.values()))
        row["num_resets"] = float(resets - self._num_resets)
        self._num_resets = resets
        return row

    def _unit_health(self, states: Tensor) -> dict[str, float]:
        names = [f"{net}_dormant_fraction" for net in _NETS]
        if self.units is None:
            return dict.fromkeys((*measure.UNIT_SERIES, *names), float("nan"))
        found = stats.capture(self.learner.policy, self.units, (states,))
        activations = {name: act_NU.unsqueeze(0) for name, act_NU in found.items()}
        row = {name: float(value) for name, value in measure.unit_health(activations, 1).items()}
        for name, net in zip(names, ("policy_net", "value_net"), strict=True):
            part = {group: act for group, act in activations.items() if net in group}
            row[name] = float(measure.unit_health(part, 1)["dormant_fraction"])
        return row

    # -- state -------------------------------------------------------------------------------------------------

    def _identity(self) -> dict[str, str]:
        return {**super()._identity(), "stable_baselines3": stable_baselines3.__version__}

    def _state(self) -> dict[str, Any]:
        learner = self.learner
        return {
            "policy": learner.policy.state_dict(),
            "optimizer": learner.policy.optimizer.state_dict(),
            "handle": None if self.handle is None else self.handle.state_dict(),
            "world": self.world.state(),
            "observations": None if learner._last_obs is None else torch.as_tensor(learner._last_obs),
            "starts": None if learner._last_episode_starts is None else torch.as_tensor(learner._last_episode_starts),
            "num_timesteps": learner.num_timesteps,
            "num_updates": learner._n_updates,
        }

    def _load_state(self, state: dict[str, Any]) -> None:
        learner = self.learner
        learner.policy.load_state_dict(state["policy"])
        learner.policy.optimizer.load_state_dict(state["optimizer"])
        if self.handle is not None:
            self.handle.load_state_dict(state["handle"])
            self._num_resets = int(sum(int(count) for count in self.handle.num_resets.values()))
        if state["observations"] is not None:
            # The environment begins as ever, so that all its layers are in use, and then goes on where it was.
            self.world.vector.reset()
            self.world.load_state(state["world"])
            learner._last_obs = state["observations"].numpy()
            learner._last_episode_starts = state["starts"].numpy()
        learner.num_timesteps = int(state["num_timesteps"])
        learner._n_updates = int(state["num_updates"])

    def close(self) -> None:
        """Detach from the policy and close the environment."""
        if self.handle is not None:
            self.handle.detach()
            self.handle = None
        self.world.vector.close()


def _known(init: Any, policy: torch.nn.Module) -> Any:
    """Of a mapping of initialisations, what this policy has parameters for: only continuous ones have deviations."""
    if isinstance(init, dict) and not hasattr(policy, "log_std"):
        return {pattern: choice for pattern, choice in init.items() if "log_std" not in pattern}
    return init


class _Watch(BaseCallback):
    """Listens to the steps of one task: rewards, episodes that end, and where the agent is."""

    def __init__(self, agent: Agent, phase: Any) -> None:
        super().__init__()
        self.agent, self.phase = agent, phase
        self.rewards: list[float] = []
        self.episodes: list[tuple[int, float]] = []
        self.places: list[Any] = []
        self.rollouts = 0

    def _on_rollout_start(self) -> None:
        self.agent._updates = self.rollouts * self.phase.steps_per_rollout
        self.rollouts += 1
        self.rollout_began = len(self.rewards)

    def _on_step(self) -> bool:
        world = self.agent.world
        self.rewards.append(float(self.locals["rewards"].mean()))
        self.places.append(world.places(self.locals["new_obs"]))
        if not world.per_step:
            now = len(self.rewards)
            self.episodes += [(now, float(i["episode"]["r"])) for i in self.locals["infos"] if "episode" in i]
        return True

    def returns(self) -> tuple[float, float]:
        """Over the task, and over its last rollout."""
        if self.agent.world.per_step:
            return float(np.mean(self.rewards)), float(np.mean(self.rewards[self.rollout_began :]))
        if not self.episodes:
            return float("nan"), float("nan")
        last = [value for when, value in self.episodes if when > self.rollout_began]
        return float(np.mean([value for _, value in self.episodes])), float(np.mean(last or [self.episodes[-1][1]]))
