"""What scores of many seeds, streams and methods say together: aggregates, comparisons, tuning, stability, cost.

Everything here takes plain numbers, where larger is better unless a function says otherwise, and needs numpy alone.
Means over seeds with Student's intervals, and paired differences, are in :mod:`pliant.intervals`. A value that is NaN
is left out and counted; ``-inf`` is a value: a run that diverged is worse than every other, which a rank, a profile and
an interquartile mean can take in, and a mean cannot.
"""

from pliant.statistics.aggregates import (
    interquartile_mean,
    iqm,
    mean_ranks,
    performance_profile,
    probability_of_improvement,
    rank_agreement,
)
from pliant.statistics.bootstrap import bootstrap, bootstrap_each, expanded_level
from pliant.statistics.comparisons import holm, p_value
from pliant.statistics.cost import at_budget, cost_per_gain
from pliant.statistics.series import (
    Times,
    area,
    average,
    backward_transfer,
    forgetting,
    recent_transfer,
    time_to_loss,
    time_to_threshold,
    times,
)
from pliant.statistics.tuning import BestOf, best_of_k

__all__ = [
    "BestOf",
    "Times",
    "area",
    "at_budget",
    "average",
    "backward_transfer",
    "best_of_k",
    "bootstrap",
    "bootstrap_each",
    "cost_per_gain",
    "expanded_level",
    "forgetting",
    "holm",
    "interquartile_mean",
    "iqm",
    "mean_ranks",
    "p_value",
    "performance_profile",
    "probability_of_improvement",
    "rank_agreement",
    "recent_transfer",
    "time_to_loss",
    "time_to_threshold",
    "times",
]
