"""Units declared by hand: models with data-dependent control flow, proofs, and refusals that name the culprit."""

from __future__ import annotations

import pytest
import torch
import zoo
from torch import Tensor, nn
from torch.nn import functional as F
from zoo_declared import (
    EXIT,
    LAYOUTS,
    ROUTER,
    EarlyExit,
    EncoderAndRouter,
    Layouts,
    Loop,
    Router,
    TwoTowers,
    batch,
    made,
    members,
)

import pliant
from pliant import IllegalConfiguration, UnsupportedOp
from pliant.stats.capture import capture


# ---- the three models ----
def test_early_exit():
    model = made(EarlyExit)
    with pytest.raises(UnsupportedOp):
        pliant.find_units(model, batch())
    units = pliant.declare_units(model, batch(), EXIT, more_inputs=[20 * batch()])
    assert members(units) == {
        "fc1": "fc1.weight[-2] fc1.bias[-1] norm.weight[-1] norm.bias[-1] norm.running_mean[-1] norm.running_var[-1] "
        "exit.weight[-1] fc2.weight[-1]",
        "fc2": "fc2.weight[-2] fc2.bias[-1] out.weight[-1]",
    }
    assert [piece.role for piece in units["fc1"].slices] == 2 * ["incoming"] + 4 * ["carried"] + 2 * ["outgoing"]
    assert [group.reset_preserves_function for group in units] == [True, True]
    short = pliant.declare_units(model, batch(), {"fc1": {"carried": "norm", "outgoing": ["exit", "fc2"]}})
    assert str(short["fc1"].tap) == "output of act"  # before the dropout, although the consumers come after it
    assert [str(group.tap) for group in units] == ["output of act", "input of out"]
    assert units.excluded["exit.weight", -2] == "it was not declared"
    assert ("fc1.bias", -1) not in units.excluded
    model.eval()
    seen = capture(model, units, batch())["fc1"]
    assert torch.allclose(seen, torch.relu(model.norm(model.fc1(batch()))), atol=1e-6)


def test_a_loop_that_ends_by_itself():
    """The state of the loop is one set of units: three layers read and write it."""
    units = pliant.declare_units(
        made(Loop), batch(4), {"read": {"incoming": ["read", "step"], "outgoing": ["step.weight[1]", "write"]}}
    )
    assert members(units) == {
        "read": "read.weight[-2] read.bias[-1] step.weight[-2] step.bias[-1] step.weight[-1] write.weight[-1]"
    }
    assert str(units["read"].tap) == "input of step"
    assert not units["read"].reset_preserves_function  # every unit, read or not, decides when the loop ends


def test_routing_by_the_data():
    model, x = made(Router), batch(4)
    units = pliant.declare_units(model, x, ROUTER, more_inputs=[x.abs(), -x.abs()])
    assert {group.name: group.size for group in units} == {"stem.0": 8, "left.0": 6, "right.0": 5}
    assert {group.name: group.reset_preserves_function for group in units} == {
        "stem.0": True,
        "left.0": True,
        "right.0": False,  # a LayerNorm mixes the units
    }


def test_a_branch_that_no_run_takes_is_an_error():
    model, x = made(Router), batch(4).abs() + 5
    with pytest.raises(IllegalConfiguration, match=r"reads 'right\.0\.weight' of 'stem\.0'.*more_inputs"):
        pliant.declare_units(model, x, ROUTER)
    with pytest.raises(IllegalConfiguration, match=r"reads 'right\.0\.weight', where units of 'stem\.0' would fit"):
        pliant.declare_units(model, x, {"stem.0": "left.0"})
    units = pliant.declare_units(model, x, {"stem.0": "left.0"}, ignore="right.*")
    assert members(units) == {"stem.0": "stem.0.weight[-2] stem.0.bias[-1] left.0.weight[-1]"}


