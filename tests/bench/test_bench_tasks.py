"""What tasks ask for: losses, scores, masked outputs, new heads, augmentation, validation, accuracy on the past."""

from __future__ import annotations

import math

import pytest
import task_zoo
import torch
from torch.nn import functional as F

from pliant.bench.batches import TaskData
from pliant.bench.engine import Members
from pliant.bench.experiment import Experiment
from pliant.bench.heads import head_of
from pliant.bench.measure import evaluate
from pliant.bench.models import MLP, ConvNet
from pliant.bench.objective import Heads, Meter, Objective, auc
from pliant.errors import IllegalConfiguration

SMALL = ("mlp", {"hidden": (8,)})


def experiment(stream, options=None, num_tasks=3, **changes):
    settings = {"optimizer": ("sgd", {"lr": 0.1}), "model": SMALL, **changes}
    return Experiment((f"task_zoo:{stream}", options or {}), num_tasks=num_tasks, **settings)


def run(chosen, seeds=(0, 1), **options):
    members = Members(chosen, seeds, None, stacked=True, **options)
    members.run()
    members.close()
    return members


# ---- the objective ----
def example(loss, shape=(2, 3, 5, 4)):
    rng = torch.Generator().manual_seed(0)
    outputs = torch.randn(shape, generator=rng, dtype=torch.float64, requires_grad=True)
    if loss == "cross_entropy":
        return outputs, torch.randint(0, shape[-1], shape[:-1], generator=rng)
    return outputs, torch.rand(shape, generator=rng, dtype=torch.float64).round()


WANTED = {
    "cross_entropy": lambda out, y: F.cross_entropy(out.flatten(0, -2), y.flatten()),
    "mse": F.mse_loss,
    "binary_cross_entropy": F.binary_cross_entropy_with_logits,
}


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (2, 3, 5, 7, 4)])
@pytest.mark.parametrize("loss", WANTED)
def test_gradients_and_losses_are_those_of_torch(loss, shape):
    if loss != "cross_entropy" and len(shape) > 4:
        pytest.skip("labels at several positions are for classes")
    outputs, targets = example(loss, shape)
    objective = Objective(loss, "mse" if loss == "mse" else "accuracy")
    heads = Heads(objective, shape[-1])
    weight_S = torch.tensor([1.0, 0.0, 1.0])
    constants = heads.constant(targets, torch.float64, weight_S)
    for batch in range(shape[0]):
        found = heads.gradient(outputs[batch].detach(), constants[batch], weight_S)
        for member in range(shape[1]):
            mean = WANTED[loss](outputs[batch, member], targets[batch, member])
            (wanted,) = torch.autograd.grad(mean, outputs)
            torch.testing.assert_close(found[member], weight_S[member] * wanted[batch, member])
    losses = objective.losses(outputs.detach(), targets)
    assert losses.shape == shape[:3]
    torch.testing.assert_close(losses.mean(), WANTED[loss](outputs, targets).detach())


def test_masked_outputs_take_no_part():
    outputs, _ = example("cross_entropy")
    active = [(0, 2), (1, 3), (0, 1)]
    targets = torch.stack([torch.tensor([a, b, a, a, b]) for a, b in active]).expand(2, 3, 5)
    heads = Heads(Objective(), 4, active)
    numbered = heads.targets(targets)
    assert numbered.unique().tolist() == [0, 1]
    gradient = heads.gradient(outputs[0].detach(), heads.constant(numbered, torch.float64, None)[0], None)
    for member, chosen in enumerate(active):
        masked = torch.full_like(outputs, -math.inf)
        masked[..., list(chosen)] = outputs[..., list(chosen)]
        (wanted,) = torch.autograd.grad(F.cross_entropy(masked[0, member], targets[0, member]), outputs)
        torch.testing.assert_close(gradient[member], wanted[0, member])
    with pytest.raises(IllegalConfiguration, match="not among its active_outputs"):
        heads.targets(torch.full((1, 3, 5), 2))
    with pytest.raises(IllegalConfiguration, match="different numbers"):
        Heads(Objective(), 4, [(0, 1), (0,)])
    with pytest.raises(IllegalConfiguration, match=r"0\.\.3"):
        Heads(Objective(), 4, [(0, 4)])


