"""Optimizer state belongs to the units: what a reset makes of it, for every optimizer of torch.optim."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import zoo
from edit_tools import OPTIMIZERS, double, editor, mask_of, owned, state_tensors, train_mlp, trained, units_of
from torch import Tensor, nn
from zoo import ZOO

import pliant
from pliant import NotYetSupported
from pliant.interventions import L2, FreshStart, ReDo
from pliant.optimizer_state import moments
from pliant.stats.capture import named_tensors
from pliant.units.group import TensorSlice, UnitGroup
from pliant.units.verify import permute

MATRICES = {"muon": lambda p: torch.optim.Muon(p, lr=1e-2), "muon_plain": lambda p: torch.optim.Muon(p, nesterov=False)}
ALL = {**OPTIMIZERS, **MATRICES}


def in_training(optimizer: str, steps: int = 4):
    """A network of three matrices and biases (Muon trains no biases) in the middle of training, float64."""
    if optimizer not in MATRICES:
        return trained("mlp", optimizer, steps)
    torch.manual_seed(0)
    layers = [
        nn.Linear(5, 8, bias=False),
        nn.ReLU(),
        nn.Linear(8, 6, bias=False),
        nn.Tanh(),
        nn.Linear(6, 3, bias=False),
    ]
    model = nn.Sequential(*layers).double()
    opt = MATRICES[optimizer](model.parameters())
    train_mlp(model, opt, steps)
    return model, opt


def group_of(model) -> UnitGroup:
    """The first layer's units, written down by hand."""
    rows = tuple((unit,) for unit in range(8))
    places = [("0.weight", -2, "incoming"), ("0.bias", -1, "incoming"), ("2.weight", -1, "outgoing")]
    names = dict(model.named_parameters())
    slices = tuple(TensorSlice(name, dim, role, rows) for name, dim, role in places if name in names)
    return UnitGroup("0", 8, slices, "hidden", None, True)


def newborn(optimizer: str, model) -> list[dict[str, Tensor]]:
    """The state of a new optimizer over the same weights that has only ever seen gradients of zero."""
    other = copy.deepcopy(model)
    opt = ALL[optimizer](other.parameters())
    for parameter in other.parameters():
        parameter.grad = torch.zeros_like(parameter)
    opt.step()
    states = [dict(opt.state[parameter]) for parameter in other.parameters()]
    for state in states:
        if "exp_inf" in state:  # Adamax puts its epsilon there at every step
            assert (state["exp_inf"] == 1e-8).all()
            state["exp_inf"].zero_()
    return states


@pytest.mark.parametrize("optimizer", ALL)
def test_reset_entries_have_the_state_of_a_new_optimizer_and_all_others_are_untouched(optimizer):
    """Also: training goes on, bit by bit, as with an optimizer that was put together by hand."""
    model, opt = in_training(optimizer)
    before = [copy.deepcopy(opt.state[p]) for p in model.parameters()]
    group, mask = group_of(model), mask_of(8)
    editor(model, opt).reset(group, mask)
    fresh = newborn(optimizer, model)
    other = copy.deepcopy(model)
    other_opt = ALL[optimizer](other.parameters())
    stale = 0
    for index, ((name, parameter), twin) in enumerate(zip(model.named_parameters(), other.parameters(), strict=True)):
        inside = owned(group, name, parameter.shape, mask)
        other_opt.state[twin] = copy.deepcopy(before[index])
        assert set(opt.state[parameter]) == set(before[index]) == set(fresh[index])
        for key, old in before[index].items():
            if not isinstance(old, Tensor) or old.ndim == 0:  # one counter per tensor: a stated deviation
                assert opt.state[parameter][key] == old
                continue
            want = torch.where(inside, fresh[index][key], old)
            stale += int((old != want).sum())
            assert torch.equal(opt.state[parameter][key], want), (name, key)
            other_opt.state[twin][key] = want
    assert stale > 15  # the old state was something else
    train_mlp(model, opt, 3, first=50)
    train_mlp(other, other_opt, 3, first=50)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def next_update(kind: str, g: float, t: int) -> float:
    """By how much a weight without a past moves at step t, from the rules of the papers, one number at a time."""
    if kind == "sgd_momentum":
        return 0.01 * g
    if kind in ("adam_amsgrad", "adam_fused"):
        return 1e-3 * (0.1 * g / (1 - 0.9**t)) / (math.sqrt(0.001 * g * g / (1 - 0.999**t)) + 1e-8)
    if kind == "adamax":
        return 1e-3 * (0.1 * g / (1 - 0.9**t)) / (abs(g) + 1e-8)
    if kind == "rmsprop":  # centred: the mean of the gradients is taken off
        return 1e-3 * g / (math.sqrt(0.01 * g * g - (0.01 * g) ** 2) + 1e-8)
    if kind == "adagrad":
        return 1e-3 * g / (abs(g) + 1e-10)
    if kind == "adagrad_from_one":
        return 1e-3 * g / (math.sqrt(1 + g * g) + 1e-10)
    if kind == "adadelta":
        return 1e-3 * math.sqrt(1e-6) / math.sqrt(0.1 * g * g + 1e-6) * g
    if kind == "rprop":
        return 1e-3 * math.copysign(1, g)
    raise KeyError(kind)


