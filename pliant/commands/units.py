"""``pliant units``: what of a model would be protected, what not, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, final

import tyro

from pliant.commands.base import Command, option
from pliant.commands.values import load_object, parse_shape
from pliant.errors import IllegalConfiguration

if TYPE_CHECKING:
    from torch import nn

    from pliant.units.export import Inputs

__all__ = ["Units"]

_BATCH = 4


@final
@dataclass(frozen=True, kw_only=True)
class Units(Command):
    """Show the unit groups of a model: what can be measured and reset, what not, and why.

    MODEL is `my.module:factory`, looked up from the current folder. The factory takes no arguments and returns the
    model, or a pair of the model and its example inputs (a tensor, a tuple, or a dict of keywords).
    """

    examples: ClassVar[tuple[str, ...]] = (
        "pliant units mypackage.nets:make_model --input 3,32,32",
        "pliant units mypackage.nets:make_model_and_batch --verify",
    )
    positional: ClassVar[tuple[str, ...]] = ("model",)

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """the model, as my.module:factory"""
    input: Annotated[tuple[str, ...], option("SHAPE")] = ()
    """shape of one example without the batch dimension, one per input of the model (random floats are passed)"""
    verify: Annotated[bool, option()] = False
    """prove every group: permuting its units must not change the output; exit code 1 if it does"""

    def run(self) -> int:
        """Find, print, and verify if asked."""
        from pliant.units import find_units

        model, inputs = self._build()
        units = find_units(model, inputs)
        print(units)
        if not self.verify:
            return 0
        verification = units.verify(model, inputs)
        print(f"\n{verification}")
        print("\nevery group is proven" if verification.ok else "\nNOT proven; see above")
        return 0 if verification.ok else 1

    def _build(self) -> tuple[nn.Module, Inputs]:
        import torch
        from torch import nn

        shapes = [parse_shape(text) for text in self.input]
        found: Any = load_object(self.model)
        if not isinstance(found, nn.Module):
            if not callable(found):
                raise IllegalConfiguration(f"{self.model} is no function that returns a model, but {found!r:.80}")
            try:
                found = found()
            except Exception as error:  # the user's own code: whatever it raises is reported, not hidden
                raise IllegalConfiguration(f"{self.model}() raised {type(error).__name__}: {error}") from error
        model, inputs = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
        if not isinstance(model, nn.Module):
            raise IllegalConfiguration(
                f"{self.model}() returned {type(model).__name__}; it must return a torch.nn.Module, or a pair of a "
                "module and its example inputs"
            )
        if shapes:
            dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
            generator = torch.Generator().manual_seed(0)
            inputs = tuple(torch.randn(_BATCH, *shape, generator=generator).to(dtype) for shape in shapes)
        if inputs is None:
            raise IllegalConfiguration(
                f"{self.model} returned a model alone: say what it takes, for example --input 3,32,32, or let the "
                "factory return (model, example_inputs)"
            )
        return model, inputs
