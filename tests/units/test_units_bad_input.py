"""What cannot work is refused before anything is touched, and the message says what to do."""

from __future__ import annotations

import pytest
import torch
import zoo
from torch import nn

import pliant
from pliant import IllegalConfiguration, NoEffect, UnsupportedOp


def mlp() -> nn.Module:
    return zoo.ZOO["mlp"].model()


def test_a_model_wrapped_in_ddp_is_refused_before_export(single_process_group):
    wrapped = nn.parallel.DistributedDataParallel(mlp())
    with pytest.raises(IllegalConfiguration, match="find the units of the plain model first"):
        pliant.find_units(wrapped, torch.randn(3, 5))
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    with pytest.raises(IllegalConfiguration, match="units="):
        pliant.attach(wrapped, optimizer, pliant.ContinualBackprop(), example_inputs=torch.randn(3, 5))
    wrapped(torch.randn(3, 5)).sum().backward()  # still works


@pytest.mark.parametrize("how", ["torch.compile", "model.compile", "submodule"])
def test_a_compiled_model_is_refused(how):
    model = mlp()
    if how == "torch.compile":
        compiled = torch.compile(model, backend="eager")
    elif how == "model.compile":
        model.compile(backend="eager")
        compiled = model
    else:
        model[0].compile(backend="eager")
        compiled = model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(IllegalConfiguration, match="compiled"):
        pliant.find_units(compiled, torch.randn(3, 5))
    with pytest.raises(IllegalConfiguration, match=r"torch\.compile afterwards"):
        pliant.attach(compiled, optimizer, pliant.ReDo(), units=pliant.find_units(mlp(), torch.randn(3, 5)))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = torch.relu(self.fc1(x))
        return self.fc2(h) if h.sum() > 1 else self.fc2(2 * h)


def test_data_dependent_control_flow_says_so():
    model = Branching()
    flags = [module.training for module in model.modules()]
    with pytest.raises(UnsupportedOp, match=r"cannot follow Branching.*torch\.where"):
        pliant.find_units(model, torch.randn(3, 5))
    assert [module.training for module in model.modules()] == flags
    model(torch.randn(3, 5))


def test_inputs_of_the_wrong_shape_name_the_shape():
    with pytest.raises(IllegalConfiguration, match=r"\(3, 4\).*example_inputs"):
        pliant.find_units(mlp(), torch.randn(3, 4))


def test_one_example_with_batch_norm_says_two_are_needed():
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(IllegalConfiguration, match="at least two examples"):
        pliant.find_units(model, torch.randn(1, 5))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    "model", [nn.Linear(5, 3), nn.Sequential(nn.Flatten(), nn.Linear(5, 3), nn.Softmax(-1)), nn.ReLU()]
)
def test_a_model_without_hidden_units_is_an_error_with_reasons(model):
    with pytest.raises(NoEffect, match="no hidden units"):
        pliant.find_units(model, torch.randn(3, 5))


def test_an_unused_layer_is_excluded_with_a_reason():
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.head, self.unused = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(8, 7)

        def forward(self, x):
            return self.head(torch.relu(self.used(x)))

    units = pliant.find_units(Unused(), torch.randn(3, 5))
    assert [group.name for group in units] == ["used"]
    assert "not used" in units.excluded["unused.weight", -2]


def test_an_operation_without_a_rule_excludes_its_units_and_is_named():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2, self.fc3 = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.fc3(torch.relu(self.fc2(torch.special.i0(self.fc1(x)))))

    units = pliant.find_units(Odd(), torch.randn(3, 5))
    assert [group.name for group in units] == ["fc2"]
    assert "special_i0" in "".join(units.unknown_ops)
    assert "has no rule" in units.excluded["fc1.weight", -2]


def test_an_operation_that_orders_units_freezes_them():
    class Sorting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2, self.fc3 = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.fc3(torch.relu(self.fc2(self.fc1(x).cumsum(-1))))

    units = pliant.find_units(Sorting(), torch.randn(3, 5))
    assert [group.name for group in units] == ["fc2"]
    assert "order matters" in units.excluded["fc1.weight", -2]


def test_a_model_in_eval_mode_is_read_in_training_mode_and_left_in_eval():
    model = zoo.ZOO["conv_bn_flatten"].model().eval()
    units = pliant.find_units(model, zoo.ZOO["conv_bn_flatten"].batch())
    assert "1.running_mean" in units["0"].tensors
    assert not any(module.training for module in model.modules())


def test_keyword_inputs():
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x, *, scale):
            return self.fc2(torch.relu(self.fc1(x)) * scale)

    model, inputs = Keywords(), {"x": torch.randn(3, 5), "scale": torch.rand(3, 1)}
    units = pliant.find_units(model, inputs)
    assert [group.name for group in units] == ["fc1"]
    assert units.verify(model, inputs).ok


def test_distributions_with_validation_do_not_stop_discovery():
    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x):
            return torch.distributions.Categorical(logits=self.fc2(torch.tanh(self.fc1(x)))).probs

    before = torch.distributions.Distribution._validate_args  # the compiler, once loaded, turns it off itself
    try:
        torch.distributions.Distribution.set_default_validate_args(True)
        assert [group.name for group in pliant.find_units(Policy(), torch.randn(3, 5))] == ["fc1"]
        assert torch.distributions.Distribution._validate_args
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


class Pieces(nn.Module):
    """Gate and value are two pieces of one matrix, or one product with two matrices joined."""

    def __init__(self, join: bool) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(16, 5)), nn.Parameter(torch.randn(8, 5))
        self.fc1, self.fc2, self.join = nn.Linear(8, 6), nn.Linear(6, 2), join

    def forward(self, x):
        if self.join:
            gate, value = nn.functional.linear(x, torch.cat([self.w[:8], self.v])).chunk(2, -1)
        else:
            gate, value = nn.functional.linear(x, self.w[:8]), nn.functional.linear(x, self.w[8:])
        return self.fc2(torch.relu(self.fc1(gate.sigmoid() * value)))


def test_pieces_of_a_parameter_are_followed():
    model, x = Pieces(join=False), torch.randn(3, 5)
    units = pliant.find_units(model, x)
    assert [(group.name, group.size) for group in units] == [("w", 8), ("fc1", 6)]
    assert units["w"].slices[0].table == tuple((u, u + 8) for u in range(8))
    assert units.verify(model, x).ok


def test_a_parameter_that_is_used_in_a_way_without_a_rule_is_not_called_unused():
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.fc1, self.fc2 = nn.Parameter(torch.randn(8, 5)), nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.fc2(torch.relu(self.fc1(nn.functional.linear(x, self.w.softmax(0)))))

    units = pliant.find_units(Normalised(), torch.randn(3, 5))
    assert [group.name for group in units] == ["fc1"]
    assert units.excluded["w", -2] == "no rule says how it is used"
