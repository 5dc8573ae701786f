"""The same function with weights of another size, proved by the outputs, or refused with the reason."""

from __future__ import annotations

import pytest
import torch
from probe_tools import adam, everything, inputs, is_same
from torch import nn
from zoo import ZOO, call

from pliant.errors import IllegalConfiguration, NoEffect
from pliant.probe import RandomLabels, probe, rescaled


def grown(activation, scale=64.0):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Linear(8, 16), activation, nn.Linear(16, 16), activation, nn.Dropout(0.3), nn.Linear(16, 4)
        )
    with torch.no_grad():
        for parameter in (*model[0].parameters(), *model[2].parameters()):
            parameter.mul_(scale)
    return model


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.1), nn.PReLU(), nn.Identity()], ids=str)
def test_the_function_is_kept_to_the_bit_and_the_weights_get_their_size(activation):
    model, x = grown(activation), inputs()
    before = everything(model)
    found = rescaled(model, x)
    assert is_same(everything(model), before)
    assert found.change == 0
    assert torch.equal(found.model.eval()(x), model.eval()(x))
    assert not found.refused
    for layer, fan_in in ((0, 8), (2, 16)):
        expected = (found.model[layer].weight.numel() / (3 * fan_in)) ** 0.5
        assert float(found.model[layer].weight.detach().norm()) == pytest.approx(expected, rel=0.3)
    assert set(found.factors) == {"0", "2"}
    before_norm, after_norm = found.norms["5.weight"]
    assert after_norm > 1000 * before_norm  # what the hidden layers gave away
    assert "0.weight" in str(found)


def test_without_powers_of_two_norms_are_exact():
    found = rescaled(grown(nn.ReLU()), inputs(), exact=False)
    rows = found.model[0].weight.detach().norm(dim=1)
    assert torch.allclose(rows, torch.full((16,), (1 / 3) ** 0.5))
    assert 0 < found.change < 1e-5


def test_one_factor_for_all():
    model = grown(nn.ReLU())
    found = rescaled(model, inputs(), factor=0.25, where="0")
    assert torch.equal(found.model[0].weight, model[0].weight / 4)
    assert torch.equal(found.model[2].weight, model[2].weight * 4)
    with pytest.raises(IllegalConfiguration, match="positive"):
        rescaled(model, inputs(), factor=-1.0)


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.GELU(), nn.SiLU(), nn.ELU()], ids=str)
def test_other_activations_are_refused_with_the_reason(activation):
    with pytest.raises(NoEffect, match="not positively homogeneous"):
        rescaled(grown(activation, 1.0), inputs())


def test_only_the_groups_that_qualify():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU()),
        *(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)),
    )
    found = rescaled(model, inputs(), factor=8.0)
    assert found.kinds == {"0": "homogeneous", "2": "normalised"}
    assert "not positively homogeneous" in found.refused["5"]
    assert torch.equal(found.model[5].weight, model[5].weight)


NORMS = {
    "batch norm": (lambda: nn.BatchNorm1d(16), "normalised"),
    "batch norm without affine": (lambda: nn.BatchNorm1d(16, affine=False), "normalised"),
    "layer norm": (lambda: nn.LayerNorm(16), "normalised together"),
    "group norm": (lambda: nn.GroupNorm(4, 16), "normalised together"),
}


@pytest.mark.parametrize("name", NORMS)
def test_before_a_norm_weights_are_rescaled_alone(name):
    make, kind = NORMS[name]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), make(), nn.Tanh(), nn.Linear(16, 4))
    with torch.no_grad():
        model[0].weight.mul_(50)
        model[0].bias.mul_(50)
    x = inputs()
    for _ in range(100):
        model(x)  # running statistics of the large weights
    found = rescaled(model, x)
    assert set(found.kinds.values()) == {kind}
    assert 0 < found.change < 1e-3
    assert float(found.model[0].weight.detach().norm()) == pytest.approx((16 / 3) ** 0.5, rel=0.3)
    for mode in (True, False):
        a, b = (net.train(mode)(x) for net in (model, found.model))
        assert torch.allclose(a, b, atol=2e-3)
    assert torch.equal(found.model[3].weight, model[3].weight)


ZOO_GROUPS = {
    "mlp_functional": {"fc1"},
    "mlp_crelu": {"0", "2"},
    "unet": {"down1", "down2", "up", "merge"},
}


@pytest.mark.parametrize("name", ZOO_GROUPS)
def test_members_of_the_zoo_keep_their_function(name):
    case = ZOO[name]
    model, batch = case.model().eval(), case.batch()
    found = rescaled(model, batch, factor=4.0)
    assert set(found.factors) == ZOO_GROUPS[name]
    assert torch.equal(call(model, batch), call(found.model, batch))
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), found.model.parameters(), strict=True))


@pytest.mark.parametrize(("name", "reason"), [("lstm", "no norm takes"), ("tied_autoencoder", "tied")])
def test_members_of_the_zoo_are_refused(name, reason):
    with pytest.raises(NoEffect, match=reason):
        rescaled(ZOO[name].model(), ZOO[name].batch())


def test_the_causal_test_finds_what_weight_growth_does():
    """With Adam, steps have a size of their own: large weights hardly move, and the rescaled ones learn."""
    model = grown(nn.ReLU(), 30.0)
    task = RandomLabels(inputs=inputs(), num_classes=4, batch_size=16)

    def run(net):
        return probe(net, task, optimizer=adam, steps=60, seeds=3, reset_head="5")

    large, small = run(model), run(rescaled(model, inputs()).model)
    assert large.gap.low > 0
    assert large.minus(small).low > 0
    assert small.gap.mean < large.gap.mean / 3
