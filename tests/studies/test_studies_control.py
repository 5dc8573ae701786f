"""Fresh networks beside aged ones, images as published, other settings and devices, forecasts."""

from __future__ import annotations

import doctest
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.manifolds import augment, cloning, forecast, normalisation, streams
from benchmarks.manifolds import normalisation_control as control
from benchmarks.manifolds.common import EXPECTATIONS, changed, drawn, main, seeded, usable
from benchmarks.manifolds.models import NORMS, TITLES
from pliant.errors import IllegalConfiguration


# ---- fresh networks ----
def run(online: list[float], fresh: list[float], **cell: Any) -> dict[str, Any]:
    other = {"trained": [1.0] * len(online), "test": [0.5] * len(online)}
    new = {"online": fresh, "trained": [0.9] * len(fresh), "test": [0.5] * len(fresh)}
    return {"cell": cell, "seed": cell.pop("seed", 0), "online": online, **other, "fresh": new, "looks": []}


def test_what_is_lost_is_what_a_fresh_network_has_more_on_the_same_tasks() -> None:
    found = run([0.9, 0.9, 0.4, 0.6], [0.7, 0.7])
    assert control.fresh(found) == pytest.approx(0.7)
    assert control.behind(found) == pytest.approx(0.5 - 0.7)  # the first tasks do not count
    assert control.behind(found, "trained") == pytest.approx(0.1)
    assert control.behind(found, "test") == 0


def test_cells_behind_are_named_with_their_factors() -> None:
    records = [
        run([0.5, 0.5 + 0.01 * seed], [0.6 if norm == "batch" and dropout else 0.5], network="mlp", norm=norm,
            dropout=dropout, noise=noise, seed=seed)
        for norm in NORMS for dropout in (False, True) for noise in (False, True) for seed in range(3)
    ]  # fmt: skip
    gap = control.lost(records)
    assert control.named(gap, ["mlp"], -1).startswith("MLP (BatchNorm, dropout) −0.09")
    assert control.named(gap, ["mlp"], -1).count("MLP") == 2
    assert control.named(control.lost(records, "test"), ["mlp"], -1) == "none"


def test_every_expectation_of_the_control_is_judged() -> None:
    records = [run([0.5] * 4, [0.4], network=network, norm=norm, dropout=dropout, noise=noise, seed=seed)
               for network in TITLES for norm in NORMS for dropout in (False, True) for noise in (False, True)
               for seed in range(2)]  # fmt: skip
    told = json.loads(EXPECTATIONS.read_text(encoding="utf-8"))
    for name, judge in {"fresh": control.fresh_claims, "images": control.image_claims}.items():
        found = judge(records)
        assert set(found) == {claim["id"] for claim in told[f"normalisation_{name}"]["claims"]}
    assert control.fresh_claims(records)["none_ahead"]
    assert not control.fresh_claims(records)["batch_behind"]


def test_fresh_networks_learn_the_last_tasks_as_the_aged_one_would_have_learnt_a_first_one() -> None:
    """A fresh network and the aged one of a run of one task differ in their initial weights only."""
    preset = changed(normalisation.PRESETS["tiny"], ["num_tasks=1", "num_fresh=1"])
    cell = {"network": "mlp", "norm": "batch", "dropout": False, "noise": False}
    cpu = torch.device("cpu")
    ((_, found),) = normalisation.one(preset, cell, [3], cpu)
    task = preset.stream().task(0, 3)
    seeded("normalisation fresh network", 3, 0)
    learner = normalisation.Learner(preset, cell, (1, 8, 8), 160, drawn("normalisation fresh noise", 3, 0), cpu)
    assert found["fresh"] == {name: [value] for name, value in learner.learn(task, cpu).items()}
    assert found["fresh"]["online"] != found["online"]
    ((_, none),) = normalisation.one(changed(preset, ["num_tasks=2", "num_fresh=0"]), cell, [3], cpu)
    assert none["fresh"]["online"] == []
    assert none["online"][0] == found["online"][0]  # fresh networks draw apart from the aged one


