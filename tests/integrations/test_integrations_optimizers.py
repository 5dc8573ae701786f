"""Schedule-free optimizers, Muon beside AdamW, and averages of weights: resets as they must be, against references."""

from __future__ import annotations

import copy

import frameworks
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

import pliant

REPLACE = pliant.ContinualBackprop(replacement_rate=0.2, maturity_threshold=2, decide_every=2)
STEPS = 24


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2)).double()


OF_UNITS = {
    "0": {"0.weight": 0, "0.bias": 0, "2.weight": 1},
    "2": {"2.weight": 0, "2.bias": 0, "4.weight": 1},
}


def batch(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 4, generator=generator, dtype=torch.float64)


def at(tensor, dim, units):
    return (slice(None),) * dim + (list(units),)


def loss_of(model, step):
    x = batch(step)
    return (model(x) - x[:, :2].sin()).square().mean()


# ---- schedule-free ----
schedulefree = pytest.importorskip("schedulefree")
SCHEDULE_FREE = {
    "sgd": lambda p: schedulefree.SGDScheduleFree(p, lr=0.3, momentum=0.8, weight_decay=0.01, warmup_steps=3),
    "sgd_loops": lambda p: schedulefree.SGDScheduleFree(p, lr=0.3, momentum=0.8, foreach=False),
    "adamw": lambda p: schedulefree.AdamWScheduleFree(p, lr=0.01, betas=(0.8, 0.95), weight_decay=0.01),
    "radam": lambda p: schedulefree.RAdamScheduleFree(p, lr=0.01, betas=(0.8, 0.95)),
}


class ThreePoints:
    """Schedule-free SGD and AdamW as the paper writes them, with x, y and z, and resets that renew all three."""

    def __init__(self, model, optimizer):
        group = optimizer.param_groups[0]
        self.lr, self.warmup, self.decay = group["lr"], group["warmup_steps"], group["weight_decay"]
        self.beta1 = group["momentum"] if "momentum" in group else group["betas"][0]
        self.beta2 = group["betas"][1] if "betas" in group else None
        self.x, self.y, self.z = ({n: p.detach().clone() for n, p in model.named_parameters()} for _ in range(3))
        self.v = {name: torch.zeros_like(value) for name, value in self.x.items()}
        self.k, self.sum, self.largest = 0, 0.0, 0.0

    def step(self, gradients):
        rate = self.lr * min(1.0, (self.k + 1) / self.warmup) if self.warmup else self.lr
        self.largest = max(self.largest, rate)
        self.sum += self.largest**2
        share = self.largest**2 / self.sum
        self.k += 1
        for name, gradient in gradients.items():
            if self.beta2 is not None:
                self.v[name] = self.beta2 * self.v[name] + (1 - self.beta2) * gradient**2
                gradient = gradient / ((self.v[name] / (1 - self.beta2**self.k)).sqrt() + 1e-8)
            self.z[name] = self.z[name] - rate * (gradient + self.decay * self.y[name])
            self.x[name] = (1 - share) * self.x[name] + share * self.z[name]
            self.y[name] = (1 - self.beta1) * self.z[name] + self.beta1 * self.x[name]

    def renew(self, group, units, model):
        values = dict(model.named_parameters())
        for name, dim in OF_UNITS[group].items():
            where = at(values[name], dim, units)
            for point in (self.x, self.y, self.z):
                point[name][where] = values[name].detach()[where]
            self.v[name][where] = 0


def train_schedule_free(kind, methods, reference=None, steps=STEPS):
    model = network()
    optimizer = SCHEDULE_FREE[kind](model.parameters())
    handle = pliant.attach(model, optimizer, methods, example_inputs=batch(0)[:2])
    reference = None if reference is None else reference(model, optimizer)
    renewed = []
    handle.events.subscribe(renewed.append)
    optimizer.train()
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        if reference is not None:
            reference.step({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        optimizer.step()
        for event in renewed if reference is not None else ():
            reference.renew(event.group, event.units, model)
        renewed.clear()
    return model, optimizer, handle, reference


@pytest.mark.parametrize("kind", ["sgd", "sgd_loops", "adamw"])
def test_a_reset_renews_all_points_of_a_schedule_free_optimizer(kind):
    """Against the paper's three sequences: the points that the optimizer keeps, and the one that it computes."""
    model, optimizer, handle, reference = train_schedule_free(kind, REPLACE, ThreePoints)
    assert sum(int(count) for count in handle.num_resets.values()) > 15
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), reference.y[name], atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(optimizer.state[parameter]["z"], reference.z[name], atol=1e-9, rtol=1e-9)
    optimizer.eval()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), reference.x[name], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kind", SCHEDULE_FREE)
