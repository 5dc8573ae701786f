"""The rank simulations: what saturation does to the rank of Gaussian features, and what clones do.

    python benchmarks/manifolds/rank.py run        # ten seeds; it goes on where it stopped
    python benchmarks/manifolds/rank.py page       # docs/results/rank_simulations.md and its figure, from the records

Pre-activations are Gaussian with a random correlation matrix of low rank. An activation function with a gain, tanh(a
z), or a bias, ReLU(z + b), makes their correlations smaller, so that the participation ratio of the correlation matrix
grows; at the same time the derivative vanishes on more and more samples. Beside the samples stands what the theory
says, and a sweep over blocks of units whose correlation goes to one: clones.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

from benchmarks.manifolds import rank_page
from benchmarks.manifolds.common import Study, main, rounded
from pliant import metrics
from pliant.manifolds import rank_tension

__all__ = ["PRESETS", "STUDY", "Preset", "activation", "blocks", "correlations", "sampled"]


@dataclass(frozen=True)
class Preset:
    """All settings.

    Attributes:
        num_units: Units, d.
        num_factors: Common factors behind their correlations.
        num_samples: Samples, N.
        gains: Of tanh.
        biases: Of ReLU.
        inner: Correlations inside the blocks of the other sweep.
        block_size: Units of a block there.
        tau: Below which a derivative counts as vanished.
        share: Of the samples on which it must, for a unit to be frozen.
        degree: Hermite weights that are computed.
    """

    num_units: int = 64
    num_factors: int = 4
    num_samples: int = 4096
    gains: Sequence[float] = (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128)
    biases: Sequence[float] = (2, 1, 0.5, 0, -0.5, -1, -1.5, -2, -2.5, -3, -3.5, -4)
    inner: Sequence[float] = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1)
    block_size: int = 4
    tau: float = 1e-4
    share: float = 0.95
    degree: int = 600


PRESETS: Mapping[str, Preset] = {
    "mini": Preset(),
    "tiny": Preset(8, 2, 64, (1, 4), (0, -1), (0, 0.5, 1), 2, degree=40),
    "published": Preset(num_units=256, num_factors=8, num_samples=16_384, degree=1000),
}


def activation(kind: str, value: float) -> Any:
    """``tanh(value * z)`` or ``relu(z + value)``, and its derivative."""
    if kind == "tanh":
        return (lambda z: torch.tanh(value * z)), (lambda z: value / torch.cosh((value * z).clamp(-300, 300)) ** 2)
    return (lambda z: torch.relu(z + value)), (lambda z: (z + value > 0).to(z))


def correlations(num_units: int, num_factors: int, seed: int) -> Tensor:
    """A random correlation matrix ``[d, d]``: common factors, and one of each unit's own with half of its variance."""
    draws = torch.Generator().manual_seed(seed)
    loads = torch.randn(num_units, num_factors, generator=draws, dtype=torch.float64)
    loads = loads / loads.norm(dim=1, keepdim=True) * 0.5**0.5
    matrix = loads @ loads.T
    return matrix - torch.diag(matrix.diagonal()) + torch.eye(num_units, dtype=torch.float64)


def blocks(num_units: int, block_size: int, inner: float) -> Tensor:
    """Units in blocks that are independent of each other, with one correlation inside: clones where it is 1."""
    place = torch.arange(num_units) // block_size
    matrix = (place[:, None] == place).double() * inner
    return matrix.fill_diagonal_(1.0)


def sampled(correlation_DD: Tensor, kind: str, value: float, preset: Preset, seed: int) -> dict[str, float | None]:
    """What samples show: gain of the participation ratio, and how much of the derivative has vanished."""
    values, vectors = torch.linalg.eigh(correlation_DD)
    root = vectors * values.clamp_min(0).sqrt()
    draws = torch.Generator().manual_seed(1_000_003 + seed)
    z_ND = torch.randn(preset.num_samples, len(root), generator=draws, dtype=torch.float64).to(root) @ root.T
    function, slope = activation(kind, value)
    act_ND, slope_ND = function(z_ND), slope(z_ND)
    alive = act_ND.std(0) > 0
    found: dict[str, float | None] = {
        "vanished": rounded(float((slope_ND.abs() < preset.tau).double().mean())),
        "frozen": rounded(float(metrics.saturated_fraction(slope_ND, preset.tau, preset.share))),
        "silent": rounded(1 - float(alive.double().mean())),
    }
    before = torch.corrcoef(z_ND.T)
    if int(alive.sum()) > 1:
        after = torch.eye(len(root), dtype=torch.float64, device=root.device)
        after[alive.nonzero(), alive.nonzero().T] = torch.corrcoef(act_ND[:, alive].T)
        found["gain"] = rounded(rank_tension.rank_gain(before, after.fill_diagonal_(1.0)))
        centred = metrics.participation_ratio(act_ND, centred=True)
        found["of_covariance"] = rounded(float(centred / metrics.participation_ratio(z_ND, centred=True)))
    else:
        found["gain"] = found["of_covariance"] = None
    return found


def run(
    preset: Preset, cell: Mapping[str, Any], seeds: Sequence[int], device: torch.device
) -> Iterator[tuple[int, dict[str, Any]]]:
    """One sweep, all seeds at once: the theory of an activation function is the same for all of them."""
    kind = str(cell["sweep"])
    points: dict[int, list[dict[str, Any]]] = {seed: [] for seed in seeds}
    sweep = {"tanh": preset.gains, "relu": preset.biases, "clones": preset.inner}[kind]
    for value in sweep:
        name, parameter = (kind, value) if kind != "clones" else ("relu", 0.0)
        function, _ = activation(name, parameter)
        weights = rank_tension.hermite_weights(function, degree=preset.degree)
        if kind == "clones":
            matrices = {seed: blocks(preset.num_units, preset.block_size, value) for seed in seeds}
        else:
            matrices = {seed: correlations(preset.num_units, preset.num_factors, seed) for seed in seeds}
        stacked = torch.stack(list(matrices.values()))
        mapped = rank_tension.correlation_map(function, stacked.to(device), degree=preset.degree).cpu()
        for place, (seed, matrix) in enumerate(matrices.items()):
            after = mapped[place].clone().fill_diagonal_(1.0)
            points[seed].append(
                {
                    "value": value,
                    "theory": rounded(rank_tension.rank_gain(matrix, after)),
                    "bound": rounded(rank_tension.rank_gain_bound(matrix, weights)),
                    "nonlinearity": rounded(rank_tension.nonlinearity(weights)),
                    "tension": rounded(rank_tension.tension(matrix) / preset.num_units**2),
                    **sampled(matrix.to(device), name, parameter, preset, seed),
                }
            )
    for seed in seeds:
        yield seed, {"points": points[seed]}


STUDY = Study(
    "rank",
    __doc__ or "",
    PRESETS,
    lambda preset: [{"sweep": name} for name in ("tanh", "relu", "clones")],
    lambda cell: str(cell["sweep"]),
    run,
    rank_page.texts,
    seeds=range(10),
    stacked=True,
)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
