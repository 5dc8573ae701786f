"""The editor's verbs one by one, against the same thing written out by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from edit_tools import editor, mask_of, state_tensors, trained, units_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import ZOO

import pliant
from pliant import IllegalConfiguration, devices
from pliant.edit import Editor
from pliant.events import EventLog
from pliant.stats.capture import named_tensors
from pliant.units.group import TensorSlice, UnitGroup
from pliant.units.init import Init, initialisers
from pliant.write import stream_of

ROWS = tuple((unit,) for unit in range(8))


def tensors_of(model) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in named_tensors(model).items()}


def draws(size, bound: float, seed: int = 0) -> Tensor:
    return Init("uniform", bound).draw(size, torch.Generator().manual_seed(stream_of(seed))).double()


# ---- resets by a share ----
def test_a_partial_reset_goes_part_of_the_way():
    """Each entry becomes (1 - share) old + share new; moments go the same way towards those of a new entry."""
    model, optimizer = trained("mlp", "adagrad_from_one")
    before, sums = tensors_of(model), optimizer.state[model[0].weight]["sum"].clone()
    one = editor(model, optimizer)
    share = torch.tensor([0.0, 0.25, 0, 0, 1.0, 0, 0, 0.5], dtype=torch.float64)
    one.reset(units_of("mlp")["0"], share)
    fresh = torch.zeros(8, 5, dtype=torch.float64)
    fresh[[1, 4, 7]] = draws((3, 5), 5**-0.5)
    column = share.unsqueeze(1)
    after = tensors_of(model)
    assert torch.allclose(after["0.weight"], (1 - column) * before["0.weight"] + column * fresh, rtol=0, atol=1e-12)
    assert torch.allclose(after["0.bias"], (1 - share) * before["0.bias"], rtol=0, atol=1e-12)
    assert torch.allclose(after["2.weight"], (1 - share) * before["2.weight"], rtol=0, atol=1e-12)
    untouched = share == 0
    assert torch.equal(after["0.weight"][untouched], before["0.weight"][untouched])
    want = (1 - column) * sums + column * 1.0
    assert torch.allclose(optimizer.state[model[0].weight]["sum"], want, rtol=0, atol=1e-12)
    (event,) = one.events
    assert (event.action, event.units) == ("partial_reset", (1, 4, 7))
    assert one.events.num_resets() == {}  # a unit that goes part of the way is no new unit


@pytest.mark.parametrize("name", ["mlp", "conv_bn_flatten", "swiglu", "mlp_reused"])
def test_a_share_of_one_is_a_reset(name):
    for group in units_of(name):
        ends = []
        for mask in (mask_of(group.size), mask_of(group.size).double()):
            model, optimizer = trained(name)
            editor(model, optimizer, init=ZOO[name].init).reset(group, mask)
            moments = [v for p in model.parameters() for v in state_tensors(optimizer, p).values()]
            ends.append([*tensors_of(model).values(), *moments])
        assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_norms_and_running_statistics_go_the_same_way():
    model, optimizer = trained("conv_bn_flatten")
    group = next(iter(units_of("conv_bn_flatten")))
    (gain,) = [piece.name for piece in group.role("carried") if piece.name.endswith("weight")]
    before = tensors_of(model)
    share = torch.full((group.size,), 0.5, dtype=torch.float64)
    editor(model, optimizer).reset(group, share)
    after = tensors_of(model)
    assert torch.allclose(after[gain], 0.5 * before[gain] + 0.5)
    mean = gain.replace("weight", "running_mean")
    assert before[mean].any()
    assert torch.allclose(after[mean], 0.5 * before[mean])


def test_a_share_above_one_is_refused_and_nothing_is_written():
    model, optimizer = trained("mlp")
    before = tensors_of(model)
    with pytest.raises(IllegalConfiguration, match=r"\[0, 1\]"):
        editor(model, optimizer).reset(units_of("mlp")["0"], torch.full((8,), 1.5))
    assert all(torch.equal(v, before[k]) for k, v in tensors_of(model).items())


def test_what_is_kept_is_kept():
    for keep in ("incoming", "bias", "outgoing", "moments"):
        model, optimizer = trained("mlp")
        before, moment = tensors_of(model), optimizer.state[model[0].weight]["exp_avg"].clone()
        editor(model, optimizer).reset(units_of("mlp")["0"], mask_of(8), **{keep: "keep"})
        after = tensors_of(model)
        same = {
            "incoming": torch.equal(after["0.weight"], before["0.weight"]),
            "bias": torch.equal(after["0.bias"], before["0.bias"]),
            "outgoing": torch.equal(after["2.weight"], before["2.weight"]),
            "moments": torch.equal(optimizer.state[model[0].weight]["exp_avg"], moment),
        }
        assert same["incoming"] == (keep == "incoming")
        assert same["bias"] == (keep == "bias")
        assert same["outgoing"] == (keep == "outgoing")
        assert same["moments"] == (keep in ("moments", "incoming"))  # what was not written keeps its moments


# ---- tied, transposed ----
class Tied(nn.Module):
    """An autoencoder whose decoder is the encoder's matrix, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Linear(5, 8)

    def forward(self, x):
        return torch.relu(self.code(x)) @ self.code.weight


