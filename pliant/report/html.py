"""The report as one HTML page: no other file, no network, readable in light and dark and without scripts."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from pliant.records import Record
from pliant.report._configuration import configuration_section, provenance
from pliant.report._page import PAGE_STYLE
from pliant.report._script import PAGE_SCRIPT
from pliant.report._sections import (
    beyond_section,
    calm_section,
    cost_section,
    leaderboard_section,
    stability_section,
    tuning_section,
)
from pliant.report._stream import stream_section
from pliant.report._write import write_text
from pliant.report.overview import overview
from pliant.report.style import Style, escape, styles_of, swatch
from pliant.report.summary import Method, Stream, flatten, summarise
from pliant.report.trials import Trials

__all__ = ["html_text", "write_report"]

TITLE = "Does the network keep learning?"


def write_report(
    records: Iterable[Record],
    path: str | os.PathLike[str],
    *,
    title: str = TITLE,
    notes: Sequence[str] = (),
    trials: Sequence[Trials] = (),
    threshold: float | None = None,
) -> Path:
    """Write the report page to a file, whole or not at all.

    Args:
        records: The records to report on, usually :func:`pliant.records.read_records` of a results folder.
        path: The file to write; its folder is made if need be.
        title: The page's title.
        notes: Paragraphs for the section of notes, plain text.
        trials: Lists of tuning trials, of :func:`pliant.report.read_trials`, for best-of-k curves.
        threshold: A level of the score, in its own unit (0.8 for an accuracy of 80 %): the page then says after how
            many tasks each method reaches it.

    Returns:
        The path.

    Raises:
        RecordError: If there is no record, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> from pliant.records import Record, experiment_id
        >>> config = {"stream": {"name": "digits"}, "methods": []}
        >>> name = experiment_id(config, "digits", "none")
        >>> series = {"online_accuracy": [0.9, 0.5]}
        >>> records = [Record(experiment=config, experiment_id=name, seed=s, series=series) for s in range(3)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = write_report(records, folder + "/report.html", title="Two tasks").read_text()
        >>> "<h1>Two tasks</h1>" in page and "http" not in page.replace("http-equiv", "")
        True
    """
    return write_text(path, html_text(records, title=title, notes=notes, trials=trials, threshold=threshold))


def html_text(
    records: Iterable[Record],
    *,
    title: str = TITLE,
    notes: Sequence[str] = (),
    trials: Sequence[Trials] = (),
    threshold: float | None = None,
) -> str:
    """The report page as text; see :func:`write_report`.

    Every text that comes from a record is escaped, and the page's own policy allows no script but its own and no
    address at all.

    Example:
        >>> from pliant.records import Record, experiment_id
        >>> def run(seed, last):
        ...     config = {"stream": {"name": "digits"}, "methods": [], "num_tasks": 2}
        ...     name = experiment_id(config, "digits", "none")
        ...     return Record(experiment=config, experiment_id=name, seed=seed, series={"online_accuracy": [0.5, last]})
        >>> records = [run(0, 0.25), run(1, 0.75)]
        >>> from pliant.report import html_text
        >>> "<title>Mine</title>" in html_text(records, title="Mine")
        True
    """
    streams = summarise(records)
    styles = styles_of(streams)
    found = overview(streams, threshold)
    sections = [
        ("leaderboard", "Leaderboard", leaderboard_section(found, styles)),
        *(
            (
                f"stream-{i}",
                stream.title,
                stream_section(stream, styles, f"stream-{i}", num_streams=len(streams), threshold=threshold),
            )
            for i, stream in enumerate(streams)
        ),
        ("beyond", "Beyond the mean", beyond_section(found, styles)),
        ("calm", "When nothing changes", calm_section(found, styles)),
        ("stability", "Stability", stability_section(found, styles)),
        ("cost", "Cost", cost_section(found, styles)),
        ("tuning", "Tuning", tuning_section(trials, styles)),
        ("reading", "How to read this", _reading_section(streams)),
        ("configuration", "What exactly was run", configuration_section(streams, styles)),
        ("notes", "Notes", _notes_section(notes)),
    ]
    script_hash = base64.b64encode(hashlib.sha256(PAGE_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script_hash}'"
    links = "".join(f'<a href="#{anchor}">{escape(name)}</a>' for anchor, name, section in sections if section)
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(title)}</title><style>{PAGE_STYLE}</style></head><body>\n",
        f'<header><div class="brand">Pliant report</div><h1>{escape(title)}</h1>{_lede(streams)}',
        f"<nav>{links}</nav></header>\n<main>\n",
        _filters(streams, styles),
        *(section for _, _, section in sections),
        f"</main>\n<footer><p>{_footer(streams)}</p></footer>\n",
        f"<script>{PAGE_SCRIPT}</script></body></html>\n",
    ]
    return "".join(parts)


# ---------------------------------------------------------------------------------------------------- the top


def _lede(streams: Sequence[Stream]) -> str:
    """What was run, in plain words."""
    labels = {m.label for s in streams for m in s.methods}
    seeds = sorted({len(m.complete) + len(m.failed) for s in streams for m in s.methods})
    each = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    methods = "One way of training" if len(labels) == 1 else f"{_count(len(labels)).capitalize()} ways of training"
    of = "a stream of tasks" if len(streams) == 1 else f"{_count(len(streams))} streams of tasks"
    runs = sum(len(m.complete) + len(m.failed) for s in streams for m in s.methods)
    seeds_word = "seed" if each == "1" else "seeds"
    return (
        f'<p class="lede">A neural network that is trained on one task after another can slowly lose its ability to '
        f"learn: it is said to lose plasticity. {methods} met {of} here, each with {each} {seeds_word}. A network "
        f"that keeps its plasticity learns the last task as well as the first.</p>"
        f'<p class="facts">{runs} {"run" if runs == 1 else "runs"} · {escape(provenance(streams))}</p>'
    )


def _filters(streams: Sequence[Stream], styles: dict[str, Style]) -> str:
    """One button per method, which is the legend of all figures too, a search and the choice of a stream."""
    methods: dict[str, list[Method]] = {}
    for stream in streams:
        for method in stream.methods:
            methods.setdefault(method.label, []).append(method)
    buttons = "".join(
        f'<button type="button" aria-pressed="true" data-label="{escape(label)}" data-search="{escape(_words(own))}">'
        f"{swatch(styles[label])}{escape(label)}</button>"
        for label, own in methods.items()
    )
    options = "".join(f'<option value="stream-{i}">{escape(s.title)}</option>' for i, s in enumerate(streams))
    choice = (
        '<label class="control">Stream<select id="streams"><option value="">all streams</option>'
        f"{options}</select></label>"
        if len(streams) > 1
        else ""
    )
    return (
        '<div class="filters" role="search" aria-label="Filter this page">'
        '<label class="control">Methods<input type="search" id="search" placeholder="name or setting"></label>'
        f'{choice}<button type="button" class="reset control">Show all</button>'
        f'<output id="count" class="control muted"></output><div class="legend">{buttons}</div></div>\n'
    )


def _words(methods: Sequence[Method]) -> str:
    """What a search looks through: the name, and the settings of the method and of the optimizer and model."""
    words = [methods[0].label]
    for method in methods:
        settings = {k: v for k, v in method.experiment.items() if k != "stream"}
        words += [f"{key.rsplit('.', 1)[-1]} {value}" for key, value in flatten(settings).items()]
    return " ".join(dict.fromkeys(words)).lower()


# ------------------------------------------------------------------------------------------------- the bottom


def _reading_section(streams: Sequence[Stream]) -> str:
    k = max(s.window for s in streams)
    items = (
        f"<b>First and last {k} tasks.</b> Each seed's mean over those tasks (marked in the figures), then the mean "
        "over seeds. Shorter streams use half of their tasks at either end.",
        "<b>± and bands.</b> Half of the 95 % interval of the mean over seeds (Student's t). With one seed there is "
        "no interval, and it says “?”.",
        "<b>[low, high].</b> 95 % interval by stratified bootstrap: the seeds of each stream are drawn anew, 10,000 "
        "times (2,000 for profiles) with a fixed seed, and the quantiles are widened for few seeds.",
        "<b>vs no protection.</b> The mean over seeds of the difference to unprotected training on the same seed: the "
        "same data in the same order. Coloured where the p-value of Student's paired test is below 0.05 after Holm's "
        "correction for all methods of the table. The intervals themselves are not corrected.",
        "<b>Failed runs.</b> A run that broke off, or whose numbers are not finite, is in no mean, because what it "
        "would have reached is unknown. It is counted in red beside every mean that lacks it. In ranks, probabilities, "
        "profiles and interquartile means a run that diverged counts as the worst.",
        "<b>Reference.</b> A freshly initialised network for every task. It cannot lose plasticity, but it starts "
        "without experience: a network that is warm may do better.",
    )
    body = "".join(f"<p>{item}</p>" for item in items)
    return f'<section id="reading"><h2>How to read this page</h2><div class="text">{body}</div></section>\n'


def _notes_section(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    body = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return f'<section id="notes"><h2>Notes</h2><div class="text">{body}</div></section>\n'


def _footer(streams: Sequence[Stream]) -> str:
    num = sum(len(m.complete) + len(m.failed) for s in streams for m in s.methods)
    return (
        f"Made by Pliant from {num} records, and from nothing else: the numbers of every run lie beside its "
        "configuration in the results folder. This page loads nothing from anywhere."
    )


def _count(number: int) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    return words[number] if number < len(words) else str(number)
