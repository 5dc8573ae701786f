"""``pliant list``: what can be named, read from the code itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, final

import tyro

from pliant.bench.names import unknown
from pliant.commands.base import Command

__all__ = ["List"]


@final
@dataclass(frozen=True, kw_only=True)
class List(Command):
    """List the streams, methods, metrics and presets that can be named, with their options and defaults."""

    examples: ClassVar[tuple[str, ...]] = ("pliant list", "pliant list methods")

    kind: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="KIND")] = "all"
    """streams, methods, metrics, presets or all"""

    def run(self) -> int:
        """Print the lists."""
        sections: dict[str, Callable[[], str]] = {
            "streams": _streams,
            "methods": _methods,
            "metrics": _metrics,
            "presets": _presets,
        }
        if self.kind not in (*sections, "all"):
            raise unknown("list", self.kind, [*sections, "all"])
        chosen = sections if self.kind == "all" else {self.kind: sections[self.kind]}
        print("\n\n".join(f"{kind}\n{text()}" for kind, text in chosen.items()))
        return 0


def _entry(name: str, summary: str, options: Mapping[str, Any] | None = None) -> str:
    lines = [f"  {name:<24}{summary}"]
    if options:
        lines.append(" " * 26 + ", ".join(f"{key}={value}" for key, value in options.items()))
    return "\n".join(lines)


def _summary(thing: object) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _options(cls: type[Any]) -> dict[str, Any]:
    from pliant.bench.names import option_names

    return {name: _default(parameter.default) for name, parameter in option_names(cls).items()}


def _default(value: object) -> str:
    return "(required)" if value is inspect.Parameter.empty else repr(value)


def _streams() -> str:
    from pliant.bench.streams import STREAMS

    return "\n".join(_entry(name, _summary(cls), _options(cls)) for name, cls in STREAMS.items())


def _methods() -> str:
    from pliant.bench.experiment import method_table

    entries = [_entry("none", "Plain training.")]
    entries += [_entry(name, _summary(cls), _options(cls)) for name, cls in sorted(method_table().items())]
    return "\n".join(entries)


def _metrics() -> str:
    from pliant.report.metrics import METRICS

    return "\n".join(_entry(name, metric.text or metric.title) for name, metric in METRICS.items())


def _presets() -> str:
    from pliant.bench.presets import PRESETS

    entries = []
    for stream, presets in PRESETS.items():
        for preset, settings in presets.items():
            optimizer = {**settings["optimizer"]}
            model = {**settings["model"]}
            what = (
                f"{settings['num_tasks']} tasks, {model.pop('name')} {_plain(model)}, "
                f"{optimizer.pop('name')} {_plain(optimizer)}"
            )
            entries.append(_entry(f"{stream} {preset}", what, settings["stream"]))
    return "\n".join(entries)


def _plain(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items())
