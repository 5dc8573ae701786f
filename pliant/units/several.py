"""Several modules as one: an actor and its critics are traced together, so that what they share is seen whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from pliant.errors import IllegalConfiguration
from pliant.units.export import Inputs, as_call
from pliant.units.inputs import check_kind

__all__ = ["Models", "Several", "as_module", "joined"]

Models = nn.Module | Mapping[str, nn.Module]
"""A module, or several by name."""


class Several(nn.Module):
    """Named modules side by side; its forward calls each with inputs of its own.

    It exists so that parameters which two modules share (one trunk, a tied matrix) are followed through both, and
    every tensor has one name, ``"actor.fc1.weight"``. The modules themselves are not changed and do not know of it.
    Nobody calls it in training, so no hook may sit on it; hooks belong on the modules and what is inside them.

    Args:
        modules: Name to module. The names become prefixes.

    Raises:
        IllegalConfiguration: For an empty mapping, a value that is no module, or a name that cannot be a prefix.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if not modules:
            raise IllegalConfiguration("the mapping of models is empty: pass {'actor': actor, 'critic': critic}.")
        for name, module in modules.items():
            if not isinstance(module, nn.Module):
                raise IllegalConfiguration(f"models[{name!r}] is a {type(module).__name__}, not an nn.Module.")
            if not isinstance(name, str) or not name.isidentifier() or hasattr(self, name):
                raise IllegalConfiguration(
                    f"{name!r} cannot name a model: names become prefixes of unit names, so use words such as 'actor'."
                )
            self.add_module(name, module)

    def forward(self, calls: Mapping[str, tuple[tuple[Any, ...], dict[str, Any]]]) -> dict[str, Any]:
        """Call every module.

        Args:
            calls: Name to the positional and keyword arguments of that module.

        Returns:
            Name to that module's output.
        """
        return {name: self.get_submodule(name)(*args, **kwargs) for name, (args, kwargs) in calls.items()}


def as_module(model: Models) -> nn.Module:
    """The module itself, or several as one.

    Raises:
        IllegalConfiguration: If it is neither a module nor a mapping of modules.
    """
    if isinstance(model, Mapping):
        return Several(model)
    if not isinstance(model, nn.Module):
        raise IllegalConfiguration(
            f"the model is of type {type(model).__name__}, not an nn.Module or a mapping of names to modules."
        )
    return model


def joined(model: Models, example_inputs: Any) -> tuple[nn.Module, Inputs]:
    """One module and its inputs, whether one or several were given.

    Args:
        model: A module, or a mapping of names to modules.
        example_inputs: Inputs of the module; for a mapping, name to the inputs of that module.

    Raises:
        IllegalConfiguration: If the names of the inputs are not those of the modules.

    Example:
        >>> import torch
        >>> actor, critic = torch.nn.Linear(3, 1), torch.nn.Bilinear(3, 1, 1)
        >>> obs, act = torch.randn(2, 3), torch.randn(2, 1)
        >>> model, inputs = joined({"actor": actor, "critic": critic}, {"actor": obs, "critic": (obs, act)})
        >>> {name: tuple(value.shape) for name, value in model(*inputs).items()}
        {'actor': (2, 1), 'critic': (2, 1)}
    """
    module = as_module(model)
    if not isinstance(module, Several):
        return module, example_inputs
    names = list(module._modules)
    if not isinstance(example_inputs, Mapping) or set(example_inputs) != set(names):
        given = (
            ", ".join(map(repr, example_inputs))
            if isinstance(example_inputs, Mapping)
            else f"a {type(example_inputs).__name__}"
        )
        raise IllegalConfiguration(
            f"example_inputs of several models is a mapping with the same names ({', '.join(map(repr, names))}); "
            f"given: {given or 'nothing'}. For example {{{names[0]!r}: (x,), ...}}."
        )
    for name in names:
        check_kind(example_inputs[name], f" of {name!r}")
    return module, ({name: as_call(example_inputs[name]) for name in names},)
