"""One look changes nothing, and what it sees is what training sees."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import zoo
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from zoo import ZOO

import pliant
from pliant.interventions import ReDo
from pliant.observation import measure, observe
from pliant.stats.derivative import activation_derivative


@functools.cache
def units_of(name: str) -> pliant.UnitGraph:
    return pliant.find_units(ZOO[name].model(), ZOO[name].batch())


SOME = ("mlp_functional", "conv_bn_flatten", "transformer_post_norm", "swiglu", "hf_gpt2")


def everything(model: nn.Module) -> list:
    """All that a look could change."""
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    modes = [m.training for m in model.modules()]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return [hooks, modes, [p.requires_grad for p in model.parameters()], grads, state, torch.get_rng_state()]


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("mode", ["train", "eval", None])
def test_a_look_changes_nothing(name, mode):
    model, batch = ZOO[name].model(), ZOO[name].batch(6)
    list(model.modules())[-1].eval()
    zoo.loss_of(zoo.call(model, batch)).backward()
    next(model.parameters()).requires_grad_(False)
    before = everything(model)
    seen = observe(model, batch, zoo.loss_of, units=units_of(name), mode=mode)
    assert same(everything(model), before)
    assert seen.groups
    assert not any(t.requires_grad for g in seen.groups.values() for t in (g.act_NU, g.grad_NU) if t is not None)


def test_loss_gradients_and_activations_are_those_of_training():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    x, y = torch.randn(16, 5), torch.randint(3, (16,))
    seen = observe(model, x, lambda output: F.cross_entropy(output, y), mode="train")
    act = model[2](model[1](model[0](x))).detach().requires_grad_()  # draws from the same random state as the look
    loss = F.cross_entropy(model[4](model[3](act)), y)
    (grad,) = torch.autograd.grad(loss, act)
    hidden = seen.groups["0"]
    assert seen.loss == float(loss.detach())
    assert torch.equal(hidden.act_NU, act)
    assert torch.equal(hidden.grad_NU, grad)
    assert torch.equal(hidden.derivative_NU, (act > 0).float())
    assert seen.is_classification
    assert seen.logits_NC.shape == (16, 3)
    evaluated = observe(model, x, lambda output: F.cross_entropy(output, y), mode="eval")
    assert not torch.equal(evaluated.groups["0"].act_NU, hidden.act_NU)


def test_gradients_by_parameter_and_by_unit():
    model, x = ZOO["mlp"].model(), ZOO["mlp"].batch(6)
    model[0].weight.requires_grad_(False)  # a frozen layer is seen, too
    seen = observe(model, x, zoo.loss_of, mode="train")
    model[0].weight.requires_grad_(True)
    zoo.loss_of(model(x)).backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(seen.gradients[name], parameter.grad, atol=1e-7)
    assert "0.weight" not in seen.trainable
    assert "0.bias" in seen.trainable
    want = model[0].weight.grad.abs().mean(-1)
    assert torch.allclose(seen.groups["0"].incoming_gradient_U, want, atol=1e-7)


def written_out(z):
    return 0.5 * z * (1 + torch.tanh(0.797884 * (z + 0.044715 * z**3)))


@pytest.mark.parametrize(
    "function",
    [
        *(F.relu, F.gelu, F.silu, torch.tanh, torch.sigmoid, F.hardswish, F.mish, F.softsign, F.elu, F.hardtanh),
        *(written_out, lambda z: torch.where(z > 0, z, 0.1 * z), lambda z: torch.maximum(z, 0.1 * z)),
        lambda z: 3 * F.relu(z) ** 2,
    ],
)
def test_derivatives_of_activation_functions(function):
    z = (torch.randn(7, 3, requires_grad=True) @ torch.randn(3, 5)) * 2
    free = z.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(function(free).sum(), free)
    assert torch.allclose(activation_derivative(function(z)).double(), want, atol=1e-5)


def test_derivatives_through_views_pooling_gates_and_residual_sums():
    torch.manual_seed(0)
    conv, image = nn.Conv2d(3, 5, 3, padding=1), torch.randn(2, 3, 8, 8)
    z = conv(image)
    pooled = F.max_pool2d(z.relu(), 2).flatten(1)
    assert torch.equal(activation_derivative(pooled), (pooled > 0).float())
    summed = F.relu(nn.BatchNorm2d(5)(conv(image)) + z.relu())
    assert torch.equal(activation_derivative(summed), (summed > 0).float())
    a, b = (torch.randn(6, 4, requires_grad=True) @ torch.randn(4, 10)).chunk(2, -1)
    sigmoid = a.sigmoid()
    through_gate, through_value = (sigmoid + a * sigmoid * (1 - sigmoid)) * b, F.silu(a)
    want = torch.where(through_gate.abs() > through_value.abs(), through_gate, through_value)
    assert torch.allclose(activation_derivative(F.silu(a) * b), want, atol=1e-6)
    assert bool((activation_derivative(z) == 1).all())


def test_an_activation_function_that_is_not_known_has_no_derivative():
    class Custom(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clamp(min=0)

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    z = torch.randn(3, 2, requires_grad=True) @ torch.randn(2, 4)
    assert "CustomBackward" in activation_derivative(Custom.apply(z))
    rnn = ZOO["lstm"]
    seen = observe(rnn.model(), rnn.batch(), zoo.loss_of).groups["layer"]
    assert seen.derivative_NU is None
    assert "not known" in seen.missing["derivatives"]


def test_padding_is_left_out():
    case = ZOO["hf_bert"]
    batch = dict(case.batch(4))
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    model, units = case.model().eval(), units_of("hf_bert")
    whole = observe(model, batch, zoo.loss_of, units=units)
    batch["attention_mask"][:, 2:] = 0
    part = observe(model, batch, zoo.loss_of, units=units)
    group = "bert.encoder.layer.0.intermediate.dense"
    assert whole.groups[group].act_NU.shape[0] == batch["input_ids"].numel()
    assert part.groups[group].act_NU.shape[0] == 8
    assert part.groups[group].num_samples == batch["input_ids"].numel()
    kept = observe(model, batch, zoo.loss_of, units=units, mask=torch.ones(4, batch["input_ids"].shape[1]))
    keep = batch["attention_mask"].flatten().bool()
    assert torch.equal(kept.groups[group].act_NU[keep], part.groups[group].act_NU)
    assert torch.equal(kept.groups[group].grad_NU[keep], part.groups[group].grad_NU)


def test_of_many_samples_some_are_kept_and_rows_belong_together():
    model, x = ZOO["conv_bn_flatten"].model(), ZOO["conv_bn_flatten"].batch(8)
    group = observe(model, x, zoo.loss_of, num_samples=50).groups["0"]
    assert group.act_NU.shape[0] == 50 < group.num_samples
    assert torch.equal(group.derivative_NU, (group.act_NU > 0).float())


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.first, self.head, self.reentrant = nn.Linear(5, 5), nn.Linear(8, 3), reentrant

    def forward(self, x):
        return self.head(checkpoint(self.inner, self.first(x), use_reentrant=self.reentrant))


def test_checkpointed_modules():
    model, x = Checkpointed(False), torch.randn(6, 5)
    units = pliant.find_units(model, x)
    before = everything(model)
    hidden = observe(model, x, zoo.loss_of, units=units, mode="train").groups["inner.0"]
    assert same(everything(model), before)  # running statistics, too: the checkpointed forward has run twice
    assert hidden.act_NU.shape == hidden.grad_NU.shape == (6, 8)
    with pytest.raises(pliant.IllegalConfiguration, match="use_reentrant=False"):
        observe(Checkpointed(True), x, zoo.loss_of, units=units, mode="train")


def test_nobody_hears_it_and_attributes_stay():
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            self.last = x
            return super().forward(x)

    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), Counting(8, 3))
    optimizer, x = torch.optim.SGD(model.parameters(), lr=0.1), torch.randn(6, 5)
    handle = pliant.attach(model, optimizer, ReDo(every=1), example_inputs=x)
    calls, last = model[2].calls, model[2].last
    observe(model, 100 * x, zoo.loss_of, units=handle.units, mode="train")
    assert all(not item.heard for item in handle._collector.accumulators.values())
    assert model[2].calls == calls
    assert model[2].last is last


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_half_precision_is_measured_in_single_precision(dtype):
    model, x = ZOO["mlp"].model().to(dtype), ZOO["mlp"].batch(8).to(dtype)
    hidden = observe(model, x, lambda output: output.float().square().mean(), mode="train").groups["0"]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert {hidden.act_NU.dtype, hidden.derivative_NU.dtype, hidden.grad_NU.dtype} == {wide}


def test_what_cannot_be_seen_is_named():
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.used, self.unused = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x):
            h = F.relu(self.trunk(x))
            return self.used(h), self.unused(h)

    seen = observe(TwoHeads(), torch.randn(5, 4), lambda output: output[0].mean())
    assert "unused.weight" not in seen.gradients
    model = ZOO["mlp"].model()
    seen = observe(model, ZOO["mlp"].batch())
    assert seen.loss is None
    assert seen.groups["0"].missing == {"gradients": "no loss was given"}


def bad_losses():
    yield (lambda output: output.square().mean(-1)), r"must be a scalar, but has shape \(4,\)"
    yield (lambda output: 1.0), "must be a scalar tensor .*, not float"
    yield (lambda output: output.detach().mean()), "does not depend on the model's parameters"
    yield (lambda output: F.cross_entropy(output, torch.zeros(9).long())), "the loss function raised ValueError"


@pytest.mark.parametrize(("loss", "message"), list(bad_losses()))
def test_bad_losses(loss, message):
    model = ZOO["mlp"].model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(pliant.IllegalConfiguration, match=message):
        observe(model, ZOO["mlp"].batch(4), loss)
    assert same(dict(model.state_dict()), dict(before))


def test_a_batch_of_one_under_batch_norm_is_an_error_with_advice():
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    units = pliant.find_units(model, torch.randn(4, 5))
    with pytest.raises(pliant.IllegalConfiguration, match=r"in training mode.*mode='eval'"):
        observe(model, torch.randn(1, 5), zoo.loss_of, units=units, mode="train")
    assert observe(model, torch.randn(1, 5), zoo.loss_of, units=units, mode="eval").num_examples == 1


def test_measures_of_a_look():
    model, x = ZOO["mlp"].model(), ZOO["mlp"].batch(32)
    with torch.no_grad():
        model[0].weight[:2], model[0].bias[:2] = 0, -1
    start = {name: 0.5 * tensor.detach() for name, tensor in model.named_parameters()}
    seen = observe(model, x, zoo.loss_of, mode="train")
    values = measure(seen, initial=start)
    units = seen.groups["0"].size
    assert values["dead_fraction"]["0"] == values["frozen_fraction"]["0"] == pytest.approx(2 / units)
    assert values["weight_growth"]["model"] == pytest.approx(2, rel=0.1)
    assert values["non_finite_fraction"]["model"] == 0
    assert "entropy" not in values or not values["entropy"]  # it is a regression
    assert "weight_growth" not in measure(seen)
    with pytest.raises(pliant.IllegalConfiguration, match="compares weights"):
        measure(seen, ["weight_growth"])
    with pytest.raises(pliant.IllegalConfiguration, match="dead_fraction"):
        measure(seen, ["dead_fractoin"])
    with pytest.raises(pliant.IllegalConfiguration, match="compares two moments"):
        measure(seen, ["churn"])
