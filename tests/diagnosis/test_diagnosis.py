"""A diagnosis names what was planted, and never calls missing data healthy."""

from __future__ import annotations

import copy
import functools
import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pliant
from benchmarks.diagnosis.planted import DOSES, MECHANISM_OF, activation_of, batch_of, healthy, network, planted
from pliant.diagnosis import TrainsLike
from pliant.diagnosis.evidence import score
from pliant.diagnosis.findings import Weight
from pliant.diagnosis.weights import thresholds
from pliant.mechanisms import MECHANISMS
from pliant.probe import RandomLabels, probe


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))


def data(size: int = 128) -> tuple[Tensor, Tensor]:
    return torch.randn(size, 8), torch.randint(3, (size,))


@functools.cache
def units() -> pliant.UnitGraph:
    return pliant.find_units(mlp(), data(4)[0])


def diagnose(model: nn.Module, batch: object, *args: object, **more: object) -> pliant.Diagnosis:
    """Of the network above, whose units are found once."""
    return pliant.diagnose(model, batch, *args, units=units(), **more)


def kill(model: nn.Module, count: int) -> nn.Module:
    with torch.no_grad():
        model[0].weight[:count], model[0].bias[:count] = 0, -1
    return model


# ---- what is planted is named ----
@pytest.fixture(scope="module")
def trained() -> dict[str, nn.Module]:
    net = network("mlp_functional")
    return {activation: healthy(net, activation, 7, 60) for activation in ("relu", "gelu", "tanh")}


@functools.cache
def units_of(activation: str) -> pliant.UnitGraph:
    net = network("mlp_functional")
    return pliant.find_units(net.make(activation), batch_of(net, 7)[0])


@pytest.mark.parametrize("pathology", MECHANISM_OF)
@pytest.mark.parametrize("dose", DOSES)
def test_a_planted_pathology_is_named(trained, pathology, dose):
    net = network("mlp_functional")
    activation, batch = activation_of(pathology, 7), batch_of(net, 7)
    model, layer = planted(net, trained[activation], pathology, dose, 7, batch, units_of(activation))
    found = pliant.diagnose(model, batch, units=units_of(activation))
    assert MECHANISM_OF[pathology] in found.mechanisms, str(found)
    assert found.verdict == "plasticity"
    named = {finding.layer.removesuffix(".weight") for finding in found.of(MECHANISM_OF[pathology])}
    assert layer in named or pathology == "collapsed_softmax"


def test_healthy_networks_have_nothing_above_a_note(trained):
    net = network("mlp_functional")
    for activation, model in trained.items():
        for network_ in (model, healthy(net, activation, 9, 0)):
            found = pliant.diagnose(network_, batch_of(net, 7), units=units_of(activation))
            assert found.verdict == "not plasticity", str(found)
            assert found.severity in (None, "note")


