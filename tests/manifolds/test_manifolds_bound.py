"""What collapsing can cost at most: more than it costs, by a bounded factor, and unknown where no rule says it."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from nets import Net, doubled, generic, net
from torch import Tensor, nn

import pliant
from pliant import manifolds
from pliant.manifolds.error_rules import RULES, Bounded, Known

ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid, nn.LeakyReLU, nn.ELU)


def noisy(model: nn.Module, size: float, seed: int) -> nn.Module:
    """Every parameter and running statistic moved by a share of its norm."""
    moved, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in (*moved.named_parameters(), *moved.named_buffers()):
            if value.is_floating_point() and not name.endswith("var"):
                step = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                value.add_(step * size * value.norm() / step.norm())
    return moved


def looked(own: Net, size: float, seed: int) -> manifolds.Collapsed:
    wide = manifolds.clone(own.model, 2, own.batch, units=own.units)
    return manifolds.collapse(noisy(wide.model, size, seed), wide.partition, own.batch)


@settings(max_examples=5, deadline=None, derandomize=True, phases=[Phase.generate])  # shrinking takes minutes
@given(
    st.integers(1, 4), st.integers(2, 9), st.sampled_from(ACTIVATIONS), st.sampled_from([1e-6, 1e-3, 0.1]),
    st.integers(0, 99),
)  # fmt: skip
def test_random_perceptrons_never_exceed_it_and_it_is_not_vacuous(depth, width, activation, size, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Linear(4, width), activation()]
        for _ in range(depth - 1):
            layers += [nn.Linear(width, width), activation()]
        model = nn.Sequential(*layers, nn.Linear(width, 2)).double()
        x = torch.randn(5, 4).double()
    found = looked(Net(model, x, pliant.find_units(model, x)), size, seed)
    assert found.bound is not None
    assert 0 < found.change <= found.bound
    assert found.bound <= 50 * 3**depth * found.change + 1e-12


@pytest.mark.parametrize("name", ["conv_bn_flatten", "conv_groupnorm", "resnet_basic", "vit"])
def test_convolutions_norms_residual_sums_and_attention_have_one(name: str):
    own, wide = net(name), doubled(name)
    found = [manifolds.collapse(noisy(wide.model, size, 3), wide.partition, own.batch) for size in (0.0, 1e-6, 1e-3)]
    assert found[0].bound is not None
    assert found[0].bound <= 1e-9
    for item in found[1:]:
        assert item.bound is not None, item.unbounded
        assert 0 < item.change <= item.bound
    assert found[1].bound < 1e-2  # it falls with the distance
    assert found[2].bound > 100 * found[1].bound


@pytest.mark.parametrize("name", ["mlp", "mlp_mixer"])
def test_it_holds_near_redistributed_clones_and_where_weights_act_along_several_dimensions(name: str):
    own, wide = net(name), doubled(name)
    model = copy.deepcopy(wide.model)
    model.load_state_dict(manifolds.redistributed(model, wide.partition, scale=0.8), strict=False)
    for size in (1e-5, 1e-2):
        found = manifolds.collapse(noisy(model, size, 1), wide.partition, own.batch)
        assert found.bound is not None
        assert 0 < found.change <= found.bound


def test_what_reaches_the_outputs_and_its_bound_are_of_second_order():
    own, wide = net("mlp"), doubled("mlp")
    found = [manifolds.collapse(noisy(wide.model, size, 3), wide.partition, own.batch) for size in (2e-5, 1e-5)]
    for pair in ([item.change for item in found], [item.bound for item in found]):
        assert pair[0] / pair[1] == pytest.approx(4, rel=0.1)


def test_the_bound_is_of_these_weights_and_not_of_others():
    # a network of one linear map behind another: what the rules say is what the mathematics says
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Identity(), nn.Linear(4, 1, bias=False)).double()
        x = torch.randn(1, 3).double()
    units = pliant.find_units(model, x)
    blocks = manifolds.partition(units, {"0": [0, 0, 1, 1]})
    on = manifolds.project(model, blocks)
    first, second = model[0].weight.detach(), model[2].weight.detach()
    deviation = (x @ (first - on["0.weight"]).T).norm()  # it reaches the output by what breaks outgoing sums alone
    expected = (second - on["2.weight"]).norm() * deviation
    found = manifolds.collapse(model, blocks, x)
    assert found.bound == pytest.approx(float(expected / model(x).detach().abs().max()), rel=1e-8)
    assert found.change <= found.bound


class Quotient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x).relu() + 1
        return self.out(h) / self.out(h.log()).square().exp()


def test_an_operation_without_a_rule_gives_no_bound_and_its_name():
    model, x = Quotient().double(), torch.randn(4, 3).double()
    wide = manifolds.clone(model, 2, x)
    found = manifolds.collapse(noisy(wide.model, 1e-3, 0), wide.partition, x)
    assert found.bound is None
    assert "'log'" in found.unbounded
    assert found.change > 0


def random_values(*shape: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


a = torch.ops.aten
IMAGE, ROWS, HEADS = (2, 4, 6, 6), (2, 5, 8), (2, 2, 5, 4)
OPERATIONS = {
    "linear": (a.linear.default, ROWS, [(3, 8), (3,)], []),
    "conv2d": (a.conv2d.default, IMAGE, [(6, 2, 3, 3), (6,)], [[2, 2], [1, 1], [1, 1], 2]),
    "layer_norm": (a.layer_norm.default, ROWS, [], [[8]]),
    "rms_norm": (a.rms_norm.default, ROWS, [], [[8]]),
    "group_norm": (a.group_norm.default, IMAGE, [], [2]),
    "softmax": (a.softmax.int, ROWS, [], [-1]),
    "max_pool2d": (a.max_pool2d.default, IMAGE, [], [[3, 3], [2, 2], [1, 1]]),
    "avg_pool2d": (a.avg_pool2d.default, IMAGE, [], [[3, 3], [1, 1], [1, 1]]),
    "adaptive_avg_pool2d": (a.adaptive_avg_pool2d.default, IMAGE, [], [[2, 3]]),
    "mean": (a.mean.dim, ROWS, [], [[1]]),
    "sum": (a.sum.dim_IntList, ROWS, [], [[1, 2]]),
    "pow": (a.pow.Tensor_Scalar, ROWS, [], [3]),
    "gelu": (a.gelu.default, ROWS, [], []),
    "mish": (a.mish.default, ROWS, [], []),
    "hardswish": (a.hardswish.default, ROWS, [], []),
    "silu": (a.silu.default, ROWS, [], []),
    "elu": (a.elu.default, ROWS, [], [1.7, 1.2]),
    "permute": (a.permute.default, ROWS, [], [[1, 0, 2]]),
    "expand": (a.expand.default, (2, 1, 8), [], [[2, 5, 8]]),
    "transpose": (a.transpose.int, ROWS, [], [1, 2]),
    "slice": (a.slice.Tensor, ROWS, [], [1, 1, 4]),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("size", [1e-3, 3.0])
def test_no_rule_is_broken_by_a_random_error(name: str, size: float):
    op, shape, weights, more = OPERATIONS[name]
    for seed in range(4):
        centre, step = random_values(*shape, seed=seed)
        step = step * size / step.flatten(1).norm(dim=1).view(-1, *[1] * (step.ndim - 1))
        pairs = [random_values(*of, seed=seed + 9) for of in weights]
        given = [Known(one, one + 0.1 * two) for one, two in pairs]
        found = RULES[name](name, op, [Bounded(centre, torch.full((2,), size).double()), *given, *more], {})
        torch.testing.assert_close(found.centre, op(centre, *[item.centre for item in given], *more))
        real = op(centre + step, *[item.actual for item in given], *more) - found.centre
        real = real.reshape(len(real), -1)
        norms = real.norm(dim=1) if len(found.error) == len(real) else real.norm().reshape(1)
        assert bool((norms <= found.error * (1 + 1e-12)).all()), (norms, found.error)


def test_products_and_attention_are_not_broken_either():
    for seed in range(4):
        values = [random_values(*HEADS, seed=seed + 10 * k) for k in range(3)]
        size = 0.3
        errors = [step * size / step.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for _, step in values]
        args = [Bounded(centre, torch.full((2,), size).double()) for centre, _ in values]
        for op, name, options in (
            (a.scaled_dot_product_attention.default, "scaled_dot_product_attention", {"is_causal": True}),
            (a.scaled_dot_product_attention.default, "scaled_dot_product_attention", {"scale": 0.9}),
            (a.mul.Tensor, "mul", {}),
            (a.add.Tensor, "add", {"alpha": 2}),
        ):
            some = args if "attention" in name else args[:2]
            found = RULES[name](name, op, list(some), dict(options))
            moved = [centre + step for (centre, _), step in zip(values, errors, strict=True)][: len(some)]
            real = op(*moved, **options) - found.centre
            assert bool((real.flatten(1).norm(dim=1) <= found.error * (1 + 1e-12)).all()), name


def test_generic_parameters_do_not_break_it_in_single_precision():
    own = net("mlp")
    model = own.copy()
    model.load_state_dict(generic(model, seed=5), strict=False)
    wide = manifolds.clone(model.float(), 2, own.batch.float())
    found = manifolds.collapse(noisy(wide.model, 1e-2, 0), wide.partition, own.batch.float())
    assert found.bound is not None
    assert found.change <= found.bound
