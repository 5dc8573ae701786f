"""The live twin: while a long job runs, would retraining beat it today?"""

from __future__ import annotations

import copy
import functools
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.errors import IllegalConfiguration
from pliant.fresh import copy_of, fresh_twin
from pliant.intervals import Estimate, estimate
from pliant.isolation import preserved_randomness, seed_everything
from pliant.probe.learning import one_step
from pliant.probe.loading import moved
from pliant.probe.objective import Loss, Objective
from pliant.probe.optimizers import MakeOptimizer, Moments, maker
from pliant.probe.result import final_value, interval_text
from pliant.saving import OnMismatch, check_choice, shape_text
from pliant.units.init import InitSpec
from pliant.write import stream_of

__all__ = ["LiveTwin", "Race", "live_twin"]

Answer = Literal["fresh ahead", "live ahead", "no difference shown", "not enough races yet"]

_VERSION = 1
_APART = 1_000_003


@dataclass(frozen=True)
class Race:
    """A race that is over.

    Attributes:
        step: Steps of the live run at its start.
        live: Final loss of the copy of the live network; NaN where it diverged.
        fresh: Final loss of the fresh twin; NaN where it diverged.
        mean_gap: Mean over the window of the loss, live minus fresh.
        seconds: What it cost.
    """

    step: int
    live: float
    fresh: float
    mean_gap: float
    seconds: float

    @property
    def gap(self) -> float:
        """Final loss, live minus fresh: positive where the fresh network is ahead."""
        return self.live - self.fresh


@dataclass
class _Running:
    """A race under way: the copy of the live network first, the fresh twin second."""

    step: int
    networks: list[nn.Module]
    optimizers: list[list[Optimizer]]
    losses: list[list[float]] = field(default_factory=lambda: [[], []])
    seconds: float = 0.0


