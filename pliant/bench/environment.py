"""Where a run took place: versions, commit, machine. Nothing here changes an outcome."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["run_meta"]


def _version() -> str:
    try:
        return metadata.version("pliant")
    except metadata.PackageNotFoundError:
        return "unknown"


def _git(*arguments: str) -> str | None:
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", os.fspath(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@functools.cache
def _constant() -> dict[str, Any]:
    # An installed package inside somebody's repository is not that repository's commit.
    tracked = _git("ls-files", "--error-unmatch", Path(__file__).name) is not None or _git(
        "ls-files", "--error-unmatch", Path(__file__).resolve().as_posix()
    )
    status = _git("status", "--porcelain", "--untracked-files=no") if tracked else None
    return {
        "pliant": _version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git_commit": _git("rev-parse", "HEAD") if tracked else None,
        "git_dirty": bool(status) if status is not None else None,
    }


def run_meta() -> dict[str, Any]:
    """Return versions, commit, platform, torch threads, and the present time as ``started``.

    >>> sorted(set(run_meta()) & {"torch", "git_commit", "started", "threads"})
    ['git_commit', 'started', 'threads', 'torch']
    """
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {**_constant(), "threads": torch.get_num_threads(), "started": started}
