"""A network is cloned after some training: what stays on the manifold, and what leaves?

    python benchmarks/manifolds/cloning.py run             # four networks, five seeds; it goes on where it stopped
    python benchmarks/manifolds/cloning.py page            # docs/results/cloning.md and its figure, from the records
    PLIANT_DATA_DIR=FOLDER python benchmarks/manifolds/cloning.py run --preset published    # CIFAR-10, published sizes

A base is trained for a while, every unit of it is doubled by ``pliant.manifolds.clone``, and the wide network goes on
training under one treatment. All treatments of a seed begin with the same weights and see the same batches. Measured
are the distance to the cloning manifold, the variance ratio R² of clones, and the loss; beside them the base itself,
with the same step sizes and with those that make it follow its clone, and a fresh network as wide as the clone.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.manifolds import cloning_page
from benchmarks.manifolds.common import Study, drawn, main, rounded, seeded
from benchmarks.manifolds.models import NARROW, NETWORKS, PUBLISHED, build
from benchmarks.manifolds.symptoms import hidden, published_ratio
from pliant import metrics
from pliant.bench.data.images import IMAGES, load_images, scaled
from pliant.bench.streams.base import generator
from pliant.bench.streams.random_label_digits import RandomLabelDigits
from pliant.manifolds import Clone, NoiseBurst, clone, distance, matching_optimizer, variance_ratio
from pliant.observation import observe
from pliant.units import find_units

__all__ = ["PRESETS", "STUDY", "Preset", "PublishedNoise", "one"]

Optimizer = torch.optim.Optimizer
CLONES = ("sgd", "momentum", "adam", "float32", "noise", "noise_once", "noise_small", "dropout")
OTHERS = ("base", "base_matched", "base_dropout", "fresh")


@dataclass(frozen=True)
class Preset:
    """All settings.

    Attributes:
        data: ``"digits"`` with random labels, or one of ``IMAGE_SETS``.
        num_examples: As many are learnt, at most.
        sizes: Sizes of the base.
        norms: Norm of each network.
        base_steps: Steps before cloning.
        steps: Steps after it.
        batch_size: Examples per step.
        num_seen: Examples on which activations are compared.
        lr: Step size of SGD for each network.
        lr_adam: Step size of Adam.
        dropout: Its rate, where it is the treatment.
        sigma: Of the noise: of the published kind, and of ``noise_small``.
        measured_at: Steps at which the distance is measured, beside the last.
    """

    data: str = "digits"
    num_examples: int = 256
    sizes: Mapping[str, Any] = field(default_factory=lambda: dict(NARROW))
    norms: Mapping[str, str] = field(
        default_factory=lambda: {"mlp": "none", "convnet": "batch", "resnet": "batch", "vit": "layer"}
    )
    base_steps: int = 300
    steps: int = 500
    batch_size: int = 32
    num_seen: int = 128
    lr: Mapping[str, float] = field(default_factory=lambda: {"mlp": 0.5, "convnet": 0.1, "resnet": 0.1, "vit": 0.05})
    lr_adam: float = 3e-3
    dropout: float = 0.1
    sigma: float = 0.05
    measured_at: Sequence[int] = (0, 1, 3, 10, 30, 100, 300)


IMAGE_SETS: Mapping[str, tuple[str, int]] = {
    "cifar10": ("cifar10", 0),
    "cifar100": ("cifar100", 0),
    "cifar100_subset": ("cifar100", 100),
}
"""Name of the files, and how many training images of each class they have, where that is fewer than the original."""

PRESETS: Mapping[str, Preset] = {
    "mini": Preset(),
    "tiny": Preset(num_examples=32, base_steps=3, steps=4, batch_size=16, num_seen=16, measured_at=(0, 1)),
    "published": Preset(
        data="cifar10",
        num_examples=50_000,
        sizes=dict(PUBLISHED),
        norms={"mlp": "batch", "convnet": "batch", "resnet": "batch", "vit": "layer"},
        base_steps=20 * 390,
        steps=500 * 390,
        batch_size=128,
        num_seen=500,
        lr=dict.fromkeys(NETWORKS, 0.01),
        lr_adam=1e-3,
        sigma=0.01,
        measured_at=(0, 1, 10, 100, 1000, 10_000, 50_000, 100_000),
    ),
}


@dataclass(frozen=True)
class PublishedNoise:
    r"""Noise as in the published code: :math:`\sigma \lambda^t \lVert g \rVert\, \mathcal N(0, I)`, tensor by tensor.

    Its norm is about :math:`\sigma\sqrt n \lVert g\rVert` for a tensor of :math:`n` entries;
    :class:`pliant.manifolds.NoiseBurst` says the ratio of the norms instead.

    Attributes:
        sigma: In the first step.
        decay: :math:`\lambda`; 0: one noisy step.
        seed: Of the noise.
    """

    sigma: float
    decay: float = 1.0
    seed: int = 0

    def __call__(self, model: nn.Module, step: int) -> None:
        """Add the noise to the gradients."""
        size = self.sigma * self.decay**step
        if not size:
            return
        draws = torch.Generator().manual_seed(1_000_003 * self.seed + step)
        for parameter in model.parameters():
            if parameter.grad is not None:
                noise = torch.randn(parameter.shape, generator=draws, dtype=parameter.dtype)
                parameter.grad += noise.to(parameter.grad) * (size * torch.linalg.vector_norm(parameter.grad))


Problem = tuple[Tensor, Tensor, tuple[int, int, int], int]


def problem_of(preset: Preset, seed: int) -> Problem:
    """Images float64, labels, their shape, and the number of classes."""
    if preset.data == "digits":
        task = RandomLabelDigits(num_examples=preset.num_examples).task(0, seed)
        return task.inputs.double().unflatten(1, (1, 8, 8)), task.targets, (1, 8, 8), 10
    name, subset = IMAGE_SETS[preset.data]
    found = load_images(name, subset=subset)
    x = scaled(found.train_images[: preset.num_examples], "half", 255, (), ())
    return x.double(), found.train_labels[: preset.num_examples], (3, 32, 32), IMAGES[name].num_classes


def batches(count: int, size: int, steps: int, *key: int) -> Iterator[Tensor]:
    """Indices of the examples of each step; passes in an order that depends on the key only."""
    draws = generator("cloning order", *key)
    done = 0
    while True:
        for rows in torch.from_numpy(draws.permutation(count)).split(size):
            if len(rows) < size and count >= size:
                break
            if done == steps:
                return
            done += 1
            yield rows


def with_dropout(model: nn.Module, rate: float) -> nn.Module:
    """The same model with its dropout modules at a rate."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
    return model


