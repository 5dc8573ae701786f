"""Forward passes that write, roll and select: what depends on positions must not be called a unit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pliant


class Two(nn.Module):
    """Two hidden layers with something done to the first one's activations ``[batch, time, 8]`` in between."""

    def __init__(self, between) -> None:
        super().__init__()
        self.a, self.b, self.c, self.between = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3), between

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(self.between(torch.relu(self.a(x)), mask))))


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(3, 4, 5), torch.tensor([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 0]]).bool()


def found(between):
    model = Two(between)
    units = pliant.find_units(model, batch())
    assert units.verify(model, batch()).ok
    return units


def written(h: Tensor, _: Tensor) -> Tensor:
    z = torch.zeros_like(h)
    z[..., 0] = 1.0
    return h + z


def written_by_index(h: Tensor, _: Tensor) -> Tensor:
    z = h.new_zeros(len(h), 8)
    z[:, torch.arange(4)] = 1.0
    return h + z[:, None]


@pytest.mark.parametrize(
    ("between", "word"),
    [
        (written, "selected by index"),
        (written_by_index, "indexed"),
        (lambda h, _: h.roll(2, -1), "roll"),
        (lambda h, _: h.roll((1, 2), (1, 2)), "roll"),
        (lambda h, _: h[:, :, torch.tensor([7, 1, 2, 3, 4, 5, 6, 0])], "indexed"),
        (lambda h, _: h + torch.arange(8.0), "made in"),
        (lambda h, _: h * torch.ones(8, 8).tril()[5], "tril"),
    ],
)
def test_positions_that_matter_are_no_units(between, word):
    units = found(between)
    assert [group.name for group in units] == ["b"]
    assert word in units.excluded["a.weight", -2] or "selected" in units.excluded["a.weight", -2]


def part_written(h: Tensor, _: Tensor) -> Tensor:
    z = torch.zeros_like(h)
    z[:, :, 5:] += 2.0
    return h + z


def test_a_constant_written_into_a_part_splits_the_units():
    units = found(part_written)
    assert {group.name: group.size for group in units} == {"a": 5, "a#2": 3, "b": 6}


@pytest.mark.parametrize(
    "between",
    [
        lambda h, mask: h[mask],  # [number of ones, 8]: a size that depends on the data
        lambda h, mask: h[:, torch.tensor([0, 2])],
        lambda h, mask: h.masked_fill(mask[..., None], 0.0) + torch.zeros(8) + h.new_ones(3, 1, 8),
        lambda h, mask: h.roll(1, 1),
        lambda h, mask: h + torch.zeros(h[:, :, 0].shape[1], 1),  # an entry is read for its size only
    ],
)
def test_positions_that_do_not_matter_are(between):
    assert {group.name: group.size for group in found(between)} == {"a": 8, "b": 6}


class Losses(nn.Module):
    """Returns a loss alone, as language models do under a trainer."""

    def __init__(self, loss) -> None:
        super().__init__()
        self.a, self.b, self.loss = nn.Linear(5, 8), nn.Linear(8, 4), loss

    def forward(self, x: Tensor) -> Tensor:
        return self.loss(self.b(torch.relu(self.a(x))))


@pytest.mark.parametrize(
    ("loss", "outputs"),
    [
        (lambda y: F.cross_entropy(y, torch.tensor([0, 1, 3])), None),
        (lambda y: F.nll_loss(y.log_softmax(-1), torch.tensor([0, 1, 3]), reduction="none"), None),
        (lambda y: F.cross_entropy(y, torch.full((3, 4), 0.25)), None),
        (lambda y: F.mse_loss(y, torch.zeros(3, 4)), 4),
        (lambda y: F.smooth_l1_loss(y, torch.arange(4.0).repeat(3, 1)), None),
        (lambda y: F.binary_cross_entropy_with_logits(y, torch.ones(3, 4), reduction="none").mean(), 4),
    ],
)
def test_losses_inside_the_forward(loss, outputs):
    """Labels name the classes, so they are fixed; equal targets leave even the outputs interchangeable."""
    model, x = Losses(loss), torch.randn(3, 5)
    units = pliant.find_units(model, x)
    assert units.unknown_ops == {}
    assert {group.name: group.size for group in units} == {"a": 8, **({"b": outputs} if outputs else {})}
    assert units.verify(model, x).ok
