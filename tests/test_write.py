"""Entries of parts: writing to every part of a tensor is writing to the whole; bounded selections select the same."""

from __future__ import annotations

import itertools

import pytest
import torch

from pliant import devices
from pliant.sharded import Entries, Part
from pliant.units.group import TensorSlice
from pliant.units.init import Init
from pliant.write import Writer

SHAPE = (7, 5, 3)


def parts(tensor, dim, world):
    """What each of some processes would hold: chunks as torch.chunk makes them, empty ones at the end."""
    chunk = -(-tensor.shape[dim] // world)
    for rank in range(world):
        start = min(rank * chunk, tensor.shape[dim])
        size = min(chunk, tensor.shape[dim] - start)
        yield Part(tensor.narrow(dim, start, size).clone(), dim, start, size, None)


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("what", ["zero", "constant", "values", "shares", "added_shares", "read"])
def test_writing_to_every_part_is_writing_to_the_whole(what, bounded):
    torch.manual_seed(0)
    other = torch.randn(SHAPE)
    for dim, split, world in itertools.product(range(3), range(3), (1, 2, 3, 4, 8)):
        before = torch.randn(SHAPE)
        where = torch.randperm(SHAPE[dim])[: SHAPE[dim] - 1]
        active = torch.arange(len(where)) % 3 > 0 if bounded else None
        values = torch.randn(len(where), *(size for place, size in enumerate(SHAPE) if place != dim))
        new = {"zero": None, "constant": torch.tensor(2.5)}.get(what, values)
        shares = torch.rand(len(where)) if "shares" in what else None

        def write(entries, of, new=new, shares=shares, dim=dim):
            fresh = entries.cut(new, values_have_rest=True) if what != "read" else entries.read(of.movedim(dim, 0))
            entries.write(fresh, entries.cut(shares), what == "added_shares")

        expected = before.clone()
        write(Entries(expected.movedim(dim, 0), (where,), active), other)
        assert not torch.equal(expected, before)
        pieces = []
        for part, its_other in zip(parts(before, split, world), parts(other, split, world), strict=True):
            write(Entries.in_part(part, dim, where, active), its_other.local)
            pieces.append(part.local)
        assert torch.equal(torch.cat(pieces, split), expected), (dim, split, world)


def writers(num_members=None, at_most=None):
    tensors = [{"w": torch.arange(48.0).view(3, 8, 2)[: num_members or 1].clone()} for _ in range(2)]
    return [Writer(tensor, range(num_members or 1), num_members=num_members) for tensor in tensors], tensors


@pytest.mark.parametrize("members", [None, 3])
@pytest.mark.parametrize("source", [None, Init("constant", 3.0), Init("uniform", 1.0), Init("normal", 1.0)])
def test_a_bounded_selection_writes_the_same_bits(source, members, monkeypatch):
    """With a bound that is met exactly, the randomness is used alike, too: the same units in the same order."""
    (host, device), (a, b) = writers(members)
    piece = TensorSlice("w", -2, "incoming", tuple((2 * u, 2 * u + 1) for u in range(4)))
    mask = torch.tensor([False, True, False, True])
    mask = mask if members is None else torch.stack([mask, ~mask, mask])
    host.fill(a["w"], piece, host.select(mask, None, None), source)
    monkeypatch.setattr(devices, "_as_accelerator", True)
    selection = device.select(mask, 2, None)
    assert selection.active is not None
    device.fill(b["w"], piece, selection, source)
    assert torch.equal(a["w"], b["w"])
    assert not torch.equal(a["w"], torch.arange(48.0).view(3, 8, 2)[: members or 1])
    for mine, other in zip(host.generators(torch.device("cpu")), device.generators(torch.device("cpu")), strict=True):
        assert torch.equal(mine.get_state(), other.get_state())


def test_a_bound_that_is_not_met_draws_more_and_writes_no_more(monkeypatch):
    """The number of units is not known without a look at the device, so as many are drawn as there may be."""
    (host, device), (a, b) = writers()
    piece = TensorSlice("w", -2, "incoming", tuple((u,) for u in range(8)))
    mask = torch.arange(8) == 5
    host.fill(a["w"], piece, host.select(mask, None, None), Init("uniform", 1.0))
    monkeypatch.setattr(devices, "_as_accelerator", True)
    selection = device.select(mask, 3, None)
    assert selection.units[0] == 5
    assert selection.active.tolist() == [True, False, False]
    device.fill(b["w"], piece, selection, Init("uniform", 1.0))
    before = torch.arange(48.0).view(3, 8, 2)[:1]
    assert torch.equal(b["w"][:, ~mask], before[:, ~mask])
    assert (b["w"][:, mask].abs() <= 1).all()
    states = [writer.generators(torch.device("cpu"))[0].get_state() for writer in (host, device)]
    assert not torch.equal(*states)


def test_nothing_is_selected_at_a_skipped_step(monkeypatch):
    monkeypatch.setattr(devices, "_as_accelerator", True)
    (writer, _), (tensors, _) = writers()
    piece = TensorSlice("w", -2, "incoming", tuple((u,) for u in range(8)))
    before = tensors["w"].clone()
    selection = writer.select(torch.ones(8, dtype=torch.bool), 4, torch.tensor(0.0))
    writer.fill(tensors["w"], piece, selection, Init("normal", 1.0))
    writer.multiply(piece, torch.full((8,), 0.5), torch.tensor(0.0))
    writer.shrink(["w"], [0.5], None, torch.tensor(0.0))
    writer.assign(tensors["w"], torch.zeros_like(before), torch.tensor(0.0))
    writer.clamp(["w"], [(0.0, 1.0)], torch.tensor(0.0))
    writer.add([tensors["w"]], [writer.draw(tensors["w"], Init("normal", 1.0))], torch.tensor(0.0))
    writer.fill_weights(tensors["w"], before > 3, Init("normal", 1.0), torch.tensor(0.0))
    assert torch.equal(tensors["w"], before)
    writer.fill(tensors["w"], piece, writer.select(torch.ones(8, dtype=torch.bool), 4, torch.tensor(1.0)), None)
    assert int((tensors["w"] != before).any(-1).sum()) == 4
