"""Slowly-changing regression: plain SGD, and a switch to continual backprop when units have become copies.

    python benchmarks/manifolds/bit_flips.py run       # four widths, ten seeds at once; it goes on where it stopped
    python benchmarks/manifolds/bit_flips.py page      # docs/results/bit_flips.md and its figure, from the records
    python benchmarks/manifolds/bit_flips.py run --preset published      # 5 million examples: hours

Fifteen of twenty input bits stand still, and one of them flips every so often; a network with one hidden layer of
ReLU learns online, one example at a time. Three arms begin with the same weights and see the same examples: SGD all
the way, SGD and from the middle on continual backprop (the switch), and continual backprop all the way.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn

import pliant
from benchmarks.manifolds import bit_flips_page
from benchmarks.manifolds.common import Study, main, rounded, seeded
from pliant import metrics
from pliant.bench.ensemble import stack
from pliant.bench.streams import SlowlyChangingRegression
from pliant.units import UnitGraph, find_units

__all__ = ["PRESETS", "STUDY", "Preset", "learn", "run", "stacked_task"]

ARMS = ("sgd", "switch", "continual_backprop")


@dataclass(frozen=True)
class Preset:
    """All settings.

    Attributes:
        widths: Hidden units of the learners.
        num_tasks: Flips, and one: half of them come before the switch.
        num_examples: Examples from flip to flip, T.
        lr: Step size of SGD.
        replacement_rate: Of continual backprop.
        maturity_threshold: Of continual backprop, in steps.
        similarity: From which on two units are copies.
        num_seen: Last examples of a task on which units are looked at.
        every: Tasks from one look to the next; the last before the switch and the last of all are always looked at.
    """

    widths: Sequence[int] = (5, 10, 50, 100)
    num_tasks: int = 80
    num_examples: int = 500
    lr: float = 0.01
    replacement_rate: float = 1e-3
    maturity_threshold: int = 100
    similarity: float = 0.98
    num_seen: int = 500
    every: int = 5


PRESETS: Mapping[str, Preset] = {
    "mini": Preset(),
    "tiny": Preset((3,), 4, 20, num_seen=16, every=1, maturity_threshold=5, replacement_rate=0.05),
    "published": Preset(num_tasks=500, num_examples=10_000, replacement_rate=1e-4),
}


def stacked_task(stream: SlowlyChangingRegression, index: int, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Inputs ``[S, N, 20]`` and targets ``[S, N, 1]``."""
    found = [stream.task(index, seed) for seed in seeds]
    return torch.stack([task.inputs for task in found]), torch.stack([task.targets for task in found])


def learner(width: int, seed: int) -> nn.Module:
    """20 - width - 1, as PyTorch initialises it."""
    seeded("bit_flips learner", width, seed)
    return nn.Sequential(nn.Linear(20, width), nn.ReLU(), nn.Linear(width, 1))


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, x_SNI: Tensor, y_SN1: Tensor) -> Tensor:
    """One pass, an example at a time, of all members; returns each member's mean loss before its update, ``[S]``."""
    total_S = torch.zeros(len(x_SNI), device=x_SNI.device)
    for x_SI, y_S1 in zip(x_SNI.unbind(1), y_SN1.unbind(1), strict=True):
        error_S11 = model(x_SI.unsqueeze(1)) - y_S1.unsqueeze(1)
        squares_S = error_S11.square().flatten(1).mean(1)
        optimizer.zero_grad(set_to_none=True)
        squares_S.sum().backward()
        optimizer.step()
        total_S += squares_S.detach()
    return total_S / x_SNI.shape[1]


def look(model: Any, x_SNI: Tensor, preset: Preset) -> dict[str, list[float | None]]:
    """Symptoms of each member's hidden units on its own examples, a list over members."""
    with torch.no_grad():
        act_SNU = model[:2](x_SNI[:, -preset.num_seen :])
    found = {
        "rank": metrics.effective_rank(act_SNU),
        "rank_centred": metrics.effective_rank(act_SNU, centred=True),
        "cloned": metrics.cloned_fraction(act_SNU, preset.similarity),
        "duplicate": metrics.cloned_fraction(act_SNU, preset.similarity, sign="same", centred=False, count="spare"),
        "dead": metrics.dead_fraction(act_SNU),
    }
    return {name: [rounded(value) for value in values_S.tolist()] for name, values_S in found.items()}


def run(
    preset: Preset, cell: Mapping[str, Any], seeds: Sequence[int], device: torch.device
) -> Iterator[tuple[int, dict[str, Any]]]:
    """All seeds of one width at once, arm by arm."""
    width = int(cell["width"])
    stream, half = SlowlyChangingRegression(task_length=preset.num_examples), preset.num_tasks // 2
    singles = [learner(width, seed) for seed in seeds]
    units = find_units(singles[0], torch.zeros(3, 20))
    start = stack(singles, torch.zeros(5, 20)).to(device)
    arms: dict[str, dict[str, list[Any]]] = {}
    sgd = _arm(preset, stream, copy.deepcopy(start), units, seeds, range(half), protected=False)
    middle = copy.deepcopy(sgd.pop("model"))
    for name in ("sgd", "switch"):
        rest = range(half, preset.num_tasks)
        found = _arm(preset, stream, copy.deepcopy(middle), units, seeds, rest, protected=name == "switch")
        arms[name] = {key: sgd[key] + found[key] for key in sgd}
    whole = range(preset.num_tasks)
    arms["continual_backprop"] = _arm(preset, stream, copy.deepcopy(start), units, seeds, whole, protected=True)
    for place, seed in enumerate(seeds):
        yield seed, {"arms": {name: _member(arms[name], place) for name in ARMS}}


def _arm(
    preset: Preset,
    stream: SlowlyChangingRegression,
    model: nn.Module,
    units: UnitGraph,
    seeds: Sequence[int],
    tasks: Sequence[int],
    *,
    protected: bool,
) -> dict[str, Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=preset.lr)
    device, handle = next(model.parameters()).device, None
    if protected:
        method = pliant.ContinualBackprop(preset.replacement_rate, preset.maturity_threshold)
        handle = pliant.attach(model, optimizer, method, units=units, seed=list(seeds))
    loss, looks, resets = [], [], []
    for index in tasks:
        x_SNI, y_SN1 = (each.to(device) for each in stacked_task(stream, index, seeds))
        loss.append([rounded(value) for value in learn(model, optimizer, x_SNI, y_SN1).tolist()])
        if index % preset.every == preset.every - 1 or index == tasks[-1]:
            looks.append({"task": index, **look(model, x_SNI, preset)})
    if handle is not None:
        resets = [sum(counts) for counts in zip(*(c.tolist() for c in handle.num_resets.values()), strict=True)]
        handle.detach()
    return {"loss": loss, "looks": looks, "resets": [resets] if resets else [], "model": model}


def _member(arm: Mapping[str, Any], place: int) -> dict[str, Any]:
    """What belongs to one seed."""
    return {
        "loss": [values[place] for values in arm["loss"]],
        "looks": [
            {key: value if key == "task" else value[place] for key, value in found.items()} for found in arm["looks"]
        ],
        "resets": sum(values[place] for values in arm["resets"]),
    }


STUDY = Study(
    "bit_flips",
    __doc__ or "",
    PRESETS,
    lambda preset: [{"width": width} for width in preset.widths],
    lambda cell: f"width_{cell['width']}",
    run,
    bit_flips_page.texts,
    seeds=range(10),
    stacked=True,
)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
