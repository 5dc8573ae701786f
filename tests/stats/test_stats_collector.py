"""Streaming statistics: what is counted, over what, and what is not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pliant
from pliant.stats import Collector
from pliant.stats.capture import capture, named_tensors


def collector(model, units, *, needs=("mean_abs_activation",), **more):
    wanted = {g.name: frozenset(needs) for g in units if g.tap}
    return Collector(model, units, wanted, named_tensors(model), **more)


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4, 5))


def test_space_and_the_batch_are_samples():
    model = conv()
    units = pliant.find_units(model, torch.randn(2, 2, 4, 4))
    found = collector(model, units)
    x = torch.randn(6, 2, 4, 4)
    model(x)
    assert found.accumulators["0"].num_samples == 6 * 4
    found.finish(3, found.of(list(units)))
    found.look(found.of(list(units)))
    stats = found.stats(units["0"])
    assert torch.allclose(stats.mean_abs_activation, torch.relu(model[0](x)).mean((0, 2, 3)))
    assert stats.step == 3
    found.remove()


def test_only_training_is_heard():
    model = conv()
    units = pliant.find_units(model, torch.randn(2, 2, 4, 4))
    found = collector(model, units)
    x = torch.randn(6, 2, 4, 4)
    with torch.no_grad():
        model(x)
    with torch.inference_mode():
        model(x)
    model.eval()
    model(x)
    model.train()
    capture(model, units, x)
    found.listener.rest()
    model(x)
    found.listener.listen()
    assert found.accumulators["0"].num_samples == 0
    model(x).sum().backward()
    assert found.accumulators["0"].num_samples == 24


def test_gradients_thrown_away_mean_that_the_step_was_skipped():
    """As mixed precision does when it overflows; two forwards before one backward, and micro-batches, still add up."""
    model = conv()
    units = pliant.find_units(model, torch.randn(2, 2, 4, 4))
    found = collector(model, units)
    x = torch.randn(6, 2, 4, 4)
    (model(x) - model(2 * x)).square().sum().backward()  # twins
    assert found.accumulators["0"].num_samples == 48
    model(x).sum().backward()  # a micro-batch
    assert found.accumulators["0"].num_samples == 72
    model.zero_grad()
    model(x).sum().backward()  # the gradients before were never used
    assert found.accumulators["0"].num_samples == 24


def test_statistics_that_nobody_asked_for_are_an_error():
    model = conv()
    units = pliant.find_units(model, torch.randn(2, 2, 4, 4))
    found = collector(model, units)
    model(torch.randn(6, 2, 4, 4))
    found.finish(1, found.of(list(units)))
    found.look(found.of(list(units)))
    with pytest.raises(pliant.NoEffect, match="mean_activation"):
        found.stats(units["0"]).mean_activation  # noqa: B018
    nothing = Collector(model, units, {}, named_tensors(model))
    with pytest.raises(pliant.NoEffect, match="'0'"):
        nothing.stats(units["0"])


def test_a_step_without_a_forward_is_an_error_with_the_cause():
    model = conv()
    units = pliant.find_units(model, torch.randn(2, 2, 4, 4))
    found = collector(model, units)
    with pytest.raises(pliant.IllegalConfiguration, match="no training forward pass"):
        found.finish(1, found.of(list(units)))
    model.eval()
    with pytest.raises(pliant.IllegalConfiguration, match=r"model\.train\(\)"):
        found.finish(1, found.of(list(units)))


def test_half_precision_sums_in_float32():
    model = conv().bfloat16()
    units = pliant.find_units(conv(), torch.randn(2, 2, 4, 4))
    found = collector(model, units)
    x = torch.ones(512, 2, 4, 4, dtype=torch.bfloat16)
    model(x)
    found.finish(1, found.of(list(units)))
    found.look(found.of(list(units)))
    stats = found.stats(units["0"]).mean_abs_activation
    assert stats.dtype == torch.float32
    want = torch.relu(model[0](x[:1])).float().mean((0, 2, 3))
    assert torch.allclose(stats, want, rtol=1e-3)


def test_capture_restores_everything_and_can_choose():
    model = nn.Sequential(
        nn.Linear(5, 8), nn.Dropout(0.5), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)
    )
    x = torch.randn(16, 5)
    units = pliant.find_units(model, x)
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flags, rng = [m.training for m in model.modules()], torch.get_rng_state()
    found = capture(model, units, x, where="4")
    assert list(found) == ["4"]
    assert not found["4"].requires_grad
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_captured_values_are_copies_even_where_the_activation_is_in_place():
    model = nn.Sequential(
        nn.Linear(5, 8), nn.ReLU(inplace=True), nn.Linear(8, 6), nn.ReLU(inplace=True), nn.Linear(6, 2)
    )
    x = torch.randn(16, 5)
    units = pliant.find_units(model, x)
    with torch.no_grad():
        first = torch.relu(model[0](x))
        second = torch.relu(model[2](first))
    found = capture(model, units, x)
    assert torch.allclose(found["0"], first)
    assert torch.allclose(found["2"], second)
    found["0"].zero_()


def test_capture_leaves_no_hook_when_the_model_fails():
    model = conv()
    units = pliant.find_units(model, torch.randn(2, 2, 4, 4))
    with pytest.raises(RuntimeError):
        capture(model, units, torch.randn(2, 2, 9, 9))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert model.training


def gradient_by_hand(model, x):
    hidden = torch.relu(model[0](x))
    hidden.retain_grad()
    model[3](model[2](hidden)).square().sum().backward()
    return hidden.grad


def test_the_gradient_of_every_activation_counts_once_and_micro_batches_add_up():
    model = conv()
    units = pliant.find_units(model, torch.randn(2, 2, 4, 4))
    found = collector(model, units, needs=("mean_abs_activation", "mean_abs_gradient"))
    x = torch.randn(6, 2, 4, 4)
    for piece in (x[:4], x[4:]):
        model(piece).square().sum().backward()
    found.finish(1, found.of(list(units)))
    found.look(found.of(list(units)))
    stats = found.stats(units["0"])
    found.remove()
    assert torch.allclose(stats.mean_abs_gradient, gradient_by_hand(model, x).abs().mean((0, 2, 3)))
    assert torch.allclose(stats.mean_abs_activation, torch.relu(model[0](x)).mean((0, 2, 3)))


def test_gradients_alone_can_be_asked_for_and_a_loss_without_them_is_said():
    model = conv()
    units = pliant.find_units(model, torch.randn(2, 2, 4, 4))
    found = collector(model, units, needs=("mean_abs_gradient",))
    x = torch.randn(6, 2, 4, 4)
    model(x).square().sum().backward()
    found.finish(1, found.of(list(units)))
    found.look(found.of(list(units)))
    assert found.stats(units["0"]).mean_abs_gradient.shape == (3,)
    model(x)  # the loss is computed from something else
    found.finish(2, found.of(list(units)))
    found.look(found.of(list(units)))
    with pytest.raises(pliant.NoEffect, match="no gradient reached"):
        found.stats(units["0"]).mean_abs_gradient  # noqa: B018


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_are_seen_once_under_activation_checkpointing(reentrant):
    from torch.utils.checkpoint import checkpoint

    model = conv()
    units = pliant.find_units(model, torch.randn(2, 2, 4, 4))
    found = collector(model, units, needs=("mean_abs_gradient", "mean_abs_activation"))
    x = torch.randn(6, 2, 4, 4)
    checkpoint(model, x.clone().requires_grad_(), use_reentrant=reentrant).square().sum().backward()
    assert [entry.num_samples for entry in found.accumulators["0"].gradients] == [24]
    assert found.accumulators["0"].num_samples == 24
    found.finish(1, found.of(list(units)))
    found.look(found.of(list(units)))
    found.remove()
    want = gradient_by_hand(model, x).abs().mean((0, 2, 3))
    assert torch.allclose(found.stats(units["0"]).mean_abs_gradient, want)


def test_features_carry_their_graph_until_the_step():
    model = conv()
    units = pliant.find_units(model, torch.randn(2, 2, 4, 4))
    found = collector(model, units, needs=("features",))
    x = torch.randn(6, 2, 4, 4)
    model(x)
    (act_NU,) = found.features(units["0"])
    assert act_NU.shape == (24, 3)
    act_NU.square().mean().backward()
    want = torch.autograd.grad(torch.relu(model[0](x)).square().mean(), model[0].weight)[0]
    assert torch.allclose(model[0].weight.grad, want)
    found.finish(1, found.of(list(units)))
    found.look(found.of(list(units)))
    assert found.features(units["0"]) == []
    with pytest.raises(pliant.NoEffect, match="features"):
        collector(model, units).features(units["0"])


def test_what_is_replayed_has_no_gradient_and_says_so():
    model = nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoderLayer(8, 2, 6, batch_first=True), nn.Linear(8, 2))
    units = pliant.find_units(model, torch.randn(2, 3, 4))
    replayed = next(group for group in units if group.tap and group.tap.replay)
    found = Collector(model, units, {replayed.name: frozenset({"mean_abs_gradient"})}, named_tensors(model))
    with pytest.raises(pliant.IllegalConfiguration, match="apart from the forward pass"):
        model(torch.randn(2, 3, 4))
    found.remove()


def test_gradients_inside_a_compiled_model_are_refused_by_name():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    units = pliant.find_units(model, torch.randn(2, 4))
    found = collector(model, units, needs=("mean_abs_activation", "mean_abs_gradient"))
    compiled = torch.compile(model, backend="eager")
    compiled(torch.randn(3, 4)).sum().backward()
    with pytest.raises(pliant.NotYetSupported, match=r"without torch\.compile"):
        found.finish(1, found.of(list(units)))
    found.remove()
    torch._dynamo.reset()


def test_the_mean_of_one_sample_is_a_copy():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    units = pliant.find_units(model, torch.randn(2, 4))
    found = collector(model, units, needs=("mean_activation", "mean_abs_activation"))
    hidden = []
    handle = model[1].register_forward_hook(lambda module, args, output: hidden.append(output))
    model(torch.randn(1, 4))
    want = hidden[0].detach()[0].clone()
    hidden[0].detach().zero_()  # whatever happens to the activation afterwards
    found.finish(1, found.of(list(units)))
    found.look(found.of(list(units)))
    assert torch.equal(found.stats(units["0"]).mean_activation, want)
    assert torch.equal(found.stats(units["0"]).mean_abs_activation, want.abs())
    handle.remove()
    found.remove()
