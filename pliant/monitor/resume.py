"""A monitor's saved state, fitted to the model as it is now: groups that have changed, modules that were renamed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from pliant.errors import IllegalConfiguration
from pliant.saving import Carried, LoadReport, OnMismatch, Renames, check_choice, extended

__all__ = ["fit_monitor"]


def fit_monitor(
    state: Mapping[str, Any],
    *,
    groups: Mapping[str, int],
    weights: Mapping[str, Any],
    tasks: Iterable[tuple[str, str]],
    on_mismatch: OnMismatch,
    renamed: Mapping[str, str] | None,
) -> tuple[dict[str, Any], LoadReport]:
    """What of a saved state belongs to the model as it is.

    The past of a unit group whose number of units has changed is kept in the history, and forgotten by the alarms:
    they begin to compare anew. What was measured at a fresh twin is that of the present model, if anything differs.

    Args:
        state: What was saved.
        groups: Unit group to its size now.
        weights: What the weight matrices were when the monitor was made: ``"initial"`` and ``"origin"``, by name.
        tasks: The heavy metrics and their places now.
        on_mismatch: ``"error"`` or ``"reinit_group"``.
        renamed: Old module name to its new one.

    Returns:
        A state that can be loaded, in which ``"twin"`` may be ``None``; and what became of every group.

    Raises:
        IllegalConfiguration: With ``"error"``, if unit groups differ; if no group fits at all.
    """
    check_choice(on_mismatch)
    names = Renames(renamed)
    names.check(
        (*state["groups"], *state["weights"]["initial"], *state["weights"]["origin"]),
        (*groups, *weights["initial"], *weights["origin"]),
    )
    lines = _compared(state["groups"], groups, names)
    report = LoadReport(tuple(lines))
    if on_mismatch == "error" and not report.is_complete:
        raise IllegalConfiguration(
            f"the monitor's state is of the unit groups {state['groups']}, and the model has {dict(groups)}. Load it "
            'with on_mismatch="reinit_group", which keeps what fits (and renamed={"old.module": "new.module"} for '
            "modules that have another name now), or start without loading it."
        )
    kept = {line.name for line in lines if line.outcome in ("kept", "renamed")}
    if state["groups"] and groups and not kept:
        raise IllegalConfiguration(
            f"no unit group of the monitor's state is in this model: it had {', '.join(state['groups'])}, and there "
            f"are {', '.join(groups)}. Is it another model's?"
        )
    changed = {names.new(name) for name in state["groups"]} | set(groups)

    def is_same(place: str) -> bool:
        return place in kept or place not in changed

    fitted = {**state, "history": _history(state["history"], names), "weights": _weights(state, weights, names)}
    fitted["current"] = {
        metric: {names.new(place): value for place, value in places.items() if is_same(names.new(place))}
        for metric, places in state["current"].items()
    }
    unheard = {names.new(name) for name in state["unheard"]}
    fitted["unheard"] = [name for name in groups if name in unheard or name not in kept]
    fitted["alarms"] = {
        "log": [_renamed_alarm(alarm, names) for alarm in state["alarms"]["log"]],
        "series": [
            [metric, names.new(place), {**item, "alarm": item["alarm"] and _renamed_alarm(item["alarm"], names)}]
            for metric, place, item in state["alarms"]["series"]
            if is_same(names.new(place))
        ],
    }
    here = {(metric, place) for metric, place in tasks}
    ledger = {
        key: [[m, names.new(place), *rest] for m, place, *rest in state["ledger"][key] if (m, names.new(place)) in here]
        for key in ("tasks", "measured")
    }
    fitted["ledger"] = {**state["ledger"], **ledger}
    if any(line.outcome != "kept" for line in lines):
        fitted["twin"] = None
    return fitted, report


def _compared(saved: Mapping[str, int], groups: Mapping[str, int], names: Renames) -> list[Carried]:
    old = {names.new(name): name for name in saved}
    lines = []
    for name, size in groups.items():
        if name not in old:
            lines.append(Carried("the monitor", name, "new"))
        elif saved[old[name]] != size:
            why = f"{saved[old[name]]} units then, {size} now"
            lines.append(Carried("the monitor", name, "re-initialised", why))
        elif old[name] != name:
            lines.append(Carried("the monitor", name, "renamed", f"it was {old[name]!r}"))
        else:
            lines.append(Carried("the monitor", name, "kept"))
    return lines + [Carried("the monitor", was, "dropped") for name, was in old.items() if name not in groups]


def _renamed_alarm(alarm: Mapping[str, Any], names: Renames) -> dict[str, Any]:
    return {**alarm, "where": names.new(alarm["where"])}


def _history(history: Mapping[str, Any], names: Renames) -> dict[str, Any]:
    def renamed(reading: Mapping[str, Any]) -> dict[str, Any]:
        values = {
            metric: {names.new(place): value for place, value in places.items()}
            for metric, places in reading["values"].items()
        }
        counts = {names.new(place): count for place, count in reading["num_samples"].items()}
        return {**reading, "values": values, "num_samples": counts}

    return {**history, **{part: [renamed(reading) for reading in history[part]] for part in ("old", "newest")}}


def _weights(state: Mapping[str, Any], weights: Mapping[str, Any], names: Renames) -> dict[str, Any]:
    """The beginning of a matrix that has grown: of its old entries that of then, of its new ones now."""
    theirs = {part: {names.new(name): value for name, value in state["weights"][part].items()} for part in weights}
    origin: dict[str, Tensor] = {}
    for name, own in weights["origin"].items():
        merged = extended(theirs["origin"][name], own) if name in theirs["origin"] else None
        origin[name] = own if merged is None else merged
    return {"initial": theirs["initial"], "origin": origin}