def test_a_reset_reaches_the_average_in_both_modes(kind):
    """Outgoing weights are zero in the network that trains and in the one that is evaluated; so are moments."""
    for evaluating in (False, True):
        model, optimizer, handle, _ = train_schedule_free(kind, [], steps=10)
        handle.detach()
        handle = pliant.attach(model, optimizer, pliant.ReDo(tau=0.5, every=1), example_inputs=batch(0)[:2])
        if evaluating:
            optimizer.eval()
        mask = torch.zeros(8, dtype=torch.bool)
        mask[[1, 4]] = True
        handle._editor.reset(handle.units["0"], mask)
        for mode in (optimizer.eval, optimizer.train, optimizer.eval):
            mode()
            assert not model[2].weight[:, mask].any()
            z = optimizer.state[model[0].weight]["z"]
            assert torch.equal(z[mask], model[0].weight[mask])
            assert not torch.equal(z[~mask], model[0].weight[~mask]), "the others keep their distance"
        if "exp_avg_sq" in optimizer.state[model[0].weight]:
            assert not optimizer.state[model[0].weight]["exp_avg_sq"][mask].any()


@pytest.mark.parametrize(
    "method",
    [
        pliant.ShrinkAndPerturb(0.9, 0.1, every=2),
        pliant.L2Init(0.1),
        pliant.WeightClipping(0.01),
        pliant.OptimizerReset(every=2),
        pliant.WeightNoise(0.1, "entry"),
    ],
    ids=lambda method: type(method).__name__,
)
def test_edits_that_are_no_new_life_are_refused_by_name(method):
    kept_at_two = (
        rf"{type(method).__name__} would .* SGDScheduleFree keeps at two points.*reset units or single weights"
    )
    with pytest.raises(pliant.NotYetSupported, match=kept_at_two):
        train_schedule_free("sgd", method)


def test_a_schedule_free_optimizer_that_cannot_be_followed_is_refused():
    model = network()
    for made in (
        schedulefree.AdamWScheduleFreeClosure(model.parameters()),
        schedulefree.SGDScheduleFreeReference(model.parameters()),
        schedulefree.ScheduleFreeWrapper(torch.optim.SGD(model.parameters(), lr=0.1)),
    ):
        with pytest.raises(pliant.NotYetSupported, match=rf"{type(made).__name__} moves.*Use AdamWScheduleFree"):
            pliant.attach(model, made, REPLACE, example_inputs=batch(0)[:2])


def test_single_weights_are_renewed_at_all_points():
    method = pliant.SelectiveWeightReset(0.3, every=4)
    model, optimizer, handle, _ = train_schedule_free("adamw", method, steps=4)
    renewed = [name for event in handle.events for name in event.tensors]
    assert renewed
    for name in renewed:
        parameter = model.get_parameter(name)
        state = optimizer.state[parameter]
        fresh = state["exp_avg_sq"] == 0
        assert fresh.any()
        assert torch.equal(state["z"][fresh], parameter[fresh])


# ---- Muon for matrices, AdamW for the rest and the head ----
@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
@pytest.mark.parametrize("muon_first", [True, False])
def test_muon_beside_adamw_is_training_with_resets_by_hand(muon_first):
    """Stale momentum would be blown up to full size by the orthogonalisation; waiting gradients are the old unit's."""

    def made():
        model = network()
        matrices = [model[0].weight, model[2].weight]
        others = [model[0].bias, model[2].bias, *model[4].parameters()]
        return model, torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=0.01)

    model, muon, adamw = made()
    by_hand, its_muon, its_adamw = made()
    handle = pliant.attach(model, [muon, adamw], REPLACE, example_inputs=batch(0)[:2])
    renewed = []
    handle.events.subscribe(renewed.append)
    tensors, count, fresh = dict(model.named_parameters()), 0, {}
    owner = {id(p): o for o in (its_muon, its_adamw) for p in o.param_groups[0]["params"]}
    for step in range(STEPS):
        for net, optimizers in ((model, (muon, adamw)), (by_hand, (its_muon, its_adamw))):
            for item in optimizers:
                item.zero_grad()
            loss_of(net, step).backward()
            for item in optimizers if muon_first else optimizers[::-1]:
                item.step()
                if item is not its_muon:
                    continue
                for event in renewed:  # after Muon's step, and AdamW's may come yet
                    count += len(event.units)
                    for name, dim in OF_UNITS[event.group].items():
                        parameter = by_hand.get_parameter(name)
                        where = at(parameter, dim, event.units)
                        with torch.no_grad():
                            parameter[where] = fresh[name, event.step, event.group]
                            parameter.grad[where] = 0
                            for value in owner[id(parameter)].state.get(parameter, {}).values():
                                if value.shape == parameter.shape:
                                    value[where] = 0
            if net is model:
                fresh = {
                    (name, event.step, event.group): tensors[name].detach()[at(tensors[name], dim, event.units)].clone()
                    for event in renewed
                    for name, dim in OF_UNITS[event.group].items()
                }
        renewed.clear()
        for name, parameter in by_hand.named_parameters():
            torch.testing.assert_close(tensors[name].detach(), parameter.detach(), atol=0, rtol=0)
    assert count > 15


# ---- averages of weights ----
def with_norm():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).double()


AVERAGES = {
    "swa": lambda model: AveragedModel(model),
    "ema": lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True),
}


