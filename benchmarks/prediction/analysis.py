"""How well does each metric predict what a probe finds? Reads the records of ``study.py`` and nothing else.

python benchmarks/prediction/analysis.py            # writes the page, the figure and pliant/diagnosis/evidence.json
python benchmarks/prediction/analysis.py --check    # exit code 1 if they are not what the records say
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.prediction.page import figure, page  # noqa: E402
from benchmarks.prediction.scores import (  # noqa: E402
    Interval,
    Lead,
    auroc,
    bootstrap,
    lead_times,
    onset_of,
    partial_rank_correlation,
    rank_correlation,
)

RECORDS = ROOT / "benchmarks" / "results" / "prediction"
EXPECTATIONS = Path(__file__).with_name("expectations.json")
PAGE = ROOT / "docs" / "results" / "prediction.md"
FIGURE = ROOT / "docs" / "images" / "prediction.svg"
EVIDENCE = ROOT / "pliant" / "diagnosis" / "evidence.json"
BASELINES = ("task", "loss", "end_loss", "previous_gap")
"""What needs no metric: the number of the task, the loss on the task to come, that at the end of the last one, and what
the last probe found."""


@dataclass(frozen=True)
class Runs:
    """The records of one stream.

    Attributes:
        name: The stream.
        records: By seed.
        expected: What was written down before.
    """

    name: str
    records: Mapping[int, Mapping[str, Any]]
    expected: Mapping[str, Any]

    @property
    def seeds(self) -> list[int]:
        """The seeds."""
        return sorted(self.records)

    def boundaries(self, seed: int) -> Sequence[Mapping[str, Any]]:
        """Those before which something had been learnt."""
        return self.records[seed]["boundaries"][1:]

    @cached_property
    def gaps(self) -> dict[int, list[float]]:
        """Relative gaps by seed: 0 learns as well as fresh networks, 1 makes none of their progress."""
        return {seed: [relative(b, "gap") for b in self.boundaries(seed)] for seed in self.seeds}

    @cached_property
    def areas(self) -> dict[int, list[float]]:
        """The same for the mean loss on the way."""
        return {seed: [relative(b, "area") for b in self.boundaries(seed)] for seed in self.seeds}

    def scores(self, name: str, where: str = "incoming") -> dict[int, list[float]]:
        """A metric at every boundary, its sign such that higher should be worse; NaN where it has no value."""
        sign = self.expected["direction"][name]
        found: dict[int, list[float]] = {}
        for seed in self.seeds:
            found[seed] = [sign * value_of(self.records[seed]["boundaries"], i + 1, name, where)
                           for i in range(len(self.boundaries(seed)))]  # fmt: skip
        return found

    def within(self, name: str, correlation: Callable[..., float] = rank_correlation) -> Interval:
        """Mean over runs of the rank correlation with the gap within a run."""
        scores = self.scores(name)
        each = {seed: correlation(*paired(scores[seed], self.gaps[seed])) for seed in self.seeds}
        return bootstrap(self.seeds, lambda seeds: sum(each[seed] for seed in seeds) / len(seeds))

    def beyond_the_clock(self, name: str) -> Interval:
        """The same, given the number of the task."""
        return self.within(name, lambda a, b: partial_rank_correlation(a, b, range(len(a))))

    def event_auroc(
        self, name: str, where: str = "incoming", gaps: Mapping[int, Sequence[float]] | None = None
    ) -> Interval:
        """Chance that a boundary with a gap above the threshold scores higher than one without, whatever their runs."""
        scores, gaps = self.scores(name, where), self.gaps if gaps is None else gaps
        level = self.expected["threshold"]
        both = {seed: paired(scores[seed], gaps[seed]) for seed in self.seeds}

        def statistic(seeds: list[int]) -> float:
            values = [value for seed in seeds for value in both[seed][0]]
            events = [gap > level for seed in seeds for gap in both[seed][1]]
            return auroc(values, events)

        return bootstrap(self.seeds, statistic)

    def lead(self, name: str) -> Lead:
        """How many tasks before the onset an alarm comes."""
        scores = self.scores(name)
        pairs = [paired(scores[seed], self.gaps[seed]) for seed in self.seeds]
        return lead_times(
            [pair[0] for pair in pairs],
            [pair[1] for pair in pairs],
            self.expected["threshold"],
            self.expected["long_before"],
        )

    @cached_property
    def onsets(self) -> list[int | None]:
        """The task of each run at which gaps begin."""
        found = [onset_of(self.gaps[seed], self.expected["threshold"]) for seed in self.seeds]
        return [None if onset is None else onset + 1 for onset in found]


def relative(boundary: Mapping[str, Any], key: str) -> float:
    """A difference over the progress of the fresh twins; one that diverged is as bad as can be."""
    value = boundary[key]
    return math.inf if value is None else value / boundary["progress"]


def value_of(boundaries: Sequence[Mapping[str, Any]], index: int, name: str, where: str) -> float:
    """One metric, or one of the baselines, at one boundary."""
    here = boundaries[index]
    if name == "task":
        return float(index)
    if name == "previous_gap":
        return relative(boundaries[index - 1], "gap")
    if name == "end_loss":
        return math.nan if here["end_loss"] is None else here["end_loss"]
    values = here[where].get(name) or [None]
    return math.nan if None in values else sum(values) / len(values)


def paired(scores: Sequence[float], gaps: Sequence[float]) -> tuple[list[float], list[float]]:
    """Both, without the boundaries at which the metric has no value."""
    kept = [(score, gap) for score, gap in zip(scores, gaps, strict=True) if not math.isnan(score)]
    return [score for score, _ in kept], [gap for _, gap in kept]


@dataclass(frozen=True)
class Found:
    """What the study says of one metric: by stream, and in the mean over streams."""

    name: str
    within: Mapping[str, Interval]
    beyond: Mapping[str, Interval]
    auroc: Mapping[str, Interval]
    trained: Mapping[str, Interval]
    area: Mapping[str, Interval]
    lead: Mapping[str, Lead]
    overall: Interval

    @property
    def worst(self) -> float:
        """The lowest AUROC of all streams that it has a value on."""
        return min(interval.mean for interval in self.auroc.values() if not math.isnan(interval.mean))


def mean_over(intervals: Sequence[Interval]) -> Interval:
    """The mean over the streams with a value; their seeds are independent, so half widths add in squares."""
    intervals = [interval for interval in intervals if not math.isnan(interval.mean)]
    mean = sum(i.mean for i in intervals) / len(intervals)
    low = math.sqrt(sum((i.mean - i.low) ** 2 for i in intervals)) / len(intervals)
    high = math.sqrt(sum((i.high - i.mean) ** 2 for i in intervals)) / len(intervals)
    return Interval(mean, mean - low, mean + high)


def read(folder: Path, expected: Mapping[str, Any]) -> dict[str, Runs]:
    """All records by stream."""
    found: dict[str, dict[int, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(record["stream"], {})[record["seed"]] = record
    if not found:
        raise SystemExit(f"no record in {folder}: python benchmarks/prediction/study.py")
    for name, records in found.items():
        if len({json.dumps(record["settings"], sort_keys=True) for record in records.values()}) > 1:
            raise SystemExit(f"the records of {name} in {folder} are of different settings")
    return {name: Runs(name, records, expected) for name, records in found.items()}


def judge(streams: Mapping[str, Runs], name: str) -> Found:
    """One metric on all streams."""
    of_auroc = {key: runs.event_auroc(name) for key, runs in streams.items()}
    has_trained = name not in BASELINES or name == "loss"
    return Found(
        name,
        {key: runs.within(name) for key, runs in streams.items()},
        {key: runs.beyond_the_clock(name) for key, runs in streams.items()},
        of_auroc,
        {key: runs.event_auroc(name, "trained") for key, runs in streams.items()} if has_trained else {},
        {key: runs.event_auroc(name, gaps=runs.areas) for key, runs in streams.items()},
        {key: runs.lead(name) for key, runs in streams.items()},
        mean_over(list(of_auroc.values())),
    )


def claims(found: Mapping[str, Found]) -> dict[str, bool]:
    """Whether what was expected came true."""
    real = [name for name in found if name not in BASELINES]
    overall = {name: item.overall.mean for name, item in found.items()}
    return {
        "no_oracle": all(found[name].worst < 0.9 for name in real),
        "units": found["dead_fraction"].worst >= 0.7,
        "rank": found["effective_rank"].worst >= 0.7,
        "weights": all(abs(i.mean) < 0.3 for i in found["weight_magnitude"].beyond.values()),
        "gradient": any(0.3 <= i.mean <= 0.7 for i in found["gradient_norm"].auroc.values()),
        "clock": sum(overall["task"] > overall[name] for name in real) > len(real) / 2,
        "persistence": all(overall["previous_gap"] > overall[name] for name in real),
        "clones": found["cloned_fraction"].worst < 0.7,
    }


def evidence(streams: Mapping[str, Runs], found: Mapping[str, Found]) -> dict[str, Any]:
    """What the diagnosis weighs its findings by; see ``pliant/diagnosis`` for how it is read."""

    def entry(item: Found) -> dict[str, Any]:
        low, high = item.overall.low, item.overall.high
        return {
            "auroc": round(item.overall.mean, 3),
            "interval": [round(low, 3), round(high, 3)],
            "worst": round(item.worst, 3),
            "streams": {
                key: round(interval.mean, 3) for key, interval in item.auroc.items() if not math.isnan(interval.mean)
            },
        }

    records = [record for runs in streams.values() for record in runs.records.values()]
    return {
        "about": "AUROC of each metric, in its unhealthy direction, for a relative gap of the probe above the "
        "threshold: the mean over streams, its 95 % interval over seeds, the lowest of a stream. 0.5 is chance, "
        "below it the metric pointed the wrong way. Written by python benchmarks/prediction/analysis.py.",
        "threshold": next(iter(streams.values())).expected["threshold"],
        "seeds": {key: len(runs.seeds) for key, runs in streams.items()},
        "commits": sorted({record["environment"]["commit"] for record in records}),
        "metrics": {name: entry(item) for name, item in found.items() if name not in BASELINES},
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if something is out of date")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--show", action="store_true", help="print the page and write nothing")
    options = parser.parse_args(arguments)
    expected = json.loads(EXPECTATIONS.read_text(encoding="utf-8"))
    streams = read(options.records, expected)
    found = {name: judge(streams, name) for name in expected["direction"]}
    texts = {
        PAGE: page(streams, found, claims(found), expected, BASELINES),
        FIGURE: figure(streams, found, BASELINES),
        EVIDENCE: json.dumps(evidence(streams, found), indent=1) + "\n",
    }
    if options.show:
        print(texts[PAGE])
        return 0
    late = [path for path, text in texts.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if options.check:
        for path in late:
            print(f"{path.relative_to(ROOT)} is not what the records say: python benchmarks/prediction/analysis.py")
        return 1 if late else 0
    for path in late:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
