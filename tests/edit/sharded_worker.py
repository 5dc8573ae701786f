"""The field's methods in miniature on a model that is sharded over two processes, and in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from catalogue import METHODS
from torch import nn

import pliant
from pliant.edit import Editor
from pliant.events import EventLog
from pliant.units.group import TensorSlice, UnitGroup
from pliant.units.init import Init

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


class Experts(nn.Module):
    """Three experts over two processes: the second has one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(3, 8, 6)), nn.Parameter(torch.randn(3, 8))
        self.v = nn.Parameter(torch.randn(3, 6, 4))


def experts(rank: int | None) -> dict[str, torch.Tensor]:
    """Every verb for units on the units of single experts, the weights sharded over the experts."""
    torch.manual_seed(0)
    model = Experts()
    if rank is not None:
        from torch.distributed.fsdp import fully_shard

        fully_shard(model)
    optimizer = torch.optim.Adam(model.parameters())
    rows, halves = tuple((u,) for u in range(4)), tuple((u, u + 4) for u in range(4))
    tensors = dict(model.named_parameters())
    for parameter in tensors.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    editor = Editor(
        tensors, dict.fromkeys(tensors, optimizer), dict.fromkeys(tensors, Init("uniform", 1.0)),
        (0,), num_members=None, events=EventLog(),
    )  # fmt: skip
    sums = {}
    for expert in range(3):
        pieces = (("w", -2, "incoming", halves, -3), ("b", -1, "incoming", halves, -2), ("v", -1, "outgoing", rows, -3))
        slices = tuple(TensorSlice(*piece, (at, expert)) for *piece, at in pieces)
        group = UnitGroup(f"experts.{expert}", 4, slices, "hidden", None, True)
        for piece in slices:
            sums[piece.label] = editor.writer.sum_abs(piece)
        editor.reset(group, torch.arange(4) == expert)
        editor.reset(group, torch.tensor([0.0, 0.5, 0.0, 0.25]), bias="init")
        editor.perturb(group, torch.arange(4) > 1, noise_scale=0.1, moments="zero")
        editor.scale(group, torch.linspace(0.5, 2, 4))
    for name, parameter in tensors.items():
        for kind, value in {"": parameter.detach(), **optimizer.state[parameter]}.items():
            sums[f"{kind} {name}"] = value.full_tensor() if hasattr(value, "full_tensor") else value
    return sums


def both(rank: int, folder: Path) -> dict[str, Any]:
    return {name: result(name, rank) for name in NAMES} | {"experts": experts(rank)}
