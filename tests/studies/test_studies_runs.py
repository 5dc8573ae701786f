"""Each study end to end at the size of a toy, and its parts against what can be done by hand."""

from __future__ import annotations

import copy
import json
import math
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.manifolds import bit_flips, bit_flips_page, cloning, cloning_page, normalisation, rank, symptoms
from benchmarks.manifolds.common import Study, main
from benchmarks.manifolds.models import NARROW
from pliant import metrics
from pliant.bench.ensemble import stack
from pliant.bench.streams import SlowlyChangingRegression
from pliant.units import find_units


def ran(study: Study, out: Path, *arguments: str) -> list[dict[str, Any]]:
    """The records of a toy run; running again adds nothing."""
    command = ["run", "--preset", "tiny", "--out", str(out), *arguments]
    assert main(study, command) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert main(study, command) == 0
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}
    return study.records("tiny", out).all()


# ---- cloning ----
def test_cloning_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = ran(cloning.STUDY, tmp_path, "--seeds", "0", "1")
    assert [r["cell"]["network"] for r in records] == ["convnet"] * 2 + ["mlp"] * 2 + ["resnet"] * 2 + ["vit"] * 2
    for record in records:
        assert record["change"] <= 1e-12
        found = record["treatments"]
        assert set(found) == {*cloning.CLONES, *cloning.OTHERS}
        assert [point[0] for point in found["sgd"]["curve"]] == [0, 1, 4]
        for name in ("sgd", "momentum", "adam"):
            assert cloning_page.end(record, name, "distance") < 1e-12
            assert cloning_page.end(record, name, "missing") < 1e-12
        for name in ("noise", "noise_once", "noise_small", "dropout"):
            assert cloning_page.end(record, name, "distance") > 1e-6
        assert found["base_matched"]["difference"] < 1e-9 < found["base"]["difference"]
        assert found["sgd"]["published"] == pytest.approx(0.5)
    capsys.readouterr()
    assert main(cloning.STUDY, ["page", "--preset", "tiny", "--out", str(tmp_path), "--show"]) == 0
    page = capsys.readouterr().out
    assert "nan" not in page
    assert page.count("\n| ") > 30


def test_published_noise_grows_with_the_size_of_a_tensor() -> None:
    model = nn.Linear(40, 40, bias=False)
    gradient = torch.randn(40, 40)
    model.weight.grad = gradient.clone()
    cloning.PublishedNoise(0.01, 0.5, seed=3)(model, 2)
    ratio = (model.weight.grad - gradient).norm() / gradient.norm()
    assert float(ratio) == pytest.approx(0.01 * 0.25 * 40, rel=0.1)
    once = cloning.PublishedNoise(0.01, 0.0)
    model.weight.grad = gradient.clone()
    once(model, 1)
    assert torch.equal(model.weight.grad, gradient)
    once(model, 0)
    assert not torch.equal(model.weight.grad, gradient)


def test_batches_are_whole_passes() -> None:
    seen = list(cloning.batches(10, 3, 7, 1, 2))
    assert [len(rows) for rows in seen] == [3] * 7
    for start in (0, 3):
        assert len(torch.cat(seen[start : start + 3]).unique()) == 9
    assert torch.equal(seen[0], next(cloning.batches(10, 3, 1, 1, 2)))
    assert len(list(cloning.batches(2, 3, 2, 0))) == 2  # fewer examples than a batch


def test_the_clone_of_a_size_is_as_wide_as_that_size_doubled() -> None:
    from pliant.manifolds import clone

    for network in ("convnet", "vit"):
        options = {"norm": "none", "dropout": 0.0}
        base = cloning.build(network, NARROW, (1, 8, 8), 10, **options).double()
        wide = clone(base, 2, torch.rand(3, 1, 8, 8).double())
        sizes = {network: cloning.doubled(NARROW[network])}
        fresh = cloning.build(network, sizes, (1, 8, 8), 10, **options)
        shapes = [{name: p.shape for name, p in model.named_parameters()} for model in (wide.model, fresh)]
        assert shapes[0] == shapes[1]


def fake(loss: dict[str, float], seed: int) -> dict[str, Any]:
    treatments = {
        name: {"loss": value, "curve": [[0, 0.0, 0.0], [4, 0.5, 0.25]], "published": 0.4, "missing_both": 0.2}
        for name, value in loss.items()
    }
    return {"cell": {"network": "mlp"}, "seed": seed, "treatments": treatments}


