"""What the studies of the manifolds share: records, streams, files of images, networks, figures."""

from __future__ import annotations

import dataclasses
import doctest
import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from benchmarks.manifolds import (
    bit_flips,
    bit_flips_page,
    cloning,
    normalisation,
    rank,
    streams,
    symptoms,
    text,
)
from benchmarks.manifolds.common import ROOT, Records, seeded
from benchmarks.manifolds.draw import Line, Panel, Row, panels, rows
from benchmarks.manifolds.models import MINI, NETWORKS, NORMS, build
from benchmarks.manifolds.text import exact
from pliant.bench.data.files import ENVIRONMENT, DataError
from pliant.bench.streams.base import Stream, traits
from pliant.errors import IllegalConfiguration
from pliant.intervals import Estimate, estimate

STUDIES = {"cloning": cloning, "normalisation": normalisation, "bit_flips": bit_flips, "rank": rank}
SVG = "{http://www.w3.org/2000/svg}"


# ---- records ----
def test_a_torn_line_is_cut_off(tmp_path: Path) -> None:
    records = Records(tmp_path, {"lr": 0.1})
    records.add("a", {"cell": {"k": 1}, "seed": 1})
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"cell": {"k": 1}, "se')
    assert [record["seed"] for record in records.read("a")] == [1]
    records.add("a", {"cell": {"k": 1}, "seed": 0})
    assert [record["seed"] for record in Records(tmp_path, {"lr": 0.1}).all()] == [0, 1]
    assert (tmp_path / "a.jsonl").read_text().count("\n") == 2


def test_records_of_other_settings_are_refused(tmp_path: Path) -> None:
    Records(tmp_path, {"lr": 0.1, "steps": 3}).add("a", {"cell": {}, "seed": 0})
    with pytest.raises(SystemExit, match="lr"):
        Records(tmp_path, {"lr": 0.2, "steps": 3})


def test_what_is_missing_comes_seed_by_seed(tmp_path: Path) -> None:
    study = normalisation.STUDY
    preset = study.presets["tiny"]
    records = study.records("tiny", tmp_path)
    cell = study.cells(preset)[5]
    records.add(study.file_of(cell), {"cell": cell, "seed": 0})
    todo = list(study.missing(records, preset, [0, 1], ["mlp"]))
    assert len(todo) == 2 * 12 - 1
    assert [seeds for _, seeds in todo] == [[0]] * 11 + [[1]] * 12
    assert (cell, [0]) not in todo
    together = list(bit_flips.STUDY.missing(Records(tmp_path / "b", {}), bit_flips.PRESETS["tiny"], [0, 1], []))
    assert together == [({"width": 3}, [0, 1])]


@pytest.mark.parametrize("name", list(STUDIES))
def test_committed_records_are_small_and_of_the_settings(name: str) -> None:
    study = STUDIES[name].STUDY
    files = sorted(study.records("mini").folder.glob("*"))  # other settings would be refused here
    assert files
    assert [path.name for path in files if path.stat().st_size > 1_000_000] == []
    seeds = {record["seed"] for record in study.records("mini").all()}
    assert len(seeds) >= 5


