"""Does curvature collapse before a network stops learning? A small study on digits with random labels.

    python benchmarks/spectral_collapse.py run             # six methods, ten seeds; it goes on where it stopped
    python benchmarks/spectral_collapse.py run --workers 2
    python benchmarks/spectral_collapse.py table           # the page's tables, from the records

What is looked at was fixed before the first run: the share of the Gauss-Newton matrix's possible rank above
``eps* = 1 / (2 lr T)`` on 32 samples of a new task, before it is learned (``lr`` is the nominal step size of Adam,
which has no other), with multiples of it beside. A task *fails* where the final accuracy is below half of the mean of
the run's first three tasks. A measure *has collapsed* where it is below half of its mean before tasks 2 to 4 (before
task 1 the network is fresh). Records go to ``benchmarks/results/spectral_collapse``, one line for each run.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
RECORDS = ROOT / "benchmarks" / "results" / "spectral_collapse" / "runs.jsonl"
PAGE = ROOT / "docs" / "results" / "spectral_collapse.md"
METHODS = ("backprop", "l2", "l2_effective_rank", "spectral_regularisation", "continual_backprop", "fresh_start")
LR, TASKS, EPOCHS, EXAMPLES, BATCH, WIDTH, SAMPLES = 1e-2, 25, 20, 128, 16, 64, 32
STEPS = EPOCHS * math.ceil(EXAMPLES / BATCH)
EPS = 1 / (2 * LR * STEPS)
FACTORS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
PUBLISHED = (0.01, 0.03, 0.1)
QUANTILES = (0.1, 0.5, 0.9, 1.0)
MEASURES = {
    "share": "GGN, share above eps*",
    "kernel": "kernel, share above eps*",
    "share_small": "GGN, share above eps*/100",
    "gauss_newton_rank": "GGN, effective rank",
    "largest": "GGN, largest eigenvalue",
    "feature_rank": "features, effective rank",
    "alive": "units that are not dead",
    "gradient": "norm of the gradient",
}


def method_of(name: str) -> Any:
    """The method with the settings of the study; none was tuned."""
    from pliant import interventions as all_of

    return {
        "backprop": None,
        "l2": all_of.L2(1e-3, apply="gradient"),
        "l2_effective_rank": all_of.L2EffectiveRank(1e-3, l2=1e-3, every=8),
        "spectral_regularisation": all_of.SpectralRegularisation(1e-3, apply="gradient"),
        "continual_backprop": all_of.ContinualBackprop(1e-3, maturity_threshold=50),
        "fresh_start": all_of.FreshStart(),
    }[name]


def one_run(job: tuple[str, int]) -> dict[str, Any]:
    """One method with one seed."""
    import torch
    from torch import nn
    from torch.nn import functional

    import pliant
    from pliant.bench.environment import run_meta
    from pliant.bench.streams.random_label_digits import RandomLabelDigits

    name, seed = job
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", pliant.NoEffectWarning)
    torch.manual_seed(seed)
    layers = [nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10)]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    stream, method = RandomLabelDigits(EXAMPLES, EPOCHS, BATCH), method_of(name)
    handle = None
    if method is not None:
        handle = pliant.attach(model, optimizer, method, example_inputs=torch.zeros(2, 64), seed=seed)
    tasks, learning, measuring = [], 0.0, 0.0
    for index in range(TASKS):
        if handle is not None and index:
            handle.task_boundary()
        task = stream.task(index, seed)
        x, y = task.inputs, task.targets
        start = time.process_time()
        found = measured(model, x, y, spectrum=index in (0, 1, TASKS - 1))
        measuring += time.process_time() - start
        start = time.process_time()
        order = torch.Generator().manual_seed(1000 * seed + index)
        for _ in range(EPOCHS):
            for rows in torch.randperm(EXAMPLES, generator=order).split(BATCH):
                batch = (x[rows], y[rows]) if handle is None else handle.batch((x[rows], y[rows]))
                optimizer.zero_grad()
                functional.cross_entropy(model(batch[0]), batch[1]).backward()
                optimizer.step()
        learning += time.process_time() - start
        with torch.no_grad():
            found["accuracy"] = float((model(x).argmax(1) == y).float().mean())
        tasks.append(found)
    return {
        "method": name,
        "setting": repr(method),
        "seed": seed,
        "tasks": tasks,
        "learning_seconds": learning,
        "measuring_seconds": measuring,
        "meta": run_meta(),
    }


def measured(model: Any, x: Any, y: Any, *, spectrum: bool) -> dict[str, Any]:
    """All measures of a network before a task."""
    import torch
    from torch.nn import functional

    from pliant import IllegalConfiguration, metrics
    from pliant.spectrum import effective_rank, eps_rank, ggn_spectrum, largest_eigenvalue, ntk_spectrum

    few = x[:SAMPLES], y[:SAMPLES]
    warnings.simplefilter("ignore")
    try:
        ggn, kernel = ggn_spectrum(model, few), ntk_spectrum(model, few[0])
    except IllegalConfiguration:  # a network that diverges: its numbers overflow in float32
        ggn = ggn_spectrum(model, few, dtype=torch.float64)
        kernel = ntk_spectrum(model, few[0], dtype=torch.float64)
    shares = [eps_rank(ggn, EPS * factor, normalised=True).value for factor in FACTORS]
    with torch.no_grad():
        hidden = [model[:2](x), model[:4](x)]
    gradient = torch.autograd.grad(functional.cross_entropy(model(x), y), list(model.parameters()))
    found: dict[str, Any] = {
        "shares": shares,
        "share": shares[FACTORS.index(1.0)],
        "share_small": shares[FACTORS.index(1e-2)],
        "kernel": eps_rank(kernel, EPS, normalised=True).value,
        "gauss_newton_rank": effective_rank(ggn).value,
        "largest": largest_eigenvalue(ggn).value,
        "feature_rank": sum(float(metrics.effective_rank(act)) for act in hidden) / 2,
        "alive": 1 - sum(float(metrics.dead_fraction(act)) for act in hidden) / 2,
        "gradient": float(torch.stack([item.norm() for item in gradient]).norm()),
    }
    if spectrum:
        values = ggn.eigenvalues()
        found["quantiles"] = np.quantile(values.numpy(), QUANTILES).tolist()
        size = ggn.num_parameters
        found["exact"] = [float((values.abs() > eps).sum()) / size for eps in PUBLISHED]
        found["published"] = published_recipe(model, few)
    return found


def published_recipe(model: Any, batch: Any) -> list[float]:
    """The published estimate of the share above an eps, of the same matrix: one probe, 100 steps, a density."""
    import torch

    from pliant.spectrum import ggn_operator, lanczos

    operator = ggn_operator(model, batch)
    probe = torch.randn(operator.dimension, generator=torch.Generator().manual_seed(0))
    if not bool(torch.isfinite(operator(probe)).all()):
        return [math.nan] * len(PUBLISHED)
    nodes, weights, _ = lanczos(operator, probe, 100).nodes()
    low, high = float(nodes.min()) - 0.01, float(nodes.max()) + 0.01
    grid = torch.linspace(low, high, 10_000, dtype=torch.float64)
    variance = 1e-5 * max(1.0, high - low)
    density = torch.zeros_like(grid)
    for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
        density += weight * (-(grid - node).square() / (2 * variance)).exp() / math.sqrt(2 * math.pi * variance)
    density /= torch.trapezoid(density, grid)
    return [float(torch.trapezoid(density[grid.abs() > eps], grid[grid.abs() > eps])) for eps in PUBLISHED]


# ---- what the records say ----
def failure(accuracy: np.ndarray[Any, Any]) -> int | None:
    """The first task (from 0) that fails."""
    below = np.flatnonzero(accuracy[3:] < accuracy[:3].mean() / 2)
    return int(below[0]) + 3 if len(below) else None


def collapse(values: np.ndarray[Any, Any]) -> int | None:
    """The first task before which a measure has collapsed."""
    below = np.flatnonzero(values[4:] < values[1:4].mean() / 2)
    return int(below[0]) + 4 if len(below) else None


def spearman(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """Rank correlation, ties sharing their ranks; NaN for a constant."""
    ranks = [np.array([(v < item).sum() + ((v == item).sum() + 1) / 2 for item in v]) for v in (a, b)]
    if any(rank.std() == 0 for rank in ranks):
        return math.nan
    return float(np.corrcoef(*ranks)[0, 1])


def auroc(scores: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    """Probability that a failing case has the lower score; ties count half."""
    bad, good = scores[labels], scores[~labels]
    if not len(bad) or not len(good):
        return math.nan
    lower = (bad[:, None] < good).mean() + 0.5 * (bad[:, None] == good).mean()
    return float(lower)


def at_risk(run: dict[str, Any], measure: str, horizon: int) -> list[tuple[float, bool]]:
    """Before each task up to the first failure: the measure, and whether that comes within the horizon."""
    accuracy = np.array([task["accuracy"] for task in run["tasks"]])
    fails = failure(accuracy)
    last = len(accuracy) - 1 - horizon if fails is None else fails
    reference = float(np.mean([run["tasks"][index][measure] for index in (1, 2, 3)]))
    cases = range(3, last + 1) if reference > 0 else range(0)  # what is zero from the start cannot collapse
    return [(run["tasks"][t][measure] / reference, fails is not None and fails <= t + horizon) for t in cases]


def mean(values: list[float], digits: int = 2) -> str:
    """With its interval, and how many runs it speaks for where these are not all."""
    from pliant.intervals import estimate

    found = estimate(values)
    if found.num < 2:
        return f"{found.mean:.{digits}f} ({found.num} run)" if found.num else "not known"
    left = f"; {found.num} runs" if found.num_excluded else ""
    return f"{found.mean:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f}{left})"


def series(run: dict[str, Any], key: str, place: int | None = None) -> np.ndarray[Any, Any]:
    """One measure before each task of a run, or the accuracies after them."""
    return np.array([task[key] if place is None else task[key][place] for task in run["tasks"]])


def rows(heads: str, body: list[list[str]]) -> list[str]:
    """A table in Markdown, and an empty line."""
    width = heads.count("|") + 1
    return [f"| {heads} |", "|" + "---|" * width, *(f"| {' | '.join(cells)} |" for cells in body), ""]


FIRST, EARLY, LATE = slice(0, 3), slice(1, 4), slice(-5, None)


def by_method(runs: list[dict[str, Any]]) -> list[str]:
    """Accuracy and the share, early and late."""
    body = []
    for name in METHODS:
        found = [run for run in runs if run["method"] == name]
        if found:
            parts = (("accuracy", FIRST), ("accuracy", LATE), ("share", EARLY), ("share", LATE))
            cells = [mean([float(series(run, key)[part].mean()) for run in found]) for key, part in parts]
            fails = sum(failure(series(run, "accuracy")) is not None for run in found)
            body.append([f"`{name}`", *cells, f"{fails} of {len(found)}"])
    heads = "method | accuracy, tasks 1 to 3 | last 5 | share above eps*, before tasks 2 to 4 | last 5 | runs that fail"
    return rows(heads, body)


def by_measure(runs: list[dict[str, Any]], plain: list[dict[str, Any]]) -> list[str]:
    """What each measure says of the task that comes, and of failure."""
    body = []
    for key, title in MEASURES.items():
        cells = [mean([spearman(series(run, key)[1:], series(run, "accuracy")[1:]) for run in plain])]
        for horizon in (0, 3):
            cases = [at_risk(run, key, horizon) for run in runs]
            generator = np.random.default_rng(0)
            draws = [generator.integers(0, len(cases), len(cases)) for _ in range(1000)]
            value, *others = [pooled_auroc(cases, draw) for draw in [range(len(cases)), *draws]]
            low, high = np.nanpercentile(others, [2.5, 97.5])
            cells.append(f"{value:.2f} ({low:.2f} to {high:.2f})")
        leads = [lead(run, key) for run in plain]
        body.append([title, *cells, mean(leads, 1)])
    heads = "measure before a task | rank correlation with its accuracy | AUROC, fails now | within 3 more tasks | lead"
    return rows(heads, body)


def pooled_auroc(cases: list[list[tuple[float, bool]]], chosen: Any) -> float:
    """Over the cases of some runs."""
    flat = [case for index in chosen for case in cases[index]]
    return auroc(np.array([case[0] for case in flat]), np.array([case[1] for case in flat], dtype=bool))


def lead(run: dict[str, Any], key: str) -> float:
    """Tasks from the collapse of a measure to the first failure; NaN without one of them."""
    fails, falls = failure(series(run, "accuracy")), collapse(series(run, key))
    return math.nan if fails is None or falls is None else float(fails - falls)


def by_eps(plain: list[dict[str, Any]]) -> list[str]:
    """The sensitivity curve."""
    body = []
    for place, factor in enumerate(FACTORS):
        shares = [series(run, "shares", place) for run in plain]
        correlations = [
            spearman(item[1:], series(run, "accuracy")[1:]) for item, run in zip(shares, plain, strict=True)
        ]
        cells = [mean([float(item[part].mean()) for item in shares]) for part in (EARLY, LATE)]
        body.append([f"{factor:g}", *cells, mean(correlations)])
    return rows("eps / eps* | share, before tasks 2 to 4 | last 5 | rank correlation with accuracy", body)


def by_spectrum(runs: list[dict[str, Any]]) -> list[str]:
    """Quantiles of the spectrum, early and late, as means of their logarithms."""
    body = []
    for name in METHODS:
        found = [run for run in runs if run["method"] == name]
        for title, index in (("task 2", 1), ("the last", -1)) if found else ():
            values = np.array([run["tasks"][index]["quantiles"] for run in found])
            means = np.exp(np.log(np.maximum(values, 1e-12)).mean(0))
            cells = [f"{value:.1e}" if value > 1e-8 else "0" for value in means]
            body.append([f"`{name}`", title, *cells])
    return rows("eigenvalues of the GGN | before task | " + " | ".join(f"{q:.0%}" for q in QUANTILES), body)


def by_estimator(plain: list[dict[str, Any]]) -> list[str]:
    """The published recipe beside the truth."""
    body = []
    for place, eps in enumerate(PUBLISHED):
        for title, index in (("task 2", 1), ("the last", -1)):
            cells = [mean([run["tasks"][index][key][place] for run in plain], 4) for key in ("exact", "published")]
            body.append([f"{eps}", title, *cells])
    return rows("eps | before task | exact share of all parameters | published recipe on the same matrix", body)


def tables(runs: list[dict[str, Any]]) -> str:
    """Markdown."""
    plain = [run for run in runs if run["method"] == "backprop"]
    commits = ", ".join(sorted({(run["meta"]["git_commit"] or "unknown")[:9] for run in runs}))
    spent = [sum(run[key] for run in plain) for key in ("measuring_seconds", "learning_seconds")]
    share = 100 * spent[0] / max(sum(spent), 1e-9)
    note = (
        f"{len(runs)} runs; 64-{WIDTH}-{WIDTH}-10, Adam, step size {LR:g}, {TASKS} tasks of {EXAMPLES} digits with "
        f"random labels, {STEPS} steps each in batches of {BATCH}; eps* = {EPS:.3g}, {SAMPLES} samples. Means with "
        "95 % intervals over seeds (geometric means of eigenvalues); those of AUROC by bootstrap "
        "over the runs of all methods. Correlations, leads (in "
        f"tasks) and the last two tables are of `backprop`. Measuring took {share:.0f} % of the time. Commit {commits}."
    )
    parts = (by_method(runs), by_spectrum(runs), by_measure(runs, plain), by_eps(plain), by_estimator(plain))
    lines = [*(line for part in parts for line in part), note]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    RECORDS.parent.mkdir(parents=True, exist_ok=True)
    runs = [json.loads(line) for line in RECORDS.read_text().splitlines()] if RECORDS.exists() else []
    if options.what == "run":
        done = {(run["method"], run["seed"]) for run in runs}
        jobs = [(name, seed) for seed in range(options.seeds) for name in METHODS if (name, seed) not in done]
        with ProcessPoolExecutor(options.workers) as pool, RECORDS.open("a", encoding="utf-8") as file:
            for run in pool.map(one_run, jobs):
                file.write(json.dumps(run) + "\n")
                file.flush()
                runs.append(run)
                accuracy = [task["accuracy"] for task in run["tasks"]]
                print(f"{run['method']} {run['seed']}: {accuracy[0]:.2f} to {accuracy[-1]:.2f}", flush=True)
    text = tables(runs)
    print(text)
    if PAGE.exists():
        before, _, rest = PAGE.read_text(encoding="utf-8").partition("<!-- tables -->\n")
        after = rest.partition("<!-- /tables -->")[2]
        PAGE.write_text(f"{before}<!-- tables -->\n{text}\n<!-- /tables -->{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
