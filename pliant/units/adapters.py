"""LoRA adapters of ``peft``: which modules have them, and how they are initialised.

Nothing of ``peft`` is imported: a model that has such modules has brought it along.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from pliant.units.export import canonical_names
from pliant.units.recorded_init import Fill

__all__ = ["adapter_fills", "is_adapter"]

_NO_FILLS: tuple[Fill | None, Fill | None] = (None, None)


def is_adapter(module: nn.Module) -> bool:
    """Whether a module is a layer with LoRA adapters.

    Args:
        module: Any module.
    """
    return any(cls.__name__ == "LoraLayer" and cls.__module__.startswith("peft.") for cls in type(module).__mro__)


def adapter_fills(model: nn.Module) -> dict[str, Fill | None]:
    """What the adapters of a model begin with, which is not what the model around them draws for its own layers.

    Plain LoRA draws ``A`` as ``nn.Linear`` draws its weight and sets ``B`` to zero; of an embedding it sets ``A`` to
    zero and draws ``B`` from a standard normal distribution.

    Args:
        model: Any module; it is not changed.

    Returns:
        Canonical tensor name to its fill; ``None`` where the adapter was made from the data or the base weights
        (``init_lora_weights="pissa"``, ``"eva"`` and others). Empty without adapters.
    """
    layers = {name: module for name, module in model.named_modules() if is_adapter(module)}
    if not layers:
        return {}
    ways, canonical = _ways(model), canonical_names(model)
    result: dict[str, Fill | None] = {}
    for name, layer in layers.items():
        parts: dict[str, Any] = dict(layer.named_parameters())
        for adapter in getattr(layer, "r", {}):
            way = ways.get(adapter, True)
            for first, second, make in (
                (f"lora_A.{adapter}.weight", f"lora_B.{adapter}.weight", _linear),
                (f"lora_embedding_A.{adapter}", f"lora_embedding_B.{adapter}", _embedding),
            ):
                if first in parts and second in parts:
                    fills = make(way, parts[first], parts[second])
                    result.update({f"{name}.{first}": fills[0], f"{name}.{second}": fills[1]})
            if f"lora_B.{adapter}.bias" in parts and way is not False:
                result[f"{name}.lora_B.{adapter}.bias"] = Fill("constant", 0.0)
    return {
        name.lstrip("."): fill for name, fill in result.items() if canonical.get(name.lstrip(".")) == name.lstrip(".")
    }


def _ways(model: nn.Module) -> dict[str, Any]:
    """Adapter name to its ``init_lora_weights``."""
    found: dict[str, Any] = {}
    for module in model.modules():
        configs = getattr(module, "peft_config", None)
        for adapter, config in configs.items() if isinstance(configs, dict) else ():
            found[adapter] = getattr(config, "init_lora_weights", True)
    return found


def _linear(way: Any, a: Tensor, b: Tensor) -> tuple[Fill | None, Fill | None]:
    bound = math.prod(a.shape[1:]) ** -0.5
    if way is True:
        return Fill("uniform", bound), Fill("constant", 0.0)
    if way is False:
        return Fill("uniform", bound), Fill("uniform", math.prod(b.shape[1:]) ** -0.5)
    if way == "gaussian":
        return Fill("normal", 1 / a.shape[0]), Fill("constant", 0.0)
    return _NO_FILLS


def _embedding(way: Any, a: Tensor, b: Tensor) -> tuple[Fill | None, Fill | None]:
    if way is False:
        return Fill("normal", 1.0), Fill("normal", 1.0)
    return (Fill("constant", 0.0), Fill("normal", 1.0)) if way in (True, "gaussian", "lora_ga") else _NO_FILLS
