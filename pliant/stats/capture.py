"""The activations of every unit group on one batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pliant.stats.reader import TapReader
from pliant.units.export import as_call, canonical_names, plain_attention
from pliant.units.graph import UnitGraph
from pliant.units.several import Models, as_module, joined

__all__ = ["capture", "named_tensors"]


def named_tensors(model: Models) -> dict[str, Tensor]:
    """Parameters and buffers by canonical name (tied tensors once)."""
    model = as_module(model)
    tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensors[name] for name in dict.fromkeys(canonical_names(model).values())}


def capture(
    model: Models, units: UnitGraph, inputs: Any, *, members: int | None = None, where: str = "*"
) -> dict[str, Tensor]:
    """Run one batch in evaluation mode and return what the units did.

    No gradient is computed and nothing is recorded by attached interventions or monitors; the mode and the random
    state are restored.

    Args:
        model: The model, or the mapping of models that the units were found in.
        units: Its unit graph.
        inputs: A tensor, a tuple of positional inputs, or a mapping of keyword inputs; for several models, a mapping
            from their names to the inputs of each.
        members: Number of members if the model is a stack of them.
        where: Which groups; those without a tap are left out.

    Returns:
        Group name to activations ``[N, U]`` (``[S, N, U]`` for a stack): batch, time and space are samples. A
        module that runs several times adds the samples of each run.
    """
    model, inputs = joined(model, inputs)
    tensors = named_tensors(model)
    found: dict[str, list[Tensor]] = {}
    handles = []
    for group in units.select(where):
        if group.tap is None:
            continue
        reader = TapReader(group, units.replays.get(group.name), tensors, members=members is not None)
        module = model.get_submodule(group.tap.module)
        if group.tap.kind == "input":
            handles.append(module.register_forward_pre_hook(_on_input(found, reader), with_kwargs=True))
        else:
            handles.append(module.register_forward_hook(_on_output(found, reader)))
    args, kwargs = as_call(inputs)
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad(), torch.random.fork_rng(), plain_attention():
            model(*args, **kwargs)
    finally:
        for module, flag in flags:
            module.training = flag
        for handle in handles:
            handle.remove()
    return {name: pieces[0] if len(pieces) == 1 else torch.cat(pieces, -2) for name, pieces in found.items()}


def _on_input(found: dict[str, list[Tensor]], reader: TapReader) -> Any:
    def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
        found.setdefault(reader.group.name, []).append(reader.matrix(reader.value((args, kwargs))).clone())

    return hook


def _on_output(found: dict[str, list[Tensor]], reader: TapReader) -> Any:
    def hook(_: nn.Module, __: Any, output: Any) -> None:
        found.setdefault(reader.group.name, []).append(reader.matrix(reader.value(output)).clone())

    return hook