TIED_GROUP = UnitGroup(
    "code",
    8,
    (TensorSlice("code.weight", -2, "both", ROWS), TensorSlice("code.bias", -1, "incoming", ROWS)),
    "hidden",
    None,
    False,
)


def test_entries_that_are_incoming_and_outgoing_are_redrawn_and_not_zeroed():
    """Zeroing last would leave a unit with neither input nor output: dead for ever."""
    model = Tied().double()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 5, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    before = tensors_of(model)
    editor(model, optimizer).reset(TIED_GROUP, mask_of(8))
    after = tensors_of(model)
    assert torch.equal(after["code.weight"][[0, 7]], draws((2, 5), 5**-0.5))
    assert not after["code.bias"][[0, 7]].any()
    assert torch.equal(after["code.weight"][1:7], before["code.weight"][1:7])
    assert not optimizer.state[model.code.weight]["exp_avg"][[0, 7]].any()
    halfway = copy.deepcopy(model)
    editor(halfway, torch.optim.SGD(halfway.parameters()), seed=3).reset(TIED_GROUP, torch.full((8,), 0.5).double())
    want = 0.5 * after["code.weight"] + 0.5 * draws((8, 5), 5**-0.5, seed=3)
    assert torch.allclose(halfway.code.weight, want)  # once, and not once for each role
    units = pliant.find_units(Tied(), torch.randn(3, 5))
    assert [(p.name, p.dim, p.role) for p in units["code"].slices] == [
        (p.name, p.dim, p.role) for p in TIED_GROUP.slices
    ]
    assert not units["code"].reset_preserves_function


# ---- factors and noise ----
def test_perturb_adds_what_units_could_have_been_born_with():
    model, optimizer = trained("mlp")
    before, moment = tensors_of(model), optimizer.state[model[0].weight]["exp_avg"].clone()
    one = editor(model, optimizer)
    amount = torch.tensor([0.0, 0.5, 0, 0, 0, 0, 2.0, 0])
    one.perturb(units_of("mlp")["0"], amount, noise_scale=0.1)
    after = tensors_of(model)
    generator = torch.Generator().manual_seed(stream_of(0))
    noise = torch.zeros(8, 5)
    noise[[1, 6]] = Init("uniform", 5**-0.5).draw((2, 5), generator)
    bias = torch.zeros(8)
    bias[[1, 6]] = Init("uniform", 5**-0.5).draw((2,), generator)
    want = before["0.weight"] + 0.1 * amount.unsqueeze(1) * noise
    assert torch.allclose(after["0.weight"], want, rtol=0, atol=1e-7)
    assert torch.allclose(after["0.bias"], before["0.bias"] + 0.1 * amount * bias, rtol=0, atol=1e-7)
    assert torch.equal(after["2.weight"], before["2.weight"])
    assert torch.equal(optimizer.state[model[0].weight]["exp_avg"], moment)
    assert [(event.action, event.units) for event in one.events] == [("perturb", (1, 6))]
    one.perturb(units_of("mlp")["0"], amount != 0, moments="zero")
    assert not optimizer.state[model[0].weight]["exp_avg"][[1, 6]].any()
    constant = editor(model, optimizer, init="xavier_uniform")  # biases start at zero there, and have no noise
    now = tensors_of(model)
    constant.perturb(units_of("mlp")["0"], amount)
    assert torch.equal(model[0].bias, now["0.bias"])
    assert not torch.equal(model[0].weight, now["0.weight"])


