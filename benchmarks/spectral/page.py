"""The page of the study, from what ``analysis.py`` has found; the sentences of the answer stand here."""

# ruff: noqa: E501

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.prediction.page import interval, number, table
from benchmarks.spectral.analysis import (
    BEHIND,
    EARLY,
    FIRST,
    LATE,
    MEASURES,
    Found,
    Records,
    accuracy,
    eps_series,
    failing,
    fit,
    hessian_of,
    over,
    recipe,
    series,
    shortfall,
)
from benchmarks.spectral.answer import ANSWER, LIMITS
from benchmarks.spectral.measures import FACTORS, PUBLISHED, QUANTILES, SAMPLES
from benchmarks.spectral.problems import BATCH, EPS, HIDDEN, LR, METHODS, NUM_TASKS, STEPS, TITLES

__all__ = ["page"]


def page(
    streams: Mapping[str, Records],
    found: Mapping[str, Mapping[str, Found]],
    expected: Mapping[str, Any],
    came_true: Mapping[str, bool],
) -> str:
    """The whole page."""
    records = [run for item in streams.values() for run in item.runs.values()]
    every = [
        *records,
        *(t for item in streams.values() for t in item.tuning.values()),
        *(i.estimators for i in streams.values()),
    ]
    commits = ", ".join(sorted({str(item["meta"]["git_commit"])[:9] for item in every}))
    minutes = sum(item["seconds"] for item in every) / 60
    parts = [
        "# Does curvature collapse before a network stops learning?",
        f"Written by `python benchmarks/spectral/study.py`, which runs whatever is missing and then `analysis.py`: {sum(len(r['runs']) for r in records)} runs ({len(METHODS)} methods, {len(streams)} streams, 10 seeds), tuning on five other seeds, {minutes:.0f} minutes of one core. Commits {commits}, PyTorch {records[0]['meta']['torch']}. 95 % intervals over seeds.",
        "## What was done",
        f"A network 64-{'-'.join(map(str, HIDDEN))}-10 with ReLU learns {NUM_TASKS} tasks of handwritten digits (8×8), {STEPS} steps of Adam with step size {LR:g} and batches of {BATCH} each. *Random labels*: 128 digits, labels drawn anew, nothing to transfer. *Permuted inputs*: 512 digits with their true labels, pixels permuted anew. Before each task spectra are computed exactly, in float64, on {SAMPLES} samples of the task to come; features on all of them. eps* = 1/(2ηT) = {EPS:.4g} was fixed beforehand.",
        f"Expectations and definitions stand in `benchmarks/spectral/expectations.json`, written {expected['written']}; {expected['added'].replace('what is said', 'what is said there')}. A task *fails* {expected['fails'].removeprefix('a task fails ')}. {sentence(expected['behind']).replace('A task is behind', 'It is *behind*')} {sentence(expected['collapsed'])} *Lead*: {expected['lead']}.",
        "## Answer",
        ANSWER,
        "![Accuracy over tasks](../images/spectral_accuracy.svg)",
        "## The methods",
        f"Each method with settings was tuned with four of them on seeds 100 to 104, by {expected['score'].split(';')[0]}, mean over their first 12 tasks; `effective_rank` is `l2_effective_rank` without its decay. The step size belongs to the problem and is the same for all.",
        *(methods(stream, records_) for stream, records_ in streams.items()),
        *(tuning(stream, records_) for stream, records_ in streams.items()),
        "![Cost](../images/spectral_cost.svg)",
        "## Spectra, early and late",
        "Quantiles of the eigenvalues of the Gauss-Newton matrix: of those that can be nonzero, samples × outputs; one in ten cannot, since the softmax has one direction less. Geometric means over seeds; 0: below 1e-10.",
        *(quantiles(stream, records_) for stream, records_ in streams.items()),
        "![Spectra](../images/spectral_spectra.svg)",
        "![Share, feature rank and dead units over tasks](../images/spectral_health.svg)",
        "## Does it come before the failure?",
        "Low values are taken for bad ones, but for the condition number and the task's number. *Within a run*: Spearman's rank correlation with the accuracy on the task to come, plain training; *given the clock*: what is left when the task's number is taken out of both. *Failing*: AUROC for the tasks of a run that fail, mean over all runs with both kinds. *First now*, *soon*: AUROC for the first failure at this task, or at this or one of the next three, over all tasks until then of all methods together. *Behind*: AUROC for tasks that are behind a fresh network, over all tasks of all methods together; *in a run*: within a run, mean over those with both kinds. *Lead*: as above, plain training; in brackets in how many runs there is one. *Alarm*: median lead, over the first of two tasks in a row that are behind, of an alarm whose level is what 5 % of the calm tasks of the other runs exceed; in brackets runs with an alarm by then, of those with such an onset. *Between*: rank correlation over the seven methods, both in the mean of the last five tasks. What is set in italics needs no measurement.",
        *(measures(stream, found[stream]) for stream in streams),
        "![AUROC](../images/spectral_auroc.svg)",
        "## How much it depends on eps",
        "Share of the Gauss-Newton matrix's rank above multiples of eps*, plain training; its rank correlation with accuracy within runs; R² of a line to accuracy over all methods and tasks of a seed, for the Gauss-Newton matrix and for the kernel.",
        *(sensitivity(stream, records_) for stream, records_ in streams.items()),
        "![Share above eps against accuracy](../images/spectral_eps.svg)",
        "## The published estimator beside the truth",
        f"Networks 64-{'-'.join(map(str, next(iter(streams.values())).estimators['hidden']))}-10, so small that all eigenvalues of the Hessian are computed; plain training, ten seeds. Share of all parameters' eigenvalues beyond ±ε. *Published*: one Gaussian probe, 100 steps, the integral of a density smoothed on a grid of 10,000 points. *Quadrature*: four probes of 100 steps, nodes and weights, and the truth in the cases in which it could tell, whose number is in brackets; the others of ten got no number.",
        *(estimators(stream, records_) for stream, records_ in streams.items()),
        "## Hessian, Gauss-Newton matrix and kernel",
        "H = G + R. *Rest*: the share of the squared Frobenius norm of H that is R, from 16 vectors of signs; largest and smallest eigenvalue of H by Lanczos' method; largest of G; shares above eps* of G and of the kernel.",
        *(decomposition(stream, records_) for stream, records_ in streams.items()),
        "## Expectations",
        f"{sum(came_true.values())} of {len(came_true)} came true.",
        table(
            ["expected", "came true"],
            [[claim["text"], "yes" if came_true[claim["id"]] else "no"] for claim in expected["claims"]],
        ),
        "## What this does not say",
        LIMITS,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def mean_of(values: Sequence[float], digits: int = 2) -> str:
    found = over(values)
    return (
        "–"
        if math.isnan(found.mean)
        else f"{number(found.mean, digits)} [{number(found.low, digits)}, {number(found.high, digits)}]"
    )


def methods(stream: str, records: Records) -> str:
    """Accuracy, measures and cost of each."""
    has_test = "test" in records.of("backprop")[0]["tasks"][0]
    rows = []
    for name in METHODS:
        runs = records.of(name)
        setting = ", ".join(f"{key} {value:g}" for key, value in records.runs[name]["setting"].items()) or "–"
        ratio = records.runs[name]["learning_seconds"] / records.runs["backprop"]["learning_seconds"]
        cells = [f"`{name}`", setting]
        cells += [mean_of([float(accuracy(run)[part].mean()) for run in runs]) for part in (FIRST, LATE)]
        cells += [mean_of([float(accuracy(run, "test")[LATE].mean()) for run in runs])] if has_test else []
        cells.append(f"{sum(bool(failing(run).any()) for run in runs)} of {len(runs)}")
        share = np.mean([shortfall(records, name, s)[1:] > BEHIND for s in range(len(runs))])
        cells.append("–" if name == "fresh_start" else f"{100 * share:.0f} %")
        for key, digits in (("share", 3), ("feature_rank", 1), ("alive", 2)):
            cells.append(
                " → ".join(
                    number(over([float(series(run, key)[part].mean()) for run in runs]).mean, digits)
                    for part in (EARLY, LATE)
                )
            )
        cells.append(f"{ratio:.1f}")
        rows.append(cells)
    head = [
        "method",
        "setting",
        "accuracy, tasks 1 to 3",
        "last 5",
        *(["held out, last 5"] if has_test else []),
        "runs that fail",
        "tasks behind",
        "share above eps*, tasks 2 to 4 → last 5",
        "feature rank",
        "units not dead",
        "time",
    ]
    return f"**{TITLES[stream]}.**\n\n" + table(head, rows)


def tuning(stream: str, records: Records) -> str:
    """What was tried."""
    rows = []
    for name, record in records.tuning.items():
        cells = []
        for item in record["tried"]:
            text = f"{', '.join(f'{value:g}' for value in item['setting'].values())}: {np.mean(item['accuracy']):.2f}"
            cells.append(f"**{text}**" if item["setting"] == record["best"] else text)
        rows.append([f"`{name}` ({', '.join(record['best'])})", *cells])
    return (
        f"Tuning, {TITLES[stream].lower()}: setting and mean accuracy over 12 tasks and seeds 100 to 104.\n\n"
        + table(["method", *["tried"] * 4], rows)
    )


def quantiles(stream: str, records: Records) -> str:
    """The spectrum in numbers."""
    shown = [place for place, q in enumerate(QUANTILES) if q in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)]
    rows = []
    for name in METHODS:
        for title, index in (("task 2", 1), ("the last", NUM_TASKS - 1)):
            values = [
                run["tasks"][index]["quantiles"] for run in records.of(name) if run["tasks"][index].get("quantiles")
            ]
            means = np.exp(np.log(np.maximum(np.array(values, dtype=float), 1e-10)).mean(0))
            rows.append([f"`{name}`", title, *(f"{means[p]:.0e}" if means[p] > 1.01e-10 else "0" for p in shown)])
    return f"**{TITLES[stream]}.**\n\n" + table(["method", "before", *(f"{QUANTILES[p]:.0%}" for p in shown)], rows)


