"""What the series in a record are called on paper: titles, units and a sentence for each."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pliant.intervals import Estimate

__all__ = ["METRICS", "Metric", "format_estimate", "format_interval", "format_p", "format_value", "metric_info"]


@dataclass(frozen=True)
class Metric:
    """How one series of the records is shown.

    Args:
        name: Its name in the records.
        title: Its name on paper.
        text: One sentence that says what it is.
        percent: Whether it is a fraction in ``[0, 1]``, shown in percent.
        full_axis: Whether its axis always runs from 0 to 100 %.
        order: Its place in a report.
        better: ``"higher"``, ``"lower"``, or nothing where neither is better in itself.
    """

    name: str
    title: str
    text: str = ""
    percent: bool = False
    full_axis: bool = False
    order: int = 99
    better: str = ""

    @property
    def sign(self) -> int:
        """1, or -1 where less is better: times this, larger is better."""
        return -1 if self.better == "lower" else 1

    @property
    def words(self) -> str:
        """The title within a sentence."""
        return self.title[:1].lower() + self.title[1:]

    @property
    def unit(self) -> str:
        """``"%"`` or nothing."""
        return "%" if self.percent else ""


_KNOWN = (
    Metric(
        "online_accuracy",
        "Accuracy while learning",
        "Mean over a whole task of the accuracy on each batch, taken before the network learns from it: how fast and "
        "how well a task is learnt.",
        percent=True,
        full_axis=True,
        better="higher",
    ),
    Metric(
        "test_accuracy",
        "Held-out accuracy",
        "Accuracy at the end of each task on examples of that task that were never trained on.",
        percent=True,
        full_axis=True,
        better="higher",
    ),
    Metric(
        "end_accuracy",
        "Accuracy at the end of a task",
        "Accuracy on the task's own training examples after its last step.",
        percent=True,
        full_axis=True,
        better="higher",
    ),
    Metric(
        "past_accuracy",
        "Accuracy on earlier tasks",
        "Accuracy on held-out examples of up to five earlier tasks, after each task: what is still remembered.",
        percent=True,
        full_axis=True,
        better="higher",
    ),
    Metric(
        "backward_transfer",
        "Backward transfer",
        "Score on up to five earlier tasks after each task, minus the score of each right after it was learnt. Below "
        "zero is forgetting, where more is better.",
    ),
    Metric(
        "dead_fraction",
        "Dead units",
        "Hidden units whose output is exactly zero on every example measured; most of them never recover.",
        percent=True,
    ),
    Metric(
        "dormant_fraction",
        "Dormant units",
        "Hidden units that are hardly active compared with the average unit of their layer; dead units are among them.",
        percent=True,
    ),
    Metric(
        "effective_rank_fraction",
        "Effective rank",
        "In how many directions the hidden activations vary, as a share of the layer's width.",
        percent=True,
    ),
    Metric(
        "stable_rank",
        "Stable rank",
        "Squared Frobenius norm over squared spectral norm of the hidden activations.",
    ),
    Metric(
        "weight_magnitude",
        "Weight magnitude",
        "Mean absolute value of the weights; growing weights make every step relatively smaller.",
    ),
    Metric(
        "online_return",
        "Return while learning",
        "Mean return of the episodes that ended in a task, or the mean reward of its steps where the stream says so, "
        "while the agent explores and learns.",
        better="higher",
    ),
    Metric(
        "end_return",
        "Return at the end of a task",
        "The return over the last rollout of a task: what was learnt of it.",
        better="higher",
    ),
    Metric(
        "policy_entropy",
        "Policy entropy",
        "Mean entropy of the policy in the states that it visits, in nats: how much it still explores.",
    ),
    Metric(
        "state_coverage",
        "State coverage",
        "Entropy of how often the cells of a fixed grid of states were visited, as a share of the largest possible.",
        percent=True,
    ),
    Metric(
        "policy_dormant_fraction",
        "Dormant units of the policy",
        "Dormant units of the policy's network alone, in the states that the agent visits.",
        percent=True,
    ),
    Metric(
        "value_dormant_fraction",
        "Dormant units of the value",
        "Dormant units of the value's network alone, in the states that the agent visits.",
        percent=True,
    ),
    Metric(
        "approx_kl",
        "Change of the policy",
        "Estimated divergence of the policy before and after the last round of updates of a task.",
    ),
    Metric(
        "value_loss", "Error of the value", "Mean squared error of the value in the last round of updates of a task."
    ),
    Metric(
        "explained_variance",
        "Explained variance of returns",
        "Share of the variance of the returns that the value explains, before the last round of updates of a task.",
    ),
    Metric("num_resets", "Units reset", "How many hidden units the method has replaced."),
    Metric("loss", "Loss", "Mean training loss over the task.", better="lower"),
)

_SCORES = {
    "auc": ("Area under the ROC curve", "higher"),
    "f1": ("F1", "higher"),
    "return": ("Return", "higher"),
    "mse": ("Squared error", "lower"),
    "rmse": ("Root of the squared error", "lower"),
    "mae": ("Absolute error", "lower"),
    "log_loss": ("Log loss", "lower"),
    "loss": ("Loss", "lower"),
    "error": ("Error", "lower"),
    "perplexity": ("Perplexity", "lower"),
}
_WHEN = {
    "online": ("{} while learning", "Mean over a whole task, each batch measured before the network learns from it."),
    "test": ("{}, held out", "At the end of each task, on examples of that task that were never trained on."),
    "end": ("{} at the end of a task", "On the task's own training examples after its last step."),
    "past": ("{} on earlier tasks", "On held-out examples of up to five earlier tasks, after each task."),
}

METRICS: dict[str, Metric] = {metric.name: replace(metric, order=i) for i, metric in enumerate(_KNOWN)}
"""The series that the benchmarks write; every other is shown under its own name."""


def metric_info(name: str) -> Metric:
    """How a series is shown, also one that nobody has heard of.

    A series ``online_<score>``, ``test_<score>``, ``end_<score>`` or ``past_<score>`` is better higher or lower as its
    score is, where that is known; of any other score higher is taken to be better, and the title says which score.

    Example:
        >>> metric_info("dead_fraction").title, metric_info("my_own_metric").title
        ('Dead units', 'My own metric')
        >>> metric_info("online_mse").better, metric_info("test_auc").better, metric_info("my_own_metric").better
        ('lower', 'higher', '')
    """
    if name in METRICS:
        return METRICS[name]
    when, _, score = name.partition("_")
    if when in _WHEN and score:
        title, better = _SCORES.get(score, (score.replace("_", " ").capitalize(), "higher"))
        like = METRICS[f"{when}_accuracy"]
        return Metric(name, _WHEN[when][0].format(title), _WHEN[when][1], order=like.order, better=better)
    title = name.removesuffix("_fraction").replace("_", " ").capitalize()
    return Metric(name, title, percent=name.endswith("_fraction"))


def format_value(value: float, metric: Metric, *, signed: bool = False) -> str:
    """A value in the metric's unit, without the unit: percent to one decimal, other numbers to three digits.

    Example:
        >>> format_value(0.12345, metric_info("online_accuracy"))
        '12.3'
        >>> format_value(-0.5, metric_info("online_accuracy"), signed=True)
        '−50.0'
        >>> format_value(0.0123456, metric_info("weight_magnitude"))
        '0.0123'
    """
    if not math.isfinite(value):
        return "–"
    text = f"{100 * value:+.1f}" if metric.percent else _three_digits(value)
    if float(text) == 0:
        return text.lstrip("+-")
    return text.replace("-", "−") if signed else text.removeprefix("+").replace("-", "−")


def format_estimate(value: Estimate, metric: Metric, *, signed: bool = False) -> str:
    """``mean ± half width``; a mean of one seed says that it has no interval.

    Example:
        >>> from pliant.intervals import estimate
        >>> format_estimate(estimate([0.5, 0.6]), metric_info("online_accuracy"))
        '55.0 ± 63.5'
        >>> format_estimate(estimate([0.5]), metric_info("online_accuracy"))
        '50.0 ± ?'
    """
    if value.num == 0:
        return "–"
    half = format_value(value.half_width, metric) if value.num > 1 else "?"
    return f"{format_value(value.mean, metric, signed=signed)} ± {half}"


def format_interval(value: Estimate, digits: int = 2) -> str:
    """``value [low, high]``, for intervals that are not symmetric.

    Example:
        >>> format_interval(Estimate(0.756, 0.5, 0.901, 10)), format_interval(Estimate(2.0, math.nan, math.nan, 1))
        ('0.76 [0.50, 0.90]', '2.00 [?]')
    """
    if not math.isfinite(value.mean):
        return "–"
    bounds = [f"{b:.{digits}f}" for b in (value.low, value.high)] if math.isfinite(value.half_width) else ["?"]
    return f"{value.mean:.{digits}f} [{', '.join(bounds)}]".replace("-", "−")


def format_p(value: float) -> str:
    """A p-value as one reads it.

    Example:
        >>> format_p(0.0312), format_p(1e-9), format_p(1.0), format_p(math.nan)
        ('0.031', '<0.001', '1.000', '–')
    """
    return "–" if math.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def _three_digits(value: float) -> str:
    """Three significant digits with a sign, never in exponents unless the number is far from one."""
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        decimals = 2 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:+.{decimals}f}"
    return f"{value:+.2e}"
