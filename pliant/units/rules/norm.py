"""Normalisation layers: over the batch (per unit), over the units, over groups of units."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from pliant.units import axes as ax
from pliant.units.axes import Axis
from pliant.units.trace import Trace, arg, rule


def _carry(trace: Trace, parameter: Any, axis: Axis) -> None:
    if parameter is not None:
        ax.tie(trace.of(parameter)[-1], axis)
        trace.role(parameter, -1, "carried")


@rule("batch_norm", "instance_norm", "_native_batch_norm_legit_functional", "cudnn_batch_norm")
def batch_norm(trace: Trace, node: Node) -> Any:
    """Statistics per channel: affine parameters and running statistics belong to the unit."""
    source = trace.of(node.args[0])
    for index, name in enumerate(("weight", "bias", "running_mean", "running_var"), start=1):
        _carry(trace, arg(node, index, name), source[1])
    return source


@rule("layer_norm", "rms_norm")
def layer_norm(trace: Trace, node: Node) -> Any:
    """Statistics over the trailing dimensions: equivariant to permutations, but it mixes the units."""
    source = trace.of(node.args[0])
    count = len(node.args[1])  # type: ignore[arg-type]
    for index, name in ((2, "weight"), (3, "bias")):
        parameter = arg(node, index, name)
        if parameter is None or not trace.is_parameter(parameter):
            continue
        for back in range(1, count + 1):
            ax.tie(trace.of(parameter)[-back], source[-back])
            trace.role(parameter, -back, "carried")
    for axis in source[-count:]:
        ax.mark(axis, "mixed")
    return source


@rule("group_norm")
def group_norm(trace: Trace, node: Node) -> Any:
    """Statistics over groups of channels: permutations must keep the groups, and units within one mix."""
    source, groups = trace.of(node.args[0]), int(node.args[1])  # type: ignore[arg-type]
    channels = source[1]
    size = sum(map(ax.size_of, channels))
    if 1 < groups < size:
        ax.split(channels, [size // groups] * groups)  # units may move within their norm group only
    if groups < size:
        ax.mark(channels, "mixed")
    for index, name in ((2, "weight"), (3, "bias")):
        _carry(trace, arg(node, index, name), channels)
    return source