def measures(stream: str, found: Mapping[str, Found]) -> str:
    """The question of the page."""
    order = sorted(found, key=lambda key: -found[key].behind.mean if math.isfinite(found[key].behind.mean) else 1.0)
    rows = []
    for key in order:
        item = found[key]
        leads = "–" if not item.num_leads else f"{interval_of(item.lead, 1)} ({item.num_leads})"
        median = "none" if math.isinf(item.alarms.median) else number(item.alarms.median, 0)
        alarm = f"{median} ({item.alarms.caught}/{item.alarms.with_onset})" if item.alarms.with_onset else "–"
        rows.append(
            [
                MEASURES[key],
                *(interval(part) for part in (item.within, item.beyond, item.behind, item.behind_within)),
                *(interval(part) for part in (item.failing, item.now, item.soon)),
                "–" if key in ("clock", "previous") else leads,
                alarm,
                "–" if key in ("clock", "previous") else interval(item.between),
            ]
        )
    return f"**{TITLES[stream]}.**\n\n" + table(
        [
            "measure before a task",
            "within a run",
            "given the clock",
            "behind",
            "behind, in a run",
            "failing",
            "first now",
            "soon",
            "lead",
            "alarm",
            "between",
        ],
        rows,
    )


def interval_of(found: Any, digits: int) -> str:
    return f"{number(found.mean, digits)} [{number(found.low, digits)}, {number(found.high, digits)}]"


