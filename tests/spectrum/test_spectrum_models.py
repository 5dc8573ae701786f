"""The same matrices for every kind of model, against Jacobians that are written out."""

from __future__ import annotations

import contextlib
import warnings

import pytest
import torch
from spectrum_tools import assert_same_spectrum, dense_ggn, dense_hessian, differences, mlp
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from pliant.spectrum import eps_rank, ggn_operator, ggn_spectrum, hessian_operator, hessian_spectrum, ntk_spectrum


class Tied(nn.Module):
    """A layer that runs twice, and a parameter of another module used as a matrix."""

    def __init__(self):
        super().__init__()
        self.first, self.twice, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3, bias=False)

    def forward(self, x):
        h = torch.tanh(self.twice(torch.tanh(self.twice(self.first(x)))))
        return self.head(h) + h[:, :3] @ self.head.weight[:, :3]


class Attention(nn.Module):
    """Tokens, two blocks of attention, a head for every position."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, 4)

    def forward(self, tokens):
        return {"logits": self.head(self.body(self.embed(tokens)))}


class Recurrent(nn.Module):
    """The last hidden state of an LSTM."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def conv(norm=False):
    layers = [nn.Conv2d(2, 3, 3, padding=1), *([nn.BatchNorm2d(3)] if norm else []), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 3))


IMAGES = (6, 2, 4, 4)
MODELS = {
    "conv": (conv, IMAGES, "layers+jacobian"),
    "tied": (Tied, (6, 5), "layers+jacobian"),
    "recurrent": (Recurrent, (6, 4, 3), "layers+jacobian"),
    "in place": (lambda: nn.Sequential(nn.Linear(5, 9), nn.ReLU(inplace=True), nn.Linear(9, 3)), (6, 5), "layers"),
    "layer norm": (lambda: nn.Sequential(nn.Linear(5, 9), nn.LayerNorm(9), nn.GELU(), nn.Linear(9, 3)), (6, 5), None),
    "crossing": (lambda: Crossing(), (6, 5), "jacobian"),
}


class Crossing(nn.Module):
    """Samples of a batch know of each other without any norm."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.second(h - h.mean(0))


@contextlib.contextmanager
def plain_kernels(wanted):
    """Fused kernels of recurrent layers have no second derivative."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.backends.mkldnn.flags(enabled=not wanted):
            yield


def built(make, seed=0):
    torch.manual_seed(seed)
    return make().double()


