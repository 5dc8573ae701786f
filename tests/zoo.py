"""The zoo: one small network per architecture, with the unit groups that must be found in it.

The networks are in ``zoo_dense.py``, ``zoo_conv.py``, ``zoo_recurrent.py``, ``zoo_tokens.py``, ``zoo_mixing.py``,
``zoo_layers.py`` and, those of Hugging Face, ``zoo_hf*.py``.
"""

from __future__ import annotations

from typing import Any

import torch
import zoo_conv  # noqa: F401  (each fills the zoo)
import zoo_dense  # noqa: F401
import zoo_hf  # noqa: F401
import zoo_hf_more  # noqa: F401
import zoo_layers  # noqa: F401
import zoo_mixing  # noqa: F401
import zoo_recurrent  # noqa: F401
import zoo_tokens  # noqa: F401
import zoo_views  # noqa: F401
from torch import Tensor
from zoo_base import ZOO, Case, Group, call, cast

__all__ = ["NAMES", "ZOO", "Case", "Group", "call", "cast", "loss_of"]

NAMES = tuple(ZOO)


def loss_of(output: Any) -> Tensor:
    """A loss for any output: every tensor in it counts, and no unit's gradient vanishes by symmetry."""
    if isinstance(output, dict):  # the output object of a Hugging Face model
        output = [output["loss"] if output.get("loss") is not None else output["logits"]]
        if output[0].ndim == 0:
            return output[0]
    tensors = list(output) if isinstance(output, (tuple, list)) else [output]
    total = torch.zeros((), dtype=tensors[0].dtype)
    for tensor in tensors:
        target = torch.linspace(-1, 1, tensor.numel(), dtype=tensor.dtype).view_as(tensor)
        total = total + (tensor - target).square().mean()
    return total
