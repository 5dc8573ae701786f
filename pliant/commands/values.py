"""What is typed after options: seeds, ``key=value`` settings, shapes, and ``my.module:name``."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterable
from typing import Any

from pliant.bench.names import unknown
from pliant.errors import IllegalConfiguration

__all__ = ["load_object", "parse_seeds", "parse_settings", "parse_shape"]

_WORDS = {"true": True, "false": False, "none": None}


def parse_seeds(text: str) -> list[int]:
    """Return the seeds that ``"10"`` (0 to 9) or ``"10:20"`` (10 to 19) stand for.

    Raises:
        IllegalConfiguration: neither form, or no seed at all.

    >>> parse_seeds("3"), parse_seeds("10:12")
    ([0, 1, 2], [10, 11])
    """
    first, colon, last = text.rpartition(":")
    try:
        seeds = list(range(int(first) if colon else 0, int(last)))
    except ValueError:
        seeds = []
    if not seeds or seeds[0] < 0:
        raise IllegalConfiguration(f"--seeds {text}: give a number such as 10 (seeds 0 to 9), or a range such as 10:20")
    return seeds


def parse_settings(texts: Iterable[str]) -> dict[str, Any]:
    """Return ``key=value`` texts as a dictionary; values are numbers, true, false, none, lists, or else text.

    Raises:
        IllegalConfiguration: something that is not ``key=value``, or a key that occurs twice.

    >>> parse_settings(["replacement_rate=1e-4", "model.hidden=[200, 200]", "exact=true", "where=0"])
    {'replacement_rate': 0.0001, 'model.hidden': [200, 200], 'exact': True, 'where': 0}
    """
    settings: dict[str, Any] = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not key or not value:
            raise IllegalConfiguration(f"--set {text}: write KEY=VALUE, for example --set replacement_rate=1e-4")
        if key in settings:
            raise IllegalConfiguration(f"--set {text}: {key} is set twice")
        settings[key] = _value(value)
    return settings


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def parse_shape(text: str) -> tuple[int, ...]:
    """Return the sizes in ``"3,32,32"``.

    Raises:
        IllegalConfiguration: something else than positive whole numbers with commas between.

    >>> parse_shape("3,32,32")
    (3, 32, 32)
    """
    try:
        shape = tuple(int(size) for size in text.split(","))
    except ValueError:
        shape = (0,)
    if min(shape) < 1:
        raise IllegalConfiguration(f"--input {text}: give the sizes of one example, for example --input 3,32,32")
    return shape


def load_object(spec: str) -> Any:
    """Return what ``my.module:name`` names.

    Raises:
        IllegalConfiguration: not of that form, the module cannot be imported, or it has no such name.
    """
    module_name, colon, attribute = spec.partition(":")
    if not colon or not module_name or not attribute:
        raise IllegalConfiguration(f"{spec}: write my.module:factory, a module and a function in it")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the module does while it is imported
        raise IllegalConfiguration(
            f"{spec}: module {module_name!r} cannot be imported from here ({type(error).__name__}: {error})"
        ) from error
    if not hasattr(module, attribute):
        public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise unknown(f"function in module {module_name}", attribute, public)
    return getattr(module, attribute)
