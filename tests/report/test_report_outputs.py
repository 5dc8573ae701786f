"""What a reader gets: the page, the figures, the tables; safe from any name, and the same from the same records."""

import csv
import html.parser
import io
import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_records import ABOUT, run
from rich.console import Console

import pliant.report
from pliant.errors import RecordError
from pliant.intervals import band
from pliant.report import (
    csv_text,
    figure_svg,
    html_text,
    markdown_text,
    summarise,
    terminal_tables,
    write_csv,
    write_markdown,
    write_report,
)
from pliant.report.curves import Curve, chart_data
from pliant.report.figures import Chart, chart_svg
from pliant.report.metrics import metric_info
from pliant.report.scales import nice_ticks, spread, task_ticks
from pliant.report.style import Style, escape

ROOT = str(Path(pliant.report.__file__).resolve().parents[2])
HOSTILE = (
    "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> & </style></svg>|`*_[a](http://evil.example)\n\x00|"
)
CBP = ("Continual backprop", ({"name": "continual_backprop", "replacement_rate": 0.001},))


@pytest.fixture
def records():
    control = {"name": "control", "num_tasks": 20}
    about = {"title": "Same again", "control": True}
    return (
        run()
        + run(*CBP, start=0.7, end=0.9)
        + run("ReDo", ({"name": "redo", "tau": 0.1},), failed=(2,), diverged=(1,))
        + run(stream=control, about=about, end=0.9, names=("online_accuracy", "test_accuracy"))
        + run(*CBP, stream=control, about=about, end=0.85, names=("online_accuracy", "test_accuracy"))
    )


def hostile_records():
    stream = {"name": HOSTILE, HOSTILE: HOSTILE}
    about = {"title": HOSTILE, "description": HOSTILE}
    config = {"stream": stream, "about": about, "optimizer": {"name": HOSTILE}, "model": HOSTILE}
    meta = {HOSTILE: HOSTILE, "torch": HOSTILE, "started": HOSTILE}
    method = {"name": HOSTILE, HOSTILE: HOSTILE}
    names = ("online_accuracy", HOSTILE)
    return (
        run(HOSTILE, (method,), names=names, meta=meta, **config)
        + run("other", (), names=names, meta=meta, **config)
        + run(HOSTILE + "2", (method,), failed=(1,), names=names, meta=meta, **(config | {"model": "x"}))
    )


class Page(html.parser.HTMLParser):
    """All tags, attributes and visible words of a page, and that every tag is closed in order."""

    VOID = frozenset({"meta", "br", "img", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if not {"style", "script"} & set(self.open):
            self.words += data


# ---- the page


def test_the_page_says_what_it_must(records) -> None:
    text = html_text(records, title="Digits", notes=["A first note.", "A second."])
    words = Page(text).words
    for expected in (
        "Digits with random labels",
        "Labels drawn anew.",
        "Same again",
        "stationary control",
        "first 10 tasks",
        "last 10 tasks",
        "vs no protection",
        "baseline",
        "1, 1 failed, 1 not finite",
        "ReDo, seed 2, broke off after 10 tasks: the loss is NaN",
        "ReDo, seed 1: accuracy while learning is not a finite number in 3 tasks, first in task 18",
        "Accuracy while learning",
        "Held-out accuracy",
        "Dead units",
        "Weight magnitude",
        "continual_backprop(replacement_rate=0.001)",
        "0–2",
        "2.13.0",
        "commit abc",
        "A first note.",
        "A second.",
    ):
        assert expected in words, expected
    for record in records:
        assert record.experiment_id in words
    assert "<title>Digits</title>" in text


def test_the_page_is_complete_without_a_network(records) -> None:
    text = html_text(records)
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"link", "img", "iframe", "object", "embed", "base", "form", "video"}
    for _, attrs in page.tags:
        assert not {"src", "srcset", "action", "data", "background"} & attrs.keys()
        assert attrs.get("href", "#").startswith("#")
    assert not re.search(r"url\(|@import|https?:|//[a-z]", text)
    assert "default-src 'none'" in text


def test_links_lead_somewhere(records) -> None:
    page = Page(html_text(records, notes=["note"]))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["href"][1:] for tag, attrs in page.tags if tag == "a"} <= set(ids)


def test_the_policy_allows_the_script_of_the_page() -> None:
    import base64
    import hashlib

    text = html_text(run())
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in text


def test_hostile_names_stay_text() -> None:
    text = html_text(hostile_records(), title=HOSTILE, notes=[HOSTILE])
    page = Page(text)
    assert "<script>alert" not in text
    assert "<img" not in text
    assert "\x00" not in text
    assert {tag for tag, _ in page.tags if tag == "script"} == {"script"}
    assert text.count("<script>") == 1
    for tag, attrs in page.tags:
        assert tag not in {"img", "b2"}
        assert not any(name.startswith("on") for name in attrs)
        if tag == "a":
            assert attrs["href"].startswith("#")
    # Not swallowed either: the names are readable as they are.
    assert "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> &" in page.words
    for data in re.findall(r'<script type="application/json">(.*?)</script>', text, re.S):
        assert HOSTILE[:30] in json.loads(data)["rows"][1]["label"]


