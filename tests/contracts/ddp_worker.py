"""Jobs of one DistributedDataParallel process, and the same training in one process on the whole batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import pliant
from pliant.interventions import ContinualBackprop, ReDo, ReGraMa, SelfNormalizedReset, ShrinkAndPerturb

METHODS = {
    "continual_backprop": ContinualBackprop(0.01, maturity_threshold=20, decay_rate=0.9),
    "redo": ReDo(tau=0.5, every=10),
    "regrama": ReGraMa(tau=0.5, every=10),
    "self_normalized_reset": SelfNormalizedReset(0.5, initial_threshold=5, update_every=20, min_active=0.2),
    "shrink_and_perturb": ShrinkAndPerturb(0.99, 0.01, every=20),
}
QUICK = ContinualBackprop(0.05, maturity_threshold=3, decay_rate=0.9, decide_every=2)


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).double()


class TwoExperts(nn.Module):
    """Each batch goes through one of two branches, chosen by the caller."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = nn.Linear(5, 8), nn.Linear(4, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4)) for _ in range(2))
        self.used = (0, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.trunk(x))
        return self.head(torch.stack([self.experts[index](h) for index in self.used]).sum(0))


def two_experts() -> nn.Module:
    torch.manual_seed(0)
    return TwoExperts().double()


def batch(step: int, size: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(size, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (size,), generator=generator)


def halves(x: Tensor, y: Tensor, rank: int | None, cut: int | None = None) -> tuple[Tensor, Tensor]:
    """This rank's rows; rank 0 has the first ``cut``."""
    cut = len(x) // 2 if cut is None else cut
    rows = slice(None) if rank is None else slice(cut) if rank == 0 else slice(cut, None)
    return x[rows], y[rows]


class Run:
    """A training run: on one process (``rank=None``), or one of two that average their gradients."""

    def __init__(
        self,
        method: Any,
        rank: int | None,
        *,
        model: nn.Module | None = None,
        used: tuple[int, ...] | None = None,
        lr: float = 1e-2,
        **ddp: Any,
    ) -> None:
        self.model = model or build()
        units = pliant.find_units(self.model, torch.randn(4, 5).double())
        if used is not None:
            self.model.used = used
        self.rank, self.optimizer = rank, torch.optim.Adam(self.model.parameters(), lr=lr)
        self.called = self.model if rank is None else DistributedDataParallel(self.model, **ddp)
        self.handle = pliant.attach(self.called, self.optimizer, method, units=units, seed=5)

    def train(self, steps: int, *, cut: int | None = None, pieces: int = 1) -> Run:
        for step in range(steps):
            self.optimizer.zero_grad()
            for piece in range(pieces):
                x, y = halves(*batch(step * pieces + piece), self.rank, cut)
                waits = piece < pieces - 1 and self.rank is not None
                with self.called.no_sync() if waits else contextlib.nullcontext():
                    (nn.functional.cross_entropy(self.called(x), y) / pieces).backward()
            self.optimizer.step()
        return self

    def result(self) -> dict[str, Any]:
        state = {
            f"{index}.{name}.{key}": value
            for index, per_group in self.handle.state_dict()["state"].items()
            for name, entries in per_group.items()
            for key, value in entries.items()
        }
        events = [[e.step, e.group, list(e.units)] for e in self.handle.events]
        return {"model": dict(self.model.state_dict()), "events": events, "state": state}


def _ddp(rank: int | None, **arguments: Any) -> dict[str, Any]:
    return {} if rank is None else arguments


# Trained by two processes and, with rank=None, by one on the whole batch.
SAME: dict[str, Callable[[int | None], Run]] = {
    **{name: lambda rank, method=method: Run(method, rank).train(200) for name, method in METHODS.items()},
    "no_sync": lambda rank: Run(QUICK, rank).train(40, pieces=3),
    "static_graph": lambda rank: Run(QUICK, rank, **_ddp(rank, static_graph=True)).train(40),
    "bucket_view": lambda rank: Run(QUICK, rank, **_ddp(rank, gradient_as_bucket_view=True)).train(40),
    "unused": lambda rank: Run(
        QUICK, rank, model=two_experts(), used=(0,), **_ddp(rank, find_unused_parameters=True)
    ).train(40),
    # the weights stand still: only the statistics count, which are those of all samples, whoever had how many
    "uneven": lambda rank: Run(QUICK, rank, lr=0.0).train(3, cut=3),
}


def everything(rank: int, folder: Path) -> dict[str, Any]:
    results = {name: run(rank).result() for name, run in SAME.items()}
    # each process goes through its own expert, and sees no sample of the other one
    apart = Run(QUICK, rank, model=two_experts(), used=(rank,), find_unused_parameters=True).train(40)
    results["one_expert_each"] = apart.result()
    apart = Run(QUICK, rank, model=two_experts(), used=(rank,), lr=0.0, find_unused_parameters=True).train(3)
    results["one_expert_each_at_rest"] = apart.result()
    results["errors"] = {"eval": error_of(in_eval_mode), "join": error_of(joined)}
    return results


def error_of(train: Callable[[], None]) -> str:
    try:
        train()
    except pliant.IllegalConfiguration as error:
        return str(error)
    return "no error"


def in_eval_mode() -> None:
    run = Run(QUICK, 0)
    run.called.eval()
    run.train(1)


def joined() -> None:
    run = Run(QUICK, 0)
    with run.called.join():
        run.train(1)
