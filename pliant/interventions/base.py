"""What an intervention is: a frozen specification, the state it declares, and up to seven event methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.errors import IllegalConfiguration
from pliant.interventions.context import Clock, Context, Sample
from pliant.interventions.state import Host, PerParameter, PerUnit, Scalar, Snapshot, StateKind, Tensors
from pliant.search import Domain

__all__ = [
    "Clock",
    "Context",
    "Host",
    "Intervention",
    "PerParameter",
    "PerUnit",
    "Sample",
    "Scalar",
    "Snapshot",
    "Tensors",
    "require",
]


@dataclass(frozen=True)
class Intervention(ABC):
    """Base of every method: hyper-parameters are the fields of a frozen dataclass, state lives in the handle.

    A subclass is final, implements :meth:`null` and at least one event, and declares:

    Attributes:
        needs: Statistics of activations it reads (see :data:`pliant.stats.STATISTICS`).
        state: State it keeps, by name: :class:`PerUnit`, :class:`PerParameter`, :class:`Snapshot`, :class:`Tensors`,
            :class:`Scalar` or :class:`Host`.
        redraws: Whether it draws initial values, so that every initial distribution must be known.
        changes_model: Whether it changes the model itself, in :meth:`surgery`.
        acts_in_quiet: Whether :meth:`after_step` is also called in a quiet period (``handle.pause()``). True for what
            acts a little at every step and starts nothing anew (decay, clipping, projections), and for methods that
            look at ``ctx.is_quiet`` themselves.
        hint: What else to say where no unit group matches: which models have what the method acts on.
        source: The publication in short, for tables: ``"Sokar et al. 2023"``.
        defaults: Where each default comes from, field by field: a table of the paper, the authors' code, a choice of
            this library and why. ``pliant show METHOD`` prints them.
        search: The fields that ``pliant tune`` searches unless it is told otherwise, and from where to where; empty:
            there is nothing worth searching but the step size.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    state: ClassVar[Mapping[str, StateKind]] = {}
    redraws: ClassVar[bool] = False
    changes_model: ClassVar[bool] = False
    acts_in_quiet: ClassVar[bool] = False
    hint: ClassVar[str] = ""
    source: ClassVar[str] = ""
    defaults: ClassVar[Mapping[str, str]] = {}
    search: ClassVar[Mapping[str, Domain]] = {}

    @property
    def needs_boundary(self) -> bool:
        """Whether it acts at task boundaries only, so that without ``handle.task_boundary()`` it would do nothing."""
        return False

    @property
    def needs_penalty(self) -> bool:
        """Whether it acts through the loss only, so that without ``handle.penalty()`` it would do nothing."""
        return False

    @property
    def needs_batch(self) -> bool:
        """Whether it acts on batches only, so that without ``handle.batch(...)`` it would do nothing."""
        return False

    @property
    def changes_gradients(self) -> bool:
        """Whether it acts before the optimizer's step, on the gradients, so that closures are refused."""
        return type(self).before_step is not Intervention.before_step

    def conflicts_with(self, other: Intervention) -> str | None:
        """Why this method and another one on the same model undo each other, or ``None``; ``attach`` refuses then.

        Asked of each method about each other one of the list, so that one of the two has to know.
        """
        return None

    def check(self) -> None:  # noqa: B027
        """Refuse hyper-parameters out of range before anything is made of them.

        Only for methods whose :attr:`state` depends on their options, or that change the model: what needs the model
        or the optimizer, and in all other methods everything, is asked in :meth:`prepare`.
        """

    @abstractmethod
    def null(self) -> Intervention:
        """The same method with its strength at zero: a bitwise no-op."""

    def unit_pattern(self) -> str | None:
        """Which unit groups it edits, or ``None`` if it edits whole tensors."""
        return None

    def parameter_pattern(self) -> str:
        """Which parameters its :class:`PerParameter` state covers, a pattern of names."""
        return "*"

    def surgery(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Change the model, before the units are found; only called where ``changes_model`` is true.

        Modules are put in with :func:`pliant.surgery.replace_module`, and parameters that are added in any other way
        handed to an optimizer with :func:`pliant.surgery.adopt`; afterwards it is checked that every trainable
        parameter has an owner. Randomness inside comes from the seed given to ``attach``.
        """
        raise NotImplementedError(f"{type(self).__name__} declares changes_model and must implement surgery().")

    def surgery_with(self, model: nn.Module, optimizers: Sequence[Optimizer], example_inputs: Any) -> None:
        """The same with the example inputs, for methods that look where things are before they change them."""
        self.surgery(model, optimizers)

    def samples(self, step: int) -> bool:
        """Whether it needs statistics of the given step (1-based)."""
        return bool(self.needs)

    def next_step(self, ctx: Context) -> int:
        """The next step at which :meth:`after_step` has something to do: the very next one, unless overridden.

        It must depend on ``ctx.clock.step``, the hyper-parameters and the groups alone, so that a resumed run keeps the
        schedule, and it must not jump over a step for which :meth:`samples` is true, unless :meth:`observe` is there
        for those.
        """
        return ctx.clock.step + 1

    def next_sample(self, step: int) -> int:
        """The first step after the given one for which :meth:`samples` is true; asked where there is ``observe``."""
        raise NotImplementedError(f"{type(self).__name__} has observe() and must implement next_sample().")

    # The events do nothing unless a method overrides them.
    def prepare(self, ctx: Context) -> None:  # noqa: B027
        """Called once by ``attach``; refuse here what cannot work."""

    def before_step(self, ctx: Context) -> None:  # noqa: B027
        """Before the optimizer's step, with gradients in place; refused under a closure.

        ``ctx.clock.step`` is the number of steps done so far, without the coming one.
        """

    def observe(self, ctx: Context) -> None:  # noqa: B027
        """Take in the statistics of the steps in ``ctx.samples``: update state, edit nothing.

        Called before anything else happens to the state, and otherwise for several samples at once, since looking at
        each in its own step costs more. ``ctx.stats(group).at(sample.step)`` has the values.
        """

    def after_step(self, ctx: Context) -> None:  # noqa: B027
        """After a real optimizer step."""

    def at_task_boundary(self, ctx: Context, data: Any = None) -> None:  # noqa: B027
        """When the user signals that the data has changed."""

    def on_batch(self, ctx: Context, batch: Any) -> Any:
        """A batch before it is trained on, given to ``handle.batch(...)``: returned as it is, changed or extended.

        Called once for each batch, with the context of the first optimizer; every method gets what the one before it
        has returned.
        """
        return batch

    def penalty(self, ctx: Context) -> Tensor | None:
        """A term for the loss, with graph, added by the user through ``handle.penalty()``.

        ``ctx.loss`` and ``ctx.reference`` are what the user passed to it. Statistics of this step's training forwards
        (``ctx.features``) are there already. In a dry run it is not asked.
        """
        return None

    def on_record(self, ctx: Context) -> Mapping[str, float]:
        """Numbers about itself, for the user's log, through ``handle.record()``."""
        return {}


def require(condition: bool, method: Intervention, name: str, valid: str) -> None:
    """Refuse a hyper-parameter out of range.

    Raises:
        IllegalConfiguration: Naming method, parameter, value and the valid range.
    """
    if not condition:
        value = getattr(method, name)
        raise IllegalConfiguration(f"{type(method).__name__}: {name}={value!r} is out of range; it must be {valid}.")
