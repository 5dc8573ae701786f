"""Methods in a list act in order, and what cannot act says so by name: for every method that is exported."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import warnings
from dataclasses import dataclass
from typing import Any, final

import pytest
import torch
import zoo
from contract_tools import METHODS, Run, assert_same_bits, differ, listed, num_hooks, units_of
from zoo import ZOO

import pliant
from pliant import IllegalConfiguration, NoEffect, NoEffectWarning, PliantError
from pliant.bench.experiment import method_table
from pliant.interventions import L2, ContinualBackprop, ReDo, ShrinkAndPerturb
from pliant.interventions.base import Context, Intervention, PerUnit, require
from pliant.reminders import PENALTY_AFTER

EXPORTED = method_table()
SINGLE = {name: method for name, method in METHODS.items() if not isinstance(method, list)}


def example_of(cls: type[Any]) -> Any:
    """An instance that can be attached to the ``mlp``: the contracts' first setting of it, or its defaults."""
    return next((method for method in SINGLE.values() if type(method) is cls), None) or cls()


@final
@dataclass(frozen=True)
class Times(Intervention):
    """Multiplies the outgoing weights of the first unit of every group."""

    factor: float = 2.0

    def null(self):
        return Times(1.0)

    def unit_pattern(self):
        return "*"

    def after_step(self, ctx: Context):
        for group in ctx.groups():
            first = torch.arange(group.size) == 0
            ctx.edit.scale(group, torch.where(first, self.factor, 1.0), reason=f"times {self.factor}")


@final
@dataclass(frozen=True)
class Plus(Intervention):
    """Adds a number to all parameters."""

    amount: float = 1.0

    def null(self):
        return Plus(0.0)

    def after_step(self, ctx: Context):
        parameters = ctx.parameters()
        ctx.edit.add(list(parameters), [torch.full_like(p, self.amount) for p in parameters.values()])


def one_step(methods, lr=0.1, **attach):
    """One step with gradients of zero: whatever changes is an edit."""
    model = ZOO["mlp"].model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    handle = pliant.attach(model, optimizer, methods, units=units_of("mlp"), **attach)
    (zoo.loss_of(model(ZOO["mlp"].batch())) * 0).backward()
    optimizer.step()
    return model, before, handle


# ---- order ----
def test_the_log_has_the_order_of_the_list():
    for methods in itertools.permutations([Times(3.0), Plus(), ReDo(tau=100.0, every=1)]):
        _, _, handle = one_step(list(methods))
        names = [name for name, _ in itertools.groupby(event.intervention for event in handle.events)]
        assert names == [type(method).__name__ for method in methods]


@pytest.mark.parametrize("first_resets", [True, False])
def test_two_edits_of_one_unit_in_one_step_are_both_in_the_log(first_resets):
    pair = [ReDo(tau=100.0, every=1, where="0"), Times(3.0)]
    model, _, handle = one_step(pair if first_resets else pair[::-1])
    actions = [(event.action, event.intervention) for event in handle.events if event.group == "0" and 0 in event.units]
    wanted = [("reset", "ReDo"), ("scale", "Times")]
    assert actions == (wanted if first_resets else wanted[::-1])
    assert not model[2].weight[:, 0].any()  # zero, whether it was scaled before or after
    assert int(handle.num_resets["0"]) == ZOO["mlp"].groups["0"].size


def test_the_order_matters_and_is_respected():
    decayed_first, before, _ = one_step([L2(0.5), Plus(1.0)], lr=0.1)
    added_first, _, _ = one_step([Plus(1.0), L2(0.5)], lr=0.1)
    for name, start in before.items():
        assert torch.allclose(decayed_first.get_parameter(name), start * 0.95 + 1.0, atol=1e-6)
        assert torch.allclose(added_first.get_parameter(name), (start + 1.0) * 0.95, atol=1e-6)


def test_a_method_may_be_listed_twice_and_acts_twice():
    model, before, handle = one_step([Times(3.0), Times(5.0)])
    assert torch.allclose(model[2].weight[:, 0], before["2.weight"][:, 0] * 15.0)
    reasons = [event.reason for event in handle.events if event.group == "0"]
    assert reasons == ["times 3.0", "times 5.0"]


