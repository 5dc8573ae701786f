"""``load_grown``: weights, moments and state go on in a model that has grown."""

from __future__ import annotations

import pytest
import torch
from life_tools import METHOD, Run, assert_same
from torch import nn

import pliant
from pliant import IllegalConfiguration


def load(run: Run, saved, **more):
    return run.handle.load_grown(saved["model"], saved["optimizer"], saved["pliant"], **more)


def test_a_model_that_has_not_grown_goes_on_with_the_same_bits():
    whole = Run().train(0, 20)
    cut = Run().train(0, 11).saved()
    rest = Run(seed=7)
    assert load(rest, cut).is_complete
    rest.train(11, 20)
    assert_same(rest.saved(), whole.saved())


def test_with_new_words_the_old_ones_go_on_as_before():
    """Up to the rounding of a larger matrix product."""
    method = pliant.ContinualBackprop(0.02, maturity_threshold=4, where="body.0")

    def loop(run: Run, start: int, stop: int) -> None:
        for step in range(start, stop):
            ids = torch.randint(0, 10, (16,), generator=torch.Generator().manual_seed(step))
            run.optimizer.zero_grad()
            run.model(ids)[:, :10].square().mean().backward()
            run.optimizer.step()

    whole, cut, rest = Run(method), Run(method), Run(method, seed=4, vocabulary=15)
    new = rest.model.words.weight.detach()[10:].clone()
    loop(whole, 0, 20)
    loop(cut, 0, 11)
    report = load(rest, cut.saved())
    assert set(report.names("extended", "the model")) == {"words.weight", "head.weight", "head.bias"}
    assert not report.names("re-initialised")
    loop(rest, 11, 20)
    for name, value in rest.model.state_dict().items():
        want = whole.model.state_dict()[name]
        assert torch.allclose(value[: len(want)], want, atol=1e-5), name
        moments = rest.optimizer.state[dict(rest.model.named_parameters())[name]]
        theirs = whole.optimizer.state[dict(whole.model.named_parameters())[name]]
        assert torch.allclose(moments["exp_avg"][: len(want)], theirs["exp_avg"], atol=1e-5)
        assert float(moments["step"]) == 20
    assert torch.equal(rest.model.words.weight[10:], new)
    assert not rest.optimizer.state[rest.model.words.weight]["exp_avg_sq"][10:].any()
    ages = [run.handle.state_dict()["state"][0]["body.0"]["age"] for run in (rest, whole)]
    assert torch.equal(*ages)
    assert ages[0].max() == 20, "they were not young again at the change"


def test_the_old_units_of_a_wider_layer_keep_weights_moments_and_ages():
    saved = Run().train(0, 12).saved()
    run = Run(width=18, seed=3)
    fresh = run.model.body[0].weight.detach().clone()
    report = load(run, saved)
    assert report.names("extended", "unit groups") == ("body.0",)
    assert report.names("extended", "ContinualBackprop") == ("body.0",)
    weight = run.model.body[0].weight
    assert torch.equal(weight[:12], saved["model"]["body.0.weight"])
    assert torch.equal(weight[12:], fresh[12:])
    assert torch.equal(run.model.body[2].weight[:, :12], saved["model"]["body.2.weight"])
    ages = run.handle.state_dict()["state"][0]["body.0"]["age"]
    assert torch.equal(ages[:12], saved["pliant"]["state"][0]["body.0"]["age"])
    assert not ages[12:].any()
    run.train(12, 40)
    assert int(run.handle.num_resets["body.0"]) > int(saved["pliant"]["num_resets"]["body.0"])


def test_new_entries_have_the_moments_of_new_weights():
    """Adagrad's sums begin at its initial value, not at zero."""
    torch.manual_seed(0)

    def made(vocabulary: int):
        model = nn.Sequential(nn.Embedding(vocabulary, 4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1, initial_accumulator_value=0.5)
        return model, optimizer, pliant.attach(model, optimizer, METHOD, example_inputs=torch.arange(5))

    model, optimizer, handle = made(5)
    model(torch.arange(5)).square().mean().backward()
    optimizer.step()
    big, other, again = made(8)
    again.load_grown(model.state_dict(), optimizer.state_dict(), handle.state_dict())
    sums = other.state[big[0].weight]["sum"]
    assert torch.equal(sums[:5], optimizer.state[model[0].weight]["sum"])
    assert (sums[5:] == 0.5).all()


class Attention(nn.Module):
    """Queries, keys and values in one matrix."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inner, self.out = nn.Linear(8, 3 * heads * 4), nn.Linear(heads * 4, 3)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (self.heads, 4)).transpose(1, 2) for part in self.inner(x).chunk(3, -1))
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_where_the_old_units_do_not_come_first_the_layer_begins_anew():
    def made(heads: int):
        torch.manual_seed(heads)
        model = Attention(heads)
        optimizer = torch.optim.Adam(model.parameters())
        method = pliant.ContinualBackprop(0.1, maturity_threshold=1, where="*:heads")
        return model, optimizer, pliant.attach(model, optimizer, method, example_inputs=torch.randn(2, 5, 8))

    model, optimizer, handle = made(2)
    wide, _, again = made(3)
    fresh = wide.inner.weight.detach().clone()
    report = again.load_grown(model.state_dict(), optimizer.state_dict(), handle.state_dict())
    assert "inner.weight" in report.names("re-initialised", "the model")
    assert torch.equal(wide.inner.weight, fresh)


def test_what_does_not_belong_together_is_refused_and_changes_nothing():
    saved = Run().train(0, 3).saved()
    run = Run(seed=2, vocabulary=14)
    before = run.saved()
    wrong = dict(saved["optimizer"], param_groups=[{**saved["optimizer"]["param_groups"][0], "params": [0, 1]}])
    sgd = Run(optimizer="sgd").train(0, 2).saved()
    old = {key: value for key, value in saved["pliant"].items() if key != "owners"}
    for optimizer, state, word in (
        (wrong, saved["pliant"], "Save model, optimizer and handle together"),
        (sgd["optimizer"], saved["pliant"], "another kind of optimizer"),
        ([saved["optimizer"]] * 2, saved["pliant"], "1 optimizers are attached"),
        (saved["optimizer"], old, "version 4 or later"),
        (saved["optimizer"], {**saved["pliant"], "version": 9}, "version 9"),
    ):
        with pytest.raises(IllegalConfiguration, match=word):
            run.handle.load_grown(saved["model"], optimizer, state)
        assert_same(run.saved(), before)


def test_a_renamed_module_and_an_optimizer_that_begins_anew():
    saved = Run().train(0, 5).saved()
    run = Run(body="core", vocabulary=12)
    report = run.handle.load_grown(saved["model"], None, saved["pliant"], renamed={"body": "core"})
    assert torch.equal(run.model.core[0].weight, saved["model"]["body.0.weight"])
    assert "core.0.weight" in report.names("renamed", "the model")
    assert not run.optimizer.state
