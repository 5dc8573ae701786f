"""Op rules, one file per family: what each ATen operation does to the axes of its tensors."""

from pliant.units.rules import (
    attention,
    conv,
    elementwise,
    experts,
    linear,
    loss,
    norm,
    parametrized,
    recurrent,
    reduction,
    sampling,
    shape,
    waves,
)

__all__ = [
    "attention",
    "conv",
    "elementwise",
    "experts",
    "linear",
    "loss",
    "norm",
    "parametrized",
    "recurrent",
    "reduction",
    "sampling",
    "shape",
    "waves",
]
