"""What the published experiments do to training images: shifted, mirrored, and with other colours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from pliant.bench.streams.augment import FlipCropRotate

__all__ = ["CropFlipJitter", "jittered"]

_GREY = (0.299, 0.587, 0.114)


def jittered(pixels: Tensor, factors_B3: Tensor, order_B3: Tensor) -> Tensor:
    """Images with another brightness, contrast and saturation, each changed in an order of its own.

    Args:
        pixels: ``[B, 3, H, W]`` in [0, 1].
        factors_B3: Of brightness, contrast and saturation; 1 changes nothing.
        order_B3: A permutation of 0, 1, 2 for each image: which of these comes first.

    Returns:
        Pixels in [0, 1].

    >>> image = torch.tensor([0.2, 0.4, 0.9]).reshape(1, 3, 1, 1)
    >>> order = torch.tensor([[0, 1, 2]])
    >>> [round(v, 3) for v in jittered(image, torch.tensor([[0.5, 1.0, 1.0]]), order).flatten().tolist()]
    [0.1, 0.2, 0.45]
    >>> jittered(image, torch.tensor([[1.0, 1.0, 0.0]]), order).std() < 1e-6  # no colour is left
    tensor(True)
    """
    weights = torch.tensor(_GREY, dtype=pixels.dtype, device=pixels.device)[:, None, None]
    for place in range(3):
        which = order_B3[:, place]
        factor = factors_B3.gather(1, which[:, None])[:, :, None, None]
        grey = (pixels * weights).sum(1, keepdim=True)
        # What is mixed in: black, the mean brightness of the image, and the image without its colours.
        towards = torch.stack([torch.zeros_like(grey), grey.mean((2, 3), keepdim=True).expand_as(grey), grey])
        other = towards[which, torch.arange(len(which), device=pixels.device)]
        pixels = (factor * pixels + (1 - factor) * other).clamp(0, 1)
    return pixels


@final
@dataclass(frozen=True)
class CropFlipJitter:
    """Shift each image within a black frame, mirror half of them, and change their colours.

    Attributes:
        pad: Pixels added on every side before a window of the old size is cut out.
        jitter: Factors of brightness, contrast and saturation are uniform in ``[1 - jitter, 1 + jitter]``; 0: none.
        mean: What was subtracted from the pixels of each channel.
        std: What they were divided by afterwards.

    Source: the training transforms in the code of Joudaki et al. (2025), arXiv 2510.00304: Tiny ImageNet with 8 pixels
        and a jitter of 0.1, CIFAR with 4 pixels and none. Deviation: colours are not rounded to 256 levels after each
        change.

    >>> images, rng = torch.rand(4, 3, 8, 8), np.random.default_rng(0)
    >>> CropFlipJitter(2, 0.1, (0.0,) * 3, (1.0,) * 3)(images, rng).shape == images.shape
    True
    """

    pad: int
    jitter: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, inputs: Tensor, rng: np.random.Generator) -> Tensor:
        """Return scaled images ``[B, C, H, W]``, changed."""
        mean, std = (inputs.new_tensor(numbers).reshape(-1, 1, 1) for numbers in (self.mean, self.std))
        pixels = FlipCropRotate(self.pad, "constant", 0.0)(inputs * std + mean, rng)  # zeros are black here
        if self.jitter:
            num = len(inputs)
            factors = torch.from_numpy(rng.uniform(1 - self.jitter, 1 + self.jitter, (num, 3))).to(inputs)
            order = torch.from_numpy(rng.permuted(np.tile(np.arange(3), (num, 1)), axis=1)).to(inputs.device)
            pixels = jittered(pixels, factors, order)
        return (pixels - mean) / std
