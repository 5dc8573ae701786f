"""Networks, tasks and comparisons that the tests of probes share."""

from __future__ import annotations

import copy
import random

import numpy as np
import torch
from torch import Tensor, nn


def network(width: int = 24, *, seed: int = 0) -> nn.Sequential:
    """A small network with everything that a probe could disturb: dropout, running statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 4)
        )


def plain(width: int = 24, *, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))


def inputs(count: int = 64, *, seed: int = 0) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


def damaged(share: float, *, width: int = 24) -> nn.Sequential:
    """A network in which a share of the hidden units is dead for every input."""
    model = plain(width)
    with torch.no_grad():
        model[0].bias[: round(share * width)] = -100.0
    return model


def everything(model, *optimizers):
    """Copies of all that belongs to the user: values, gradients, modes, hooks, moments, random states."""
    return copy.deepcopy(
        {
            "values": {name: tensor.detach().clone() for name, tensor in model.state_dict().items()},
            "versions": [tensor._version for tensor in (*model.parameters(), *model.buffers())],
            "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
            "requires_grad": [p.requires_grad for p in model.parameters()],
            "modes": [module.training for module in model.modules()],
            "hooks": [
                (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()
            ],
            "attributes": [sorted(vars(module)) for module in model.modules()],
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "hooks of optimizers": [len(optimizer._optimizer_step_post_hooks) for optimizer in optimizers],
            "random": [torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()],
            "settings": [torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()],
        }
    )


def is_same(a, b) -> bool:
    """Equal to the bit, whatever it is nested in."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(is_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(is_same(x, y) for x, y in zip(a, b, strict=True))
    return a == b
