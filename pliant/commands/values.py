"""What is typed after options: seeds, times, ``key=value`` settings, shapes, and ``my.module:name``."""

from __future__ import annotations

import collections
import importlib
import re
from collections.abc import Iterable
from typing import Any

from pliant.bench.names import parse_value, unknown
from pliant.errors import IllegalConfiguration

__all__ = ["load_object", "parse_duration", "parse_seeds", "parse_settings", "parse_shape"]

MAX_SEEDS = 100_000
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_seeds(text: str) -> list[int]:
    """Return the seeds that ``"10"`` (0 to 9), ``"10:20"`` (10 to 19), ``"3,5,8"`` or ``"0:5,10:20"`` stand for.

    A number alone is how many; between commas it is a seed, and so is one with a comma behind it.

    Raises:
        IllegalConfiguration: none of these forms, no seed at all, one that is negative or there twice, or more than
            100,000.

    >>> parse_seeds("3"), parse_seeds("10:12"), parse_seeds("0:2,7"), parse_seeds("7,")
    ([0, 1, 2], [10, 11], [0, 1, 7], [7])
    """
    parts = text.split(",")
    if len(parts) > 1 and not parts[-1].strip():
        parts.pop()
    elif len(parts) == 1 and ":" not in text:
        parts = [f"0:{text}"]
    seeds: list[int] = []
    try:
        for part in parts:
            first, colon, last = (piece.strip() for piece in part.partition(":"))
            found = range(int(first), int(last) if colon else int(first) + 1)
            if not found or found[0] < 0:
                raise ValueError(part)
            if len(seeds) + len(found) > MAX_SEEDS:
                raise IllegalConfiguration(f"--seeds {text}: more than {MAX_SEEDS:,} seeds; give fewer")
            seeds += found
    except (ValueError, OverflowError):
        raise IllegalConfiguration(
            f"--seeds {text}: give a number such as 10 (seeds 0 to 9), a range such as 10:20 (10 to 19), or several of "
            "these and single seeds such as 0:5,10:20,31"
        ) from None
    twice = [seed for seed, number in collections.Counter(seeds).items() if number > 1]
    if twice:
        raise IllegalConfiguration(f"--seeds {text}: seed {twice[0]} is there twice")
    return seeds


def parse_duration(option: str, text: str) -> float:
    """Return the seconds in ``"90"``, ``"30m"``, ``"1.5h"``, ``"2d"`` or ``"1h30m"``.

    Args:
        option: whose value it is, for the message.
        text: what was typed.

    Raises:
        IllegalConfiguration: none of these forms, or no time at all.

    >>> parse_duration("--max-time", "1h30m"), parse_duration("--max-time", "90")
    (5400.0, 90.0)
    """
    match = re.fullmatch(r"\s*((?:[0-9.]+\s*[dhms]\s*)+|[0-9.]+)\s*", text.lower())
    try:
        pieces = re.findall(r"([0-9.]+)\s*([dhms]?)", match[1]) if match else []
        seconds = sum(float(number) * _UNITS[unit] for number, unit in pieces)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise IllegalConfiguration(f"{option} {text}: give a time such as 90s, 30m, 1.5h or 1h30m")
    return seconds


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
        settings[key] = parse_value(value)
    return settings


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