@settings(max_examples=12, deadline=None)
@given(st.text(min_size=1), st.text())
def test_any_name_gives_a_well_formed_page(label: str, title: str) -> None:
    stream, about = {"name": label, "num_tasks": 4}, {"title": title, "description": title}
    records = run(label, ({"name": title},), num_tasks=4, stream=stream, about=about)
    records += run(num_tasks=4, stream=stream, about=about)
    Page(html_text(records, title=title, notes=[label]))
    ET.fromstring(figure_svg(summarise(records), label))


def test_the_same_records_give_the_same_page(records) -> None:
    assert html_text(records) == html_text(list(reversed(records)))
    assert csv_text(records) == csv_text(list(reversed(records)))


def test_one_seed_one_task_nothing_measured_and_everything_failed() -> None:
    for records in (
        run(seeds=(0,)),
        run(num_tasks=1),
        run(num_tasks=2),
        run(names=(), num_tasks=0),
        run(failed=(0, 1, 2)),
        run(diverged=(0, 1, 2), num_tasks=3),
        run(names=("episode_return",), start=-500.0, end=-500.0),
        run(start=0.0, end=0.0, seeds=(0,)),
        run(start=math.inf, end=math.inf),
        run(start=0.1, end=1e200),
    ):
        Page(html_text(records))
        csv_text(records)
        markdown_text(records)
        Console(file=io.StringIO()).print(terminal_tables(records))


def test_one_seed_says_that_it_has_no_interval() -> None:
    assert "± ?" in Page(html_text(run(seeds=(0,)))).words
    assert "± ?" not in Page(html_text(run(seeds=(0, 1)))).words.replace("it says “?”", "")


def test_a_report_on_nothing_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    for write, name in ((write_report, "r.html"), (write_csv, "r.csv"), (write_markdown, "r.md")):
        with pytest.raises(RecordError, match="no records"):
            write([], tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_files_are_written_whole_or_not_at_all(tmp_path: Path, records, monkeypatch) -> None:
    path = write_report(records, tmp_path / "deep" / "report.html", title="First")
    assert path.read_text(encoding="utf-8") == html_text(records, title="First")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RecordError, match="No space left"):
        write_report(records, path, title="Second")
    assert "First" in path.read_text(encoding="utf-8")
    assert list(path.parent.iterdir()) == [path]


# ---- figures


def test_a_standalone_figure_is_well_formed_and_complete(records) -> None:
    text = figure_svg(summarise(records), "digits", "dead_fraction")
    root = ET.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = "".join(root.itertext())
    for expected in ("Digits with random labels: dead units", "Continual backprop", "No protection", "task", "%"):
        assert expected in words
    assert "prefers-color-scheme:dark" in text
    assert "href" not in text


def test_a_figure_of_something_else_says_what_there_is(records) -> None:
    with pytest.raises(RecordError, match="no stream 'x' in these records; there is control, digits"):
        figure_svg(summarise(records), "x")
    with pytest.raises(RecordError, match="measured there: online_accuracy, dead_fraction, weight_magnitude"):
        figure_svg(summarise(records), "digits", "loss")


def curve(*rows: list[float], label: str = "a") -> Curve:
    return Curve(label, band(rows), Style(0))


def test_a_line_goes_where_its_means_are() -> None:
    svg = chart_svg([curve([0.0, 0.5, 1.0], [0.0, 0.5, 1.0])], metric_info("online_accuracy"), Chart(500, 300))
    root = ET.fromstring(svg)
    (line,) = [e for e in root.iter("polyline") if e.get("class") == "line"]
    (x0, y0), (x1, y1), (x2, y2) = (tuple(map(float, p.split(","))) for p in line.get("points").split())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert y0 > y2
    (band_,) = root.iter("polygon")
    assert len(band_.get("points").split()) == 6


def test_a_gap_in_the_data_is_a_gap_in_the_line() -> None:
    nan = math.nan
    svg = chart_svg([curve([0.1, 0.2, nan, 0.4, nan, 0.6, 0.7])], metric_info("loss"), Chart(500, 300))
    root = ET.fromstring(svg)
    lines = [e.get("points").split() for e in root.iter("polyline") if e.get("class") == "line"]
    assert [len(points) for points in lines] == [2, 2]
    assert len(list(root.iter("circle"))) == 1
    assert "nan" not in svg


def test_the_axis_of_an_accuracy_starts_at_zero_or_says_that_it_does_not() -> None:
    accuracy = metric_info("online_accuracy")
    low = chart_svg([curve([0.9, 0.5])], accuracy, Chart(500, 300))
    high = chart_svg([curve([0.9, 0.95])], accuracy, Chart(500, 300))
    assert ">0 %<" in low
    assert "starts at" not in low
    assert "the vertical axis starts at 90 %" in high