def inputs(shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize("name", MODELS)
def test_any_model(name):
    make, shape, method = MODELS[name]
    model, x = built(make), inputs(shape)
    before = {key: item.clone() for key, item in model.state_dict().items()}
    state = torch.get_rng_state()
    loss = lambda out: functional.cross_entropy(out, LABELS)  # noqa: E731
    with plain_kernels(name == "recurrent"):
        expected = dense_ggn(model, x, loss)
    found = ggn_spectrum(model, (x, LABELS))
    assert method is None or found.method == method
    assert_same_spectrum(found, expected, 1e-14)
    operator = ggn_operator(model, (x, LABELS))
    vector = torch.randn(operator.dimension, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert (operator(vector) - expected @ vector).abs().max() < 1e-13
    expected = differences(model, x, loss, vector)
    assert (hessian_operator(model, (x, LABELS))(vector) - expected).abs().max() < 1e-8
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(item, before[key]) for key, item in model.state_dict().items())
    assert all(item.grad is None for item in model.parameters())
    assert model.training


def test_batch_norm_has_two_curvatures_and_one_must_be_named():
    model, x = built(lambda: conv(norm=True)), inputs(IMAGES)
    with torch.no_grad():
        for _ in range(3):
            model(x * 2 + 1)
    found = {mode: ggn_spectrum(model, (x, LABELS), mode=mode) for mode in ("eval", "train")}
    loss = lambda out: functional.cross_entropy(out, LABELS)  # noqa: E731
    statistics = model[1].running_mean.clone()
    vector = inputs((hessian_operator(model, (x, LABELS), mode="eval").dimension,))
    for mode, spectrum in found.items():
        assert spectrum.mode == mode
        model.train(mode == "train")
        model[1].track_running_stats = mode == "eval"  # what training uses, without the update
        wanted = dense_ggn(model, x, loss)
        assert_same_spectrum(spectrum, wanted, 1e-14)
        expected = differences(model, x, loss, vector)
        model[1].track_running_stats = True
        assert (ggn_operator(model, (x, LABELS), mode=mode)(vector) - wanted @ vector).abs().max() < 1e-13
        assert (hessian_operator(model, (x, LABELS), mode=mode)(vector) - expected).abs().max() < 1e-8
    assert (found["eval"].eigenvalues().max() - found["train"].eigenvalues().max()).abs() > 1e-3
    assert torch.equal(statistics, model[1].running_mean)
    assert int(model[1].num_batches_tracked) == 3


def test_tokens_with_and_without_a_target():
    model = built(Attention)
    tokens = torch.randint(11, (3, 5), generator=torch.Generator().manual_seed(1))
    labels = torch.randint(4, (3, 5), generator=torch.Generator().manual_seed(2))
    labels[0, 3:] = -100
    found = ggn_spectrum(model, (tokens, labels))
    assert (found.num_samples, found.num_outputs) == (13, 4)

    loss = lambda out: functional.cross_entropy(out.flatten(0, 1), labels.flatten())  # noqa: E731
    with sdpa_kernel(SDPBackend.MATH):
        expected = dense_ggn(model, tokens, loss, lambda out: out["logits"])
    assert_same_spectrum(found, expected, 1e-14)
    named = ggn_spectrum(model, ({"tokens": tokens}, labels))
    assert torch.equal(named.eigenvalues(), found.eigenvalues())
    second = nn.Sequential(nn.Conv1d(2, 4, 3, padding=1)).double()  # classes second, as PyTorch's losses have them
    x = inputs((3, 2, 5))
    expected = dense_ggn(second, x, lambda out: functional.cross_entropy(out, labels))
    assert_same_spectrum(ggn_spectrum(second, (x, labels)), expected, 1e-14)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse", "function"])
def test_a_masked_head_counts_its_active_logits_alone(loss):
    model, x, active = mlp([5, 8, 7]), inputs((6, 5)), [1, 3, 4]
    labels, wanted = torch.tensor([1, 3, 4, 1, 3, 4]), inputs((6, 3))
    targets = labels if loss == "cross_entropy" else wanted
    function = {
        "cross_entropy": lambda out: functional.cross_entropy(out, (labels != 1).long() + (labels == 4)),
        "mse": lambda out: (out - wanted).square().sum() / 12,
        "function": lambda out: functional.huber_loss(out, wanted * 3),
    }[loss]
    given = loss if loss != "function" else lambda out, targets: functional.huber_loss(out, targets * 3)
    found = ggn_spectrum(model, (x, targets), given, active=active)
    expected = dense_ggn(model, x, function, lambda out: out[:, active])
    assert found.num_outputs == 3
    assert_same_spectrum(found, expected, 1e-14)
    mask = torch.zeros(7, dtype=torch.bool)
    mask[active] = True
    again = ggn_spectrum(model, (x, targets), given, active=mask)
    assert torch.equal(again.eigenvalues(), found.eigenvalues())
    operator = hessian_operator(model, (x, targets), given, active=active)
    hessian = dense_hessian(model, x, function, lambda out: out[:, active])
    assert (operator.dense() - hessian).abs().max() < 1e-13


def test_frozen_parameters_and_patterns():
    x = inputs((6, 5))
    model = mlp([5, 8, 3])
    model[0].bias.requires_grad_(False)
    loss = lambda out: functional.cross_entropy(out, LABELS)  # noqa: E731
    found = ggn_spectrum(model, (x, LABELS))
    assert found.num_parameters == 5 * 8 + 8 * 3 + 3
    assert_same_spectrum(found, dense_ggn(model, x, loss), 1e-14)
    model[2].requires_grad_(False)
    body = dense_ggn(model, x, loss)
    model.requires_grad_(True)
    for method in ("auto", "jacobian"):
        assert_same_spectrum(ggn_spectrum(model, (x, LABELS), where="0.weight", method=method), body, 1e-14)
    assert hessian_spectrum(model, (x, LABELS), where="*.bias", method="dense").dimension == 11


def test_parameters_that_the_outputs_do_not_depend_on_have_no_curvature():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare, self.conv = nn.Linear(5, 3), nn.Linear(5, 4), nn.Conv1d(1, 1, 1)

        def forward(self, x):
            self.spare(x)
            return self.used(x)

    model, x = built(Spare), inputs((6, 5))
    found = ggn_spectrum(model, (x, LABELS))
    alone = ggn_spectrum(model, (x, LABELS), where="used")
    assert eps_rank(found, 1e-12).value == eps_rank(alone, 1e-12).value
    vector = torch.ones(found.num_parameters).double()
    for make in (hessian_operator, ggn_operator):
        assert not make(model, (x, LABELS))(vector)[18:].any()


def test_precision():
    model, x = mlp([5, 8, 3]), inputs((6, 5))
    double = ggn_spectrum(model, (x, LABELS))
    narrow = ggn_spectrum(model.float(), (x.float(), LABELS))
    wide = ggn_spectrum(model, (x.float(), LABELS), dtype=torch.float64)
    brain = ggn_spectrum(model.bfloat16(), (x.bfloat16(), LABELS))  # computed in float32
    assert narrow.nodes[0].dtype == brain.nodes[0].dtype == torch.float64
    assert (narrow.eigenvalues() - double.eigenvalues()).abs().max() < narrow.resolution
    assert wide.resolution < 1e-12 < narrow.resolution
    assert (brain.eigenvalues() - double.eigenvalues()).abs().max() < 0.02
    batch_norm = conv(norm=True)
    assert ntk_spectrum(batch_norm, inputs(IMAGES), mode="eval", dtype=torch.float64).resolution < 1e-12
    assert ntk_spectrum(batch_norm, inputs(IMAGES), mode="train", dtype=torch.float64).resolution < 1e-12