@pytest.mark.parametrize("cls", [EarlyExit, Loop, Router])
def test_declaring_changes_nothing(cls):
    model, x = made(cls), batch(5 if cls is EarlyExit else 4)
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    groups = {EarlyExit: EXIT, Router: ROUTER, Loop: {"read": {"incoming": ["read", "step"], "outgoing": "write"}}}[cls]
    if cls is Loop:
        with pytest.raises(IllegalConfiguration, match=r"'step\.weight\[-1\]' is missing.*outgoing"):
            pliant.declare_units(model, x, groups)
    else:
        pliant.declare_units(model, x, groups, more_inputs=[x.abs(), -x.abs()])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float32
    assert not model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_training_on_a_declared_model_is_protected():
    model = made(EarlyExit)
    units = pliant.declare_units(model, batch(), EXIT, more_inputs=[20 * batch()])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    method = pliant.ContinualBackprop(replacement_rate=0.05, maturity_threshold=3)
    handle = pliant.attach(model, optimizer, method, units=units)
    for step in range(30):
        optimizer.zero_grad()
        F.mse_loss(model(torch.randn(8, 5, generator=torch.Generator().manual_seed(step))), torch.ones(8, 3)).backward()
        optimizer.step()
    assert int(handle.num_resets["fc1"]) > 3
    handle.detach()


# ---- layouts ----
def test_layouts():
    torch.manual_seed(0)
    model, x = Layouts(), torch.randn(3, 1, 4, 4)
    units = pliant.declare_units(model, x, LAYOUTS)
    assert units["conv"].slices[-1].table == ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11), (12, 13, 14, 15))
    heads = {piece.name: piece.table for piece in units["qkv:heads"].slices}
    first = tuple(block + inner for block in (0, 8, 16) for inner in range(4))
    assert heads["qkv.weight"] == heads["qkv.bias"] == (first, tuple(place + 4 for place in first))
    assert heads["proj.weight"] == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert units["gates"].slices[0].table == ((0, 5), (1, 6), (2, 7), (3, 8), (4, 9))
    assert (units["conv"].tap.dim, units["qkv:heads"].tap.table) == (-3, ((0, 1, 2, 3), (4, 5, 6, 7)))
    assert units["qkv:heads"].site == "heads"
    assert units["qkv:heads"].reset_preserves_function

    table = torch.arange(10).view(2, 5).T
    same = dict(LAYOUTS, gates={"incoming": {"tensor": "gates", "dim": 1, "positions": table}, "outgoing": "out"})
    assert pliant.declare_units(model, x, same)["gates"].slices == units["gates"].slices


def test_a_group_may_have_no_tap():
    units = pliant.declare_units(
        made(EarlyExit), batch(), {"fc1": {**EXIT["fc1"], "tap": None}}, more_inputs=[20 * batch()]
    )
    assert units["fc1"].tap is None

    class Functional(TwoTowers):
        def forward(self, x: Tensor) -> Tensor:
            if x.isnan().any():
                raise ValueError
            h = F.relu(F.linear(x, self.a1.weight, self.a1.bias))
            return F.linear(h, self.a2.weight, self.a2.bias) + self.b2(torch.tanh(self.b1(x)))

    units = pliant.declare_units(made(Functional), batch(4), {"a1": "a2", "b1": "b2"})
    assert [str(group.tap) for group in units] == ["None", "input of b2"]


# ---- together with what is found ----
def test_found_units_of_a_part_and_declared_ones_of_the_rest():
    model, x = made(EncoderAndRouter), batch()
    found = pliant.find_units(model.encoder, x).prefixed("encoder")
    declared = {
        "router.stem.0": ["router.left.0", "router.right.0"],
        "encoder.2": "router.stem.0",  # the encoder's output: only the whole shows that it is hidden
    }
    units = pliant.declare_units(model, x, declared, base=found, more_inputs=[20 * x, -20 * x])
    assert {group.name: str(group.tap) for group in units} == {
        "encoder.0": "input of encoder.2",
        "router.stem.0": "output of router.stem.1",  # heard on both roads
        "encoder.2": "output of encoder.3",
    }
    assert ("encoder.2.weight", -2) not in units.excluded
    assert "input" in units.excluded["encoder.0.weight", -1]
    assert set(capture(model, units, x)) == {"encoder.0", "router.stem.0", "encoder.2"}