def test_ends_and_differences_by_hand() -> None:
    runs = [fake({"sgd": 1.0 + seed, "noise": 0.5 + seed}, seed) for seed in range(3)]
    assert cloning_page.end(runs[0], "sgd", "distance") == 0.5
    assert cloning_page.end(runs[0], "sgd", "ratio") == 0.75
    found = cloning_page.difference(runs, "noise", "sgd")
    assert (found.mean, found.half_width) == (pytest.approx(-0.5), pytest.approx(0.0))


def test_published_measures_by_hand() -> None:
    """Two clones that differ by 2 around their means, which are 0 and 4."""
    labels = torch.tensor([0, 0, 1, 1])
    values = torch.tensor([[-1.0, 1.0, 3.0, 5.0]])
    deviation = math.sqrt((9 + 1 + 1 + 9) / 4)
    assert symptoms.published_cloning(values, labels) == pytest.approx(1 - 1 / deviation)
    shuffled = [0, 2, 1, 3]
    assert symptoms.published_cloning(values[:, shuffled], labels[shuffled]) == pytest.approx(1 - 1 / deviation)
    # The ratio of variances is 1 - 4/20: a ratio of deviations falls earlier.
    act, grad = torch.ones(200, 3), torch.ones(200, 3)
    grad[:199, 0], grad[:, 1] = 1e-5, 1e-5
    assert symptoms.published_saturated(act, grad) == pytest.approx(2 / 3)
    assert symptoms.published_saturated(act, 1e-5 * grad) == 1.0


# ---- normalisation ----
def test_normalisation_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = ran(normalisation.STUDY, tmp_path, "--seeds", "0", "--only", "mlp", "vit")
    assert len(records) == 24
    for record in records:
        assert len(record["online"]) == len(record["test"]) == 2
        assert [look["task"] for look in record["looks"]] == [0, 1]
        assert all(0 <= record["looks"][1][name] <= 1 for name in symptoms.SYMPTOMS)
    by_cell = {json.dumps(r["cell"]): r for r in records}
    assert len({json.dumps(r["looks"]) for r in by_cell.values()}) == 24  # every factor does something
    capsys.readouterr()
    assert main(normalisation.STUDY, ["page", "--preset", "tiny", "--out", str(tmp_path), "--show"]) == 0
    page = capsys.readouterr().out
    assert "LayerNorm × dropout" in page
    assert "nan" not in page


def test_accuracy_counts_the_outputs_of_the_task_only() -> None:
    model = nn.Sequential(nn.Linear(1, 3, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[9.0], [1.0], [2.0]]))
    outputs = torch.tensor([1, 2])
    assert normalisation.accuracy(model, torch.ones(2, 1), torch.tensor([1, 0]), outputs) == 0.5


# ---- bit flips ----
def test_bit_flips_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = ran(bit_flips.STUDY, tmp_path, "--seeds", "0", "1")
    assert len(records) == 2
    for record in records:
        arms = record["arms"]
        assert [len(arm["loss"]) for arm in arms.values()] == [4, 4, 4]
        assert arms["sgd"]["loss"][:2] == arms["switch"]["loss"][:2]  # the same until the switch
        assert arms["sgd"]["loss"][2:] != arms["switch"]["loss"][2:]
        assert arms["sgd"]["resets"] == 0 < arms["switch"]["resets"] < arms["continual_backprop"]["resets"]
        assert [look["task"] for look in arms["switch"]["looks"]] == [0, 1, 2, 3]
    alone = ran(bit_flips.STUDY, tmp_path / "alone", "--seeds", "1")
    assert alone[0]["arms"] == records[1]["arms"]  # a stacked seed is what it is alone
    capsys.readouterr()
    assert main(bit_flips.STUDY, ["page", "--preset", "tiny", "--out", str(tmp_path), "--show"]) == 0
    assert "nan" not in capsys.readouterr().out


def test_learning_is_online_and_each_member_learns_alone() -> None:
    seeds = [4, 9]
    stream = SlowlyChangingRegression(task_length=6)
    x, y = bit_flips.stacked_task(stream, 1, seeds)
    assert x.shape == (2, 6, 20)
    assert y.abs().max() == y.round().abs().max() > 0  # whole numbers, as published
    singles = [bit_flips.learner(3, seed) for seed in seeds]
    stacked = stack([copy.deepcopy(model) for model in singles], torch.zeros(5, 20))
    found = bit_flips.learn(stacked, torch.optim.SGD(stacked.parameters(), lr=0.05), x, y)
    for place, model in enumerate(singles):
        optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.05), []
        for inputs, target in zip(x[place], y[place], strict=True):
            optimizer.zero_grad()
            loss = F.mse_loss(model(inputs), target)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert float(found[place]) == pytest.approx(sum(losses) / 6, rel=1e-5)
        assert torch.allclose(stacked[0].weight[place], model[0].weight, atol=1e-6)