@pytest.mark.parametrize(
    "optimizer",
    [
        "sgd_momentum",
        "adam_amsgrad",
        "adam_fused",
        "adamax",
        "rmsprop",
        "adagrad",
        "adagrad_from_one",
        "adadelta",
        "rprop",
    ],
)
def test_the_first_update_of_a_reset_weight_is_that_of_a_weight_without_a_past(optimizer):
    model, opt = in_training(optimizer)
    group = group_of(model)
    editor(model, opt).reset(group, mask_of(8))
    before = model[2].weight.detach().clone()
    opt.zero_grad()
    zoo.loss_of(zoo.call(model, double(ZOO["mlp"].batch(seed=50)))).backward()
    gradient = model[2].weight.grad.clone()
    opt.step()
    moved = before - model[2].weight.detach()
    for row in range(6):
        for unit in (0, 7):
            g = float(gradient[row, unit])
            assert g != 0
            assert float(moved[row, unit]) == pytest.approx(next_update(optimizer, g, 5), rel=1e-6)


@pytest.mark.parametrize("optimizer", ALL)
def test_state_is_element_by_element(optimizer):
    """What is cleared knows nothing of other entries, and other entries nothing of it: gradients elsewhere, other
    histories, do not change it. (For Muon, whose updates mix all entries, this is why clearing rows is right.)
    """
    states = []
    for seed in (1, 2):
        weight = nn.Parameter(torch.ones(6, 4, dtype=torch.float64))
        opt = ALL[optimizer]([weight])
        here, elsewhere = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
        for _ in range(4):
            weight.grad = torch.randn(6, 4, generator=elsewhere, dtype=torch.float64)
            weight.grad[2] = torch.randn(4, generator=here, dtype=torch.float64)
            opt.step()
        states.append({k: v for k, v in opt.state[weight].items() if v.ndim})
    for key, value in states[0].items():
        assert torch.equal(value[2], states[1][key][2]), key
        assert not torch.equal(value[1], states[1][key][1]), key


def test_adafactor_is_not_element_by_element_and_refused_for_units():
    """Its column means mix every unit's past, which no edit can take out again."""
    columns = []
    for seed in (1, 2):
        weight = nn.Parameter(torch.ones(6, 4))
        opt = torch.optim.Adafactor([weight])
        here, elsewhere = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
        for _ in range(3):
            weight.grad = torch.randn(6, 4, generator=elsewhere)
            weight.grad[2] = torch.randn(4, generator=here)
            opt.step()
        columns.append(opt.state[weight]["col_var"].clone())
    assert not torch.equal(*columns)
    model = ZOO["mlp"].model()
    opt = torch.optim.Adafactor(model.parameters())
    with pytest.raises(NotYetSupported, match=r"Adafactor.*0\.weight.*Adam"):
        pliant.attach(model, opt, ReDo(), units=units_of("mlp"))
    train_mlp(model.double(), opt, 1)
    with pytest.raises(NotYetSupported, match="row and column means"):
        editor(model, opt).reset(units_of("mlp")["0"], mask_of(8))
    biases = moments(opt, model[0].bias, "0.bias")
    assert [(moment.fresh, moment.value.shape) for moment in biases] == [(0.0, (8,))]  # one-dimensional: element-wise


