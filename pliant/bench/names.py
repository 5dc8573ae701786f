"""From names and options to objects: one look-up, one kind of error, always with the nearest valid names."""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pliant.errors import IllegalConfiguration

__all__ = ["build", "full_options", "option_names", "parse_value", "resolve", "snake_case", "unknown"]

_WORDS = {"true": True, "false": False, "none": None}


def snake_case(name: str) -> str:
    """Return the name that the command line uses for a class.

    Capitals that stand together are one word. Short pieces in a row, one of which has two letters, were coined as one
    word, and so were names of four letters and fewer.

    >>> [snake_case(name) for name in ("ContinualBackprop", "L2", "ShrinkAndPerturb", "L2Init", "CChain")]
    ['continual_backprop', 'l2', 'shrink_and_perturb', 'l2_init', 'c_chain']
    >>> [snake_case(name) for name in ("ReDo", "ReGraMa", "CReLU", "SmoothLeakyReLU", "FIRE")]
    ['redo', 'regrama', 'crelu', 'smooth_leaky_relu', 'fire']
    """
    if len(name) <= 4:
        return name.lower()
    pieces = re.split(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", name)
    words: list[str] = []
    for short, row in itertools.groupby(pieces, lambda piece: len(piece) <= 3 and piece.isalpha()):
        run = list(row)
        words += ["".join(run)] if short and any(len(piece) == 2 for piece in run) else run
    return "_".join(words).lower()


def parse_value(text: str) -> Any:
    """What a typed value stands for: a number, true, false, none, a list, or else the text itself.

    >>> parse_value("1e-4"), parse_value("[200, 200]"), parse_value("True"), parse_value("l2")
    (0.0001, [200, 200], True, 'l2')
    """
    text = text.strip()
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def unknown(kind: str, name: str, valid: Iterable[str]) -> IllegalConfiguration:
    """Return the one-line error for a name that does not exist: the nearest valid ones, or all of them."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return IllegalConfiguration(f"there is no {kind} {name!r}; nearest: {', '.join(near)}")
    return IllegalConfiguration(f"there is no {kind} {name!r}; valid: {', '.join(names) or 'none'}")


def resolve(kind: str, name: str, table: Mapping[str, type[Any]]) -> type[Any]:
    """Return the class called ``name`` in ``table``, or the one that ``my.module:Class`` names.

    Raises:
        IllegalConfiguration: no such name, module or class.
    """
    if ":" not in name:
        if name not in table:
            raise unknown(kind, name, table)
        return table[name]
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise IllegalConfiguration(f"{kind} {name!r}: module {module_name!r} cannot be imported ({error})") from error
    if not hasattr(module, attribute):
        public = [key for key, value in vars(module).items() if isinstance(value, type)]
        raise unknown(f"{kind} in module {module_name}", attribute, public)
    found = getattr(module, attribute)
    if not isinstance(found, type):
        raise IllegalConfiguration(f"{kind} {name!r} is not a class")
    return found


def option_names(cls: type[Any], skip: int = 0) -> dict[str, inspect.Parameter]:
    """Return the options of a class: the parameters of its constructor without the first ``skip`` and generators."""
    parameters = list(inspect.signature(cls).parameters.values())[skip:]
    return {
        parameter.name: parameter
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and parameter.name != "generator"
    }


def _plain(value: object) -> object:
    """Lists become tuples: JSON and TOML have only lists, frozen dataclasses want tuples."""
    return tuple(_plain(item) for item in value) if isinstance(value, list | tuple) else value


def _check(kind: str, cls: type[Any], options: Mapping[str, Any], skip: int) -> dict[str, inspect.Parameter]:
    valid = option_names(cls, skip)
    for option in options:
        if option not in valid:
            raise unknown(f"option of {kind} {snake_case(cls.__name__)}", option, valid)
    return valid


def build(kind: str, cls: type[Any], options: Mapping[str, Any], *args: Any) -> Any:
    """Construct ``cls(*args, **options)`` after checking the option names.

    Raises:
        IllegalConfiguration: an option does not exist, or the class refuses its value.
    """
    _check(kind, cls, options, len(args))
    try:
        return cls(*args, **{key: _plain(value) for key, value in options.items()})
    except (TypeError, ValueError) as error:
        raise IllegalConfiguration(f"{kind} {snake_case(cls.__name__)}: {error}") from error


def full_options(kind: str, cls: type[Any], options: Mapping[str, Any], skip: int = 0) -> dict[str, Any]:
    """Return the options with every default filled in, so that two spellings of one setting are one setting."""
    valid = _check(kind, cls, options, skip)
    defaults = {key: value.default for key, value in valid.items() if value.default is not inspect.Parameter.empty}
    return {key: _like(defaults.get(key), _plain(value)) for key, value in {**defaults, **options}.items()}


def _like(default: object, value: object) -> object:
    """Whole numbers for an option that is a float by default become floats: 1 and 1.0 are one setting."""
    return float(value) if isinstance(default, float) and type(value) is int else value
