"""What exactly was run: the part of the report page for those who want to check or repeat it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pliant.records import Record
from pliant.report.standings import seconds_per_task
from pliant.report.style import Style, escape, swatch
from pliant.report.summary import Method, Stream, flatten, headline_metrics

_OWN = ("methods", "stream")
_NOT_SHOWN = ("label", "seconds", "started", "stream")


def configuration_section(streams: Sequence[Stream], styles: Mapping[str, Style]) -> str:
    """The settings that a stream's methods share, then each method's own, with seeds, versions and hash."""
    parts = ['<section id="configuration"><h2>What exactly was run</h2>']
    parts.append(
        '<p class="text">Every folder of results is named after a hash of its whole configuration; a run with the same '
        "hash is the same experiment.</p>"
    )
    for i, stream in enumerate(streams):
        flat = [_settings(method) for method in stream.methods]
        shared = {k: v for k, v in flat[0].items() if all(other.get(k) == v for other in flat)}
        parts.append(f'<div data-stream="stream-{i}"><h3>{escape(stream.title)}</h3>')
        if shared:
            parts.append(f'<p class="facts">{"The same for all methods" if len(flat) > 1 else "Settings"}</p>')
            parts.append(_definitions(shared))
        for method, settings in zip(stream.methods, flat, strict=True):
            own = {k: v for k, v in settings.items() if k not in shared}
            parts.append(_method(method, own, styles[method.label]))
        parts.append("</div>")
    return "".join([*parts, "</section>\n"])


def failures(stream: Stream) -> str:
    """The runs of a stream that failed or diverged, each with what happened; nothing if there is none."""
    items = [
        f"{method.label}, seed {record.seed}, broke off after {record.num_tasks} tasks: {record.error}"
        for method in stream.methods
        for record in method.failed
    ]
    for metric in headline_metrics(stream):
        for method in stream.methods:
            for seed, curve in method.curves(metric.name).items():
                broken = [task for task, value in enumerate(curve, start=1) if not math.isfinite(value)]
                if broken:
                    where = f"not a finite number in {len(broken)} tasks, first in task {broken[0]}"
                    items.append(f"{method.label}, seed {seed}: {metric.words} is {where}")
    if not items:
        return ""
    lines = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f'<div class="alert"><b>Runs that failed or have gaps</b><ul>{lines}</ul></div>\n'


def provenance(streams: Sequence[Stream]) -> str:
    """When and with what the records were made, in one line."""
    records = [r for s in streams for m in s.methods for r in m.complete + m.failed]
    started = sorted({str(r.meta["started"])[:10] for r in records if r.meta.get("started")})
    parts = [f"run on {started[0]}" if len(started) == 1 else f"run {started[0]} to {started[-1]}"] if started else []
    for name, keys in (("pliant", ("pliant",)), ("PyTorch", ("torch",)), ("commit", ("commit", "git_commit"))):
        values = _distinct(_meta(r, keys) for r in records)
        parts += [f"{name} {', '.join(value[:12] for value in values)}"] if values else []
    if any(_meta(r, ("dirty", "git_dirty")) == "true" for r in records):
        parts.append("with uncommitted changes")
    return " · ".join(parts) or "the records do not say when or with which versions"


def _method(method: Method, own: Mapping[str, str], style: Style) -> str:
    records = method.complete + method.failed
    entries = method.experiment.get("methods")
    calls = [_call(entry) for entry in entries] if isinstance(entries, list) else []
    what = "<br>".join(f"<code>{escape(call)}</code>" for call in calls) or "nothing added to plain training"
    lines = {"method": what}
    lines |= {_words(key): f"<code>{escape(value)}</code>" for key, value in own.items()}
    lines["seeds"] = escape(_ranges(r.seed for r in method.complete) or "none complete")
    if method.failed:
        failed = _ranges(r.seed for r in method.failed)
        lines["failed seeds"] = f'<span class="failed">{escape(failed)}</span>'
    seconds = seconds_per_task(method)
    if seconds is not None:
        total = seconds.mean * sum(r.num_tasks for r in method.complete)
        lines["time"] = f"{_duration(total)} for all complete seeds"
    metas = [flatten({k: v for k, v in r.meta.items() if k not in _NOT_SHOWN}) for r in records]
    for key in dict.fromkeys(key for meta in metas for key in meta):
        lines[_words(key)] = escape(", ".join(_distinct(meta.get(key, "") for meta in metas)))
    lines["results folder"] = f"<code>{escape(method.experiment_id)}</code>"
    body = "".join(f"<dt>{escape(key)}</dt><dd>{value}</dd>" for key, value in lines.items())
    raw = escape(json.dumps(method.experiment, indent=2, ensure_ascii=False))
    return (
        f'<details id="run-{escape(method.experiment_id)}" data-label="{escape(method.label)}">'
        f"<summary>{swatch(style)}{escape(method.label)}"
        f'<span class="facts">{escape(_essence(own))}</span></summary>'
        f'<dl class="settings">{body}</dl><details><summary>The whole configuration</summary><pre>{raw}</pre></details>'
        "</details>\n"
    )


def _settings(method: Method) -> dict[str, str]:
    settings = {k: v for k, v in method.experiment.items() if k not in _OWN}
    return flatten({"stream": method.experiment.get("stream"), **settings})


def _call(entry: Any) -> str:
    """An intervention as one would write it.

    Example:
        >>> _call({"name": "redo", "tau": 0.1, "where": "*"})
        "redo(tau=0.1, where='*')"
    """
    if not isinstance(entry, dict):
        return str(entry)
    options = {k: v for k, v in entry.items() if k != "name"}
    return f"{entry.get('name')}({', '.join(f'{k}={v!r}' for k, v in options.items())})"


def _definitions(settings: Mapping[str, str]) -> str:
    body = "".join(f"<dt>{escape(_words(k))}</dt><dd><code>{escape(v)}</code></dd>" for k, v in settings.items())
    return f'<dl class="settings">{body}</dl>'


def _essence(own: Mapping[str, str]) -> str:
    """The settings of its own that fit beside a method's name."""
    return ", ".join(f"{_words(key)} {value}" for key, value in list(own.items())[:3] if len(value) <= 24)


def _words(key: str) -> str:
    return key.replace("_", " ").replace(".", ": ")


def _meta(record: Record, keys: Iterable[str]) -> str:
    """The first of these entries that a record's meta has, at any depth, as text."""
    flat = {key.rsplit(".", 1)[-1]: value for key, value in flatten(record.meta).items()}
    return next((flat[key] for key in keys if key in flat), "")


def _distinct(values: Iterable[str]) -> list[str]:
    return [value for value in dict.fromkeys(values) if value not in ("", "null")]


def _ranges(numbers: Iterable[int]) -> str:
    """Sorted numbers, stretches shortened.

    Example:
        >>> _ranges([3, 1, 2, 7])
        '1–3, 7'
    """
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _duration(seconds: float) -> str:
    """A time as one reads it.

    Example:
        >>> _duration(5), _duration(600), _duration(9000)
        ('5.0 s', '10.0 min', '2.5 h')
    """
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
