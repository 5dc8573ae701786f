"""Parametrised weights: weight normalisation is followed; spectral and orthogonal ones are refused, with the reason."""

from __future__ import annotations

import re
from typing import Any

from torch.fx import Node

from pliant.units import axes as ax
from pliant.units.trace import Trace, arg, rule

__all__ = ["freeze_coupled"]

_SPECTRAL = "spectral normalisation divides the layer's weights by one number that depends on all of its units"
_ORTHOGONAL = "an orthogonal parametrisation couples all of the layer's weights, so that no unit can be redrawn alone"

# what torch.nn.utils.parametrizations and the older torch.nn.utils.spectral_norm call their own tensors
_COUPLED = (
    (re.compile(r"((?:.*\.)?parametrizations\.\w+)\.\d+\._[uv]"), ".original", _SPECTRAL),
    (re.compile(r"(.*)_[uv]"), "_orig", _SPECTRAL),
    (re.compile(r"((?:.*\.)?parametrizations\.\w+)\.\d+\.base"), ".original", _ORTHOGONAL),
)


def freeze_coupled(trace: Trace) -> None:
    """Freeze the weights of spectrally normalised and orthogonal layers, which are functions of all their entries.

    They are known by the buffers beside them: zeroing the column of a unit, or redrawing its row, would change
    every other weight of the layer.
    """
    for name in trace.parameter_axes:
        for pattern, ending, reason in _COUPLED:
            found = pattern.fullmatch(name)
            if found and found[1] + ending in trace.parameter_axes:
                for tensor in (name, found[1] + ending):
                    for axis in trace.parameter_axes[tensor]:
                        ax.freeze(axis, reason)


@rule("_weight_norm", "_weight_norm_interface")
def weight_norm(trace: Trace, node: Node) -> Any:
    """``w = g v / |v|``: the length ``g`` is the unit's own; the norm mixes what lies along the other dimensions.

    Zeroing a column of ``v`` makes the other columns longer, so units that a normalised layer consumes cannot be
    reset without changing the function; units that it produces can.
    """
    direction, length = node.args[0], node.args[1]
    axes, lengths = trace.of(direction), trace.of(length)
    dim = int(arg(node, 2, "dim", 0))
    for at, axis in enumerate(axes):
        if lengths and at == dim % len(axes):
            ax.tie(axis, lengths[at])
        else:
            ax.mark(axis, "mixed")
    for back in range(1, len(lengths) + 1):
        trace.role(length, -back, "carried")
    if direction in trace.views:
        trace.views[node] = trace.views[direction]  # type: ignore[index]
    value = node.meta["val"]
    return (axes, lengths) if isinstance(value, (tuple, list)) else axes


@rule("linalg_householder_product", "linalg_matrix_exp", "matrix_exp", "linalg_solve", "linalg_solve_ex")
def matrix_function(trace: Trace, node: Node) -> Any:
    """Functions of whole matrices, as orthogonal parametrisations use them."""
    reason = "its order matters to a function of the whole matrix" if node in trace.moving else _ORTHOGONAL
    trace.freeze_inputs(node, reason)
    return trace.opaque(node, reason)
