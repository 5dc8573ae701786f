"""What is done to training images on the way to the network, from a generator that the task seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["FlipCropRotate"]


@final
@dataclass(frozen=True)
class FlipCropRotate:
    """Mirror half of the images, shift each within a padded frame, and turn it by a random angle.

    Attributes:
        pad: pixels added on every side before a window of the old size is cut out; 0: no shift.
        mode: how they are filled: ``reflect`` or ``constant`` (zeros).
        degrees: angles are uniform in ``[0, degrees]``, counter-clockwise; nearest pixel, zeros outside. 0: no turn.

    >>> images = torch.rand(4, 3, 8, 8)
    >>> out = FlipCropRotate()(images, np.random.default_rng(0))
    >>> out.shape == images.shape, torch.equal(out, FlipCropRotate()(images, np.random.default_rng(0)))
    (True, True)
    """

    pad: int = 4
    mode: str = "reflect"
    degrees: float = 15.0

    def __call__(self, inputs: Tensor, rng: np.random.Generator) -> Tensor:
        """Return images ``[B, C, H, W]``, changed."""
        num, _, height, width = inputs.shape
        mirrored = torch.from_numpy(rng.random(num) < 0.5).to(inputs.device)
        images = torch.where(mirrored[:, None, None, None], inputs.flip(-1), inputs)
        if self.pad:
            up, left = (rng.integers(0, 2 * self.pad + 1, num, dtype=np.int64) for _ in range(2))
            framed = F.pad(images, (self.pad,) * 4, mode=self.mode)
            rows = torch.from_numpy(up[:, None] + np.arange(height)).to(inputs.device)
            columns = torch.from_numpy(left[:, None] + np.arange(width)).to(inputs.device)
            which = torch.arange(num, device=inputs.device)[:, None, None]
            images = framed.transpose(0, 1)[:, which, rows[:, :, None], columns[:, None, :]].transpose(0, 1)
        if self.degrees:
            angles = rng.uniform(0.0, self.degrees, num) * (math.pi / 180)
            turns = np.zeros((num, 2, 3), dtype=np.float32)
            turns[:, 0, 0] = turns[:, 1, 1] = np.cos(angles)
            turns[:, 1, 0] = np.sin(angles)
            turns[:, 0, 1] = -turns[:, 1, 0]
            grid = F.affine_grid(torch.from_numpy(turns).to(images), list(images.shape), align_corners=False)
            images = F.grid_sample(images, grid, mode="nearest", align_corners=False)
        return images
