"""The zoo: convolutions, residual networks, a U-Net."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo_base import Group, case, images


# ---- convolutions ----
@case(
    "conv_bn_flatten",
    images(3, 4),
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


@case(
    "conv_groupnorm",
    images(3, 4),
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


@case(
    "conv_depthwise",
    images(3, 4),
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


@case(
    "conv_grouped",
    images(3, 4),
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


@case(
    "resnet_basic",
    images(3, 6),
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


@case(
    "resnet_preactivation",
    images(3, 4),
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


@case(
    "resnet_bottleneck",
    images(3, 4),
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


@case(
    "unet",
    images(3, 4),
    {
        "down1": Group(4, "down1.weight[-4] down1.bias[-1] down2.weight[-3] merge.weight[-3]", tap="any"),
        "down2": Group(6, "down2.weight[-4] down2.bias[-1] up.weight[-4]"),
        "up": Group(5, "up.weight[-3] up.bias[-1] merge.weight[-3]", tap="any"),
        "merge": Group(7, "merge.weight[-4] merge.bias[-1] out.weight[-3]"),
    },
)
def unet() -> nn.Module:
    return UNet()


# ---- what real networks add ----
class SqueezeExcite(nn.Module):
    """A gate per channel, computed from the channel's own mean."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))


@case(
    "mobile_inverted_bottleneck",
    images(3, 4),
    {
        "0": Group(4, "0.weight[-4] 0.bias[-1] 1.weight[-3]", tap="any"),
        # the gate's rows produce the unit, the gate's columns read it; so does the depthwise convolution
        "1": Group(
            6,
            f"1.weight[-4] {_bn('2')} 4.weight[-4] {_bn('5')} 7.reduce.weight[-3] 7.expand.weight[-4]"
            " 7.expand.bias[-1] 8.weight[-3]",
        ),
        "7.reduce": Group(2, "7.reduce.weight[-4] 7.reduce.bias[-1] 7.expand.weight[-3]", tap="any"),
        "8": Group(5, f"8.weight[-4] {_bn('9')} 12.weight[-1]", tap="any"),
    },
)
def mobile_inverted_bottleneck() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6), nn.SiLU(),
        nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(6), nn.SiLU(), SqueezeExcite(6, 2),
        nn.Conv2d(6, 5, 1, bias=False), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    )  # fmt: skip


class StandardisedConv(nn.Conv2d):
    """Every output channel's kernel is used with mean zero and deviation one."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return self._conv_forward(x, weight, self.bias)


@case(
    "weight_standardised",
    images(3, 4),
    {
        # what reads a unit is standardised together with what reads the others
        "0": Group(6, "0.weight[-4] 0.bias[-1] 1.weight[-1] 1.bias[-1] 3.weight[-3]", preserves=False),
        "3": Group(4, "3.weight[-4] 3.bias[-1] 4.weight[-4] 4.bias[-1] 7.weight[-3]", tap="any"),
        "7": Group(2, "7.weight[-4] 7.bias[-1] 9.weight[-3]", tap="any"),
    },
    excluded={"4.weight[-2]": "kernel"},
)
def weight_standardised() -> nn.Module:
    return nn.Sequential(
        StandardisedConv(3, 6, 3, padding=1), nn.GroupNorm(1, 6), nn.ReLU(), StandardisedConv(6, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.ReLU(), nn.Identity(), nn.Conv2d(4, 2, 1), nn.ReLU(),
        nn.Conv2d(2, 3, 1),
    )  # fmt: skip


@case(
    "channel_shuffle",
    images(3, 4),
    {
        # two groups of four: the groups as wholes, and what may move inside one
        "0": Group(2, "0.weight[-4] 0.bias[-1] 2.weight[-4] 2.bias[-1] 5.weight[-3]", tap="any"),
        "0#2": Group(4, "0.weight[-4] 0.bias[-1] 2.weight[-3]"),
        # after the shuffle a group holds two channels of each old group, in the order of the new groups
        "2": Group(2, "2.weight[-4] 2.bias[-1] 5.weight[-4] 5.bias[-1] 8.weight[-3]", tap="any"),
        "2#2": Group(2, "2.weight[-4] 2.bias[-1] 5.weight[-3]", tap="any"),
        "5": Group(3, "5.weight[-4] 5.bias[-1] 8.weight[-3]", tap="any"),
        # a block of channels becomes a block of pixels
        "8": Group(2, "8.weight[-4] 8.bias[-1] 11.weight[-3]"),
    },
)
def channel_shuffle() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ReLU(), nn.ChannelShuffle(2),
        nn.Conv2d(8, 6, 1, groups=2), nn.ReLU(), nn.Identity(), nn.Conv2d(6, 8, 1), nn.PixelShuffle(2), nn.ReLU(),
        nn.Conv2d(2, 3, 1),
    )  # fmt: skip