# ---- single weights ----
def weights_mask() -> Tensor:
    mask = torch.zeros(8, 5, dtype=torch.bool)
    mask[0, 1] = mask[3, 4] = mask[7, 0] = True
    return mask


@pytest.mark.parametrize("to", ["init", "zero", "tensor"])
def test_reset_weights(to):
    model, optimizer = trained("mlp", "adagrad_from_one")
    before, mask = tensors_of(model), weights_mask()
    value = torch.randn(8, 5, dtype=torch.float64)
    one = editor(model, optimizer)
    one.reset_weights("0.weight", mask, to=value if to == "tensor" else to, reason="small")
    want = {"init": draws((3,), 5**-0.5), "zero": torch.zeros(3, dtype=torch.float64), "tensor": value[mask]}[to]
    assert torch.equal(model[0].weight[mask], want)
    assert torch.equal(model[0].weight[~mask], before["0.weight"][~mask])
    sums = optimizer.state[model[0].weight]["sum"]
    assert (sums[mask] == 1).all()
    assert (sums[~mask] != 1).any()
    (event,) = one.events
    assert (event.action, event.tensors, event.reason) == ("reset_weights", ("0.weight",), "small")
    kept = sums.clone()
    one.reset_weights("0.weight", ~mask, to="zero", moments="keep")
    assert torch.equal(sums, kept)


def test_a_mask_of_another_kind_or_shape_is_refused():
    model, optimizer = trained("mlp")
    for mask in (torch.zeros(5, 8, dtype=torch.bool), torch.zeros(8, 5)):
        with pytest.raises(IllegalConfiguration, match=r"0\.weight.*bool \(8, 5\)"):
            editor(model, optimizer).reset_weights("0.weight", mask)
    one = editor(model, optimizer)
    one.reset_weights("0.weight", torch.zeros(8, 5, dtype=torch.bool))
    assert len(one.events) == 0


def test_asgd_keeps_the_average_of_single_weights_with_them():
    model, optimizer = trained("mlp", "asgd", steps=6)
    mask = weights_mask()
    editor(model, optimizer).reset_weights("0.weight", mask)
    average = optimizer.state[model[0].weight]["ax"]
    assert torch.equal(average[mask], model[0].weight[mask])
    assert not torch.equal(average[~mask], model[0].weight[~mask])


# ---- whole tensors ----
def test_shrink_to_the_origin_and_towards_other_values():
    model, optimizer = trained("mlp")
    before = tensors_of(model)
    one = editor(model, optimizer)
    targets = [torch.ones(8, 5), torch.full((8,), 2.0)]
    one.shrink(["0.weight", "0.bias"], [0.5, torch.tensor(0.25)], towards=targets)
    assert torch.allclose(model[0].weight, 0.5 * before["0.weight"] + 0.5)
    assert torch.allclose(model[0].bias, 0.25 * before["0.bias"] + 1.5)
    rows = torch.arange(6.0).unsqueeze(1)  # a tensor that broadcasts
    one.shrink(["2.weight", "2.bias"], [rows, 0.0])
    assert torch.allclose(model[2].weight, rows * before["2.weight"])
    assert not model[2].bias.any()
    assert torch.equal(model[4].weight, before["4.weight"])


