"""Example inputs that cannot be right, told apart before the model fails on them in its own words."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pliant.errors import IllegalConfiguration
from pliant.units.export import as_call

__all__ = ["check_inputs", "check_kind"]

_HOW = "Pass one small batch as the training loop passes it: (x,), a tuple of positional inputs, or a dict of keywords"


def check_kind(example_inputs: Any, whose: str = "") -> None:
    """Refuse a bare number or array.

    Args:
        example_inputs: What was given.
        whose: For messages, for example ``" of 'critic'"``.

    Raises:
        IllegalConfiguration: If it is no tensor, tuple, list or mapping.
    """
    if not isinstance(example_inputs, (Tensor, tuple, list, Mapping)):
        kind = type(example_inputs).__name__
        raise IllegalConfiguration(f"the example inputs{whose} are of type {kind}, not a tensor. {_HOW}.")


def check_inputs(model: nn.Module, example_inputs: Any, whose: str = "") -> None:
    """Refuse inputs that do not fit a module's signature or device.

    Args:
        model: The module.
        example_inputs: A tensor, a tuple or list of positional inputs, or a mapping of keyword inputs; the inputs
            themselves may be nested.
        whose: For messages, for example ``" of 'critic'"``.

    Raises:
        IllegalConfiguration: For a bare number, an array or an unknown dataclass, for arguments that ``forward`` does
            not take or lacks, and for tensors on another device than the parameters.
    """
    check_kind(example_inputs, whose)
    args, kwargs = as_call(example_inputs)
    _check_signature(model, args, kwargs, whose)
    leaves = [(_path(path), leaf) for path, leaf in pytree.tree_flatten_with_path((args, kwargs))[0]]
    for path, leaf in leaves:
        if type(leaf).__module__ == "numpy":
            raise IllegalConfiguration(
                f"example input {path}{whose} is a NumPy {type(leaf).__name__}; pass torch.as_tensor(...) of it."
            )
        if dataclasses.is_dataclass(leaf):
            kind = type(leaf).__name__
            raise IllegalConfiguration(
                f"example input {path}{whose} is a {kind}, whose tensors cannot be seen: call "
                f"torch.export.register_dataclass({kind}) first, or pass dicts, tuples and lists."
            )
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1:
        return
    (home,) = devices
    for path, leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.device != home and leaf.ndim > 0:
            raise IllegalConfiguration(
                f"example input {path}{whose} is on {leaf.device}, but the model is on {home}: move it there first."
            )


def _check_signature(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], whose: str) -> None:
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        hint = f"{_HOW}."
        if kwargs:
            hint = (
                "A dict gives keyword arguments; a model whose input is itself a dict takes example_inputs=(the_dict,)."
            )
        raise IllegalConfiguration(
            f"the example inputs{whose} do not fit {type(model).__name__}.forward: {error}. {hint}"
        ) from error
    except ValueError:  # a forward without a Python signature
        return


def _path(path: tuple[Any, ...]) -> str:
    """``0['image']`` for the entry ``image`` of the first positional input."""
    first = path[1] if len(path) > 1 else path[0]
    return f"{getattr(first, 'key', getattr(first, 'idx', first))}" + pytree.keystr(path[2:])
