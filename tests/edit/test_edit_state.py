"""The kinds of state that a method declares: made, found, saved and freed by the handle."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import pytest
import torch
import zoo
from catalogue import Sketch
from zoo import ZOO

import pliant
from pliant import IllegalConfiguration
from pliant.interventions.base import Host, PerParameter, PerUnit, Scalar, Snapshot, Tensors
from pliant.interventions.state import Memory, StateKind


@final
@dataclass(frozen=True)
class Everything(Sketch):
    """Declares one of each and counts in all of them."""

    where: str = "*weight"

    needs: ClassVar[frozenset[str]] = frozenset({"mean_abs_activation"})
    state: ClassVar[Mapping[str, StateKind]] = {
        "age": PerUnit(3, "int64"),
        "seen": PerUnit(0, "bool"),
        "mean": PerUnit(0.5),
        "exact": PerUnit(0.0, "float64", shape=(2, 3)),
        "budget": PerUnit(per_group=True),
        "initial": PerParameter("initial"),
        "average": PerParameter(0.25, "float32"),
        "slow": Snapshot(),
        "kept": Tensors(),
        "count": Host(0),
        "rate": Host(0.5),
        "phase": Host("early"),
        "is_on": Host(True),
    }

    def unit_pattern(self):
        return "*"

    def parameter_pattern(self):
        return self.where

    def act(self, ctx):
        for group in ctx.groups():
            ctx.state(group)["age"].add_(1)
            ctx.state(group)["exact"][..., 1, 2] += 1
        for name, tensor in ctx.parameter_state("average").items():
            tensor.add_(ctx.parameters()[name].detach().float())
        ctx.snapshot("slow")["0.bias"].zero_()
        ctx.tensors("kept")[f"at step {ctx.clock.step}"] = torch.full((ctx.clock.step,), 7)
        ctx.host["count"] += 1
        ctx.host["phase"] = "late"

    def on_record(self, ctx):
        return {"count": ctx.host["count"]}


def attached(method=None, dtype=torch.float32, **more):
    model = ZOO["mlp"].model().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    units = pliant.find_units(ZOO["mlp"].model(), torch.ones(2, 5))
    return model, optimizer, pliant.attach(model, optimizer, method or Everything(), units=units, **more)


def train(model, optimizer, start, stop):
    for step in range(start, stop):
        optimizer.zero_grad()
        zoo.loss_of(model(zoo.cast(ZOO["mlp"].batch(8, seed=step), next(model.parameters()).dtype))).backward()
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shapes_types_and_first_values(dtype):
    model, _, handle = attached(dtype=dtype)
    ctx = handle._contexts[0][0]
    group = handle.units["0"]
    state = ctx.state(group)
    precise = torch.float64 if dtype == torch.float64 else torch.float32  # bfloat16 could not count
    assert {key: (tuple(value.shape), value.dtype) for key, value in state.items()} == {
        "age": ((8,), torch.int64),
        "seen": ((8,), torch.bool),
        "mean": ((8,), precise),
        "exact": ((8, 2, 3), torch.float64),
        "budget": ((1,), precise),
    }
    assert (state["age"] == 3).all()
    assert (state["mean"] == 0.5).all()
    initial, average = ctx.parameter_state("initial"), ctx.parameter_state("average")
    assert list(initial) == list(average) == ["0.weight", "2.weight", "4.weight"]
    assert all(torch.equal(value, model.get_parameter(name)) for name, value in initial.items())
    assert {value.dtype for value in initial.values()} == {dtype}
    assert {value.dtype for value in average.values()} == {torch.float32}
    assert all((value == 0.25).all() for value in average.values())
    slow = ctx.snapshot("slow")
    assert list(slow) == list(model.state_dict())
    assert all(torch.equal(value, slow[name]) for name, value in model.state_dict().items())
    assert not any(value.requires_grad for value in [*initial.values(), *slow.values()])
    assert ctx.tensors("kept") == {}
    assert ctx.host == {"count": 0, "rate": 0.5, "phase": "early", "is_on": True}


def test_copies_are_copies():
    model, optimizer, handle = attached()
    ctx = handle._contexts[0][0]
    start = model[0].weight.detach().clone()
    train(model, optimizer, 0, 2)
    assert torch.equal(ctx.parameter_state("initial")["0.weight"], start)
    assert torch.equal(ctx.snapshot("slow")["0.weight"], start)
    assert not ctx.snapshot("slow")["0.bias"].any()  # the method wrote to its copy
    assert model[0].bias.any()


def test_everything_is_saved_and_restored_bit_by_bit():
    model, optimizer, handle = attached()
    train(model, optimizer, 0, 4)
    file = io.BytesIO()
    torch.save(handle.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    _, _, other = attached()
    other.load_state_dict(saved)
    again = other.state_dict()
    assert again["memory"]["0"]["host"] == [{"count": 2, "rate": 0.5, "phase": "late", "is_on": True}]
    assert list(saved["memory"]["0"]["tensors"]["kept"]) == ["at step 2", "at step 4"]
    for kind in ("parameters", "snapshots", "tensors"):
        for key, tensors in saved["memory"]["0"][kind].items():
            for name, value in tensors.items():
                assert torch.equal(again["memory"]["0"][kind][key][name], value)
                assert value.dtype == again["memory"]["0"][kind][key][name].dtype
    for group, tensors in saved["state"][0].items():
        for key, value in tensors.items():
            assert torch.equal(again["state"][0][group][key], value)
    assert (saved["state"][0]["0"]["age"] == 5).all()
    train(model, optimizer, 4, 6)  # what was saved does not change afterwards
    assert (saved["state"][0]["0"]["age"] == 5).all()
    assert saved["memory"]["0"]["host"][0]["count"] == 2


def test_each_optimizer_has_its_own_host_state_and_parameters():
    case = ZOO["actor_critic"]
    model = case.model()
    actor = torch.optim.SGD([*model.trunk.parameters(), *model.actor.parameters()], lr=1e-2)
    critic = torch.optim.SGD(model.critic.parameters(), lr=1e-2)

    @final
    @dataclass(frozen=True)
    class Counts(Sketch):
        state: ClassVar[Mapping[str, StateKind]] = {"count": Host(0), "initial": PerParameter("initial")}

        def act(self, ctx):
            ctx.host["count"] += 1
            ctx.edit.shrink(list(ctx.parameter_state("initial")), [0.9] * len(ctx.parameter_state("initial")))

        def on_record(self, ctx):
            return {"count": ctx.host["count"]}

    handle = pliant.attach(model, [actor, critic], [Counts(every=1), Counts(every=2)], example_inputs=case.batch())
    for step in range(4):
        zoo.loss_of(model(case.batch(seed=step))).backward()
        critic.step()
        if step % 2:
            actor.step()
    record = handle.record()
    assert {key: value for key, value in record.items() if "count" in key} == {
        "Counts.count[0]": 2,
        "Counts.count[1]": 4,
        "Counts#2.count[0]": 1,
        "Counts#2.count[1]": 2,
    }
    for ctx in handle._contexts[0]:
        assert set(ctx.parameter_state("initial")) == set(ctx.parameters())
    assert {name.split(".")[0] for name in handle._contexts[0][1].parameters()} == {"critic"}


def test_parameters_that_join_later_get_their_state_then():
    model = ZOO["mlp"].model()
    optimizer = torch.optim.SGD([*model[0].parameters(), *model[2].parameters()], lr=0.1)

    @final
    @dataclass(frozen=True)
    class Initial(Sketch):
        state: ClassVar[Mapping[str, StateKind]] = {"initial": PerParameter("initial")}

        def act(self, ctx):
            initial = ctx.parameter_state("initial")
            ctx.edit.shrink(list(initial), [0.5] * len(initial), towards=list(initial.values()))

    handle = pliant.attach(model, optimizer, Initial(every=1), example_inputs=torch.ones(2, 5))
    train(model, optimizer, 0, 2)
    with torch.no_grad():
        model[4].weight.fill_(2.0)
    optimizer.add_param_group({"params": model[4].parameters(), "lr": 0.0})
    train(model, optimizer, 2, 3)
    assert set(handle._contexts[0][0].parameter_state("initial")) == set(dict(model.named_parameters()))
    assert (model[4].weight == 2).all()
    file = handle.state_dict()
    handle.detach()
    fresh = pliant.attach(model, optimizer, Initial(every=1), example_inputs=torch.ones(2, 5))
    fresh.load_state_dict(file)
    assert torch.equal(fresh.state_dict()["memory"]["0"]["parameters"]["initial"]["0.weight"],
                       file["memory"]["0"]["parameters"]["initial"]["0.weight"])  # fmt: skip


def test_only_plain_values_live_on_the_host():
    _, _, handle = attached()
    host = handle._contexts[0][0].host
    host["count"] = torch.ones(2)
    with pytest.raises(IllegalConfiguration, match=r"host state 'count' is Tensor.*Host"):
        handle.state_dict()
    host["count"] = 1
    host["undeclared"] = 1
    with pytest.raises(IllegalConfiguration, match="undeclared"):
        handle.state_dict()


def test_an_unknown_type_is_refused_at_attach():
    @final
    @dataclass(frozen=True)
    class Odd(Everything.__mro__[1]):
        state: ClassVar[Mapping[str, StateKind]] = {"initial": PerParameter(0.0, "int8")}

    with pytest.raises(IllegalConfiguration, match=r"initial.*int8.*float32"):
        attached(Odd())


def test_members_have_a_dimension_of_their_own():
    units = pliant.find_units(ZOO["mlp"].model(), torch.ones(2, 5))
    tensors = {name: torch.zeros(3, *p.shape) for name, p in ZOO["mlp"].model().named_parameters()}
    sizes = {"num_members": 3, "num_optimizers": 1}
    memory = Memory(Everything.state, groups=list(units), trained=tensors, pattern="*", tensors=tensors, **sizes)
    assert tuple(memory.units["0"]["exact"].shape) == (3, 8, 2, 3)
    assert tuple(memory.units["0"]["budget"].shape) == (3, 1)
    assert tuple(memory.parameters["initial"]["0.weight"].shape) == (3, 8, 5)


def test_vectors_along_a_parameter_are_those_of_its_matrix():
    kinds = {"rows": PerParameter(1.0, along="rows"), "columns": PerParameter(2.0, "float32", along="columns")}
    shapes = {"kernel": (4, 2, 3, 3), "matrix": (5, 6), "vector": (7,), "number": ()}
    for members in (None, 3):
        lead = () if members is None else (members,)
        dtypes = {"kernel": torch.float64, "matrix": torch.bfloat16}
        tensors = {name: torch.zeros((*lead, *s), dtype=dtypes.get(name)) for name, s in shapes.items()}
        memory = Memory(
            kinds, groups=[], trained=tensors, pattern="*", tensors=tensors, num_members=members, num_optimizers=1
        )
        found = {key: {name: tuple(item.shape) for name, item in memory.parameters[key].items()} for key in kinds}
        assert found["rows"] == {"kernel": (*lead, 4), "matrix": (*lead, 5)}
        assert found["columns"] == {"kernel": (*lead, 18), "matrix": (*lead, 6)}
        assert memory.parameters["rows"]["kernel"].dtype == torch.float64
        assert memory.parameters["rows"]["matrix"].dtype == torch.float32  # the parameter's own is too narrow
        assert (memory.parameters["columns"]["kernel"] == 2).all()
    with pytest.raises(IllegalConfiguration, match="starts at a number"):
        Memory(
            {"rows": PerParameter("initial", along="rows")},
            **{"groups": [], "trained": tensors, "pattern": "*", "tensors": tensors},
            **{"num_members": None, "num_optimizers": 1},
        )


def test_scalars_are_one_per_optimizer_and_are_saved():
    case = ZOO["actor_critic"]
    model = case.model()
    actor = torch.optim.SGD(model.actor.parameters(), lr=0.1)
    critic = torch.optim.SGD([p for n, p in model.named_parameters() if not n.startswith("actor")], lr=0.1)

    @final
    @dataclass(frozen=True)
    class Sums(Sketch):
        state: ClassVar[Mapping[str, StateKind]] = {"sum": Scalar(5.0)}

        def act(self, ctx):
            ctx.scalar("sum").add_(ctx.clock.step)

    handle = pliant.attach(model, [actor, critic], Sums(every=1), example_inputs=case.batch())
    for step in range(3):
        zoo.loss_of(model(case.batch(seed=step))).backward()
        critic.step()
    actor.step()
    assert [float(ctx.scalar("sum")) for ctx in handle._contexts[0]] == [6.0, 11.0]
    saved = handle.state_dict()
    critic.step()
    assert float(saved["memory"]["0"]["scalars"]["sum"]["1"]) == 11.0
    handle.load_state_dict(saved)
    assert [float(ctx.scalar("sum")) for ctx in handle._contexts[0]] == [6.0, 11.0]
    tensors = {"weight": torch.zeros(3, 2, 2, dtype=torch.float64)}
    sizes = {"num_members": 3, "num_optimizers": 2}
    memory = Memory({"sum": Scalar(1.5)}, groups=[], trained=tensors, pattern="*", tensors=tensors, **sizes)
    assert {key: item.tolist() for key, item in memory.scalars["sum"].items()} == {"0": [1.5] * 3, "1": [1.5] * 3}
    assert memory.scalars["sum"]["0"].dtype == torch.float64


@final
@dataclass(frozen=True)
class Norms(Sketch):
    """Remembers how long each parameter was."""

    state: ClassVar[Mapping[str, StateKind]] = {"norm": PerParameter("norm"), "exact": PerParameter("norm", "float64")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_norm_for_each_parameter(dtype):
    model, _, handle = attached(Norms(), dtype)
    state = handle.state_dict()["memory"]["0"]["parameters"]
    for name, parameter in model.named_parameters():
        norm = state["norm"][name]
        assert norm.shape == (1,) * parameter.ndim
        assert norm.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert state["exact"][name].dtype == torch.float64
        assert float(norm) == pytest.approx(float(parameter.detach().double().norm()), rel=1e-6)


def test_a_norm_for_each_member():
    weight = torch.tensor([[[3.0, 4.0]], [[0.0, 2.0]]])
    memory = Memory(
        {"norm": PerParameter("norm")},
        **{"groups": (), "trained": {"w": weight}, "pattern": "*", "tensors": {"w": weight}},
        **{"num_members": 2, "num_optimizers": 1},
    )
    assert torch.equal(memory.parameters["norm"]["w"], torch.tensor([[[5.0]], [[2.0]]]))
