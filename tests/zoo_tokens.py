"""The zoo: mixers and transformers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo_base import Group, case, images, sequence


# ---- tokens ----
class MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.token1, self.token2 = nn.Linear(tokens, 5), nn.Linear(5, tokens)
        self.channel1, self.channel2 = nn.Linear(width, 7), nn.Linear(7, width)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token2(self.act(self.token1(self.norm1(x).transpose(1, 2)))).transpose(1, 2)
        return x + self.channel2(self.act(self.channel1(self.norm2(x))))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.block, self.norm = nn.Conv2d(3, 6, 2, 2), MixerBlock(4, 6), nn.LayerNorm(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.block(self.patch(x).flatten(2).transpose(1, 2))).mean(1))


@case(
    "mlp_mixer",
    images(3, 4),
    {
        "patch:residual": Group(
            6,
            "patch.weight[-4] patch.bias[-1] block.norm1.weight[-1] block.norm1.bias[-1] block.norm2.weight[-1]"
            " block.norm2.bias[-1] block.channel1.weight[-1] block.channel2.weight[-2] block.channel2.bias[-1]"
            " norm.weight[-1] norm.bias[-1] head.weight[-1]",
            site="residual",
            preserves=False,
            tap="any",
        ),
        "block.token1": Group(5, "block.token1.weight[-2] block.token1.bias[-1] block.token2.weight[-1]"),
        "block.channel1": Group(7, "block.channel1.weight[-2] block.channel1.bias[-1] block.channel2.weight[-1]"),
    },
    excluded={"block.token1.weight[-1]": "order"},
)
def mlp_mixer() -> nn.Module:
    return Mixer()


def _encoder_layer(at: str, width: int, heads: int, hidden: int) -> dict[str, Group]:
    attn = f"{at}.self_attn"
    return {
        f"{attn}:heads": Group(
            heads,
            f"{attn}.in_proj_weight[-2] {attn}.in_proj_bias[-1] {attn}.out_proj.weight[-1]",
            site="heads",
            tap="any",
        ),
        # queries, keys and values are one fused matrix [3, heads, dims]: their dimensions move together
        f"{attn}:head_dims": Group(
            width // heads,
            f"{attn}.in_proj_weight[-2] {attn}.in_proj_bias[-1] {attn}.out_proj.weight[-1]",
            site="head_dims",
            preserves=False,
            tap="any",
        ),
        f"{at}.linear1": Group(
            hidden, f"{at}.linear1.weight[-2] {at}.linear1.bias[-1] {at}.linear2.weight[-1]", tap="any"
        ),
    }


def _encoder_stream(at: str) -> str:
    return (
        f"{at}.self_attn.in_proj_weight[-1] {at}.self_attn.out_proj.weight[-2] {at}.self_attn.out_proj.bias[-1]"
        f" {at}.linear1.weight[-1] {at}.linear2.weight[-2] {at}.linear2.bias[-1]"
        f" {at}.norm1.weight[-1] {at}.norm1.bias[-1] {at}.norm2.weight[-1] {at}.norm2.bias[-1]"
    )


class Encoder(nn.Module):
    """``nn.TransformerEncoder`` between an embedding and a head."""

    def __init__(self, *, norm_first: bool, activation: str) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            8, 2, 10, dropout=0.1, activation=activation, batch_first=True, norm_first=norm_first
        )
        self.embed = nn.Linear(5, 8)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


_ENCODER = {
    "embed:residual": Group(
        8,
        "embed.weight[-2] embed.bias[-1] head.weight[-1] "
        + " ".join(_encoder_stream(f"encoder.layers.{i}") for i in range(2)),
        site="residual",
        preserves=False,
        tap="any",
    ),
    **_encoder_layer("encoder.layers.0", 8, 2, 10),
    **_encoder_layer("encoder.layers.1", 8, 2, 10),
}


@case("transformer_post_norm", sequence(3, 5), _ENCODER)
def transformer_post_norm() -> nn.Module:
    return Encoder(norm_first=False, activation="relu")


@case("transformer_norm_first", sequence(3, 5), _ENCODER)
def transformer_norm_first() -> nn.Module:
    return Encoder(norm_first=True, activation="gelu")


class Attention(nn.Module):
    """Fused qkv in the layout [3, heads, dims], as timm writes it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, steps, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(batch, steps, width))


class ViTBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 2, 2)
        self.position = nn.Parameter(torch.randn(1, 4, 8) * 0.02)
        self.block, self.norm, self.head = ViTBlock(8, 2, 9), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.block(x))[:, 0])


@case(
    "vit",
    images(3, 4),
    {
        "patch:residual": Group(
            8,
            "patch.weight[-4] patch.bias[-1] position[-1] block.norm1.weight[-1] block.norm1.bias[-1]"
            " block.attn.qkv.weight[-1] block.attn.proj.weight[-2] block.attn.proj.bias[-1] block.norm2.weight[-1]"
            " block.norm2.bias[-1] block.fc1.weight[-1] block.fc2.weight[-2] block.fc2.bias[-1] norm.weight[-1]"
            " norm.bias[-1] head.weight[-1]",
            site="residual",
            preserves=False,
            tap="any",
        ),
        "block.attn.qkv:heads": Group(
            2, "block.attn.qkv.weight[-2] block.attn.qkv.bias[-1] block.attn.proj.weight[-1]", site="heads", tap="any"
        ),
        "block.attn.qkv:head_dims": Group(
            4,
            "block.attn.qkv.weight[-2] block.attn.qkv.bias[-1] block.attn.proj.weight[-1]",
            site="head_dims",
            preserves=False,
            tap="any",
        ),
        "block.fc1": Group(9, "block.fc1.weight[-2] block.fc1.bias[-1] block.fc2.weight[-1]"),
    },
    init={"position": "torch_default"},
)
def vit() -> nn.Module:
    return ViT()
