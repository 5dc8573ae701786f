"""The model's own tensors and its optimizer's state, fitted to a model that has grown or been renamed since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from pliant.errors import IllegalConfiguration
from pliant.optimizer_state import MomentSpec, fresh_entries
from pliant.saving.fit import extended
from pliant.saving.names import Renames, plain, shape_text
from pliant.saving.report import Carried, LoadReport

__all__ = ["fitted_model", "fitted_optimizer"]


def fitted_model(
    saved: Mapping[str, Any], current: Mapping[str, Any], names: Renames, torn: frozenset[str]
) -> tuple[dict[str, Any], LoadReport]:
    """A ``state_dict`` for the model as it is: saved entries where there are any, its own ones elsewhere.

    Args:
        saved: The ``state_dict`` that was saved.
        current: That of the model as it is.
        names: What has been renamed.
        torn: Tensors whose leading entries are not those of the saved tensor.
    """
    theirs = {names.new(plain(name)): (name, value) for name, value in saved.items()}
    found: dict[str, Any] = {}
    lines: list[Carried] = []
    for key, fresh in current.items():
        old, value = theirs.pop(plain(key), (None, None))
        found[key] = fresh
        if old is None:
            lines.append(Carried("the model", key, "new"))
        elif not isinstance(fresh, Tensor) or not isinstance(value, Tensor) or value.shape == fresh.shape:
            found[key] = value
            same = names.new(plain(old)) == plain(old)
            lines.append(Carried("the model", key, "kept") if same else Carried("the model", key, "renamed", f"{old}"))
        else:
            why = f"{shape_text(value.shape)} then, {shape_text(fresh.shape)} now"
            merged = None if plain(key) in torn else extended(value, fresh)
            found[key] = fresh if merged is None else merged
            lines.append(Carried("the model", key, "re-initialised" if merged is None else "extended", why))
    lines += [Carried("the model", old, "dropped") for old, _ in theirs.values()]
    return found, LoadReport(tuple(lines))


def fitted_optimizer(
    saved: Mapping[str, Any],
    optimizer: Optimizer,
    *,
    saved_names: Sequence[Sequence[str]],
    own_names: Sequence[Sequence[str]],
    names: Renames,
    torn: frozenset[str],
    of: str,
    declared: MomentSpec = None,
) -> tuple[dict[str, Any], LoadReport]:
    """A ``state_dict`` for the optimizer as it is; entries of weights that are new are those of new weights.

    A parameter whose state cannot be carried over has none, as before its first step: its optimizer makes it then.

    Args:
        saved: The ``state_dict`` that was saved.
        optimizer: The optimizer as it is, of the model with its new weights.
        saved_names: For each parameter group, the names of its parameters when it was saved.
        own_names: The same now.
        names: What has been renamed.
        torn: As for :func:`fitted_model`.
        of: What the optimizer is called in the report.
        declared: Further moments, as the user has declared them.

    Raises:
        IllegalConfiguration: If the saved state is of another kind of optimizer, or its names are not known.
    """
    groups = saved.get("param_groups")
    if groups is None or [len(group["params"]) for group in groups] != [len(row) for row in saved_names]:
        raise IllegalConfiguration(
            "the saved optimizer is not the one that the handle's state was saved with: their parameters differ. Save "
            "model, optimizer and handle together, and load them together."
        )
    index_of = {
        names.new(plain(name)): index
        for group, row in zip(groups, saved_names, strict=True)
        for name, index in zip(row, group["params"], strict=True)
    }
    current = optimizer.state_dict()
    keys = {key for group in current["param_groups"] for key in group} - {"param_names"}
    if missing := keys - {key for group in groups for key in group}:
        raise IllegalConfiguration(
            f"the saved optimizer has no option {sorted(missing)[0]!r}, which {type(optimizer).__name__} has: it was "
            "another kind of optimizer. Leave it out (optimizer=None), so that its state begins anew."
        )
    lines: list[Carried] = []
    state: dict[int, dict[str, Any]] = {}
    for number, (own, row) in enumerate(zip(current["param_groups"], own_names, strict=True)):
        parameters = optimizer.param_groups[number]["params"]
        for index, name, parameter in zip(own["params"], row, parameters, strict=True):
            old = index_of.pop(plain(name), None)
            if old is None:
                lines.append(Carried(of, name, "new"))
                continue
            entries = saved["state"].get(old)
            if not entries:  # no step has been taken yet
                continue
            fitted = _entries(entries, optimizer, parameter, plain(name) in torn, declared)
            if fitted is None:
                lines.append(Carried(of, name, "re-initialised", "its state does not fit its shape"))
                continue
            state[index], is_same = fitted
            lines.append(Carried(of, name, "kept" if is_same else "extended"))
    lines += [Carried(of, name, "dropped") for name in index_of]
    options = [dict(group) for group in current["param_groups"]]
    if len(groups) == len(options):
        for mine, theirs in zip(options, groups, strict=True):
            mine.update({key: value for key, value in theirs.items() if key not in ("params", "param_names")})
    else:
        lines.append(
            Carried(of, "options", "re-initialised", f"{len(groups)} parameter groups then, {len(options)} now")
        )
    return {"state": state, "param_groups": options}, LoadReport(tuple(lines))


def _entries(
    entries: Mapping[str, Any], optimizer: Optimizer, parameter: Tensor, torn: bool, declared: MomentSpec
) -> tuple[dict[str, Any], bool] | None:
    """What an optimizer keeps for one parameter; ``None`` if it cannot be carried over."""
    found: dict[str, Any] = {}
    is_same = True
    for key, value in entries.items():
        if not isinstance(value, Tensor) or value.ndim == 0 or value.shape == parameter.shape:
            found[key] = value
            continue
        fresh = None if torn else fresh_entries(optimizer, parameter, key, declared)
        merged = None if fresh is None else extended(value, fresh.to(value.dtype))
        if merged is None:
            return None
        found[key], is_same = merged, False
    return found, is_same