def test_found_units_that_are_none_in_the_whole_model_are_refused():
    class Peeks(EncoderAndRouter):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.encoder[0](x)[:, :2]

    model, x = made(Peeks), batch()
    found = pliant.find_units(model.encoder, x).prefixed("encoder")
    with pytest.raises(IllegalConfiguration, match=r"units of 'encoder\.0'.*changes the output"):
        pliant.declare_units(model, x, {"router.left.0": "router.left.2"}, base=found, more_inputs=[20 * x, -20 * x])


def test_a_part_needs_its_prefix_and_tied_tensors_their_first_name():
    class Tied(EncoderAndRouter):
        def __init__(self) -> None:
            super().__init__()
            self.copy = self.encoder  # registered twice: its tensors are called by the first name

    model, x = made(Tied), batch()
    declared, more = {"router.left.0": "router.left.2"}, [20 * x, -20 * x]
    with pytest.raises(IllegalConfiguration, match=r"base names '0\.weight'.*prefixed\('encoder'\)"):
        pliant.declare_units(model, x, declared, base=pliant.find_units(model.encoder, x), more_inputs=more)
    found = pliant.find_units(model.copy, x).prefixed("copy")
    units = pliant.declare_units(model, x, declared, base=found, more_inputs=more)
    assert units["copy.0"].tensors == ("encoder.0.weight", "encoder.0.bias", "encoder.2.weight")


def test_graphs_that_share_positions_cannot_be_joined():
    model, x = zoo.ZOO["mlp"].model(), zoo.ZOO["mlp"].batch()
    units = pliant.find_units(model, x)
    with pytest.raises(IllegalConfiguration, match=r"belongs to '0' and to '0'"):
        units | units
    one = pliant.declare_units(model, x, {"0": "2"})
    two = pliant.declare_units(model, x, {"2": "4"})
    both = one | two
    assert [group.name for group in both] == ["0", "2"]
    assert both.verify(model, x).ok
    assert set(both.excluded) == {("0.weight", -1), ("4.weight", -2), ("4.bias", -1)}
    assert members(both) == members(units)


def test_prefixed_replays_are_fed_from_the_part():
    model = nn.ModuleDict({"net": zoo.ZOO["mlp_raw"].model()})
    x = zoo.ZOO["mlp_raw"].batch()
    units = pliant.find_units(model["net"], x).prefixed("net.")
    assert str(units["net.w1"].tap) == "replayed from input of net"

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model["net"]

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    net = model["net"]
    assert torch.allclose(capture(Whole(), units, x)["net.w1"], torch.relu(x @ net.w1 + net.b1), atol=1e-6)


# ---- what is found can be declared ----
@pytest.mark.parametrize("name", ["mlp", "mlp_reused", "swiglu", "conv_bn_flatten", "actor_critic"])
def test_a_declaration_of_what_is_found_is_the_same(name):
    case = zoo.ZOO[name]
    model, x = case.model(), case.batch()
    found = pliant.find_units(model, x)
    declared = {
        group.name: {
            "size": group.size,
            "tap": str(group.tap),
            **{
                role: [
                    {"tensor": piece.name, "dim": piece.dim, "positions": piece.positions()}
                    for piece in group.role(role)
                ]
                for role in ("incoming", "carried", "outgoing")
            },
        }
        for group in found
    }
    units = pliant.declare_units(model, x, declared)
    for group in found:
        assert set(units[group.name].slices) == set(group.slices)
        assert units[group.name].reset_preserves_function == group.reset_preserves_function
        assert units[group.name].tap == group.tap


def test_several_modules_can_be_declared():
    models = {"actor": made(Router), "critic": nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 1))}
    x = batch(4)
    inputs = [{"actor": sign * x.abs(), "critic": x} for sign in (1, -1)]
    units = pliant.declare_units(
        models, inputs[0], {"actor.stem.0": ["actor.left.0", "actor.right.0"], "critic.0": "critic.2"},
        more_inputs=inputs[1:],
    )  # fmt: skip
    assert str(units["actor.stem.0"].tap) == "output of actor.stem.1"
    assert units["critic.0"].tensors == ("critic.0.weight", "critic.0.bias", "critic.2.weight")
