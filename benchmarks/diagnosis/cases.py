"""Scores of healthy and of planted networks: what thresholds are fitted on, and judged by."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import pliant  # noqa: E402
from benchmarks.diagnosis.networks import NETWORKS, Network  # noqa: E402
from benchmarks.diagnosis.planted import (  # noqa: E402
    DOSES,
    MECHANISM_OF,
    activation_of,
    batch_of,
    healthy,
    network,
    planted,
)
from benchmarks.diagnosis.records import write  # noqa: E402
from pliant.diagnosis.evidence import KINDS, beside_loss, score  # noqa: E402
from pliant.diagnosis.run import parts  # noqa: E402
from pliant.diagnosis.signals import Signals, signals  # noqa: E402
from pliant.fresh import fresh_twin  # noqa: E402
from pliant.observation import observe  # noqa: E402
from pliant.observation.measure import WHOLE  # noqa: E402
from pliant.units import UnitGraph  # noqa: E402

TWINS, STEPS, RATE = 5, 100, 3e-4
FIRST = {"fit": 0, "judge": 200}
NUM_HEALTHY = {"fit": 21, "judge": 50}


@cache
def units_of(name: str, activation: str) -> UnitGraph:
    """The unit groups, found once."""
    net = network(name)
    inputs, _ = parts(net.make(activation), batch_of(net, 0, 4), None)
    return pliant.find_units(net.make(activation), inputs)


def look(net: Network, activation: str, model: torch.nn.Module, seed: int) -> tuple[Signals, float]:
    """What is seen of a network on the batch of a seed."""
    inputs, loss = parts(model, batch_of(net, seed), None)
    seen = observe(model, inputs, loss, units=units_of(net.name, activation), mode="train")
    assert seen.loss is not None
    return signals(seen), seen.loss


@cache
def twins_of(name: str, activation: str, seed: int) -> list[tuple[Signals, float]]:
    """What is seen of fresh twins on the same batch; they do not depend on the network's weights."""
    net = network(name)
    model = healthy(net, activation, 0, 0)
    return [look(net, activation, fresh_twin(model, seed=k), seed) for k in range(TWINS)]


def scores(net: Network, activation: str, model: torch.nn.Module, seed: int) -> list[list[Any]]:
    """Mechanism, metric, layer and score of everything that was measured."""
    here, loss = look(net, activation, model, seed)
    twins = twins_of(net.name, activation, seed)
    rows: list[list[Any]] = []
    for key, reading in here.items():
        mechanism, metric, layer = key
        if metric not in KINDS or (metric == "gradient_norm" and layer != WHOLE):  # of one tensor it is only a note
            continue
        got = score(KINDS[metric], reading.value, [twin[key].value for twin, _ in twins if key in twin])
        if metric == "gradient_norm" and got is not None:
            got = beside_loss(got, loss, [of_twin for _, of_twin in twins])
        if got is not None:
            rows.append([mechanism, metric, layer, round(got, 5), reading.size])
    return rows


def cases(half: str, seeds: int) -> Iterator[dict[str, Any]]:
    """All cases of one half of the networks, with seeds of its own."""
    first = FIRST[half]
    nets = [net for net in NETWORKS if net.half == half]
    trained: dict[tuple[str, str, int], torch.nn.Module] = {}

    def grown(net: Network, activation: str, seed: int) -> torch.nn.Module:
        key = (net.name, activation, seed)
        if key not in trained:
            trained[key] = healthy(net, activation, seed, STEPS, RATE)
        return trained[key]

    for number in range(NUM_HEALTHY[half]):
        net = nets[number % len(nets)]
        activation, seed = activation_of(None, number // len(nets)), first + number // len(nets)
        for kind, model in (("fresh", healthy(net, activation, seed, 0)), ("trained", grown(net, activation, seed))):
            what = {"network": net.name, "activation": activation, "seed": seed, "kind": kind, "dose": 0.0, "layer": ""}
            yield {**what, "scores": scores(net, activation, model, first)}
    for net in nets:
        for pathology in MECHANISM_OF:
            for seed in range(first, first + seeds):
                activation = activation_of(pathology, seed)
                for dose in DOSES:
                    model, units = grown(net, activation, seed), units_of(net.name, activation)
                    model, layer = planted(net, model, pathology, dose, seed, batch_of(net, first), units)
                    what = {
                        "network": net.name,
                        "activation": activation,
                        "seed": seed,
                        "kind": pathology,
                        "dose": dose,
                    }
                    yield {**what, "layer": layer, "scores": scores(net, activation, model, first)}


def commit() -> str:
    """The commit that is measured, marked where files have changed since."""
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def main() -> None:
    """Write the scores of one half."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("half", choices=("fit", "judge"))
    parser.add_argument("--seeds", type=int, default=4, help="planted networks per kind and dose")
    options = parser.parse_args()
    torch.set_num_threads(1)
    measured, found = commit(), []
    for case in cases(options.half, options.seeds):
        found.append(case)
        print(len(found), case["network"], case["kind"], case["dose"], flush=True)
    config = {"twins": TWINS, "steps": STEPS, "rate": RATE, "seeds": options.seeds, "commit": measured}
    config["torch"] = torch.__version__
    write(options.half, config, found)


if __name__ == "__main__":
    main()
