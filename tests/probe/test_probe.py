"""The probe finds what is known to be there, and leaves no trace."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from probe_tools import adam, damaged, everything, inputs, is_same, network, plain
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from zoo import ZOO, call, loss_of

import pliant
from pliant import devices, records
from pliant.errors import IllegalConfiguration, NoEffect, PliantError
from pliant.fresh import fresh_twin
from pliant.probe import Data, PermutedInputs, RandomLabels, RandomTargets, probe

TASK = RandomLabels(inputs=inputs(), num_classes=4, batch_size=16)


@pytest.fixture(scope="module")
def of_dead():
    return probe(damaged(0.9), TASK, optimizer=adam, steps=80, seeds=3)


def test_a_network_without_units_learns_worse_and_is_said_to(of_dead):
    assert of_dead.outcome == "worse"
    assert of_dead.gap.low > 0.2
    assert of_dead.accuracy_gap.low > 0.1
    assert of_dead.area.low > 0
    assert "worse than fresh ones" in of_dead.verdict
    assert f"{of_dead.gap.low:.3g}" in of_dead.verdict
    assert of_dead.to_threshold.is_lower_bound
    assert "at least" in str(of_dead)
    assert "not reached" in str(of_dead)


def test_the_dose_orders_the_gaps(of_dead):
    gaps = [probe(damaged(share), TASK, optimizer=adam, steps=80, seeds=3).gap.mean for share in (0.0, 0.5)]
    assert gaps[0] < gaps[1] < of_dead.gap.mean


def test_a_fresh_network_is_not_said_to_be_worse():
    found = probe(plain(seed=11), TASK, optimizer=adam, steps=60, seeds=5)
    assert found.outcome == "no difference shown"
    assert found.gap.low < 0 < found.gap.high
    assert "not excluded" in found.verdict


def test_a_twin_of_the_same_draw_learns_the_same_to_the_bit():
    """Identical data, order and dropout: what is equal at the start is equal at the end."""
    twin = fresh_twin(network(), seed=0)
    found = probe(twin, TASK, optimizer=adam, steps=40, seeds=(0,))
    aged, fresh = found.runs
    assert (aged.network, fresh.network) == ("aged", "fresh")
    assert aged.loss == fresh.loss
    assert aged.accuracy == fresh.accuracy
    assert found.outcome == "no verdict"
    assert "no interval from 1 seed" in found.verdict


def test_curves_are_those_of_a_plain_loop():
    model = plain(seed=3)
    found = probe(model, TASK, optimizer=adam, steps=20, seeds=(5,), every=1)
    optimizer = adam(model.parameters())
    losses = []
    for x, y in TASK.batches(5, 20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert found.runs[0].steps == tuple(range(1, 21))
    assert found.runs[0].loss == tuple(losses)


def live():
    """A network in the middle of its training, protected and listened to."""
    model = network()
    optimizer = adam(model.parameters())
    for _ in range(5):
        optimizer.zero_grad()
        model(inputs(16)).square().mean().backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("moments", ["fresh", "carried"])
def test_nothing_of_the_user_changes(moments):
    model, optimizer = live()
    heard = []
    model[0].register_forward_hook(lambda *_: heard.append(1))
    handle = pliant.attach(model, optimizer, pliant.ReDo(every=3), example_inputs=inputs(4))
    model[4].eval()
    heard.clear()
    before, state = everything(model, optimizer), handle.state_dict()
    probe(model, TASK, optimizer=optimizer, moments=moments, steps=12, seeds=2, twins=2, evaluation="task")
    assert is_same(everything(model, optimizer), before)
    assert is_same(handle.state_dict(), state)
    assert heard == []
    handle.detach()


def test_nothing_of_the_user_changes_where_the_task_raises_midway():
    model, optimizer = live()

    def broken(seed):
        for index in range(100):
            torch.rand(3), np.random.rand(2)
            if index == 7:
                raise RuntimeError("the disk is full")
            yield inputs(8, seed=index), torch.zeros(8, dtype=torch.long)

    def fails(net, batch):
        torch.rand(1)
        if not bool(batch[1].any()):
            raise RuntimeError("a bad batch")
        return net(batch[0]).sum()

    before = everything(model, optimizer)
    with torch.no_grad(), pytest.raises(RuntimeError, match="the disk is full"):
        probe(model, broken, optimizer=adam, steps=20)
    batches = [(inputs(8), torch.ones(8))] * 3 + [(inputs(8), torch.zeros(8))]
    with pytest.raises(RuntimeError, match="a bad batch"):
        probe(model, batches, optimizer=adam, steps=20, objective=fails)
    assert is_same(everything(model, optimizer), before)


def test_the_users_loader_keeps_its_generator():
    generator = torch.Generator().manual_seed(5)
    data = TensorDataset(inputs(20), torch.arange(20) % 4)
    loader = DataLoader(data, batch_size=8, shuffle=True, drop_last=True, generator=generator)
    before = generator.get_state()
    first = probe(plain(), loader, optimizer=adam, steps=7, seeds=2)  # three passes over two batches, and one more
    assert torch.equal(generator.get_state(), before)
    torch.rand(10)
    next(iter(loader))
    assert probe(plain(), loader, optimizer=adam, steps=7, seeds=2).runs == first.runs
    assert first.runs[0].loss != first.runs[2].loss  # another seed, another order


def test_live_optimizers_are_imitated():
    model, optimizer = live()
    optimizer.param_groups[0]["lr"] = 0.05  # where a schedule has brought it
    carried = probe(model, TASK, optimizer=optimizer, moments="carried", steps=10, seeds=(0,), every=1)
    fresh = probe(model, TASK, optimizer=optimizer, moments="fresh", steps=10, seeds=(0,), every=1)
    made = probe(model, TASK, optimizer=lambda p: torch.optim.Adam(p, lr=0.05), steps=10, seeds=(0,), every=1)
    assert fresh.runs == made.runs
    assert carried.runs[0].loss[1:] != fresh.runs[0].loss[1:]
    assert carried.runs[1] == fresh.runs[1]


def test_two_optimizers_share_a_network():
    def make(parameters):
        return [torch.optim.SGD(parameters[:2], lr=0.1), adam(parameters[2:])]

    found = probe(plain(), TASK, optimizer=make, steps=30, seeds=2)
    assert found.progress.mean > 0
    model = plain()
    live_ones = make(list(model.parameters()))
    again = probe(model, TASK, optimizer=live_ones, moments="fresh", steps=30, seeds=2)
    assert again.runs == found.runs


def test_methods_protect_everybody():
    method = pliant.L2(strength=50.0)
    bare = probe(plain(), TASK, optimizer=adam, steps=30, seeds=2)
    held = probe(plain(), TASK, optimizer=adam, steps=30, seeds=2, methods=method)
    assert held.progress.mean < 0.5 * bare.progress.mean  # so strong that nobody learns much
    assert held.config["methods"] == [repr(method)]
    changed = probe(plain(), TASK, optimizer=adam, steps=2, seeds=(0,), methods=[pliant.InsertNormalization()])
    assert changed.runs[0].loss != bare.runs[0].loss


def test_a_head_can_start_anew():
    model = plain()
    with torch.no_grad():
        model[2].weight.mul_(100)
    kept, reset = (probe(model, TASK, optimizer=adam, steps=10, seeds=3, reset_head=head) for head in (None, "2"))
    assert kept.gap.low > 1 > reset.gap.high
    with pytest.raises(IllegalConfiguration, match="matches nothing"):
        probe(model, TASK, optimizer=adam, steps=10, reset_head="head")


def test_evaluation_on_what_was_not_trained_on():
    x, y = inputs(96), (inputs(96)[:, 0] > 0).long()
    task = PermutedInputs(inputs=x[:64], targets=y[:64], test=(x[64:], y[64:]), batch_size=16)
    found = probe(network(), task, optimizer=adam, steps=40, seeds=2, every=10, evaluation="task")
    assert found.runs[0].steps == (0, 10, 20, 30, 40)
    assert found.runs[0].accuracy[-1] > 0.6
    own = [(x[64:], y[64:])]
    given = probe(network(), (x[:64], y[:64]), optimizer=adam, steps=40, seeds=2, every=10, evaluation=own)
    assert given.runs[0].accuracy[-1] > 0.6
    assert given.runs[0].loss[0] == given.runs[2].loss[0]  # the aged network, before anything is learnt


@pytest.mark.parametrize("name", ["resnet_basic", "lstm", "transformer_norm_first", "hf_t5", "hf_mixtral"])
def test_any_architecture(name):
    case = ZOO[name]
    model = case.model()
    batches = [case.batch(4, seed) for seed in range(3)]
    before = everything(model)
    found = probe(
        model,
        batches,
        optimizer=lambda p: torch.optim.SGD(p, lr=1e-3),
        steps=4,
        seeds=(0,),
        objective=lambda net, batch: loss_of(call(net, batch)),
        init=case.init,
    )
    assert all(math.isfinite(value) for run in found.runs for value in run.loss)
    assert found.runs[0].loss != found.runs[1].loss
    assert is_same(everything(model), before)


def test_regression():
    found = probe(damaged(1.0), RandomTargets(inputs=inputs(32), num_outputs=4), optimizer=adam, steps=80, seeds=3)
    assert found.accuracy_gap is None
    assert found.outcome == "worse"
    assert "accuracy" not in str(found)


def test_what_diverges_is_said_and_not_averaged():
    def steep(parameters):
        return torch.optim.SGD(parameters, lr=3.0)

    model = plain()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e6)
    task = RandomTargets(inputs=inputs(32), num_outputs=4)
    found = probe(model, task, optimizer=lambda p: torch.optim.SGD(p, lr=0.02), steps=50, seeds=2)
    assert all(run.diverged == (run.network == "aged") for run in found.runs)
    assert found.outcome == "no verdict"
    assert "diverged in every seed" in found.verdict
    assert math.isinf(found.runs[0].loss[-1])
    assert found.gap.num_excluded == 2
    json.dumps(found.to_dict(), allow_nan=False)
    wild = probe(plain(), task, optimizer=lambda p: torch.optim.SGD(p, lr=1e4), steps=50, seeds=2)
    assert "fresh networks diverged in 2 of 2 seeds" in wild.verdict


def test_no_verdict_where_fresh_networks_learn_nothing():
    found = probe(damaged(0.5), TASK, optimizer=lambda p: torch.optim.SGD(p, lr=1e-9), steps=30, seeds=4)
    assert found.outcome == "no verdict"
    assert "have not been shown to learn" in found.verdict


def test_results_are_kept_as_json_and_as_records(of_dead, tmp_path):
    data = json.loads(json.dumps(of_dead.to_dict(), allow_nan=False))
    assert data["outcome"] == "worse"
    assert data["gap"]["mean"] == of_dead.gap.mean
    assert len(data["runs"]) == 6
    first = of_dead.records()[0]
    records.prepare_folder(tmp_path, first.experiment, first.experiment_id)
    for record in of_dead.records():
        records.write_record(record, tmp_path)
    found = records.read_records(tmp_path)
    assert [record.seed for record in found] == [0, 1, 2]
    assert tuple(found[2].series["aged_loss"]) == of_dead.runs[4].loss


def test_two_probes_of_the_same_tasks_are_compared_seed_by_seed(of_dead):
    healthy = probe(plain(seed=4), TASK, optimizer=adam, steps=80, seeds=3)
    difference = of_dead.minus(healthy)
    assert difference.low > 0.2
    with pytest.raises(ValueError, match="steps"):
        of_dead.minus(probe(plain(), TASK, optimizer=adam, steps=10, seeds=3))


def pair(count=8):
    return inputs(count), torch.arange(count) % 4


BAD = {
    "empty loader": ({"task": []}, "is empty"),
    "loader without batches": ({"task": DataLoader(TensorDataset(*pair()), 16, drop_last=True)}, "is empty"),
    "an iterator": ({"task": iter([pair()])}, "use up"),
    "a number": ({"task": 3}, "cannot be a int"),
    "too few batches": ({"task": lambda seed: iter([pair()]), "steps": 3}, "only 1 batches"),
    "a label out of range": ({"task": (inputs(8), torch.arange(8))}, "label 4"),
    "a negative label": ({"task": (inputs(8), torch.arange(8) - 2)}, "label -[12]"),
    "infinite inputs": ({"task": (inputs(8) * math.inf, torch.zeros(8).long())}, "not finite at its first step"),
    "targets that do not fit": ({"task": (inputs(8), torch.zeros(8, 3))}, "do not fit"),
    "targets that are no classes": ({"task": (inputs(8), torch.zeros(8, 4).long())}, "one dimension more"),
    "no targets": ({"task": [inputs(8)]}, "no targets"),
    "no optimizer": ({"optimizer": lambda p: None}, "not an optimizer"),
    "neither": ({"optimizer": "adam"}, "is a str"),
    "a foreign optimizer": ({"optimizer": lambda p: adam(plain().parameters())}, "owns no parameter"),
    "a foreign live one": ({"optimizer": adam(plain().parameters()), "moments": "fresh"}, "owns no parameter"),
    "no choice of moments": ({"optimizer": adam(plain().parameters())}, 'moments="fresh"'),
    "moments of nothing": ({"moments": "fresh"}, "has none yet"),
    "closures": ({"optimizer": lambda p: torch.optim.LBFGS(p)}, "closure"),
    "no steps": ({"steps": 0}, "steps must be at least 1"),
    "no twins": ({"twins": 0}, "twins must be at least 1"),
    "no threshold": ({"threshold": math.nan}, "threshold must be"),
    "no seeds": ({"seeds": 0}, "seeds must be"),
    "a seed twice": ({"seeds": (1, 1)}, "seeds must be"),
    "two losses": ({"loss": "mse", "objective": lambda net, batch: net(batch[0]).sum()}, "not both"),
    "an unknown loss": ({"loss": "hinge"}, "no loss 'hinge'"),
    "a loss per example": ({"loss": lambda out, y: out.sum(1)}, "shape"),
    "a loss without a graph": ({"objective": lambda net, batch: torch.zeros(())}, "no graph"),
    "nothing to evaluate": ({"evaluation": []}, "no batch"),
    "no evaluation of its own": ({"task": [pair()], "evaluation": "task"}, "has none"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_a_reason(case):
    options, message = BAD[case]
    arguments = {"task": TASK, "optimizer": adam, "steps": 5, "seeds": 2, **options}
    model = plain()
    before = everything(model)
    with pytest.raises(IllegalConfiguration, match=message):
        probe(model, arguments.pop("task"), **arguments)
    assert is_same(everything(model), before)


def test_where_values_cannot_be_read_labels_are_checked_before(monkeypatch):
    expected = probe(network(), TASK, optimizer=adam, steps=5, seeds=2)
    monkeypatch.setattr(devices, "_as_accelerator", True)
    assert probe(network(), TASK, optimizer=adam, steps=5, seeds=2).runs == expected.runs  # the check leaves no trace
    later = [(inputs(8), torch.zeros(8).long())] * 4 + [(inputs(8), torch.full((8,), 9))]
    with pytest.raises(IllegalConfiguration, match="label 9"):
        probe(network(), later, optimizer=adam, steps=5)


def test_a_model_that_is_not_trained_is_refused():
    with pytest.raises(NoEffect, match="requires a gradient"):
        probe(plain().requires_grad_(False), TASK, optimizer=adam, steps=5)
    with pytest.raises(PliantError, match="RandomLabels: "):
        RandomLabels(inputs=inputs(0), num_classes=4)
    with pytest.raises(PliantError, match="different numbers"):
        Data(inputs=inputs(4), targets=torch.zeros(5))


def test_a_model_in_evaluation_mode_learns_in_training_mode():
    model = network()
    trained = probe(model, TASK, optimizer=adam, steps=10, seeds=(0,))
    model.eval()
    assert probe(model, TASK, optimizer=adam, steps=10, seeds=(0,)).runs == trained.runs
    assert not model.training