def test_area_under_the_curve():
    rng = torch.Generator().manual_seed(0)
    scores, labels = torch.rand(2, 50, generator=rng).mul(8).round(), torch.rand(2, 50, generator=rng).round()
    for row in range(2):
        positive, negative = scores[row][labels[row] > 0], scores[row][labels[row] == 0]
        won = (positive[:, None] > negative).double() + 0.5 * (positive[:, None] == negative)
        assert float(auc(scores, labels)[row]) == pytest.approx(float(won.mean()))
    assert auc(scores, torch.ones(2, 50)).isnan().all()
    meter = Meter(Objective("binary_cross_entropy", "auc"), 2)
    for part in (slice(0, 20), slice(20, 50)):
        meter.add(scores[None, :, part, None], labels[None, :, part, None])
    assert torch.equal(meter.score(), auc(scores, labels))


def test_impossible_objectives_are_refused():
    with pytest.raises(IllegalConfiguration, match="hinge"):
        Objective("hinge")
    with pytest.raises(IllegalConfiguration, match="can be scored by mse"):
        Objective("mse", "accuracy")


# ---- runs ----
def test_regression_learns_and_is_scored_by_its_error():
    members = run(experiment("Numbers", optimizer=("sgd", {"lr": 0.02})))
    assert {"online_mse", "end_mse", "test_mse", "loss"} <= members.series.keys()
    assert "online_accuracy" not in members.series
    assert all(
        (end < online).all()
        for end, online in zip(members.series["end_mse"], members.series["online_mse"], strict=True)
    )
    torch.testing.assert_close(members.series["loss"][0], members.series["online_mse"][0])


def test_clicks_are_scored_by_the_area_under_the_curve():
    members = run(experiment("Clicks", num_tasks=1))
    assert (members.series["end_auc"][0] > 0.8).all()
    assert "online_auc" in members.series


def test_masked_tasks_leave_the_other_outputs_alone():
    chosen = experiment("Asking", {"mask": True}, num_tasks=1)
    members = Members(chosen, (0, 1), None, stacked=True)
    before = members.model.head.weight.detach().clone()
    members.run()
    changed = (members.model.head.weight.detach() != before).any(-1)
    assert changed[:, :2].all()
    assert not changed[:, 2:].any()
    members.close()


