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
from benchmarks.prediction.problems import PLAIN  # noqa: E402
from benchmarks.prediction.scores import (  # noqa: E402
    Interval,
    Lead,
    auroc_over_seeds,
    lead_times,
    mean_over_seeds,
    onset_of,
    partial_rank_correlation,
    rank_correlation,
)

RECORDS = ROOT / "benchmarks" / "results" / "prediction"
EXPECTATIONS = Path(__file__).with_name("expectations.json")
PAGE = ROOT / "docs" / "results" / "prediction.md"
FIGURE = ROOT / "docs" / "images" / "prediction.svg"
EVIDENCE = ROOT / "pliant" / "diagnosis" / "evidence.json"
LIVE = RECORDS / "live"
MILDER_FROM = 10_000
"""Added to the seeds of milder runs, so that they are seeds of their own."""
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

    @cached_property
    def milder(self) -> list[int]:
        """Those whose networks were trained so that less is lost."""
        return [seed for seed in self.seeds if seed >= MILDER_FROM]

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
        return mean_over_seeds([correlation(*paired(scores[seed], self.gaps[seed])) for seed in self.seeds])

    def beyond_the_clock(self, name: str) -> Interval:
        """The same, given the number of the task."""
        return self.within(name, lambda a, b: partial_rank_correlation(a, b, range(len(a))))

    def event_auroc(
        self, name: str, where: str = "incoming", gaps: Mapping[int, Sequence[float]] | None = None
    ) -> Interval:
        """Chance that a boundary with a gap above the threshold scores higher than one without, whatever their runs."""
        scores, gaps = self.scores(name, where), self.gaps if gaps is None else gaps
        level = self.expected["threshold"]
        both = [paired(scores[seed], gaps[seed]) for seed in self.seeds]
        return auroc_over_seeds([pair[0] for pair in both], [[gap > level for gap in pair[1]] for pair in both])

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
    both: Mapping[str, Interval]

    @property
    def together(self) -> Interval:
        """The mean over streams of the AUROC over plain and milder runs together."""
        return mean_over(list(self.both.values()))

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


def read(folder: Path, expected: Mapping[str, Any]) -> tuple[dict[str, Runs], dict[str, Runs]]:
    """All records by stream: those of plain training, and these together with the milder ones."""
    found: dict[str, dict[int, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(record["stream"], {})[record["seed"]] = record
    if not any(name in found for name in PLAIN):
        raise SystemExit(f"no record in {folder}: python benchmarks/prediction/study.py")
    for name, records in found.items():
        if len({json.dumps(record["settings"], sort_keys=True) for record in records.values()}) > 1:
            raise SystemExit(f"the records of {name} in {folder} are of different settings")
    plain = {name: Runs(name, found[name], expected) for name in PLAIN if name in found}
    together = {
        name: Runs(
            name, {**found[name], **{MILDER_FROM + seed: r for seed, r in found[name + "_milder"].items()}}, expected
        )
        for name in plain
        if name + "_milder" in found
    }
    return plain, together


def judge(streams: Mapping[str, Runs], together: Mapping[str, Runs], name: str) -> Found:
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
        {key: runs.event_auroc(name) for key, runs in together.items()},
    )


def claims(found: Mapping[str, Found]) -> dict[str, bool]:
    """Whether what was expected came true."""
    real = [name for name in found if name not in BASELINES]
    overall = {name: item.overall.mean for name, item in found.items()}
    found_both = {name: item.together.mean for name, item in found.items() if item.both}
    later = {
        "clock_fails": found_both["task"] < 0.75,
        "rank_holds": found_both["effective_rank"] >= 0.75,
        "weights_lead": found_both["weight_magnitude"] > found_both["dead_fraction"],
    } if found_both else {}  # fmt: skip
    return later | {
        "no_oracle": all(found[name].worst < 0.9 for name in real),
        "units": found["dead_fraction"].worst >= 0.7,
        "rank": found["effective_rank"].worst >= 0.7,
        "weights": all(abs(i.mean) < 0.3 for i in found["weight_magnitude"].beyond.values()),
        "gradient": any(0.3 <= i.mean <= 0.7 for i in found["gradient_norm"].auroc.values()),
        "clock": sum(overall["task"] > overall[name] for name in real) > len(real) / 2,
        "persistence": all(overall["previous_gap"] > overall[name] for name in real),
        "clones": found["cloned_fraction"].worst < 0.7,
    }


OPPOSITE = ("gradient_norm",)
"""The diagnosis looks for gradients that vanish, where large ones had been expected to be the bad sign."""


def evidence(streams: Mapping[str, Runs], together: Mapping[str, Runs], found: Mapping[str, Found]) -> dict[str, Any]:
    """What the diagnosis weighs its findings by: metric to what the study says of it.

    Over plain and milder runs together where there are both: among plain ones alone, age tells as much as most
    metrics.
    """
    direction = next(iter(streams.values())).expected["direction"]
    commits = {r["environment"]["commit"] for runs in (together or streams).values() for r in runs.records.values()}

    def entry(item: Found) -> dict[str, Any]:
        by_stream = {key: i for key, i in (item.both or item.auroc).items() if not math.isnan(i.mean)}
        sign = direction[item.name]
        if item.name in OPPOSITE:
            by_stream = {key: Interval(1 - i.mean, 1 - i.high, 1 - i.low) for key, i in by_stream.items()}
            sign = -sign
        overall = mean_over(list(by_stream.values()))
        return {
            "worse": "high" if sign > 0 else "low",
            "auroc": round(overall.mean, 3),
            "interval": [round(overall.low, 3), round(overall.high, 3)],
            "streams": {key: round(interval.mean, 3) for key, interval in by_stream.items()},
            "seeds": min(len(runs.seeds) - len(runs.milder) for runs in (together or streams).values()),
            "commit": " ".join(sorted(commits)),
        }

    about = {
        "text": "AUROC of each metric for a relative gap of the probe above the threshold, where high or low values "
        "are worse, as stated: mean over streams, 95 % interval over seeds, and each stream. 0.5 is chance; below it, "
        "the metric pointed the wrong way. Written by python benchmarks/prediction/analysis.py.",
        "threshold": next(iter(streams.values())).expected["threshold"],
        "milder_seeds": {key: len(runs.milder) for key, runs in together.items()},
    }
    return {"about": about, **{name: entry(item) for name, item in found.items() if name not in BASELINES}}


def live_agreement(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Gaps of the live twin and of the probe at the same boundaries, and their rank correlation, by stream."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        pairs = [(a, b) for a, b in zip(record["live"], record["probe"], strict=False) if None not in (a, b)]
        found.setdefault(record["stream"], []).append({"seed": record["seed"], "pairs": pairs})
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if something is out of date")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--show", action="store_true", help="print the page and write nothing")
    options = parser.parse_args(arguments)
    expected = json.loads(EXPECTATIONS.read_text(encoding="utf-8"))
    streams, together = read(options.records, expected)
    found = {name: judge(streams, together, name) for name in expected["direction"]}
    live = live_agreement(options.records / LIVE.name)
    texts = {
        PAGE: page(streams, together, found, claims(found), expected, BASELINES, live),
        FIGURE: figure(streams, found, BASELINES),
        EVIDENCE: json.dumps(evidence(streams, together, found), indent=1) + "\n",
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
