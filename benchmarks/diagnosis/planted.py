"""Pathologies planted in healthy networks, at a dose: the share of a layer's units (of samples, for the outputs)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.diagnosis.networks import NETWORKS, Network
from pliant.probe.objective import Objective
from pliant.units import UnitGraph, UnitGroup

__all__ = [
    "BATCH",
    "DOSES",
    "MECHANISM_OF",
    "PATHOLOGIES",
    "activation_of",
    "batch_of",
    "healthy",
    "network",
    "planted",
]

DOSES = (0.05, 0.2, 1.0)
BATCH = 128
MECHANISM_OF = {
    "dead_layer": "dead_units",
    "saturated": "saturated_units",
    "cloned_blocks": "cloned_units",
    "rank_one": "rank_collapse",
    "exploded_weights": "weight_growth",
    "collapsed_softmax": "collapsed_output",
}
"""Pathology to the mechanism that a diagnosis must name."""


def network(name: str) -> Network:
    """One of the networks by name."""
    return next(item for item in NETWORKS if item.name == name)


def activation_of(pathology: str | None, seed: int) -> str:
    """Which activation function the network gets: tanh where it is to saturate, else ReLU and GELU in turn."""
    if pathology == "saturated":
        return "tanh"
    return ("relu", "gelu", "tanh")[seed % 3] if pathology is None else ("relu", "gelu")[seed % 2]


def batch_of(net: Network, seed: int, size: int = BATCH) -> Any:
    """A batch that no network was trained on."""
    return net.data(torch.Generator().manual_seed(10_000 + seed), size)


def healthy(net: Network, activation: str, seed: int, steps: int, lr: float = 3e-4) -> nn.Module:
    """A network as it begins, or trained briefly with Adam."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = net.make(activation)
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        objective, generator = Objective(), torch.Generator().manual_seed(seed)
        for _ in range(steps):
            loss = objective(model, net.data(generator, 64)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def planted(
    net: Network, model: nn.Module, pathology: str, dose: float, seed: int, batch: Any, units: UnitGraph
) -> tuple[nn.Module, str]:
    """A copy of a network with a pathology, and the layer that has it; the batch is the one that will be looked at."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    if pathology == "collapsed_softmax":
        _collapse(net, model, dose, batch, generator)
        return model, net.head
    groups = [group for group in units if group.site == "hidden"]
    group = groups[int(torch.randint(len(groups), (), generator=generator))]
    count = max(1, round(dose * group.size))
    units = torch.randperm(group.size, generator=generator)[:count]
    with torch.no_grad():
        if pathology == "rank_one":
            _rank_one(model, group, units, generator, any_size=_keeps_shape(group, pathology, seed))
        else:
            PATHOLOGIES[pathology](model, group, units, generator)
    return model, group.name


def _pieces(model: nn.Module, group: UnitGroup) -> list[tuple[str, Tensor, int, Tensor]]:
    """Role, tensor, dimension and positions of everything that makes the units what they are."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    found = []
    for role in ("incoming", "carried"):
        for piece in group.role(role):
            found.append((role, tensors[piece.name], piece.dim, piece.positions()))
    return found


def _rows(tensor: Tensor, dim: int) -> Tensor:
    return tensor.movedim(dim, 0)


def _offset(model: nn.Module, group: UnitGroup) -> tuple[Tensor, Tensor] | None:
    """What is added last to the units' pre-activations: a norm's offset, else a bias."""
    names = dict(model.named_parameters())
    for role in ("carried", "incoming"):
        for piece in group.role(role):
            if piece.name.endswith("bias"):
                return names[piece.name], piece.positions()
    return None


def _dead(model: nn.Module, group: UnitGroup, units: Tensor, generator: torch.Generator) -> None:
    offset, places = _offset(model, group) or (None, None)
    for _, tensor, dim, positions in _pieces(model, group):
        if tensor.requires_grad:
            _rows(tensor, dim)[positions[units].flatten()] = 0
    if offset is not None and places is not None:
        offset[places[units].flatten()] = -20


def _saturated(model: nn.Module, group: UnitGroup, units: Tensor, generator: torch.Generator) -> None:
    offset = _offset(model, group)
    assert offset is not None
    signs = torch.randint(2, (len(units),), generator=generator) * 2 - 1
    offset[0][offset[1][units].flatten()] = 12.0 * signs


def _copy(model: nn.Module, group: UnitGroup, source: int, units: Tensor, scales: Tensor) -> None:
    for role, tensor, dim, positions in _pieces(model, group):
        rows = _rows(tensor, dim)
        for unit, scale in zip(units.tolist(), scales.tolist(), strict=True):
            factor = scale if role == "incoming" and tensor.requires_grad else 1.0
            rows[positions[unit]] = rows[positions[source]] * factor


def _cloned(model: nn.Module, group: UnitGroup, units: Tensor, generator: torch.Generator) -> None:
    for block in units.split(4) if len(units) > 4 else [units]:
        if len(block) == 1:
            others = [unit for unit in range(group.size) if unit != int(block)]
            _copy(model, group, others[0], block, torch.ones(1))
        else:
            _copy(model, group, int(block[0]), block[1:], torch.ones(len(block) - 1))


def _keeps_shape(group: UnitGroup, pathology: str, seed: int) -> bool:
    """Whether a multiple of a unit's incoming weights gives a multiple of its activations."""
    return activation_of(pathology, seed) == "relu" and not group.role("carried")


def _rank_one(model: nn.Module, group: UnitGroup, units: Tensor, generator: torch.Generator, *, any_size: bool) -> None:
    """All units become one feature, of any size where the activation function keeps its shape then."""
    scales = 0.5 + torch.rand(len(units), generator=generator) if any_size else torch.ones(len(units))
    _copy(model, group, int(units[0]), units, scales)


def _exploded(model: nn.Module, group: UnitGroup, units: Tensor, generator: torch.Generator) -> None:
    for role, tensor, dim, positions in _pieces(model, group):
        if role == "incoming" and tensor.ndim >= 2:
            _rows(tensor, dim)[positions[units].flatten()] *= 20


def _collapse(net: Network, model: nn.Module, dose: float, batch: Any, generator: torch.Generator) -> None:
    """One class takes a share of the samples, certain of itself, and no other sample."""
    head = model.get_submodule(net.head)
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().flatten(0, -2)))
    with torch.no_grad(), torch.random.fork_rng():
        model(**batch) if isinstance(batch, dict) else model(batch[0])
        handle.remove()
        weight: Tensor = head.weight  # type: ignore[assignment]
        along = seen[0] - seen[0].mean(0)
        direction = torch.linalg.svd(along, full_matrices=False).Vh[0]
        height = seen[0] @ direction
        threshold = torch.quantile(height, 1 - dose) if dose < 1 else height.mean() - 50 * height.std()
        gain = 400 / height.std()
        taken = 0  # a class to which none or few of these samples belong
        if not isinstance(batch, dict):
            taken = int(torch.bincount(batch[1][height >= threshold], minlength=len(weight)).argmin())
        if head.bias is None:  # the mean feature stands for a bias
            mean = seen[0].mean(0)
            weight[taken] = gain * (direction - (threshold / mean.square().sum()) * mean)
        else:
            weight[taken] = gain * direction
            head.bias[taken] = -gain * threshold


PATHOLOGIES: dict[str, Callable[[nn.Module, UnitGroup, Tensor, torch.Generator], None]] = {
    "dead_layer": _dead,
    "saturated": _saturated,
    "cloned_blocks": _cloned,
    "exploded_weights": _exploded,
}
"""Pathologies of units, beside ``rank_one``; ``collapsed_softmax`` is one of the head."""
