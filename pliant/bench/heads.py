"""New output layers, for streams whose definition asks for them at a task boundary."""

from __future__ import annotations

import torch
from torch import nn

from pliant.bench.cohorts import Cohort
from pliant.bench.streams.base import generator
from pliant.errors import IllegalConfiguration
from pliant.optimizer_state import moments
from pliant.units.init import initialisers

__all__ = ["head_of", "renew_head"]


def head_of(model: nn.Module) -> str:
    """The name of a model's output layer: ``"head"``, or the last module with parameters of its own.

    >>> head_of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    '2'
    """
    own = [name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))]
    if not own:
        raise IllegalConfiguration("a model without parameters has no output layer that could be renewed")
    return "head" if "head" in own else own[-1]


def renew_head(cohort: Cohort, task: int) -> None:
    """Give every member of a cohort a new output layer, and clear what its optimizer keeps of the old one.

    It starts as the layer did at first, drawn anew for each seed and task, or with zeros where the model's class says
    ``new_head = "zero"``.

    Args:
        cohort: whose.
        task: the task that begins.
    """
    model, seeds = cohort.model, cohort.seeds
    head = head_of(model)
    inits = initialisers(model, getattr(model, "init", None), members=cohort.stacked)
    to_zero = getattr(model, "new_head", "init") == "zero"
    generators = [torch.Generator().manual_seed(int(generator("head", seed, task).integers(2**63))) for seed in seeds]
    with torch.no_grad():
        for leaf, parameter in model.get_submodule(head).named_parameters(recurse=False):
            name = f"{head}.{leaf}" if head else leaf
            init = inits[name]
            if to_zero:
                parameter.zero_()
            elif init is None:
                raise IllegalConfiguration(f"the initial distribution of {name!r} is not known; a new one is asked for")
            else:
                shape = tuple(parameter.shape[1:]) if cohort.stacked else tuple(parameter.shape)
                drawn = [init.draw(shape, each) for each in generators]
                parameter.copy_(torch.stack(drawn) if cohort.stacked else drawn[0])
            for moment in moments(cohort.optimizer, parameter, name, None):
                if isinstance(moment.fresh, str):  # a copy of the weights
                    moment.value.copy_(parameter)
                else:
                    moment.value.fill_(moment.fresh)
