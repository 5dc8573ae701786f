"""What the readings of a network mean beside those of fresh twins: scores, and findings where they pass thresholds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

from pliant.diagnosis.findings import SEVERITIES, Finding, Severity
from pliant.diagnosis.signals import Reading, Signals
from pliant.diagnosis.weights import Thresholds, thresholds, weight_of
from pliant.mechanisms import MECHANISMS
from pliant.observation.measure import WHOLE

__all__ = ["KINDS", "beside_loss", "findings", "score", "severity_of"]

Kind = Literal["count", "low", "high"]

KINDS: Mapping[str, Kind] = {
    "dead_fraction": "count",
    "dormant_fraction": "count",
    "saturated_fraction": "count",
    "copied_fraction": "count",
    "cloned_fraction": "count",
    "dependent_fraction": "count",
    "effective_rank": "low",
    "participation_ratio": "low",
    "weight_growth": "high",
    "largest_row": "high",
    "gradient_norm": "low",
    "output_deviation": "low",
    "certain_and_wrong": "count",
}
"""How a metric is scored, see :func:`score`. Entropy is shown and never scored: a network that has learned is sure."""

_STUDIED = {
    "copied_fraction": "cloned_fraction",
    "dependent_fraction": "numerical_rank",
    "largest_row": "weight_growth",
    "certain_and_wrong": "entropy",
    "output_deviation": "output_diversity",
}
_INFINITE = 40.0  # the score of a reading of zero whose twins' are not: two to the fortieth
_NAMES = {
    "dead_fraction": "are dead: exactly zero on every sample",
    "dormant_fraction": "are dormant: below 2.5 % of the layer's mean activation",
    "saturated_fraction": "are saturated: flat on at least 95 % of the samples, and not off",
    "copied_fraction": "are copies of another: correlation above 0.999",
    "cloned_fraction": "are nearly copies of another: correlation above 0.95",
    "dependent_fraction": "add no direction: the layer's features have that many fewer than units that vary",
}


def score(kind: Kind, value: float, twins: Sequence[float]) -> float | None:
    """How far a reading is from those of fresh twins; the larger, the worse.

    Args:
        kind: ``"count"``: a fraction; by how much it exceeds the worst twin's. ``"low"``: how many times it has been
            halved beside the median twin. ``"high"``: how many times it has been doubled beside the largest twin.
        value: The reading.
        twins: The same of each twin.

    Returns:
        The score, ``None`` where a ratio has nothing to be compared with.

    Example:
        >>> score("count", 0.25, [0.0, 0.05])
        0.2
        >>> score("low", 4.0, [15.0, 16.0, 17.0]), score("high", 4.0, [0.5, 1.0])
        (2.0, 2.0)
    """
    known = [twin for twin in twins if math.isfinite(twin)]
    if kind == "count":
        return value - max(known, default=0.0)
    if not known:
        return None
    ratio = statistics.median(known) / value if kind == "low" and value else value / (max(known) or 1.0)
    if kind == "low" and not value:
        return _INFINITE if statistics.median(known) else 0.0
    return math.log2(ratio) if ratio else -_INFINITE


def findings(
    here: Signals, twins: Sequence[Signals], *, loss: float | None = None, twin_losses: Sequence[float] = ()
) -> list[Finding]:
    """Everything that is worth a note, the most severe first.

    Args:
        here: The readings of the network.
        twins: Those of fresh twins, none if there are none.
        loss: The network's loss on the batch.
        twin_losses: The twins' losses.
    """
    found = []
    for (mechanism, metric, layer), reading in here.items():
        others = tuple(twin[mechanism, metric, layer].value for twin in twins if (mechanism, metric, layer) in twin)
        if mechanism == "non_finite":
            if reading.value > 0:
                sentence = f"{_percent(reading.value)} of the {metric} of {layer} are not finite"
                args = (layer, f"non_finite_{metric}", reading.value, others, 0, reading.value, sentence)
                found.append(Finding(mechanism, "severe", *args))
            continue
        if metric not in KINDS:
            continue
        got = score(KINDS[metric], reading.value, others)
        if metric == "gradient_norm" and got is not None:
            got = beside_loss(got, loss, twin_losses)
        severity = None if got is None or _is_none(metric, reading) else severity_of(metric, got, reading.size)
        if severity is None or got is None:
            continue
        if metric == "gradient_norm" and layer != WHOLE:
            severity = "note"  # where a gradient is lost helps to read the finding; one tensor alone is none
        if not others and severity == "severe":
            severity = "warning"  # how a fresh network would look is not known
        sentence = _sentence(metric, layer, reading, others)
        weight = weight_of(_STUDIED.get(metric, metric))
        found.append(
            Finding(mechanism, severity, layer, metric, reading.value, others, reading.size, got, sentence, weight)
        )
    order = list(MECHANISMS)
    return sorted(found, key=lambda f: (-SEVERITIES.index(f.severity), order.index(f.mechanism), -f.score))


def severity_of(metric: str, got: float, size: int) -> Severity | None:
    """The severity of a score; a single unit more than any twin has is never above a note, unless it is a direction.

    (Units are exact combinations of others for a reason; that one is dead may be chance.)

    Args:
        metric: Its metric.
        got: The score.
        size: Units of the layer, for a count of units; else 0.
    """
    limits = thresholds().get(metric, Thresholds(math.inf, math.inf, math.inf))
    alone = KINDS[metric] == "count" and got * size < 1.5 and metric != "dependent_fraction"
    for name in reversed(SEVERITIES):
        if got >= getattr(limits, name) - 1e-9 and not (alone and name != "note"):
            return name
    return None


def _is_none(metric: str, reading: Reading) -> bool:
    return KINDS[metric] == "count" and reading.value == 0


def beside_loss(got: float, loss: float | None, twin_losses: Sequence[float]) -> float | None:
    """The score of a gradient norm beside the loss: where that has fallen, what has been learned needs no more steps.

    Twice the halvings of the loss beside the median twin are taken off; ``None`` where nothing can be compared.
    """
    known = [twin for twin in twin_losses if math.isfinite(twin) and twin > 0]
    if loss is None or not math.isfinite(loss) or loss <= 0 or not known:
        return None
    return got - max(0.0, math.log2(statistics.median(known) / loss)) * 2


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def _sentence(metric: str, layer: str, reading: Reading, twins: Sequence[float]) -> str:
    value, size = reading
    if metric in _NAMES:
        count = round(value * size)
        beside = f" (fresh twins: {_range([round(twin * size) for twin in twins])})" if twins else ""
        return f"{layer}: {count} of {size} units {_NAMES[metric]}{beside}"
    beside = f" (fresh twins: {_range(twins)})" if twins else ""
    where = "" if layer == WHOLE else f"{layer}: "
    if metric == "certain_and_wrong":
        return f"{where}{_percent(value)} of the samples get a wrong answer with certainty above 95 %{beside}"
    words = {
        "effective_rank": "effective rank of the features",
        "participation_ratio": "participation ratio of the features",
        "weight_growth": "root mean square of the weights",
        "largest_row": "root mean square of the largest row of weights",
        "gradient_norm": "norm of the gradient",
        "output_deviation": "deviation of the outputs over the samples",
    }
    return f"{where}{words[metric]} is {value:.3g}{beside}"


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
