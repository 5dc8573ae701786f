"""Optimizer reset, slowly: an optimizer that is thrown away and made again, or whose clock is.

From Asadi et al. (2023), arXiv:2306.17833: when the objective changes, the optimizer's internal parameters start
again, and the weights go on. With ``part="step"`` only Adam's time does (Ellis et al., 2024, arXiv:2412.17113). Nothing
of the package is used.
"""

from __future__ import annotations

import torch
from torch import Tensor


class SlowOptimizerReset:
    """The algorithm for SGD with momentum, Adam or RMSprop.

    Args:
        optimizer: The optimizer.
        part: ``"all"``, ``"moments"`` or ``"step"``.
        every: After how many steps; ``None``: at task boundaries.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, part: str, every: int | None) -> None:
        self.optimizer, self.part, self.every = optimizer, part, every
        self.step = 0

    def after_step(self) -> None:
        """Act by steps."""
        self.step += 1
        if self.every is not None and self.step % self.every == 0:
            self.act()

    def at_task_boundary(self) -> None:
        """Act by tasks."""
        if self.every is None:
            self.act()

    def act(self) -> None:
        """Forget."""
        for state in self.optimizer.state.values():
            if self.part == "all":
                state.clear()  # as if the optimizer had just been made
                continue
            for key, value in state.items():
                if isinstance(value, Tensor) and (key == "step") == (self.part == "step"):
                    value.zero_()
