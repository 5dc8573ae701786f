"""What is read where the optimizer steps: gradients, weights, and how far the step moved them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant import metrics
from pliant.errors import IllegalConfiguration
from pliant.sharded import is_sharded, whole
from pliant.units.group import UnitGroup
from pliant.write import Writer

__all__ = ["Around", "Weights"]

_MAX_ENTRIES = 2**16

Values = dict[str, dict[str, Tensor]]


def _some(tensor: Tensor) -> Tensor:
    """Up to 65,536 entries of a tensor, evenly spread, as a copy."""
    flat = whole(tensor).flatten()
    return flat[:: -(-flat.numel() // _MAX_ENTRIES)].clone()


class Around:
    """Reads the gradients and the update of one optimizer's parameters, at the steps that are sampled.

    Args:
        optimizer: The optimizer.
        names: Metrics that are wanted.
        matrices: The model's weight matrices that this optimizer owns, by name.
        groups: The unit groups whose first incoming tensor it owns.
        writer: Knows which entries belong to which unit.

    Attributes:
        values: What was read at the latest sampled step: metric to place to scalar.
        seconds: Time spent since :meth:`listen`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        names: Sequence[str],
        matrices: Mapping[str, Tensor],
        groups: Sequence[UnitGroup],
        writer: Writer,
    ) -> None:
        self.optimizer, self._matrices, self._groups, self._writer = optimizer, matrices, groups, writer
        self._wants_update = "update_to_weight_ratio" in names and bool(matrices)
        self._wants_norm = "gradient_norm" in names
        self._wants_units = "gradient_dormant_fraction" in names
        self._before: dict[str, Tensor] = {}
        self._hook: Any = None
        self.values: Values = {}
        self.seconds = 0.0

    def listen(self) -> None:
        """The coming step is sampled."""
        self.values, self._before, self.seconds = {}, {}, 0.0
        if self._wants_update and self._hook is None:  # a hook that stayed would cost something at every step
            self._hook = self.optimizer.register_step_pre_hook(self._copy)

    def _copy(self, *_: Any) -> None:
        began = time.perf_counter()
        with torch.no_grad():
            self._before = {name: _some(matrix) for name, matrix in self._matrices.items()}
        self.seconds += time.perf_counter() - began

    @torch.no_grad()
    def read(self) -> None:
        """Right after a sampled step: ``.grad`` is what it was made of, unscaled, summed over micro-batches."""
        began = time.perf_counter()
        found: Values = {}
        gradients = {
            id(p): (p.grad.to_dense() if p.grad.is_sparse else p.grad).detach()
            for group in self.optimizer.param_groups
            for p in group["params"]
            if p.grad is not None and p.grad.numel()
        }
        if self._wants_norm and gradients:
            found["gradient_norm"] = {"model": metrics.gradient_norm([whole(g) for g in gradients.values()])}
        if self._wants_units:
            found["gradient_dormant_fraction"] = self._of_units(gradients)
        if self._before:
            before = self._before
            after = {name: _some(self._matrices[name]) for name in before}
            ratios = {name: metrics.update_to_weight_ratio([before[name]], [after[name]]) for name in before}
            found["update_to_weight_ratio"] = ratios
        self._before, self.values = {}, found
        self.seconds += time.perf_counter() - began

    def _of_units(self, gradients: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """Of every group whose incoming weights have gradients: the share of units that receive hardly any."""
        found = {}
        for group in self._groups:
            pieces = group.role("incoming")
            matrices = [piece for piece in pieces if self._writer.tensors[piece.name].ndim >= 2] or pieces
            total: Tensor | None = None
            for piece in matrices:
                gradient = gradients.get(id(self._writer.tensors[piece.name]))
                if gradient is not None:
                    sums = self._writer.sum_abs(piece, gradient)
                    total = sums if total is None else total + sums
            if total is not None:
                found[group.name] = metrics.gradient_dormant_fraction(total)
        return found

    def rest(self) -> None:
        """The step that was sampled is over."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


class Weights:
    """The size of the weight matrices, and how it compares with that at the beginning.

    Args:
        model: The model.
        names: Metrics that are wanted.

    Attributes:
        matrices: Parameters of two axes or more, by name.
        initial: Mean absolute value of each at the beginning.
        origin: Copies of them, if the distance is wanted.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.matrices = {name: p for name, p in model.named_parameters() if p.ndim >= 2 and p.numel()}
        self._names = names
        with torch.no_grad():
            self.initial: dict[str, float] = {}
            if "weight_growth" in names:
                self.initial = {name: float(value) for name, value in self._magnitudes().items()}
            self.origin: dict[str, Tensor] = {}
            if "distance_from_initialisation" in names:
                self.origin = {name: whole(matrix).clone() for name, matrix in self.matrices.items()}

    def check(self, model: nn.Module) -> None:
        """Refuse to go on where the model has other tensors than at the beginning: nothing true could be said of them.

        Raises:
            IllegalConfiguration: Naming the first of them.
        """
        now = dict(model.named_parameters())
        for name, matrix in self.matrices.items():
            if now.get(name) is not matrix and not is_sharded(matrix):  # those come and go with every forward
                raise IllegalConfiguration(
                    f"{name!r} of the model is not the tensor that the monitor was made with: a layer was replaced, or "
                    "load_state_dict(assign=True) was used. Detach the monitor, and make it anew."
                )

    def _magnitudes(self) -> dict[str, Tensor]:
        return {name: metrics.weight_magnitude([whole(matrix)]) for name, matrix in self.matrices.items()}

    @torch.no_grad()
    def light(self) -> Values:
        """Magnitude, growth, and how much is not finite."""
        found: Values = {}
        wanted = {"weight_magnitude", "weight_growth", "non_finite_fraction"}.intersection(self._names)
        if not wanted or not self.matrices:
            return found
        means = self._magnitudes()
        count = sum(matrix.numel() for matrix in self.matrices.values())
        mean = sum((means[name] * (m.numel() / count) for name, m in self.matrices.items()), start=_zero(means))
        if "weight_magnitude" in wanted:
            found["weight_magnitude"] = {"model": mean}
        if "weight_growth" in wanted:
            found["weight_growth"] = {
                name: means[name] / first if first else means[name] * torch.nan for name, first in self.initial.items()
            }
        if "non_finite_fraction" in wanted:  # a mean is NaN where an entry is not finite
            broken = [means[name].isnan() * (m.numel() / count) for name, m in self.matrices.items()]
            found["non_finite_fraction"] = {"model": sum(broken, start=_zero(means)).to(torch.float32)}
        return found

    @torch.no_grad()
    def distance(self) -> Tensor:
        """Distance of all matrices from where they were at the beginning."""
        now = [whole(self.matrices[name]) for name in self.origin]
        return metrics.distance_from_initialisation(now, list(self.origin.values()))

    def state_dict(self) -> dict[str, Any]:
        """What the weights were at the beginning: plain numbers and tensors."""
        return {"initial": dict(self.initial), "origin": {name: t.clone() for name, t in self.origin.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.initial = {name: state["initial"].get(name, value) for name, value in self.initial.items()}
        self.origin = {name: state["origin"].get(name, t).to(t.device) for name, t in self.origin.items()}


def _zero(values: Mapping[str, Tensor]) -> Tensor:
    return torch.zeros_like(next(iter(values.values())))
