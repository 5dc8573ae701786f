"""Optimizers that keep networks plastic, in place of those of ``torch.optim``."""

from pliant.optim.adam import adam_equal_betas
from pliant.optim.upgd import UPGD

__all__ = ["UPGD", "adam_equal_betas"]
