"""The reference of all public names: pages made from what the package exports, so that none can be forgotten."""

from __future__ import annotations

import builtins
import contextlib
import functools
import inspect
import re
import sys
import typing
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import pliant

_GROUPS: dict[str, tuple[str, ...]] = {
    "Units": ("find_units", "declare_units", "verify", "UnitGraph", "UnitGroup"),
    "Attach": ("attach", "Handle"),
    "Monitor": (
        *("monitor", "Monitor", "Alarm", "CSVWriter", "JSONLWriter", "MLflowWriter", "TensorBoardWriter"),
        "WandbWriter",
    ),
    "Diagnosis and probe": ("diagnose", "Diagnosis", "probe", "ProbeResult", "live_twin", "LiveTwin", "fresh_twin"),
}
"""Names of the package by page. What is in none of them is an error class, or a method."""


@functools.cache
def contents() -> dict[str, tuple[str, str, Sequence[str]]]:
    """Name of each page to its title, the module that it is about, and the names on it."""
    left = [name for name in pliant.__all__ if not any(name in group for group in _GROUPS.values())]
    errors = [name for name in left if name in import_module("pliant.errors").__all__]
    groups = {**_GROUPS, "Methods": [name for name in left if name not in errors], "Errors": errors}
    found: dict[str, tuple[str, str, Sequence[str]]] = {
        title.lower().replace(" ", "_"): (title, "pliant", names) for title, names in groups.items()
    }
    for module in pliant._MODULES:
        names = [name for name in import_module(f"pliant.{module}").__all__ if name not in pliant.__all__]
        if names:
            found[f"pliant.{module}"] = (f"pliant.{module}", f"pliant.{module}", names)
    for module in pliant._INTEGRATIONS:
        place = f"pliant.integrations.{module}"
        found[f"pliant.{module}"] = (f"pliant.{module}", place, import_module(place).__all__)
    return {
        page: (title, prefix, sorted(names, key=str.lower)) for page, (title, prefix, names) in found.items() if names
    }


def _title(text: str) -> str:
    return f"{text}\n{'=' * len(text)}\n"


def _summary(value: Any) -> str:
    """The first sentence or two of a docstring, on one line."""
    return " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split())


def _directive(prefix: str, name: str) -> str:
    value = getattr(import_module(prefix), name)
    if inspect.isclass(value):
        return f".. autoclass:: {prefix}.{name}\n   :members:\n   :show-inheritance:\n"
    return f".. {'autofunction' if callable(value) else 'autodata'}:: {prefix}.{name}\n"


def pages() -> dict[str, str]:
    """Return the pages of the reference, name to reStructuredText."""
    found = {}
    index = [_title("All public names"), "What is not here is not meant to be imported.\n"]
    for page, (title, prefix, names) in contents().items():
        head = _summary(import_module(prefix)) + "\n" if prefix != "pliant" else ""
        found[page] = "\n".join([_title(title), head, *(_directive(prefix, name) for name in names)])
        index += [f":doc:`{page}`", "   " + ", ".join(f":any:`{name} <{prefix}.{name}>`" for name in names) + "\n"]
    index += [".. toctree::", "   :hidden:\n", *(f"   {page}" for page in found)]
    return {"index": "\n".join(index) + "\n", **found}


def _write(app: Any) -> None:
    folder = Path(app.srcdir) / "reference"
    folder.mkdir(exist_ok=True)
    made = {folder / f"{name}.rst": text for name, text in pages().items()}
    for path in folder.glob("*.rst"):
        if path not in made:
            path.unlink()
    for path, text in made.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:  # unchanged pages are not built again
            path.write_text(text, encoding="utf-8")


def _follow(value: Any, parts: Sequence[str]) -> Any:
    for part in parts:
        if part in getattr(value, "__annotations__", {}):  # a field of a dataclass is no attribute of it
            return None
        value = getattr(value, part)
    return value


@functools.cache
def _found(target: str) -> Any:
    """What a name stands for: a dotted path, or the name of something in any module of the package.

    Raises:
        LookupError: Nothing has that name.
    """
    parts = target.split(".")
    for stop in range(len(parts), 0, -1):
        with contextlib.suppress(ImportError, AttributeError):
            return _follow(import_module(".".join(parts[:stop])), parts[stop:])
    modules = [module for name, module in sorted(sys.modules.items()) if name.partition(".")[0] == "pliant"]
    classes = [value for module in modules for value in vars(module).values() if inspect.isclass(value)]
    for place in (builtins, typing, torch, *modules, *classes):
        with contextlib.suppress(AttributeError):
            return _follow(place, parts)
    raise LookupError(target)


def _public_name(value: Any) -> str | None:
    """Where the reference describes an object, whatever file it comes from."""
    for _, prefix, names in contents().values():
        for name in names:
            if getattr(import_module(prefix), name) is value:
                return f"{prefix}.{name}"
    return None


def _resolve(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Lead names to the page of what they stand for; the names of anything that has no page stay text."""
    target = node["reftarget"]
    if node["refdomain"] != "py":
        return None
    try:
        public = _public_name(_found(target))
    except LookupError:
        # Annotations name what only their own file imports. What a person wrote as a reference must exist.
        return None if "refwarn" in node else contnode
    if public is None or public == target:
        return contnode
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", public, node, contnode) or contnode


def _as_meant(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Have docstrings read as they are meant: a colon in a sentence is no type, and code may end within a word."""
    for index, line in enumerate(lines):
        lines[index] = line = re.sub(r"(?<!`)(``[^`]+``)(?=\w)", r"\1\\ ", line)
        begins = what in ("property", "attribute") and index == 0
        after = index > 0 and lines[index - 1].strip() in ("Returns:", "Yields:")
        if (begins or after) and line.strip():
            indent = line[: len(line) - len(line.lstrip())]
            lines[index] = f"{indent}: {line.lstrip()}"


def setup(app: Any) -> dict[str, Any]:
    """Have the pages written before anything is read."""
    app.connect("builder-inited", _write)
    app.connect("missing-reference", _resolve)
    app.connect("autodoc-process-docstring", _as_meant, priority=100)  # before napoleon reads it
    return {"parallel_read_safe": True, "parallel_write_safe": True}
