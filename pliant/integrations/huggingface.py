"""Hugging Face Transformers: a callback for ``Trainer`` that protects the model it trains."""

from __future__ import annotations

import contextlib
import io
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback

from pliant.errors import IllegalConfiguration, NotYetSupported
from pliant.integrations.protection import MonitorSpec, OnMissing, Protection, require_version
from pliant.interventions.base import Intervention
from pliant.isolation import preserved_randomness
from pliant.optimizer_state import MomentSpec
from pliant.records.atomic import write_atomically
from pliant.sharded import sharded_modules
from pliant.units import UnitGraph, find_units
from pliant.units.export import refuse_wrapped
from pliant.units.init import InitSpec

__all__ = ["Protect", "ProtectedCheckpoint", "unprotect"]

require_version("transformers", transformers.__version__, "5.0", "huggingface")

STATE_FILE = "pliant.pt"
_MARK = "protected_by_pliant"


class ProtectedCheckpoint:
    """Says in a checkpoint's ``scheduler.pt`` that it was written by a protected training.

    A ``Trainer`` without the callback :class:`Protect` refuses to load it: resuming would lose the protection without a
    word. Where PyTorch does not know this class, its error names it. Where that is wanted, see :func:`unprotect`.

    Example:
        >>> from pliant.integrations.huggingface import ProtectedCheckpoint
        >>> isinstance(ProtectedCheckpoint(), ProtectedCheckpoint)  # nobody is loading it
        True
    """

    def __new__(cls) -> ProtectedCheckpoint:
        """Refuse to be loaded by a Trainer without the callback."""
        trainer, checkpoint = _caller()
        if trainer is not None and not any(isinstance(item, Protect) for item in trainer.callback_handler.callbacks):
            raise IllegalConfiguration(
                f"{checkpoint} was written by a training that Pliant protected, and this Trainer has no Protect: the "
                "protection would be lost without a word. Pass callbacks=[pliant.huggingface.Protect(methods)] with "
                "the same methods, or end it on purpose with pliant.huggingface.unprotect(checkpoint)."
            )
        return super().__new__(cls)


def unprotect(checkpoint: str | Path) -> None:
    """Let a checkpoint of a protected training be resumed without protection.

    Args:
        checkpoint: A folder ``checkpoint-<step>``; the mark in its ``scheduler.pt`` and the state are removed.

    Raises:
        IllegalConfiguration: If it is no such checkpoint.

    Example:
        >>> import tempfile, pliant
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     try:
        ...         pliant.huggingface.unprotect(folder)
        ...     except pliant.IllegalConfiguration:
        ...         print("no protected checkpoint")
        no protected checkpoint
    """
    path = Path(checkpoint) / "scheduler.pt"
    with torch.serialization.safe_globals([ProtectedCheckpoint]):
        found = torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else {}
    if _MARK not in found:
        raise IllegalConfiguration(f"{path} is no scheduler of a protected training: there is nothing to end.")
    del found[_MARK]
    _save(found, path)
    (Path(checkpoint) / STATE_FILE).unlink(missing_ok=True)


