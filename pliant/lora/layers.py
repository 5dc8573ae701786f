"""The LoRA layers of a model: which tensors belong to each adapter, and what its components contribute."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pliant.errors import IllegalConfiguration, NoEffect, NotYetSupported
from pliant.units.adapters import is_adapter
from pliant.units.export import canonical_names

__all__ = ["Pair", "check_foldable", "check_peft", "contributions", "folded_delta", "pairs"]

LOWEST, BELOW = (0, 18), (1, 0)
"""The versions of peft that are known: from the first, below the second."""

_PLAIN = {"Linear": "linear", "Embedding": "embedding", "Conv1d": "conv", "Conv2d": "conv", "Conv3d": "conv"}
"""peft's layers over plain weights; those over quantised ones have classes of their own."""


@dataclass(frozen=True)
class Pair:
    """The two factors of one adapter on one layer. Names, not objects.

    Attributes:
        layer: Name of the module that has the adapter.
        adapter: The adapter's name.
        a: Name of the factor that reads the input, ``[rank, in, ...]``.
        b: Name of the factor that writes the output, ``[out, rank, ...]``.
        base: Name of the base weight; empty if it is no plain tensor (quantised).
        kind: ``"linear"``, ``"conv"`` or ``"embedding"``.
        rank: The number of components.

    Example:
        >>> pair = Pair("fc", "default", "fc.lora_A.weight", "fc.lora_B.weight", "fc.base_layer.weight", "linear", 8)
        >>> pair.rank
        8
    """

    layer: str
    adapter: str
    a: str
    b: str
    base: str
    kind: Literal["linear", "conv", "embedding"]
    rank: int


def check_peft(version: str | None = None) -> None:
    """Refuse a ``peft`` whose adapters are not known.

    Args:
        version: A version; ``None``: the one that is installed.

    Raises:
        NotYetSupported: Naming the version and the range.
        NoEffect: If it is not installed, so that no model can have its adapters.

    Example:
        >>> check_peft("0.21.2")
        >>> check_peft("0.3.0")
        Traceback (most recent call last):
        pliant.errors.NotYetSupported: peft 0.3.0 is not known to Pliant: use 0.18 or later, below 1.0...
    """
    if version is None:
        try:
            version = importlib.metadata.version("peft")
        except importlib.metadata.PackageNotFoundError:
            raise NoEffect(
                "peft is not installed, so no model can have its adapters: pip install 'pliant[lora]', and make the "
                "model with peft.get_peft_model(model, peft.LoraConfig(...))."
            ) from None
    parts = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in version.split(".")[:2])
    if not LOWEST <= parts < BELOW:
        low, high = (".".join(map(str, item)) for item in (LOWEST, BELOW))
        raise NotYetSupported(
            f"peft {version} is not known to Pliant: use {low} or later, below {high} (pip install 'peft>={low}')."
        )


def pairs(model: nn.Module) -> tuple[Pair, ...]:
    """Every adapter on every LoRA layer of a model, in the model's order.

    Args:
        model: A model made by ``peft.get_peft_model``, ``model.add_adapter`` of ``transformers``, or anything that
            contains one.

    Raises:
        NoEffect: If it has no LoRA layer.
        NotYetSupported: For an unknown version of ``peft``, and for layers with other factors than two (attention
            modules, stacked experts), by name.

    Example:
        >>> pairs(nn.Linear(2, 2))
        Traceback (most recent call last):
        pliant.errors.NoEffect: Linear has no LoRA layer of peft...
    """
    layers = {name: module for name, module in model.named_modules() if is_adapter(module)}
    if not layers:
        check_peft()
        raise NoEffect(
            f"{type(model).__name__} has no LoRA layer of peft. Make the model with peft.get_peft_model(model, "
            "peft.LoraConfig(...)) before attach."
        )
    check_peft()
    canonical = canonical_names(model)
    names = {id(tensor): canonical[name] for name, tensor in model.named_parameters(remove_duplicate=False)}
    found = []
    for layer, module in layers.items():
        for adapter in module.r:
            factors = _factors(module, str(adapter))
            if factors is None:
                raise NotYetSupported(
                    f"{layer!r} is a {type(module).__name__} of peft, whose adapters are no single pair of factors. "
                    "Leave it out of the adapter's target_modules."
                )
            a, b, kind = factors
            weight = getattr(_base(module), "weight", None)
            base = names.get(id(weight), "") if isinstance(weight, Tensor) else ""
            found.append(Pair(layer, str(adapter), names[id(a)], names[id(b)], base, kind, a.shape[0]))
    return tuple(found)


def _base(layer: Any) -> Any:
    return layer.get_base_layer()


def _factors(layer: Any, adapter: str) -> tuple[Tensor, Tensor, Any] | None:
    kind = _PLAIN.get(type(layer).__name__, "linear")
    if adapter in layer.lora_A and isinstance(getattr(layer.lora_A[adapter], "weight", None), Tensor):
        return layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, kind
    if adapter in layer.lora_embedding_A:
        return layer.lora_embedding_A[adapter], layer.lora_embedding_B[adapter], "embedding"
    return None


