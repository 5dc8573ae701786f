"""The page and the figure of the study, from what ``analysis.py`` has found."""

# ruff: noqa: E501

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.prediction.problems import PROBLEMS
from benchmarks.prediction.scores import mean_over_seeds, rank_correlation
from pliant.report.style import CHART_STYLE, COLOUR_STYLE, escape

if TYPE_CHECKING:
    from benchmarks.prediction.analysis import Found, Runs
    from benchmarks.prediction.scores import Interval, Lead

__all__ = ["figure", "page"]

TITLES = {
    "task": "*the task's number*",
    "loss": "*loss on the task to come*",
    "end_loss": "*loss at the end of the last task*",
    "previous_gap": "*gap at the last boundary*",
}


def number(value: float, digits: int = 2) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def interval(found: Interval) -> str:
    return "–" if math.isnan(found.mean) else f"{number(found.mean)} [{number(found.low)}, {number(found.high)}]"


def title(name: str) -> str:
    return TITLES.get(name, f"`{name}`")


def lead(found: Lead) -> str:
    median = "none" if math.isinf(found.median) else number(found.median, 0)
    return "–" if not found.with_onset else f"{median} ({found.caught}/{found.with_onset})"


def verdict(item: Found) -> str:
    """In a word, by fixed bounds on the mean AUROC and on the worst stream."""
    if item.overall.mean >= 0.8 and item.worst >= 0.7:
        return "good"
    if item.overall.low > 0.5 and item.worst >= 0.55:
        return "fair"
    return "wrong way" if item.overall.high < 0.5 else "poor"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|:--" + "|--:" * (len(head) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def page(
    streams: Mapping[str, Runs],
    together: Mapping[str, Runs],
    found: Mapping[str, Found],
    claims: Mapping[str, bool],
    expected: Mapping[str, Any],
    baselines: Sequence[str],
    live: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str:
    """The whole page."""
    order = sorted(found, key=lambda name: -found[name].overall.mean)
    keys = list(streams)
    titles = [PROBLEMS[key].title for key in keys]
    records = [record for runs in streams.values() for record in runs.records.values()]
    all_records = [record for runs in (together or streams).values() for record in runs.records.values()]
    environment = records[0]["environment"]
    commits = ", ".join(sorted({record["environment"]["commit"] for record in all_records}))
    groups: dict[str, list[str]] = {"good": [], "fair": [], "poor": [], "wrong way": []}
    for name in order:
        if name not in baselines:
            groups[verdict(found[name])].append(f"`{name}`")
    kept = sum(claims.values())
    num_milder = sum(len(runs.milder) for runs in together.values())
    milder = f", {num_milder} of milder training" if num_milder else ""
    parts = [
        "# How well metrics predict lost plasticity",
        "Written by `python benchmarks/prediction/analysis.py` from the records of `python benchmarks/prediction/study.py` "
        f"({len(records)} runs of plain training{milder}, commits {commits}, PyTorch {environment['torch']}, one thread of a CPU).",
        "## Question",
        "A metric is read off a network at a task boundary. How well does it tell whether the network will learn the task "
        "to come worse than freshly initialised networks do? That it does is what the probe measures: a copy of the network "
        f"and {records[0]['settings']['twins']} fresh twins learn the task to come from the same batches in the same order.",
        f"The gap is relative: the {expected['target']}. 0 is as good as fresh, 1 makes none of their progress, below 0 the aged "
        f"network is ahead. A gap above {expected['threshold']} is an event. Metrics are read on {expected['measured_on']}.",
        table(
            ["stream", "network", "optimizer", "tasks", "steps, of the probe", "seeds", "boundaries with an event", "onset"],
            [setting(key, runs, expected) for key, runs in streams.items()],
        ),
        "## Answer",
        *answer(groups, found, order, baselines),
        "![AUROC of each metric, plain and milder runs together](../images/prediction.svg)",
        "## Does it tell bad boundaries from good ones?",
        "AUROC: the chance that a boundary with an event has the worse value than one without, whichever runs of the stream "
        "they come from; 0.5 is chance, below it the metric points the wrong way. 95 % bootstrap intervals over seeds. The "
        "verdict is *good* from 0.8 in the mean and 0.7 on the worst stream, *fair* where the interval of the mean is above "
        "0.5 and no stream below 0.55, *wrong way* where the interval is below 0.5, *poor* otherwise. What is set in italics "
        "needs no metric.",
        table(
            ["metric", "mean", *titles, "verdict"],
            [
                [title(n), interval(found[n].overall), *(interval(found[n].auroc[k]) for k in keys),
                 "" if n in baselines else verdict(found[n])]
                for n in order
            ],
        ),
        "## Does it follow the gap within a run?",
        "Spearman's rank correlation between metric and gap over the boundaries of one run, in the unhealthy direction; mean "
        "over runs. Metrics drift with time, and so does the gap: *given the clock* is what is left when the number of the "
        "task is taken out of both.",
        table(
            ["metric", *(f"{t}" for t in titles), *(f"{t}, given the clock" for t in titles)],
            [
                [title(n), *(interval(found[n].within[k]) for k in keys),
                 *(("–" if n == "task" else interval(found[n].beyond[k])) for k in keys)]
                for n in order
            ],
        ),
        "## Does it come early?",
        "An alarm is the first value beyond a level that 5 % of the boundaries of the other runs exceed that lie "
        f"{expected['long_before']} tasks or more before their onset (all boundaries, of a run without one). The onset is the "
        "first of two events in a row. Lead: median over runs of how many tasks before the onset the alarm came, *none* "
        "where half of the runs had no alarm by then; in brackets the runs with an alarm by the onset, of those with an "
        "onset. A long lead is worth little where an alarm is a matter of chance: 5 % of a run's calm boundaries raise one "
        "by construction.",
        table(
            ["metric", *titles],
            [[title(n), *(lead(found[n].lead[k]) for k in keys)] for n in order],
        ),
        *(milder_section(together, found, expected, baselines) if together else []),
        "## On other data, and against another gap",
        "AUROC again, in the mean over streams: read on the task that has just been learnt; and against the mean excess loss "
        "on the way instead of the final one.",
        table(
            ["metric", "task to come, final loss", "task just learnt, final loss", "task to come, mean loss"],
            [
                [title(n), number(found[n].overall.mean), mean(found[n].trained), mean(found[n].area)] for n in order
            ],
        ),
        "## Expectations",
        f"Written down before the runs, in `benchmarks/prediction/expectations.json`, {expected['written']}; {kept} of {len(claims)} came true.",
        table(
            ["expected", "came true"],
            [
                [claim["text"], "yes" if claims[claim["id"]] else "no"]
                for claim in (*expected["claims"], *expected["with_milder"]["claims"])
                if claim["id"] in claims
            ],
        ),
        *(live_section(live) if live else []),
        "## What this does not say",
        "- Three small problems on ReLU networks of two or three layers. On other architectures, activations and sizes the "
        "order may differ; the command takes minutes, so measure yours.",
        "- Nothing here says whether a metric that a method improves has brought plasticity back.",
        "- A correlation with a gap is no cause of it.",
        "- Milder training was not tuned: the weight decay was tried on seed 100, SGD had been seen to keep its plasticity on "
        "seed 100, the smaller step size was not tried. On permuted inputs it is another optimizer, and a metric that reads a "
        "step, or the size of weights, sees that too.",
        "- `saturated_fraction` and `frozen_fraction` say little beyond `dead_fraction` here, because ReLU is the activation "
        "function of all three networks.",
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def answer(
    groups: Mapping[str, Sequence[str]], found: Mapping[str, Found], order: Sequence[str], baselines: Sequence[str]
) -> list[str]:
    """The findings in sentences that the numbers write."""
    best = next(name for name in order if name not in baselines)
    beaten = [n for n in found if n not in baselines and found["task"].overall.mean >= found[n].overall.mean]
    lines = [
        f"- The best metric is `{best}`, with an AUROC of {interval(found[best].overall)} in the mean over streams and "
        f"{number(found[best].worst)} on the worst.",
        *(f"- *{kind.capitalize()}*: {', '.join(names) or 'none'}." for kind, names in groups.items()),
        f"- The task's number alone has {interval(found['task'].overall)}: no worse than {len(beaten)} of the "
        f"{len(found) - len(baselines)} metrics. The gap at the last boundary has "
        f"{interval(found['previous_gap'].overall)}, the loss at the end of the last task "
        f"{interval(found['end_loss'].overall)}.",
    ]
    if found[best].both:
        real = sorted((n for n in found if n not in baselines), key=lambda n: -found[n].together.mean)
        clock = found["task"].together
        better = [n for n in real if found[n].together.mean > clock.mean]
        lines.append(
            f"- With milder runs added, which grow as old and lose less, the task's number falls to {interval(clock)} and "
            f"{len(better)} metrics are above it; the best are "
            + ", ".join(f"`{n}` {interval(found[n].together)}" for n in real[:3])
            + "."
        )
    reversed_ = [f"`{n}`" for n in ("gradient_norm", "entropy") if found[n].overall.high < 0.5]
    if reversed_:
        lines.append(
            f"- {' and '.join(reversed_)} point the other way from what was written down (large gradients and low entropy are "
            "bad): a network that still learns is sure of the last task, so the next one gives it a large loss, large gradients "
            "and low entropy; one that has collapsed gives every input nearly the same unsure answer. Small gradients are the "
            "bad sign, as the diagnosis takes them; low entropy before a task is none."
        )
    return ["\n".join(lines)]


def milder_section(
    together: Mapping[str, Runs], found: Mapping[str, Found], expected: Mapping[str, Any], baselines: Sequence[str]
) -> list[str]:
    """Where age alone does not tell."""
    level = expected["threshold"]
    counts = []
    for key, runs in together.items():
        gaps = [gap for seed in runs.milder for gap in runs.gaps[seed]]
        counts.append(
            f"{PROBLEMS[key].title}: {sum(gap > level for gap in gaps)} of {len(gaps)} boundaries with an event in "
            f"{len(runs.milder)} runs"
        )
    order = sorted(found, key=lambda name: -found[name].together.mean)
    return [
        "## Does it tell plastic networks from others of the same age?",
        "Networks that train longer are older and less plastic, so whatever drifts with age predicts the gap. Milder runs "
        "grow as old and lose less: with weight decay on random labels, with SGD in the place of Adam on permuted inputs, with a "
        f"quarter of the step size on bit flips ({'; '.join(counts)}). AUROC over plain and milder runs together, which are drawn together for the intervals; this is what "
        "the diagnosis weighs its findings by.",
        table(
            ["metric", "mean", *(PROBLEMS[key].title for key in together)],
            [[title(n), interval(found[n].together), *(interval(found[n].both[k]) for k in together)] for n in order],
        ),
    ]


def live_section(live: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """The live twin beside the probe."""
    rows = []
    for key, runs in live.items():
        within = [rank_correlation(*zip(*run["pairs"], strict=True)) for run in runs]
        pairs = [pair for run in runs for pair in run["pairs"]]
        rows.append(
            [
                PROBLEMS[key].title,
                str(len(runs)),
                str(len(pairs)),
                number(rank_correlation(*zip(*pairs, strict=True))),
                interval(mean_over_seeds(within)),
            ]
        )
    return [
        "## The live twin beside the probe",
        "`python benchmarks/prediction/live.py` trains some of the networks once more, the same to the bit, with a live twin "
        "that starts a race at every boundary. Spearman's rank correlation of its gap with that of the probe at the same "
        "boundary, which saw other batches in another order, with other twins; one race each, no mean over races.",
        table(["stream", "runs", "boundaries", "over all of them", "within runs, mean"], rows),
    ]


def setting(key: str, runs: Runs, expected: Mapping[str, Any]) -> list[str]:
    used = next(iter(runs.records.values()))["settings"]
    gaps = [gap for seed in runs.seeds for gap in runs.gaps[seed]]
    events = sum(gap > expected["threshold"] for gap in gaps)
    onsets = sorted(onset for onset in runs.onsets if onset is not None)
    when = f"task {onsets[len(onsets) // 2]} (median of {len(onsets)} runs)" if onsets else "never"
    return [
        PROBLEMS[key].title,
        f"{len(used['hidden'])} × {used['hidden'][0]} {used['activation']}",
        f"{used['optimizer']}, {used['lr']:g}",
        str(used["num_tasks"]),
        f"{used['steps']}, {used['probe_steps']}",
        f"{len(runs.seeds)} ({runs.seeds[0]} to {runs.seeds[-1]})",
        f"{events} of {len(gaps)}",
        when,
    ]


def mean(found: Mapping[str, Interval]) -> str:
    means = [item.mean for item in found.values() if not math.isnan(item.mean)]
    return number(sum(means) / len(means)) if means else "–"


def figure(streams: Mapping[str, Runs], found: Mapping[str, Found], baselines: Sequence[str]) -> str:
    """AUROC of each metric: a dot per stream, a bar for the interval of the mean."""
    of_stream = {name: item.both or item.auroc for name, item in found.items()}
    means = {name: item.together if item.both else item.overall for name, item in found.items()}
    order = sorted(found, key=lambda name: -means[name].mean)
    left, width, top, row = 250, 900, 74, 21
    height = top + row * len(order) + 46

    def x(value: float) -> float:
        return round(left + (width - left - 30) * min(1.0, max(0.0, value)), 1)

    bottom = top + row * len(order)
    lines = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" width="{width}" role="img" '
        'aria-label="AUROC of each metric for a gap of the probe">',
        f'<style>{COLOUR_STYLE}{CHART_STYLE}</style><rect width="100%" height="100%" fill="var(--paper)"/>',
        '<text class="title" x="20" y="30">Does the metric tell that the next task will be learnt worse than by a fresh '
        "network?</text>",
    ]
    for place, key in enumerate(streams):
        at = 20 + 190 * place
        lines.append(f'<circle cx="{at + 5}" cy="52" r="4.5" fill="var(--c{place})"/>')
        lines.append(f'<text x="{at + 16}" y="56">{escape(PROBLEMS[key].title)}</text>')
    lines.append(f'<text x="{20 + 190 * len(streams)}" y="56">bar: mean, 95 % interval</text>')
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        kind = "axis" if tick == 0.5 else "grid"
        lines.append(f'<line class="{kind}" x1="{x(tick)}" x2="{x(tick)}" y1="{top - 8}" y2="{bottom}"/>')
        lines.append(f'<text x="{x(tick)}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>')
    lines.append(f'<text x="{x(0.5)}" y="{bottom + 36}" text-anchor="middle">AUROC (0.5: chance)</text>')
    for place, name in enumerate(order):
        y = top + row * place + 6
        overall = means[name]
        weight = "" if name in baselines else ' class="name"'
        lines.append(f'<text{weight} x="{left - 14}" y="{y + 4}" text-anchor="end">{plain(name)}</text>')
        low, high = x(overall.low), x(overall.high)
        lines.append(
            f'<rect x="{low}" y="{y - 5}" width="{max(1.0, round(high - low, 1))}" height="10" fill="var(--axis)" '
            'opacity=".35"/>'
        )
        lines.append(
            f'<line x1="{x(overall.mean)}" x2="{x(overall.mean)}" y1="{y - 6}" y2="{y + 6}" stroke="var(--ink)" '
            'stroke-width="2"/>'
        )
        for colour, key in enumerate(streams):
            if not math.isnan(of_stream[name][key].mean):
                lines.append(f'<circle cx="{x(of_stream[name][key].mean)}" cy="{y}" r="4.5" fill="var(--c{colour})"/>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def plain(name: str) -> str:
    return escape(TITLES[name].strip("*") if name in TITLES else name.replace("_", " "))
