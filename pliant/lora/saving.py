"""Models whose base weights have taken in components of an adapter: the adapter alone is not enough any more.

``save_pretrained`` of ``peft`` writes the adapter and no base weights. Loaded onto the original base, it would be
another model, and nobody would be told. So the layers are marked, and a guard stands before ``save_pretrained``.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pliant.errors import IllegalConfiguration
from pliant.sharded import whole
from pliant.units.adapters import is_adapter

__all__ = ["BASE_FILE", "fingerprint", "folded_weights", "guard", "load_folded", "mark", "save_folded"]

BASE_FILE = "pliant_base.pt"
"""The base weights that have taken in components, beside the adapter's own files."""

Saving = Literal["refuse", "beside"]

_MARK = "_pliant_folded"
_VERSION = 1
_POINTS = 256


def mark(layer: nn.Module) -> None:
    """Note that the base weight of a LoRA layer has taken in components.

    Args:
        layer: The layer.
    """
    layer.__dict__[_MARK] = True


def folded_weights(model: nn.Module) -> dict[str, Tensor]:
    """The base weights that have taken in components of an adapter, by name: what an adapter's files lack.

    Args:
        model: The model with its adapters. After ``merge_and_unload()`` it has none, and nothing is missing.

    Example:
        >>> folded_weights(nn.Linear(2, 2))
        {}
    """
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    layers = [module for module in model.modules() if is_adapter(module) and module.__dict__.get(_MARK, False)]
    weights = [layer.get_base_layer().weight for layer in layers]  # type: ignore[operator]
    return {names[id(weight)]: weight for weight in weights}


def guard(model: nn.Module, saving: Saving) -> None:
    """Stand before every ``save_pretrained`` in a model.

    Args:
        model: The model.
        saving: ``"refuse"``: an error while base weights are folded; ``"beside"``: they are written, too.
    """
    for module in model.modules():
        if hasattr(type(module), "save_pretrained"):
            module.__dict__["save_pretrained"] = partial(_guarded, module, saving)


def _guarded(module: Any, saving: Saving, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
    folded = folded_weights(module)
    if folded and saving == "refuse":
        raise IllegalConfiguration(
            f"save_pretrained writes the adapter alone, but RankRecycling has folded components into {len(folded)} "
            "base weights: loaded onto the original base, it would be another model. Use "
            "pliant.lora.save_folded(model, directory), and load_folded after loading; or save the whole model "
            "(merge_and_unload().save_pretrained, or torch.save(model.state_dict())); or "
            'RankRecycling(saving="beside"), which writes the base weights into the same folder.'
        )
    result = type(module).save_pretrained(module, save_directory, *args, **kwargs)
    if folded and kwargs.get("is_main_process", True):
        _write(folded, Path(save_directory))
    return result


def _write(weights: dict[str, Tensor], folder: Path) -> None:
    values = {name: whole(weight).detach().cpu().clone() for name, weight in weights.items()}
    torch.save({"version": _VERSION, "weights": values}, folder / BASE_FILE)


def save_folded(model: nn.Module, directory: str | Path, **kwargs: Any) -> None:
    """Save adapters together with the base weights that have taken in components of them.

    Args:
        model: The ``PeftModel``.
        directory: Where ``save_pretrained`` writes the adapters' files; ``BASE_FILE`` comes beside them. It holds
            the folded layers' whole base weights, not the difference, so that loading it twice does no harm.
        **kwargs: For ``save_pretrained``.

    Raises:
        IllegalConfiguration: If the model has no ``save_pretrained``.

    Example:
        >>> import tempfile, peft
        >>> model = peft.get_peft_model(nn.Sequential(nn.Linear(3, 2)), peft.LoraConfig(r=2, target_modules=["0"]))
        >>> folder = tempfile.mkdtemp()
        >>> save_folded(model, folder)
        >>> load_folded(model, folder)  # nothing has been folded yet
        ()
    """
    if not hasattr(type(model), "save_pretrained"):
        raise IllegalConfiguration(f"{type(model).__name__} has no save_pretrained: pass the PeftModel itself.")
    type(model).save_pretrained(model, str(directory), **kwargs)  # type: ignore[attr-defined]
    _write(folded_weights(model), Path(directory))


def load_folded(model: nn.Module, directory: str | Path) -> tuple[str, ...]:
    """Put the base weights that :func:`save_folded` has written into a model that has the adapters already.

    Args:
        model: ``PeftModel.from_pretrained(base, directory, is_trainable=True)``, or the model as it was made at first.
        directory: What was saved.

    Returns:
        The names of the base weights; the guard before ``save_pretrained`` stands again.

    Raises:
        IllegalConfiguration: If there is no such file, or it is of another model; nothing has been changed then.

    Example:
        >>> load_folded(nn.Linear(2, 2), "no such folder")
        Traceback (most recent call last):
        pliant.errors.IllegalConfiguration: ...pliant_base.pt does not exist: write it with pliant.lora.save_folded...
    """
    path = Path(directory) / BASE_FILE
    if not path.exists():
        raise IllegalConfiguration(f"{path} does not exist: write it with pliant.lora.save_folded(model, directory).")
    saved = torch.load(path, weights_only=True, map_location="cpu")
    if saved.get("version") != _VERSION:
        raise IllegalConfiguration(f"{path} has format {saved.get('version')!r}; this version reads {_VERSION}.")
    weights: dict[str, Tensor] = saved["weights"]
    mine = dict(model.named_parameters())
    for name, value in weights.items():
        if name not in mine or mine[name].shape != value.shape:
            there = f"of shape {tuple(mine[name].shape)}" if name in mine else "missing"
            raise IllegalConfiguration(
                f"{path} has {name!r} of shape {tuple(value.shape)}, which is {there} in this model: it belongs to "
                "another model, or the adapters are not there yet."
            )
    with torch.no_grad():
        for name, value in weights.items():
            mine[name].copy_(value)
    for module in model.modules():
        if is_adapter(module) and any(module.get_base_layer().weight is mine[name] for name in weights):  # type: ignore[operator]
            mark(module)
    if weights:
        guard(model, "refuse")
    return tuple(weights)


def fingerprint(weight: Tensor) -> Tensor:
    """Some entries of a weight, evenly spread, float64: a component that is folded in changes nearly all of them.

    Args:
        weight: A plain tensor.
    """
    flat = weight.detach().flatten()
    places = torch.linspace(0, flat.numel() - 1, min(_POINTS, flat.numel()), dtype=torch.float64)
    return flat[places.round().long().to(flat.device)].double()
