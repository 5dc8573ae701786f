"""Sentences and tables of the studies' pages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.prediction.page import number, table
from pliant.intervals import Estimate, estimate

__all__ = ["claims_section", "commits", "exact", "interval", "mean", "number", "provenance", "table", "values"]


def values(items: Iterable[float | None]) -> list[float]:
    """Null in a record is not a number."""
    return [math.nan if item is None else float(item) for item in items]


def interval(found: Estimate, digits: int = 2) -> str:
    """Mean and 95 % interval, unless that is narrower than the last digit; with fewer seeds than there are, how many.

    >>> interval(estimate([1.0, 2.0, 3.0])), interval(estimate([0.5, 0.5])), interval(estimate([2.0, math.nan]))
    ('2.00 [−0.48, 4.48]', '0.50', '2.00 (1 of 2 seeds)')
    """
    if not found.num:
        return "–"
    low, middle, high = (number(value, digits) for value in (found.low, found.mean, found.high))
    bounds = "" if found.num == 1 or low == middle == high else f" [{low}, {high}]"
    left = f" ({found.num} of {found.num + found.num_excluded} seeds)" if found.num_excluded else ""
    return f"{number(found.mean, digits)}{bounds}{left}"


def mean(items: Iterable[float | None], digits: int = 2) -> str:
    """The same, from values over seeds."""
    return interval(estimate(values(items)), digits)


def exact(items: Iterable[float | None]) -> str:
    """Smallest to largest in powers of ten: for what should be rounding."""
    finite = [value for value in values(items) if math.isfinite(value)]
    if not finite:
        return "–"
    low, high = f"{min(finite):.0e}".replace("e-0", "e-"), f"{max(finite):.0e}".replace("e-0", "e-")
    low, high = ("0" if text == "0e+00" else text for text in (low, high))
    return low if low == high else f"{low} to {high}"


def commits(records: Sequence[Mapping[str, Any]]) -> str:
    """The commits that the records were made at."""
    found = sorted({str(record["environment"]["commit"]) for record in records})
    return f"commit{'s' if len(found) > 1 else ''} {', '.join(found)}"


def provenance(records: Sequence[Mapping[str, Any]], command: str, what: str) -> str:
    """The first sentences of a page."""
    seeds = sorted({int(record["seed"]) for record in records})
    seconds = sum(float(record["seconds"]) for record in records)
    took = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} seconds"
    dirty = " The code had changes that were not committed." if any(
        record["environment"]["uncommitted"] for record in records
    ) else ""  # fmt: skip
    return (
        f"Written by `python benchmarks/manifolds/{command} page` from the records of `python benchmarks/manifolds/"
        f"{command} run` ({what}, seeds {seeds[0]} to {seeds[-1]}, {commits(records)}, PyTorch "
        f"{records[0]['environment']['torch']}, {took} of one core).{dirty} Intervals are 95 % t "
        "intervals over seeds; one that is narrower than the last digit is left out."
    )


def claims_section(
    expected: Mapping[str, Any], came_true: Mapping[str, bool], heading: str = "## Expectations"
) -> list[str]:
    """What was written down before the runs, and whether it came true."""
    rows = [[claim["text"], "yes" if came_true[claim["id"]] else "**no**"] for claim in expected["claims"]]
    kept = sum(came_true[claim["id"]] for claim in expected["claims"])
    return [
        heading,
        f"Written down in `benchmarks/manifolds/expectations.json` {expected['written']}; {kept} of {len(rows)} came "
        "true.",
        table(["expected", "came true"], rows).replace("|--:|", "|:--|"),
    ]