@pytest.mark.parametrize("option", ["mask", "reset", "augment", "validate"])
def test_by_hand_and_through_autograd_alike(option):
    chosen = experiment(
        "Asking", {option: True}, methods=[("continual_backprop", {"replacement_rate": 0.05, "maturity_threshold": 3})]
    )
    mine, theirs = run(chosen), run(chosen, by_hand=False)
    assert mine.series.keys() == theirs.series.keys()
    for name, rows in mine.series.items():
        torch.testing.assert_close(
            torch.stack(rows), torch.stack(theirs.series[name]), rtol=1e-4, atol=1e-4, equal_nan=True
        )
    for name, value in mine.model.state_dict().items():
        torch.testing.assert_close(value, theirs.model.state_dict()[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("option", ["mask", "reset", "augment", "validate"])
def test_members_are_single_runs(option):
    chosen = experiment("Asking", {option: True})
    together = run(chosen, (4, 7))
    for position, seed in enumerate((4, 7)):
        alone = Members(chosen, (seed,), None, stacked=False)
        alone.run()
        assert together.series_of(position).keys() == alone.series_of(0).keys()
        for name, values in alone.series_of(0).items():
            assert together.series_of(position)[name] == pytest.approx(values, abs=1e-5, nan_ok=True), name
        alone.close()


def test_augmentation_depends_on_the_pass_and_the_step_alone():
    stream = task_zoo.Asking(augment=True)
    data = TaskData([stream.task(0, seed) for seed in (0, 1)], Objective(), 6)
    plain = TaskData([task_zoo.Asking().task(0, seed) for seed in (0, 1)], Objective(), 6)
    chunks, again = (list(data.chunks(None, torch.float32)) for _ in range(2))
    before = torch.cat([chunk.inputs for chunk in plain.chunks(None, torch.float32)])
    mine = torch.cat([chunk.inputs for chunk in chunks])
    assert torch.equal(mine, torch.cat([chunk.inputs for chunk in again]))
    task = data.tasks[1]
    assert torch.equal(mine[7, 1], task.augmented(before[7, 1], 1, 2))  # the third batch of the second pass
    assert [chunk.ends_epoch for chunk in chunks] == [True, True]


def test_the_best_weights_on_validation_are_kept():
    """A step size so large that the last pass is not the best one."""
    chosen = experiment("Asking", {"validate": True, "num_epochs": 12}, num_tasks=1, optimizer=("sgd", {"lr": 3.0}))
    members = Members(chosen, (0, 1, 2), None, stacked=True)
    data = members._data(0)
    members.steps.begin(data, None)
    scores, states = [], []
    for chunk in data.chunks(None, torch.float32):
        members.steps.run(chunk)
        scores.append(evaluate(members.model, data.held_out("valid"), stacked=True).score())
        states.append({name: value.clone() for name, value in members.model.state_dict().items()})
    members.close()
    best = torch.stack(scores).argmax(0)  # the first of equals
    assert (best < 11).any()
    kept = run(chosen, (0, 1, 2))
    for name, value in kept.model.state_dict().items():
        for member, epoch in enumerate(best.tolist()):
            assert torch.equal(value[member], states[epoch][name][member]), (name, member)


def test_new_heads_are_drawn_for_each_seed_and_task():
    chosen = experiment("Asking", {"reset": True}, num_tasks=3, optimizer=("sgd", {"lr": 0.0, "momentum": 0.9}))
    members = Members(chosen, (0, 1), None, stacked=True)
    seen = []
    members.run(lambda state: seen.append(state.model.head.weight.detach().clone()))
    assert len({float(head[member].sum()) for head in seen for member in (0, 1)}) == 6
    bound = (6 / 8) ** 0.5
    assert 0.8 * bound < float(seen[2].abs().max()) <= bound
    members.close()


def test_heads_of_convnets_start_at_zero_and_forget_their_moments():
    chosen = experiment(
        "Pictures",
        model=("convnet", {"channels": (4,), "kernels": (3,), "hidden": (), "image": (3, 8, 8)}),
        optimizer=("adam", {}),
    )
    members = Members(chosen, (0,), None, stacked=False)
    members.run()
    from pliant.bench.heads import renew_head

    renew_head(members.cohorts[0], 1)
    head = members.model.head
    assert not head.weight.detach().any()
    assert not head.bias.detach().any()
    assert not members.optimizer.state[head.weight]["exp_avg"].any()
    assert members.optimizer.state[members.model.conv_0.weight]["exp_avg"].any()
    members.close()


def test_the_output_layer():
    assert head_of(MLP(4, 2, (3,))) == "head"
    assert head_of(ConvNet(3 * 32 * 32, 2)) == "head"
    assert head_of(torch.nn.Linear(2, 2)) == ""


def test_the_past_is_measured_on_the_latest_tasks():
    members = run(experiment("Asking", num_tasks=7))
    past, transfer = (torch.stack(members.series[name]) for name in ("past_accuracy", "backward_transfer"))
    assert past[0].isnan().all()
    assert transfer[0].isnan().all()
    assert past[1:].isfinite().all()
    test = torch.stack(members.series["test_accuracy"])
    now = torch.stack(
        [evaluate(members.model, members._data(index).held_out("test"), stacked=True).score() for index in range(1, 6)]
    ).mean(0)
    torch.testing.assert_close(past[6], now)
    assert sorted(members._past) == [2, 3, 4, 5, 6]  # memory does not grow with tasks
    torch.testing.assert_close(transfer[6], now - test[1:6].mean(0))


def test_tasks_that_differ_between_seeds_are_refused():
    tasks = [task_zoo.Asking(mask=True).task(0, 0), task_zoo.Asking().task(0, 1)]
    with pytest.raises(IllegalConfiguration, match="active_outputs to some"):
        TaskData(tasks, Objective(), 6)