# ---- images as published ----
def test_shifts_show_black_and_nothing_else_is_new() -> None:
    x = torch.rand(6, 3, 8, 8).add(0.5).clamp(max=1)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    scaled = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    made = augment.CropFlipJitter(2, 0.0, mean, std)(scaled, np.random.default_rng(0))
    pixels = made * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    for one, shown in zip(x, pixels, strict=True):
        known = torch.cat([one.flatten(), torch.zeros(1)])
        assert ((shown.flatten()[:, None] - known).abs().min(1).values < 1e-5).all()
    assert (pixels.abs() < 1e-5).any()  # zeros before scaling, not after it


def test_jitter_changes_brightness_contrast_and_saturation_one_by_one() -> None:
    torch.manual_seed(0)
    x, ones = torch.rand(3, 3, 4, 4) * 0.5 + 0.25, torch.ones(3, 3)
    order = torch.tensor([[0, 1, 2], [2, 1, 0], [1, 0, 2]])
    assert torch.allclose(augment.jittered(x, ones, order), x)
    grey = (x * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    for which, towards in enumerate((torch.zeros_like(grey), grey.mean((2, 3), keepdim=True), grey)):
        factors = ones.clone()
        factors[:, which] = 0.8
        assert torch.allclose(augment.jittered(x, factors, order), 0.8 * x + 0.2 * towards, atol=1e-6)
    factors = torch.tensor([[0.9, 1.1, 1.0]]).expand(3, 3)
    found = augment.jittered(x, factors, order)
    by_hand = 0.9 * x[0]
    mean = (by_hand * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0).mean()
    assert torch.allclose(found[0], 1.1 * by_hand - 0.1 * mean, atol=1e-6)  # contrast sees what brightness left
    assert augment.jittered(x, 3 * ones, order).max() <= 1


def test_every_image_has_colours_of_its_own_and_the_range_is_kept() -> None:
    x, rng = torch.full((400, 3, 4, 4), 0.5), np.random.default_rng(0)
    made = augment.CropFlipJitter(1, 0.1, (0.0,) * 3, (1.0,) * 3)(x, rng)
    brightness = made.amax((1, 2, 3)) / 0.5  # of a grey image with a black edge, whose contrast counts for little
    assert 0.85 < brightness.min() < 0.92
    assert 1.08 < brightness.max() < 1.15
    assert len(brightness.unique()) > 300


def test_the_published_streams_have_the_published_transforms() -> None:
    published = normalisation.PRESETS["published"].stream()
    assert (published.pad, published.jitter, published.scaling) == (8, 0.1, "channel")
    cifar = normalisation.PRESETS["cifar100"].stream()
    assert (cifar.pad, cifar.jitter) == (4, 0.0)
    small = normalisation.PRESETS["images"].stream()
    assert (small.subset, small.num_train, small.pad) == (100, 100, 0)
    for wrong, message in (({"jitter": 0.1}, "pad above 0"), ({"pad": 2, "flat": True}, "flat=False")):
        with pytest.raises(IllegalConfiguration, match=message):
            streams.ImageClasses(**wrong)


# ---- other settings, other devices ----
def test_settings_can_be_changed_where_the_records_are_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = changed(cloning.PRESETS["tiny"], ["steps=2", "data=cifar100_subset", "measured_at=[0]"])
    assert (made.steps, made.data, made.measured_at) == (2, "cifar100_subset", [0])
    with pytest.raises(SystemExit, match="give name=value, of data, num_examples"):
        changed(cloning.PRESETS["tiny"], ["stepz=2"])
    with pytest.raises(SystemExit):
        main(cloning.STUDY, ["run", "--preset", "tiny", "--set", "steps=2"])
    assert "say with --out" in capsys.readouterr().err
    options = ["--preset", "tiny", "--only", "mlp", "--seeds", "1", "--out", str(tmp_path)]
    assert main(cloning.STUDY, ["run", *options, "--set", "steps=2"]) == 0
    assert json.loads((tmp_path / "settings.json").read_text())["steps"] == 2
    with pytest.raises(SystemExit, match="other settings"):
        main(cloning.STUDY, ["run", *options])
    with pytest.raises(SystemExit, match=r"other settings \(device\)"):
        main(cloning.STUDY, ["run", *options, "--set", "steps=2", "--device", "cuda"])


def test_a_device_that_is_not_there_is_named() -> None:
    assert usable("cpu").type == "cpu"
    for name in ("meta", "nonsense", *([] if torch.cuda.is_available() else ["cuda"])):
        with pytest.raises(SystemExit, match=f"--device {name} cannot be used here"):
            usable(name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("module", [cloning, normalisation])
def test_an_accelerator_runs_the_studies(module: Any, tmp_path: Path) -> None:
    options = ["run", "--preset", "tiny", "--seeds", "0", "--device", "cuda", "--out", str(tmp_path)]
    assert main(module.STUDY, options) == 0
    assert all("device" in record["environment"] for record in map(json.loads, (tmp_path / "vit.jsonl").open()))


def test_weights_dropout_and_noise_of_a_run_are_drawn_apart() -> None:
    purposes = ("cloning base", "cloning fresh", "cloning dropout", "cloning noise", "cloning small noise")
    assert len({drawn(purpose, seed) for purpose in purposes for seed in range(5)}) == 25


# ---- real images ----
def test_real_images_are_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = importlib.util.spec_from_file_location("data_files", Path(__file__).parents[1] / "bench" / "data_files.py")
    assert files is not None
    assert files.loader is not None
    module = importlib.util.module_from_spec(files)
    files.loader.exec_module(module)
    module.write_cifar(tmp_path, "cifar100", (100, 50))
    monkeypatch.setenv("PLIANT_DATA_DIR", str(tmp_path))
    preset = changed(normalisation.PRESETS["images"], ["num_tasks=2", "num_fresh=1", "num_seen=20", "batch_size=250"])
    cell = {"network": "mlp", "norm": "none", "dropout": False, "noise": False}
    ((_, found),) = normalisation.one(preset, cell, [0], torch.device("cpu"))
    assert [len(found[name]) for name in ("online", "trained", "test")] == [2, 2, 2]
    assert len(found["fresh"]["online"]) == 1
    x, y, shape, classes = cloning.problem_of(changed(cloning.PRESETS["tiny"], ["data=cifar100_subset"]), 0)
    assert (len(x), shape, classes, x.dtype, len(y)) == (32, (3, 32, 32), 100, torch.float64, 32)


# ---- forecasts ----
def test_examples() -> None:
    for module in (augment, forecast):
        found = doctest.testmod(module)
        assert found.failed == 0
        assert found.attempted > 0


def test_a_forecast_is_a_line_through_two_batches() -> None:
    assert forecast.line_through([4, 12], [1.0, 2.0], 128) == pytest.approx(1 + 124 / 8)
    assert forecast.line_through([4, 12], [1.0, 0.9], 128) == 1.0  # noise makes no negative slope


def test_the_committed_forecast_has_every_network_of_the_published_presets() -> None:
    told = json.loads(forecast.FILE.read_text(encoding="utf-8"))
    have = {(row["study"], row["what"]) for row in told["rows"] if row["preset"] == "published"}
    wanted = {(study, network) for study in ("cloning", "normalisation") for network in TITLES}
    assert have == wanted | {("bit_flips", width) for width in ("5", "10", "50", "100")}
    for row in told["rows"]:
        assert row["hours"] > 0
        assert row["gb"] > 0
        assert row["steps"] * row["step"] / 3600 <= 20 * row["hours"]
    for study in ("cloning", "normalisation", "bit_flips"):
        assert "a forecast" in forecast.section(study)[0]
