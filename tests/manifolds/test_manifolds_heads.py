"""More dimensions inside attention heads, with the scores as they were; or a refusal that says why."""

from __future__ import annotations

import pytest
import torch
import zoo
from nets import Net, generic, net, outputs
from torch import Tensor, nn
from torch.nn import functional as F

import pliant
from pliant import manifolds
from pliant.errors import IllegalConfiguration, NotYetSupported


class Attention(nn.Module):
    """One fused matrix in the layout [3, heads, dims] or [heads, 3, dims]; the width of a head is an attribute."""

    def __init__(self, layout: str = "fused", scale: float | None = None) -> None:
        super().__init__()
        self.embed, self.head_dim, self.layout, self.scale = nn.Linear(5, 6), 3, layout, scale
        self.qkv, self.proj, self.head = nn.Linear(6, 18), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        if self.layout == "fused":
            q, k, v = self.qkv(h).unflatten(-1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = self.qkv(h).unflatten(-1, (-1, 3, self.head_dim)).permute(3, 0, 2, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.head(self.proj(mixed.transpose(1, 2).flatten(2)).tanh().mean(1))


class Rotary(nn.Module):
    """Pairs of dimensions are turned by angles that are a buffer, so that a pair can be repeated with its angle."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(5, 8) for _ in range(3))
        self.out, self.head_dim = nn.Linear(8, 2), 4
        self.register_buffer("angles", torch.outer(torch.arange(6.0), torch.tensor([1.0, 0.1])))

    def turned(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(self.angles), self.angles)).flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        q, k = (layer(x).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.query, self.key))
        v = self.value(x).unflatten(-1, (2, -1)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v)
        return self.out(mixed.transpose(1, 2).flatten(2)).mean(1)


def made(model: nn.Module, *shape: int) -> Net:
    model = model.double()
    model.load_state_dict(generic(model), strict=False)
    batch = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Net(model, batch, pliant.find_units(model, batch))


def dims(own: Net, number: object) -> dict[str, object]:
    return {group.name: number for group in own.units if group.site == "head_dims"}


def same(own: Net, wide: nn.Module) -> None:
    for a, b in zip(outputs(own.model, own.batch), outputs(wide, own.batch), strict=True):
        assert float((a - b).abs().max() / a.abs().max()) <= 1e-12


FACTORS = {
    "fused": (lambda: Attention(), 2**-0.25),  # the model's own factor follows the width of the head
    "by head": (lambda: Attention("by head"), 2**-0.25),
    "a constant factor": (lambda: Attention(scale=0.7), 2**-0.5),
}


@pytest.mark.parametrize("name", FACTORS)
def test_fused_attention_keeps_its_scores(name: str):
    make, factor = FACTORS[name]
    own = made(make(), 4, 6, 5)
    wide = manifolds.clone(own.model, dims(own, 2), own.batch, units=own.units)
    same(own, wide.model)
    assert wide.model.qkv.weight.shape == (36, 6)
    assert wide.model.head_dim == 6
    ratios = (wide.model.qkv.weight.detach().norm(dim=1).view(3, 2, 3, 2) if name != "by head" else
              wide.model.qkv.weight.detach().norm(dim=1).view(2, 3, 3, 2).transpose(0, 1))  # fmt: skip
    base = own.model.qkv.weight.detach().norm(dim=1)
    base = base.view(3, 2, 3) if name != "by head" else base.view(2, 3, 3).transpose(0, 1)
    ratios = ratios / base[..., None]
    torch.testing.assert_close(ratios[:2], torch.full_like(ratios[:2], factor))
    torch.testing.assert_close(ratios[2], torch.ones_like(ratios[2]))
    small = manifolds.collapse(wide.model, wide.partition, own.batch)
    assert small.change <= 1e-12
    for key, value in own.model.state_dict().items():
        torch.testing.assert_close(small.model.state_dict()[key], value, rtol=1e-13, atol=0)


def test_every_dimension_may_have_its_own_number_of_copies_and_the_copies_are_a_trap():
    own = made(Attention(), 4, 6, 5)
    wide = manifolds.clone(own.model, dims(own, [1, 3, 2]), own.batch, units=own.units)
    same(own, wide.model)
    assert manifolds.certificate(wide.model, wide.partition, "block_constant").holds
    found = manifolds.trap_test(
        wide.model, wide.partition, own.batch, zoo.loss_of, optimizer=torch.optim.Adam(wide.model.parameters())
    )
    assert found.stays


@pytest.mark.parametrize("number", [2, [1, 2, 1]])
def test_the_trajectory_of_wider_heads_is_predicted(number: object):
    own = made(Attention(), 4, 6, 5)
    base = own.copy()
    adam = torch.optim.Adam(base.parameters(), lr=1e-2)
    train([(base, adam)], own.batch, 3)
    wide = manifolds.clone(base, dims(own, number), own.batch, units=own.units)
    follower = manifolds.matching_optimizer(adam, base, wide, own.units, towards="clone")
    train([(base, adam), (wide.model, follower)], own.batch, 50)
    same(Net(base, own.batch, own.units), wide.model)


def test_the_state_of_the_optimizer_is_what_wider_heads_would_have_gathered():
    own = made(Attention(), 4, 6, 5)
    model = own.copy()
    adam = torch.optim.Adam(model.parameters(), lr=0.0)  # nothing moves: both gather the same gradients
    train([(model, adam)], own.batch, 3)
    wide = manifolds.clone(model, dims(own, [1, 3, 2]), own.batch, optimizer=adam, units=own.units)
    assert wide.optimizer is not None
    fresh = torch.optim.Adam(wide.model.parameters(), lr=0.0)
    train([(wide.model, fresh)], own.batch, 3)
    for parameter in wide.model.parameters():
        for key in ("exp_avg", "exp_avg_sq"):
            expected = fresh.state[parameter][key]
            torch.testing.assert_close(
                wide.optimizer.state[parameter][key], expected, rtol=1e-9, atol=1e-12 * float(expected.abs().max())
            )


def train(pairs: list[tuple[nn.Module, torch.optim.Optimizer]], batch: Tensor, steps: int) -> None:
    for _ in range(steps):
        for model, optimizer in pairs:
            optimizer.zero_grad()
            zoo.loss_of(model(batch)).backward()
            optimizer.step()


def test_rotary_pairs_whose_angles_are_a_buffer_are_repeated_with_them():
    own = made(Rotary(), 3, 6, 5)
    names = dims(own, 2)
    assert {own.units[name].size for name in names} == {2, 4}  # pairs of queries and keys, values
    wide = manifolds.clone(own.model, names, own.batch, units=own.units)
    same(own, wide.model)
    assert wide.model.angles.shape == (6, 4)
    torch.testing.assert_close(wide.model.angles[:, ::2], own.model.angles)


@pytest.mark.parametrize(
    "name",
    [
        "hf_gpt2",
        "hf_vit",
        *(pytest.param(item, marks=pytest.mark.wide) for item in ("hf_gpt2_eager", "hf_t5", "hf_bert")),
    ],
)
def test_transformers_of_hugging_face(name: str):
    case = zoo.ZOO[name]
    model, batch = case.model().double(), zoo.cast(case.batch(), torch.float64)
    units = pliant.find_units(model, batch)
    own = Net(model, batch, units)
    wide = manifolds.clone(model, dims(own, 2), batch, units=units)
    assert wide.change <= 1e-12
    for group in units:
        assert wide.units[group.name].size == group.size * (2 if group.site == "head_dims" else 1)
    assert manifolds.certificate(wide.model, wide.partition, "block_constant").holds


def refused(own: Net, names: dict[str, object], match: str, error: type[Exception] = NotYetSupported) -> None:
    with pytest.raises(error, match=match):
        manifolds.clone(own.model, names, own.batch, units=own.units)


def test_heads_that_cannot_be_wider_are_refused_with_the_reason():
    refused(net("vit"), dims(net("vit"), 2), "keep their number in an attribute such as head_dim")
    encoder = net("transformer_post_norm")  # nn.MultiheadAttention: embed_dim / num_heads
    refused(encoder, dims(encoder, 2), "dimensions inside heads")
    own = made(Rotary(), 3, 6, 5)
    values = {name: 2 for name in dims(own, 2) if own.units[name].size == 2}
    assert manifolds.clone(own.model, values, own.batch, units=own.units).change <= 1e-12  # they have widths apart
    llama = zoo.ZOO["hf_llama"]
    model, batch = llama.model().double(), zoo.cast(llama.batch(), torch.float64)
    own = Net(model, batch, pliant.find_units(model, batch))
    at = "model.layers.0.self_attn"
    refused(own, {f"{at}.q_proj:head_dims": 2}, "Rotary embeddings turn dimensions", IllegalConfiguration)
    refused(own, {f"{at}.v_proj:head_dims": 2}, "Rotary embeddings turn dimensions")


def test_plain_numbers_leave_heads_as_they_are():
    own = made(Attention(), 4, 6, 5)
    wide = manifolds.clone(own.model, 2, own.batch, units=own.units)
    assert wide.scores == ()
    assert wide.units["qkv:head_dims"].size == 3
    assert wide.partition.block_sizes("qkv:heads") == (2, 2)
