"""One rank of the distributed contract test; rank 0 also trains alone on both halves of every batch."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

import pliant
from pliant.interventions import ContinualBackprop, ReDo

METHODS = {
    "continual_backprop": ContinualBackprop(0.01, maturity_threshold=20, decay_rate=0.9),
    "redo": ReDo(tau=0.5, every=10),
}


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).double()


def train(method, rank: int | None):
    model = build()
    units = pliant.find_units(model, torch.randn(4, 5).double())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    called = model if rank is None else nn.parallel.DistributedDataParallel(model)
    handle = pliant.attach(called, optimizer, method, units=units, seed=5)
    for step in range(200):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 5, generator=generator, dtype=torch.float64)
        y = torch.randint(0, 3, (16,), generator=generator)
        if rank is not None:
            x, y = x[8 * rank : 8 * rank + 8], y[8 * rank : 8 * rank + 8]
        optimizer.zero_grad()
        nn.functional.cross_entropy(called(x), y).backward()
        optimizer.step()
    return {
        "model": {key: value.clone() for key, value in model.state_dict().items()},
        "events": [[e.step, e.group, list(e.units)] for e in handle.events],
        "state": {
            f"{name}.{key}": value
            for name, entries in handle.state_dict()["state"][0].items()
            for key, value in entries.items()
        },
    }


def eval_error() -> str:
    model = build()
    units = pliant.find_units(model, torch.randn(4, 5).double())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    wrapped = nn.parallel.DistributedDataParallel(model)
    pliant.attach(wrapped, optimizer, METHODS["continual_backprop"], units=units)
    wrapped.eval()
    wrapped(torch.randn(4, 5).double()).sum().backward()
    try:
        optimizer.step()
    except pliant.IllegalConfiguration as error:
        return str(error)
    return "no error"


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = {name: train(method, rank) for name, method in METHODS.items()}
    results["eval_error"] = {"events": [eval_error()] * 21, "model": {}, "state": {}}
    torch.save(results, folder / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    if rank == 0:
        alone = {name: train(method, None) for name, method in METHODS.items()}
        alone["eval_error"] = results["eval_error"]
        torch.save(alone, folder / "alone.pt")


if __name__ == "__main__":
    main()