def test_clamp_and_noise():
    model, optimizer = trained("mlp")
    before = tensors_of(model)
    one = editor(model, optimizer)
    one.clamp(["0.weight", "2.weight"], [(-0.1, 0.1), (0.0, 1.0)])
    assert torch.equal(model[0].weight, before["0.weight"].clamp(-0.1, 0.1))
    assert torch.equal(model[2].weight, before["2.weight"].clamp(0, 1))
    one.add_noise("4.weight", 0.5)
    assert torch.allclose(model[4].weight, before["4.weight"] + 0.5 * draws((3, 6), 6**-0.5))
    assert [(event.action, event.tensors) for event in one.events] == [
        ("clamp", ("0.weight", "2.weight")),
        ("add_noise", ("4.weight",)),
    ]
    fixed = editor(model, optimizer, init="xavier_uniform")
    fixed.add_noise("4.bias", 0.5)  # starts at a constant: nothing could be added
    assert len(fixed.events) == 0


# ---- every verb ----
VERBS = {
    "reset": lambda one, group: one.reset(group, mask_of(8)),
    "partial_reset": lambda one, group: one.reset(group, torch.full((8,), 0.5, dtype=torch.float64)),
    "scale": lambda one, group: one.scale(group, torch.full((8,), 0.5)),
    "perturb": lambda one, group: one.perturb(group, mask_of(8)),
    "reset_weights": lambda one, group: one.reset_weights("0.weight", weights_mask()),
    "shrink": lambda one, group: one.shrink(["0.weight"], [0.5]),
    "clamp": lambda one, group: one.clamp(["0.weight"], [(-0.01, 0.01)]),
    "add_noise": lambda one, group: one.add_noise("0.weight", 0.1),
    "assign": lambda one, group: one.assign("0.weight", torch.zeros(8, 5)),
}
"""Each with something to do."""


def everything(model, optimizer) -> list[Tensor]:
    found = [tensor.detach().clone() for tensor in named_tensors(model).values()]
    return found + [v.clone() for p in model.parameters() for v in optimizer.state[p].values() if torch.is_tensor(v)]


@pytest.mark.parametrize("verb", VERBS)
def test_a_dry_run_logs_what_the_verb_would_do_and_draws_nothing(verb):
    logs = []
    for dry in (False, True):
        model, optimizer = trained("mlp")
        one = editor(model, optimizer)
        one.dry_run = dry
        before, random = everything(model, optimizer), one.random_state()["cpu"][0]
        VERBS[verb](one, units_of("mlp")["0"])
        same = all(torch.equal(a, b) for a, b in zip(before, everything(model, optimizer), strict=True))
        assert same == dry
        assert torch.equal(one.random_state()["cpu"][0], random) or not dry
        logs.append([event.to_dict() for event in one.events])
    assert logs[0] == logs[1]
    assert [event["action"] for event in logs[0]] == [verb]


@pytest.mark.parametrize("verb", VERBS)
def test_a_step_that_mixed_precision_skipped_changes_nothing(verb):
    """``live`` is a scalar on the device that nobody reads: 0 where a fused optimizer has skipped its step."""
    ends = []
    for live in (None, torch.tensor(1.0), torch.tensor(0.0)):
        model, optimizer = trained("mlp")
        one = editor(model, optimizer)
        one.live = live
        before = everything(model, optimizer)
        VERBS[verb](one, units_of("mlp")["0"])
        ends.append(everything(model, optimizer))
        if live is not None and not live:
            assert all(torch.equal(a, b) for a, b in zip(before, ends[-1], strict=True))
    assert all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(ends[0], ends[1], strict=True))


