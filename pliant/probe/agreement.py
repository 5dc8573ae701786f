"""Whether the live twin says what the probe says: both measured on the same networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from pliant.errors import IllegalConfiguration
from pliant.fresh import copy_of
from pliant.intervals import rank_correlation
from pliant.isolation import preserved_randomness, seed_everything
from pliant.probe.learning import one_step
from pliant.probe.live import live_twin
from pliant.probe.loading import as_task, moved
from pliant.probe.objective import Objective
from pliant.probe.optimizers import MakeOptimizer, optimizers_for
from pliant.probe.run import probe

__all__ = ["Agreement", "agreement"]

_LIVE_SEEDS = 10_000  # the stream of the live runs has other tasks than the probes


@dataclass(frozen=True)
class Agreement:
    """Made by :func:`agreement`.

    Attributes:
        probe: Name of the network to the probe's gap.
        live: Name to the gap of the live twin.
        rank_correlation: Spearman's correlation between the two over the networks.
        cost_shares: Name to what the live twin cost, over the cost of the live run.
    """

    probe: Mapping[str, float]
    live: Mapping[str, float]
    rank_correlation: float
    cost_shares: Mapping[str, float]

    def __str__(self) -> str:
        """A line per network."""
        width = max(map(len, self.probe))
        lines = [
            f"{name.ljust(width)}  probe {self.probe[name]:+.4g}  live {self.live[name]:+.4g}" for name in self.probe
        ]
        return "\n".join([*lines, f"rank correlation {self.rank_correlation:.3f} over {len(self.probe)} networks"])


def agreement(
    networks: Mapping[str, nn.Module],
    task: Any,
    *,
    optimizer: MakeOptimizer,
    steps: int = 500,
    seeds: int = 5,
    window: int | None = None,
    races: int = 5,
    every: int = 1,
) -> Agreement:
    """Probe networks of different ages, and let live twins watch copies of them that go on training.

    The live run of each network is a stream of tasks of the same kind, which the probe does not use; races start at
    the boundaries between them. The live network ages on while it is watched, as it would in a real run.

    Args:
        networks: Networks by name; they are not changed.
        task: As in :func:`~pliant.probe.probe`.
        optimizer: A function of parameters; each live run makes one, and keeps it.
        steps: Steps of the probe, and of each task of the live run.
        seeds: Seeds of the probe.
        window: Steps of a race; those of a task by default.
        races: Races for each network.
        every: Tasks of the live run for each race.

    Returns:
        Both gaps for each network and their rank correlation.

    Raises:
        IllegalConfiguration: As :func:`~pliant.probe.probe`, and for fewer than three networks or two races.

    Example:
        >>> import torch
        >>> from pliant.probe import RandomTargets
        >>> def network(scale):
        ...     model = nn.Linear(2, 1)
        ...     _ = nn.init.constant_(model.weight, scale)
        ...     return model
        >>> task = RandomTargets(inputs=torch.randn(16, 2), batch_size=16)
        >>> found = agreement(
        ...     {str(scale): network(scale) for scale in (1.0, 10.0, 100.0)}, task,
        ...     optimizer=lambda p: torch.optim.SGD(p, lr=0.01), steps=5, seeds=2, races=2,
        ... )
        >>> list(found.live)
        ['1.0', '10.0', '100.0']
    """
    window = steps if window is None else window
    if len(networks) < 3 or races < 2 or not 1 <= window <= steps or every < 1:
        raise IllegalConfiguration("agreement needs three networks, two races, a window within the steps of a task.")
    probed: dict[str, float] = {}
    watched: dict[str, float] = {}
    costs: dict[str, float] = {}
    for name, model in networks.items():
        probed[name] = probe(model, task, optimizer=optimizer, steps=steps, seeds=seeds).gap.mean
        with preserved_randomness(model):
            watched[name], costs[name] = _watch(model, task, optimizer, steps, window, races, every)
    names = list(probed)
    rho = rank_correlation([probed[name] for name in names], [watched[name] for name in names])
    return Agreement(probed, watched, rho, costs)


def _watch(
    model: nn.Module, task: Any, optimizer: MakeOptimizer, steps: int, window: int, races: int, every: int
) -> tuple[float, float]:
    net, stream = copy_of(model), as_task(task)
    if not net.training:
        net.train()
    optimizers = optimizers_for(net, optimizer)
    loss = getattr(stream, "loss", None)
    objective = Objective(loss)
    live = live_twin(
        net, optimizers, loss=loss, start="boundary", every=1, window=window, recent=races, min_races=2, history=races
    )
    seed_everything(net, 0)
    device = next(net.parameters()).device
    for number in range(races * every):
        if number % every == every - 1:
            live.task_boundary()
        for batch in moved(stream.batches(_LIVE_SEEDS + number, steps), device):
            one_step(net, optimizers, objective, batch)
            live.step(batch)
    return live.gap.mean, live.cost_share
