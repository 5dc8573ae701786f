"""What is kept, what is replayed, and which batches are refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from torch import nn

import pliant
from pliant import IllegalConfiguration, NoEffectWarning, devices
from pliant.bench.ensemble import stack
from pliant.interventions import ExperienceReplay, ReDo
from pliant.interventions.experience_replay import reservoir_slots
from pliant.reminders import PENALTY_AFTER


def attached(method=None, seed=0, model=None, **more):
    torch.manual_seed(3)
    model = model or nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = ExperienceReplay(capacity=10) if method is None else method
    handle = pliant.attach(model, optimizer, method, example_inputs=torch.randn(2, 3), seed=seed, **more)
    return model, optimizer, handle


def numbered(start, size=4):
    """Examples that carry their number."""
    return torch.arange(start, start + size).float().unsqueeze(1).expand(size, 3).clone()


def kept(handle):
    return handle.state_dict()["memory"]["0"]["tensors"]["examples"]


def test_each_example_so_far_is_kept_with_the_same_probability():
    """Two thousand reservoirs of 5 after 37 examples in uneven batches: 5/37 for each, early or late."""
    counts = np.zeros(37)
    for run in range(2000):
        draw = np.random.default_rng(run)
        slots = np.full(5, -1)
        for start, size in ((0, 3), (3, 10), (13, 1), (14, 23)):
            places, rows = reservoir_slots(draw.random(size), start, 5)
            assert len(set(places.tolist())) == len(places)
            slots[places] = start + rows
        assert len(set(slots.tolist())) == 5
        counts[slots] += 1
    expected = 2000 * 5 / 37
    sigma = np.sqrt(2000 * (5 / 37) * (1 - 5 / 37))
    assert np.abs(counts - expected).max() < 4.5 * sigma


def test_the_reservoir_fills_in_order_and_replays_only_the_past():
    _, _, handle = attached()
    first = numbered(0)
    assert handle.batch(first) is not None
    assert torch.equal(kept(handle)["batch"][:4], first)
    seen = 4
    for _ in range(30):
        new = numbered(seen)
        out = handle.batch(new)
        assert torch.equal(out[:4], new)  # the new ones come first
        replayed = out[4:, 0].tolist()
        assert len(replayed) == len(set(replayed)) == 4  # different examples
        assert all(number < seen for number in replayed)
        seen += 4
    assert len(kept(handle)["batch"]) == 10
    assert len(set(kept(handle)["batch"][:, 0].tolist())) == 10


def test_old_examples_stay():
    """After a thousand examples, those that are kept come from all of the past."""
    _, _, handle = attached(ExperienceReplay(capacity=200))
    for start in range(0, 1000, 10):
        handle.batch(numbered(start, 10))
    numbers = kept(handle)["batch"][:, 0]
    early = int((numbers < 500).sum())
    assert 70 <= early <= 130


@pytest.mark.parametrize(("ratio", "size", "more"), [(1.0, 4, 4), (0.5, 5, 2), (0.1, 4, 1), (3.0, 4, 10), (1.5, 2, 3)])
def test_the_ratio(ratio, size, more):
    _, _, handle = attached(ExperienceReplay(capacity=10, ratio=ratio))
    for start in range(0, 60, size):
        out = handle.batch(numbered(start, size))
    assert len(out) == size + more


def test_nested_batches_keep_their_structure_and_their_rows_together():
    _, _, handle = attached()
    for step in range(5):
        rows = numbered(4 * step)
        batch = {"inputs": (rows, None), "labels": [rows[:, 0].long(), {"mask": rows[:, :2] > 5}]}
        out = handle.batch(batch)
    x, label, mask = out["inputs"][0], out["labels"][0], out["labels"][1]["mask"]
    assert out["inputs"][1] is None
    assert isinstance(out["inputs"], tuple)
    assert isinstance(out["labels"], list)
    assert len(x) == len(label) == len(mask) == 8
    assert label.dtype == torch.int64
    assert torch.equal(x[:, 0].long(), label)
    assert torch.equal(x[:, :2] > 5, mask)


def test_what_is_kept_is_a_copy_without_a_graph():
    _, _, handle = attached()
    batch = numbered(0).requires_grad_()
    handle.batch(batch)
    with torch.no_grad():
        batch.fill_(-1)
    assert not kept(handle)["batch"].requires_grad
    assert torch.equal(handle.batch(numbered(4))[4:].sort(0)[0], numbered(0))


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ((torch.zeros(4, 3), [1, 2]), r"\[1\]\[0\] of the batch is of type int"),
        ((torch.zeros(4, 3), torch.zeros(5)), r"\[1\] of the batch has shape \(5,\) instead of \[4, \.\.\.\]"),
        (torch.zeros(()), r"has shape \(\) instead of \[batch, \.\.\.\]"),
        ((None, None), "holds no tensors"),
    ],
)
def test_batches_that_cannot_be_kept_are_refused(batch, says):
    _, _, handle = attached()
    with pytest.raises(IllegalConfiguration, match=f"ExperienceReplay.*{says}"):
        handle.batch(batch)
    assert handle.batch(numbered(0)).shape == (4, 3)


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ({"x": torch.zeros(4, 3), "y": torch.zeros(4)}, r"holds \['x'\], \['y'\], those before it \['x'\]"),
        ({"x": torch.zeros(4, 5)}, r"shape \(5,\) and type torch.float32, those before it \(3,\)"),
        ({"x": torch.zeros(4, 3).double()}, "type torch.float64, those before it .* torch.float32"),
    ],
)
def test_batches_unlike_those_before_are_refused(batch, says):
    _, _, handle = attached()
    handle.batch({"x": numbered(0)})
    before = handle.state_dict()["memory"]["0"]["host"]
    with pytest.raises(IllegalConfiguration, match=says):
        handle.batch(batch)
    assert handle.state_dict()["memory"]["0"]["host"] == before
    assert handle.batch({"x": numbered(4)})["x"].shape == (8, 3)


@pytest.mark.parametrize(
    "method",
    [
        *(ExperienceReplay(capacity=0), ExperienceReplay(capacity=10.0), ExperienceReplay(ratio=-0.1)),
        *(ExperienceReplay(ratio=float("nan")), ExperienceReplay(ratio=float("inf")), ExperienceReplay(keep_on="disk")),
    ],
    ids=repr,
)
def test_hyper_parameters_out_of_range(method):
    with pytest.raises(IllegalConfiguration, match=r"ExperienceReplay: \w+=.*must be"):
        attached(method)


def test_resuming_draws_what_the_whole_run_draws():
    """From another seed: the draws belong to the checkpoint. A fresh handle that has seen batches forgets them."""
    _, _, whole = attached(seed=4)
    for start in range(0, 40, 4):
        whole.batch(numbered(start))
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    _, _, resumed = attached(seed=9)
    _, _, used = attached(seed=9)
    used.batch(numbered(1000))
    for handle in (resumed, used):
        handle.load_state_dict(state)
    for start in range(40, 80, 4):
        want = whole.batch(numbered(start))
        assert torch.equal(want, resumed.batch(numbered(start)))
        assert torch.equal(want, used.batch(numbered(start)))
    assert int(state["memory"]["0"]["tensors"]["examples"]["batch"].max()) < 40  # loaded, not shared


def test_a_checkpoint_from_before_the_first_batch_empties_the_memory():
    _, _, fresh = attached()
    state = fresh.state_dict()
    _, _, used = attached()
    used.batch(numbered(0))
    used.load_state_dict(state)
    assert used.batch(numbered(4)).shape == (4, 3)


def test_a_checkpoint_without_its_examples_says_what_to_do():
    """That is what a distributed checkpoint leaves when it is loaded into a handle without room for the examples."""
    _, _, handle = attached()
    handle.batch(numbered(0))
    state = handle.state_dict()
    state["memory"]["0"]["tensors"]["examples"].clear()
    _, _, rest = attached()
    rest.load_state_dict(state)
    with pytest.raises(IllegalConfiguration, match=r"Pass one batch through handle\.batch"):
        rest.batch(numbered(4))


def test_other_methods_draw_what_they_would_draw_alone():
    states = []
    for methods in ([ReDo(tau=1.0, every=2)], [ExperienceReplay(capacity=10), ReDo(tau=1.0, every=2)]):
        model, optimizer, handle = attached(methods)
        for step in range(6):
            x = handle.batch(numbered(4 * step))
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        assert handle.num_resets
        states.append(handle.state_dict()["random"]["cpu"][0])
    untouched = attached(ReDo())[2].state_dict()["random"]["cpu"][0]
    assert not torch.equal(states[0], untouched)
    alone = attached([ExperienceReplay(capacity=10)])[2]
    for step in range(6):
        alone.batch(numbered(4 * step))
    assert torch.equal(alone.state_dict()["random"]["cpu"][0], untouched)


def test_members_have_reservoirs_of_their_own():
    singles = [nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)) for _ in range(2)]
    units = pliant.find_units(singles[0], torch.randn(2, 3))
    stacked = stack(singles)
    optimizer = torch.optim.SGD(stacked.parameters(), lr=0.1)
    handle = pliant.attach(stacked, optimizer, ExperienceReplay(capacity=10), units=units, seed=(5, 6))
    alone = [attached(seed=seed)[2] for seed in (5, 6)]
    for start in range(0, 80, 4):
        rows = [numbered(start), numbered(start) + 1000]
        out = handle.batch(torch.stack(rows))
        for member, (one, row) in enumerate(zip(alone, rows, strict=True)):
            assert torch.equal(out[member], one.batch(row))
    assert out.shape == (2, 8, 3)
    assert not torch.equal(out[0], out[1] - 1000)
    with pytest.raises(IllegalConfiguration, match=r"shape \(4, 3\) instead of \[2, batch, \.\.\.\]"):
        handle.batch(numbered(0))


def test_a_forgotten_call_is_said_once():
    model, optimizer, _ = attached()

    def train(steps):
        for _ in range(steps):
            model(torch.randn(2, 3)).square().mean().backward()
            optimizer.step()

    train(PENALTY_AFTER - 1)
    with pytest.warns(NoEffectWarning, match=r"ExperienceReplay acts on batches.*handle\.batch\(\(x, y\)\)") as caught:
        train(20)
    assert len(caught) == 1


def test_a_call_that_comes_is_enough_and_the_null_waits_for_nothing():
    for method in (ExperienceReplay(capacity=10), ExperienceReplay().null()):
        model, optimizer, handle = attached(method)
        if method.ratio:
            handle.batch(numbered(0))
        for _ in range(PENALTY_AFTER + 2):
            model(torch.randn(2, 3)).square().mean().backward()
            optimizer.step()


def test_a_dry_run_and_the_null_hand_the_batch_back():
    batch = (numbered(0), torch.zeros(4))
    for handle in (attached(dry_run=True)[2], attached(ExperienceReplay().null())[2], attached(ReDo())[2]):
        for _ in range(3):
            assert handle.batch(batch) is batch


def test_a_detached_handle_refuses_and_its_examples_are_gone():
    _, _, handle = attached()
    handle.batch(numbered(0))
    handle.detach()
    with pytest.raises(IllegalConfiguration, match="detached"):
        handle.batch(numbered(4))
    with pytest.raises(IllegalConfiguration, match="save it before"):
        handle.state_dict()


def test_nothing_is_read_from_the_device(monkeypatch):
    """On the path of accelerators, with values that may not be looked at: a batch is extended and kept all the same."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class NoValues(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func.overloadpacket.__name__
            assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal"), name
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr(devices, "_as_accelerator", True)
    _, _, handle = attached()
    batches = [numbered(4 * step) for step in range(6)]
    with NoValues():
        sizes = [len(handle.batch(batch)) for batch in batches]
    assert sizes == [4, 8, 8, 8, 8, 8]


@pytest.mark.parametrize("keep_on", ["batch", "cpu"])
def test_where_examples_are_kept(keep_on):
    """With meta tensors in the place of an accelerator's: there is no such device here."""
    _, _, handle = attached(ExperienceReplay(capacity=10, keep_on=keep_on))
    handle.batch(numbered(0))
    assert kept(handle)["batch"].device.type == "cpu"
    method = handle.methods[0]
    assert method._place(torch.empty(2, device="meta")).type == ("meta" if keep_on == "batch" else "cpu")
