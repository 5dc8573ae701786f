"""How much memory there is, and how much an experiment needs at the very least."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

import torch

from pliant.bench.experiment import Experiment
from pliant.bench.streams.base import Task, traits
from pliant.errors import IllegalConfiguration

__all__ = ["check_memory", "fitting_members", "gigabytes", "num_parameters", "return_freed", "total_memory"]

_CGROUP_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def gigabytes(size: float) -> str:
    """A number of bytes as one reads it.

    >>> gigabytes(2_000), gigabytes(3.5e6), gigabytes(41.2e9), gigabytes(3e15)
    ('2 kB', '3.5 MB', '41 GB', '3,000 TB')
    """
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:,.0f} {name}" if size >= 10 * unit else f"{size / unit:.1f} {name}"
    return f"{size / 1e3:.0f} kB"


def total_memory() -> int | None:
    """Bytes that this process may ever have: of the machine, its control group and its own limit; None if unknown."""
    sizes: list[int] = []
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not on every system
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in _CGROUP_FILES:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
            sizes.append(int(Path(name).read_text(encoding="ascii")))
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        sizes += [limit] if limit != resource.RLIM_INFINITY else []
    found = [size for size in sizes if size > 0]
    return min(found) if found else None


def return_freed() -> bool:
    """Give memory that is free back to the system, where the C library can do that; whether it did.

    glibc keeps what has been freed between blocks that are in use, and a run whose tasks come and go then grows by
    about the data of a task every twenty tasks, for ever.

    >>> isinstance(return_freed(), bool)
    True
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (OSError, AttributeError):  # another C library: it has its own ways
        return False


def num_parameters(experiment: Experiment) -> int | None:
    """Parameters of one model, counted without making it; None where it cannot be made without memory."""
    try:
        with torch.device("meta"):
            model = experiment.build_model(0)
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        # It reads values of its parameters, or is wrong: then making it for the run says so, with its own error.
        return None
    return sum(parameter.numel() for parameter in model.parameters())


def check_memory(experiment: Experiment, num_members: int, task: Task | None = None, memory: int | None = None) -> None:
    """Refuse a model and a task that together cannot fit, whatever else is on the machine.

    At the very least there are the weights and their gradients, in single precision, of all members of a stack, and the
    data of one task for each. What really is needed is more; ``pliant run --dry-run`` measures it.

    Args:
        experiment: What is to run.
        num_members: Seeds that one process trains together.
        task: One of its tasks; None: what the stream says of the largest, if it says anything.
        memory: Bytes at hand; default: all of the machine's.

    Raises:
        IllegalConfiguration: It cannot fit; says what would.
    """
    at_hand = total_memory() if memory is None else memory
    fitting = fitting_members(experiment, task, at_hand)
    if at_hand is None or fitting is None or num_members <= fitting:
        return
    each = _least_bytes(experiment, task)
    fewer = f"train at most {fitting} seeds together (--stack {fitting}), or " if fitting else ""
    raise IllegalConfiguration(
        f"{experiment.label} on {experiment.stream.short_name} needs at least {gigabytes(num_members * each)} for the "
        f"weights, gradients and data of {num_members} seed{'s' * (num_members > 1)}, and there are "
        f"{gigabytes(at_hand)}: {fewer}take a smaller preset or model"
    )


def fitting_members(experiment: Experiment, task: Task | None = None, memory: int | None = None) -> int | None:
    """How many members fit into the memory by that reckoning, which is an upper bound; None: nobody knows.

    Args:
        experiment: What is to run.
        task: One of its tasks; None: what the stream says of the largest, if it says anything.
        memory: Bytes at hand; default: all of the machine's.
    """
    at_hand = total_memory() if memory is None else memory
    each = _least_bytes(experiment, task)
    return None if at_hand is None or not each else at_hand // each


def _least_bytes(experiment: Experiment, task: Task | None) -> int:
    """Of one member: weights, gradients, and the data of a task."""
    said = traits(experiment.build_stream()).task_bytes or 0
    return 2 * 4 * (num_parameters(experiment) or 0) + max(said, 0 if task is None else task.num_bytes)
