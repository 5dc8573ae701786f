"""Random architectures, random numbers of copies, random losses: everything that is said of clones, at once."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable

import pytest
import torch
import zoo
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from nets import Net, generic, outputs, tanh_net
from torch import Tensor, nn

import pliant
from pliant import manifolds
from pliant.errors import IllegalConfiguration
from pliant.manifolds import Clone
from pliant.spectrum.products import hessian_operator

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "leaky": lambda: nn.LeakyReLU(0.3), "prelu": nn.PReLU,
}  # fmt: skip


class Around(nn.Module):
    """Something, and a way round it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def norm_of(kind: str, width: int, image: bool) -> list[nn.Module]:
    if kind == "batch":
        return [nn.BatchNorm2d(width) if image else nn.BatchNorm1d(width)]
    if kind == "across":
        return [nn.GroupNorm(1, width) if image else nn.LayerNorm(width)]
    return []


@st.composite
def architectures(draw: st.DrawFn) -> tuple[nn.Module, Tensor, str]:
    """Dense or convolutional, one to three hidden layers, with or without norm, residual sum and pooling."""
    image, kind = draw(st.booleans()), draw(st.sampled_from(["none", "batch", "across"]))
    activation = ACTIVATIONS[draw(st.sampled_from(sorted(ACTIVATIONS)))]
    widths = draw(st.lists(st.integers(2, 4), min_size=1, max_size=3))
    residual, pooled, seed = draw(st.booleans()), draw(st.booleans()), draw(st.integers(0, 99))

    def layer(before: int, width: int) -> nn.Module:
        return nn.Conv2d(before, width, 3, padding=1) if image else nn.Linear(before, width)

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers, before = [], 2 if image else 5
        for width in widths:
            layers += [layer(before, width), *norm_of(kind, width, image), activation()]
            before = width
        if residual:
            inner = [layer(before, 3), *norm_of(kind, 3, image), activation(), layer(3, before)]
            layers += [Around(nn.Sequential(*inner)), *norm_of(kind, before, image)]
        if image:
            layers += [*([nn.AvgPool2d(2)] if pooled else []), nn.Flatten()]
            before *= 4 if pooled else 16
        model = nn.Sequential(*layers, nn.Linear(before, 3)).double()
        model.load_state_dict(generic(model, seed=seed), strict=False)
        x = torch.randn(6, *((2, 4, 4) if image else (5,)), dtype=torch.float64)
    return model, x, kind


def cloned(own: Net, kind: str, draw: st.DataObject) -> Clone:
    """As many copies of each unit as are drawn; under a norm across units, as many of all."""
    if kind == "across":
        return manifolds.clone(own.model, draw.draw(st.integers(2, 4)), own.batch, units=own.units)
    counts = {g.name: draw.draw(st.lists(st.integers(1, 3), min_size=g.size, max_size=g.size)) for g in own.units}
    first = next(iter(counts.values()))
    first[0] = 2  # one copy at least
    return manifolds.clone(own.model, counts, own.batch, units=own.units)


