"""Unit graphs of the plain model, for a model in which some modules have been put into wrappers since."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from pliant.units.graph import UnitGraph
from pliant.units.group import UnitGroup

__all__ = ["as_named_in"]

_WRAPPER = "_checkpoint_wrapped_module"
"""What torch's ``checkpoint_wrapper`` calls the module inside; its ``state_dict`` hides the name, too."""


def as_named_in(units: UnitGraph, model: nn.Module) -> UnitGraph:
    """The same units, with the names that their tensors and modules have in ``model``.

    The groups keep their own names, so that a state saved with activation checkpointing loads without it.

    Args:
        units: Units of the model, found before or after modules were wrapped for activation checkpointing.
        model: The model as it is now.
    """
    tensors = _new_names(name for name, _ in (*model.named_parameters(), *model.named_buffers()))
    modules = _new_names(name for name, _ in model.named_modules())
    if not tensors and not modules:
        return units
    return replace(
        units,
        groups=tuple(_renamed(group, tensors, modules) for group in units.groups),
        replays={
            name: replace(
                item,
                module=modules.get(item.module, item.module),
                names=tuple(tensors.get(tensor, tensor) for tensor in item.names),
            )
            for name, item in units.replays.items()
        },
        depths={tensors.get(name, name): depth for name, depth in units.depths.items()},
    )


def _new_names(names: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in names:
        parts = name.split(".")
        if _WRAPPER in parts:
            found[".".join(part for part in parts if part != _WRAPPER)] = name  # the module itself, not its wrapper
    return found


def _renamed(group: UnitGroup, tensors: dict[str, str], modules: dict[str, str]) -> UnitGroup:
    tap = group.tap
    return replace(
        group,
        slices=tuple(replace(piece, name=tensors.get(piece.name, piece.name)) for piece in group.slices),
        tap=tap and replace(tap, module=modules.get(tap.module, tap.module)),
    )
