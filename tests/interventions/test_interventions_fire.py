"""Which matrices become isometries, of which size, in which layout; and what is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pliant
from pliant import FIRE, IllegalConfiguration, NoEffect
from pliant.bench.ensemble import stack


def fired(model, x, method=None, **kwargs):
    optimizer = torch.optim.Adam(model.parameters())
    method = FIRE(iterations=60) if method is None else method
    handle = pliant.attach(model, optimizer, method, example_inputs=x, **kwargs)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    handle.task_boundary()
    after = model.state_dict()
    return before, after, {name for name in after if not torch.equal(after[name], before[name])}


def singular(matrix) -> torch.Tensor:
    return torch.linalg.svdvals(matrix.double())


def test_linear_weights_become_the_nearest_isometry_of_the_right_size():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 24), nn.LayerNorm(24), nn.ReLU(), nn.Linear(24, 3)).double()
    before, after, changed = fired(model, torch.randn(2, 6).double())
    assert changed == {"0.weight", "3.weight"}
    for name, scale in (("0.weight", 2.0), ("3.weight", (3 / 24) ** 0.5)):
        left, _, right = torch.linalg.svd(before[name], full_matrices=False)
        assert torch.allclose(after[name], scale * left @ right, atol=1e-10)


@pytest.mark.parametrize(("groups", "kernel"), [(1, 3), (2, 3), (1, 1)])
def test_each_tap_of_a_convolution_is_a_matrix(groups, kernel):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 12, kernel, groups=groups, padding="same"), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 2),
    ).double()  # fmt: skip
    _, after, changed = fired(model, torch.randn(3, 4, 6, 6).double())
    assert changed == {"0.weight", "5.weight"}
    expected = (12 / (4 / groups)) ** 0.5 / kernel**2
    for i in range(kernel):
        for j in range(kernel):
            values = singular(after["0.weight"][:, :, i, j])
            assert torch.allclose(values, torch.full_like(values, expected), rtol=1e-8)


def test_a_transposed_convolution_has_its_inputs_in_front():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 8, 1), nn.ReLU(), nn.ConvTranspose1d(8, 2, 3)).double()
    _, after, _ = fired(model, torch.randn(3, 2, 5).double())
    values = singular(after["2.weight"][:, :, 1])
    assert torch.allclose(values, torch.full_like(values, (2 / 8) ** 0.5 / 3))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens):
        x = self.embed(tokens)
        return self.head(self.attention(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("parts", ["qkv", "qk", "v"])
def test_query_key_and_value_in_one_are_three_matrices(parts):
    torch.manual_seed(0)
    model = Attention()
    method = FIRE(60, where="attention.in_proj_weight", parts=parts)
    before, after, changed = fired(model, torch.randint(7, (2, 5)), method)
    assert changed == {"attention.in_proj_weight"}
    pieces = (item["attention.in_proj_weight"].chunk(3) for item in (before, after))
    for key, old, new in zip("qkv", *pieces, strict=True):
        if key in parts:
            assert torch.allclose(singular(new), torch.ones(8, dtype=torch.float64), atol=1e-5)
        else:
            assert torch.equal(old, new)


def test_embeddings_biases_and_recurrent_layers_are_left_alone():
    torch.manual_seed(0)
    _, _, changed = fired(Attention(), torch.randint(7, (2, 5)))
    assert changed == {"attention.in_proj_weight", "attention.out_proj.weight", "head.weight"}

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.GRU(4, 8, batch_first=True), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.cell(x)[0])

    assert fired(Recurrent(), torch.randn(2, 3, 4))[2] == {"head.weight"}


def test_a_bare_matrix_between_hidden_units_is_changed_and_knows_its_outputs():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w1, self.w2, self.w3 = (nn.Parameter(torch.randn(a, b) / 4) for a, b in ((5, 6), (6, 24), (24, 2)))

        def forward(self, x):
            return torch.relu(torch.relu(x @ self.w1) @ self.w2) @ self.w3

    torch.manual_seed(0)
    _, after, changed = fired(Bare(), torch.randn(3, 5), init="kaiming_uniform")
    assert changed == {"w2"}
    values = singular(after["w2"])
    assert torch.allclose(values, torch.full_like(values, 2.0), rtol=1e-5)  # 6 inputs, 24 outputs


def test_after_ten_iterations_small_singular_values_are_on_their_way():
    """What the authors' setting gives: at most 1.5^10 times the share of the Frobenius norm, never above the scale."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([1.0, 1e-1, 1e-2, 1e-4])))
    _, after, _ = fired(model, torch.randn(2, 4).double(), FIRE())
    values = torch.diag(after["0.weight"])
    assert torch.allclose(values[:2], torch.ones(2, dtype=torch.float64), atol=1e-3)
    assert 0.9 * 1.5**10 * 1e-4 < float(values[3]) <= 1.5**10 * 1e-4


def test_a_matrix_of_zeros_stays_one():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[2].weight.zero_()
    _, after, changed = fired(model, torch.randn(2, 4))
    assert changed == {"0.weight"}
    assert not after["2.weight"].any()


def test_a_stack_is_orthogonalised_member_by_member():
    models = [nn.Sequential(nn.Linear(5, 20), nn.ReLU(), nn.Linear(20, 3)).double() for _ in range(3)]
    units = pliant.find_units(models[0], torch.randn(2, 5).double())
    stacked = stack(models)
    optimizer = torch.optim.SGD(stacked.parameters(), lr=0.1)
    pliant.attach(stacked, optimizer, FIRE(60), units=units, seed=(1, 2, 3)).task_boundary()
    for member, model in enumerate(models):
        for index, scale in ((0, 2.0), (2, (3 / 20) ** 0.5)):
            left, _, right = torch.linalg.svd(model[index].weight.detach(), full_matrices=False)
            assert torch.allclose(stacked[index].weight[member], scale * left @ right, atol=1e-10)


def test_bfloat16_is_computed_in_float32():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)).to(torch.bfloat16)
    _, after, _ = fired(model, torch.randn(2, 16, dtype=torch.bfloat16))
    assert after["0.weight"].dtype == torch.bfloat16
    assert float((singular(after["0.weight"]) - 1).abs().max()) < 0.02


@pytest.mark.parametrize(
    ("method", "error", "message"),
    [
        (FIRE(iterations=-1), IllegalConfiguration, "iterations=-1"),
        (FIRE(every=0), IllegalConfiguration, "every=0"),
        (FIRE(parts="qq"), IllegalConfiguration, "parts='qq'"),
        (FIRE(parts="k2"), IllegalConfiguration, "parts='k2'"),
        (FIRE(where="*.bias"), NoEffect, r"where='\*.bias'"),
        (FIRE(fused="*kv"), NoEffect, r"fused='\*kv': 0.weight, 2.weight"),
        (FIRE(where="0", fused="0"), IllegalConfiguration, "'0.weight' has 8 outputs"),
    ],
)
def test_what_cannot_be_is_refused(method, error, message):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(error, match=message):
        fired(model, torch.randn(2, 4), method)
