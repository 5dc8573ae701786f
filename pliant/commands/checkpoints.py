"""Reading a checkpoint without running anything that it brings along."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.errors import IllegalConfiguration

__all__ = ["load_into", "load_optimizer", "read_optimizer", "read_state"]

_KEYS = ("model", "state_dict", "model_state_dict")
_OPTIMIZER_KEYS = ("optimizer", "optimizer_state_dict", "optim")
_PREFIXES = ("module.", "_orig_mod.")
_SAFE = (
    "Save tensors alone, for example torch.save({'model': model.state_dict()}, path), or with safetensors; what else "
    "is in a pickle could run any code, so it is never loaded."
)
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def read_state(path: str) -> dict[str, Tensor]:
    """The model's tensors in a checkpoint.

    Args:
        path: A file of ``torch.save`` (a state dict, or a dict that has one under ``model``, ``state_dict`` or
            ``model_state_dict``), or one of safetensors.

    Raises:
        IllegalConfiguration: If there is no such file, it is damaged, it holds other objects than tensors and plain
            values, or no state dict is in it.
    """
    file = Path(path)
    if not file.is_file():
        raise IllegalConfiguration(f"there is no checkpoint {path}.")
    if file.suffix == ".safetensors":
        return _safetensors(file)
    found = _loaded(path)
    if isinstance(found, Mapping):
        inner = next((found[key] for key in _KEYS if isinstance(found.get(key), Mapping)), found)
        if inner and all(isinstance(value, Tensor) for value in inner.values()):
            return {str(name): value for name, value in inner.items()}
        has = ", ".join(map(repr, list(found)[:6])) or "nothing"
        raise IllegalConfiguration(
            f"{path} has no state dict: its keys are {has}. Save the model's under 'model', or alone."
        )
    raise IllegalConfiguration(f"{path} holds a {type(found).__name__}, not a state dict. {_SAFE}")


def _loaded(path: str) -> Any:
    """What ``torch.save`` wrote, as long as it is made of tensors and plain values."""
    try:
        return torch.load(Path(path), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise IllegalConfiguration(f"{path} holds objects other than tensors and plain values. {_SAFE}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise IllegalConfiguration(f"{path} is no checkpoint that torch.load can read: {said}") from error


def read_optimizer(path: str) -> Mapping[str, Any] | None:
    """The optimizer's state dict in a checkpoint of ``torch.save``, under ``optimizer``, ``optimizer_state_dict`` or
    ``optim``; ``None`` where there is none.
    """
    found = None if Path(path).suffix == ".safetensors" else _loaded(path)
    if not isinstance(found, Mapping):
        return None
    return next(
        (
            found[key]
            for key in _OPTIMIZER_KEYS
            if isinstance(found.get(key), Mapping) and {"state", "param_groups"} <= set(found[key])
        ),
        None,
    )


def load_optimizer(optimizer: Optimizer, state: Mapping[str, Any], path: str) -> None:
    """Put a state dict into an optimizer.

    Raises:
        IllegalConfiguration: If it is another optimizer's, by its groups, or by the shape of what it keeps.
    """
    try:
        optimizer.load_state_dict(dict(state))
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise IllegalConfiguration(
            f"{path} has the state of another optimizer than {type(optimizer).__name__}: {said}"
        ) from error
    for parameter, kept in optimizer.state.items():
        for key, value in kept.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                raise IllegalConfiguration(
                    f"{path} has the state of another optimizer: {key!r} has shape {tuple(value.shape)} for a "
                    f"parameter of shape {tuple(parameter.shape)}."
                )


def load_into(model: nn.Module, state: Mapping[str, Tensor], path: str) -> None:
    """Copy a state dict into a model; prefixes of DDP and of ``torch.compile`` are taken off.

    Raises:
        IllegalConfiguration: If names or shapes differ, naming them.
    """
    for prefix in _PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    mine = model.state_dict()
    missing, unexpected = [n for n in mine if n not in state], [n for n in state if n not in mine]
    if missing or unexpected:
        parts = [f"{what} {_some(names)}" for what, names in (("lacks", missing), ("has besides", unexpected)) if names]
        raise IllegalConfiguration(f"{path} is not of this model: it {' and '.join(parts)}.")
    wrong = [name for name, value in mine.items() if isinstance(value, Tensor) and value.shape != state[name].shape]
    if wrong:
        name = wrong[0]
        raise IllegalConfiguration(
            f"{path} is not of this model: {name!r} has shape {tuple(state[name].shape)} there and "
            f"{tuple(mine[name].shape)} here{f', and {len(wrong) - 1} more differ' if len(wrong) > 1 else ''}."
        )
    model.load_state_dict(dict(state))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more


def _safetensors(file: Path) -> dict[str, Tensor]:
    """The format is a length, a JSON header with types, shapes and places, and the bytes: nothing in it can run."""
    data = file.read_bytes()
    try:
        end = 8 + int.from_bytes(data[:8], "little")
        header: dict[str, Any] = json.loads(data[8:end])
        return {name: _tensor(data, end, entry) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise IllegalConfiguration(f"{file} is no whole safetensors file: {error}") from error


def _tensor(data: bytes, start: int, entry: Mapping[str, Any]) -> Tensor:
    dtype, shape = _DTYPES[entry["dtype"]], [int(size) for size in entry["shape"]]
    first, last = (start + int(place) for place in entry["data_offsets"])
    if last - first != math.prod(shape) * dtype.itemsize or not start <= first <= last <= len(data):
        raise ValueError("the places in its header do not fit")
    if first == last:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data[first:last]), dtype=dtype).reshape(shape)
