"""What the callbacks of all frameworks share: attaching when training begins, keeping state, letting go at its end."""

from __future__ import annotations

import re
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

from torch import nn
from torch.utils import _pytree as pytree

from pliant.attach import attach
from pliant.errors import IllegalConfiguration, NoEffect, NoEffectWarning, NotYetSupported
from pliant.handle import Handle
from pliant.interventions.base import Intervention
from pliant.isolation import preserved_randomness
from pliant.monitor import DEFAULT, Monitor, monitor
from pliant.optimizer_state import MomentSpec
from pliant.sharded import is_sharded
from pliant.units import UnitGraph, find_units
from pliant.units.init import InitSpec
from pliant.units.several import Models

__all__ = ["MonitorSpec", "OnMissing", "Protection", "require_version"]

MonitorSpec = bool | str | Sequence[str] | Mapping[str, Any]
OnMissing = Literal["error", "start"]

STATE_VERSION = 1


def require_version(package: str, version: str, lowest: str, extra: str) -> None:
    """Refuse a framework that is older than what the adapter is tested with.

    Args:
        package: The framework's name.
        version: Its version.
        lowest: The lowest one that is supported.
        extra: The extra of Pliant that asks for it.

    Raises:
        IllegalConfiguration: Naming both versions.

    Example:
        >>> require_version("lightning", "2.6.1", "2.5", "lightning")
        >>> require_version("lightning", "2.4.0", "2.5", "lightning")
        Traceback (most recent call last):
        pliant.errors.IllegalConfiguration: lightning 2.4.0 is installed; Pliant supports 2.5 ... 'pliant[lightning]'.
    """

    def numbers(text: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", text)[:2]]

    if numbers(version) < numbers(lowest):
        raise IllegalConfiguration(
            f"{package} {version} is installed; Pliant supports {lowest} and later: pip install --upgrade "
            f"'pliant[{extra}]'."
        )


class Protection:
    """Attaches at the beginning of each training, keeps the state, and removes every hook at its end.

    The options are those of the adapters' ``Protect``, which derive from it.
    """

    def __init__(
        self,
        methods: Intervention | Sequence[Intervention],
        *,
        seed: int,
        monitor: MonitorSpec,
        example_inputs: Any,
        units: UnitGraph | None,
        init: InitSpec,
        moments: MomentSpec,
        dry_run: bool,
        on_missing_state: OnMissing,
    ) -> None:
        self._methods: list[Any] = list(methods) if isinstance(methods, (list, tuple)) else [methods]
        for method in self._methods:
            if not isinstance(method, Intervention):
                raise IllegalConfiguration(f"{method!r} is no intervention; pass instances such as pliant.ReDo().")
            if method.changes_model:
                raise IllegalConfiguration(
                    f"{type(method).__name__} changes the model, and a checkpoint of it can only be loaded into a "
                    "model that was changed before. Change the model before the trainer gets it, in every process: "
                    "pliant.attach(model, torch.optim.SGD(model.parameters()), "
                    f"{type(method).__name__}(...), example_inputs=x).detach(); what it has put in stays."
                )
        if on_missing_state not in ("error", "start"):
            raise IllegalConfiguration(f'on_missing_state is "error" or "start", not {on_missing_state!r}.')
        self._seed, self._dry_run, self._on_missing = seed, dry_run, on_missing_state
        self._example_inputs, self._units, self._init, self._moments = example_inputs, units, init, moments
        self._watching = _monitor_options(monitor)
        self._handle: Handle | None = None
        self._monitor: Monitor | None = None
        self._kept: dict[str, Any] | None = None
        self._found: tuple[weakref.ref[nn.Module], UnitGraph] | None = None
        self._model: weakref.ref[nn.Module] | None = None
        self._last_logged = self._logged_at = 0

    # ---- for the user ----
    @property
    def handle(self) -> Handle:
        """The handle: ``handle.events``, ``handle.num_resets``, ``handle.task_boundary()``, ``handle.penalty()``.

        After training it can still be read; it is detached then.

        Raises:
            NoEffect: Before the first training has begun.
        """
        if self._handle is None:
            raise NoEffect("nothing is attached yet: it is when training begins.")
        return self._handle

    @property
    def monitor(self) -> Monitor | None:
        """The monitor; ``None`` before the first training has begun, and where none was asked for."""
        return self._monitor

    # ---- for the adapters ----
    def _begin(
        self,
        model: nn.Module,
        trained: nn.Module,
        optimizers: Sequence[Any],
        *,
        inputs: Callable[[], Any],
        parts: Models | None = None,
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Attach; what cannot be attached leaves nothing behind.

        Args:
            model: The plain model.
            trained: The model, or what it is wrapped in.
            optimizers: Its optimizers.
            inputs: Makes the example inputs, where units are not given.
            parts: The modules that the units are found in, if not the model itself; their names are its submodules'.
            around: Entered while the units are found.
            state: What was saved, if training is resumed.
        """
        self._end()
        given, units = None, self._units_before(model)
        if units is None:
            given = inputs()
            with around(), preserved_randomness(model):
                units = find_units(model if parts is None else parts, given)
        self._handle = handle = attach(
            trained,
            optimizers,
            self._methods,
            units=units,
            seed=self._seed,
            init=self._init,
            moments=self._moments,
            dry_run=self._dry_run,
        )
        try:
            self._check_state(handle)
            if self._watching is not None:
                inputs_too = {} if given is None or parts is not None else {"example_inputs": given}
                options = {**inputs_too, "init": self._init, **self._watching}
                self._monitor = monitor(trained, optimizers, units=units, **options)
            if state is None and self._kept is not None and self._model is not None and self._model() is model:
                state = self._kept  # the same model trains on
            if state is not None:
                self._load(state)
        except Exception:  # whatever it was, no hook may stay behind; it is raised again
            handle.detach()
            if self._monitor is not None:
                self._monitor.detach()
            raise
        self._model, self._last_logged = weakref.ref(model), 0

    def _units_before(self, model: nn.Module) -> UnitGraph | None:
        """The units that were given, or found before the framework sharded this very model."""
        if self._units is None and self._found is not None and self._found[0]() is model:
            return self._found[1]
        return self._units

    def _end(self) -> None:
        """Keep the state, remove every hook, and warn of methods that waited in vain."""
        if self._handle is None or not self._handle.is_attached:
            return
        self._kept = self._state()
        for call in ("penalty", "batch"):
            names = ", ".join(self._handle.waiting_for(call))
            if names and self._handle.num_steps:
                warnings.warn(
                    f"{names}: handle.{call}() was not called in {self._handle.num_steps} steps, so nothing was done. "
                    "Call it where the loss is computed, see docs/integrations.md.",
                    NoEffectWarning,
                    stacklevel=2,
                )
        self._handle.detach()
        if self._monitor is not None:
            self._monitor.detach()

    def _state(self) -> dict[str, Any]:
        """The state of what is attached, or of what was when training ended; every process must ask for it."""
        if self._handle is None or not self._handle.is_attached:
            return self._kept or {}
        watched = None if self._monitor is None else self._monitor.state_dict()
        return {"version": STATE_VERSION, "handle": self._handle.state_dict(), "monitor": watched}

    def _load(self, state: Mapping[str, Any]) -> None:
        version = state.get("version")
        if version != STATE_VERSION or "handle" not in state:
            raise IllegalConfiguration(
                f"this is no state of Protect in version {STATE_VERSION} (it says {version!r}): it was written by "
                "another version of Pliant. Resume with that one, or from a checkpoint that this version has written."
            )
        self.handle.load_state_dict(state["handle"])
        if self._monitor is not None and state["monitor"] is not None:
            self._monitor.load_state_dict(state["monitor"])

    def _without_state(self, where: str) -> None:
        """Training goes on from something that was not protected.

        Raises:
            IllegalConfiguration: Unless that was asked for.
        """
        if self._on_missing == "error":
            raise IllegalConfiguration(
                f"{where} has no state of Pliant: it was written without Protect, and the ages and averages of the "
                "methods are not known. Resume from a checkpoint that was written with it, or pass "
                'Protect(..., on_missing_state="start") to begin protection here.'
            )

    @staticmethod
    def _check_state(handle: Handle) -> None:
        """A framework's checkpoint keeps the state of one process; a state that is sharded would be lost."""
        if any(is_sharded(leaf) for leaf in pytree.tree_leaves(handle.state_dict()) if hasattr(leaf, "shape")):
            raise NotYetSupported(
                "a method keeps state for every weight, and that is sharded like the weights: the framework's "
                "checkpoints cannot hold it. Use methods that keep state per unit, or a loop of your own with "
                "torch.distributed.checkpoint."
            )

    def _values(self) -> dict[str, float]:
        """Numbers for the framework's log: what methods did, and the newest reading of the monitor, once."""
        record = self.handle.record()
        found = {f"pliant/{name}": value for name, value in record.items() if name != "num_steps"}
        if self._monitor is not None:
            found["pliant/num_alarms"] = float(len(self._monitor.alarms))
            if self._monitor.history and self._monitor.latest.step > self._last_logged:
                reading = self._monitor.latest
                self._last_logged = reading.step
                for metric, places in reading.values.items():
                    found |= {f"pliant/{metric}/{where}": float(value) for where, value in places.items()}
        return found


def _monitor_options(given: MonitorSpec) -> dict[str, Any] | None:
    if given is False:
        return None
    if isinstance(given, Mapping):
        return dict(given)
    return {"metrics": DEFAULT if given is True else given}
