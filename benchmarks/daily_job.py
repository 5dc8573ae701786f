"""A year of the daily job in ``examples/daily_job.py``: protected, unprotected, and a fresh network every day.

    python benchmarks/daily_job.py --out results/daily_job       # about half an hour on one quiet core; it goes on
    python benchmarks/daily_job.py --out results/daily_job --write   # run nothing; what is there, into the repository

With the first seed every day is a process of its own (a fork, which costs less than a new Python), killed with SIGKILL
at a random step with probability 0.3, and its successor again; it is watched by the monitor and raced by the live twin.
None of that changes a bit of the training, which a test holds it to, so that the other seeds are trained in one
process. The arms see the same data:

- *protected*: the example as it is;
- *unprotected*: the same process without the intervention;
- *fresh*: every day a new network, trained on that day alone, as a job does that retrains.

Step size and replacement rate of the example were chosen on seed 100, over 90 days: for the unprotected job the better
of 1e-3 and 3e-3 by the test loss of the last 30 days, then of the rates 1e-4 and 1e-3 the better one for each kind.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

import daily_job as job  # noqa: E402
import torch  # noqa: E402

import pliant  # noqa: E402
from benchmarks.speed.methods import between_markers  # noqa: E402
from pliant.intervals import Estimate, band, estimate  # noqa: E402
from pliant.report.plots import Axis, curve_chart  # noqa: E402
from pliant.report.style import CHART_STYLE, COLOUR_STYLE, Style, escape  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "daily_job"
PAGE = ROOT / "docs" / "results" / "daily_job.md"
IMAGES = ROOT / "docs" / "images"
KINDS = {"clicks": "clicks (a growing table)", "series": "series (switching regimes)", "text": "text (changing code)"}
ARMS = ("protected", "unprotected", "fresh")
SHOWN = {
    "protected": ("continual backprop", Style(1)),
    "unprotected": ("no protection", Style(0)),
    "fresh": ("fresh every day", Style(7)),
}
DAYS, SEEDS, WATCHED, KILLS, WINDOW = 365, (0, 1, 2), 0, 0.3, 60
SCORES = {
    "test": "on the day's test data, after training",
    "yesterday_on_today": "yesterday's export on today's data",
}


# ---- running ----
def fresh_year(kind: str, folder: Path, days: int, *, seed: int) -> list[dict[str, Any]]:
    """A new network for each day, trained on its data alone with the same optimizer and steps."""
    folder.mkdir(parents=True, exist_ok=True)
    data, found = job.DATA[kind], []
    previous = None
    for number in range(days):
        task = data.day(number, seed)
        record = {"day": number, "yesterday_on_today": float("nan")}
        if previous is not None and kind != "clicks":  # an export of yesterday has no rows for today's words
            record["yesterday_on_today"] = job.evaluate(data, previous, task, test=False)
        model = data.model(number, seed + 700)
        optimizer = torch.optim.Adam(model.parameters(), lr=job.LEARNING_RATE, fused=True)
        losses = []
        for epoch in range(task.num_epochs):
            for chosen in task.order(epoch).split(task.batch_size):
                optimizer.zero_grad()
                loss = data.loss(model(task.inputs[chosen]), task.targets[chosen])
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
        record["training"] = sum(losses) / len(losses)
        record["test"] = job.evaluate(data, model, task, test=True)
        found.append(record)
        previous = model
    return found


def run(out: Path, kinds: Sequence[str], seeds: Sequence[int], days: int) -> None:
    """Everything that is not there yet, seed by seed: what has to be forked comes before what trains here."""
    torch.set_num_threads(1)
    for seed in sorted(seeds, key=lambda seed: (seed != WATCHED, seed)):
        for kind in kinds:
            for arm in ARMS:
                path = out / kind / arm / f"seed{seed}" / "record.json"
                if path.exists():
                    continue
                began = time.perf_counter()
                watched = seed == WATCHED and arm != "fresh"
                if arm == "fresh":
                    records = fresh_year(kind, path.parent, days, seed=seed)
                else:
                    options = {"protected": arm == "protected", "watched": watched}
                    start = "fork" if watched else "here"
                    records = job.year(
                        kind, path.parent, days, seed=seed, kills=KILLS, start=start, quiet=True, **options
                    )
                edits = pliant.read_edits(path.parent / "edits.jsonl") if arm == "protected" else []
                actions = Counter(item.event.action for item in edits)
                seconds = time.perf_counter() - began
                _write(path, kind, arm, seed, records, seconds, watched=watched, edits=actions)


def _write(
    path: Path,
    kind: str,
    arm: str,
    seed: int,
    records: Sequence[Mapping[str, Any]],
    seconds: float,
    *,
    watched: bool,
    edits: Mapping[str, int],
) -> None:
    """One small record of a year: columns, rounded, and how it was made."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    columns: dict[str, Any] = {
        key: [round(float(record[key]), 5) for record in records]
        for key in ("test", "yesterday_on_today", "training", "resets", "immature", "young", "words")
        if key in records[0]
    }
    kills = job.kill_plan(len(records), KILLS, seed) if watched else []
    record = {
        "kind": kind,
        "arm": arm,
        "seed": seed,
        "days": len(records),
        "kills": sum(map(len, kills)),
        "stream": repr(job.DATA[kind].stream),
        "methods": [repr(job.protection(kind))] if arm == "protected" else [],
        "optimizer": f"Adam, step size {job.LEARNING_RATE:g}",
        "watched": watched,
        "edits": dict(edits),
        "seconds": round(seconds),
        "commit": commit,
        "torch": torch.__version__,
        "columns": columns,
    }
    if watched:
        record["verdicts"] = [item["verdict"] for item in records]
        record["alarms"] = [len(item["alarms"]) for item in records]
        record["alarm_texts"] = sorted({text for item in records for text in item["alarms"]})[:50]
    path.write_text(json.dumps(record, separators=(",", ":"), allow_nan=True), encoding="utf-8")
    print(f"{kind} {arm} seed {seed}: {seconds:.0f} s", flush=True)


