"""Runs a job of a worker module in two gloo processes, and hands back what each of them returned."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent


def run(module: str, job: str, folder: Path, *, timeout: float = 240) -> list[Any]:
    """What ``module.job(rank, folder)`` returned on ranks 0 and 1; a failure on either is this test's failure."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    path = os.pathsep.join([str(HERE), str(HERE.parent), *sys.path])
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, module, job, str(rank), str(folder)],
            env=environment | {"PYTHONPATH": path},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        errors = [worker.communicate(timeout=timeout)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(errors)
    return [torch.load(folder / f"{job}.{rank}.pt", weights_only=True) for rank in (0, 1)]


def main() -> None:
    module, job, rank, folder = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/{job}", rank=rank, world_size=2)
    result = getattr(__import__(module), job)(rank, folder)
    torch.save(result, folder / f"{job}.{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
