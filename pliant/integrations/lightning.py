"""Lightning: a callback for its ``Trainer`` that protects the modules it trains."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import lightning
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn

from pliant.errors import IllegalConfiguration, NotYetSupported
from pliant.integrations.protection import MonitorSpec, OnMissing, Protection, require_version
from pliant.interventions.base import Intervention
from pliant.optimizer_state import MomentSpec
from pliant.units import UnitGraph, find_units
from pliant.units.init import InitSpec

__all__ = ["Protect"]

require_version("lightning", lightning.__version__, "2.5", "lightning")


class Protect(Protection, Callback):
    """Protects a ``LightningModule``: ``Trainer(..., callbacks=[Protect(methods, example_inputs=x)])``.

    Methods and monitor are attached when training begins, with all of the trainer's optimizers, and detached when it
    ends. They act once for each real step of an optimizer, under automatic and manual optimisation, however many
    batches are accumulated. Lightning steps with closures, so methods that change gradients before the step are
    refused.

    The state is in Lightning's own checkpoints. Lightning warns where a checkpoint's callback is missing; a checkpoint
    that was written without protection is refused. What the methods report and the monitor's readings go to the
    trainer's loggers, under ``pliant/``, at every ``log_every_n_steps``-th optimizer step.

    Args:
        methods: One intervention or an ordered list, as for :func:`pliant.attach`. Those that change the model are
            refused: apply them before the module is trained.
        modules: Names of the submodules in which units are sought, one or several; by default the whole module, whose
            ``forward`` is then exported. Use it where the module has no ``forward``, and for several networks:
            ``["generator", "discriminator"]``.
        seed: Seed of all fresh initial values.
        monitor: ``True`` for :func:`pliant.monitor` with its defaults; or names of metrics; or its keyword arguments.
        example_inputs: One small batch as ``forward`` takes it, to find the unit groups; with several ``modules`` a
            mapping from their names to the inputs of each. If left out, the module's ``example_input_array``.
        units: Or the unit groups, found before, under the names that parameters have in the ``LightningModule``.
        init: As for :func:`pliant.attach`.
        moments: As for :func:`pliant.attach`.
        dry_run: As for :func:`pliant.attach`.
        on_missing_state: What to do where training is resumed from a checkpoint without protection: an ``"error"``,
            or ``"start"`` protecting there.
        name: Of the state in checkpoints, where there are several such callbacks.

    Attributes:
        handle: The handle, from the beginning of training on.
        monitor: The monitor.

    Raises:
        IllegalConfiguration: When training begins, for what :func:`pliant.attach` refuses, a module that is compiled
            already, and checkpoints of another model, other methods or another version.
        NotYetSupported: For methods that change gradients, and for FSDP1 and DeepSpeed.

    Example:
        >>> import pliant, torch
        >>> method = pliant.ContinualBackprop(replacement_rate=1e-4)
        >>> protect = pliant.lightning.Protect(method, modules="net", example_inputs=torch.randn(2, 4))
        >>> protect  # and then Trainer(callbacks=[protect]).fit(module, loader)
        <pliant.lightning.Protect: ContinualBackprop; not attached yet>
    """

    def __init__(
        self,
        methods: Intervention | Sequence[Intervention],
        *,
        modules: str | Sequence[str] | None = None,
        seed: int = 0,
        monitor: MonitorSpec = False,
        example_inputs: Any = None,
        units: UnitGraph | None = None,
        init: InitSpec = None,
        moments: MomentSpec = None,
        dry_run: bool = False,
        on_missing_state: OnMissing = "error",
        name: str = "",
    ) -> None:
        super().__init__(
            methods,
            seed=seed,
            monitor=monitor,
            example_inputs=example_inputs,
            units=units,
            init=init,
            moments=moments,
            dry_run=dry_run,
            on_missing_state=on_missing_state,
        )
        for method in self._methods:
            if method.changes_gradients:
                raise NotYetSupported(
                    f"{type(method).__name__} changes gradients before the optimizer's step, and Lightning always "
                    "steps with a closure, in which they are computed. Use the method's decoupled form, if it has one, "
                    "or a loop of your own."
                )
        self._modules = [modules] if isinstance(modules, str) else modules
        self._name = name
        self._resumed: Mapping[str, Any] | None = None

    # ---- checkpoints ----
    @property
    def state_key(self) -> str:
        """The name of its state in checkpoints."""
        return f"pliant.lightning.Protect{{{self._name}}}" if self._name else "pliant.lightning.Protect"

    def state_dict(self) -> dict[str, Any]:
        """The state of what is attached, or of what was when training ended."""
        return self._state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of a checkpoint until training begins."""
        self._resumed = state_dict

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on training from what was not protected."""
        if trainer.training and self.state_key not in checkpoint.get("callbacks", {}):
            self._without_state("the checkpoint")

    # ---- training ----
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Before the module is wrapped: refuse what cannot be protected, and find units that sharding would hide."""
        if stage != "fit":
            return
        strategy = trainer.strategy
        if isinstance(strategy, FSDPStrategy) or "DeepSpeed" in type(strategy).__name__:
            raise NotYetSupported(
                f"{type(strategy).__name__} flattens weights that Pliant would edit. Use DDPStrategy, or "
                "ModelParallelStrategy with fully_shard (FSDP2)."
            )
        if getattr(pl_module, "_compiler_ctx", None) is not None:
            raise IllegalConfiguration(
                f"{type(pl_module).__name__} was compiled before training: hooks added afterwards may never fire. Give "
                "the trainer the plain module, and compile its networks in on_train_start, which runs after this "
                "callback: self.net.compile()."
            )
        self._resumed = None
        if isinstance(strategy, ModelParallelStrategy) and self._units is None:
            parts, inputs = self._parts(pl_module), self._inputs(trainer, pl_module)
            self._found = weakref.ref(pl_module), find_units(pl_module if parts is None else parts, inputs)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach: module and optimizers are prepared, and what a checkpoint holds is loaded."""
        self._begin(
            pl_module,
            trainer.strategy.model,
            trainer.optimizers,
            inputs=lambda: self._inputs(trainer, pl_module),
            parts=self._parts(pl_module),
            state=self._resumed,
        )
        self._resumed = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log, at the cadence of the trainer."""
        step, every = trainer.global_step, trainer.log_every_n_steps
        if every and step // every > self._logged_at // every:
            self._logged_at = step
            values = self._values()
            for logger in trainer.loggers:
                logger.log_metrics(values, step=step)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Detach, after the last checkpoint."""
        if stage == "fit":
            self._end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Detach where training was broken off."""
        self._end()

    # ---- internals ----
    def _parts(self, pl_module: Any) -> dict[str, nn.Module] | None:
        if self._modules is None:
            return None
        names = dict(pl_module.named_modules())
        for name in self._modules:
            if name not in names:
                raise IllegalConfiguration(
                    f"{type(pl_module).__name__} has no submodule {name!r}; it has "
                    f"{', '.join(repr(item) for item, _ in pl_module.named_children()) or 'none'}."
                )
        return {name: names[name] for name in self._modules}

    def _inputs(self, trainer: Any, pl_module: Any) -> Any:
        given = self._example_inputs
        if given is None:
            given = getattr(pl_module, "example_input_array", None)
        if given is None:
            raise IllegalConfiguration(
                "pass Protect(..., example_inputs=(x,)), one small batch as forward() takes it (with modules=[...] a "
                f"mapping of their names to the inputs of each), or set {type(pl_module).__name__}.example_input_array."
            )
        if self._modules is not None and not isinstance(given, Mapping):
            given = {self._modules[0]: given}
        return trainer.precision_plugin.convert_input(move_data_to_device(given, pl_module.device))

    def __repr__(self) -> str:
        names = ", ".join(type(method).__name__ for method in self._methods) or "no method"
        return f"<pliant.lightning.Protect: {names}; {self._handle or 'not attached yet'}>"
