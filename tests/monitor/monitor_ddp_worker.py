"""A monitored run in one of two processes, and the same in one process on the whole batch (``rank=None``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from monitor_tools import INPUTS, TARGETS, kill, mlp
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import pliant
from pliant.monitor import DEFAULT

NAMES = [*DEFAULT, "stable_rank", "distance_from_initialisation"]


class Loop:
    def __init__(self, rank: int | None, folder: Path | None = None, **options: Any) -> None:
        torch.manual_seed(0)
        self.rank, self.model = rank, mlp().double()
        units = pliant.find_units(self.model, INPUTS[:4].double())
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.called = self.model if rank is None else DistributedDataParallel(self.model)
        options = {"every": 4, "budget": None, "num_samples": 64, **options}
        writers = [] if folder is None else [pliant.CSVWriter(folder / f"readings.{rank}.csv")]
        reference = self.mine(INPUTS[:64].double())
        self.watch = pliant.monitor(
            self.called, self.optimizer, NAMES, units=units, reference=reference, writers=writers, **options
        )

    def mine(self, whole: torch.Tensor) -> torch.Tensor:
        return whole if self.rank is None else whole[32 * self.rank : 32 * self.rank + 32]

    def train(self, start: int, stop: int) -> Loop:
        for step in range(start, stop):
            rows = torch.randint(0, len(INPUTS), (64,), generator=torch.Generator().manual_seed(step))
            self.optimizer.zero_grad()
            cross_entropy(self.called(self.mine(INPUTS[rows].double())), self.mine(TARGETS[rows])).backward()
            self.optimizer.step()
        return self

    def result(self) -> dict[str, Any]:
        ledger = self.watch.state_dict()["ledger"]
        del ledger["measured"]  # what the last reading cost here, until the processes agree on it at the next
        return {
            "history": [[reading.step, reading.values, reading.num_samples] for reading in self.watch.history],
            "alarms": [alarm.to_dict() for alarm in self.watch.alarm_log],
            "ledger": ledger,
            "why_no_twin": self.watch.why_no_twin,
        }


def planted(rank: int | None, folder: Path | None = None) -> dict[str, Any]:
    loop = Loop(rank, folder).train(0, 40)
    kill(loop.model)
    result = loop.train(40, 52).result()
    loop.watch.detach()
    return result


def budgeted(rank: int) -> dict[str, Any]:
    """With clocks of their own, the two must read the same metrics at the same steps; else they would wait forever."""
    return Loop(rank, every=2, budget=0.3).train(0, 40).result()


def both(rank: int, folder: Path) -> dict[str, Any]:
    return {
        "planted": planted(rank, folder),
        "budgeted": budgeted(rank),
        "eval": in_eval_mode(rank),
        "join": joined(rank),
    }


def in_eval_mode(rank: int) -> str:
    loop = Loop(rank, every=1)
    loop.called.eval()
    try:
        loop.train(0, 1)
    except pliant.IllegalConfiguration as error:
        return str(error)
    return "no error"


def joined(rank: int) -> str:
    loop = Loop(rank, every=1)
    try:
        with loop.called.join():
            loop.train(0, 1)
    except pliant.IllegalConfiguration as error:
        return str(error)
    return "no error"
