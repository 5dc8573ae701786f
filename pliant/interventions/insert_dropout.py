"""Dropout behind the activations (Srivastava et al., 2014): put into the model when it is attached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

from torch import nn
from torch.optim import Optimizer

from pliant.insertion import insert_dropout
from pliant.interventions.base import Context, Intervention, require
from pliant.search import Domain, Range

__all__ = ["InsertDropout"]


@final
@dataclass(frozen=True)
class InsertDropout(Intervention):
    r"""Put dropout between the activations of hidden units and the layers that read them.

    In training each entry is zeroed with probability :math:`p`, and the others are divided by :math:`1 - p`; in
    evaluation mode the network is the old one.

    Args:
        p: :math:`p` in [0, 1); ``0`` is a no-op.
        where: Which unit groups, a pattern of the names that they have before.

    State:
        None. The masks come from PyTorch's global generator, as those of ``torch.nn.Dropout`` do.

    Edits:
        The model, once, at ``attach``: see :func:`pliant.insertion.insert_dropout` for the names.

    Source:
        Srivastava et al., Dropout (2014), JMLR 15; a baseline of most studies of plasticity.

    Raises:
        IllegalConfiguration: At ``attach``, for ``p`` out of range, or where a named group has no place for it.
        NoEffect: At ``attach``, if there is no place for it.

    Example:
        >>> InsertDropout(0.2).null()
        InsertDropout(p=0.0, where='*')
    """

    p: float = 0.1
    where: str = "*"

    changes_model: ClassVar[bool] = True
    source: ClassVar[str] = "Srivastava et al. 2014"
    search: ClassVar[Mapping[str, Domain]] = {"p": Range(0.01, 0.5)}
    defaults: ClassVar[Mapping[str, str]] = {
        "p": "a choice of this library: weaker than the 0.5 of the source, which slows learning from a stream",
        "where": "all hidden units",
    }

    def null(self) -> InsertDropout:
        """Nothing is put in."""
        return replace(self, p=0.0)

    def surgery_with(self, model: nn.Module, optimizers: Sequence[Optimizer], example_inputs: Any) -> None:
        """Put the dropout in."""
        require(0 <= self.p < 1, self, "p", "in [0, 1)")
        if self.p > 0:
            insert_dropout(model, self.p, example_inputs=example_inputs, where=self.where, optimizers=optimizers)

    def next_step(self, ctx: Context) -> int:
        """Never: all is done at ``attach``."""
        return ctx.clock.next(None)