def test_what_the_pointer_shows_says_how_many_seeds_are_left() -> None:
    data = json.loads(chart_data([curve([0.5, 0.5], [0.7, math.nan])], metric_info("online_accuracy")))
    (row,) = data["rows"]
    assert row["mean"] == [60.0, 50.0]
    assert row["half"] == [127.1, None]
    assert row["seeds"] == {"1": "1 of 2 seeds"}
    assert (data["tasks"], data["step"], data["percent"]) == (2, 1, True)


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_cover_and_are_round(low: float, width: float) -> None:
    high = low + width
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low + 1e-6 * width
    assert ticks[-1] >= high - 1e-6 * width
    assert 3 <= len(ticks) <= 12


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-300, 1e15])
def test_a_constant_still_gets_an_axis_around_it(value: float) -> None:
    for high in (value, math.nextafter(value, math.inf)):
        ticks = nice_ticks(value, high)
        assert ticks[0] <= value < ticks[-1]
        assert len(set(ticks)) == len(ticks) <= 12


@settings(deadline=None)
@given(st.integers(1, 2000))
def test_task_ticks(num_tasks: int) -> None:
    ticks = task_ticks(num_tasks)
    assert ticks[0] == 1
    assert ticks == sorted(set(ticks))
    assert ticks[-1] <= num_tasks
    assert len(ticks) <= 12


@settings(deadline=None)
@given(st.lists(st.floats(-20, 120), min_size=1, max_size=8))
def test_names_do_not_overlap_and_stay_inside(wanted: list[float]) -> None:
    places = spread(sorted(wanted), 0.0, 100.0, gap=10.0)
    assert len(places) == len(wanted)
    assert all(b - a >= 10.0 - 1e-6 for a, b in pairwise(places))
    assert places[0] >= -1e-6
    assert places[-1] <= 100 + 1e-6


# ---- tables


def test_the_terminal_table_fits_and_marks_what_failed(records) -> None:
    file = io.StringIO()
    Console(file=file, width=100, color_system=None).print(terminal_tables(records))
    text = file.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    assert "Continual backprop" in text
    assert "1 failed" in text
    assert "Held-out" not in text.split("Same again")[0]
    file = io.StringIO()
    Console(file=file, width=200).print(terminal_tables(run("[red]bold[/red] [link=x]y[/link]", ({"name": "x"},))))
    assert "[red]bold[/red] [link=x]y[/link]" in file.getvalue()


def test_markdown_names_cannot_leave_their_cell() -> None:
    lines = markdown_text(hostile_records()).splitlines()
    bars = [len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")]
    assert len(bars) == 15
    assert bars[5:10] == [7] * 5  # the headline table; of each of three tables, all rows have the same cells
    assert len(set(bars[:5])) == len(set(bars[10:])) == 1
    assert all(line.startswith(("|", "###", "Mean", "\\[low")) or not line for line in lines)
    assert "<script>" not in "\n".join(lines)


def test_csv_has_every_metric_in_full_precision(records) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(records))))
    assert len(rows) == 3 * 3 + 2 * 2
    (stream, *_) = summarise(records)
    row = next(r for r in rows if r["method"] == "Continual backprop" and r["metric"] == "online_accuracy")
    assert row["stream"] == "digits"
    assert row["window"] == "10"
    line = [0.7 + (0.9 - 0.7) * t / 19 for t in range(20)]
    assert float(row["first_mean"]) == pytest.approx(sum(line[:10]) / 10 + 0.01, abs=1e-12)
    assert float(row["difference_to_no_protection_low"]) <= float(row["difference_to_no_protection_mean"])
    base = next(r for r in rows if r["method"] == "No protection")
    assert base["difference_to_no_protection_mean"] == base["num_pairs"] == ""
    redo = next(r for r in rows if r["method"] == "ReDo")
    assert (redo["num_seeds"], redo["num_failed"], redo["num_not_finite"]) == ("1", "1", "1")
    assert redo["last_low"] == ""
    assert stream.name == "digits"
    hostile = list(csv.DictReader(io.StringIO(csv_text(hostile_records()))))
    assert {r["stream"] for r in hostile} == {HOSTILE}


# ---- no PyTorch


def test_a_report_never_imports_torch(tmp_path: Path) -> None:
    code = f"""
import os, sys, types
import pliant.report
from pliant.records import Record, experiment_id, read_records, write_record
config = {{"stream": {{"name": "digits"}}, "methods": []}}
name = experiment_id(config, "digits", "none")
for seed in range(2):
    record = Record(experiment=config, experiment_id=name, seed=seed, series={{"online_accuracy": [0.5] * 4}})
    write_record(record, {str(tmp_path)!r})
records = read_records({str(tmp_path)!r})
pliant.report.write_report(records, {str(tmp_path / "report.html")!r})
heavy = sorted({{name.split(".")[0] for name in sys.modules}} & {{"torch", "scipy", "plotly", "matplotlib"}})
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "<h1>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_escape() -> None:
    assert escape("a\x00b\ud800c") == "a\ufffdb\ufffdc"
    assert escape(None) == "None"
    assert ABOUT["title"] == escape(ABOUT["title"])
