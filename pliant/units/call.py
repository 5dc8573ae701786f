"""Running a model on another state than its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

__all__ = ["call_with", "distinct"]


def call_with(model: nn.Module, state: Mapping[str, Tensor], args: Any, kwargs: Any) -> Any:
    """Call a model with other parameters and buffers; its own are back in place afterwards.

    ``torch.func.functional_call`` alone leaves a module that is registered under two names with the other state: it
    swaps it twice and restores it once. Here each module's tensors are swapped under one name only.

    Args:
        model: The model.
        state: Canonical name to tensor; what is not named keeps its own value. Modules that update buffers in place
            write into these tensors.
        args: Positional inputs.
        kwargs: Keyword inputs.

    Returns:
        The model's output.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> twice, weight = nn.Sequential(layer, layer), layer.weight
        >>> call_with(twice, {"0.weight": torch.eye(2), "0.bias": torch.ones(2)}, (torch.zeros(1, 2),), {}).tolist()
        [[2.0, 2.0]]
        >>> layer.weight is weight
        True
    """
    first: dict[int, str] = {}  # the canonical name of a tensor is its first one
    for source in (model.named_parameters(), model.named_buffers()):
        for name, tensor in source:
            first.setdefault(id(tensor), name)
    places = {
        f"{prefix}.{leaf}" if prefix else leaf: tensor
        for prefix, module in model.named_modules()  # each module once
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }
    full = {place: state[first[id(tensor)]] for place, tensor in places.items() if first[id(tensor)] in state}
    return torch.func.functional_call(model, full, args, kwargs, tie_weights=False)


def distinct(inputs: Any) -> Any:
    """Nested inputs in which no tensor occurs twice; repeated ones are copied.

    ``torch.export`` takes two inputs that are the same tensor for one: the graph then reads only the last of them.

    Args:
        inputs: Any nesting of tuples, lists and dicts.
    """
    seen: set[int] = set()

    def own(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and id(leaf) in seen:
            return leaf.clone()
        seen.add(id(leaf))
        return leaf

    return pytree.tree_map(own, inputs)
