"""Which settings of an experiment are searched, from where to where, and the experiment with some values of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pliant.bench.experiment import Experiment, Part, method_table, optimizer_table
from pliant.bench.models import MODELS
from pliant.bench.names import option_names, parse_value, resolve, unknown
from pliant.errors import IllegalConfiguration
from pliant.search import Choice, Domain, Range

__all__ = ["apply", "default_space", "domain_from_json", "domain_to_json", "parse_domain", "present", "with_overrides"]

_PLAIN = Range(1e-4, 1.0, log=True)
_ADAPTIVE = Range(1e-5, 1e-1, log=True)
_PLAIN_OPTIMIZERS = ("sgd", "asgd", "rprop")


def _parts(experiment: Experiment) -> dict[str, tuple[Part, type[Any], int]]:
    """By owner: the part, its class, and how many leading arguments of it are no options."""
    optimizer = resolve("optimizer", experiment.optimizer.name, optimizer_table())
    found = {
        "optimizer": (experiment.optimizer, optimizer, 1),
        "model": (experiment.model, resolve("model", experiment.model.name, MODELS), 2),
    }
    for part in experiment.methods:
        found[part.short_name] = (part, resolve("method", part.name, method_table()), 0)
    return found


def default_space(experiment: Experiment) -> dict[str, Domain]:
    """What its optimizer, its model and its methods declare in ``search``, and the step size, by ``owner.option``.

    An optimizer that declares nothing is searched from 1e-4 to 1 if it takes plain steps, and from 1e-5 to 0.1 if it
    adapts them.

    >>> list(default_space(Experiment("random_label_digits", ["redo"])))
    ['optimizer.lr', 'redo.tau', 'redo.every']
    """
    space: dict[str, Domain] = {}
    for owner, (part, cls, skip) in _parts(experiment).items():
        declared: Mapping[str, Domain] = getattr(cls, "search", {})
        options = option_names(cls, skip)
        if owner == "optimizer" and not declared and "lr" in options:
            declared = {"lr": _PLAIN if part.name in _PLAIN_OPTIMIZERS else _ADAPTIVE}
        for option, domain in declared.items():
            if option not in options or not isinstance(domain, Range | Choice):
                raise IllegalConfiguration(
                    f"{cls.__name__}.search: {option!r} is no option of it, or {domain!r} no domain"
                )
            space[f"{owner}.{option}"] = domain
    return space


def with_overrides(experiment: Experiment, searched: Mapping[str, Domain], fixed: Collection[str]) -> dict[str, Domain]:
    """The default space, without what is fixed, and with what somebody wants searched otherwise.

    Args:
        experiment: What is tuned.
        searched: By ``owner.option``; an option without an owner belongs to the only method, or is the step size.
        fixed: ``owner.option`` that were given a value.

    Raises:
        IllegalConfiguration: an option that does not exist, or that is both searched and fixed; or nothing is left.
    """
    space = {key: domain for key, domain in default_space(experiment).items() if key not in fixed}
    parts = _parts(experiment)
    for key, domain in searched.items():
        owner, dot, option = key.rpartition(".")
        if not dot:
            owner = "optimizer" if key == "lr" or not experiment.methods else experiment.methods[-1].short_name
        if owner not in parts:
            raise unknown(f"owner of the option {key}", owner, parts)
        _, cls, skip = parts[owner]
        if option not in option_names(cls, skip):
            raise unknown(f"option of {owner}", option, option_names(cls, skip))
        if f"{owner}.{option}" in fixed:
            raise IllegalConfiguration(f"{owner}.{option} is both given and searched: leave one of the two out")
        space[f"{owner}.{option}"] = domain
    if not space:
        raise IllegalConfiguration("nothing is left to search: every option was given a value")
    return space


def present(experiment: Experiment, space: Mapping[str, Domain], steps_per_task: int) -> dict[str, Any] | None:
    """The values that an experiment has now, in the units of the space; None if one of them is outside of it."""
    parts = _parts(experiment)
    values: dict[str, Any] = {}
    for key, domain in space.items():
        owner, _, option = key.rpartition(".")
        value = parts[owner][0].options.get(option)
        if isinstance(domain, Choice):
            if repr(value) not in map(repr, domain.values):
                return None
            values[key] = value
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        number = value / steps_per_task if domain.unit == "task" else value
        if not domain.low <= number <= domain.high or (domain.integer and number != int(number)):
            return None
        values[key] = int(number) if domain.integer else float(number)
    return values


def apply(
    experiment: Experiment, space: Mapping[str, Domain], values: Mapping[str, Any], steps_per_task: int
) -> Experiment:
    """The experiment with the given values of what is searched.

    >>> plain = Experiment("random_label_digits", ["redo"])
    >>> space = {"redo.every": Range(0.1, 10, log=True, unit="task")}
    >>> apply(plain, space, {"redo.every": 0.5}, steps_per_task=640).methods[0].options["every"]
    320
    """
    options: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        owner, _, option = key.rpartition(".")
        domain = space[key]
        in_tasks = isinstance(domain, Range) and domain.unit == "task"
        options.setdefault(owner, {})[option] = max(1, round(value * steps_per_task)) if in_tasks else value

    def changed(owner: str, part: Part) -> Part:
        return Part(part.name, {**part.options, **options.get(owner, {})})

    return experiment.replace(
        optimizer=changed("optimizer", experiment.optimizer),
        model=changed("model", experiment.model),
        methods=tuple(changed(part.short_name, part) for part in experiment.methods),
    )


def parse_domain(key: str, text: str) -> Domain:
    """What is typed for a domain: ``1e-3:1e-1``, ``log:1e-3:1e-1``, ``int:1:9``, ``log:int:1:999`` or ``[a,b,c]``.

    Raises:
        IllegalConfiguration: none of these forms.

    >>> parse_domain("lr", "log:1e-3:0.1"), parse_domain("utility", "[l1, l2]").values
    (Range(low=0.001, high=0.1, log=True, integer=False, unit=''), ('l1', 'l2'))
    """
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        return Choice(tuple(parse_value(item) for item in text[1:-1].split(",")))
    try:
        *kinds, low, high = text.split(":")  # one piece alone is a ValueError, too
        if not set(kinds) <= {"log", "int", "task"}:
            raise ValueError(text)
        unit = "task" if "task" in kinds else ""
        return Range(float(low), float(high), log="log" in kinds, integer="int" in kinds, unit=unit)
    except ValueError:
        raise IllegalConfiguration(
            f"--search {key}={text}: give a range such as 1e-3:1e-1 or log:1e-3:1e-1 (log:int: for whole numbers, "
            "log:task: for periods in tasks), or values such as [0.1,0.2]"
        ) from None


def domain_to_json(domain: Domain) -> dict[str, Any]:
    """A domain as JSON data."""
    if isinstance(domain, Choice):
        return {"values": list(domain.values)}
    return {"low": domain.low, "high": domain.high, "log": domain.log, "integer": domain.integer, "unit": domain.unit}


def domain_from_json(data: Mapping[str, Any]) -> Domain:
    """The domain of :func:`domain_to_json`."""
    return Choice(tuple(data["values"])) if "values" in data else Range(**data)
