"""What is known of a method, read from the code itself: for ``pliant show``, ``pliant list`` and the generated tables.

A method is found by its export alone. What it says of itself stands in its docstring (the sections that all methods
have), in its class variables ``source`` and ``defaults``, and in which events it overrides; what it costs has been
measured by ``benchmarks/speed/methods.py``.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import SimpleNamespace
from typing import Any, cast, final

from torch import nn
from torch.optim import Optimizer

from pliant.bench.experiment import method_table
from pliant.bench.names import option_names, resolve, snake_case
from pliant.errors import IllegalConfiguration
from pliant.interventions.base import Clock, Intervention

__all__ = ["About", "Cost", "Option", "about", "catalogue", "costs", "sections"]

_HOMES = {"pliant.nn": "a layer", "pliant.optim": "an optimizer"}
"""Methods that are no interventions: where they are, and what they are."""
_TYPICAL_SIZE = 512
"""Of a group, where the schedule depends on it; that of the network that costs are measured on."""


@final
@dataclass(frozen=True)
class Option:
    """One hyper-parameter.

    Attributes:
        name: As it is written.
        default: Its ``repr``; ``"(required)"`` if there is none.
        meaning: What the docstring says of it.
        origin: Where the default comes from; empty if the method does not say.
    """

    name: str
    default: str
    meaning: str
    origin: str


@final
@dataclass(frozen=True)
class Cost:
    """What a method costs, for the network of ``benchmarks/speed/minimal/base.py``.

    Attributes:
        step: Time of a training step over that of a plain one.
        by_hand: Time of a step over that with the same mathematics written by hand.
        memory: Bytes of the method's state over the bytes of the parameters.
        acting: Share of training time spent inside the method (decisions, resets, penalties), its rare steps included.
        boundary: What a task boundary costs, in plain steps.
        against: What the plain step is for a layer or an optimizer; empty for what is attached to a plain loop.
    """

    step: float
    by_hand: float
    memory: float
    acting: float
    boundary: float = 0.0
    against: str = ""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Cost:
        """From the data file, which may say more than is shown."""
        known = {field.name for field in dataclasses.fields(cls)}
        numbers: dict[str, Any] = {key: float(value) for key, value in values.items() if key in known - {"against"}}
        return cls(**numbers, against=str(values.get("against", "")))

    def sentence(self) -> str:
        """All of it in words."""
        if self.against:
            less = "parameters and state together smaller by" if self.memory < 0 else "parameters and state larger by"
            return (
                f"{self.step:.2f} times a step with {self.against}, {self.by_hand:.2f} times the step written by hand; "
                f"{less} {abs(self.memory):.2g} times the parameters' size"
            )
        boundary = f"; a task boundary costs {self.boundary:.1f} plain steps" if self.boundary else ""
        return (
            f"{self.step:.2f} times a plain step, {self.by_hand:.2f} times the step written by hand; state of "
            f"{self.memory:.2g} times the parameters' size; {100 * self.acting:.1f} % of the time spent acting"
            f"{boundary}"
        )


@final
@dataclass(frozen=True)
class About:
    """What is known of one method.

    Attributes:
        name: As on the command line.
        cls: The class.
        title: The first line of its module.
        text: The docstring's text before its sections: idea and formula.
        sections: The docstring's sections by title, without their indentation.
        options: Its hyper-parameters.
        reads: Statistics of activations it needs.
        keeps: Its state: name to what it is.
        when: When it acts with its default options.
        needs_boundary: Whether it does nothing without ``handle.task_boundary()``.
        needs_penalty: Whether it does nothing without ``handle.penalty()``.
        needs_batch: Whether it does nothing without ``handle.batch()``.
        conflicts: Exported methods that ``attach`` refuses beside it, and why.
        source: The publication in short.
        cost: What has been measured, or ``None``.
        page: Its page in the documentation, empty for a method from elsewhere.
    """

    name: str
    cls: type[Any]
    title: str
    text: str
    sections: Mapping[str, str]
    options: tuple[Option, ...]
    reads: tuple[str, ...]
    keeps: Mapping[str, str]
    when: str
    needs_boundary: bool
    needs_penalty: bool
    needs_batch: bool
    conflicts: Mapping[str, str]
    source: str
    cost: Cost | None
    page: str

    @property
    def edits(self) -> str:
        """What it changes, as its docstring says."""
        return self.section("Edits")

    def section(self, start: str) -> str:
        """The docstring's section whose title starts so; empty if there is none."""
        return next((text for title, text in self.sections.items() if title.startswith(start)), "")


