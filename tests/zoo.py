"""The zoo: one small network per architecture, with the unit groups that must be found in it.

The expected groups are written by hand, from what the architecture is, and never generated from what discovery
says: a rule that excludes everything, or one that ties too much together, has to fail here.

``members`` are written as ``"name[dim]"``, separated by blanks, dimensions counted from the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Group:
    """What one group must look like."""

    size: int
    members: str
    site: str = "hidden"
    preserves: bool = True
    tap: str = "hook"  # "hook", "replay" or "none"


@dataclass(frozen=True)
class Case:
    """A network with example inputs and the groups expected of it."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    groups: Mapping[str, Group]
    excluded: Mapping[str, str] = field(default_factory=dict)  # "name[dim]" to a word of the reason
    init: Any = None  # for parameters that are not of a PyTorch layer

    def model(self, seed: int = 0) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.build()

    def batch(self, size: int = 4, seed: int = 0) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(1000 + seed)
            return self.inputs(size)


ZOO: dict[str, Case] = {}


def _case(name: str, inputs: Callable[[int], Any], groups: Mapping[str, Group], **more: Any) -> Any:
    def register(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        ZOO[name] = Case(build, inputs, groups, **more)
        return build

    return register


def _features(size: int) -> Callable[[int], Tensor]:
    return lambda batch: torch.randn(batch, size)


def _images(channels: int, side: int) -> Callable[[int], Tensor]:
    return lambda batch: torch.randn(batch, channels, side, side)


def _sequence(steps: int, size: int) -> Callable[[int], Tensor]:
    return lambda batch: torch.randn(batch, steps, size)


def _tokens(steps: int, vocabulary: int) -> Callable[[int], Tensor]:
    return lambda batch: torch.randint(0, vocabulary, (batch, steps))


# ---- multi-layer perceptrons ----
_MLP = {
    "0": Group(8, "0.weight[-2] 0.bias[-1] 2.weight[-1]"),
    "2": Group(6, "2.weight[-2] 2.bias[-1] 4.weight[-1]"),
}


@_case("mlp", _features(5), _MLP, excluded={"0.weight[-1]": "input", "4.weight[-2]": "output", "4.bias[-1]": "output"})
def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(5, 8), nn.Linear(8, 6, bias=False), nn.Linear(6, 3)
        self.rate = 0.5

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.fc1(x)), self.rate, self.training)
        return self.fc3(F.gelu(self.fc2(x)))


@_case(
    "mlp_functional",
    _features(5),
    {
        "fc1": Group(8, "fc1.weight[-2] fc1.bias[-1] fc2.weight[-1]", tap="replay"),
        "fc2": Group(6, "fc2.weight[-2] fc3.weight[-1]"),
    },
)
def mlp_functional() -> nn.Module:
    return Functional()


class Reused(nn.Module):
    """One square layer twice: its rows and its columns are the same units."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.last(torch.relu(self.again(torch.relu(self.again(x)))))


@_case(
    "mlp_reused",
    _features(5),
    {
        "first": Group(
            8, "first.weight[-2] first.bias[-1] again.weight[-2] again.weight[-1] again.bias[-1] last.weight[-1]"
        )
    },
)
def mlp_reused() -> nn.Module:
    return Reused()


class RawParameters(nn.Module):
    """No layers at all: parameters and matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(5, 8) * 0.5), nn.Parameter(torch.zeros(8))
        self.w2, self.b2 = nn.Parameter(torch.randn(8, 6) * 0.4), nn.Parameter(torch.zeros(6))
        self.w3 = nn.Parameter(torch.randn(3, 6) * 0.4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(torch.addmm(self.b1, x, self.w1))
        x = torch.relu(x @ self.w2 + self.b2)
        return x @ self.w3.t()


@_case(
    "mlp_raw",
    _features(5),
    {
        "w1": Group(8, "w1[-1] b1[-1] w2[-2]", tap="replay"),
        "w2": Group(6, "w2[-1] b2[-1] w3[-1]", tap="replay"),
    },
    init="kaiming_uniform",
)
def mlp_raw() -> nn.Module:
    return RawParameters()


# ---- tied weights ----
class TiedLanguageModel(nn.Module):
    """Embedding and head share one matrix; the hidden layer between them is an ordinary one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc1, self.fc2 = nn.Embedding(11, 6), nn.Linear(6, 8), nn.Linear(8, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head(x + self.fc2(torch.relu(self.fc1(x))))


@_case(
    "tied_language_model",
    _tokens(4, 11),
    {
        "embed:residual": Group(
            6,
            "embed.weight[-1] fc1.weight[-1] fc2.weight[-2] fc2.bias[-1]",
            site="residual",
            preserves=False,
            tap="any",
        ),
        "fc1": Group(8, "fc1.weight[-2] fc1.bias[-1] fc2.weight[-1]"),
    },
    excluded={"embed.weight[-2]": "data"},
)
def tied_language_model() -> nn.Module:
    return TiedLanguageModel()


class TiedAutoencoder(nn.Module):
    """Decoder weights are the encoder's, transposed: a row produces its unit and consumes it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(5, 8)
        self.decoder_bias = nn.Parameter(torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(self.encoder(x)), self.encoder.weight.t(), self.decoder_bias)


@_case(
    "tied_autoencoder",
    _features(5),
    {"encoder": Group(8, "encoder.weight[-2] encoder.bias[-1]", preserves=False, tap="any")},
    init={"decoder_bias": "torch_default"},
)
def tied_autoencoder() -> nn.Module:
    return TiedAutoencoder()


# ---- convolutions ----
@_case(
    "conv_bn_flatten",
    _images(3, 4),
    {
        "0": Group(
            6, "0.weight[-4] 0.bias[-1] 1.weight[-1] 1.bias[-1] 1.running_mean[-1] 1.running_var[-1] 3.weight[-3]"
        ),
        "3": Group(
            4, "3.weight[-4] 4.weight[-1] 4.bias[-1] 4.running_mean[-1] 4.running_var[-1] 8.weight[-1]", tap="any"
        ),
        "8": Group(7, "8.weight[-2] 8.bias[-1] 10.weight[-1]"),
    },
    excluded={"0.weight[-1]": "kernel", "0.weight[-3]": "input"},
)
def conv_bn_flatten() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 7), nn.ReLU(), nn.Linear(7, 3),
    )  # fmt: skip


