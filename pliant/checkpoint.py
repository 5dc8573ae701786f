"""The handle's state in checkpoint formats that are no pickles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pliant.errors import IllegalConfiguration

__all__ = ["pack", "unpack"]

_KEY = "pliant"


def pack(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Split a handle's state into tensors and text, as ``safetensors`` stores them.

    Args:
        state: ``handle.state_dict()``.

    Returns:
        Tensors by name, each name beginning with ``pliant.``, so that they can go into one file with the model's; and
        metadata, one JSON string named ``pliant``.

    Example:
        >>> import torch
        >>> state = {"version": [3], "state": [{"fc1": {"age": torch.tensor([3, 3])}}], "random": {"cpu": [None]}}
        >>> tensors, metadata = pack(state)
        >>> tensors
        {'pliant.state.0.fc1.age': tensor([3, 3])}
        >>> unpack(tensors, metadata)["version"], unpack(tensors, metadata)["state"]
        ([3], [{'fc1': {'age': tensor([3, 3])}}])
    """
    tensors: dict[str, Tensor] = {}

    def without_tensors(tree: Any, name: str) -> Any:
        if isinstance(tree, Tensor):
            tensors[name] = tree.contiguous()
            return {"tensor": name}
        if isinstance(tree, Mapping):
            return {"dict": [[key, without_tensors(value, f"{name}.{key}")] for key, value in tree.items()]}
        if isinstance(tree, (list, tuple)):
            return [without_tensors(value, f"{name}.{index}") for index, value in enumerate(tree)]
        return tree

    text = json.dumps(without_tensors(state, _KEY))
    return tensors, {_KEY: text}


def unpack(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """The state that :func:`pack` split.

    Args:
        tensors: Its tensors; others are ignored.
        metadata: Its metadata.

    Raises:
        IllegalConfiguration: If the metadata is missing, or a tensor that it names.

    Example:
        >>> import torch, pliant
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> from pliant.checkpoint import pack, unpack
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> handle = pliant.attach(model, optimizer, pliant.ReDo(), example_inputs=torch.randn(3, 4))
        >>> _ = handle.load_state_dict(unpack(*pack(handle.state_dict())))
        >>> handle.detach()
    """
    if not metadata or _KEY not in metadata:
        raise IllegalConfiguration(
            f"the metadata has no entry {_KEY!r}: save both parts of pack(handle.state_dict()), for example "
            "save_file({**model.state_dict(), **tensors}, path, metadata=metadata)."
        )

    def with_tensors(tree: Any) -> Any:
        if isinstance(tree, list):
            return [with_tensors(value) for value in tree]
        if isinstance(tree, dict) and "dict" in tree:
            return {key: with_tensors(value) for key, value in tree["dict"]}
        if isinstance(tree, dict):
            if tree["tensor"] not in tensors:
                raise IllegalConfiguration(f"the tensor {tree['tensor']!r} of the handle's state is missing.")
            return tensors[tree["tensor"]]
        return tree

    state: dict[str, Any] = with_tensors(json.loads(metadata[_KEY]))
    return state
