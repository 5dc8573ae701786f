"""Several modules traced as one, nested inputs, and inputs that cannot be right."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from zoo_several import Actor, Critic

import pliant
from pliant import IllegalConfiguration, NoEffect, UnsupportedOp
from pliant.stats.capture import capture, named_tensors


def trunk() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh())


def models(*, shared: bool = True, tied: bool = False) -> dict[str, nn.Module]:
    first = trunk()
    second = first if shared else trunk()
    if tied:
        second[0].weight, second[0].bias = first[0].weight, first[0].bias
    return {"actor": Actor(first), "critic": Critic(second)}


def inputs(size: int = 4) -> dict[str, tuple[Tensor, ...]]:
    obs, act = torch.randn(size, 5), torch.randn(size, 2)
    return {"actor": (obs,), "critic": (obs, act)}


def members(units: pliant.UnitGraph) -> dict[str, set[str]]:
    return {group.name: {piece.label for piece in group.slices} for group in units}


HEADS = {
    "actor.fc": {"actor.fc.weight[-2]", "actor.fc.bias[-1]", "actor.out.weight[-1]"},
    "critic.fc": {"critic.fc.weight[-2]", "critic.fc.bias[-1]", "critic.out.weight[-1]"},
}


@pytest.mark.parametrize("kind", ["one trunk", "tied tensors"])
def test_what_is_shared_is_one_group_with_the_members_of_both(kind):
    both = models(shared=kind == "one trunk", tied=kind == "tied tensors")
    units = pliant.find_units(both, inputs())
    assert members(units) == {
        "actor.trunk.0": {
            *("actor.trunk.0.weight[-2]", "actor.trunk.0.bias[-1]", "actor.fc.weight[-1]", "critic.fc.weight[-1]")
        },
        **HEADS,
    }
    result = units.verify(both, inputs())
    assert result.ok, result
    assert {group.name: str(group.tap) for group in units} == {
        "actor.trunk.0": "output of actor.trunk.1",
        "actor.fc": "input of actor.out",
        "critic.fc": "input of critic.out",
    }
    alone = pliant.find_units(both["actor"], inputs()["actor"])
    assert "critic" not in str(alone["trunk.0"].tensors)  # what looking at one of them alone would miss


def test_separate_trunks_are_separate_groups():
    both = models(shared=False)
    units = pliant.find_units(both, inputs())
    assert members(units) == {
        "actor.trunk.0": {"actor.trunk.0.weight[-2]", "actor.trunk.0.bias[-1]", "actor.fc.weight[-1]"},
        "critic.trunk.0": {"critic.trunk.0.weight[-2]", "critic.trunk.0.bias[-1]", "critic.fc.weight[-1]"},
        **HEADS,
    }
    assert units.verify(both, inputs()).ok


def test_the_graph_does_not_fit_other_models():
    units = pliant.find_units(models(), inputs())
    with pytest.raises(IllegalConfiguration, match="does not have"):
        units.verify(models()["actor"], inputs()["actor"])
    assert not units.verify(models(shared=False), inputs()).ok  # names fit, but the critic has a trunk of its own


def test_activations_of_several_models():
    both = models()
    units, batch = pliant.find_units(both, inputs()), inputs(6)
    seen = capture(both, units, batch)
    hidden = both["actor"].trunk(batch["actor"][0])
    assert torch.allclose(seen["actor.trunk.0"], torch.cat([hidden, hidden]))  # it runs in both forwards
    assert torch.allclose(seen["actor.fc"], torch.relu(both["actor"].fc(hidden)))
    joined = torch.cat([hidden, batch["critic"][1]], -1)
    assert torch.allclose(seen["critic.fc"], torch.relu(both["critic"].fc(joined)))
    assert list(named_tensors(both))[:2] == ["actor.trunk.0.weight", "actor.trunk.0.bias"]
    assert not any(name.startswith("critic.trunk") for name in named_tensors(both))


def test_looking_changes_nothing():
    """Both names of a shared module keep its own parameters (a plain functional call restores only one of them)."""
    both = models()
    identities = {id(parameter) for part in both.values() for parameter in part.parameters()}
    both["critic"].eval()
    pliant.find_units(both, inputs()).verify(both, inputs())
    assert {id(parameter) for part in both.values() for parameter in part.parameters()} == identities
    assert all(isinstance(item, nn.Parameter) for item in (both["actor"].trunk[0].weight, both["critic"].trunk[0].bias))
    assert both["actor"].training
    assert not both["critic"].training
    assert not any(m._forward_hooks or m._forward_pre_hooks for part in both.values() for m in part.modules())


def test_a_layer_under_two_names_keeps_its_parameters():
    layer = nn.Linear(8, 8)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(8, 2))
    weight, before = layer.weight, layer.weight.detach().clone()
    units = pliant.find_units(model, torch.randn(3, 5))
    assert units.verify(model, torch.randn(3, 5)).ok
    assert layer.weight is weight
    assert torch.equal(weight, before)


def test_the_same_tensor_given_twice_is_two_inputs():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(5, 6), nn.Linear(5, 7)
            self.one, self.two = nn.Linear(6, 2), nn.Linear(7, 2)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.one(torch.relu(self.left(a))) + self.two(torch.relu(self.right(b)))

    x = torch.randn(3, 5)
    units = pliant.find_units(Two(), (x, x))
    assert {group.name: str(group.tap) for group in units} == {"left": "input of one", "right": "input of two"}


# ---- nested inputs ----
class Robot(nn.Module):
    """Observations are a dict with a list inside."""

    def __init__(self) -> None:
        super().__init__()
        self.joints, self.eyes = nn.Linear(4, 8), nn.ModuleList(nn.Linear(3, 5) for _ in range(2))
        self.merge, self.out = nn.Linear(8 + 10, 6), nn.Linear(6, 2)

    def forward(self, obs: dict, scale: Tensor | None = None) -> dict[str, Tensor]:
        seen = [torch.relu(eye(x)) for eye, x in zip(self.eyes, obs["views"], strict=True)]
        h = torch.cat([torch.tanh(self.joints(obs["joints"])), *seen], -1)
        h = torch.relu(self.merge(h))
        return {"action": self.out(h if scale is None else h * scale)}


def robot_inputs() -> dict:
    return {"joints": torch.randn(3, 4), "views": [torch.randn(3, 3), torch.randn(3, 3)]}


@pytest.mark.parametrize(
    "how", [lambda obs: (obs,), lambda obs: {"obs": obs}, lambda obs: {"obs": obs, "scale": torch.rand(3, 1)}]
)
def test_dict_observations(how):
    model, given = Robot(), how(robot_inputs())
    units = pliant.find_units(model, given)
    assert {group.name: group.size for group in units} == {"joints": 8, "eyes.0": 5, "eyes.1": 5, "merge": 6}
    assert units.verify(model, given).ok
    assert capture(model, units, given)["merge"].shape == (3, 6)


def test_a_dict_that_was_meant_as_one_input_is_explained():
    with pytest.raises(IllegalConfiguration, match=r"do not fit Robot\.forward.*example_inputs=\(the_dict,\)"):
        pliant.find_units(Robot(), robot_inputs())


@dataclasses.dataclass
class Sight:
    left: Tensor
    right: Tensor


class Eyes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, sight: Sight, gain: float = 1.0) -> Tensor:
        return self.out(torch.relu(self.fc(sight.left) + self.fc(sight.right)) * gain)


def test_dataclasses_are_inputs_once_they_are_registered():
    sight = Sight(torch.randn(4, 3), torch.randn(4, 3))
    with pytest.raises(IllegalConfiguration, match=r"input 0 is a Sight.*register_dataclass\(Sight\)"):
        pliant.find_units(Eyes(), (sight,))
    torch.export.register_dataclass(Sight)
    units = pliant.find_units(Eyes(), (sight, 2.0))
    assert [group.name for group in units] == ["fc"]
    model = Eyes()
    assert units.verify(model, (sight, 2.0)).ok
    assert capture(model, units, (sight, 2.0))["fc"].shape == (4, 8)


# ---- what cannot be right ----
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"actor": torch.randn(4, 5)}, r"'actor', 'critic'.*given: 'actor'"),
        ({"actor": torch.randn(4, 5), "value": torch.randn(4, 5)}, "given: 'actor', 'value'"),
        ((torch.randn(4, 5),), "given: a tuple"),
        (inputs() | {"critic": torch.randn(4, 5)}, r"of 'critic' do not fit Critic\.forward: missing.*'act'"),
        (inputs() | {"critic": {"obs": torch.randn(4, 5), "action": torch.randn(4, 2)}}, "of 'critic' do not fit"),
        (inputs() | {"actor": 3.0}, "of 'actor' are of type float, not a tensor"),
        (inputs() | {"actor": (np.zeros((4, 5), np.float32),)}, r"input 0 of 'actor' is a NumPy.*as_tensor"),
        (inputs() | {"actor": (torch.randn(4, 5, device="meta"),)}, "of 'actor' is on meta, but the model is on cpu"),
        (inputs() | {"actor": torch.randn(4, 4)}, r"in 'actor': Actor fails.*\(4, 4\)"),
    ],
)
def test_wrong_inputs_of_several_models_name_the_model(given, message):
    with pytest.raises(IllegalConfiguration, match=message):
        pliant.find_units(models(), given)


def test_wrong_inputs_of_one_model_name_the_input():
    with pytest.raises(IllegalConfiguration, match=r"are of type int, not a tensor"):
        pliant.find_units(Robot(), 3)
    nested = robot_inputs()
    nested["views"][1] = nested["views"][1].to("meta")
    with pytest.raises(IllegalConfiguration, match=r"example input 0\['views'\]\[1\] is on meta"):
        pliant.find_units(Robot(), (nested,))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "empty"),
        ({"actor": 3}, "not an nn.Module"),
        ({"a.b": nn.Linear(2, 2)}, "a.b"),
        ({"train": trunk()}, "train"),
    ],
)
def test_wrong_mappings_of_models(wrong, message):
    with pytest.raises(IllegalConfiguration, match=message):
        pliant.find_units(wrong, dict.fromkeys(wrong, torch.randn(3, 5)))


def test_models_without_hidden_units_are_named_together():
    with pytest.raises(NoEffect, match="Linear and ReLU has no hidden units"):
        pliant.find_units({"a": nn.Linear(3, 2), "b": nn.ReLU()}, {"a": torch.randn(2, 3), "b": torch.randn(2, 3)})


def test_of_several_models_the_one_that_cannot_be_followed_is_named():
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) if x.sum() > 0 else -self.fc(x)

    with pytest.raises(UnsupportedOp, match=r"in 'router': torch\.export cannot follow Branching"):
        pliant.find_units(models() | {"router": Branching()}, inputs() | {"router": torch.randn(3, 5)})


def test_a_compiled_model_among_several_is_refused_by_name():
    both = models(shared=False)
    compiled = both | {"critic": torch.compile(both["critic"], backend="eager")}
    with pytest.raises(IllegalConfiguration, match=r"submodule 'critic' is compiled.*torch\.compile afterwards"):
        pliant.find_units(compiled, inputs())
    both["actor"].fc.compile(backend="eager")
    with pytest.raises(IllegalConfiguration, match=r"submodule 'actor\.fc' is compiled"):
        pliant.find_units(both, inputs())


def test_a_tap_reads_the_units_where_it_says_they_are():
    """One consumer without a hook reads the units alone; another reads them behind something else."""

    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.other = nn.Linear(5, 8), nn.Linear(5, 3)
            self.raw, self.out = nn.Parameter(torch.randn(2, 8)), nn.Linear(11, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.fc(x))
            return nn.functional.linear(h, self.raw) + self.out(torch.cat([torch.tanh(self.other(x)), h], -1))

    model, x = Behind(), torch.randn(4, 5)
    units = pliant.find_units(model, x)
    assert torch.allclose(capture(model, units, x)["fc"], torch.relu(model.fc(x)))
    assert torch.allclose(capture(model, units, x)["other"], torch.tanh(model.other(x)))


# ---- wrappers ----
def test_wrapped_models_are_refused_by_name_before_export(single_process_group):
    both = models(shared=False)
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in both.values()]
    units = pliant.find_units(both, inputs())
    ddp = both | {"critic": nn.parallel.DistributedDataParallel(both["critic"])}
    with pytest.raises(IllegalConfiguration, match=r"submodule 'critic' is wrapped in DistributedDataParallel: find"):
        pliant.find_units(ddp, inputs())
    with pytest.raises(IllegalConfiguration, match=r"'critic' is wrapped in DistributedDataParallel.*units="):
        pliant.attach(ddp, optimizers, pliant.ReDo(), example_inputs=inputs())
    with pytest.raises(IllegalConfiguration, match="wrap all of the models in it, or none"):
        pliant.attach(ddp, optimizers, pliant.ReDo(), units=units)
    all_wrapped = {name: nn.parallel.DistributedDataParallel(part) for name, part in models(shared=False).items()}
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in all_wrapped.values()]
    handle = pliant.attach(all_wrapped, optimizers, pliant.ReDo(tau=1.0, every=1), units=units)
    obs, act = inputs()["critic"]
    (all_wrapped["critic"](obs, act) + all_wrapped["actor"](obs).sum()).sum().backward()
    for item in optimizers:
        item.step()
    assert set(handle.num_resets) == set(members(units))
    handle.detach()


@pytest.mark.parametrize("where", ["the model", "submodule 'fc'"])
def test_sharded_models_are_refused_before_export_and_still_run(single_process_group, where):
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    model = models()["actor"]
    fully_shard(model if where == "the model" else model.fc, mesh=mesh)
    message = "is sharded by fully_shard: find the units of the plain model before sharding it"
    with pytest.raises(IllegalConfiguration, match=f"{where} {message}"):
        pliant.find_units(model, torch.randn(3, 5))
    name = "'net'" if where == "the model" else r"'net\.fc'"
    with pytest.raises(IllegalConfiguration, match=f"submodule {name} {message}"):
        pliant.find_units({"net": model}, {"net": torch.randn(3, 5)})
    model(torch.randn(3, 5)).sum().backward()  # export would have destroyed a model that never ran


@pytest.mark.filterwarnings("ignore")
def test_fsdp1_and_data_parallel_are_refused_before_export(single_process_group):
    wrapped = nn.DataParallel(models()["actor"])
    with pytest.raises(IllegalConfiguration, match=r"'actor' is wrapped in DataParallel: pass the plain model"):
        pliant.find_units({"actor": wrapped}, {"actor": torch.randn(3, 5)})
    sharded = FullyShardedDataParallel(models()["actor"], device_id=torch.device("cpu"))
    with pytest.raises(
        IllegalConfiguration, match=r"'actor' is wrapped in FullyShardedDataParallel: find the units of"
    ):
        pliant.find_units({"actor": sharded}, {"actor": torch.randn(3, 5)})