class LiveTwin:
    """Made by :func:`live_twin`.

    Attributes:
        num_steps: Calls of :meth:`step` so far.
        num_races: Races begun so far.
        num_abandoned: Of them, those that a task boundary cut short.

    Example:
        >>> import torch, pliant
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> twin = pliant.live_twin(model, optimizer, loss=torch.nn.functional.mse_loss, every=2, window=1)
        >>> for _ in range(4):
        ...     twin.step((torch.randn(8, 4), torch.randn(8, 2)))
        >>> twin.num_steps, twin.num_races > 0
        (4, True)
    """

    def __init__(
        self,
        model: nn.Module,
        make: Callable[[nn.Module, Literal["aged", "fresh"]], list[Optimizer]],
        objective: Objective,
        *,
        share: float,
        every: int | None,
        window: int,
        start: Literal["any", "boundary"],
        recent: int,
        min_races: int,
        seed: int,
        history: int,
        init: InitSpec,
        make_model: Callable[[], nn.Module] | None,
    ) -> None:
        self._model, self._make, self._objective = model, make, objective
        self._fresh = functools.partial(fresh_twin, model, init=init, make_model=make_model)
        self.share, self.every, self.window, self.start = share, every, window, start
        self.recent, self.min_races, self.seed = recent, min_races, seed
        self.num_steps = self.num_races = self.num_abandoned = 0
        self._races: deque[Race] = deque(maxlen=history)
        self._race: _Running | None = None
        self._last_start: int | None = None
        self._spent = self._elapsed = 0.0
        self._left: float | None = None

    # ---- called in the loop ----
    def step(self, batch: Any) -> None:
        """Call it once per step, after the optimizer's, with the batch of that step.

        Args:
            batch: As :class:`~pliant.probe.objective.Objective` takes it; it is not kept.

        Raises:
            IllegalConfiguration: If batch and loss do not fit, while a race is on.
        """
        begin = time.perf_counter()
        if self._left is not None:
            self._elapsed += begin - self._left
        self.num_steps += 1
        try:
            if self._race is not None:
                self._advance(self._race, batch)
            if self._race is None and self.start == "any" and self._is_due():
                self._begin()
        finally:
            self._left = time.perf_counter()
            self._spent += self._left - begin

    def task_boundary(self) -> None:
        """Another task begins: a race that is on would mix two tasks, so it is abandoned, and another may start."""
        begin = time.perf_counter()
        if self._left is not None:
            self._elapsed += begin - self._left
        if self._race is not None:
            self._race = None
            self.num_abandoned += 1
        if self._is_due():
            self._begin()
        self._left = time.perf_counter()
        self._spent += self._left - begin

    # ---- what it says ----
    @property
    def races(self) -> tuple[Race, ...]:
        """The latest races that are over, oldest first, in bounded memory."""
        return tuple(self._races)

    @property
    def gap(self) -> Estimate:
        """Final loss, live minus fresh, over the recent races; positive: retraining would be ahead after the window."""
        return estimate(race.gap for race in self._recent())

    @property
    def outcome(self) -> Answer:
        """The answer in a word."""
        gap = self.gap
        if gap.num < max(2, self.min_races):
            return "not enough races yet"
        if not gap.excludes_zero:
            return "no difference shown"
        return "fresh ahead" if gap.mean > 0 else "live ahead"

    @property
    def answer(self) -> str:
        """Whether retraining would beat the live network, as far as the recent races allow to say."""
        gap, outcome = self.gap, self.outcome
        lost = sum(math.isnan(race.live) for race in self._recent())
        note = f" The copy of the live network diverged in {lost} of these races." if lost else ""
        if outcome == "not enough races yet":
            return f"Not enough races yet: {gap.num} of {max(2, self.min_races)}.{note}"
        over = f"(95 % interval over {gap.num} races, the latest one begun at step {self._races[-1].step})"
        if outcome == "no difference shown":
            return (
                f"No difference shown after {self.window} steps: loss of the live network minus that of a fresh one "
                f"{interval_text(gap)} {over}.{note}"
            )
        who = "A fresh network" if gap.mean > 0 else "The live network"
        low, high = sorted((abs(gap.low), abs(gap.high)))
        size = interval_text(Estimate(abs(gap.mean), low, high, gap.num))
        return f"{who} is ahead after {self.window} steps, its loss is lower by {size} {over}.{note}"

    @property
    def cost_share(self) -> float:
        """Seconds spent here over seconds spent between the calls, so far; NaN before the second call."""
        return self._spent / self._elapsed if self._elapsed > 0 else math.nan

    def __str__(self) -> str:
        """The answer, and what it cost."""
        cost = "unknown" if math.isnan(self.cost_share) else f"{100 * self.cost_share:.2g} % of the run"
        return f"{self.answer} {self.num_races} races begun in {self.num_steps} steps, cost: {cost}."

    # ---- checkpoints ----
    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on as if it had not stopped, a race under way included."""
        race = self._race
        running = None
        if race is not None:
            running = {
                "step": race.step,
                "losses": [list(losses) for losses in race.losses],
                "seconds": race.seconds,
                "networks": [copy.deepcopy(net.state_dict()) for net in race.networks],
                "optimizers": [[copy.deepcopy(item.state_dict()) for item in items] for items in race.optimizers],
            }
        return {
            "version": _VERSION,
            "window": self.window,
            "seed": self.seed,
            "num_steps": self.num_steps,
            "num_races": self.num_races,
            "num_abandoned": self.num_abandoned,
            "last_start": self._last_start,
            "spent": self._spent,
            "elapsed": self._elapsed,
            "races": [asdict(race) for race in self._races],
            "race": running,
        }

    def load_state_dict(self, state: Mapping[str, Any], on_mismatch: OnMismatch = "error") -> None:
        """Restore :meth:`state_dict`, after the model and its optimizer have been restored.

        Args:
            state: What was saved.
            on_mismatch: If a race was on, and the model has other tensors now than its networks: ``"error"``, or
                ``"reinit_group"``, which abandons that race and keeps those that are over.

        Raises:
            IllegalConfiguration: If the state is of another version, window or seed, or of another model; nothing has
                been changed then.
        """
        check_choice(on_mismatch)
        for key, mine in (("version", _VERSION), ("window", self.window), ("seed", self.seed)):
            if state.get(key) != mine:
                raise IllegalConfiguration(
                    f"this state of a live twin has {key}={state.get(key)!r}, not {mine!r}: make it as it was."
                )
        running = state["race"]
        differs = None if running is None else _difference(running["networks"][0], self._model.state_dict())
        if differs is not None and on_mismatch == "error":
            raise IllegalConfiguration(
                f"a race was on when this state of a live twin was saved, and its networks are not like the model: "
                f'{differs}. Load it with on_mismatch="reinit_group", which abandons that race.'
            )
        self.num_steps, self.num_races = state["num_steps"], state["num_races"]
        self.num_abandoned, self._last_start = state["num_abandoned"], state["last_start"]
        self._spent, self._elapsed, self._left = state["spent"], state["elapsed"], None
        self._races.clear()
        self._races.extend(Race(**race) for race in state["races"])
        self._race = None
        if differs is not None:
            self.num_abandoned += 1
        elif running is not None:
            with preserved_randomness(self._model):
                race = self._networks(running["step"], [copy_of(self._model), copy_of(self._model)])
                for net, saved in zip(race.networks, running["networks"], strict=True):
                    net.load_state_dict(saved)
                for items, states in zip(race.optimizers, running["optimizers"], strict=True):
                    for item, saved in zip(items, states, strict=True):
                        item.load_state_dict(saved)
            race.losses = [list(losses) for losses in running["losses"]]
            race.seconds = running["seconds"]
            self._race = race

    # ---- internals ----
    def _recent(self) -> list[Race]:
        return list(self._races)[-self.recent :]

    def _is_due(self) -> bool:
        if self.every is not None:
            if self._last_start is None and self.start == "boundary":
                return True
            return self.num_steps - (self._last_start or 0) >= self.every
        if not self.num_steps or not self._elapsed:
            return False
        recent = self._recent()
        if recent:
            expected = sum(race.seconds for race in recent) / len(recent)
        else:
            expected = _FIRST * self.window * self._elapsed / self.num_steps
        return self._spent + expected <= self.share * self._elapsed

    def _begin(self) -> None:
        begin = time.perf_counter()
        with preserved_randomness(self._model), torch.inference_mode(False), torch.enable_grad():
            twin = self._fresh(seed=self.seed * _APART + self.num_races)
            self._race = self._networks(self.num_steps, [copy_of(self._model), twin])
        self._last_start = self.num_steps
        self.num_races += 1
        self._race.seconds = time.perf_counter() - begin

    def _networks(self, step: int, networks: list[nn.Module]) -> _Running:
        for net in networks:
            if not net.training:
                net.train()
        return _Running(step, networks, [self._make(networks[0], "aged"), self._make(networks[1], "fresh")])

    def _advance(self, race: _Running, batch: Any) -> None:
        device = next(self._model.parameters()).device
        if device.type != "cpu":  # what the live run has queued is not a cost of the race
            torch.accelerator.synchronize(device)
        begin = time.perf_counter()
        with preserved_randomness(self._model), torch.inference_mode(False), torch.enable_grad():
            (batch,) = moved([batch], device)
            masks = stream_of(self.seed * _APART + self.num_races) ^ self.num_steps  # for both the same
            for net, optimizers, losses in zip(race.networks, race.optimizers, race.losses, strict=True):
                seed_everything(net, masks)
                losses.append(float(one_step(net, optimizers, self._objective, batch).loss))
        race.seconds += time.perf_counter() - begin
        finite = all(math.isfinite(losses[-1]) for losses in race.losses)
        if finite and len(race.losses[0]) < self.window:
            return
        live, fresh = (final_value(losses) for losses in race.losses)
        mean_gap = sum(race.losses[0]) / len(race.losses[0]) - sum(race.losses[1]) / len(race.losses[1])
        self._races.append(Race(race.step, live, fresh, mean_gap, race.seconds))
        self._race = None


def _difference(saved: Mapping[str, Any], mine: Mapping[str, Any]) -> str | None:
    """The first tensor in which two networks differ, in words."""
    for name in (*saved, *mine):
        shapes = [tuple(net[name].shape) if isinstance(net.get(name), Tensor) else None for net in (saved, mine)]
        if (name in saved) != (name in mine) or shapes[0] != shapes[1]:
            texts = [shape_text(shape) if shape is not None else "absent" for shape in shapes]
            return f"{name!r} is {texts[0]} in the race, and {texts[1]} in the model"
    return None


_FIRST = 3.0  # what a step of a race costs in plain steps, until it has been measured: two networks, and copies


def live_twin(
    model: nn.Module,
    optimizer: MakeOptimizer | Optimizer | Sequence[Optimizer],
    *,
    moments: Moments | None = None,
    loss: Loss = None,
    objective: Callable[[nn.Module, Any], Tensor] | None = None,
    share: float = 0.05,
    every: int | None = None,
    window: int = 100,
    start: Literal["any", "boundary"] = "any",
    recent: int = 10,
    min_races: int = 3,
    seed: int = 0,
    history: int = 100,
    init: InitSpec = None,
    make_model: Callable[[], nn.Module] | None = None,
) -> LiveTwin:
    """Let a fresh twin and a copy of the live network race on the batches of the live run, as they come.

    A race begins with a copy of the network as it is, with the optimizer's options of that moment, and a fresh twin
    without any training. Both train on the next ``window`` batches; who has the lower loss over the last tenth of
    them is ahead. Then both are thrown away. The live run is not changed by a bit: no parameter, gradient, hook or
    random state. Races are spaced so that they cost the given share of the run's time.

    What is answered is "ahead after ``window`` steps on these batches". On a stream that never changes, a network
    that has trained for long should be ahead. Where tasks follow each other, let races start at their boundaries:
    then they ask what :func:`~pliant.probe.probe` asks.

    Args:
        model: The live network, not compiled or wrapped (of ``DistributedDataParallel``, its ``module``, on one rank).
        optimizer: Its optimizer (or several), or a function of parameters as in :func:`~pliant.probe.probe`.
        moments: With a live optimizer: ``"carried"`` (the default): the copy goes on with the live moments;
            ``"fresh"``: it starts without, as the twin does.
        loss: See :data:`~pliant.probe.objective.Loss`.
        objective: Or ``(model, batch) -> loss``.
        share: The budget: seconds of races per second of the run beside them, in (0, 1]. The first race waits until
            it fits into the budget.
        every: Or at least so many steps between the starts of races, whatever they cost.
        window: Steps of a race.
        start: ``"any"``: when the budget allows; ``"boundary"``: at the calls of ``task_boundary()`` only, if it does.
        recent: How many of the latest races the answer is about.
        min_races: How many it needs, at least two.
        seed: Seed of twins and dropout masks.
        history: How many races are remembered.
        init: How parameters are initialised, see :func:`~pliant.fresh.fresh_twin`. A model that initialises its layers
            itself needs this or ``make_model``.
        make_model: Or a function that makes a fresh network, as there.

    Returns:
        The live twin: call its ``step(batch)`` after every optimizer step; ``print`` it.

    Raises:
        IllegalConfiguration: For a number out of range, an optimizer that does not own the model's parameters, an
            unknown initial distribution, or a model that cannot be copied.
        NoEffect: If nothing in the model is trained.

    Example:
        >>> model = nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> live = live_twin(model, optimizer, every=20, window=10)
        >>> for _ in range(80):
        ...     batch = torch.randn(8, 3), torch.zeros(8, 1)
        ...     optimizer.zero_grad()
        ...     nn.functional.mse_loss(model(batch[0]), batch[1]).backward()
        ...     optimizer.step()
        ...     live.step(batch)
        >>> len(live.races), live.outcome in ("live ahead", "no difference shown")
        (3, True)
    """
    ranges = {
        "share": 0 < share <= 1,
        "every": every is None or every >= 1,
        "window": window >= 1,
        "start": start in ("any", "boundary"),
        "recent": recent >= 2,
        "min_races": 2 <= min_races <= recent,
        "seed": seed >= 0,
        "history": history >= recent,
    }
    given = {"share": share, "every": every, "window": window, "start": start, "recent": recent}
    given |= {"min_races": min_races, "seed": seed, "history": history}
    if wrong := [name for name, right in ranges.items() if not right]:
        raise IllegalConfiguration(
            f"live_twin: {wrong[0]}={given[wrong[0]]!r} is out of range; needed are share in (0, 1], "
            'start "any" or "boundary", 2 <= min_races <= recent <= history, the rest at least 1 (seed: 0).'
        )
    if moments is None and (isinstance(optimizer, Optimizer) or not callable(optimizer)):
        moments = "carried"
    with preserved_randomness(model):
        # what cannot be drawn is said now, and not in the middle of the run
        fresh_twin(model, seed=seed, init=init, make_model=make_model)
    return LiveTwin(
        model,
        maker(model, optimizer, moments),
        Objective(loss, objective),
        share=share,
        every=every,
        window=window,
        start=start,
        recent=recent,
        min_races=min_races,
        seed=seed,
        history=history,
        init=init,
        make_model=make_model,
    )
