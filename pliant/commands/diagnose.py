"""``pliant diagnose``: which mechanisms of lost plasticity a checkpoint shows."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, final

import tyro

from pliant.commands.base import Command, option
from pliant.commands.values import load_object
from pliant.errors import IllegalConfiguration

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from pliant.diagnosis import Diagnosis

__all__ = ["EXIT_CODES", "Diagnose"]

EXIT_CODES = {None: 0, "note": 0, "warning": 3, "severe": 4, "unknown": 5}
"""By the worst severity; ``"unknown"`` where nothing was found but not everything could be looked at."""


@final
@dataclass(frozen=True, kw_only=True)
class Diagnose(Command):
    """Say which mechanisms of lost plasticity a checkpoint shows, beside fresh twins on one batch.

    MODEL and BATCH are `my.module:function`, looked up from the current folder. The model's function makes the network
    (whose weights are then read from the checkpoint), the batch's returns what training passes: inputs and targets, or
    a dict with labels.

    The exit code is for automation: 0 nothing beyond notes, 3 a warning, 4 severe, 5 unknown (nothing was found, but
    something could not be looked at), 2 a mistake in the call.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "pliant diagnose checkpoint.pt --model mypackage.nets:make_model --batch mypackage.data:make_batch",
        "pliant diagnose model.safetensors --model nets:make --batch data:batch --html diagnosis.html",
    )
    positional: ClassVar[tuple[str, ...]] = ("checkpoint",)

    checkpoint: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")]
    """a state dict, or a dict with one under 'model'; from torch.save or safetensors"""
    model: Annotated[str, option("MODEL")]
    """what makes the network, as my.module:function"""
    batch: Annotated[str, option("BATCH")]
    """what makes the batch, as my.module:function"""
    loss: Annotated[str, option("LOSS")] = ""
    """the loss of outputs and targets, as my.module:function, or cross_entropy, mse, next_token"""
    units: Annotated[str, option("UNITS")] = ""
    """what declares the units of a model that cannot be exported: my.module:function of the model"""
    optimizer: Annotated[str, option("OPTIMIZER")] = ""
    """what trains the network, as my.module:function of the model; its state is read from the checkpoint, under
    'optimizer'. It tells whether frozen and cloned units would leave"""
    mode: Literal["train", "eval"] = "train"
    """mode in which the network and its twins run"""
    twins: int = 5
    """freshly initialised twins"""
    seed: int = 0
    """seed of the twins"""
    html: Annotated[str, option("FILE")] = ""
    """also write a page"""
    json: Annotated[str, option("FILE")] = ""
    """also write everything as JSON; - prints it instead of the page"""

    def run(self) -> int:
        """Load, look, print, and say by the exit code what was found."""
        from rich.console import Console

        from pliant.diagnosis.terminal import page

        found = self._diagnose()
        if self.html:
            _write(self.html, found.to_html())
        text = json.dumps(found.to_dict(), indent=2)
        if self.json == "-":
            print(text)
        else:
            if self.json:
                _write(self.json, text + "\n")
            Console(highlight=False).print(page(found))
        if found.severity in ("warning", "severe"):
            return EXIT_CODES[found.severity]
        return EXIT_CODES["unknown"] if found.verdict == "unknown" else 0

    def _diagnose(self) -> Diagnosis:
        from torch import nn

        from pliant.commands.checkpoints import load_into, read_state
        from pliant.diagnosis import diagnose

        state = read_state(self.checkpoint)
        model = _call(self.model)
        if not isinstance(model, nn.Module):
            raise IllegalConfiguration(f"{self.model}() returned {type(model).__name__}, not a torch.nn.Module")
        load_into(model, state, self.checkpoint)
        loss: Any = self.loss or None
        if ":" in self.loss:
            loss = load_object(self.loss)
        units = _call(self.units, model) if self.units else None
        return diagnose(
            model,
            _call(self.batch),
            loss,
            units=units,
            optimizer=self._optimizer(model),
            mode=self.mode,
            twins=self.twins,
            seed=self.seed,
        )

    def _optimizer(self, model: nn.Module) -> Optimizer | None:
        from torch.optim import Optimizer

        from pliant.commands.checkpoints import load_optimizer, read_optimizer

        if not self.optimizer:
            return None
        made = _call(self.optimizer, model)
        if not isinstance(made, Optimizer):
            raise IllegalConfiguration(
                f"{self.optimizer}(model) returned {type(made).__name__}, not a torch.optim.Optimizer"
            )
        state = read_optimizer(self.checkpoint)
        if state is None:
            print(
                f"{self.checkpoint} has no state of an optimizer: what it gathered before is not known.",
                file=sys.stderr,
            )
        else:
            load_optimizer(made, state, self.checkpoint)
        return made


def _call(name: str, *args: Any) -> Any:
    found = load_object(name)
    if not callable(found):
        raise IllegalConfiguration(f"{name} is no function, but {found!r:.80}")
    try:
        return found(*args)
    except Exception as error:  # the user's own code: whatever it raises is reported, not hidden
        raise IllegalConfiguration(f"{name}() raised {type(error).__name__}: {error}") from error


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise IllegalConfiguration(f"{path} cannot be written: {error.strerror}") from error
