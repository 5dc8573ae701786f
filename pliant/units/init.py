"""How each parameter was initialised, so that a reset draws a unit from the distribution it was born from."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from pliant.errors import IllegalConfiguration
from pliant.units.adapters import adapter_fills
from pliant.units.export import canonical_names
from pliant.units.recorded_init import recorded_fills

__all__ = ["NAMED", "Init", "InitSpec", "directions", "initialisers"]


@dataclass(frozen=True)
class Init:
    """A distribution of initial values, the same for every entry of a tensor.

    Attributes:
        kind: ``"constant"``, ``"uniform"`` (on ``[-scale, scale]``) or ``"normal"`` (mean 0, deviation ``scale``).
        scale: The constant, the bound or the standard deviation.
        padding: For an embedding with ``padding_idx``: that row, which starts at zero and is never trained.
    """

    kind: Literal["constant", "uniform", "normal"]
    scale: float
    padding: int | None = None

    @property
    def mean_square(self) -> float:
        """Expected square of one entry."""
        return self.scale**2 / (3 if self.kind == "uniform" else 1)

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Fresh values, float32 on the generator's device.

        Args:
            shape: Shape of the result.
            generator: Where the randomness comes from; constants take none.

        Example:
            >>> Init("uniform", 0.5).draw((100,), torch.Generator().manual_seed(0)).abs().max() <= 0.5
            tensor(True)
        """
        if self.kind == "constant":
            return torch.full(shape, self.scale, device=generator.device)
        if self.kind == "uniform":
            drawn = torch.rand(shape, generator=generator, device=generator.device)
            return drawn.mul_(2 * self.scale).sub_(self.scale)
        return torch.randn(shape, generator=generator, device=generator.device).mul_(self.scale)


InitSpec = str | Mapping[str, str | Init] | None


def _fans(tensor: Tensor) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight in PyTorch's layout, as ``torch.nn.init`` counts them."""
    receptive = math.prod(tensor.shape[2:])
    return tensor.shape[1] * receptive, tensor.shape[0] * receptive


_RELU_GAIN = math.sqrt(2.0)

NAMED: dict[str, Callable[[int, int], Init]] = {
    "kaiming_uniform": lambda fan_in, _: Init("uniform", _RELU_GAIN * math.sqrt(3 / fan_in)),
    "kaiming_normal": lambda fan_in, _: Init("normal", _RELU_GAIN / math.sqrt(fan_in)),
    "xavier_uniform": lambda fan_in, fan_out: Init("uniform", math.sqrt(6 / (fan_in + fan_out))),
    "xavier_normal": lambda fan_in, fan_out: Init("normal", math.sqrt(2 / (fan_in + fan_out))),
    "lecun_uniform": lambda fan_in, _: Init("uniform", math.sqrt(3 / fan_in)),
    "lecun_normal": lambda fan_in, _: Init("normal", math.sqrt(1 / fan_in)),
    "torch_default": lambda fan_in, _: Init("uniform", math.sqrt(1 / fan_in)),
    "zeros": lambda _, __: Init("constant", 0.0),
    "ones": lambda _, __: Init("constant", 1.0),
}
"""Initialisations by name: ``(fan_in, fan_out)`` to a distribution. Kaiming uses the gain of ReLU, sqrt(2)."""

_CONSTANTS = ("zeros", "ones")


def initialisers(
    model: nn.Module, init: InitSpec = None, *, members: bool = False, inputs_first: Collection[str] = ()
) -> dict[str, Init | None]:
    """The initial distribution of every parameter and floating-point buffer.

    Args:
        model: The model.
        init: ``None``: what PyTorch's own ``reset_parameters`` draws for the module that owns the tensor, and in a
            Hugging Face model what its ``_init_weights`` draws (``initializer_range``, scaled residual projections,
            T5's factors), see :mod:`pliant.units.recorded_init`, and in LoRA adapters what ``peft`` does. A name of
            :data:`NAMED`: that distribution for every matrix and kernel, zero for their biases. A mapping from patterns
            of tensor names to names: the first that matches; ``"zeros"`` and ``"ones"`` also serve bare vectors, such
            as a learned scale. Instead of a name, an :class:`Init` holds for every entry of the tensors that match.
        members: The tensors carry a leading dimension of ensemble members, which no fan counts.
        inputs_first: Matrices stored as inputs x outputs (``x @ W``), whose fans are exchanged.

    Returns:
        Canonical tensor name to its distribution; ``None`` where it is not known (a bare parameter of a module that
        is not PyTorch's own).

    Raises:
        IllegalConfiguration: If ``init`` names no known initialisation or a pattern matches nothing.
    """
    canonical = canonical_names(model)
    tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    result: dict[str, Init | None] = {}
    recorded = {**recorded_fills(model), **adapter_fills(model)}
    for name in dict.fromkeys(canonical.values()):
        path, _, leaf = _PARAMETRIZED.sub(r"\1", name).rpartition(".")
        result[name] = _of_module(model.get_submodule(path), leaf, tensors[name], members)
        if name in recorded:
            fill = recorded[name]
            result[name] = None if fill is None else Init(*fill)
    if init is not None:
        _apply(init, model, tensors, result, members, inputs_first)
    _set_lengths(tensors, result)
    _set_padding(model, canonical, result)
    return result