def contributions(a: Tensor, b: Tensor, scaling: float) -> Tensor:
    r"""How large the part of each component in the adapter's change of the weight is, ``[rank]``.

    .. math:: c_i = |s|\, \|b_i\|_2 \|a_i\|_2 = \| s\, b_i a_i^\top \|_F

    Args:
        a: ``[rank, in, ...]``.
        b: ``[out, rank, ...]``.
        scaling: :math:`s`, for plain LoRA ``lora_alpha / r``.

    Example:
        >>> contributions(torch.eye(2), torch.tensor([[3.0, 0.0], [4.0, 0.0]]), 2.0)
        tensor([10.,  0.])
    """
    size_a: Tensor = torch.linalg.vector_norm(a.flatten(1), dim=1)
    size_b: Tensor = torch.linalg.vector_norm(b.transpose(0, 1).flatten(1), dim=1)
    return size_a * size_b * abs(scaling)


def folded_delta(layer: Any, pair: Pair, a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    r"""What some components add to the base weight, of its shape: :math:`s \sum_{i} b_i a_i^\top`.

    Args:
        layer: The LoRA layer.
        pair: One of its adapters.
        a: Its first factor.
        b: Its second factor.
        mask: Which components, bool ``[rank]``.

    Example:
        >>> import peft
        >>> model = peft.get_peft_model(nn.Sequential(nn.Linear(3, 2)), peft.LoraConfig(r=2, target_modules=["0"]))
        >>> pair = pairs(model)[0]
        >>> a, b = model.get_parameter(pair.a).detach(), torch.ones(2, 2)
        >>> folded_delta(model.get_submodule(pair.layer), pair, a, b, torch.tensor([True, False])).shape
        torch.Size([2, 3])
    """
    wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    chosen = b.flatten(1).to(wide) * mask.to(wide)
    product: Tensor = (chosen @ a.flatten(1).to(wide)) * layer.scaling[pair.adapter]
    if pair.kind == "embedding" or getattr(layer, "fan_in_fan_out", False):
        product = product.T
    return product.reshape(_base(layer).weight.shape)


def check_foldable(layer: Any, pair: Pair, owners: Mapping[str, list[str]], *, shared_base: bool) -> None:
    """Refuse a layer in whose base weight a component cannot be folded without changing the function.

    Args:
        layer: The LoRA layer.
        pair: One of its adapters.
        owners: Every base weight's name to all names under which the model has it.
        shared_base: Whether adapters that are not active may be changed.

    Raises:
        NotYetSupported: For quantised or half-precision base weights, variants of LoRA, tied base weights, and grouped
            convolutions.
        IllegalConfiguration: If other adapters share the base weight.
    """
    where = f"RankRecycling: {pair.layer!r} (adapter {pair.adapter!r})"
    variant = getattr(layer, "lora_variant", {}).get(pair.adapter)
    if variant is not None or getattr(layer, "use_dora", {}).get(pair.adapter, False):
        kind = type(variant).__name__ if variant is not None else "DoRA"
        raise NotYetSupported(
            f"{where} is no plain LoRA but {kind}: its components are not added to the base weight one by one. Make "
            "the adapter without it, or leave the layer out with where=..."
        )
    if type(layer).__module__ != "peft.tuners.lora.layer" or type(layer).__name__ not in _PLAIN or not pair.base:
        raise NotYetSupported(
            f"{where} is a {type(layer).__module__}.{type(layer).__name__}: its base weight is quantised or split, and "
            "nothing can be added to it exactly. Pass fold=False (weak components are dropped), or a plain base."
        )
    weight: Tensor = _base(layer).weight
    if not weight.is_floating_point() or weight.dtype.itemsize < 4:
        raise NotYetSupported(
            f"{where} has a base weight of {weight.dtype}: what a weak component adds is smaller than its rounding, "
            "and would be lost. Load the base in float32, or pass fold=False (weak components are dropped)."
        )
    if getattr(_base(layer), "groups", 1) != 1:
        raise NotYetSupported(f"{where} is a grouped convolution. Leave it out with where=...")
    if len(owners[pair.base]) > 1:
        raise NotYetSupported(
            f"{where} has a base weight that is used elsewhere, too ({', '.join(owners[pair.base])}), where the fold "
            "would change the function. Leave it out with where=..., or untie it."
        )
    others = [name for name in layer.r if name != pair.adapter and name not in layer.active_adapters]
    if others and not shared_base:
        raise IllegalConfiguration(
            f"{where} shares its base weight with the adapters {', '.join(map(repr, others))}, which are not active: a "
            "fold would change what the model does with them. Give each a base of its own, delete them, or accept it "
            "with shared_base=True."
        )
