"""A handle's saved state, fitted to what is attached now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from pliant.errors import IllegalConfiguration
from pliant.interventions.state import PerParameter, StateKind
from pliant.saving.names import Renames, plain, shape_text
from pliant.saving.report import Carried, LoadReport, Outcome
from pliant.sharded import is_sharded

__all__ = ["READABLE", "STATE_VERSION", "OnMismatch", "Present", "check_choice", "extended", "fit"]

STATE_VERSION = 4
READABLE = (3, STATE_VERSION)
"""Version 3 has no shapes, no times of resets and no quiet period."""

OnMismatch = Literal["error", "reinit_group"]

_NEEDED = ("version", "methods", "groups", "num_members", "schedules", "state", "memory", "random", "num_resets")
_SHOWN = 6


@dataclass(frozen=True)
class Present:
    """What is attached now.

    Attributes:
        state: What a handle made now would save.
        kinds: The state that each method declares.
        tensors: Unit group to the tensors in which its units lie.
        grown: Groups that have grown, and whose old units are known to come first.
    """

    state: Mapping[str, Any]
    kinds: Sequence[Mapping[str, StateKind]]
    tensors: Mapping[str, Sequence[str]]
    grown: frozenset[str] = frozenset()


def check_choice(on_mismatch: str) -> None:
    """Refuse anything but the two ways.

    Raises:
        IllegalConfiguration: Naming them.
    """
    if on_mismatch not in ("error", "reinit_group"):
        raise IllegalConfiguration(f'on_mismatch={on_mismatch!r}; it is "error" or "reinit_group".')


def fit(
    saved: Mapping[str, Any], present: Present, *, on_mismatch: OnMismatch, renamed: Mapping[str, str] | None
) -> tuple[dict[str, Any], LoadReport]:
    """What of a saved state belongs to what is attached now, in the form of a state of it.

    Args:
        saved: What was saved.
        present: What is attached.
        on_mismatch: ``"error"``: everything has to fit; ``"reinit_group"``: what does not fit begins anew.
        renamed: Old module name to its new one.

    Returns:
        A state that can be loaded as it is, and what became of every piece.

    Raises:
        IllegalConfiguration: If it is no state of a handle, of another version, of another number of members or
            optimizers; with ``"error"`` if anything differs; with ``"reinit_group"`` if nothing fits at all.
    """
    check_choice(on_mismatch)
    _check_form(saved, present.state)
    names = Renames(renamed)
    names.check(
        (*saved["groups"], *(plain(name) for name, _ in saved.get("tensors", ()))),
        (*present.state["groups"], *(plain(name) for name, _ in present.state["tensors"])),
    )
    work = _Fit(saved, present, names)
    state = work.all()
    report = LoadReport(tuple(work.lines))
    if on_mismatch == "error" and not report.is_complete:
        raise IllegalConfiguration(_said(report, names))
    if on_mismatch == "reinit_group" and saved["groups"] and not work.common:
        raise IllegalConfiguration(
            "no unit group of the saved state is in this model: it had "
            f"{', '.join(saved['groups'])}, and there {'are' if len(present.state['groups']) > 1 else 'is'} "
            f"{', '.join(present.state['groups']) or 'none'}. Is it another model's checkpoint? Name what was renamed "
            'with renamed={"old.module": "new.module"}, or start without loading it.'
        )
    return state, report


def _check_form(saved: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """What no choice can mend."""
    for key in _NEEDED:
        if not isinstance(saved, Mapping) or key not in saved:
            raise IllegalConfiguration(f"this is no state of a pliant handle: it has no {key!r}.")
    if saved["version"] not in READABLE:
        raise IllegalConfiguration(
            f"the saved state has format version {saved['version']}, and this version of Pliant reads "
            f"{' and '.join(map(str, READABLE))}. Load it with the version that saved it, or start without loading it."
        )
    if saved["num_members"] != mine["num_members"]:
        raise IllegalConfiguration(
            f"the saved state has a different number of members: {saved['num_members']} instead of "
            f"{mine['num_members']}. Attach with as many seeds as it was saved with."
        )
    if len(saved["schedules"]) != len(mine["schedules"]):
        raise IllegalConfiguration(
            f"the saved state belongs to {len(saved['schedules'])} optimizers; {len(mine['schedules'])} are attached."
        )


def _said(report: LoadReport, names: Renames) -> str:
    """What differs, and what to do."""
    found = [str(line) for line in report.differences]
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    text = f"the saved state does not fit what is attached. {'; '.join(found[:_SHOWN])}{more}. "
    dropped, new = (report.names(outcome, "unit groups") for outcome in ("dropped", "new"))
    if dropped and new:
        text += f'If {dropped[0]!r} is now {new[0]!r}, say renamed={{"old.module": "new.module"}}. '
    return text + (
        "Attach to the model, and with the methods, that it was saved with; or load it with "
        'on_mismatch="reinit_group", which keeps what fits and reports what begins anew.'
    )


def extended(saved: Tensor, fresh: Tensor) -> Tensor | None:
    """The saved entries, and fresh ones where the tensor has grown; ``None`` if it has not grown but changed.

    Example:
        >>> extended(torch.tensor([7, 8]), torch.zeros(3, dtype=torch.long))
        tensor([7, 8, 0])
    """
    if fresh.ndim != saved.ndim or is_sharded(saved) or is_sharded(fresh):
        return None
    if any(old > now for old, now in zip(saved.shape, fresh.shape, strict=True)):
        return None
    result = fresh.detach().clone()
    with torch.no_grad():
        result[tuple(slice(0, size) for size in saved.shape)] = saved.to(result)
    return result


@dataclass
class _Fit:
    """The work: one pass over the state of what is attached, filled from what was saved."""

    saved: Mapping[str, Any]
    present: Present
    names: Renames
    lines: list[Carried] = field(default_factory=list)
    common: set[str] = field(default_factory=set)

    def all(self) -> dict[str, Any]:
        """The fitted state."""
        mine, saved = self.present.state, self.saved
        self.old_groups = {self.names.new(name): name for name in saved["groups"]}
        self.old_tensors = {self.names.new(plain(name)): tuple(shape) for name, shape in saved.get("tensors", ())}
        self.shapes = {plain(name): tuple(shape) for name, shape in mine["tensors"]}
        changed = {name for name in mine["groups"] if not self._has_size(name)}
        self.torn = {
            plain(tensor) for name in changed - self.present.grown for tensor in self.present.tensors.get(name, ())
        }
        self._compare_groups()
        self._compare_tensors()
        state = {**mine, "num_boundaries": saved.get("num_boundaries", 0), "random": self._random()}
        pairs = self._methods()
        state["schedules"] = [
            self._schedule(theirs, own, pairs)
            for theirs, own in zip(saved["schedules"], mine["schedules"], strict=True)
        ]
        state["state"], state["memory"] = {}, {}
        for index in range(len(mine["methods"])):
            units, memory = mine["state"][index], mine["memory"][str(index)]
            if index in pairs:
                label, other = pairs[index]
                units = self._units(label, self._at(saved["state"], other), units)
                memory = self._memory(label, saved["memory"][str(other)], memory, self.present.kinds[index])
            state["state"][index], state["memory"][str(index)] = units, memory
        for key in ("num_resets", "latest_resets"):
            theirs = {self.names.new(name): value for name, value in saved.get(key, {}).items()}
            usable = {name: value for name, value in theirs.items() if name in mine[key] and self._is_common(name)}
            state[key] = mine[key] | {
                name: merged
                for name, value in usable.items()
                if (merged := value if key == "num_resets" else self._merged(value, mine[key][name])) is not None
            }
        state["num_edits"], state["quiet_since"] = saved.get("num_edits", 0), saved.get("quiet_since", -1)
        return state

    @staticmethod
    def _at(state: Mapping[Any, Any], index: int) -> Mapping[str, Any]:
        found: Mapping[str, Any] = state[index] if index in state else state[str(index)]
        return found

    def _add(self, of: str, name: str, outcome: Outcome, why: str = "") -> None:
        self.lines.append(Carried(of, name, outcome, why))

    # ---- the model ----
    def _has_size(self, name: str) -> bool:
        old = self.old_groups.get(name)
        return old is not None and self.saved["groups"][old] == self.present.state["groups"][name]

    def _is_common(self, name: str) -> bool:
        return self._has_size(name) or name in self.present.grown

    def _compare_groups(self) -> None:
        mine = self.present.state["groups"]
        for name, size in mine.items():
            old = self.old_groups.get(name)
            if old is None:
                self._add("unit groups", name, "new")
            elif self._has_size(name):
                self.common.add(name)
                self._add("unit groups", name, *self._as_named(old, name))
            else:
                outcome: Outcome = "extended" if name in self.present.grown else "re-initialised"
                self.common.update({name} & self.present.grown)
                self._add("unit groups", name, outcome, f"{self.saved['groups'][old]} units then, {size} now")
        for name, old in self.old_groups.items():
            if name not in mine:
                self._add("unit groups", old, "dropped")

    def _as_named(self, old: str, now: str) -> tuple[Outcome, str]:
        return ("kept", "") if old == now else ("renamed", f"it was {old!r}")

    def _compare_tensors(self) -> None:
        """Tensors are not loaded here; but that they have changed says that the model is another one."""
        for name, shape in self.shapes.items() if self.old_tensors else ():
            old = self.old_tensors.get(name)
            if old is None:
                self._add("the model's tensors", name, "new")
            elif old != shape:
                text = f"{shape_text(old)} then, {shape_text(shape)} now"
                grown = len(old) == len(shape) and all(a <= b for a, b in zip(old, shape, strict=True))
                self._add("the model's tensors", name, "extended" if grown else "re-initialised", text)
        for name in self.old_tensors:
            if name not in self.shapes:
                self._add("the model's tensors", name, "dropped")

    def _random(self) -> dict[str, Any]:
        mine, saved = self.present.state["random"], self.saved["random"]
        found = dict(mine)
        for device, generators in mine.items():
            if device in saved and len(saved[device]) == len(generators):
                found[device] = saved[device]
            else:
                self._add("random generators", device, "new", f"those saved are of: {', '.join(saved) or 'none'}")
        return found

    # ---- the methods ----
    def _methods(self) -> dict[int, tuple[str, int]]:
        """Index of each method to its name and the index that it had; a method is known by its name and place."""
        mine, theirs = (list(state["methods"]) for state in (self.present.state, self.saved))
        labels, old_labels = _labels(mine), _labels(theirs)
        pairs: dict[int, tuple[str, int]] = {}
        for index, label in enumerate(labels):
            if label not in old_labels:
                self._add("interventions", mine[index], "new")
                continue
            other = old_labels.index(label)
            pairs[index] = label, other
            same = self.names.in_text(theirs[other]) == mine[index] and index == other
            if same:
                self._add("interventions", label, "kept")
            else:
                self._add("interventions", label, "changed", f"it was {theirs[other]}, and is {mine[index]}")
        for other, label in enumerate(old_labels):
            if label not in labels:
                self._add("interventions", theirs[other], "dropped")
        return pairs

    def _schedule(
        self, theirs: Mapping[str, Any], own: Mapping[str, Any], pairs: Mapping[int, tuple[str, int]]
    ) -> dict[str, Any]:
        """The clock goes on; what a new method has not done yet counts from now."""
        found = {**own, **theirs}
        for key in ("acted", "observed"):
            found[key] = [
                theirs[key][pairs[index][1]] if index in pairs else theirs["real"].clone()
                for index in range(len(own[key]))
            ]
        return found

    def _units(
        self, label: str, theirs: Mapping[str, Mapping[str, Tensor]], mine: Mapping[str, Mapping[str, Tensor]]
    ) -> dict[str, dict[str, Tensor]]:
        renamed = {self.names.new(name): name for name in theirs}
        found: dict[str, dict[str, Tensor]] = {}
        for name, fresh in mine.items():
            old, found[name] = renamed.get(name), dict(fresh)
            if not self._is_common(name):
                continue  # said of the unit group already
            if old is None:
                self._add(label, name, "new", "it did not act there")
                continue
            saved = theirs[old]
            merged = {key: self._merged(saved[key], value) for key, value in fresh.items() if key in saved}
            usable = {key: value for key, value in merged.items() if value is not None}
            if usable.keys() != fresh.keys() or saved.keys() != fresh.keys():
                self._add(label, name, "re-initialised", "other options need other state")
                continue
            found[name] = usable
            outcome, why = self._as_named(old, name) if self._has_size(name) else ("extended", "new units begin")
            self._add(label, name, outcome, why)
        for name, old in renamed.items():
            if name not in mine and self._is_common_name(name):
                self._add(label, old, "dropped", "it does not act there any more")
        return found

    def _is_common_name(self, name: str) -> bool:
        return name in self.present.state["groups"]

    @staticmethod
    def _merged(saved: Tensor, fresh: Tensor) -> Tensor | None:
        if saved.dtype != fresh.dtype:
            return None
        return saved if saved.shape == fresh.shape else extended(saved, fresh)

    def _memory(
        self, label: str, theirs: Mapping[str, Any], mine: Mapping[str, Any], kinds: Mapping[str, StateKind]
    ) -> dict[str, Any]:
        return {
            "parameters": self._named(label, theirs["parameters"], mine["parameters"], kinds),
            "snapshots": self._named(label, theirs["snapshots"], mine["snapshots"], kinds),
            "tensors": {key: theirs["tensors"].get(key, value) for key, value in mine["tensors"].items()},
            "scalars": {key: theirs.get("scalars", {}).get(key, value) for key, value in mine["scalars"].items()},
            "host": [
                {key: old.get(key, value) for key, value in now.items()}
                for old, now in zip(theirs["host"], mine["host"], strict=True)
            ],
        }

    def _named(
        self,
        label: str,
        theirs: Mapping[str, Mapping[str, Tensor]],
        mine: Mapping[str, Mapping[str, Tensor]],
        kinds: Mapping[str, StateKind],
    ) -> dict[str, dict[str, Tensor]]:
        """What is kept for each tensor."""
        found: dict[str, dict[str, Tensor]] = {}
        for key, own in mine.items():
            renamed = {self.names.new(plain(name)): value for name, value in theirs.get(key, {}).items()}
            found[key] = {}
            for name, fresh in own.items():
                value, outcome, why = self._of_tensor(
                    plain(name), renamed.pop(plain(name), None), fresh, kinds.get(key)
                )
                found[key][name] = value
                self._add(label, f"{key} of {name}", outcome, why)
            for name in renamed:
                self._add(label, f"{key} of {name}", "dropped")
        for key in theirs.keys() - mine.keys():
            self._add(label, key, "dropped", "other options need other state")
        return found

    def _of_tensor(
        self, name: str, saved: Tensor | None, fresh: Tensor, kind: StateKind | None
    ) -> tuple[Tensor, Outcome, str]:
        if saved is None:
            return fresh, "new", ""
        before, now = self.old_tensors.get(name), self.shapes.get(name)
        if before is not None and before != now:
            whole = not isinstance(kind, PerParameter) or (kind.fill != "norm" and kind.along is None)
            value = extended(saved, fresh) if whole and name not in self.torn else None
            why = f"{shape_text(before)} then, {shape_text(now or ())} now"
            return (fresh, "re-initialised", why) if value is None else (value, "extended", why)
        if saved.shape != fresh.shape:
            return fresh, "re-initialised", f"{shape_text(saved.shape)} then, {shape_text(fresh.shape)} now"
        return saved, "kept", ""


def _labels(methods: Sequence[str]) -> list[str]:
    """A name for each method, from its text; one that is listed twice is ``"<method>#2"``."""
    kinds = [text.partition("(")[0] for text in methods]
    counts = [kinds[:index].count(kind) for index, kind in enumerate(kinds)]
    return [kind + (f"#{before + 1}" if before else "") for kind, before in zip(kinds, counts, strict=True)]