@pytest.mark.parametrize("method", [L2(0.1), FreshStart()])
def test_adafactor_is_fine_for_methods_of_whole_tensors(method):
    model = ZOO["mlp"].model().double()
    opt = torch.optim.Adafactor(model.parameters(), lr=0.05)
    handle = pliant.attach(model, opt, method, units=units_of("mlp"))
    train_mlp(model, opt, 3)
    handle.task_boundary()
    handle.detach()
    if isinstance(method, FreshStart):
        other = copy.deepcopy(model)
        other_opt = torch.optim.Adafactor(other.parameters(), lr=0.05)
        train_mlp(model, opt, 3, first=10)
        train_mlp(other, other_opt, 3, first=10)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_lbfgs_is_refused_for_everything():
    model = ZOO["mlp"].model()
    with pytest.raises(NotYetSupported, match=r"LBFGS.*Adam"):
        pliant.attach(model, torch.optim.LBFGS(model.parameters()), L2(0.1), units=units_of("mlp"))


def test_an_average_of_weights_follows_the_weights():
    """ASGD's ``ax``: a reset unit's average is the unit itself; zero would make the averaged network forget it."""
    model, opt = in_training("asgd", steps=6)
    editor(model, opt).reset(group_of(model), mask_of(8))
    average = opt.state[model[0].weight]["ax"]
    assert torch.equal(average[[0, 7]], model[0].weight[[0, 7]])
    assert not torch.equal(average[1:7], model[0].weight[1:7])
    assert float(opt.state[model[0].weight]["mu"]) == 1 / 4  # not touched: t - t0 steps are averaged
    assert not opt.state[model[2].weight]["ax"][:, [0, 7]].any()


def test_step_sizes_start_from_the_groups_first_step_size():
    """Rprop's ``step_size`` is no moment to be zeroed: a weight would never move again."""
    model = ZOO["mlp"].model().double()
    groups = [
        {"params": model[0].parameters(), "lr": 0.01},
        {"params": [*model[2].parameters(), *model[4].parameters()]},
    ]
    opt = torch.optim.Rprop(groups, lr=0.002)
    schedule = torch.optim.lr_scheduler.ConstantLR(opt, factor=0.5)  # a step size that has changed since
    train_mlp(model, opt, 4)
    editor(model, opt).reset(group_of(model), mask_of(8))
    assert opt.param_groups[0]["lr"] == 0.005
    assert (opt.state[model[0].weight]["step_size"][[0, 7]] == 0.01).all()
    assert (opt.state[model[2].weight]["step_size"][:, [0, 7]] == 0.002).all()
    assert not opt.state[model[0].weight]["prev"][[0, 7]].any()
    before = model[2].weight.detach().clone()
    train_mlp(model, opt, 1, first=9)
    schedule.step()
    moved = (model[2].weight != before)[:, [0, 7]]
    assert moved.any()
    assert torch.equal(moved, model[2].weight.grad[:, [0, 7]] != 0)


@pytest.mark.parametrize("kind", ["Rprop", "Adagrad"])
def test_complex_weights_start_with_both_parts(kind):
    more = {"initial_accumulator_value": 0.5} if kind == "Adagrad" else {}
    weight = nn.Parameter(torch.randn(3, 2, dtype=torch.complex64))
    opt = getattr(torch.optim, kind)([weight], lr=0.5, **more)
    weight.grad = torch.randn(3, 2, dtype=torch.complex64)
    opt.step()
    fresh = {moment.fresh for moment in moments(opt, weight, "weight")}
    assert fresh == ({0.5 + 0.5j} if kind == "Adagrad" else {0.0, 0.5 + 0.5j})