class Stack(nn.Module):
    """Members of a small network, side by side."""

    def __init__(self, members: int | None) -> None:
        super().__init__()
        lead = () if members is None else (members,)
        self.first, self.last = nn.Linear(1, 1), nn.Linear(1, 1)
        self.first.weight = nn.Parameter(torch.ones(*lead, 8, 5))
        self.first.bias = nn.Parameter(torch.ones(*lead, 8))
        self.last.weight = nn.Parameter(torch.ones(*lead, 3, 8))
        self.last.bias = nn.Parameter(torch.ones(*lead, 3))


STACK_GROUP = UnitGroup(
    "first",
    8,
    (
        TensorSlice("first.weight", -2, "incoming", ROWS),
        TensorSlice("first.bias", -1, "incoming", ROWS),
        TensorSlice("last.weight", -1, "outgoing", ROWS),
    ),
    "hidden",
    None,
    True,
)


def stack_editor(members: int | None, seeds: tuple[int, ...]):
    model = Stack(members)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    events = EventLog()
    events.num_members = members
    inits = initialisers(model, members=members is not None)
    owners = dict.fromkeys(dict(model.named_parameters()), optimizer)
    return model, Editor(named_tensors(model), owners, inits, seeds, num_members=members, events=events)


def test_each_member_draws_what_it_would_draw_alone():
    """Members with different masks: no member's draws depend on how many entries another one needs."""
    torch.manual_seed(0)
    seeds, masks = (4, 5, 6), torch.rand(3, 8) < 0.4
    amounts, entries = torch.rand(3, 8) * (torch.rand(3, 8) < 0.6), torch.rand(3, 8, 5) < 0.3

    def act(one, pick):
        one.reset(STACK_GROUP, pick(masks))
        one.reset(STACK_GROUP, pick(amounts))
        one.perturb(STACK_GROUP, pick(amounts), noise_scale=0.3)
        one.reset_weights("first.weight", pick(entries))
        one.scale(STACK_GROUP, pick(1 - amounts))
        one.add_noise("last.weight", 0.2)

    stacked, one = stack_editor(3, seeds)
    act(one, lambda values: values)
    for member, seed in enumerate(seeds):
        alone, own = stack_editor(None, (seed,))
        act(own, lambda values, member=member: values[member])
        for name, tensor in alone.named_parameters():
            assert torch.equal(tensor, stacked.get_parameter(name)[member]), name
        mine = [
            (e.action, tuple(u for u, m in zip(e.units, e.members, strict=True) if m == member)) for e in one.events
        ]
        assert [entry for entry in mine if entry[1]] == [(e.action, e.units) for e in own.events if e.units]


class NothingIsRead(TorchDispatchMode):
    """Raises where the host would wait for a device: values or sizes that depend on them."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "bincount"), name
        if name in ("index", "index_put_"):
            assert all(i is None or i.dtype == torch.int64 for i in args[1]), f"{name} with a boolean mask"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("live", [None, 0.0, 1.0])
@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_waits_for_an_accelerator(verb, live, monkeypatch):
    """The forms for accelerators, on a CPU; what they do is what the others do, up to which draw goes where."""
    monkeypatch.setattr(devices, "_as_accelerator", True)
    model, optimizer = trained("mlp", "adagrad_from_one")
    one = editor(model, optimizer)
    VERBS[verb](one, units_of("mlp")["0"])  # tables are made
    one.live = None if live is None else torch.full((), live)
    before = everything(model, optimizer)
    with NothingIsRead():
        VERBS[verb](one, units_of("mlp")["0"])
    same = all(torch.equal(a, b) for a, b in zip(before, everything(model, optimizer), strict=True))
    assert same == (live == 0 or verb in ("clamp", "assign"))  # these two had been done already


def test_the_verbs_are_listed():
    for verb in ("reset", "scale", "perturb", "reset_weights", "shrink", "clamp", "add_noise", "assign"):
        assert f":meth:`{verb}`" in Editor.__doc__