def test_methods_of_a_list_do_not_share_state():
    pair = [ContinualBackprop(0.0, maturity_threshold=3), ContinualBackprop(0.0, maturity_threshold=50, sample_every=4)]
    both = Run("mlp", "sgd", pair).train()
    for index, method in enumerate(pair):
        alone = Run("mlp", "sgd", method).train().handle.state_dict()["state"][0]
        together = both.handle.state_dict()["state"][index]
        for group, entries in alone.items():
            for key, value in entries.items():
                assert torch.equal(value, together[group][key]), (index, group, key)


@pytest.mark.parametrize("name", SINGLE)
def test_every_method_goes_together_with_a_reset_and_a_decay(name):
    """Unless it says that it does not: then attach says so, too."""
    method = SINGLE[name]
    others = [L2(0.01), ReDo(tau=1.0, every=3)]
    for order in ([method, *others], [*others, method]):
        if any(method.conflicts_with(other) or other.conflicts_with(method) for other in others):
            with pytest.raises(IllegalConfiguration, match="do not go together"):
                Run("mlp", "adam", order)
            continue
        run = Run("mlp", "adam", order).train()
        assert all(p.isfinite().all() for p in run.model.parameters())
        assert run.handle.num_resets
        assert differ(Run("mlp", "adam", others).train().bits(), run.bits())
        assert_same_bits(run.bits(), Run("mlp", "adam", order).train().bits())
        run.handle.detach()
        assert num_hooks(run.model, run.optimizer) == 0


# ---- conflicts ----
@pytest.mark.parametrize("pair", [*itertools.combinations_with_replacement(sorted(EXPORTED), 2)], ids="-".join)
def test_what_two_methods_say_of_each_other_is_what_attach_does(pair):
    one, other = (example_of(EXPORTED[name]) for name in pair)
    reasons = {why for why in (one.conflicts_with(other), other.conflicts_with(one)) if why is not None}
    assert all(reason.strip() for reason in reasons)
    for methods in ([one, other], [other, one]) if reasons else ():
        model = ZOO["mlp"].model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(IllegalConfiguration, match="do not go together") as caught:
            pliant.attach(model, optimizer, methods, example_inputs=ZOO["mlp"].batch())
        assert all(type(method).__name__ in str(caught.value) for method in methods)
        assert any(reason.rstrip(".") in str(caught.value) for reason in reasons)
        assert num_hooks(model, optimizer) == 0


# ---- reminders ----
WAITING_NULLS: set[str] = set()
"""Nulls that still wait for a boundary; it has to stay empty."""


@pytest.mark.parametrize("name", METHODS)
def test_whatever_waits_for_a_call_says_so_and_the_null_does_not(name):
    methods = listed(METHODS[name])
    wanted = {
        "penalty": [type(method).__name__ for method in methods if method.needs_penalty],
        "batch": [type(method).__name__ for method in methods if method.needs_batch],
        "task_boundary": [type(method).__name__ for method in methods if method.needs_boundary],
    }
    for given in (methods, [method.null() for method in methods]):
        run = Run("mlp", "adam", given)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(PENALTY_AFTER + 1):
                run.optimizer.zero_grad()
                zoo.loss_of(run.model(run.batch(0))).backward()
                run.optimizer.step()
            run.handle.detach()
        waits = given is methods or name in WAITING_NULLS
        said = [str(item.message) for item in caught if item.category is NoEffectWarning]
        expected = [(call, names) for call, names in wanted.items() if names] if waits else []
        assert len(said) == len(expected), said
        for call, names in expected:
            assert any(f"handle.{call}()" in text and all(n in text for n in names) for text in said), (call, said)


def test_one_reminder_names_all_that_wait():
    run = Run("mlp", "sgd", [ShrinkAndPerturb(), ReDo(), pliant.FreshStart()])
    run.optimizer.zero_grad()
    zoo.loss_of(run.model(run.batch(0))).backward()
    run.optimizer.step()
    with pytest.warns(NoEffectWarning, match="ShrinkAndPerturb, FreshStart acts at task boundaries"):
        run.handle.detach()


# ---- hyper-parameters ----
SILENT: set[str] = set()
"""Methods that do not refuse a pattern without a match yet; it has to stay empty."""

