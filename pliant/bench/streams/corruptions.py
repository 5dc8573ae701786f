"""What light and weather do to images: functions of images in 0..1, a severity in 0..1, and a generator.

Source: the weather corruptions of Hendrycks & Dietterich (2019), Benchmarking neural network robustness to common
corruptions and perturbations, arXiv:1903.12261. Here they are generated (no photographs of frost, no plasma fractal)
and scale with the size of the image, so that they work for 8 x 8 pixels, too.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["WEATHER", "darken"]


def darken(images: Tensor, light: float, rng: np.random.Generator) -> Tensor:
    """Return images in less light: dimmed, less colourful, and with the sensor's noise, which the dark does not dim.

    Args:
        images: float32 ``[N, C, H, W]`` in 0..1.
        light: 1 is day, 0 the darkest night, at which a sixth of the brightness is left.
        rng: source of the noise.
    """
    brightness = 1 / 6 + light * 5 / 6
    grey = images.mean(1, keepdim=True)
    seen = images.lerp(grey, 0.6 * (1 - light)) * brightness
    noise = torch.from_numpy(rng.standard_normal(tuple(images.shape), dtype=np.float32))
    return (seen + noise * (0.08 * (1 - light))).clamp_(0, 1)


def _smooth_noise(images: Tensor, rng: np.random.Generator, cells: int) -> Tensor:
    """Noise of few large blobs, ``[N, 1, H, W]`` in 0..1."""
    coarse = torch.from_numpy(rng.random((len(images), 1, cells, cells), dtype=np.float32))
    return F.interpolate(coarse, images.shape[-2:], mode="bilinear", align_corners=True)


def clear(images: Tensor, severity: float, rng: np.random.Generator) -> Tensor:
    """Return the images as they are."""
    return images


def fog(images: Tensor, severity: float, rng: np.random.Generator) -> Tensor:
    """Return images behind a grey veil of varying thickness, at most 85 %."""
    veil = severity * 0.85 * (0.6 + 0.4 * _smooth_noise(images, rng, 3))
    return images * (1 - veil) + 0.7 * veil


def rain(images: Tensor, severity: float, rng: np.random.Generator) -> Tensor:
    """Return darker images with bright slanted streaks."""
    height = images.shape[-2]
    drops = torch.from_numpy(rng.random((len(images), 1, *images.shape[-2:]), dtype=np.float32) < 0.06 * severity)
    streaks = drops.float()
    for _ in range(max(1, height // 8)):
        streaks = torch.maximum(streaks, torch.roll(streaks, (1, 1), (-2, -1)))
    return (images * (1 - 0.25 * severity)).lerp(torch.ones(()), 0.6 * streaks)


def snow(images: Tensor, severity: float, rng: np.random.Generator) -> Tensor:
    """Return brighter, paler images with white flakes."""
    flakes = torch.from_numpy(rng.random((len(images), 1, *images.shape[-2:]), dtype=np.float32) < 0.12 * severity)
    pale = images.lerp(torch.full((), 0.8), 0.3 * severity)
    return torch.where(flakes, torch.ones(()), pale)


def blur(images: Tensor, severity: float, rng: np.random.Generator) -> Tensor:
    """Return images out of focus, as through a wet lens: a mixture with their local means."""
    reach = max(1, images.shape[-1] // 16)
    framed = F.pad(images, (reach,) * 4, mode="replicate")
    return images.lerp(F.avg_pool2d(framed, 2 * reach + 1, stride=1), severity)


WEATHER: dict[str, Callable[[Tensor, float, np.random.Generator], Tensor]] = {
    "clear": clear,
    "fog": fog,
    "rain": rain,
    "snow": snow,
    "blur": blur,
}
"""Kinds of weather by name."""