def train(
    model: nn.Module,
    optimizer: Optimizer,
    x: Tensor,
    y: Tensor,
    preset: Preset,
    steps: int,
    key: tuple[int, int],
    *,
    treatment: Callable[[nn.Module, int], None] | None = None,
    look: Callable[[int], None] = lambda step: None,
) -> None:
    """All steps; ``look`` is called before each, and after the last."""
    model.train()
    seeded("cloning dropout", *key)
    for step, rows in enumerate(batches(len(y), preset.batch_size, steps, *key)):
        look(step)
        rows = rows.to(y.device)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
        if treatment is not None:
            treatment(model, step)
        optimizer.step()
    look(steps)


def whole_loss(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """On at most 2,048 training examples; the model is in evaluation mode afterwards, without dropout."""
    model.eval()
    with torch.no_grad():
        return float(F.cross_entropy(model(x[:2048]), y[:2048]))


def one(
    preset: Preset, cell: Mapping[str, Any], seeds: Sequence[int], device: torch.device
) -> Iterator[tuple[int, dict[str, Any]]]:
    """One network, cloned, under all treatments."""
    for seed in seeds:
        yield seed, _one(preset, cell["network"], seed, device)


def _one(preset: Preset, network: str, seed: int, device: torch.device) -> dict[str, Any]:
    x, y, shape, num_classes = problem_of(preset, seed)
    x, y = x.to(device), y.to(device)
    seeded("cloning base", seed)
    options, lr = {"norm": preset.norms[network], "dropout": 0.0}, preset.lr[network]
    base = build(network, preset.sizes, shape, num_classes, **options).double().to(device)
    train(base, torch.optim.SGD(base.parameters(), lr=lr), x, y, preset, preset.base_steps, (1, seed))
    base.eval()
    units = find_units(base, x[:4])
    wide = clone(base, 2, x[:4], units=units)
    found, trained = {}, {}
    for name in CLONES:
        found[name], trained[name] = treated(preset, name, wide, x, y, seed, lr)
    followed = trained["sgd"]
    for name in OTHERS:
        model = copy.deepcopy(base)
        if name == "fresh":
            seeded("cloning fresh", seed)
            model = build(network, {network: doubled(preset.sizes[network])}, shape, num_classes, **options)
            model = model.double().to(device)
        with_dropout(model, preset.dropout if name == "base_dropout" else 0.0)
        optimizer: Optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        if name == "base_matched":
            sgd = torch.optim.SGD(wide.model.parameters(), lr=lr)
            optimizer = matching_optimizer(sgd, model, wide, units)
        train(model, optimizer, x, y, preset, preset.steps, (2, seed))
        found[name] = {"loss": rounded(whole_loss(model, x, y))}
        with torch.no_grad():
            found[name]["difference"] = rounded(float((model(x[:2048]) - followed(x[:2048])).abs().max()))
    return {"change": wide.change, "loss": rounded(whole_loss(base, x, y)), "treatments": found}


def doubled(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of a clone by two; dimensions inside a head, and the number of layers, stay.

    >>> doubled({"width": 8, "heads": 2, "ratio": 2, "depth": 2, "patch": 4})
    {'width': 16, 'heads': 4, 'ratio': 2, 'depth': 2, 'patch': 4}
    """
    grows = ("hidden", "channels", "width", "heads")
    return {
        key: value if key not in grows else [2 * v for v in value] if isinstance(value, list) else 2 * value
        for key, value in sizes.items()
    }


def treated(
    preset: Preset, name: str, wide: Clone, x: Tensor, y: Tensor, seed: int, lr: float
) -> tuple[dict[str, Any], nn.Module]:
    """What the clone does under one treatment, and what it has become, in evaluation mode."""
    model = copy.deepcopy(wide.model)
    if name == "float32":
        model, x = model.float(), x.float()
    with_dropout(model, preset.dropout if name == "dropout" else 0.0)
    optimizer: Optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    if name == "momentum":
        optimizer = torch.optim.SGD(model.parameters(), lr=lr / 3, momentum=0.9)
    elif name == "adam":
        optimizer = torch.optim.Adam(model.parameters(), lr=preset.lr_adam)
    noise: Mapping[str, Callable[[nn.Module, int], None]] = {
        "noise": PublishedNoise(preset.sigma, 1.0, drawn("cloning noise", seed)),
        "noise_once": PublishedNoise(preset.sigma, 0.0, drawn("cloning noise", seed)),
        "noise_small": NoiseBurst(preset.sigma, preset.steps, drawn("cloning small noise", seed)),
    }
    seen = x[: preset.num_seen]
    curve: list[list[float | None]] = []

    def look(step: int) -> None:
        if step in preset.measured_at or step == preset.steps:
            model.eval()
            ratio = variance_ratio(model, wide.partition, seen)
            curve.append([step, rounded(distance(model, wide.partition).relative), rounded(1 - ratio)])
            model.train()

    train(model, optimizer, x, y, preset, preset.steps, (2, seed), treatment=noise.get(name), look=look)
    loss = functools.partial(F.cross_entropy, target=y[: preset.num_seen])
    value = whole_loss(model, x, y)
    groups = hidden(observe(model, seen, units=wide.units).groups, wide.units)
    ranks = [float(metrics.effective_rank(group.act_NU, centred=True)) for group in groups]
    result = {
        "loss": rounded(value),
        "curve": curve,
        "missing_both": rounded(1 - variance_ratio(model, wide.partition, seen, loss)),
        "published": rounded(published_ratio(model, wide.partition, seen, loss)),
        "rank": rounded(sum(ranks) / len(ranks)),
    }
    return result, model


STUDY = Study(
    "cloning",
    __doc__ or "",
    PRESETS,
    lambda preset: [{"network": name} for name in NETWORKS],
    lambda cell: str(cell["network"]),
    one,
    cloning_page.texts,
)

if __name__ == "__main__":
    raise SystemExit(main(STUDY))
