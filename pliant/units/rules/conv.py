"""Convolutions (grouped, depthwise, transposed) and spatial pooling."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from pliant.units import axes as ax
from pliant.units.axes import Axis
from pliant.units.trace import Trace, arg, rule

KERNEL = "positions of a kernel or of space have a fixed order"


@rule("conv1d", "conv2d", "conv3d")
def conv(trace: Trace, node: Node) -> Any:
    """Input channels consume, output channels produce; with groups both carry the group index."""
    return _conv(trace, node, node.args[1], arg(node, 6, "groups", 1), transposed=False)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(trace: Trace, node: Node) -> Any:
    """As a convolution, with weights stored inputs first."""
    return _conv(trace, node, node.args[1], arg(node, 6, "groups", 1), transposed=True)


@rule("convolution")
def convolution(trace: Trace, node: Node) -> Any:
    """The generic form: ``(x, w, b, stride, padding, dilation, transposed, output_padding, groups)``."""
    return _conv(trace, node, node.args[1], arg(node, 8, "groups", 1), transposed=bool(node.args[6]))


def _conv(trace: Trace, node: Node, weight: Any, groups: int, *, transposed: bool) -> Any:
    source, bias = node.args[0], arg(node, 2, "bias")
    source_axes, weight_axes = trace.of(source), trace.of(weight)
    rank = len(weight_axes)
    for axis in weight_axes[2:]:
        ax.freeze(axis, KERNEL)
    for back in range(1, rank - 1):
        trace.role(weight, -back, "carried")
    out_dim, in_dim = (-rank + 1, -rank) if transposed else (-rank, -rank + 1)
    channel = -(rank - 1)  # the channel dimension of the (possibly unbatched) input
    inputs, outputs = weight_axes[in_dim], weight_axes[out_dim]
    if groups == 1:
        ax.tie(source_axes[channel], inputs)
        trace.consume(node, source, weight, in_dim)
        produced = outputs
    else:
        produced = _grouped(trace, node, weight, in_dim, out_dim, groups, transposed=transposed)
    trace.role(weight, out_dim, "incoming")
    if bias is not None:
        ax.tie(trace.of(bias)[-1], produced)
        trace.role(bias, -1, "incoming")
    shape = trace.shape(node)
    result = [ax.fresh(size, KERNEL) for size in shape]
    if len(shape) == rank:
        result[0] = source_axes[0]
    result[channel] = produced
    return tuple(result)


def _grouped(
    trace: Trace, node: Node, weight: Any, in_dim: int, out_dim: int, groups: int, *, transposed: bool
) -> Axis:
    """Weights ``[G·o, i, ...]`` (or ``[G·i, o, ...]`` transposed) map channels ``(G, i)`` to ``(G, o)``."""
    source = node.args[0]
    channels = trace.of(source)[-(len(trace.of(weight)) - 1)]
    inputs, outputs = trace.of(weight)[in_dim], trace.of(weight)[out_dim]
    whole, part = (inputs, outputs) if transposed else (outputs, inputs)
    whole_size = sum(map(ax.size_of, whole))
    group_axis, own = ax.factor(whole, [groups, whole_size // groups])
    if transposed:
        ax.tie(channels, whole)
        produced = ax.merge([group_axis, part])
    else:
        ax.tie(channels, ax.merge([group_axis, part]))
        produced = whole
    if sum(map(ax.size_of, own if transposed else part)) > 1:
        trace.consume(node, source, weight, in_dim)
    else:
        trace.role(weight, in_dim, "carried")
    return produced


@rule(
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "max_pool2d_with_indices",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_linear1d",
)  # fmt: skip
def pool(trace: Trace, node: Node) -> Any:
    """Pooling and resizing act on space, channel by channel."""
    spatial = 1 if "1d" in str(node.target) else 3 if "3d" in str(node.target) else 2
    source = trace.of(node.args[0])

    def pooled(value: Any) -> tuple[Axis, ...]:
        kept = len(value.shape) - spatial
        return (*source[:kept], *(ax.fresh(int(_hint(size)), KERNEL) for size in value.shape[kept:]))

    value = node.meta["val"]
    return tuple(pooled(item) for item in value) if isinstance(value, (tuple, list)) else pooled(value)


@rule("pixel_shuffle")
def pixel_shuffle(trace: Trace, node: Node) -> Any:
    """Blocks of channels become blocks of space: a unit keeps its block, and the places in it are fixed."""
    source, factor = trace.of(node.args[0]), int(node.args[1])  # type: ignore[arg-type]
    channels = sum(map(ax.size_of, source[-3]))
    units, places = ax.factor(source[-3], [channels // factor**2, factor**2])
    ax.freeze(places, KERNEL)
    return (*source[:-3], units, *(ax.fresh(size, KERNEL) for size in trace.shape(node)[-2:]))


@rule("pixel_unshuffle")
def pixel_unshuffle(trace: Trace, node: Node) -> Any:
    """Blocks of space become channels, unit by unit."""
    source, factor = trace.of(node.args[0]), int(node.args[1])  # type: ignore[arg-type]
    channels = ax.merge([source[-3], ax.fresh(factor**2, KERNEL)])
    return (*source[:-3], channels, *(ax.fresh(size, KERNEL) for size in trace.shape(node)[-2:]))


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(trace: Trace, node: Node) -> Any:
    """Channels ``(group, own)`` come out as ``(own, group)``."""
    source, groups = trace.of(node.args[0]), int(node.args[1])  # type: ignore[arg-type]
    channels = sum(map(ax.size_of, source[1]))
    group, own = ax.factor(source[1], [groups, channels // groups])
    return (source[0], ax.merge([own, group]), *source[2:])


def _hint(size: Any) -> int:
    return size if isinstance(size, int) else int(size.node.hint)
