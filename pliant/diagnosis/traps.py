"""Frozen and cloned units as traps: how far the weights are from one, and what would leave it.

Everything comes from :mod:`pliant.manifolds`, and is said of what was looked at: equal activations on a batch are no
equal weights, near a manifold is not on it, and a unit that is frozen on these samples may wake on others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

import pliant.interventions as interventions
from pliant.attach import attach
from pliant.errors import PliantError
from pliant.interventions.base import Intervention
from pliant.manifolds import Partition, audit, distance, drift_after_freezing, find_partition, frozen_in
from pliant.manifolds.trap import normal_share
from pliant.mechanisms import MECHANISMS
from pliant.metrics import clone_labels
from pliant.observation import Observation
from pliant.units.verify import random_rates

if TYPE_CHECKING:
    from pliant.manifolds import FrozenUnits

__all__ = ["TRIED", "Trap", "traps"]

MOST_SEARCHED = 20_000_000
"""Entries of the tensors that a search for clones would read."""
MOST_AUDITED = 500_000_000
"""Parameters times samples of a batch: what one step of an audit costs, up to a factor."""
_STEPS = 3
_COPIED = 0.999  # as the finding says it
_FLAT = 0.05  # derivative below which a unit counts as nearly flat, as in the finding
_LR = 0.01

TRIED: Mapping[str, Callable[[], Intervention]] = {
    "continual_backprop": lambda: interventions.ContinualBackprop(replacement_rate=0.5, maturity_threshold=1),
    "shrink_and_perturb": lambda: interventions.ShrinkAndPerturb(shrink=0.9, noise_scale=0.1, every=1),
    "weight_noise": lambda: interventions.WeightNoise(noise_scale=0.1),
    "gradient_noise": lambda: interventions.GradientNoise(noise_scale=0.1),
}
"""Methods against clones that are tried, with options that make them act at once."""


@dataclass(frozen=True)
class Trap:
    """What is known of the units that are frozen, or copies of each other.

    Attributes:
        kind: ``"cloned"`` or ``"frozen"``.
        units: Unit group to how many of its units.
        holds: Whether a step of gradient descent on this batch leaves them as they are, up to rounding.
        distance: Of clones: relative distance of the weights to the manifold that they would be on; ``None`` where none
            is near. Of frozen units: the largest derivative among them, 0 for exactly frozen.
        normal_share: Of clones: share of the gradient on this batch that leads away from that manifold.
        leaving: Settings and methods that leave. Of clones those that were measured to (:func:`~pliant.manifolds.audit`
            on copies), of frozen units those that draw their incoming weights anew.
        sentence: The same in words.
    """

    kind: Literal["cloned", "frozen"]
    units: Mapping[str, int]
    holds: bool
    distance: float | None
    normal_share: float | None
    leaving: tuple[str, ...]
    sentence: str


def traps(
    model: nn.Module,
    seen: Observation,
    inputs: Any,
    loss: Callable[[Any], Tensor] | None,
    optimizer: Optimizer | None = None,
    *,
    has_copies: bool = True,
) -> tuple[Trap, ...]:
    """The traps that one look at a network shows.

    Args:
        model: The network; it is not changed.
        seen: What was seen of it on a batch.
        inputs: The batch.
        loss: From the output to the loss.
        optimizer: What trains it.
        has_copies: Whether there are more copies than fresh twins have. Otherwise those whose weights differ, which
            few samples make by chance, are not mentioned.
    """
    found = [_cloned(model, seen, inputs, loss, optimizer), _frozen(seen, model, optimizer)]
    return tuple(
        item
        for item in found
        if item is not None and (has_copies or item.kind == "frozen" or item.distance is not None)
    )


def _candidates(seen: Observation) -> Partition:
    """Units whose activations are the same up to size and offset on this batch."""
    labels = {}
    for name, group in seen.groups.items():
        usable = seen.units[name].site == "hidden" and all(p.at is None for p in seen.units[name].slices)
        if usable and len(group.act_NU) >= 8 and group.size > 1 and bool(torch.isfinite(group.act_NU).all()):
            own = clone_labels(group.act_NU, _COPIED, "same").tolist()
            if len(set(own)) < len(own):
                labels[name] = tuple(own)
    return Partition(seen.units, labels)


def _cloned(
    model: nn.Module,
    seen: Observation,
    inputs: Any,
    loss: Callable[[Any], Tensor] | None,
    optimizer: Optimizer | None,
) -> Trap | None:
    start = _candidates(seen)
    if start.is_trivial:
        return None
    entries = sum(seen.weights[name].numel() for name in start.slices() if name in seen.weights)
    if entries > MOST_SEARCHED:
        sentence = (
            f"{_listed(_counts(start))} are copies on this batch. Whether their weights are near a cloning manifold "
            f"was not looked at ({entries:,} weights are concerned): pliant.manifolds.find_partition does it."
        )
        return Trap("cloned", _counts(start), False, None, None, (), sentence)
    equal = find_partition(model, seen.units, candidates=start, kind="incoming", num_shuffles=1).partition
    if equal.is_trivial:
        sentence = (
            f"{_listed(_counts(start))} are copies on this batch, and their weights are near no manifold of clones: "
            "other inputs may tell them apart, and gradient descent moves them apart."
        )
        return Trap("cloned", _counts(start), False, None, None, (), sentence)
    found = find_partition(model, seen.units, candidates=equal, num_shuffles=1)
    if found.distance is None:
        off = distance(model, equal, "incoming").relative
        sentence = (
            f"{_listed(_counts(equal))} have incoming weights that make them equal on any input (relative distance "
            f"{off:.1e}), and are read differently: their gradients differ, so that gradient descent moves them apart. "
            "No trap."
        )
        share = _share(model, equal, seen)
        return Trap("cloned", _counts(equal), False, distance(model, equal).relative, share, (), sentence)
    share = _share(model, found.partition, seen)
    rounding = 16 * max(torch.finfo(value.dtype).eps for value in seen.weights.values() if value.is_floating_point())
    is_on = found.distance.relative <= rounding
    noisy = [f"{path or 'model'}.{key}={rate}" for path, key, rate in random_rates(model)]
    holds = is_on and share is not None and share <= 1e3 * rounding
    leaving, how = _audited(model, found.partition, seen, inputs, loss, optimizer)
    place = "on the cloning manifold, up to rounding" if is_on else (
        f"at a relative distance of {found.distance.relative:.1e} from the cloning manifold; near is not trapped"
    )  # fmt: skip
    parts = [f"{_listed(_counts(found.partition))} have copies: the weights are {place}."]
    if share is not None:
        parts.append(f"Of the gradient on this batch a share of {share:.1e} leads away from it.")
    if holds:
        parts.append(
            "So a step of gradient descent, with momentum or Adam, keeps them copies, rounding aside; on any data, "
            "where weights multiply activations as they are."
        )
    elif is_on and noisy:
        parts.append(f"Dropout ({', '.join(noisy)}) treats copies differently.")
    parts.append(how)
    return Trap("cloned", _counts(found.partition), holds, found.distance.relative, share, leaving, " ".join(parts))


def _share(model: nn.Module, partition: Partition, seen: Observation) -> float | None:
    gradients = {name: value for name, value in seen.gradients.items() if name in seen.trainable}
    return normal_share(model, partition, gradients, "both").share if gradients else None


def _audited(
    model: nn.Module,
    partition: Partition,
    seen: Observation,
    inputs: Any,
    loss: Callable[[Any], Tensor] | None,
    optimizer: Optimizer | None,
) -> tuple[tuple[str, ...], str]:
    """What leaves the manifold of these clones, and how that is known."""
    samples = max((group.num_samples for group in seen.groups.values()), default=1)
    size = sum(value.numel() for value in seen.weights.values()) * samples
    advice = f"Methods that treat copies differently: {', '.join(MECHANISMS['cloned_units'].methods)}"
    if seen.loss is None:
        return (), f"{advice} (without a loss, nothing was measured)."
    if size > MOST_AUDITED:
        return (), f"{advice} (not measured on a network and batch of this size; pliant.manifolds.audit does it)."
    trained = copy.deepcopy(model)
    if seen.training is not None:
        trained.train(seen.training)
    own = _copied(optimizer, model, trained) if optimizer is not None else SGD(trained.parameters(), lr=_LR)

    def with_method(make: Callable[[], Intervention]) -> Callable[[nn.Module], Optimizer]:
        def attached(wide: nn.Module) -> Optimizer:
            stepper = SGD(wide.parameters(), lr=_LR)
            attach(wide, stepper, make(), units=seen.units, seed=0)
            return stepper

        return attached

    try:
        report = audit(
            trained, partition, inputs, loss or _own_loss, own,
            others={name: with_method(make) for name, make in TRIED.items()}, steps=_STEPS,
        )  # fmt: skip
    except (PliantError, RuntimeError, TypeError, ValueError) as error:
        return (), f"{advice} (not measured: {str(error).splitlines()[0]})."
    if report.settings[0].verdict.startswith("leaves"):
        return (), "Training leaves it by itself: something random in the forward pass treats copies differently."
    staying = [item.name for item in report.settings[1:] if item.name not in report.breaking]
    stays = f"; {', '.join(staying)} do{'es' if len(staying) == 1 else ''} not" if staying else ""
    words = f"In {_STEPS} steps on copies of the network put onto it, {', '.join(report.breaking)} leave it{stays}."
    return report.breaking, words


def _copied(optimizer: Optimizer, model: nn.Module, other: nn.Module) -> Optimizer:
    new = dict(other.named_parameters())
    return copy.deepcopy(optimizer, {id(p): new[name] for name, p in model.named_parameters()})


def _own_loss(output: Any) -> Tensor:
    return output["loss"] if isinstance(output, Mapping) else output.loss  # type: ignore[no-any-return]


def _frozen(seen: Observation, model: nn.Module, optimizer: Optimizer | None) -> Trap | None:
    exact, near = frozen_in(seen), frozen_in(seen, tolerance=_FLAT)
    counts = _frozen_counts(exact)
    nearly = {name: num - counts.get(name, 0) for name, num in _frozen_counts(near).items()}
    nearly = {name: num for name, num in nearly.items() if num}
    if not counts and not nearly:
        return None
    parts, leakage = [], 0.0
    if counts:
        zero = sum(int((group.frozen & group.zero).sum()) for group in exact.groups.values())
        parts.append(
            f"{_listed(counts)} are exactly frozen on this batch: no gradient reaches their {exact.num_parameters} "
            f"incoming weights and biases{f', nor what reads the {zero} of them that give zero' if zero else ''}."
        )
        drift = _drift(exact, seen, model, optimizer)
        if drift:
            parts.append(drift)
    if nearly:
        leakage = max(group.leakage for group in near.groups.values())
        parts.append(
            f"{_listed(nearly)} are nearly flat: at most {leakage:.1e} of a gradient passes. That is slow, and no trap."
        )
    parts.append("Other data, or layers before them that still learn, may wake them.")
    resets = [name for name in MECHANISMS["dead_units"].methods if name in _REDRAWING]
    both = {name: counts.get(name, 0) + nearly.get(name, 0) for name in {**counts, **nearly}}
    return Trap("frozen", both, bool(counts) and not nearly, leakage, None, tuple(resets), " ".join(parts))


_REDRAWING = ("continual_backprop", "redo", "self_normalized_reset", "regrama", "layer_reset")
"""Methods that draw the incoming weights of a unit anew."""


def _frozen_counts(found: FrozenUnits) -> dict[str, int]:
    return {name: num for name, group in found.groups.items() if (num := int(group.frozen.sum()))}


def _drift(exact: FrozenUnits, seen: Observation, model: nn.Module, optimizer: Optimizer | None) -> str:
    """How far an optimizer's memory still moves them."""
    if optimizer is None:
        return ""
    parameters, largest = dict(model.named_parameters()), 0.0
    try:
        for name, group in exact.groups.items():
            units = torch.nonzero(group.frozen).flatten().cpu()
            for piece in seen.units[name].role("incoming"):
                moved = drift_after_freezing(optimizer, parameters[piece.name]).movedim(piece.dim, 0)
                rows = moved[piece.positions()[units].flatten().to(moved.device)]
                largest = max(largest, float(rows.abs().max()) if rows.numel() else 0.0)
    except (PliantError, KeyError) as error:
        return f"How far {type(optimizer).__name__} still moves them is not known ({str(error).splitlines()[0]})."
    return (
        f"{type(optimizer).__name__} still moves these weights, by {largest:.1e} at most until it has forgotten them."
    )


def _counts(partition: Partition) -> dict[str, int]:
    """Units that share a block, by group."""
    found = {}
    for name in partition.labels:
        shared = sum(size for size in partition.block_sizes(name) if size > 1)
        if shared:
            found[name] = shared
    return found


def _listed(counts: Mapping[str, int], most: int = 4) -> str:
    names: Sequence[str] = [f"{num} units of {name}" for name, num in counts.items()]
    more = f" and {sum(list(counts.values())[most:])} in {len(names) - most} other layers" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"