def sensitivity(stream: str, records: Records) -> str:
    """The curve beside eps*."""
    from benchmarks.prediction.scores import rank_correlation

    plain, rows = records.of("backprop"), []
    for factor in FACTORS:
        shares = [eps_series(run, "shares", factor) for run in plain]
        correlations = [
            rank_correlation(item[1:][kept].tolist(), accuracy(run)[1:][kept].tolist())
            for item, run in zip(shares, plain, strict=True)
            if (kept := np.isfinite(item[1:])).any()
        ]
        cells = [mean_of([float(item[part].mean()) for item in shares], 3) for part in (EARLY, LATE)]
        rows.append(
            [
                f"{factor:g}",
                *cells,
                mean_of(correlations),
                interval(fit(records, "shares", factor)),
                interval(fit(records, "kernel_shares", factor)),
            ]
        )
    return f"**{TITLES[stream]}.**\n\n" + table(
        ["ε / eps*", "share before tasks 2 to 4", "last 5", "rank correlation", "R², GGN", "R², kernel"], rows
    )


def estimators(stream: str, records: Records) -> str:
    """Published recipe, quadrature and truth."""
    rows = []
    tasks = [case["task"] for case in records.estimators["cases"][0]]
    for matrix, title in (("hessian", "Hessian"), ("ggn", "GGN")):
        for task in tasks:
            for place, eps in enumerate(PUBLISHED):
                exact, published, counted, true, num = recipe(records, matrix, task, place)
                told = f"{number(counted, 3)} for {number(true, 3)} ({num})" if num else "– (0)"
                ratio = published / exact if exact > 0 else math.nan
                rows.append(
                    [
                        title,
                        str(task + 1),
                        f"{eps:g}",
                        number(exact, 3),
                        number(published, 3),
                        number(ratio, 1),
                        told,
                    ]
                )
    cases = [case for seed in records.estimators["cases"] for case in seed]
    ranks = {
        key: np.mean([case["hessian"][key] for case in cases])
        for key in ("effective_rank", "quadrature_effective_rank")
    }
    note = f"Effective rank of the Hessian, mean over both tasks: {ranks['effective_rank']:.0f} exactly, {ranks['quadrature_effective_rank']:.0f} by quadrature, of {cases[0]['parameters']} parameters. The median resolution of the quadrature is {np.median([case['hessian']['resolution'] for case in cases]):.2g}."
    return (
        f"**{TITLES[stream]}.**\n\n"
        + table(["matrix", "before task", "ε", "exact", "published", "published / exact", "quadrature"], rows)
        + f"\n\n{note}"
    )


def decomposition(stream: str, records: Records) -> str:
    """Hessian against Gauss-Newton matrix against kernel."""
    rows = []
    for name in METHODS:
        for title, index in (("1", 0), ("2", 1), ("the last", NUM_TASKS - 1)):
            largest = over([float(series(run, "largest")[index]) for run in records.of(name)])
            shares = [
                over([float(series(run, key)[index]) for run in records.of(name)]).mean for key in ("share", "kernel")
            ]
            cells = [
                interval(hessian_of(records, name, index, "rest")),
                *(number(hessian_of(records, name, index, key).mean) for key in ("largest", "smallest")),
                number(largest.mean),
            ]
            rows.append([f"`{name}`", title, *cells, *(number(share, 3) for share in shares)])
    return f"**{TITLES[stream]}.**\n\n" + table(
        [
            "method",
            "before task",
            "rest",
            "largest of H",
            "smallest of H",
            "largest of G",
            "share of G",
            "share of the kernel",
        ],
        rows,
    )