def test_the_end_of_an_arm_by_hand() -> None:
    looks = [{"task": task, "rank": float(task)} for task in (4, 9, 14, 19)]
    record = {"arms": {"sgd": {"loss": [*([3.0] * 10), *([1.0] * 8), 5.0, 7.0], "looks": looks}}}
    assert bit_flips_page.end(record, "sgd", "loss") == 6.0
    assert bit_flips_page.end(record, "sgd", "rank") == 19.0
    assert bit_flips_page.end(record, "sgd", "loss", at=0.5) == 3.0
    assert bit_flips_page.end(record, "sgd", "rank", at=0.5) == 9.0


# ---- rank ----
def test_rank_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = ran(rank.STUDY, tmp_path, "--seeds", "0", "1")
    assert [(r["cell"]["sweep"], r["seed"]) for r in records] == [
        (name, seed) for name in ("clones", "relu", "tanh") for seed in (0, 1)
    ]
    capsys.readouterr()
    assert main(rank.STUDY, ["page", "--preset", "tiny", "--out", str(tmp_path), "--show"]) == 0
    assert "nan" not in capsys.readouterr().out


def test_samples_show_the_gain_that_a_matrix_has() -> None:
    preset = rank.Preset(num_units=12, num_samples=20_000)
    matrix = rank.correlations(12, 2, seed=1)
    assert torch.linalg.eigvalsh(matrix).min() > 0.4
    linear = rank.sampled(matrix, "tanh", 0.001, preset, 0)
    assert linear["gain"] == pytest.approx(1, abs=1e-3)
    assert linear["vanished"] == linear["frozen"] == 0
    # ReLU: correlations by the arc-cosine kernel, in closed form.
    mean, angle = 1 / math.sqrt(2 * math.pi), torch.arccos(matrix.clamp(-1, 1))
    second = (angle.sin() + (math.pi - angle) * angle.cos()) / (2 * math.pi)
    mapped = (second - mean**2) / (0.5 - mean**2)
    off = ~torch.eye(12, dtype=torch.bool)
    wanted = (12 + matrix[off].square().sum()) / (12 + mapped[off].square().sum())
    assert rank.sampled(matrix, "relu", 0.0, preset, 0)["gain"] == pytest.approx(float(wanted), rel=0.02)


def test_far_from_zero_units_fall_silent() -> None:
    preset = rank.Preset(num_units=12, num_samples=200)
    found = rank.sampled(rank.correlations(12, 2, seed=1), "relu", -9.0, preset, 0)
    assert found["silent"] == found["frozen"] == found["vanished"] == 1.0
    assert found["gain"] is None


def test_slopes_are_derivatives() -> None:
    for kind, value in (("tanh", 3.0), ("relu", -0.5)):
        function, slope = rank.activation(kind, value)
        z = torch.linspace(-2, 2, 50, dtype=torch.float64).requires_grad_(True)
        (wanted,) = torch.autograd.grad(function(z).sum(), z)
        assert torch.allclose(slope(z.detach()), wanted, atol=1e-12)


def test_blocks_are_clones_at_one() -> None:
    matrix = rank.blocks(6, 2, 1.0)
    assert torch.equal(matrix, torch.block_diag(*[torch.ones(2, 2, dtype=torch.float64)] * 3))
    assert torch.equal(rank.blocks(6, 2, 0.0), torch.eye(6, dtype=torch.float64))


# ---- what is looked at ----
def test_symptoms_of_a_network_made_by_hand() -> None:
    """Of eight units two are dead, and two are copies of a third."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("body", nn.Linear(6, 8))
    model.add_module("act", nn.ReLU())
    model.add_module("head", nn.Linear(8, 3))
    with torch.no_grad():
        model.body.weight[:2] = 0
        model.body.bias[:2] = -1
        model.body.weight[3:5] = model.body.weight[2]
        model.body.bias[3:5] = model.body.bias[2]
    x, y = torch.randn(200, 6), torch.randint(3, (200,))
    units = find_units(model, x[:3])
    found = symptoms.symptoms(model, x, lambda output: F.cross_entropy(output, y), units)
    assert found["dead"] == pytest.approx(2 / 8)
    assert found["saturated"] == pytest.approx(2 / 8)
    assert found["cloned"] == pytest.approx(3 / 8)
    assert found["duplicate"] == pytest.approx(2 / 8)  # the last of the copies has none behind it
    act = torch.relu(model.body(x)).detach()
    wanted = float(metrics.effective_rank(act, centred=True)) / 8
    assert found["rank"] == pytest.approx(wanted, rel=1e-4)
    assert found["feature_rank"] == pytest.approx(wanted, rel=1e-4)
    assert list(islice(found, 2)) == ["dead", "saturated"]