# ---- writing ----
def gather(out: Path) -> int:
    """Copy the records of whole years into the repository."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    found = sorted(out.glob("*/*/seed*/record.json"))
    for path in found:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["days"] == DAYS:
            name = f"{record['kind']}_{record['arm']}_{record['seed']}.json"
            columns = {key: [_or_none(value) for value in values] for key, values in record["columns"].items()}
            checkpoint = path.with_name("checkpoint.pt")
            if record["watched"] and checkpoint.exists():  # the monitor's last reading, of the hidden layers
                latest = torch.load(checkpoint, weights_only=True)["monitor"]["current"]
                dead = latest["dead_fraction"].items()
                record["dead"] = {layer: round(float(share), 5) for layer, share in dead if layer.startswith("body")}
            text = json.dumps({**record, "columns": columns}, separators=(",", ":"), allow_nan=False)
            (RESULTS / name).write_text(text + "\n", encoding="utf-8")
    return len(found)


def read() -> dict[tuple[str, str], dict[int, dict[str, Any]]]:
    """The committed records: kind and arm to seed to record."""
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for path in sorted(RESULTS.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        for key, values in record["columns"].items():
            record["columns"][key] = [float("nan") if value is None else value for value in values]
        found.setdefault((record["kind"], record["arm"]), {})[record["seed"]] = record
    return found


def _or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return None if value != value else value


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else float("nan")


def _shown(found: Estimate, *, sign: bool = False) -> str:
    if found.num == 0 or found.mean != found.mean:
        return "–"
    text = f"{found.mean:+.4f}" if sign else f"{found.mean:.4f}"
    half = found.half_width
    return (text + (f" ± {half:.4f}" if half == half and half != float("inf") else "")).replace("-", "−")


def tables(records: Mapping[tuple[str, str], Mapping[int, Mapping[str, Any]]]) -> str:
    """What the year was like, in Markdown."""
    lines = []
    for score, title in SCORES.items():
        lines += [
            f"### Loss {title}",
            "",
            f"| data | arm | first {WINDOW} days | last {WINDOW} days | change | last, against fresh | seeds |",
            "|:--|:--|--:|--:|--:|--:|--:|",
        ]
        for kind, name in KINDS.items():
            fresh = records.get((kind, "fresh"), {})
            for arm in ARMS:
                years = records.get((kind, arm), {})
                if not years:
                    continue
                skipped = (
                    [float("nan")] if score == "yesterday_on_today" else []
                )  # on the first day there was no export
                series = {seed: skipped + year["columns"][score][len(skipped) :] for seed, year in years.items()}
                first = estimate(_mean(values[:WINDOW]) for values in series.values())
                last = estimate(_mean(values[-WINDOW:]) for values in series.values())
                change = estimate(_mean(v[-WINDOW:]) - _mean(v[:WINDOW]) for v in series.values())
                gap = estimate(
                    _mean(values[-WINDOW:]) - _mean(fresh[seed]["columns"][score][-WINDOW:])
                    for seed, values in series.items()
                    if seed in fresh
                )
                against = "reference" if arm == "fresh" else _shown(gap, sign=True)
                cells = [name, SHOWN[arm][0], _shown(first), _shown(last), _shown(change, sign=True), against]
                lines.append(f"| {' | '.join(cells)} | {len(series)} |")
        lines.append("")
    if any(WATCHED in years for (_, arm), years in records.items() if arm != "fresh"):
        lines += [
            "### What the monitor, the live twin and the log say (the watched seed)",
            "",
            "| data | arm | verdicts, days | days with an alarm | dead at the end, first and second layer, % | "
            "resets | edits taken back | kills | units immature at an export | words, first to last day |",
            "|:--|:--|:--|--:|--:|--:|--:|--:|--:|:--|",
        ]
    for kind, name in KINDS.items():
        for arm in ("protected", "unprotected"):
            year = records.get((kind, arm), {}).get(WATCHED)
            if year is None:
                continue
            verdicts = Counter(year.get("verdicts", []))
            columns = year["columns"]
            words = f"{columns['words'][0]:.0f} to {columns['words'][-1]:.0f}" if columns["words"][-1] else "–"
            cells = [
                name,
                SHOWN[arm][0],
                ", ".join(f"{what} {count}" for what, count in verdicts.most_common()),
                str(sum(map(bool, year.get("alarms", [])))),
                ", ".join(f"{100 * share:.0f}" for share in year.get("dead", {}).values()) or "–",
                f"{columns['resets'][-1]:.0f}",
                str(year["edits"].get("undone", 0)),
                str(year["kills"]),
                f"{max(columns['immature']):.0f} at most",
                words,
            ]
            lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for kind, name in KINDS.items():
        if any((kind, arm) in records for arm in ARMS):
            lines += [f"![Test loss by day: {name}](../images/daily_job_{kind}.svg)", ""]
    missing = {
        seed: [name for kind, name in KINDS.items() if any(seed not in records.get((kind, arm), {}) for arm in ARMS)]
        for seed in SEEDS
    }
    if any(missing.values()):
        text = "; ".join(f"seed {seed}: {', '.join(kinds)}" for seed, kinds in missing.items() if kinds)
        lines += [f"Not run to its end yet: {text}. Seed {WATCHED} is the one that is killed, watched and raced.", ""]
    commits = sorted({year["commit"][:8] for years in records.values() for year in years.values()})
    versions = sorted({year["torch"] for years in records.values() for year in years.values()})
    seconds = sum(year["seconds"] for years in records.values() for year in years.values())
    lines += [f"Commit {', '.join(commits)}, PyTorch {', '.join(versions)}, {seconds / 60:.0f} minutes in all."]
    return "\n".join(lines)


def figure(kind: str, records: Mapping[tuple[str, str], Mapping[int, Mapping[str, Any]]]) -> str:
    """Test loss by day, means over seven days with a band over seeds, as a standalone SVG."""
    curves = []
    for arm in ARMS:
        years = list(records.get((kind, arm), {}).values())
        if not years:
            continue
        weeks = [
            [_mean(year["columns"]["test"][day : day + 7]) for day in range(0, year["days"] - 6, 7)] for year in years
        ]
        label, style = SHOWN[arm]
        curves.append((label, [7.0 * week + 3.5 for week in range(len(weeks[0]))], band(weeks), style))
    chart = curve_chart(curves, Axis("day"), Axis("test loss"), width=640, height=280)
    legend = "".join(
        f'<line x1="{70 + 190 * place}" x2="{92 + 190 * place}" y1="18" y2="18" stroke="{style.css}" stroke-width="3"/>'
        f'<text x="{98 + 190 * place}" y="22">{escape(label)}</text>'
        for place, (label, _, _, style) in enumerate(curves)
    )
    inner = chart.replace('<svg class="chart"', '<svg x="0" y="34" width="640" height="280" class="chart"', 1)
    return (
        f'<svg class="chart" viewBox="0 0 640 314" xmlns="http://www.w3.org/2000/svg" width="640" role="img" '
        f'aria-label="{escape(KINDS[kind])}: test loss by day"><style>{COLOUR_STYLE}{CHART_STYLE}'
        f"svg{{background:var(--paper)}}</style>{legend}{inner}</svg>\n"
    )


def write() -> None:
    """The page and its figures, from the committed records."""
    records = read()
    for kind in dict.fromkeys(kind for kind, _ in records):
        (IMAGES / f"daily_job_{kind}.svg").write_text(figure(kind, records), encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(between_markers(page, tables(records), "tables"), encoding="utf-8")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/daily_job"))
    parser.add_argument("--days", type=int, default=DAYS)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--write", action="store_true", help="run nothing; write what is there")
    options = parser.parse_args()
    if not options.write:
        run(options.out, options.kinds, options.seeds, options.days)
    if options.write or options.days == DAYS:
        gather(options.out)
        if options.write:
            write()


if __name__ == "__main__":
    main()