@settings(max_examples=5, deadline=None, derandomize=True, phases=[Phase.generate])
@given(architectures(), st.data())
def test_a_random_clone_of_a_random_network_is_all_that_is_said_of_clones(
    drawn: tuple[nn.Module, Tensor, str], data: st.DataObject
):
    model, x, kind = drawn
    own = Net(model, x, pliant.find_units(model, x))
    wide = cloned(own, kind, data)
    for mine, theirs in zip(outputs(model, x), outputs(wide.model, x), strict=True):
        assert float((mine - theirs).abs().max() / mine.abs().max()) <= 1e-12
    back = manifolds.collapse(wide.model, wide.partition, x).model.state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(back[name], value, rtol=1e-13, atol=1e-15)
    leaf = copy.deepcopy(wide.model)
    with contextlib.suppress(IllegalConfiguration):  # with one hidden layer there is no other leaf
        leaf.load_state_dict(manifolds.redistributed(leaf, wide.partition), strict=False)
    assert manifolds.certificate(leaf, wide.partition).holds
    target = torch.randn(6, 3, dtype=torch.float64)
    found = manifolds.trap_test(
        leaf,
        wide.partition,
        x,
        lambda output: (output - target).square().sum(),
        optimizer=torch.optim.SGD(leaf.parameters(), lr=0.1, momentum=0.9),
    )
    assert found.stays
    assert found.gradient.share <= 1e-12
    assert max(max(spread.forward, spread.backward or 0.0) for spread in found.spread.values()) <= 1e-12
    # wrong code: one entry of one tensor is off by a millionth
    tensors = sorted(manifolds.normal_part(leaf, wide.partition))
    chosen = data.draw(st.sampled_from(tensors))
    with torch.no_grad():
        dict((*leaf.named_parameters(), *leaf.named_buffers()))[chosen].view(-1)[0] += 1e-6
    broken = {failure.tensor for failure in manifolds.certificate(leaf, wide.partition).failures}
    is_off = float(manifolds.normal_part(leaf, wide.partition)[chosen].norm()) > 1e-8
    assert broken == ({chosen} if is_off else set())  # a unit without copies may be anything


def share(model: nn.Module, wide: Clone) -> float:
    """The normal share of what is in the gradients now."""
    state = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    off = manifolds.normal_part(model, wide.partition, state=state)
    whole = sum(float(value.square().sum()) for value in state.values())
    return (sum(float(value.square().sum()) for value in off.values()) / whole) ** 0.5


def test_noise_and_dropout_point_away_where_the_gradient_does_not():
    own = tanh_net()
    layers = list(own.copy())
    model = nn.Sequential(*layers[:2], nn.Dropout(0.0), *layers[2:])
    wide = manifolds.clone(model, 3, own.batch)
    for rate, sigma in ((0.0, 0.0), (0.3, 0.0), (0.0, 0.1)):
        wide.model.zero_grad()
        wide.model[2].p = rate
        zoo.loss_of(wide.model.train()(own.batch)).backward()
        if sigma:
            manifolds.NoiseBurst(sigma)(wide.model, 0)
        assert (share(wide.model, wide) > 1e-3) == bool(rate or sigma)
        assert share(wide.model, wide) <= 1e-12 or rate or sigma


@pytest.mark.parametrize("spread", [False, True])
def test_the_curvature_of_the_published_example_is_that_of_its_dense_hessian(spread: bool):
    """254 parameters, 118 along the manifold and 136 across; by symmetry the two do not mix at plain copies."""
    own = tanh_net()
    wide = manifolds.clone(own.model, 3, own.batch, units=own.units)
    if spread:
        wide.model.load_state_dict(manifolds.redistributed(wide.model, wide.partition), strict=False)
    batch = (own.batch, torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    found = manifolds.stability(wide.model, wide.partition, batch, "mse", steps=1000)
    hessian = hessian_operator(wide.model, batch, "mse").dense()
    named = dict(wide.model.named_parameters())
    rows = []
    for row in torch.eye(254, dtype=torch.float64):
        parts = dict(zip(named, row.split([p.numel() for p in named.values()]), strict=True))
        state = {name: part.view_as(named[name]) for name, part in parts.items()}
        off = manifolds.normal_part(wide.model, wide.partition, state=state)
        rows.append(torch.cat([off.get(name, torch.zeros_like(part)).flatten() for name, part in state.items()]))
    normal = torch.stack(rows)
    values = torch.linalg.eigvalsh(normal @ hessian @ normal)
    assert found.num_normal == 136
    assert found.smallest == pytest.approx(float(values[0]), rel=1e-8)
    assert found.largest == pytest.approx(float(values[-1]), rel=1e-8)
    mixed = float(((torch.eye(254) - normal) @ hessian @ normal).norm() / hessian.norm())
    assert (mixed <= 1e-12) == (found.cross <= 1e-12)
    assert mixed <= 1e-12 or spread