NUMBERS = [math.nan, -1, -1e30]
"""No field of any method takes these, but for the exceptions."""
ALLOWED: dict[tuple[str, str], tuple[float, ...]] = {}
"""Class and field to those of the numbers that mean something there."""
FREE_TEXT: set[tuple[str, str]] = {("FIRE", "fused")}
"""Patterns that need not match anything."""
PERIODS = re.compile(r"every$|_every$|^period|^interval")
"""Fields of this name count steps or tasks, so that zero means nothing, either."""


def is_free(cls: type[Any], field: str) -> bool:
    return (cls.__name__, field) in FREE_TEXT or (cls.__name__ in SILENT and field == "where")


def bad_values() -> list[Any]:
    found = []
    for cls in EXPORTED.values():
        for field in dataclasses.fields(cls):
            kinds = set(re.findall(r"\w+", str(field.type)))
            allowed = ALLOWED.get((cls.__name__, field.name), ())
            if kinds & {"int", "float"}:
                values = [*NUMBERS, *([0] if PERIODS.search(field.name) else [])]
                found += [(cls, field.name, value) for value in values if value not in allowed]
            if kinds & {"str", "Literal"} and not is_free(cls, field.name):
                found.append((cls, field.name, "no such thing"))
    return found


def label(part: Any) -> str:
    return getattr(part, "__name__", str(part))


@pytest.mark.parametrize(("cls", "field", "value"), bad_values(), ids=label)
def test_a_hyper_parameter_out_of_range_is_refused_by_name(cls, field, value):
    """Not a number included: comparisons with it are false, so a check has to ask for what is right."""
    model = ZOO["mlp"].model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    method = dataclasses.replace(example_of(cls), **{field: value})
    with pytest.raises(PliantError) as caught:
        pliant.attach(model, optimizer, method, example_inputs=ZOO["mlp"].batch())
    message = str(caught.value)
    assert cls.__name__ in message
    if isinstance(value, str):  # a choice that does not exist, or a pattern that matches nothing
        assert value in message
    else:
        assert isinstance(caught.value, IllegalConfiguration)
        assert re.search(rf"{cls.__name__}: {field}={re.escape(repr(value))} .*must be", message), message
    assert num_hooks(model, optimizer) == 0
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_the_table_covers_every_field():
    covered = {(cls.__name__, field) for cls, field, _ in bad_values()}
    for cls in EXPORTED.values():
        for field in dataclasses.fields(cls):
            if str(field.type) not in ("bool", "bool | None") and not is_free(cls, field.name):
                assert (cls.__name__, field.name) in covered, f"{cls.__name__}.{field.name}: {field.type}"


@final
@dataclass(frozen=True)
class Rows(Intervention):
    """As many numbers per unit as an option says: nothing can be made of a bad one, so it is refused before."""

    rows: int = 2

    @property
    def state(self):
        return {"rows": PerUnit(shape=(self.rows,))}

    def check(self):
        require(self.rows >= 1, self, "rows", ">= 1")

    def null(self):
        return self

    def unit_pattern(self):
        return "*"


def test_options_that_the_state_depends_on_are_refused_before_it_is_made():
    assert Run("mlp", "sgd", Rows(3)).handle.state_dict()["state"][0]["0"]["rows"].shape[1] == 3
    for value in (math.nan, 0, -1e30):
        with pytest.raises(IllegalConfiguration, match=r"Rows: rows=.*must be >= 1"):
            Run("mlp", "sgd", Rows(value))


# ---- nothing to act on ----
FIELDS = [(cls, field.name) for cls in EXPORTED.values() for field in dataclasses.fields(cls)]
PATTERNS = [(cls, name) for cls, name in FIELDS if name.startswith("where")]


@pytest.mark.parametrize(("cls", "field"), PATTERNS, ids=label)
def test_a_pattern_that_matches_nothing_is_no_effect_by_name(cls, field):
    def attach():
        Run("mlp", "sgd", dataclasses.replace(example_of(cls), **{field: "nothing*"}))

    if cls.__name__ in SILENT:
        attach()  # once it refuses, this fails: take it from the list
        return
    with pytest.raises(NoEffect, match=cls.__name__) as caught:
        attach()
    assert "nothing*" in str(caught.value)