_PARAMETRIZED = re.compile(r"parametrizations\.(\w+)\.original\d*")
_LENGTHS = (("parametrizations.weight.original0", "parametrizations.weight.original1"), ("weight_g", "weight_v"))


def directions(names: Collection[str]) -> frozenset[str]:
    """The tensors that weight normalisation divides by their length: a row of zeros in them has no direction."""
    return frozenset(
        name.removesuffix(length) + direction
        for name in names
        for length, direction in _LENGTHS
        if name.endswith(length) and name.removesuffix(length) + direction in names
    )


def _set_lengths(tensors: Mapping[str, Tensor], result: dict[str, Init | None]) -> None:
    """Weight normalisation starts with the length of each fresh row: the root mean square of it is drawn instead."""
    for name in result:
        for length, direction in _LENGTHS:
            other = name.removesuffix(length) + direction
            if name.endswith(length) and (drawn := result.get(other)) is not None:
                count = tensors[other].numel() / tensors[name].numel()
                result[name] = Init("constant", math.sqrt(count * drawn.mean_square))


def _set_padding(model: nn.Module, canonical: Mapping[str, str], result: dict[str, Init | None]) -> None:
    """The padding row of an embedding gets no gradient: what a draw puts there would stay for ever."""
    for path, module in model.named_modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.padding_idx is not None:
            weight = f"{path}.weight" if path else "weight"
            name = canonical.get(weight, weight)
            if (init := result.get(name)) is not None:
                result[name] = replace(init, padding=module.padding_idx)


def _apply(
    init: str | Mapping[str, str | Init],
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    result: dict[str, Init | None],
    members: bool,
    inputs_first: Collection[str],
) -> None:
    """Overwrite what the user's ``init`` names."""
    rules: dict[str, str | Init] = {"*": init} if isinstance(init, str) else dict(init)
    for pattern, choice in rules.items():
        if not isinstance(choice, Init) and choice not in NAMED:
            raise IllegalConfiguration(f"there is no initialisation {choice!r}; known are: {', '.join(NAMED)}.")
        if not any(fnmatch.fnmatchcase(name, pattern) for name in result):
            raise IllegalConfiguration(f"init={{{pattern!r}: ...}} matches no parameter of the model.")
    for name in result:
        chosen = next((value for pattern, value in rules.items() if fnmatch.fnmatchcase(name, pattern)), None)
        path, _, leaf = _PARAMETRIZED.sub(r"\1", name).rpartition(".")
        module = model.get_submodule(path)
        if chosen is None or isinstance(module, _NORMS):
            continue
        if isinstance(chosen, Init):
            result[name] = chosen
            continue
        tensor = tensors[name][0] if members else tensors[name]
        if chosen in _CONSTANTS:  # of any shape: scales and offsets that are bare parameters
            result[name] = NAMED[chosen](1, 1)
        elif tensor.ndim >= 2:
            matrix = tensor.mT if name in inputs_first else tensor
            if matrix.ndim == 3 and not isinstance(module, nn.modules.conv._ConvNd):
                matrix = matrix[0]  # stacked experts [experts, outputs, inputs]: each has fans of its own
            result[name] = NAMED[chosen](*_fans(matrix))
        elif "bias" in leaf or leaf.startswith("b"):
            result[name] = Init("constant", 0.0)


_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def _of_module(module: nn.Module, leaf: str, tensor: Tensor, members: bool) -> Init | None:
    """What ``module.reset_parameters`` draws for its tensor ``leaf``."""
    if isinstance(module, _NORMS):
        ones = leaf in ("weight", "running_var")
        return Init("constant", 1.0 if ones else 0.0)
    if isinstance(module, nn.MultiheadAttention):
        if leaf.endswith("weight"):
            return NAMED["xavier_uniform"](*_fans(tensor))
        return Init("constant", 0.0)
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear) and leaf == "bias":
        return Init("constant", 0.0)  # the output projection of nn.MultiheadAttention
    own = ("weight", "bias", "weight_v", "weight_orig", "bias_orig")  # not the mask of a pruned layer
    if (isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) or members) and leaf in own:
        weight: Tensor = module.weight  # type: ignore[assignment]  # stacked members are linear layers
        fan_in = _fans(weight[0] if members else weight)[0]
        return Init("uniform", 1 / math.sqrt(fan_in) if fan_in else 0.0)
    if isinstance(module, nn.Bilinear):
        return Init("uniform", 1 / math.sqrt(module.weight.shape[1]))
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return Init("normal", 1.0)
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return Init("uniform", 1 / math.sqrt(module.hidden_size))
    if isinstance(module, nn.PReLU):
        return Init("constant", 0.25)
    return None
