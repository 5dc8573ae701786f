"""Orthogonal projections: their algebra, and the same by brute force from the written conditions."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import generic, net, tanh_net
from torch import Tensor

from pliant import manifolds
from pliant.manifolds import Partition
from pliant.manifolds.projection import KINDS


def blocks_of(name: str, seed: int, most: int = 3) -> Partition:
    generator = torch.Generator().manual_seed(seed)
    units = net(name).units
    return manifolds.partition(
        units,
        {g.name: torch.randint(0, max(2, min(most, g.size)), (g.size,), generator=generator).tolist() for g in units},
    )


def flat(state: dict[str, Tensor], names: list[str]) -> Tensor:
    return torch.cat([state[name].flatten() for name in names])


@settings(max_examples=4, deadline=None, derandomize=True)
@given(st.sampled_from(["mlp", "conv_grouped", "resnet_basic", "vit", "tied_language_model"]), st.integers(0, 99))
def test_projections_are_orthogonal_and_nested(name: str, seed: int):
    own, blocks = net(name), blocks_of(name, seed)
    names = [key for key, _ in own.model.named_parameters()]
    one, two = (generic(own.model, seed=s) for s in (seed + 1, seed + 2))

    def p(state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
        return manifolds.project(own.model, blocks, kind, state=state)

    for kind in KINDS:
        on = p(one, kind)
        assert torch.allclose(flat(p(on, kind), names), flat(on, names), atol=1e-13)
        assert float(flat(on, names) @ flat(two, names)) == pytest.approx(
            float(flat(one, names) @ flat(p(two, kind), names)), abs=1e-11
        )
        off = manifolds.distance(own.model, blocks, kind, state=one).total
        whole = float(flat(one, names).square().sum())
        assert float(flat(on, names).square().sum()) + off**2 == pytest.approx(whole, rel=1e-12)
    constant = flat(p(one, "block_constant"), names)
    for kind in ("incoming", "outgoing", "both"):
        assert torch.allclose(flat(p(p(one, kind), "block_constant"), names), constant, atol=1e-13)
    both = flat(p(one, "both"), names)
    assert torch.allclose(flat(p(p(one, "incoming"), "outgoing"), names), both, atol=1e-13)
    assert torch.allclose(flat(p(p(one, "outgoing"), "incoming"), names), both, atol=1e-13)


def constraints(labels: dict[str, tuple[int, ...]]) -> list[dict[tuple[str, int, int], float]]:
    """The conditions on an 8-6 multi-layer perceptron, written down one by one."""
    first, second = labels["0"], labels["2"]
    inputs, outputs = tuple(range(5)), tuple(range(3))
    rows = []

    def sums(name: str, made: tuple[int, ...], read: tuple[int, ...], *, incoming: bool) -> None:
        own, other = (made, read) if incoming else (read, made)
        for a, b in itertools.combinations(range(len(own)), 2):
            if own[a] == own[b]:
                for block in set(other):
                    row: dict[tuple[str, int, int], float] = {}
                    for u in (u for u, label in enumerate(other) if label == block):
                        row[(name, a, u) if incoming else (name, u, a)] = 1.0
                        row[(name, b, u) if incoming else (name, u, b)] = -1.0
                    rows.append(row)

    for incoming in (True, False):
        sums("0.weight", first, inputs, incoming=incoming)
        sums("2.weight", second, first, incoming=incoming)
        sums("4.weight", outputs, second, incoming=incoming)
    for name, own in (("0.bias", first), ("2.bias", second)):
        for a, b in itertools.combinations(range(len(own)), 2):
            if own[a] == own[b]:
                rows.append({(name, 0, a): 1.0, (name, 0, b): -1.0})
    return rows


@pytest.mark.parametrize("seed", [0, 1])
def test_the_projection_is_the_nullspace_of_the_written_conditions(seed: int):
    own, blocks = net("mlp"), blocks_of("mlp", seed, 4)
    state = {name: value.detach() for name, value in own.model.named_parameters()}
    place, count = {}, 0
    for name, value in state.items():
        matrix = value.view(1, -1) if value.ndim == 1 else value
        for i, j in itertools.product(*map(range, matrix.shape)):
            place[name, i, j] = count
            count += 1
    rows = constraints({name: blocks.of(name) for name in ("0", "2")})
    a = torch.zeros(len(rows), count, dtype=torch.float64)
    for r, row in enumerate(rows):
        for key, value in row.items():
            a[r, place[key]] = value
    w = flat(state, list(state))
    expected = w - torch.linalg.pinv(a) @ (a @ w)
    found = flat(manifolds.project(own.model, blocks, "both"), list(state))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    rank = int(torch.linalg.matrix_rank(a))
    assert manifolds.dimension(own.model, blocks, "both") == count - rank
    assert manifolds.distance(own.model, blocks).total == pytest.approx(float((w - expected).norm()), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "tensor"), [("mlp", "2.weight"), ("conv_grouped", "2.weight"), ("vit", "block.attn.qkv.weight")]
)
def test_the_dimension_is_the_trace_of_the_projection(name: str, tensor: str):
    from pliant.manifolds.structure import block_structure

    own = net(name)
    block = block_structure(own.model, blocks_of(name, 3))[tensor]
    size = torch.Size(block.shape).numel()
    basis = torch.eye(size, dtype=torch.float64).view(size, *block.shape)
    for kind in KINDS:
        trace = sum(float((e - block.off(e, kind)).flatten()[i]) for i, e in enumerate(basis))
        assert block.dimension(kind) == round(trace)
        assert trace == pytest.approx(round(trace), abs=1e-9)


def test_the_dimensions_of_the_published_example():
    own = tanh_net()
    wide = manifolds.clone(own.model, 3, own.batch, units=own.units)  # 5-12-12-2 in threes
    assert sum(p.numel() for p in wide.model.parameters()) == 254
    assert manifolds.dimension(wide.model, wide.partition, "both") == 118
    assert manifolds.dimension(wide.model, wide.partition, "block_constant") == 54  # the base's own


def test_which_units_of_a_block_are_where_does_not_matter():
    own = net("mlp")
    blocks = manifolds.partition(own.units, {"0": [0, 0, 0, 1, 1, 2, 2, 3]})
    order = torch.tensor([2, 0, 1, 4, 3, 5, 6, 7])  # within blocks
    moved = {k: v.detach().clone() for k, v in own.model.named_parameters()}
    moved["0.weight"], moved["0.bias"] = moved["0.weight"][order], moved["0.bias"][order]
    moved["2.weight"] = moved["2.weight"][:, order]
    for kind in KINDS:
        a = manifolds.distance(own.model, blocks, kind).total
        assert manifolds.distance(own.model, blocks, kind, state=moved).total == pytest.approx(a, rel=1e-13)
