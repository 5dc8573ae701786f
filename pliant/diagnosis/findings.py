"""What a diagnosis is made of: findings, and the page of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pliant.mechanisms import MECHANISMS, Mechanism

if TYPE_CHECKING:
    from pliant.diagnosis.traps import Trap

__all__ = ["SEVERITIES", "AttachedMethod", "CausalTest", "Diagnosis", "Finding", "Severity", "Verdict", "Weight"]

Severity = Literal["note", "warning", "severe"]
Verdict = Literal["plasticity", "not plasticity", "unknown"]

SEVERITIES: tuple[Severity, ...] = ("note", "warning", "severe")
"""From the mildest."""


@dataclass(frozen=True)
class Weight:
    """How well a metric foretold, in the prediction study, that a network learns a new task worse than a fresh one.

    Attributes:
        metric: The metric of the study.
        auroc: Area under the ROC curve; 0.5 is chance.
        low: Lower bound of its 95 % interval.
        high: Upper bound.
        streams: The streams of the study.
        seeds: Seeds per stream.
        commit: The commit that was measured.
    """

    metric: str
    auroc: float
    low: float
    high: float
    streams: tuple[str, ...]
    seeds: int
    commit: str

    @property
    def strength(self) -> Literal["strong", "weak", "none"]:
        """``"strong"`` if the whole interval is above 0.7, ``"none"`` if it holds 0.5 or less."""
        return "none" if not self.low > 0.5 else "strong" if self.low > 0.7 else "weak"

    def __str__(self) -> str:
        words = {"strong": "a good predictor", "weak": "a weak predictor", "none": "no predictor"}[self.strength]
        return f"{self.metric} was {words} in the study (AUROC {self.auroc:.2f}, {self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Finding:
    """One thing that is not as in a fresh network.

    Attributes:
        mechanism: Name of the mechanism, see :data:`pliant.mechanisms.MECHANISMS`.
        severity: ``"note"``, ``"warning"`` or ``"severe"``.
        layer: Unit group or tensor; ``"model"`` for all of it.
        metric: What was measured.
        value: Its value.
        twins: The same of each fresh twin; empty if there was none to compare with.
        size: Units of the layer where ``value`` is a fraction of them, samples where it is one of these; else 0.
        score: What the thresholds are on: the larger, the worse.
        sentence: What was found, for a reader.
        weight: How well this metric, or the nearest one in the study, predicts lost plasticity; ``None`` if that has
            not been studied.
    """

    mechanism: str
    severity: Severity
    layer: str
    metric: str
    value: float
    twins: tuple[float, ...]
    size: int
    score: float
    sentence: str
    weight: Weight | None = None

    @property
    def about(self) -> Mechanism:
        """The mechanism."""
        return MECHANISMS[self.mechanism]

    @property
    def sureness(self) -> str:
        """How sure it is: what it was compared with, and what its metric is worth."""
        if self.mechanism == "non_finite":
            return "certain: it was counted"
        if not self.twins:
            against = "no fresh twin to compare with"
        else:
            num = len(self.twins)
            is_beyond = all(self.value > twin for twin in self.twins) or all(self.value < twin for twin in self.twins)
            against = f"beyond {'all' if is_beyond else 'most'} of {num} fresh twins" if num > 1 else "beside one twin"
        return f"{against}; {self.weight or f'{self.metric} is not yet weighed by a study'}"


@dataclass(frozen=True)
class CausalTest:
    """What became of the gap to fresh networks when only the size of the weights was changed.

    Attributes:
        is_cause: Whether the rescaled network learns significantly better; ``None`` if the test could not be done.
        sentence: What was found, or why nothing could be.
    """

    is_cause: bool | None
    sentence: str


@dataclass(frozen=True)
class AttachedMethod:
    """Whether a method that is attached has done anything yet.

    Attributes:
        name: The method as its handle writes it.
        has_acted: Whether it has edited anything.
        sentence: What it did, or why it did nothing.
    """

    name: str
    has_acted: bool
    sentence: str


@dataclass(frozen=True)
class Diagnosis:
    """Made by :func:`pliant.diagnose`; ``print`` it, or write :meth:`to_html`.

    Attributes:
        verdict: ``"plasticity"``: mechanisms of lost plasticity were found (or a probe shows the loss itself).
            ``"not plasticity"``: everything was looked at, and nothing beyond notes was found (or a probe shows that
            the network learns as well as fresh ones). ``"unknown"``: something that the verdict needs is missing.
        reason: The verdict in words.
        findings: What was found, the most severe first, then in the order of the mechanisms.
        unknowns: What could not be looked at, and why: part of a verdict "unknown".
        remarks: What else a reader should know.
        facts: Loss, twins, batch and mode.
        traps: Units that are frozen, or copies of each other: how far the weights are from a manifold that gradient
            descent cannot leave, and what leaves it.
        causal: The test of weight growth, if it was done.
        methods: Methods that are attached.
        probe: What the probe said, in words, if there was one.

    Example:
        >>> import torch, pliant
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> with torch.no_grad():
        ...     _ = model[0].bias.fill_(-100.0)
        >>> batch = (torch.randn(64, 4), torch.randint(2, (64,)))
        >>> found = pliant.diagnose(model, batch, torch.nn.functional.cross_entropy)
        >>> found.verdict, found.mechanisms[0]
        ('plasticity', 'dead_units')
    """

    verdict: Verdict
    reason: str
    findings: tuple[Finding, ...]
    unknowns: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    traps: tuple[Trap, ...] = ()
    causal: CausalTest | None = None
    methods: tuple[AttachedMethod, ...] = ()
    probe: str | None = None

    @property
    def severity(self) -> Severity | None:
        """The worst severity, ``None`` without findings."""
        return max((finding.severity for finding in self.findings), key=SEVERITIES.index, default=None)

    def of(self, mechanism: str) -> tuple[Finding, ...]:
        """The findings of one mechanism."""
        return tuple(finding for finding in self.findings if finding.mechanism == mechanism)

    @property
    def mechanisms(self) -> tuple[str, ...]:
        """The mechanisms that were found beyond notes, the most severe first."""
        found = (finding.mechanism for finding in self.findings if finding.severity != "note")
        return tuple(dict.fromkeys(found))

    def to_dict(self) -> dict[str, Any]:
        """Everything, as what JSON can hold."""
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "severity": self.severity,
            "mechanisms": list(self.mechanisms),
            "findings": [_finding_dict(finding) for finding in self.findings],
            "unknowns": list(self.unknowns),
            "remarks": list(self.remarks),
            "facts": _jsonable(dict(self.facts)),
            "traps": [_jsonable(asdict(trap)) for trap in self.traps],
            "causal": None if self.causal is None else asdict(self.causal),
            "methods": [asdict(method) for method in self.methods],
            "probe": self.probe,
        }

    def to_html(self, *, title: str = "Can this network still learn?") -> str:
        """A page of its own: no other file, no network, readable without scripts."""
        from pliant.diagnosis.page import html_text

        return html_text(self, title)

    def __str__(self) -> str:
        """The page for a terminal, without colours."""
        from pliant.diagnosis.terminal import text

        return text(self)


def _finding_dict(finding: Finding) -> dict[str, Any]:
    found = {key: value for key, value in asdict(finding).items() if key != "weight"}
    found["weight"] = finding.weight and {**asdict(finding.weight), "strength": finding.weight.strength}
    found["sureness"] = finding.sureness
    found["methods"] = list(finding.about.methods)
    return _jsonable(found)  # type: ignore[no-any-return]


def _jsonable(tree: Any) -> Any:
    """NaN and infinities, which JSON does not have, become words."""
    if isinstance(tree, Mapping):
        return {str(key): _jsonable(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_jsonable(value) for value in tree]
    if isinstance(tree, float) and (tree != tree or tree in (float("inf"), float("-inf"))):
        return str(tree)
    return tree
