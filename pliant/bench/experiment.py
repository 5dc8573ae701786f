"""What is run: one frozen description of stream, methods, optimizer, model and length. Seeds are not part of it."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias, final

import torch
from torch import nn

from pliant import optim, records
from pliant.bench.models import MODELS
from pliant.bench.names import build, full_options, option_names, resolve, snake_case, unknown
from pliant.bench.presets import PRESETS
from pliant.bench.schedules import SCHEDULES, Constant, Schedule
from pliant.bench.streams import STREAMS, Stream
from pliant.bench.streams.base import check_length, generator
from pliant.errors import IllegalConfiguration

__all__ = ["Experiment", "Part", "method_table", "optimizer_table"]

NO_METHOD = "none"
CONSTANT = "constant"


@final
@dataclass(frozen=True)
class Part:
    """A name with its options: ``Part("sgd", {"lr": 0.1})``. Lists in options become tuples.

    >>> Part.of(("sgd", {"lr": 0.1})) == Part("sgd", {"lr": 0.1}) and Part.of("mlp") == Part("mlp", {})
    True
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def of(cls, value: Part | str | tuple[str, Mapping[str, Any]]) -> Part:
        """Accept a part, a bare name, or a pair of name and options."""
        if isinstance(value, Part):
            return value
        return cls(value) if isinstance(value, str) else cls(value[0], dict(value[1]))

    @property
    def short_name(self) -> str:
        """The name for folders and labels: that of the class where the part is ``my.module:Class``."""
        return snake_case(self.name.partition(":")[2]) if ":" in self.name else self.name


def method_table() -> dict[str, type[Any]]:
    """Return the interventions that may be named, by snake_case name, from ``pliant.interventions.__all__``."""
    # Imported here so that a run without any method needs nothing of it.
    from pliant import interventions

    base = getattr(interventions, "Intervention", None)
    found = {name: getattr(interventions, name) for name in interventions.__all__}
    return {
        snake_case(name): cls
        for name, cls in found.items()
        if isinstance(cls, type) and cls is not base and (base is None or issubclass(cls, base))
    }


def optimizer_table() -> dict[str, type[Any]]:
    """Return the optimizers of ``torch.optim`` and of ``pliant.optim`` by lower-case name."""
    found = {name.lower(): getattr(torch.optim, name) for name in torch.optim.__all__ if name != "Optimizer"}
    own: dict[str, Any] = {name.lower(): getattr(optim, name) for name in optim.__all__}  # a preset is a function
    return {name: cls for name, cls in found.items() if isinstance(cls, type)} | own


PartLike: TypeAlias = Part | str | tuple[str, Mapping[str, Any]]


