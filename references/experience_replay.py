"""Experience replay, slowly: a reservoir of examples, one example at a time.

From Chaudhry et al. (2019), arXiv:1902.10486, with algorithm R of Vitter (1985): the first C examples fill the
memory; the t-th after them takes the place of a uniformly drawn one with probability C / t. Each new batch is trained
on together with examples drawn from the memory as it was before. Nothing of the package is used.
"""

from __future__ import annotations

import torch
from torch import Tensor


class SlowReplay:
    """The memory.

    Args:
        capacity: Examples that fit.
        ratio: Replayed examples for each new one.
        draws: ``draws(seen)`` gives a generator of NumPy for the batch that comes after so many examples.
    """

    def __init__(self, *, capacity: int, ratio: float, draws) -> None:
        self.capacity, self.ratio, self.draws = capacity, ratio, draws
        self.memory: list[tuple[Tensor, Tensor]] = []
        self.seen = 0

    def extend(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The batch with what is replayed behind it; afterwards its examples go into the memory."""
        generator = self.draws(self.seen)
        wanted = min(max(1, round(self.ratio * len(x))), len(self.memory))
        places = generator.choice(len(self.memory), wanted, replace=False, shuffle=False)
        replayed = [self.memory[place] for place in places]
        new_x, new_y = list(x), list(y)
        for example in zip(new_x, new_y, strict=True):
            self.seen += 1
            chosen = int(generator.random() * self.seen)
            if len(self.memory) < self.capacity:
                self.memory.append(example)
            elif chosen < self.capacity:
                self.memory[chosen] = example
        old_x, old_y = [a for a, _ in replayed], [b for _, b in replayed]
        return torch.stack(new_x + old_x), torch.stack(new_y + old_y)