def test_nothing_changes():
    model, (x, y) = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)), data()
    model[1].eval()
    F.cross_entropy(model(x), y).backward()
    before = copy.deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters()], torch.get_rng_state()
    pliant.diagnose(model, (x, y), F.cross_entropy, twins=2)
    assert all(torch.equal(value, before[0][name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(model.parameters(), before[1], strict=True))
    assert torch.equal(torch.get_rng_state(), before[2])
    assert [module.training for module in model] == [True, False, True, True]


# ---- what can be asked for ----
def test_scores():
    assert score("count", 0.2, []) == 0.2
    assert score("low", 0.0, [1.0]) == 40
    assert score("low", 0.0, [0.0]) == 0
    assert score("high", 1.0, []) is None
    assert score("high", 8.0, [1.0, 2.0]) == 2


def test_thresholds_and_mechanisms_are_known():
    assert all(a <= b <= c for a, b, c in thresholds().values())
    assert set(MECHANISM_OF.values()) <= set(MECHANISMS)


@pytest.mark.parametrize(
    ("low", "word"), [(0.45, "no predictor"), (0.6, "a weak predictor"), (0.8, "a good predictor")]
)
def test_evidence_is_weighed_by_the_study(low, word):
    weight = Weight(0.85, low, 0.9, ("a", "b", "c"), 10, "abc")
    assert str(weight).startswith(word)


def test_loss_that_never_fell_is_remarked_and_a_probe_decides():
    torch.manual_seed(0)
    model, batch = mlp(), data()
    found = diagnose(model, batch)
    assert any("nothing has been learned" in remark for remark in found.remarks)
    task = RandomLabels(inputs=torch.randn(64, 8), num_classes=3)
    dead = kill(mlp(), 32)
    result = probe(dead, task, optimizer=lambda p: torch.optim.Adam(p, lr=0.01), steps=20, seeds=3)
    assert result.outcome == "worse"
    told = diagnose(dead, batch, probe=result)
    assert told.verdict == "plasticity"
    assert "learns worse than fresh ones, with dead units" in told.reason
    assert diagnose(mlp(), batch, probe=result).reason.endswith("by a mechanism that no metric here shows.")


def test_large_weights_are_tested_by_rescaling_them():
    torch.manual_seed(0)
    model, (x, y) = mlp(), data(64)
    with torch.no_grad():
        model[0].weight.mul_(64)
        model[0].bias.mul_(64)
    how = TrainsLike(RandomLabels(inputs=x, num_classes=3), lambda p: torch.optim.SGD(p, lr=0.05), steps=10, seeds=3)
    found = diagnose(model, (x, y), causal=how, twins=2)
    assert found.of("weight_growth")
    assert found.causal.is_cause is not None
    assert "the same function with smaller weights" in found.causal.sentence
    tanh = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    with torch.no_grad():
        tanh[0].weight.mul_(64)
    assert pliant.diagnose(tanh, (x, y), causal=how, twins=2).causal.sentence.startswith("Not known")
    assert diagnose(mlp(), (x, y), causal=how, twins=2).causal.sentence.startswith("Not tested")


def test_whether_attached_methods_have_done_anything():
    model, (x, y) = mlp(), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    methods = [
        pliant.ContinualBackprop(),
        pliant.L2(1e-3),
        pliant.ReDo(every=50),
        pliant.FeatureNorm(0.1),
        pliant.FreshStart(),
    ]
    handle = pliant.attach(model, optimizer, methods, example_inputs=x)
    told = {item.name: item for item in diagnose(model, (x, y), handle=handle, twins=1).methods}
    assert "has not stepped" in told["ContinualBackprop"].sentence
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    told = {item.name: item for item in diagnose(model, (x, y), handle=handle, twins=1).methods}
    assert not told["ContinualBackprop"].has_acted
    assert told["ContinualBackprop"].sentence.startswith("no reset so far: no unit is mature")
    assert told["L2"].has_acted
    assert "it acts every 50 steps" in told["ReDo"].sentence
    assert "handle.penalty() has not been called" in told["FeatureNorm"].sentence
    assert "handle.task_boundary() has not been called" in told["FreshStart"].sentence


def test_pages():
    model = kill(mlp(), 10)
    found = diagnose(model, data(), twins=2)
    text, page = str(found), found.to_html(title="A <b> & c")
    for part in ("Dead units", "severe", "0: 10 of 32 units are dead", "continual_backprop"):
        assert part in text
        assert part in page
    assert "A &lt;b&gt; &amp; c" in page
    assert "http" not in page
    kept = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert kept["findings"][0]["mechanism"] == "dead_units"
    assert kept["findings"][0]["value"] == pytest.approx(10 / 32)
    assert len(kept["findings"][0]["twins"]) == 2


def test_regression_and_gradients_that_vanish():
    torch.manual_seed(0)
    model, (x, y) = mlp(), (torch.randn(128, 8), torch.randn(128, 3))
    assert diagnose(model, (x, y), twins=2).verdict == "not plasticity"
    with torch.no_grad():
        model[4].weight.zero_()
    found = diagnose(model, (x, y), twins=2)
    assert found.of("collapsed_output")[0].metric == "output_deviation"
    tiny = nn.Sequential(*(nn.Linear(n, 16, bias=False) if n else nn.ReLU() for n in (8, 0, 16, 0, 16)))
    with torch.no_grad():
        for parameter in tiny.parameters():
            parameter.mul_(0.01)
    gone = pliant.diagnose(tiny, (x, torch.randint(16, (128,))), twins=2)
    assert "vanishing_gradients" in gone.mechanisms


# ---- bad input ----
def test_models_in_evaluation_mode_are_the_same():
    model, batch = kill(mlp(), 8), data()
    a, b = (diagnose(net, batch, twins=2).to_dict() for net in (model, copy.deepcopy(model).eval()))
    assert a == b


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    x, y = data()
    found = diagnose(kill(mlp(), 8).to(dtype), (x.to(dtype), y), twins=2)
    assert "dead_units" in found.mechanisms
    assert diagnose(mlp().to(dtype), (x.to(dtype), y), twins=2).severity in (None, "note")


def test_one_example_is_never_healthy():
    x, y = data(1)
    found = diagnose(mlp(), (x, y), twins=2)
    assert found.verdict == "unknown"
    assert "examples: the batch has 1" in found.unknowns[0]


def test_constant_features_are_found():
    model, batch = mlp(), data()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(1)
    found = diagnose(model, batch, twins=2)
    assert {"collapsed_output", "rank_collapse"} <= set(found.mechanisms)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite(value):
    model, batch = mlp(), data()
    with torch.no_grad():
        model[2].weight[0, 0] = value
    found = diagnose(model, batch, twins=2)
    assert found.mechanisms[0] == "non_finite"
    assert found.severity == "severe"
    assert found.verdict == "plasticity"
    x = batch[0].clone()
    x[3] = value
    assert diagnose(mlp(), (x, batch[1]), twins=1).mechanisms[0] == "non_finite"


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_layers_without_units_and_models_without_hidden_ones():
    empty = nn.Sequential(nn.Linear(8, 0), nn.ReLU(), nn.Linear(0, 3))
    found = pliant.diagnose(empty, data(), twins=2)
    assert found.verdict != "not plasticity"
    assert any("0.weight: it is empty" in reason for reason in found.unknowns)
    linear = pliant.diagnose(nn.Linear(8, 3), data(), twins=2)
    assert linear.verdict == "unknown"
    assert "no hidden units" in linear.unknowns[0]


def test_losses_that_are_none():
    batch = data()
    with pytest.raises(pliant.IllegalConfiguration, match=r"must be a scalar, but has shape \(128,\)"):
        diagnose(mlp(), batch, lambda output, y: F.cross_entropy(output, y, reduction="none"))
    found = diagnose(mlp(), batch[0], twins=1)
    assert found.verdict == "unknown"
    assert found.unknowns[0].startswith("loss: none was given")


def test_frozen_parameters():
    model, batch = kill(mlp(), 8), data()
    model[0].requires_grad_(False)
    found = diagnose(model, batch, twins=2)
    assert any("2 parameters are frozen" in remark for remark in found.remarks)
    frozen = diagnose(mlp().requires_grad_(False), batch, twins=2)
    assert frozen.verdict == "unknown"
    assert any("none requires a gradient" in reason for reason in frozen.unknowns)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.offset = nn.Linear(8, 32), nn.Linear(32, 3), nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.fc1(x))
        return self.offset + (self.fc2(h) if h.sum() > 0 else self.fc2(-h))


def test_a_model_that_cannot_be_exported_whose_initialisation_is_not_known():
    model, batch = Branches(), data()
    found = pliant.diagnose(model, batch)
    assert found.verdict == "unknown"
    assert "declare_units" in found.unknowns[0]
    assert any("make_model" in reason for reason in found.unknowns)
    with torch.no_grad():
        model.fc1.weight[:8], model.fc1.bias[:8] = 0, -1
    units = pliant.declare_units(model, batch[0], {"fc1": "fc2"})
    alone = pliant.diagnose(model, batch, units=units)
    assert alone.of("dead_units")[0].severity == "warning"  # nothing says how many would be usual
    before = torch.get_rng_state()
    made = pliant.diagnose(model, batch, units=units, make_model=Branches, twins=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert made.of("dead_units")[0].severity == "severe"
    assert not made.unknowns
    with pytest.raises(pliant.IllegalConfiguration, match="another network"):
        pliant.diagnose(model, batch, units=units, make_model=mlp)


def test_wrong_arguments():
    with pytest.raises(pliant.IllegalConfiguration, match="one module"):
        pliant.diagnose({"actor": mlp()}, data())
    with pytest.raises(pliant.IllegalConfiguration, match="twins"):
        diagnose(mlp(), data(), twins=-1)
    alone = diagnose(mlp(), data(), twins=0)
    assert alone.verdict == "unknown"
    norm = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    units = pliant.find_units(norm, torch.randn(4, 8))
    with pytest.raises(pliant.IllegalConfiguration, match="mode='eval'"):
        pliant.diagnose(norm, data(1), units=units)
    assert "running statistics" in str(pliant.diagnose(norm, data(), units=units, mode="eval", twins=1).remarks)


def test_language_models_and_padding():
    net = network("gpt2")
    model = net.make("gelu")
    batch = batch_of(net, 0, 32)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    units = pliant.find_units(model, batch)
    assert pliant.diagnose(model, batch, units=units, twins=2).verdict == "not plasticity"
    dead, layer = planted(net, model, "dead_layer", 0.2, 0, batch, units)
    found = pliant.diagnose(dead, batch, units=units, twins=2)
    assert found.of("dead_units")[0].layer == layer
    tokens = pliant.diagnose(dead, batch["input_ids"], units=units, twins=2)
    assert tokens.of("dead_units")[0].layer == layer


def test_the_page_of_the_documentation_runs(capsys):
    text = (Path(__file__).parents[2] / "docs" / "diagnosis.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/diagnosis.md", "exec"), names)
    said = capsys.readouterr().out
    assert "10 of 64 units are dead" in said
    assert "no reset so far: no unit is mature (3 steps were done, units mature after 100)." in said
    assert names["found"].mechanisms[0] == "dead_units"
