"""Complex numbers and Fourier transforms: rotary embeddings as Llama's own code writes them, spectral layers."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from pliant.units import axes as ax
from pliant.units.trace import Trace, rule

_PARTS = "its entries are real and imaginary parts"
_WAVES = "its order is that of a Fourier transform"


@rule("view_as_complex")
def view_as_complex(trace: Trace, node: Node) -> Any:
    """Pairs in the last dimension become one number."""
    source: Any = node.args[0]
    *rest, pair = trace.of(source)
    ax.freeze(pair, _PARTS)
    trace.role(source, -1, "carried")
    if source in trace.views:
        trace.views[node] = trace.views[source][:-1]
    return tuple(rest)


@rule("view_as_real")
def view_as_real(trace: Trace, node: Node) -> Any:
    """Each number becomes a pair in a new last dimension."""
    source: Any = node.args[0]
    if source in trace.views:
        trace.views[node] = (*trace.views[source], frozenset())
    return (*trace.of(source), ax.fresh(2, _PARTS))


@rule("fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_hfft", "fft_ihfft")
def transform(trace: Trace, node: Node) -> Any:
    """A Fourier transform along one dimension, the same for whatever lies along the others."""
    axes = list(trace.of(node.args[0]))
    dim = int(node.args[2] if len(node.args) > 2 else -1) % len(axes)  # type: ignore[arg-type]
    return _along(trace, node, axes, [dim])


@rule("fft_fft2", "fft_ifft2", "fft_rfft2", "fft_irfft2", "fft_fftn", "fft_ifftn", "fft_rfftn", "fft_irfftn")
def transforms(trace: Trace, node: Node) -> Any:
    """The same along several dimensions."""
    axes = list(trace.of(node.args[0]))
    given: Any = node.args[2] if len(node.args) > 2 else [-2, -1] if "2" in str(node.target) else None
    dims = range(len(axes)) if given is None else [int(dim) % len(axes) for dim in given]
    return _along(trace, node, axes, list(dims))


def _along(trace: Trace, node: Node, axes: list[Any], dims: list[int]) -> Any:
    sizes = trace.shape(node)
    for dim in dims:
        ax.freeze(axes[dim], _WAVES)
        axes[dim] = ax.fresh(sizes[dim], _WAVES)
    return tuple(axes)
