"""Norms before the activations (Lyle et al., 2023): put into the model when it is attached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

from torch import nn
from torch.optim import Optimizer

from pliant.errors import IllegalConfiguration
from pliant.insertion import insert_normalization
from pliant.interventions.base import Context, Intervention
from pliant.search import Choice, Domain

__all__ = ["InsertNormalization"]


@final
@dataclass(frozen=True)
class InsertNormalization(Intervention):
    r"""Put a layer norm or a batch norm behind every layer whose output goes into an activation.

    .. math:: h \mapsto \operatorname{norm}(h) \quad \text{or, with a gate,} \quad h + g\,(\operatorname{norm}(h) - h)

    Args:
        kind: ``"layer"`` or ``"batch"``; ``None``: nothing (a no-op).
        gate: Whether there is a gate :math:`g`, a trained number per layer that starts at 0, so that the function is
            the old one at first.
        where: Which unit groups, a pattern of the names that they have before.

    State:
        None. The norms and gates are parameters of the model, in its ``state_dict`` and in the optimizers.

    Edits:
        The model, once, at ``attach``: see :func:`pliant.insertion.insert_normalization` for the names.

    Deviations from the published code:
        None of the papers puts norms into a network that is being trained. A layer norm without a gate changes the
        function at that moment; a batch norm keeps it in evaluation mode, a gate in both.

    Source:
        Lyle et al., Understanding Plasticity in Neural Networks (2023), arXiv:2303.01486; Lyle et al. (2024),
        arXiv:2402.18762.

    Raises:
        IllegalConfiguration: At ``attach``, for an option out of range, or where a named group has no place for a norm.
        NotYetSupported: At ``attach``, for a batch norm where there can be none.
        NoEffect: At ``attach``, if there is no place for a norm.

    Example:
        >>> InsertNormalization(gate=True).null()
        InsertNormalization(kind=None, gate=True, where='*')
    """

    kind: str | None = "layer"
    gate: bool = False
    where: str = "*"

    changes_model: ClassVar[bool] = True
    source: ClassVar[str] = "Lyle et al. 2023"
    search: ClassVar[Mapping[str, Domain]] = {"kind": Choice(("layer", "batch")), "gate": Choice((False, True))}
    defaults: ClassVar[Mapping[str, str]] = {
        "kind": "the papers: layer norm",
        "gate": "the papers: none",
        "where": "before all activations, as in the papers",
    }

    def null(self) -> InsertNormalization:
        """Nothing is put in."""
        return replace(self, kind=None)

    def surgery_with(self, model: nn.Module, optimizers: Sequence[Optimizer], example_inputs: Any) -> None:
        """Put the norms in."""
        if self.kind not in (None, "layer", "batch"):
            raise IllegalConfiguration(f"InsertNormalization: kind={self.kind!r}; it must be 'layer', 'batch' or None.")
        if self.kind is not None:
            insert_normalization(
                model,
                self.kind,
                example_inputs=example_inputs,
                optimizers=optimizers,
                gate="trained" if self.gate else None,
                where=self.where,
            )

    def next_step(self, ctx: Context) -> int:
        """Never: all is done at ``attach``."""
        return ctx.clock.next(None)
