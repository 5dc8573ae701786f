"""Where reading a value back is free.

On a CPU a tensor's value can be looked at in passing. On an accelerator that would stop the host until the queue of
the device is empty, so nothing that happens at every step may do it: whatever decides on values has a second form
there, which is arithmetic on the device.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["can_read"]

_as_accelerator = False
"""Set by tests, which treat the CPU as an accelerator to run the second forms where there is none."""


def can_read(tensor: Tensor) -> bool:
    """Whether looking at the values of this tensor costs nothing."""
    return tensor.device.type == "cpu" and not _as_accelerator
