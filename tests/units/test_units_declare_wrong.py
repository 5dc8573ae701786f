"""Wrong declarations of units are refused, with the member or the tap at fault."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from zoo_declared import (
    EXIT,
    LAYOUTS,
    ROUTER,
    EarlyExit,
    Layouts,
    Loop,
    Router,
    TwoTowers,
    batch,
    made,
)

import pliant
from pliant import IllegalConfiguration, NoEffect


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gates", {"incoming": {"tensor": "gates", "dim": 1}},
         "'gates[-1]' is not where the units are. With {'tensor': 'gates', 'dim': -1, 'blocks': 2}"),
        ("gates", {"incoming": {"tensor": "gates", "dim": 1, "blocks": 3}}, "5 units in 3 blocks do not fill"),
        ("conv", {"outgoing": {"tensor": "fc.weight", "blocks": 4}},
         "With {'tensor': 'fc.weight', 'dim': -1, 'each': 4}"),
        ("qkv:heads", {"incoming": {"tensor": "qkv.weight", "dim": 0, "blocks": 3}}, "'qkv.bias[-1]' is missing"),
    ],
)  # fmt: skip
def test_wrong_layouts_are_refused_with_the_right_one(name, change, message):
    torch.manual_seed(0)
    with pytest.raises(IllegalConfiguration, match=re.escape(message)):
        pliant.declare_units(Layouts(), torch.randn(3, 1, 4, 4), {name: {**LAYOUTS[name], **change}})


# ---- wrong declarations ----
@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"fc1": ["exit", "fc2"]}, "'norm.weight[-1]', 'norm.bias[-1]', 'norm.running_mean[-1]', "
         "'norm.running_var[-1]' are missing"),
        ({"fc1": {"carried": "norm", "outgoing": "exit"}}, "'fc2.weight[-1]' is missing. Add 'outgoing'"),
        ({"fc1": {"incoming": "fc1.weight", "carried": "norm", "outgoing": ["exit", "fc2"]}},
         "'fc1.bias[-1]' is missing. Add 'incoming'"),
        ({"fc1": {"carried": ["norm.weight", "norm.bias"], "outgoing": ["exit", "fc2"]}},
         "'norm.running_mean[-1]', 'norm.running_var[-1]' are missing"),
        ({"fc1": {"carried": ["norm.running_mean", "norm.weight"], "outgoing": ["fc2"]}}, "are missing"),
        ({"fc2": {"incoming": ["fc2", "fc1"], "outgoing": "out"}}, "which 6 units do not fill"),
        ({"fc1": {"carried": "norm", "outgoing": ["exit", "fc2[0]"]}}, "'fc2' is a module"),
        ({"fc1": {"carried": "norm", "outgoing": ["exit", "fc3"]}}, "there is no module 'fc3'. There are: fc2, fc1"),
        ({"fc1": {"carried": "norm", "outgoing": ["exit", "fc2.wieght[1]"]}}, "no floating-point tensor 'fc2.wieght'"),
        ({"fc1": {"carried": "act", "outgoing": "exit"}}, "has no tensors of its own"),
        ({"fc1": {"carried": "fc2.weight", "outgoing": "exit"}}, "say along which dimension"),
        ({"fc1": {"outgoing": ["exit", "exit"]}}, "'exit.weight[-1]' is named twice"),
        ({"fc1": {"outgiong": "exit"}}, "unknown 'outgiong'"),
        ({"fc1": {"outgoing": "exit", "site": "neck"}}, "site='neck' is none of"),
        ({"fc1": {"incoming": [], "outgoing": "exit"}}, "nothing produces its units"),
        ({"fc1": {"outgoing": {"tensor": "exit.weight", "dims": 1}}}, "is no reference to a tensor"),
        ({"fc1": {"outgoing": "exit.weight[2]"}}, "has no dimension 2"),
        ({"units": "exit"}, "there is no module 'units'"),
    ],
)  # fmt: skip
def test_wrong_declarations_name_the_member(groups, message):
    with pytest.raises(IllegalConfiguration, match=re.escape(message)):
        pliant.declare_units(made(EarlyExit), batch(), groups, more_inputs=[20 * batch()])


def test_a_member_of_another_group_is_said_not_to_belong():
    with pytest.raises(IllegalConfiguration, match=r"'b1\.bias\[-1\]' does not belong"):
        pliant.declare_units(made(TwoTowers), batch(4), {"a1": {"incoming": ["a1", "b1.bias"], "outgoing": "a2"}})


def test_two_groups_declared_as_one_are_told_apart():
    both = {"a1": {"incoming": ["a1", "b1"], "outgoing": ["a2", "b2"]}}
    with pytest.raises(IllegalConfiguration, match=r"'a1' is two groups: .*Declare them apart"):
        pliant.declare_units(made(TwoTowers), batch(4), both)
    assert len(pliant.declare_units(made(TwoTowers), batch(4), {"a1": "a2", "b1": "b2"})) == 2


def test_a_wrong_dimension_of_a_square_matrix_is_found():
    loop = {"read": {"incoming": ["read", "step.bias", "step.weight[0]"], "outgoing": ["write"]}}
    with pytest.raises(IllegalConfiguration, match=r"'step\.weight\[-1\]' is missing"):
        pliant.declare_units(made(Loop), batch(4), loop)


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        ("output of fc2", r"do not permute with the units\. They can be read at: 'output of fc1', .*'output of act'"),
        ("output of softmax", "no such hook fires"),
        ("output of act[0]", "do not permute"),
        ("act", "write 'output of act1'"),
        (3, "write 'output of act1'"),
    ],
)
def test_wrong_taps_are_refused(tap, message):
    with pytest.raises(IllegalConfiguration, match=message):
        pliant.declare_units(made(EarlyExit), batch(), {"fc1": {**EXIT["fc1"], "tap": tap}}, more_inputs=[20 * batch()])


def test_nothing_declared_and_models_that_cannot_be_run():
    with pytest.raises(NoEffect, match="no unit group is declared"):
        pliant.declare_units(made(Router), batch(4), {})
    with pytest.raises(IllegalConfiguration, match="fails on the example inputs"):
        pliant.declare_units(made(Router), batch(5), ROUTER)
    with pytest.raises(IllegalConfiguration, match="compiled"):
        pliant.declare_units(torch.compile(made(Router), backend="eager"), batch(4), ROUTER)


def test_outputs_that_are_not_numbers_and_models_that_refuse():
    class Infinite(TwoTowers):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / 0.0

    class Strict(TwoTowers):
        def forward(self, x: Tensor) -> Tensor:
            assert float(self.a1.bias.sum()) == 0
            return super().forward(x)

    with pytest.raises(IllegalConfiguration, match="not finite"):
        pliant.declare_units(made(Infinite), batch(4), {"a1": "a2"})
    with pytest.raises(IllegalConfiguration, match=r"Strict fails on the example inputs.*AssertionError"):
        pliant.declare_units(made(Strict), batch(4), {"a1": "a2"})


def test_a_check_on_random_parameters_that_does_not_end_is_stopped(monkeypatch):
    class Stubborn(Loop):
        def forward(self, x: Tensor) -> Tensor:
            while not torch.equal(self.write.bias, self.write.bias.round()):  # true of zeros only
                x = x * 0.5
            return super().forward(x)

    model = made(Stubborn)
    nn.init.zeros_(model.write.bias)
    units = pliant.declare_units(made(Loop), batch(4), {"read": {"incoming": ["read", "step"], "outgoing": [
        "step.weight[1]", "write"]}})  # fmt: skip
    monkeypatch.setattr("pliant.units.exact.MOST_OPERATIONS", 3_000)
    with pytest.raises(IllegalConfiguration, match="did not end within 3000 operations on random parameters"):
        units.verify(model, batch(4))


def test_a_loop_without_end_is_stopped(monkeypatch):
    class Endless(Loop):
        def forward(self, x: Tensor) -> Tensor:
            while x.abs().max() > 0:  # ends only for the zeros that it is called with
                x = x * -1.0
            return super().forward(x)

    monkeypatch.setattr("pliant.units.proof._MOST_OPERATIONS", 5_000)
    with pytest.raises(IllegalConfiguration, match="did not end within 5000 operations"):
        pliant.declare_units(made(Endless), torch.zeros(3, 4), {"read": "write"})
