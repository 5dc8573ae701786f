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
    assert set(found.factors) == {"0"}
    assert "3." in found.refused["2"]
    assert "not positively homogeneous" in found.refused["5"]


ZOO_GROUPS = {
    "conv_bn_flatten": {"8"},
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


@pytest.mark.parametrize(
    ("name", "reason"), [("conv_groupnorm", "1.weight"), ("tied_autoencoder", "tied"), ("hf_gpt2", "homogeneous")]
)
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
