"""The networks of the presets fit their streams, learn them, and have units that can be protected."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pliant
from pliant.bench.experiment import Experiment
from pliant.bench.models import MODELS, CharGRU, CharTransformer, EmbeddingMLP, Forecaster, ViT
from pliant.bench.presets import PRESETS
from pliant.bench.streams import STREAMS, Task, traits
from pliant.bench.streams.base import is_supervised
from pliant.errors import IllegalConfiguration

MINIS = [
    (name, preset)
    for name, presets in PRESETS.items()
    if is_supervised(STREAMS[name])
    for preset, settings in presets.items()
    if preset.startswith(("mini", "demo")) and not traits(STREAMS[name](**settings["stream"])).requires_data
]
SMALL: dict[str, tuple[nn.Module, torch.Tensor]] = {
    "char_gru": (CharGRU(7, 7, 3, 4, 5), torch.randint(0, 7, (3, 5))),
    "char_transformer": (CharTransformer(7, 7, 4, 2, 6, 1, 5), torch.randint(0, 7, (3, 5))),
    "embedding_mlp": (EmbeddingMLP(12, 1, 3, 2, (5, 4)), torch.randint(0, 12, (3, 3))),
    "forecaster": (Forecaster(10, 2, 4, (5,)), torch.randn(3, 5, 2)),
    "vit": (ViT(16, 3, (1, 4, 4), 2, 4, 2, 6, 1), torch.randn(3, 16)),
}


def loss(name: str, outputs: torch.Tensor, task: Task, rows: torch.Tensor | slice) -> torch.Tensor:
    targets = task.targets[rows]
    if name == "cross_entropy":
        if task.active_outputs is not None:
            off = torch.ones(outputs.shape[-1], dtype=torch.bool)
            off[list(task.active_outputs)] = False
            outputs = outputs.masked_fill(off, -1e9)
        return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())
    return F.mse_loss(outputs, targets) if name == "mse" else F.binary_cross_entropy_with_logits(outputs, targets)


@pytest.mark.parametrize(("stream", "preset"), MINIS, ids=lambda name: name)
def test_the_network_of_a_mini_learns_its_first_task(stream, preset):
    experiment = Experiment.from_preset(stream, preset)
    built = experiment.build_stream()
    model = experiment.build_model(0)
    optimizer = experiment.build_optimizer(model)
    task = built.task(0, 0)
    name = traits(built).loss
    # One output for each class and label, or one for each number.
    labelled = task.targets.shape[1:] if name == "cross_entropy" else ()
    assert model(task.inputs[:3]).shape == (3, *labelled, built.num_classes)

    def whole() -> float:
        with torch.no_grad():
            return float(loss(name, model(task.inputs), task, slice(None)))

    before, steps = whole(), 0
    for epoch in range(task.num_epochs):
        for rows in task.order(epoch).split(task.batch_size):
            if steps < 400:
                optimizer.zero_grad()
                loss(name, model(task.inputs[rows]), task, rows).backward()
                optimizer.step()
            steps += 1
    assert whole() < 0.97 * before


@pytest.mark.parametrize("name", SMALL)
def test_units_of_the_small_models_are_found_and_proven(name):
    model, inputs = SMALL[name]
    units = pliant.find_units(model, (inputs,))
    assert len(list(units)) >= 2
    assert units.verify(model, (inputs,)).ok
    known = {"embedding_mlp": "tower.hidden_0", "forecaster": "recurrent", "char_gru": "up"}
    assert known.get(name, "blocks.0.up") in [group.name for group in units]


@pytest.mark.parametrize("name", SMALL)
def test_small_models_can_be_protected(name):
    model, inputs = SMALL[name]
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    method = pliant.ContinualBackprop(replacement_rate=0.2, maturity_threshold=1)
    handle = pliant.attach(model, optimizer, method, example_inputs=(inputs,), seed=0)
    for _ in range(6):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
    assert sum(int(torch.as_tensor(count).sum()) for count in handle.num_resets.values()) > 0
    handle.detach()


def test_a_transformer_sees_the_past_alone():
    model, ids = SMALL["char_transformer"]
    other = ids.clone()
    other[:, 3] = (other[:, 3] + 1) % 7
    with torch.no_grad():
        before, after = model(ids), model(other)
    assert torch.allclose(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3:], after[:, 3:])


def test_a_vision_transformer_sees_every_patch_at_its_place():
    model, images = SMALL["vit"]
    squares = images.view(3, 4, 4)
    assert torch.equal(model(squares.unsqueeze(1)), model(images))
    turned = torch.cat([squares[:, 2:], squares[:, :2]], 1).flatten(1)  # the same patches at other places
    with torch.no_grad():
        before, after = model(images), model(turned)
        model.places.fill_(0.5)
        assert not torch.allclose(before, after)
        assert torch.allclose(model(images), model(turned), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "args", "options"),
    [
        ("char_transformer", (7, 7), {"heads": 3}),
        ("char_gru", (7, 7), {"width": 0}),
        ("embedding_mlp", (7, 1), {"num_fields": 0}),
        ("forecaster", (7, 2), {}),
        ("vit", (64, 2), {"image": (1, 8, 8), "patch": 3}),
        ("vit", (64, 2), {"image": (1, 8, 8), "heads": 5}),
        ("vit", (64, 2), {}),
    ],
)
def test_impossible_sizes_are_refused(name, args, options):
    with pytest.raises(IllegalConfiguration):
        MODELS[name](*args, **options)
