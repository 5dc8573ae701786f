"""What a handle saves and how it goes on from it: the state of all interventions, clocks and generators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.edit import Editor
from pliant.errors import IllegalConfiguration, NotYetSupported
from pliant.interventions.base import Intervention
from pliant.interventions.context import Progress
from pliant.interventions.state import Memory, cloned
from pliant.saving import (
    STATE_VERSION,
    LoadReport,
    OnMismatch,
    Present,
    Renames,
    fit,
    fitted_model,
    fitted_optimizer,
    old_units_lead,
    plain,
)
from pliant.schedule import Schedule
from pliant.sharded import is_sharded
from pliant.units import UnitGraph

__all__ = ["Keeper"]


class Keeper:
    """Saves and loads for one handle.

    Args:
        model: The model.
        optimizers: Its optimizers.
        methods: The interventions.
        units: The unit graph.
        usable: For each method, the names of the groups that it edits.
        editor: The writer, with its log.
        schedules: The plan of each optimizer.
        memory: The state of each method.
        make_memory: Makes that of the method with an index anew.
        progress: What the handle counts beside the clocks.
        num_members: S for a stack of members, else ``None``.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        methods: Sequence[Intervention],
        units: UnitGraph,
        usable: Sequence[frozenset[str]],
        editor: Editor,
        schedules: Sequence[Schedule],
        memory: Sequence[Memory],
        make_memory: Callable[[int], Memory],
        *,
        progress: Progress,
        num_members: int | None,
    ) -> None:
        self._model, self._optimizers, self._methods, self._units = model, optimizers, methods, units
        self._editor, self._events, self._tensors = editor, editor.events, editor.tensors
        self._schedules, self._memory, self._make_memory = schedules, memory, make_memory
        self._progress, self._num_members = progress, num_members
        self._groups = [group for group in units if any(group.name in names for names in usable)]
        self._events.sizes = {group.name: group.size for group in self._groups}

    # ---- saving ----
    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue bit by bit; what waits must have been observed."""
        return self._state(self._memory, self._schedules) | {
            "num_boundaries": self._progress.num_boundaries,
            "quiet_since": self._progress.quiet_since,
            "num_resets": self._no_resets() | self._events.state_dict(),
            "latest_resets": self.latest_resets(),
            "num_edits": self._events.num_edits,
        }

    def _state(self, memories: Sequence[Memory], schedules: Sequence[Schedule]) -> dict[str, Any]:
        """The state of a handle that has done nothing beside what is given.

        Names and shapes are lists, which every checkpoint format takes for one value.
        """
        return {
            "version": STATE_VERSION,
            "methods": [repr(method) for method in self._methods],
            "groups": {group.name: group.size for group in self._units},
            "tensors": [[name, list(tensor.shape)] for name, tensor in self._tensors.items()],
            "owners": [self._owned(item) for item in self._optimizers],
            "num_members": self._num_members,
            "schedules": [schedule.state_dict() for schedule in schedules],
            "num_boundaries": 0,
            "quiet_since": -1,
            "state": {index: cloned(memory.units) for index, memory in enumerate(memories)},
            "memory": {str(index): memory.state_dict() for index, memory in enumerate(memories)},
            "random": self._editor.random_state(),
            "num_resets": self._no_resets(),
            "latest_resets": self._no_latest(),
            "num_edits": 0,
        }

    def _owned(self, optimizer: Optimizer) -> list[list[str]]:
        """The names of an optimizer's parameters, for each of its groups."""
        names = {id(tensor): name for name, tensor in self._tensors.items()}
        return [
            [names.get(id(p), f"<not in the model: {index}.{place}>") for place, p in enumerate(group["params"])]
            for index, group in enumerate(optimizer.param_groups)
        ]

    def _no_resets(self) -> dict[str, Tensor]:
        size = self._num_members or 1
        return {
            group.name: torch.zeros(size, dtype=torch.long, device=self._device_of(group)) for group in self._groups
        }

    def _no_latest(self) -> dict[str, Tensor]:
        lead = () if self._num_members is None else (self._num_members,)
        return {
            group.name: torch.full((*lead, group.size), -1, device=self._device_of(group)) for group in self._groups
        }

    def latest_resets(self) -> dict[str, Tensor]:
        """The step of each unit's latest reset, -1 where there was none: int64 ``[U]`` or ``[S, U]``, a copy."""
        return self._no_latest() | {name: steps.clone() for name, steps in self._events.latest_resets().items()}

    def _device_of(self, group: Any) -> torch.device:
        return self._tensors[group.slices[0].name].device

    # ---- loading ----
    def load(
        self,
        state: Mapping[str, Any],
        *,
        on_mismatch: OnMismatch,
        renamed: Mapping[str, str] | None,
        grown: frozenset[str] = frozenset(),
    ) -> LoadReport:
        """Go on from a state; nothing has been changed where it is refused.

        Args:
            state: What was saved.
            on_mismatch: See :func:`pliant.saving.fit`.
            renamed: Old module name to its new one.
            grown: Groups that have grown, and whose old units come first.
        """
        if on_mismatch == "error":
            mine = self.state_dict()
        else:  # what begins anew is what a handle has that is made now
            fresh = [self._make_memory(index) for index in range(len(self._methods))]
            mine = self._state(fresh, [Schedule(self._methods) for _ in self._optimizers])
        tensors = {group.name: group.tensors for group in self._units}
        kinds = [method.state for method in self._methods]
        fitted, report = fit(state, Present(mine, kinds, tensors, grown), on_mismatch=on_mismatch, renamed=renamed)
        self._put(fitted)
        return report

    def _put(self, state: Mapping[str, Any]) -> None:
        for schedule, saved in zip(self._schedules, state["schedules"], strict=True):
            schedule.load_state_dict(saved, next(iter(self._tensors.values())).device)
        self._progress.num_boundaries, self._progress.quiet_since = state["num_boundaries"], state["quiet_since"]
        for index, memory in enumerate(self._memory):
            memory.load_state_dict({"units": state["state"][index], **state["memory"][str(index)]})
        self._editor.load_random_state(state["random"])
        devices = {group.name: self._device_of(group) for group in self._groups}
        totals = {name: value.to(devices[name]) for name, value in state["num_resets"].items() if value.any()}
        latest = {name: state["latest_resets"][name].to(devices[name]) for name in totals}
        self._events.load_state_dict(totals, latest, state["num_edits"])

    def load_grown(
        self,
        model: Mapping[str, Any],
        optimizers: Sequence[Mapping[str, Any]] | None,
        state: Mapping[str, Any],
        *,
        renamed: Mapping[str, str] | None,
    ) -> LoadReport:
        """Put a saved model, its optimizers and the handle's state into a model that has grown since.

        Args:
            model: The ``state_dict`` of the model.
            optimizers: Those of the optimizers, in order; ``None``: their state begins anew.
            state: That of the handle.
            renamed: Old module name to its new one.
        """
        if any(is_sharded(tensor) for tensor in self._tensors.values()):
            raise NotYetSupported("load_grown is for models that are not sharded: load first, and shard afterwards.")
        if "tensors" not in state or "owners" not in state:
            raise IllegalConfiguration(
                "load_grown needs a handle's state of format version 4 or later, with the names of what was saved. "
                "Save once with this version before the model grows; or use "
                'load_state_dict(on_mismatch="reinit_group").'
            )
        if optimizers is not None and len(optimizers) != len(self._optimizers):
            raise IllegalConfiguration(
                f"{len(self._optimizers)} optimizers are attached, and the states of {len(optimizers)} were given."
            )
        names = Renames(renamed)
        names.check(
            (*state["groups"], *(plain(name) for name, _ in state["tensors"])),
            (*(group.name for group in self._units), *map(plain, self._tensors)),
        )
        sizes = {names.new(name): size for name, size in state["groups"].items()}
        shapes = {names.new(plain(name)): tuple(shape) for name, shape in state["tensors"]}
        grown, torn = old_units_lead(list(self._units), sizes, shapes)
        fitted, report = fitted_model(model, self._model.state_dict(), names, torn)
        states = []
        for index, (item, saved) in enumerate(zip(self._optimizers, optimizers or (), strict=False)):
            label = "the optimizer" if len(self._optimizers) == 1 else f"optimizer {index}"
            found, more = fitted_optimizer(
                saved,
                item,
                saved_names=state["owners"][index],
                own_names=self._owned(item),
                names=names,
                torn=torn,
                of=label,
                declared=self._editor.declared,
            )
            states.append(found)
            report += more
        report += self.load(state, on_mismatch="reinit_group", renamed=renamed, grown=grown)
        self._model.load_state_dict(fitted)
        for item, found in zip(self._optimizers, states, strict=False):
            item.load_state_dict(found)
        return report
