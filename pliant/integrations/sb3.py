"""Stable-Baselines3: a callback that protects an unmodified ``learn()``, and diagnosis and probe of agents."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from pliant.agents import AgentParts, Targets, follow, forget, guard_of, parts_of_agent
from pliant.attach import attach
from pliant.errors import IllegalConfiguration, NoEffect, PliantError
from pliant.handle import Handle
from pliant.integrations.sb3_diagnosis import AgentDiagnosis
from pliant.integrations.sb3_diagnosis import diagnose_agent as diagnose
from pliant.integrations.sb3_diagnosis import probe_agent as probe
from pliant.integrations.sb3_states import num_stored, states_of
from pliant.interventions.base import Intervention
from pliant.monitor import DEFAULT, Alarm, Monitor
from pliant.monitor import monitor as make_monitor
from pliant.units.init import InitSpec

__all__ = ["LOGGED", "AgentDiagnosis", "Protect", "diagnose", "forget", "probe"]

LOGGED: tuple[str, ...] = (*DEFAULT, "stable_rank")
"""What :class:`Protect` monitors unless other metrics are named."""

_TWIN_STATES = 512
_PROTECTED: weakref.WeakKeyDictionary[BaseAlgorithm, weakref.ref[Protect]] = weakref.WeakKeyDictionary()


class Protect(BaseCallback):
    """Protect and monitor an agent in its own, unmodified ``learn()``.

    When ``learn()`` begins, the methods are attached to the networks that the agent trains (:func:`pliant.attach`), and
    stay attached until :meth:`detach`: further calls of ``learn()`` go on, best with the same callback, which also
    logs. Methods act once per gradient step. Rollouts, ``predict`` and evaluation are no samples.

    Metrics of plasticity go into the agent's own logger as ``pliant/<network>_<metric>``, means over the layers of
    the actor, the critic and what they share, with ``pliant/num_resets`` and ``pliant/alarms``. Where the agent's
    own states are known, a freshly initialised twin is measured on them once, for the monitor's alarms.

    ``agent.save`` takes the state of the methods along; see ``docs/reinforcement_learning.md`` for how to go on.

    Args:
        methods: One intervention or an ordered list; none of them: the agent is only watched.
        seed: Seed of all fresh initial values.
        monitor: Metrics to be measured; ``True``: :data:`LOGGED`; ``False``: none.
        log_every: Gradient steps between two readings; by default 500, and more where the budget asks for it. What is
            logged is the newest reading.
        budget: The share of the time of the gradient steps that monitoring may take, see :func:`pliant.monitor`;
            ``None``: no limit, and all metrics are in every reading.
        on_alarm: Called with every :class:`~pliant.monitor.Alarm`; all are also written to the agent's logger.
        targets: What target networks do when units are reset. ``"polyak"``: they follow by their own updates, so that
            the targets of learning stay as smooth as without resets. ``"copy"``: what the reset units own is copied
            into them at once.
        init: How the networks were initialised, where the agent's own rule does not say it (a features extractor of
            one's own). See :func:`pliant.attach`.
        dry_run: Only report what would be edited.
        verbose: As in every callback.

    Raises:
        IllegalConfiguration: When ``learn()`` begins, if another agent or another ``Protect`` is in the way, the
            networks are compiled, or the replay buffer is smaller than a batch.
        NoEffect: When ``learn()`` begins, if it would end before the first gradient step, or there is no hidden layer.
        NotYetSupported: When ``learn()`` begins, for an algorithm or a method that cannot work there.

    Example:
        >>> import pliant
        >>> from stable_baselines3 import PPO
        >>> agent = PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32, device="cpu", seed=0)
        >>> protect = pliant.sb3.Protect(pliant.ContinualBackprop(1e-3, maturity_threshold=10))
        >>> _ = agent.learn(128, callback=protect)
        >>> protect.handle.num_steps  # 2 rollouts of 64 states: 2 batches in each of 10 epochs
        40
        >>> protect.detach()
    """

    def __init__(
        self,
        methods: Intervention | Sequence[Intervention] = (),
        *unexpected: Any,
        seed: int = 0,
        monitor: bool | str | Sequence[str] = True,
        log_every: int | None = None,
        budget: float | None = 0.01,
        on_alarm: Callable[[Alarm], object] | Sequence[Callable[[Alarm], object]] = (),
        targets: Targets = "polyak",
        init: InitSpec = None,
        dry_run: bool = False,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        self.methods: list[Any] = list(methods) if isinstance(methods, (list, tuple)) else [methods]
        if unexpected or not all(isinstance(method, Intervention) for method in self.methods):
            raise IllegalConfiguration(
                "Protect takes an intervention or a list of them: callback=pliant.sb3.Protect(method), which is an "
                "instance of Protect, with instances of methods such as pliant.ContinualBackprop()."
            )
        if targets not in get_args(Targets):
            raise IllegalConfiguration(f"Protect: targets is one of {get_args(Targets)}, not {targets!r}.")
        self.metrics = (LOGGED if monitor else ()) if isinstance(monitor, bool) else monitor
        self.seed, self.log_every, self.budget, self.targets = seed, log_every, budget, targets
        self.init, self.dry_run = init, dry_run
        self.on_alarm = [on_alarm] if callable(on_alarm) else list(on_alarm)
        self._handle: Handle | None = None
        self._monitor: Monitor | None = None
        self._agent: weakref.ref[BaseAlgorithm] | None = None
        self._parts: AgentParts | None = None
        self._wants_twin = False
        self._logged: tuple[int, dict[str, float]] = (-1, {})

    # ---- what the user reads and calls ----
    @property
    def handle(self) -> Handle:
        """The handle of the methods.

        Raises:
            NoEffect: Before the first ``learn()``.
        """
        if self._handle is None:
            raise NoEffect("nothing is attached yet: pass this callback to learn(callback=...) first.")
        return self._handle

    @property
    def monitor(self) -> Monitor | None:
        """The monitor; ``None`` before the first ``learn()``, and with ``monitor=False``."""
        return self._monitor

    def detach(self) -> None:
        """Remove every hook; the handle and the monitor can still be read."""
        for item in (self._handle, self._monitor):
            if item is not None:
                item.detach()
        agent = None if self._agent is None else self._agent()
        if agent is not None:
            _PROTECTED.pop(agent, None)

    # ---- events of Stable-Baselines3 ----
    def _init_callback(self) -> None:
        agent = self.model
        other = _PROTECTED.get(agent, lambda: None)()
        if other is not None and other is not self and other.handle.is_attached:
            raise IllegalConfiguration(
                "another Protect is attached to this agent: give all methods to one of them and pass that one to every "
                "learn(), or call detach() on the other first."
            )
        if self._handle is None or not self._handle.is_attached:
            self._begin(agent)
        elif self._agent is None or self._agent() is not agent:
            raise IllegalConfiguration(
                "this Protect is attached to another agent, whose state it holds: make one for each agent, or call "
                "detach() first."
            )
        elif self._parts is None or parts_of_agent(agent).optimizers != self._parts.optimizers:
            raise IllegalConfiguration(
                "the agent has other networks than when this Protect was attached: call detach(), and pass a new one."
            )

    def _begin(self, agent: BaseAlgorithm) -> None:
        parts = parts_of_agent(agent)
        handle = attach(agent, self.methods, seed=self.seed, init=self.init, dry_run=self.dry_run)
        try:
            if self.metrics:
                self._monitor = make_monitor(
                    parts.models,
                    parts.optimizers,
                    self.metrics,
                    units=handle.units,
                    every=self.log_every,
                    budget=self.budget,
                    reference=False,
                    init=parts.init if self.init is None else self.init,
                    on_alarm=[self._tell, *self.on_alarm],
                )
                resumed = bool(self.methods) and not self.dry_run and guard_of(agent).watch(handle, self._monitor)
                self._wants_twin = not resumed or bool(self._monitor.why_no_twin)
        except PliantError:
            handle.detach()
            raise
        if self.targets == "copy":
            handle.also_remove([_Ends(follow(handle, parts.models, parts.targets))])
        self._handle, self._parts, self._agent = handle, parts, weakref.ref(agent)
        self._logged = -1, {}
        _PROTECTED[agent] = weakref.ref(self)
        if self._monitor is not None and self._wants_twin:
            self._monitor.without_twin(
                "the agent has visited too few states so far; it is measured once there are enough."
            )

    def _on_training_start(self) -> None:
        agent: Any = self.model
        starts, total = getattr(agent, "learning_starts", None), self.locals.get("total_timesteps")
        if starts is not None and total is not None and total <= starts:
            raise NoEffect(
                f"learn() ends at {total} time steps, and learning_starts={starts}: there would be no gradient step, "
                "and nothing would be learnt or protected. Train longer, or start earlier."
            )
        if getattr(agent, "gradient_steps", None) == 0:
            raise NoEffect("gradient_steps=0: there would be no gradient step, and nothing would be protected.")

    def _on_step(self) -> bool:
        dones = self.locals.get("dones")
        if dones is not None and hasattr(self.model, "replay_buffer") and np.any(dones):
            self._log()  # these agents write their log at the end of an episode
        return True

    def _on_rollout_end(self) -> None:
        if not hasattr(self.model, "replay_buffer"):
            self._log()  # and these after a rollout
        if self._wants_twin:
            self._measure_twin()

    # ---- internals ----
    def _tell(self, alarm: Alarm) -> None:
        self.logger.warn(str(alarm))

    def _measure_twin(self) -> None:
        """Once there are enough of the agent's own states, measure a fresh twin on them."""
        if self._monitor is None or self._parts is None:
            return
        buffer: Any = getattr(self.model, "replay_buffer", None) or self.model.rollout_buffer  # type: ignore[attr-defined]
        wanted = min(_TWIN_STATES, buffer.buffer_size * buffer.n_envs // 2 * 2)
        if num_stored(self.model) < wanted:
            return
        self._wants_twin = False
        try:
            states = states_of(self.model, wanted, seed=self.seed)
            inputs = self._parts.inputs(states.observations, states.actions)
            init = self._parts.init if self.init is None else self.init
            self._monitor.compare_with_fresh(inputs, seed=self.seed, init=init)
        except PliantError as error:
            self._monitor.without_twin(str(error))

    def _log(self) -> None:
        if self._handle is None or self._parts is None:
            return
        record = self.logger.record
        record("pliant/num_resets", sum(int(total.sum()) for total in self._handle.num_resets.values()))
        if self._monitor is None:
            return
        record("pliant/alarms", len(self._monitor.alarms))
        count = len(self._monitor.history) and self._monitor.latest.step
        if self._logged[0] != count:
            self._logged = count, _means(self._monitor, self._parts)
        for key, value in self._logged[1].items():
            record(f"pliant/{key}", value)


class _Ends:
    """A subscription as a hook that a handle removes."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self.remove = stop


def _means(monitor: Monitor, parts: AgentParts) -> dict[str, float]:
    """The newest value of every metric, its mean over the places of a network."""
    found: dict[str, list[float]] = {}
    for metric, places in monitor.current.items():
        for place, value in places.items():
            if math.isfinite(value):
                key = metric if place == "model" else f"{network_of(place, parts)}_{metric}"
                found.setdefault(key, []).append(value)
    return {key: math.fsum(values) / len(values) for key, values in found.items()}


_OF_ACTOR = ("mlp_extractor.policy_net", "action_net", "lstm_actor", "pi_features_extractor", "log_std")
_OF_CRITIC = ("mlp_extractor.value_net", "value_net", "lstm_critic", "vf_features_extractor", "critic")


def network_of(name: str, parts: AgentParts) -> str:
    """Which network a layer belongs to: ``"actor"``, ``"critic"``, or ``"shared"`` by both."""
    if parts.family == "actor_critic":
        return name.partition(".")[0]
    if parts.family in ("q_net", "quantile_net"):
        return "critic"
    if name.startswith(_OF_ACTOR):
        return "actor"
    if name.startswith(_OF_CRITIC):
        return "critic"
    shares = getattr(parts.models, "share_features_extractor", True)
    return "shared" if shares else "actor"