def averaged(make, *, follow=True, check=None, average_at_all=True):
    model = with_norm()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = SWALR(optimizer, swa_lr=0.05, anneal_epochs=4)
    handle = pliant.attach(model, optimizer, REPLACE, example_inputs=batch(0)[:2])
    average = make(model) if average_at_all else None  # made of the attached model: a copy brings no listeners along
    if follow and average is not None:
        pliant.follow_resets(handle, average)
    renewed, before = [], {}
    handle.events.subscribe(renewed.append)
    for step in range(STEPS):
        if average is not None:
            before = copy.deepcopy(average.state_dict())
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
        if check is not None:
            check(model, average, before, list(renewed))
        renewed.clear()
        if average is not None:
            average.update_parameters(model)
            average.module.train()
            average(batch(step))  # as update_bn does: nobody listens to it
        schedule.step()
    return model, average, handle


@pytest.mark.parametrize("kind", AVERAGES)
def test_an_average_begins_the_unit_anew_and_stays_elsewhere(kind):
    """Right after a reset the averaged network is itself with those units' outgoing weights zeroed: no more."""
    seen = []

    def check(model, average, before, renewed):
        units = [unit for event in renewed for unit in event.units]
        mine, its = model.state_dict(), average.module.state_dict()
        for name, dim in {"0.weight": 0, "0.bias": 0, "1.weight": 0, "1.running_var": 0, "3.weight": 1}.items():
            new, old = its[name], before[f"module.{name}"]
            chosen = torch.zeros(new.shape[dim], dtype=torch.bool)
            chosen[units] = True
            chosen = chosen.reshape(-1, *[1] * (new.ndim - 1 - dim)).expand(new.shape)
            assert torch.equal(new[chosen], mine[name][chosen]), name
            assert torch.equal(new[~chosen], old[~chosen]), name
        if units:
            zeroed, x = copy.deepcopy(average), batch(99)
            zeroed.load_state_dict(before)
            with torch.no_grad():
                zeroed.module[3].weight[:, units] = 0
                assert torch.allclose(zeroed.eval()(x), average.eval()(x), atol=1e-12, rtol=0)
            seen.extend(units)

    model, _, handle = averaged(AVERAGES[kind], check=check)
    assert len(seen) > 8
    plain, _, other = averaged(AVERAGES[kind], average_at_all=False)
    assert str(handle.events) == str(other.events)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True)), (
        "training does not notice that it is averaged"
    )


def test_an_average_that_does_not_follow_mixes_two_units():
    """What the rule is there for: the entries of a reset unit are then averages of what two units had."""
    found = {}
    for follow in (True, False):
        model, average, handle = averaged(AVERAGES["swa"], follow=follow)
        last = {unit: event.step for event in handle.events for unit in event.units}
        young = [unit for unit, step in last.items() if step == max(last.values())]
        distance = (average.module[3].weight - model[3].weight)[:, young]
        found[follow] = float(distance.detach().abs().max())
    assert found[True] < 0.1 * found[False]


def test_statistics_of_norms_are_recomputed_for_the_average():
    _, average, handle = averaged(AVERAGES["swa"])
    steps = handle.num_steps
    update_bn([batch(step) for step in range(4)], average)
    assert handle.num_steps == steps
    average.eval()
    hidden = average.module[:2](torch.cat([batch(step) for step in range(4)]))
    torch.testing.assert_close(hidden.mean(0), average.module[1].bias, atol=1e-9, rtol=0)


def test_an_average_of_something_else_is_refused_and_following_can_end():
    model, average, handle = averaged(AVERAGES["swa"])
    with pytest.raises(
        pliant.IllegalConfiguration, match=r"'0.weight' is \(8, 4\) in the attached model.*does not have"
    ):
        pliant.follow_resets(handle, AveragedModel(nn.ReLU()))
    with pytest.raises(pliant.IllegalConfiguration, match=r"the average has it as \(5, 4\)"):
        pliant.follow_resets(handle, nn.Sequential(nn.Linear(4, 5)))
    with pytest.raises(pliant.IllegalConfiguration, match="the attached model itself"):
        pliant.follow_resets(handle, model)
    stop = pliant.follow_resets(handle, copy.deepcopy(average))
    assert len(handle._editor.averages) == 2
    stop()
    assert len(handle._editor.averages) == 1


@pytest.mark.parametrize("heading", ["Averages of weights: SWA and EMA", "Schedule-free optimizers", "Muon"])
def test_the_recipes_of_the_documentation(heading):
    if heading == "Muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("this PyTorch has no Muon")
    model = network()
    given = {"model": model, "x": batch(0)[:2], "schedulefree": schedulefree}
    if heading.startswith("Averages"):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        given["handle"] = pliant.attach(model, optimizer, REPLACE, example_inputs=batch(0)[:2])
    found = frameworks.run_recipes(heading, given)
    for item in found.get("optimizers", [found["optimizer"]] if "optimizer" in found else []):
        getattr(item, "train", lambda: None)()
        loss_of(model, 0).backward()
        item.step()
    assert found["handle"].num_steps == (0 if heading.startswith("Averages") else 1)