@_case(
    "conv_groupnorm",
    _images(3, 4),
    {
        # a norm over all channels: one set of units; over two halves: units may move within their half only
        "0": Group(6, "0.weight[-4] 0.bias[-1] 1.weight[-1] 1.bias[-1] 3.weight[-3]", preserves=False),
        "3": Group(4, "3.weight[-4] 3.bias[-1] 4.weight[-1] 4.bias[-1] 8.weight[-1]", preserves=False, tap="any"),
        "3#2": Group(4, "3.weight[-4] 3.bias[-1] 4.weight[-1] 4.bias[-1] 8.weight[-1]", preserves=False, tap="any"),
    },
)
def conv_groupnorm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.GroupNorm(1, 6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


@_case(
    "conv_depthwise",
    _images(3, 4),
    {
        "0": Group(6, "0.weight[-4] 0.bias[-1] 2.weight[-4] 2.bias[-1] 3.weight[-3]", tap="any"),
        "3": Group(5, "3.weight[-4] 3.bias[-1] 6.weight[-1]", tap="any"),
    },
)
def conv_depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 5, 1), nn.ReLU(),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(5, 3),
    )  # fmt: skip


@_case(
    "conv_grouped",
    _images(3, 4),
    {
        # two groups of three inputs and four outputs: the groups themselves, and the channels inside a group
        "0": Group(2, "0.weight[-4] 0.bias[-1] 2.weight[-4] 2.bias[-1] 4.weight[-3]", tap="any"),
        "0#2": Group(3, "0.weight[-4] 0.bias[-1] 2.weight[-3]"),
        "2": Group(4, "2.weight[-4] 2.bias[-1] 4.weight[-3]"),
        "4": Group(5, "4.weight[-4] 4.bias[-1] 8.weight[-1]", tap="any"),
    },
)
def conv_grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(8, 5, 1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    )  # fmt: skip


# ---- residual networks ----
def _bn(name: str) -> str:
    return f"{name}.weight[-1] {name}.bias[-1] {name}.running_mean[-1] {name}.running_var[-1]"


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != width:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4)
        self.layer1, self.layer2 = BasicBlock(4, 4), BasicBlock(4, 6, 2)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(F.relu(self.bn(self.stem(x)))))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


@_case(
    "resnet_basic",
    _images(3, 6),
    {
        "stem:residual": Group(
            4,
            f"stem.weight[-4] {_bn('bn')} layer1.conv1.weight[-3] layer1.conv2.weight[-4] {_bn('layer1.bn2')}"
            " layer2.conv1.weight[-3] layer2.downsample.0.weight[-3]",
            site="residual",
            tap="any",
        ),
        "layer1.conv1": Group(4, f"layer1.conv1.weight[-4] {_bn('layer1.bn1')} layer1.conv2.weight[-3]"),
        "layer2.conv1": Group(6, f"layer2.conv1.weight[-4] {_bn('layer2.bn1')} layer2.conv2.weight[-3]"),
        "layer2.conv2": Group(
            6,
            f"layer2.conv2.weight[-4] {_bn('layer2.bn2')} layer2.downsample.0.weight[-4]"
            f" {_bn('layer2.downsample.1')} fc.weight[-1]",
            tap="any",
        ),
    },
)
def resnet_basic() -> nn.Module:
    return ResNet()


class PreActivationBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, width + 1, 3, 1, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(width + 1), nn.Conv2d(width + 1, width, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))