def catalogue() -> dict[str, type[Any]]:
    """All methods by name: exported interventions, then layers and optimizers (a preset of one is a function)."""
    found = dict(sorted(method_table().items()))
    for home in _HOMES:
        if importlib.util.find_spec(home) is not None:
            module = importlib.import_module(home)
            found.update({snake_case(name): getattr(module, name) for name in module.__all__})
    return found


@functools.cache
def costs() -> dict[str, Cost]:
    """What has been measured, by name; empty before anything was."""
    file = resources.files("pliant.interventions") / "costs.json"
    if not file.is_file():
        return {}
    measured = json.loads(file.read_text(encoding="utf-8"))["methods"]
    return {name: Cost.of(values) for name, values in measured.items()}


def about(name: str) -> About:
    """What is known of the method of this name, or of the one that ``my.module:MyMethod`` names.

    Raises:
        IllegalConfiguration: There is none of this name (the message has the nearest), or it is no method.

    >>> about("redo").when
    'every 1000 steps'
    >>> about("shrink_and_perturb").needs_boundary
    True
    """
    table = catalogue()
    cls = resolve("method", name, table)
    own = name in table
    if not own and not issubclass(cls, (Intervention, nn.Module, Optimizer)):
        raise IllegalConfiguration(
            f"{name} is no method: it is neither a pliant.interventions.Intervention nor a layer nor an optimizer"
        )
    text, found = sections(inspect.getdoc(cls) or "")
    spec = _default_of(cls)
    meanings = _entries(found.get("Args", ""))
    origins: Mapping[str, str] = getattr(cls, "defaults", {})
    return About(
        name=name if own else snake_case(cls.__name__),
        cls=cls,
        title=(inspect.getdoc(inspect.getmodule(cls)) or "").partition("\n")[0] if own else text.partition("\n")[0],
        text=text,
        sections=found,
        options=tuple(
            Option(key, _shown(option.default), meanings.get(key, ""), origins.get(key, ""))
            for key, option in _options(cls).items()
        ),
        reads=tuple(sorted(getattr(spec, "needs", ()))),
        keeps={key: _state(kind) for key, kind in _declared(cls, spec).items()},
        when=_when(cls, spec),
        needs_boundary=getattr(spec, "needs_boundary", False),
        needs_penalty=getattr(spec, "needs_penalty", False),
        needs_batch=getattr(spec, "needs_batch", False),
        conflicts=_conflicts(spec),
        source=getattr(cls, "source", "") or _in_short(found.get("Source", "")),
        cost=costs().get(name),
        page=f"docs/methods/{name}.md" if own else "",
    )


def sections(docstring: str) -> tuple[str, dict[str, str]]:
    r"""Split a docstring into its text and its sections.

    >>> sections("What it is.\n\nArgs:\n    a: One.\n        More.\n\nSource:\n    Someone (2020).")
    ('What it is.', {'Args': 'a: One.\n    More.', 'Source': 'Someone (2020).'})
    >>> sections("What it is.\n\nArgs:\n    a: One.\n\nShapes: any.\n\nSource:\n    Someone (2020).")
    ('What it is.\n\nShapes: any.', {'Args': 'a: One.', 'Source': 'Someone (2020).'})
    """
    parts = re.split(r"^([A-Z][^:\n]*):\n(?=[ \n])", docstring, flags=re.MULTILINE)
    found, text = {}, [parts[0].strip()]
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        end = re.search(r"^(?=\S)", body, re.MULTILINE)  # what is not indented any more belongs to the text
        found[title] = textwrap.dedent(body if end is None else body[: end.start()]).strip()
        text += [] if end is None else [body[end.start() :].strip()]
    return "\n\n".join(text), found


