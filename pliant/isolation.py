"""Random states that are put back: what networks of Pliant's own must not leave behind."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import nn

__all__ = ["preserved_randomness", "seed_everything"]


@contextlib.contextmanager
def preserved_randomness(model: nn.Module) -> Iterator[None]:
    """Random states of PyTorch (the CPU and every accelerator in use), NumPy and Python are the same afterwards.

    Args:
        model: Whose devices count as in use; of CUDA, all devices do once one is.

    Example:
        >>> model, before = nn.Linear(1, 1), torch.get_rng_state()
        >>> with preserved_randomness(model):
        ...     _ = torch.rand(3), random.random(), np.random.rand()
        >>> torch.equal(torch.get_rng_state(), before)
        True
    """
    of_python, of_numpy = random.getstate(), np.random.get_state()
    with contextlib.ExitStack() as stack:
        devices = _accelerators(model)
        for kind in {device.type for device in devices} | {"cuda"}:
            own: Iterable[torch.device | int] = [device for device in devices if device.type == kind]
            if kind == "cuda":
                own = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
            stack.enter_context(torch.random.fork_rng(list(own), device_type=kind))
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)


def seed_everything(model: nn.Module, seed: int) -> None:
    """Seed every random state that :func:`preserved_randomness` keeps.

    Not ``torch.manual_seed``: where CUDA has not been initialised yet, that would also decide its later state.

    Args:
        model: Whose devices are seeded.
        seed: The seed, ``>= 0``.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    for device in _accelerators(model):
        module = torch.get_device_module(device)
        with module.device(device):
            module.manual_seed(seed)


def _accelerators(model: nn.Module) -> list[torch.device]:
    found = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    return sorted((device for device in found if device.type not in ("cpu", "meta")), key=str)