@_case(
    "resnet_preactivation",
    _images(3, 4),
    {
        "0:residual": Group(
            4,
            f"0.weight[-4] {_bn('1.bn1')} 1.conv1.weight[-3] 1.conv2.weight[-4] {_bn('2.bn1')} 2.conv1.weight[-3]"
            f" 2.conv2.weight[-4] {_bn('3')} 7.weight[-1]",
            site="residual",
            tap="any",
        ),
        "1.conv1": Group(5, f"1.conv1.weight[-4] {_bn('1.bn2')} 1.conv2.weight[-3]"),
        "2.conv1": Group(5, f"2.conv1.weight[-4] {_bn('2.bn2')} 2.conv2.weight[-3]"),
    },
)
def resnet_preactivation() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 1, 1, bias=False), PreActivationBlock(4), PreActivationBlock(4),
        nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


class Bottleneck(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, 1, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)) + x)


@_case(
    "resnet_bottleneck",
    _images(3, 4),
    {
        "0:residual": Group(
            8,
            f"0.weight[-4] {_bn('1')} 3.conv1.weight[-3] 3.conv3.weight[-4] {_bn('3.bn3')} 6.weight[-1]",
            site="residual",
            tap="any",
        ),
        "3.conv1": Group(4, f"3.conv1.weight[-4] {_bn('3.bn1')} 3.conv2.weight[-3]"),
        "3.conv2": Group(4, f"3.conv2.weight[-4] {_bn('3.bn2')} 3.conv3.weight[-3]"),
    },
)
def resnet_bottleneck() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        Bottleneck(8, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


class UNet(nn.Module):
    """Down, up, and a skip connection by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.up = nn.ConvTranspose2d(6, 5, 2, stride=2)
        self.merge, self.out = nn.Conv2d(9, 7, 3, padding=1), nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.down1(x))
        deep = F.relu(self.down2(F.max_pool2d(skip, 2)))
        joined = torch.cat([F.relu(self.up(deep)), skip], dim=1)
        return self.out(F.relu(self.merge(joined)))


@_case(
    "unet",
    _images(3, 4),
    {
        "down1": Group(4, "down1.weight[-4] down1.bias[-1] down2.weight[-3] merge.weight[-3]", tap="any"),
        "down2": Group(6, "down2.weight[-4] down2.bias[-1] up.weight[-4]"),
        "up": Group(5, "up.weight[-3] up.bias[-1] merge.weight[-3]", tap="any"),
        "merge": Group(7, "merge.weight[-4] merge.bias[-1] out.weight[-3]"),
    },
)
def unet() -> nn.Module:
    return UNet()


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


@_case(
    "mlp_mixer",
    _images(3, 4),
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


@_case("transformer_post_norm", _sequence(3, 5), _ENCODER)
def transformer_post_norm() -> nn.Module:
    return Encoder(norm_first=False, activation="relu")


@_case("transformer_norm_first", _sequence(3, 5), _ENCODER)
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


@_case(
    "vit",
    _images(3, 4),
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


# ---- two heads, gates ----
class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 8), nn.Tanh())
        self.actor = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))
        self.critic = nn.Sequential(nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.trunk(x)
        return self.actor(hidden), self.critic(hidden)


@_case(
    "actor_critic",
    _features(5),
    {
        "trunk.0": Group(8, "trunk.0.weight[-2] trunk.0.bias[-1] actor.0.weight[-1] critic.0.weight[-1]"),
        "actor.0": Group(6, "actor.0.weight[-2] actor.0.bias[-1] actor.2.weight[-1]"),
        "critic.0": Group(7, "critic.0.weight[-2] critic.0.bias[-1] critic.2.weight[-1]"),
    },
)
def actor_critic() -> nn.Module:
    return ActorCritic()


class SwiGLU(nn.Module):
    """Gate and value are one unit each, produced by two layers, or by two halves of one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 4)
        self.gate, self.value, self.down = nn.Linear(4, 7, bias=False), nn.Linear(4, 7, bias=False), nn.Linear(7, 4)
        self.fused, self.out = nn.Linear(4, 12), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.embed(x))
        x = self.down(F.silu(self.gate(x)) * self.value(x))
        return self.out(F.glu(self.fused(torch.relu(x)), dim=-1))


@_case(
    "swiglu",
    _features(5),
    {
        "embed": Group(4, "embed.weight[-2] embed.bias[-1] gate.weight[-1] value.weight[-1]", tap="hook"),
        "gate": Group(7, "gate.weight[-2] value.weight[-2] down.weight[-1]"),
        "down": Group(4, "down.weight[-2] down.bias[-1] fused.weight[-1]"),
        "fused": Group(6, "fused.weight[-2] fused.bias[-1] out.weight[-1]"),
    },
)
def swiglu() -> nn.Module:
    return SwiGLU()


NAMES = tuple(ZOO)


def loss_of(output: Any) -> Tensor:
    """A loss for any output: every tensor in it counts, and no unit's gradient vanishes by symmetry."""
    tensors = list(output) if isinstance(output, (tuple, list)) else [output]
    total = torch.zeros((), dtype=tensors[0].dtype)
    for tensor in tensors:
        target = torch.linspace(-1, 1, tensor.numel(), dtype=tensor.dtype).view_as(tensor)
        total = total + (tensor - target).square().mean()
    return total