def _entries(text: str) -> dict[str, str]:
    """``name: meaning`` paragraphs, of which further lines are indented."""
    parts = re.split(r"^(\w+(?:, \w+)*)(?: \([^)]*\))?:\s", text, flags=re.MULTILINE)
    found = zip(parts[1::2], parts[2::2], strict=True)
    return {name: " ".join(body.split()) for names, body in found for name in names.split(", ")}


def _shown(default: object) -> str:
    return "(required)" if default is inspect.Parameter.empty else repr(default)


def _default_of(cls: type[Any]) -> Intervention | None:
    """The method with its defaults; None for what is no intervention or has options without a default."""
    required = any(option.default is inspect.Parameter.empty for option in _options(cls).values())
    return None if required or not _is_intervention(cls) else cls()


def _declared(cls: type[Any], spec: Intervention | None) -> Mapping[str, Any]:
    """The state that it declares, which may depend on its options."""
    state = getattr(cls if spec is None else spec, "state", {})
    return state if isinstance(state, Mapping) else {}


def _state(kind: Any) -> str:
    """``per unit, int64`` and the like: the kind and what differs from its defaults."""
    words = (
        "per group" if getattr(kind, "per_group", False) else re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(kind).__name__)
    )
    found = [words.lower(), getattr(kind, "dtype", None), "a copy" if getattr(kind, "fill", 0) == "initial" else None]
    return ", ".join(word for word in found if word)


def _is_intervention(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, Intervention)


def _options(cls: Any) -> dict[str, inspect.Parameter]:
    """Without what an optimizer is given anyway."""
    return {name: option for name, option in option_names(cls).items() if name != "params"}


def _in_short(source: str) -> str:
    """Authors and year of the first publication.

    >>> _in_short("Abbas & Zhao, On Networks (2023), arXiv:1; later: Else (2024)")
    'Abbas & Zhao 2023'
    """
    found = re.match(r"([^,(]+)[^(]*\(\D*(\d{4})", source)
    return f"{found[1].strip()} {found[2]}" if found else ""


def _overrides(cls: type[Any], event: str) -> bool:
    return getattr(cls, event, None) is not getattr(Intervention, event)


def _when(cls: type[Any], spec: Intervention | None) -> str:
    """When the default acts, from what it says, the events that it overrides, and its own schedule."""
    if not _is_intervention(cls):
        kind = next((kind for home, kind in _HOMES.items() if cls.__module__.startswith(home)), "")
        return {"a layer": "in the forward pass", "an optimizer": "every step"}.get(kind, "")
    if spec is None:
        return "by its options"
    found = []
    if spec.changes_model:
        found.append("once, at attach")
    if _overrides(cls, "on_batch"):
        found.append("every batch")
    if spec.needs_penalty:
        found.append("in the loss")
    if getattr(spec, "changes_gradients", _overrides(cls, "before_step")):
        found.append("before every step")
    if _overrides(cls, "after_step"):
        found += _period(spec)
    if spec.needs_boundary:
        found.append("at task boundaries")
    return ", ".join(found) or "by its options"


def _period(spec: Intervention) -> list[str]:
    """The schedule depends on the clock, the options and the groups' sizes alone, so it can be asked without a run."""
    clock, asked = Clock(), []

    def groups(where: str = "*") -> tuple[Any, ...]:
        asked.append(where)
        return (SimpleNamespace(name="", size=_TYPICAL_SIZE),)

    ctx = cast(Any, SimpleNamespace(clock=clock, index=0, groups=groups))
    first = spec.next_step(ctx)
    if first == sys.maxsize:
        return []
    clock.step = first
    period = spec.next_step(ctx) - first
    text = "every step" if period == 1 else f"every {period} steps"
    return [f"{text} ({_TYPICAL_SIZE} units)" if asked else text]


def _conflicts(spec: Intervention | None) -> dict[str, str]:
    """Among the exported methods with their defaults."""
    found = {}
    for name, cls in method_table().items() if spec is not None else ():
        other = _default_of(cls)
        if spec is not None and other is not None:
            why = spec.conflicts_with(other) or other.conflicts_with(spec)
            if why:
                found[name] = why.rstrip(".")
    return found