@final
@dataclass(frozen=True, init=False)
class Experiment:
    """One configuration whose outcome depends on nothing else but the seed.

    Options are completed with their defaults at construction, and every name and option is checked, so two
    spellings of one configuration are equal and have one id.

    Attributes:
        stream: name and options of the stream, see ``pliant.bench.streams``.
        methods: interventions in the order in which they act; empty is plain training.
        optimizer: a ``torch.optim`` name in lower case and its options.
        model: name and options of the model, see ``pliant.bench.models``.
        num_tasks: tasks ``0 .. num_tasks - 1`` of the stream are run.
        schedule: name and options of the learning-rate schedule, see ``pliant.bench.schedules``.
        label: name for people; no part of the configuration.

    Raises:
        IllegalConfiguration: a stream, method, optimizer, model or option that does not exist (the message names
            the nearest valid ones), or a value that its owner refuses.

    >>> plain = Experiment("random_label_digits", num_tasks=10)
    >>> plain.id.rsplit("-", 1)[0]
    'random_label_digits-none'
    >>> plain == Experiment(("random_label_digits", {"num_epochs": 40}), num_tasks=10, label="no protection")
    True
    """

    stream: Part
    methods: tuple[Part, ...]
    optimizer: Part
    model: Part
    num_tasks: int
    label: str = field(compare=False)
    schedule: Part

    def __init__(
        self,
        stream: PartLike,
        methods: Iterable[PartLike] = (),
        optimizer: PartLike = ("sgd", {"lr": 0.1}),
        model: PartLike = "mlp",
        num_tasks: int = 50,
        label: str = "",
        schedule: PartLike = CONSTANT,
    ) -> None:
        if num_tasks < 1:
            raise IllegalConfiguration(f"num_tasks must be at least 1, got {num_tasks}")

        def store(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        stream, optimizer, model = Part.of(stream), Part.of(optimizer), Part.of(model)
        cls = resolve("stream", stream.name, STREAMS)
        store("stream", Part(stream.name, full_options("stream", cls, stream.options)))
        parts = [Part.of(method) for method in methods if Part.of(method).name != NO_METHOD]
        completed = []
        for part in parts:
            cls = resolve("method", part.name, method_table())
            build("method", cls, part.options)
            completed.append(Part(part.name, full_options("method", cls, part.options)))
        store("methods", tuple(completed))
        cls = resolve("optimizer", optimizer.name, optimizer_table())
        # Defaults of torch's optimizers are left out: they belong to the installed version, which records name.
        options = full_options("optimizer", cls, optimizer.options, skip=1)
        store("optimizer", Part(optimizer.name, {key: options[key] for key in optimizer.options}))
        cls = resolve("model", model.name, MODELS)
        store("model", Part(model.name, full_options("model", cls, model.options, skip=2)))
        store("num_tasks", int(num_tasks))
        self._store_schedule(Part.of(schedule), store)
        store("label", label or " + ".join(part.short_name for part in parts) or "no protection")
        self.build_stream()
        made = self.build_optimizer(nn.Linear(1, 1))
        if self.build_schedule() is not None and any("lr" not in group for group in made.param_groups):
            raise IllegalConfiguration(
                f"schedule {self.schedule.name}: optimizer {optimizer.name} has no step size lr that it could set"
            )

    def _store_schedule(self, schedule: Part, store: Callable[[str, object], None]) -> None:
        cls = resolve("schedule", schedule.name, SCHEDULES)
        store("schedule", Part(schedule.name, full_options("schedule", cls, schedule.options)))
        made = self.build_schedule()
        if made is None:  # however it was spelt: a constant step size is one configuration
            store("schedule", Part(CONSTANT, full_options("schedule", SCHEDULES[CONSTANT], {})))
        else:
            made.check(self.num_tasks)

    def __hash__(self) -> int:
        """Hash the configuration; ``label`` is no part of it."""
        return hash(records.canonical_json(self.to_dict()))

    def replace(self, **changes: Any) -> Experiment:
        """Return a copy with some fields changed."""
        return replace(self, **changes)

    # -- the pieces, built anew at each call ------------------------------------------------------------------

    def build_stream(self) -> Stream:
        """Return the stream."""
        stream: Stream = build("stream", resolve("stream", self.stream.name, STREAMS), self.stream.options)
        check_length(stream, self.num_tasks)
        return stream

    def build_schedule(self) -> Schedule | None:
        """Return the learning-rate schedule, or None for a constant step size, which nothing need set."""
        cls = resolve("schedule", self.schedule.name, SCHEDULES)
        schedule: Schedule = build("schedule", cls, self.schedule.options)
        return None if isinstance(schedule, Constant) and schedule.warmup == 0 else schedule

    def build_methods(self) -> list[Any]:
        """Return the interventions, in order."""
        table = method_table() if self.methods else {}
        return [build("method", resolve("method", part.name, table), part.options) for part in self.methods]

    def build_model(self, seed: int) -> nn.Module:
        """Return the model with the initial weights that belong to ``seed``; the global generator is not moved."""
        stream = self.build_stream()
        cls = resolve("model", self.model.name, MODELS)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(generator("model", seed).integers(2**63)))
            model: nn.Module = build("model", cls, self.model.options, stream.num_inputs, stream.num_classes)
        return model

    def build_optimizer(self, model: nn.Module, seed: int | Sequence[int] = 0) -> torch.optim.Optimizer:
        """Return the optimizer over all parameters of ``model``; the multi-tensor form where there is one.

        Args:
            model: The model.
            seed: For optimizers that draw noise; one for each member of a stack.
        """
        cls = resolve("optimizer", self.optimizer.name, optimizer_table())
        options = dict(self.optimizer.options)
        names = option_names(cls, 1)
        if "seed" in names:
            options.setdefault("seed", seed)
        if "foreach" in names and not options.get("fused"):
            options.setdefault("foreach", True)
        optimizer: torch.optim.Optimizer = build("optimizer", cls, options, model.parameters())
        return optimizer

    # -- identity ----------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return the whole configuration as JSON-able data: whatever changes the outcome, and nothing else."""
        hidden: frozenset[str] = getattr(resolve("stream", self.stream.name, STREAMS), "not_identity", frozenset())
        options = {key: value for key, value in self.stream.options.items() if key not in hidden}
        config = {
            "stream": {"name": self.stream.name, **options},
            "methods": [{"name": part.name, **part.options} for part in self.methods],
            "optimizer": {"name": self.optimizer.name, **self.optimizer.options},
            "model": {"name": self.model.name, **self.model.options},
            "num_tasks": self.num_tasks,
        }
        if self.build_schedule() is not None:  # a constant step size is said by leaving the schedule out
            config["schedule"] = {"name": self.schedule.name, **self.schedule.options}
        return config

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], label: str = "") -> Experiment:
        """Return the experiment of :meth:`to_dict`; what its stream does not count as identity gets its default."""
        known = {"stream", "methods", "optimizer", "model", "num_tasks", "schedule"}
        for key in config:
            if key not in known:
                raise unknown("experiment field", key, known)
        if "stream" not in config:
            raise IllegalConfiguration("an experiment needs a stream")
        fields: dict[str, Any] = {
            key: _part(key, config[key]) for key in ("stream", "optimizer", "model", "schedule") if key in config
        }
        fields["methods"] = [_part("methods", entry) for entry in config.get("methods", [])]
        if "num_tasks" in config:
            fields["num_tasks"] = config["num_tasks"]
        return cls(**fields, label=label)

    @property
    def id(self) -> str:
        """``<stream>-<method>-<12 hex digits of the configuration's SHA-256>``: the name of its results folder."""
        method = "+".join(part.short_name for part in self.methods) or NO_METHOD
        return records.experiment_id(self.to_dict(), self.stream.short_name, method)

    def about(self) -> dict[str, Any]:
        """Return what records keep for people and what is no part of the configuration: label, and the stream's words.

        A stream may have a ``title`` and ``control = True`` (nothing changes between its tasks); its description is
        the first line of its docstring.
        """
        cls = resolve("stream", self.stream.name, STREAMS)
        stream = {
            "title": getattr(cls, "title", ""),
            "description": (inspect.getdoc(cls) or "").partition("\n")[0].replace("``", ""),
            "control": getattr(cls, "control", False),
        }
        return {"label": self.label, "stream": stream}

    # -- presets and files -------------------------------------------------------------------------------------

    @classmethod
    def from_preset(
        cls, stream: str, preset: str, methods: Iterable[PartLike] = (), label: str = "", **changes: Any
    ) -> Experiment:
        """Return the preset of a stream, with some parts changed.

        Args:
            stream: the stream's name.
            preset: one of its presets, see ``pliant.bench.presets``.
            methods: the interventions.
            label: name for people.
            **changes: ``stream_options``, ``optimizer``, ``model`` and ``schedule`` take a mapping of options (all but
                the first with an optional ``name``) that is laid over the preset's; another ``name`` drops the
                preset's options. ``num_tasks`` replaces it.

        Raises:
            IllegalConfiguration: no such stream, preset or option.
        """
        if stream not in PRESETS:
            raise unknown("stream with presets", stream, PRESETS)
        if preset not in PRESETS[stream]:
            raise unknown(f"preset of {stream}", preset, PRESETS[stream])
        base = {"stream": {"name": stream}, **PRESETS[stream][preset]}
        base["stream"] = {"name": stream, **base["stream"]}
        base["schedule"] = {"name": CONSTANT, **base.get("schedule", {})}
        known = ("stream_options", "optimizer", "model", "schedule", "num_tasks")
        for key, change in changes.items():
            field_name = "stream" if key == "stream_options" else key
            if key not in known:
                raise unknown("experiment field", key, known)
            if key == "num_tasks":
                base[key] = change
            elif change.get("name", base[field_name]["name"]) != base[field_name]["name"]:
                base[field_name] = dict(change)
            else:
                base[field_name] = {**base[field_name], **change}
        experiment = cls.from_dict(base, label=label)
        return experiment.replace(methods=tuple(Part.of(method) for method in methods), label=label)

    @classmethod
    def from_toml(cls, path: str | Path, **stream_options: Any) -> Experiment:
        """Read an experiment file, which says only what differs from a preset.

        The file has ``stream`` (a name), ``preset``, optionally ``label`` and ``num_tasks``, tables
        ``[stream_options]``, ``[optimizer]``, ``[model]``, ``[schedule]``, and one ``[[methods]]`` table per
        intervention.

        Args:
            path: the TOML file.
            **stream_options: laid over those of the file, e.g. ``data_dir``.

        Raises:
            IllegalConfiguration: not TOML, or something in it does not exist; names the file.
        """
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise IllegalConfiguration(f"{path}: cannot be read as an experiment ({error})") from error
        parts = ("optimizer", "model", "schedule")
        known = {"stream", "preset", "label", "num_tasks", "stream_options", "methods", *parts}
        try:
            for key in data:
                if key not in known:
                    raise unknown("field of an experiment file", key, known)
            if "stream" not in data or "preset" not in data:
                raise IllegalConfiguration("an experiment file needs stream and preset")
            changes: dict[str, Any] = {key: data[key] for key in (*parts, "num_tasks") if key in data}
            changes["stream_options"] = {**data.get("stream_options", {}), **stream_options}
            methods = [_part("methods", entry) for entry in data.get("methods", [])]
            return cls.from_preset(data["stream"], data["preset"], methods, data.get("label", ""), **changes)
        except IllegalConfiguration as error:
            raise IllegalConfiguration(f"{path}: {error}") from error


def _part(kind: str, entry: Any) -> Part:
    if isinstance(entry, str):
        return Part(entry)
    if not isinstance(entry, Mapping) or "name" not in entry:
        raise IllegalConfiguration(f"{kind}: expected a name, or options with a name, got {entry!r}")
    return Part(entry["name"], {key: value for key, value in entry.items() if key != "name"})