# ---- whole restarts, trajectories ----
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_fresh_start_leaves_the_optimizer_as_new(optimizer):
    """After it, training goes on exactly as a new optimizer would from the same weights."""
    case = ZOO["mlp"]
    model = case.model().double()
    opt = OPTIMIZERS[optimizer](model.parameters())
    handle = pliant.attach(model, opt, FreshStart(), units=units_of("mlp"))
    for step in range(4):
        opt.zero_grad()
        zoo.loss_of(zoo.call(model, double(case.batch(seed=step)))).backward()
        opt.step()
    handle.task_boundary()
    other = copy.deepcopy(model)
    other_opt = OPTIMIZERS[optimizer](other.parameters())
    for step in range(4, 8):
        for one, one_opt in ((model, opt), (other, other_opt)):
            one_opt.zero_grad()
            zoo.loss_of(zoo.call(one, double(case.batch(seed=step)))).backward()
            one_opt.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-10, atol=1e-12)


def test_dampened_momentum_restarts_undampened():
    """The first gradient that SGD sees enters its buffer whole; a buffer of zeros would dampen it."""
    model = ZOO["mlp"].model().double()
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, dampening=0.5)
    handle = pliant.attach(model, opt, FreshStart(), units=units_of("mlp"))
    train_mlp(model, opt, 3)
    handle.task_boundary()
    other = copy.deepcopy(model)
    other_opt = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9, dampening=0.5)
    train_mlp(model, opt, 3, first=10)
    train_mlp(other, other_opt, 3, first=10)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        (name, optimizer)
        for name in ("mlp", "conv_bn_flatten", "resnet_basic", "vit", "conv_depthwise", "swiglu")
        for optimizer in ("sgd_momentum", "adam_amsgrad", "rmsprop")
        # a bias before a norm has no gradient but rounding, which centred RMSprop divides by itself
        if (name, optimizer) not in (("conv_bn_flatten", "rmsprop"), ("vit", "rmsprop"))
    ],
)
def test_permuted_weights_and_moments_give_the_permuted_trajectory(name, optimizer):
    """Moments are members of a group as much as weights are."""
    case = ZOO[name]
    model, opt = trained(name, optimizer)
    other = copy.deepcopy(model)
    other_opt = OPTIMIZERS[optimizer](other.parameters())
    other_opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    group = max(units_of(name), key=lambda g: (g.site == "hidden", g.size))
    order = torch.arange(group.size).roll(1)
    names = list(dict(other.named_parameters()))

    def permute_all(target, target_opt, moments=True):
        tensors = named_tensors(target)
        with torch.no_grad():
            for key, value in permute({k: v.detach() for k, v in tensors.items()}, group.slices, order).items():
                tensors[key].copy_(value.clone())
        parameters = dict(target.named_parameters())
        for kind in state_tensors(target_opt, parameters[names[0]]) if moments else ():
            values = {key: target_opt.state[parameters[key]][kind] for key in names}
            values |= {k: v.detach() for k, v in tensors.items() if k not in values}
            for key, value in permute(values, group.slices, order).items():
                if key in parameters:
                    target_opt.state[parameters[key]][kind].copy_(value.clone())

    stale = copy.deepcopy(other)
    stale_opt = OPTIMIZERS[optimizer](stale.parameters())
    stale_opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    permute_all(other, other_opt)
    permute_all(stale, stale_opt, moments=False)
    for step in range(5):
        for one, one_opt in ((model, opt), (other, other_opt), (stale, stale_opt)):
            one_opt.zero_grad()
            zoo.loss_of(zoo.call(one, double(case.batch(seed=20 + step)))).backward()
            one_opt.step()
    permute_all(model, opt)
    for (key, p), q in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.allclose(p.double(), q.double(), atol=1e-9), key
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        for kind, value in state_tensors(opt, p).items():
            assert torch.allclose(value, other_opt.state[q][kind], atol=1e-9)
    # with the moments left behind it is another trajectory: the check can fail
    assert any(not torch.allclose(p, q, atol=1e-7) for p, q in zip(model.parameters(), stale.parameters(), strict=True))
