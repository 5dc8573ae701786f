"""What the editor's tests share: models in the middle of training, and which entries belong to which unit."""

from __future__ import annotations

from functools import cache

import torch
import zoo
from torch import Tensor
from zoo import ZOO

import pliant
from pliant.edit import Editor
from pliant.events import EventLog
from pliant.stats.capture import named_tensors
from pliant.units import UnitGraph
from pliant.units.init import initialisers

OPTIMIZERS = {
    "sgd_momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "adam_amsgrad": lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True),
    "adam_fused": lambda p: torch.optim.Adam(p, lr=1e-3, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-3),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1e-3),
    "adamax": lambda p: torch.optim.Adamax(p, lr=1e-3),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-3),
    "radam": lambda p: torch.optim.RAdam(p, lr=1e-3),
    "asgd": lambda p: torch.optim.ASGD(p, lr=1e-2, lambd=0.0, t0=2),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
    "adagrad_from_one": lambda p: torch.optim.Adagrad(p, lr=1e-3, initial_accumulator_value=1.0),
}


@cache
def units_of(name: str) -> UnitGraph:
    return pliant.find_units(ZOO[name].model(), ZOO[name].batch())


def trained(name: str, optimizer: str = "adam_amsgrad", steps: int = 3, dtype: torch.dtype = torch.float64):
    """A model in the middle of training, all its moments alive."""
    case = ZOO[name]
    dtype = torch.float32 if name == "hf_mixtral" else dtype  # its grouped products do not exist in float64
    model = case.model().to(dtype)
    opt = OPTIMIZERS[optimizer](model.parameters())
    for step in range(steps):
        opt.zero_grad()
        zoo.loss_of(zoo.call(model, double(case.batch(seed=step), dtype))).backward()
        opt.step()
    return model, opt


def double(batch, dtype: torch.dtype = torch.float64):
    return zoo.cast(batch, dtype)


def editor(model, optimizer, *, init=None, seed: int = 0) -> Editor:
    names = dict(model.named_parameters())
    return Editor(
        named_tensors(model), dict.fromkeys(names, optimizer), initialisers(model, init), (seed,),
        num_members=None, events=EventLog(),
    )  # fmt: skip


def mask_of(size: int) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[[0, size - 1]] = True
    return mask


def owned(group, name: str, shape, mask: Tensor) -> Tensor:
    """Which entries of a tensor belong to the masked units of a group."""
    found = torch.zeros(shape, dtype=torch.bool)
    for piece in group.slices:
        if piece.name == name:
            where = torch.tensor(piece.table)[mask].flatten()
            piece.within(found).movedim(piece.dim, 0)[where] = True
    return found


def state_tensors(optimizer, parameter) -> dict[str, Tensor]:
    return {k: v for k, v in optimizer.state[parameter].items() if torch.is_tensor(v) and v.shape == parameter.shape}


def train_mlp(model, optimizer, steps, first=0):
    for step in range(first, first + steps):
        optimizer.zero_grad()
        zoo.loss_of(zoo.call(model, double(ZOO["mlp"].batch(seed=step)))).backward()
        optimizer.step()
