"""The UCI optical digits: 1,797 handwritten digits of 8x8 pixels, shipped with the package.

Source: Alpaydin & Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning Repository,
DOI 10.24432/C50P49, CC BY 4.0 (see ``ATTRIBUTION.txt`` beside the data).
"""

from __future__ import annotations

import functools
from importlib import resources

import numpy as np
import torch
from torch import Tensor

__all__ = ["MAX_PIXEL", "NUM_DIGITS", "load_digits"]

NUM_DIGITS = 1797
MAX_PIXEL = 16


@functools.cache
def _arrays() -> tuple[Tensor, Tensor]:
    with (resources.files(__package__) / "digits.npz").open("rb") as file, np.load(file) as arrays:
        inputs_NF = torch.from_numpy(arrays["inputs"].astype(np.float32)) / MAX_PIXEL
        targets = torch.from_numpy(arrays["targets"].astype(np.int64))
    return inputs_NF, targets


def load_digits() -> tuple[Tensor, Tensor]:
    """Return all digits and their labels.

    Returns:
        ``inputs`` float32 ``[1797, 64]``, pixels in [0, 1] (the raw counts 0..16 divided by 16, so every value
        is exact), and ``targets`` int64 ``[1797]`` in 0..9. Both are fresh copies.

    >>> inputs, targets = load_digits()
    >>> inputs.shape, targets.shape, float(inputs.max())
    (torch.Size([1797, 64]), torch.Size([1797]), 1.0)
    """
    inputs_NF, targets = _arrays()
    return inputs_NF.clone(), targets.clone()