class Protect(Protection, TrainerCallback):
    """Protects the model of a Hugging Face ``Trainer``: ``Trainer(..., callbacks=[Protect(methods)])``.

    The optimizer exists only inside ``train()``, so methods and monitor are attached when training begins: after the
    optimizer was made, and before the first forward pass, so that ``torch_compile=True`` compiles their hooks along.
    They are detached when it ends. They act once for each real optimizer step, however many batches are accumulated.

    The handle's state is saved as ``pliant.pt`` in each of the Trainer's checkpoints and loaded with
    ``resume_from_checkpoint``. A protected checkpoint cannot be resumed without this callback by accident (see
    :class:`ProtectedCheckpoint`), nor an unprotected one with it. What the methods report and the monitor's readings
    join the Trainer's own log, under ``pliant/``.

    Args:
        methods: One intervention or an ordered list, as for :func:`pliant.attach`. Those that change the model are
            refused: apply them before the Trainer is made.
        seed: Seed of all fresh initial values.
        monitor: ``True`` for :func:`pliant.monitor` with its defaults; or names of metrics; or its keyword arguments.
        example_inputs: One small batch as ``model(**batch)`` takes it, to find the unit groups. If left out, it is
            made of the first two examples of the training set, by the Trainer's own collator. With FSDP2 pass it, or
            the units: they are found before the Trainer shards the model.
        units: Or the unit groups, found before.
        init: As for :func:`pliant.attach`.
        moments: As for :func:`pliant.attach`.
        dry_run: As for :func:`pliant.attach`.
        on_missing_state: What to do where training is resumed from a checkpoint without protection: an ``"error"``,
            or ``"start"`` protecting there.

    Attributes:
        handle: The handle, from the beginning of training on.
        monitor: The monitor.

    Raises:
        IllegalConfiguration: When training begins (with FSDP2, when the Trainer is made), for what
            :func:`pliant.attach` refuses, a model that is wrapped or compiled already, and checkpoints of another
            model, other methods or another version.
        NotYetSupported: For DeepSpeed, FSDP1 and tensor parallelism through the Trainer, and for methods that keep
            state for every weight where FSDP2 shards them.

    Example:
        >>> import pliant
        >>> protect = pliant.huggingface.Protect(pliant.ContinualBackprop(replacement_rate=1e-4), monitor=True)
        >>> protect  # and then Trainer(model=model, args=args, train_dataset=data, callbacks=[protect])
        <pliant.huggingface.Protect: ContinualBackprop; not attached yet>
    """

    def __init__(
        self,
        methods: Intervention | Sequence[Intervention],
        *,
        seed: int = 0,
        monitor: MonitorSpec = False,
        example_inputs: Mapping[str, Any] | None = None,
        units: UnitGraph | None = None,
        init: InitSpec = None,
        moments: MomentSpec = None,
        dry_run: bool = False,
        on_missing_state: OnMissing = "error",
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
        torch.serialization.add_safe_globals([ProtectedCheckpoint])

    # ---- the Trainer's events ----
    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Where the model will be sharded, find its units before."""
        trainer, _ = _trainer()
        if trainer.accelerator.is_fsdp2 and self._units is None and self._example_inputs is not None:
            with preserved_randomness(trainer.model):
                device = next(trainer.model.parameters()).device
                batch = pytree.tree_map_only(torch.Tensor, lambda value: value.to(device), dict(self._example_inputs))
                self._found = weakref.ref(trainer.model), find_units(trainer.model, batch)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach: model and optimizer are prepared, a checkpoint's weights and moments are loaded."""
        trainer, checkpoint = _trainer()
        model, scheduler = kwargs["model"], kwargs["lr_scheduler"]
        _refuse(trainer, model)
        if self._units_before(model) is None and sharded_modules(model):
            raise IllegalConfiguration(
                "the Trainer has sharded the model, and units are found before that: pass Protect(..., example_inputs="
                "batch) with Trainer(callbacks=[...]), not with add_callback, or units=pliant.find_units(model, batch)."
            )
        resumed = self._read(checkpoint, scheduler) if state.global_step else None
        self._begin(
            model,
            _wrapped(trainer),
            [kwargs["optimizer"]],
            inputs=lambda: self._inputs(trainer, model, kwargs["train_dataloader"]),
            around=partial(_plain_forward, model),
            state=resumed,
        )
        setattr(scheduler, _MARK, ProtectedCheckpoint())  # saved and loaded with the scheduler's other attributes
        callbacks = trainer.callback_handler.callbacks  # reporters stand before it, and must see what it logs
        callbacks.insert(0, callbacks.pop(callbacks.index(self)))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save the state into the checkpoint that was just written."""
        trainer, _ = _trainer()
        saved = self._state()  # on every process: taking in what was sampled is collective
        if args.should_save:
            folder = trainer._get_output_dir(getattr(trainer, "_trial", None))
            _save(saved, Path(folder) / f"checkpoint-{state.global_step}" / STATE_FILE)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Join the log of the training loss; reporters come after this callback."""
        if logs is not None and "loss" in logs and self._handle is not None and self._handle.is_attached:
            values = self._values()
            logs.update(values)
            state.log_history[-1].update(values)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Detach."""
        vars(kwargs["lr_scheduler"]).pop(_MARK, None)
        self._end()

    # ---- internals ----
    def _inputs(self, trainer: Any, model: nn.Module, loader: Any) -> Any:
        return _example(trainer, model, loader) if self._example_inputs is None else self._example_inputs

    def _read(self, checkpoint: str | None, scheduler: Any) -> dict[str, Any] | None:
        """The state in the checkpoint that training was resumed from."""
        if checkpoint is None:
            raise NotYetSupported("training was resumed in a way that does not say from which checkpoint.")
        path = Path(checkpoint) / STATE_FILE
        if not path.is_file():
            if _MARK in vars(scheduler):
                raise IllegalConfiguration(
                    f"{checkpoint} was written by a protected training, but {STATE_FILE} is missing: it was moved "
                    "without it, or the process died while saving. Copy the whole folder, or resume from the "
                    "checkpoint before it."
                )
            self._without_state(str(checkpoint))
            return None
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return found

    def __repr__(self) -> str:
        names = ", ".join(type(method).__name__ for method in self._methods) or "no method"
        return f"<pliant.huggingface.Protect: {names}; {self._handle or 'not attached yet'}>"


def _caller() -> tuple[Any, str | None]:
    """The Trainer that is running, if any, and the checkpoint that it was resumed from.

    Events are told neither, and the wrapped model, the log and the folder of checkpoints are the Trainer's.
    """
    frame, trainer = sys._getframe(1), None
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Trainer) and trainer in (None, owner):
            trainer = owner
            if "resume_from_checkpoint" in frame.f_locals:
                return trainer, frame.f_locals["resume_from_checkpoint"]
        frame = frame.f_back  # type: ignore[assignment]
    return trainer, None


def _trainer() -> tuple[Any, str | None]:
    trainer, checkpoint = _caller()
    if trainer is None:
        raise IllegalConfiguration("this callback works inside transformers.Trainer only.")
    return trainer, checkpoint


def _save(state: Any, path: Path) -> None:
    file = io.BytesIO()
    torch.save(state, file)
    write_atomically(path, file.getbuffer())


@contextlib.contextmanager
def _plain_forward(model: nn.Module) -> Iterator[None]:
    """Without what Accelerate has put around ``forward`` for mixed precision: units do not depend on it."""
    given = vars(model).pop("forward", None) if hasattr(model, "_original_forward") else None
    try:
        yield
    finally:
        if given is not None:
            vars(model)["forward"] = given


def _refuse(trainer: Any, model: nn.Module) -> None:
    """What cannot be protected through a Trainer, before anything is tried."""
    kind = str(getattr(trainer.accelerator.distributed_type, "value", "NO"))
    if kind != "NO" and not kind.startswith("MULTI_") and not trainer.accelerator.is_fsdp2:
        raise NotYetSupported(
            f"the Trainer runs with {kind}, where the weights that Pliant would edit are not the model's own. What "
            'works through it: one process, DistributedDataParallel, or FSDP2 (fsdp=True, fsdp_config={"version": 2}).'
        )
    try:
        refuse_wrapped(model, sharded=trainer.accelerator.is_fsdp2)  # by the Trainer; units are found before
    except IllegalConfiguration as error:
        raise IllegalConfiguration(
            f"{error} Here: give the Trainer the plain model; it wraps it itself, and compiles it with "
            "TrainingArguments(torch_compile=True)."
        ) from None
    if isinstance(trainer.model_wrapped, nn.DataParallel):
        raise IllegalConfiguration(
            "the Trainer sees several GPUs and uses DataParallel, whose replicas no hook sees: start it with torchrun "
            "or `accelerate launch`, or set CUDA_VISIBLE_DEVICES to one."
        )


def _wrapped(trainer: Any) -> nn.Module:
    """The model in DistributedDataParallel, if it is; what compiles it later is around both."""
    found: nn.Module = getattr(trainer.model_wrapped, "_orig_mod", trainer.model_wrapped)
    return found


def _example(trainer: Any, model: nn.Module, loader: Any) -> dict[str, Any]:
    """Two examples of the training set, collated; the order of training and all random states stay as they are."""
    data = getattr(loader, "dataset", None)
    if data is None or isinstance(data, IterableDataset) or not hasattr(data, "__getitem__"):
        raise IllegalConfiguration(
            "the training set is a stream, and taking a batch from it would change what is trained on: pass "
            "Protect(..., example_inputs=batch), or units=pliant.find_units(model, batch)."
        )
    with preserved_randomness(model):
        samples = [data[index % len(data)] for index in range(2)]
        batch = dict(trainer._prepare_inputs(loader.collate_fn(samples)))
    labels = [name for name in trainer.label_names if name in batch]
    if labels and (trainer.label_smoother is not None or trainer.compute_loss_func is not None):
        return {name: value for name, value in batch.items() if name not in labels}
    return batch