@pytest.mark.parametrize("name", list(STUDIES))
def test_pages_are_what_the_records_say(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.manifolds.common import main

    assert main(STUDIES[name].STUDY, ["page", "--check"]) == 0, capsys.readouterr().out


def test_examples_in_the_studies() -> None:
    for module in (bit_flips_page, cloning, streams, symptoms, text):
        found = doctest.testmod(module)
        assert found.failed == 0
        assert found.attempted > 0


def test_purposes_do_not_share_a_state() -> None:
    drawn = []
    for key in (("a", 1), ("a", 2), ("b", 1), ("a", 1, 2)):
        seeded(*key)
        drawn.append(torch.rand(()).item())
    assert len(set(drawn)) == 4
    seeded("a", 1)
    assert torch.rand(()).item() == drawn[0]


# ---- streams ----
def test_transforms_are_different_and_keep_neighbours() -> None:
    image = torch.rand(8, 8)
    seen = [streams.transformed(image, which) for which in range(streams.NUM_TRANSFORMS)]
    assert torch.equal(seen[0], image)
    assert torch.equal(seen[9], 1 - torch.rot90(image))
    for place, one in enumerate(seen):
        assert not any(torch.equal(one, other) for other in seen[:place])
        rough = ((one[1:] - one[:-1]).abs().sum() + (one[:, 1:] - one[:, :-1]).abs().sum()).item()
        whole = ((image[1:] - image[:-1]).abs().sum() + (image[:, 1:] - image[:, :-1]).abs().sum()).item()
        assert rough == pytest.approx(whole, rel=1e-5)


def test_digit_tasks_show_every_class_once() -> None:
    stream = streams.TransformedDigits(num_examples=20, num_test=10)
    shown = [stream.classes(index, 3) for index in range(stream.max_tasks)]
    assert sorted(label for labels in shown for label in labels) == list(range(stream.num_classes))
    assert all(len({label % 10 for label in labels}) == 5 for labels in shown)
    assert shown != [stream.classes(index, 4) for index in range(stream.max_tasks)]
    with pytest.raises(IllegalConfiguration, match="tasks 0 to 31"):
        stream.task(32, 0)


def test_digit_tasks_are_random_access() -> None:
    stream = streams.TransformedDigits(num_examples=20, num_test=10)
    task = stream.task(7, 3)
    stream.task(2, 3)
    again = stream.task(7, 3)
    assert torch.equal(task.inputs, again.inputs)
    assert torch.equal(task.targets, again.targets)
    labels, counts = task.targets.unique(return_counts=True)
    assert tuple(labels.tolist()) == stream.classes(7, 3)
    assert counts.tolist() == [4] * 5
    assert task.test_inputs is not None
    assert len(task.test_inputs) == 10
    # Digits for tests are not among those learnt.
    assert (torch.cdist(task.inputs.flatten(1), task.test_inputs.flatten(1)) > 0).all()
    assert not torch.equal(task.inputs, stream.task(7, 4).inputs)


def test_the_digits_of_a_task_are_the_shipped_ones() -> None:
    from pliant.bench.data.digits import load_digits

    inputs, labels = load_digits()
    stream = streams.TransformedDigits(num_examples=10, num_test=5)
    task = stream.task(0, 0)
    for row, label in zip(task.inputs, task.targets.tolist(), strict=True):
        known = streams.transformed(inputs[labels == label % 10].unflatten(1, (8, 8)), label // 10)
        assert (known == row).flatten(1).all(1).any()


def test_tasks_say_what_takes_part() -> None:
    for stream in (streams.TransformedDigits(20, 10), streams.ImageClasses(classes_per_task=3, num_epochs=1)):
        assert isinstance(stream, Stream)
        task = stream.task(1, 0)
        assert task.active_outputs == stream.classes(1, 0) == tuple(sorted(set(task.targets.tolist())))
        assert task.reset_head
        assert traits(stream).input_shape == tuple(task.inputs.shape[1:])
        assert traits(stream).max_tasks == stream.max_tasks


def test_image_tasks_have_classes_of_their_own() -> None:
    stream = streams.ImageClasses(classes_per_task=3, num_train=20, num_test=10, num_epochs=1, pad=2)
    assert stream.max_tasks == 3
    shown = [label for index in range(3) for label in stream.classes(index, 0)]
    assert len(set(shown)) == 9
    task = stream.task(2, 0)
    assert torch.equal(task.inputs, stream.task(2, 0).inputs)
    assert len(task.inputs) == 60
    batch = task.augmented(task.inputs[:8], 0, 0)
    assert batch.shape == task.inputs[:8].shape
    assert not torch.equal(batch, task.inputs[:8])
    plain = streams.ImageClasses(classes_per_task=3, num_train=20, num_test=10, num_epochs=1).task(2, 0)
    assert torch.equal(plain.augmented(plain.inputs, 0, 0), plain.inputs)
    with pytest.raises(IllegalConfiguration, match="tasks 0 to 2"):
        stream.task(3, 0)


def test_presets_of_the_published_sizes_ask_for_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    for name in ("cifar100", "published"):
        stream = normalisation.PRESETS[name].stream()
        assert stream.max_tasks == normalisation.PRESETS[name].num_tasks
        with pytest.raises(DataError, match=str(tmp_path)):
            stream.task(0, 0)
    with pytest.raises(DataError, match="CIFAR-10 lacks"):
        cloning.problem_of(cloning.PRESETS["published"], 0)


# ---- networks ----
@pytest.mark.parametrize("network", list(NETWORKS))
@pytest.mark.parametrize("norm", NORMS)
def test_networks_have_the_norm_that_was_asked_for(network: str, norm: str) -> None:
    torch.manual_seed(0)
    model = build(network, MINI, (1, 8, 8), 7, norm=norm, dropout=0.25)
    assert model(torch.rand(4, 1, 8, 8)).shape == (4, 7)
    kinds = [type(module).__name__ for module in model.modules()]
    batch = sum("BatchNorm" in kind for kind in kinds)
    layer = sum(kind in ("LayerNorm", "GroupNorm") for kind in kinds)
    assert (batch > 0, layer > 0) == (norm == "batch", norm == "layer")
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}
    other = build(network, MINI, (1, 8, 8), 7, norm="none", dropout=0.0)
    assert sum("Norm" in type(module).__name__ for module in other.modules()) == 0


def test_batch_norm_of_tokens_is_per_dimension() -> None:
    torch.manual_seed(0)
    model = build("vit", MINI, (1, 8, 8), 7, norm="batch", dropout=0.0)
    out = model.norm(torch.randn(6, 16, 32) * 3 + 1)
    assert out.mean((0, 1)).abs().max() < 1e-5
    assert (out.std((0, 1), correction=0) - 1).abs().max() < 1e-3


# ---- figures and text ----
def test_figures_are_well_formed_and_inside() -> None:
    points = [estimate([1.0, 2.0]), Estimate(math.nan, math.nan, math.nan, 0), estimate([3.0])]
    drawn = panels(
        "A < B", [Panel("p & q", "step", [Line("a", 0, [1, 10, 100], points, 1)], log_x=True, log_y=True)] * 3, 2
    )
    root = ElementTree.fromstring(drawn)
    height = float(root.attrib["viewBox"].split()[3])
    for line in root.iter(f"{SVG}polyline"):
        for pair in line.attrib["points"].split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= 960
            assert 0 <= y <= height
    assert "nan" not in drawn
    dots = rows("rows", [Row("r", [(0, estimate([0.1, 0.3])), (1, points[1])])], [(0, "net")], "x", limits=(-1, 1))
    assert len(list(ElementTree.fromstring(dots).iter(f"{SVG}circle"))) == 2  # one in the legend
    assert "nan" not in dots


def test_panels_scale_as_they_say() -> None:
    """Equal ratios are equal distances on a logarithmic axis."""
    lines = [Line("a", 0, [1, 10, 100], [estimate([value]) for value in (1.0, 10.0, 100.0)])]
    root = ElementTree.fromstring(panels("t", [Panel("p", "x", lines, log_x=True, log_y=True)], 1))
    drawn = [line for line in root.iter(f"{SVG}polyline") if len(line.attrib["points"].split()) == 3]
    (x0, y0), (x1, y1), (x2, y2) = (map(float, pair.split(",")) for pair in drawn[0].attrib["points"].split())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert y2 < y0


def test_ranges_of_rounding() -> None:
    assert exact([1e-16, 0.0, None]) == "0 to 1e-16"
    assert exact([0.0, 0.0]) == "0"
    assert exact([math.nan]) == "–"


def test_expectations_are_judged_one_by_one() -> None:
    """Every claim has an id, and no preset of the published sizes lacks a setting."""
    told = json.loads((ROOT / "benchmarks" / "manifolds" / "expectations.json").read_text(encoding="utf-8"))
    assert set(told) == {*STUDIES, "normalisation_fresh", "normalisation_images"}
    for name, module in STUDIES.items():
        ids = [claim["id"] for claim in told[name]["claims"]]
        assert len(set(ids)) == len(ids)
        assert {"mini", "tiny", "published"} <= set(module.STUDY.presets)
        for preset in module.STUDY.presets.values():
            assert json.loads(json.dumps(dataclasses.asdict(preset)))
