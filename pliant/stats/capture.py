"""The activations of every unit group on one batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pliant.stats.reader import TapReader
from pliant.units.export import as_call, canonical_names, plain_attention
from pliant.units.graph import UnitGraph
from pliant.units.several import Models, as_module, joined

__all__ = ["capture", "listening", "named_tensors"]


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

    Example:
        >>> import torch, pliant
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> from pliant.stats import capture
        >>> inputs = torch.randn(16, 4)
        >>> act_NU = capture(model, pliant.find_units(model, inputs), inputs)["0"]
        >>> torch.equal(act_NU, model[:2](inputs))
        True
    """
    model, inputs = joined(model, inputs)
    tensors = named_tensors(model)
    readers = [
        TapReader(group, units.replays.get(group.name), tensors, members=members is not None)
        for group in units.select(where)
        if group.tap is not None
    ]
    args, kwargs = as_call(inputs)
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with listening(model, readers) as found, torch.no_grad(), torch.random.fork_rng(), plain_attention():
            model(*args, **kwargs)
    finally:
        for module, flag in flags:
            module.training = flag
    return {name: pieces[0] if len(pieces) == 1 else torch.cat(pieces, -2) for name, pieces in found.items()}


@contextlib.contextmanager
def listening(
    model: nn.Module, readers: Sequence[TapReader], *, with_graph: bool = False
) -> Iterator[dict[str, list[Tensor]]]:
    """Hear what units do in the forward passes inside, whoever runs them.

    Args:
        model: The model.
        readers: One for each group.
        with_graph: Keep the activations as the forward pass made them, to be differentiated; else copies.

    Yields:
        A mapping that fills: group name to activations ``[N, U]`` or ``[S, N, U]``, one for each run of the module.
    """
    found: dict[str, list[Tensor]] = {}
    handles = []
    for reader in readers:
        module = model.get_submodule(reader.tap.module)
        hear = _hearer(found, reader, with_graph)
        if reader.tap.kind == "input":
            handles.append(
                module.register_forward_pre_hook(
                    lambda _, args, kwargs, hear=hear: hear((args, kwargs)), with_kwargs=True
                )
            )
        else:
            handles.append(module.register_forward_hook(lambda _, __, output, hear=hear: hear(output)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _hearer(found: dict[str, list[Tensor]], reader: TapReader, with_graph: bool) -> Callable[[Any], None]:
    def hear(seen: Any) -> None:
        act = reader.matrix(reader.live(seen)) if with_graph else reader.matrix(reader.value(seen)).clone()
        found.setdefault(reader.group.name, []).append(act)

    return hear
