"""The field's methods in miniature on a model that is sharded over two processes, and in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from catalogue import METHODS
from torch import nn

import pliant

# those that run the network on other weights need these whole, which a sharded model does not have
NAMES = [name for name in METHODS if name not in ("Dash", "Churn")]


def result(name: str, rank: int | None) -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    example = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(4, 5)
    units = pliant.find_units(model, example)
    if rank is not None:
        from torch.distributed.fsdp import fully_shard

        fully_shard(model[0])
        fully_shard(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    handle = pliant.attach(model, optimizer, METHODS[name], units=units, measure_change=example)
    for step in range(6):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(8, 5, generator=generator, dtype=torch.float64)
        x = x if rank is None else x[4 * rank : 4 * rank + 4]
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    tensors = dict(model.state_dict())
    for key, parameter in model.named_parameters():
        tensors |= {f"{kind} of {key}": value for kind, value in optimizer.state[parameter].items()}
    memory = handle.state_dict()["memory"]["0"]
    for kind in ("parameters", "snapshots"):
        for state, values in memory[kind].items():
            tensors |= {f"{state} of {key}": value for key, value in values.items()}
    return {
        "tensors": {
            key: value.full_tensor() if hasattr(value, "full_tensor") else value for key, value in tensors.items()
        },
        "events": [event.to_dict() for event in handle.events],
    }


def both(rank: int, folder: Path) -> dict[str, Any]:
    return {name: result(name, rank) for name in NAMES}
