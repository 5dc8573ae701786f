"""Spectra that are known by formula, in float64, to rounding."""

from __future__ import annotations

import math

import pytest
import torch
from spectrum_tools import assert_same_spectrum, dense_ggn, dense_hessian, mlp, nonzero
from torch import nn
from torch.nn import functional

from pliant.spectrum import (
    condition_number,
    effective_rank,
    eps_rank,
    ggn_operator,
    ggn_spectrum,
    hessian_operator,
    hessian_spectrum,
    largest_eigenvalue,
    ntk_spectrum,
    trace,
)


def data(num, size, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, size, generator=generator, dtype=torch.float64)
    return (
        x,
        torch.randint(classes, (num,), generator=generator),
        torch.randn(num, classes, generator=generator).double(),
    )


def linear(fan_in, fan_out, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(fan_in, fan_out, bias=False).double()


def test_linear_regression():
    x, _, wanted = data(20, 5, 3)
    model, covariance = linear(5, 3), x.T @ x / 20
    expected = torch.kron(torch.eye(3).double(), covariance)
    assert (hessian_operator(model, (x, wanted), "mse").dense() - expected).abs().max() < 5e-15
    assert (ggn_operator(model, (x, wanted), "mse").dense() - expected).abs().max() < 5e-15
    for method in ("auto", "jacobian"):
        assert_same_spectrum(ggn_spectrum(model, (x, wanted), "mse", method=method), expected, 5e-15)
    assert_same_spectrum(ntk_spectrum(model, x), expected, 5e-15)
    assert_same_spectrum(hessian_spectrum(model, (x, wanted), "mse", method="dense"), expected, 5e-15)


def test_a_linear_layer_is_a_kronecker_product_where_it_can_be():
    """K-FAC's factors are exact for one sample and for squares, and approximate for more of cross-entropy."""

    def factors(model, x):
        p = model(x).softmax(-1).detach()
        blocks = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
        return torch.kron(blocks.mean(0), x.T @ x / len(x))

    x, labels, wanted = data(40, 5, 3)
    model = linear(5, 3)
    one = ggn_operator(model, (x[:1], labels[:1])).dense()
    assert (one - factors(model, x[:1])).abs().max() < 1e-15
    many = ggn_operator(model, (x, labels)).dense()
    error = (many - factors(model, x)).norm() / many.norm()
    assert 0.02 < error < 1
    squares = ggn_operator(model, (x, wanted), "mse").dense()
    assert (squares - torch.kron(torch.eye(3).double(), x.T @ x / 40)).abs().max() < 5e-15


def test_softmax_regression():
    x, labels, _ = data(40, 4, 4)
    model = linear(4, 4)
    p = model(x).softmax(-1).detach()
    blocks = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    expected = torch.einsum("ncd,ni,nj->cidj", blocks, x, x).reshape(16, 16) / 40
    assert (hessian_operator(model, (x, labels)).dense() - expected).abs().max() < 2e-16
    assert (ggn_operator(model, (x, labels)).dense() - expected).abs().max() < 2e-16
    spectrum = ggn_spectrum(model, (x, labels))
    assert_same_spectrum(spectrum, expected, 1e-15)
    assert eps_rank(spectrum, 1e-10).value == (4 - 1) * 4


def test_two_layers_of_linear_units():
    """G is block-wise known; what is missing of the Hessian has eigenvalues plus and minus those of the error."""
    (hidden, classes, size), num = (4, 3, 6), 50
    x, _, wanted = data(num, size, classes)
    model = nn.Sequential(linear(size, hidden), linear(hidden, classes, seed=1))
    first, second = (layer.weight.detach() for layer in model)
    sigma = x.T @ x / num
    ggn, hessian = (make(model, (x, wanted), "mse").dense() for make in (ggn_operator, hessian_operator))
    split = hidden * size
    assert (ggn[:split, :split] - torch.kron(second.T @ second, sigma)).abs().max() < 1e-14
    corner = torch.kron(torch.eye(classes).double(), first @ sigma @ first.T)
    assert (ggn[split:, split:] - corner).abs().max() < 1e-14
    error = (second @ first @ x.T - wanted.T) @ x / num
    rest = torch.linalg.eigvalsh(hessian - ggn)
    sizes = torch.linalg.svdvals(error).repeat_interleave(hidden)
    found = rest[rest.abs() > 1e-10].sort().values
    assert (found - torch.cat([-sizes, sizes]).sort().values).abs().max() < 1e-14
    assert int((torch.linalg.eigvalsh(hessian).abs() > 1e-10).sum()) == 33
    assert eps_rank(ggn_spectrum(model, (x, wanted), "mse"), 1e-10).value == 18


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_the_weighted_gram_matrix_has_the_spectrum_of_the_gauss_newton_matrix(loss):
    x, labels, wanted = data(9, 8, 4)
    model = mlp([8, 10, 7, 4], nn.Tanh)
    targets, function = (
        (labels, lambda out: functional.cross_entropy(out, labels))
        if loss == "cross_entropy"
        else (wanted, lambda out: (out - wanted).square().sum() / 18)
    )
    expected = dense_ggn(model, x, function)
    layers = ggn_spectrum(model, (x, targets), loss)
    rows = ggn_spectrum(model, (x, targets), loss, method="jacobian")
    assert (layers.method, rows.method) == ("layers", "jacobian")
    assert layers.dimension == rows.dimension == 36
    for spectrum in (layers, rows):
        assert_same_spectrum(spectrum, expected, 1e-15)
        assert trace(spectrum).value == pytest.approx(float(expected.trace()), rel=1e-12)
    most = 9 * (3 if loss == "cross_entropy" else 4)
    assert eps_rank(layers, 1e-12).value <= most
    few = ggn_spectrum(linear(8, 4), (*data(30, 8, 4)[:2],))  # fewer parameters than outputs: the matrix itself
    assert (few.method, few.dimension) == ("parameters", 32)


def test_the_kernel_of_a_saturated_softmax_has_full_rank_while_the_gauss_newton_matrix_has_vanished():
    x, labels, _ = data(9, 8, 4)
    model = mlp([8, 20, 4])
    with torch.no_grad():
        model[-1].weight.mul_(1000)
    assert eps_rank(ntk_spectrum(model, x), 1e-3).value == 36
    assert eps_rank(ggn_spectrum(model, (x, labels)), 1e-3).value < 6
    assert condition_number(ntk_spectrum(model, x)).value > 1


def test_a_fully_dead_layer_leaves_what_the_last_bias_can_do():
    x, labels, _ = data(16, 8, 4)
    model = mlp([8, 12, 12, 4])
    with torch.no_grad():
        model[2].bias.fill_(-1e3)
    spectrum = ggn_spectrum(model, (x, labels))
    assert eps_rank(spectrum, 1e-10).value == 3
    assert eps_rank(spectrum, 1e-10, normalised=True).value == pytest.approx(3 / 64)
    assert 1 < effective_rank(spectrum).value <= 3


def test_more_of_the_same_samples_change_nothing_and_one_sample_is_enough():
    x, labels, _ = data(9, 8, 4)
    model = mlp([8, 10, 7, 4])
    once = nonzero(ggn_spectrum(model, (x, labels)).eigenvalues())
    twice = nonzero(ggn_spectrum(model, (x.repeat(2, 1), labels.repeat(2))).eigenvalues())
    assert (once - twice).abs().max() < 1e-15
    single = ggn_spectrum(model, (x[:1], labels[:1]))
    assert single.dimension == 4
    assert eps_rank(single, 1e-12).value == 3


def test_units_without_weights_change_the_share_but_not_the_count():
    x, labels, _ = data(9, 8, 4)
    narrow, wide = mlp([8, 6, 4]), mlp([8, 11, 4])
    with torch.no_grad():
        for item in wide.parameters():
            item.zero_()
        wide[0].weight[:6], wide[0].bias[:6], wide[2].weight[:, :6] = narrow[0].weight, narrow[0].bias, narrow[2].weight
        wide[2].bias.copy_(narrow[2].bias)
        wide[0].bias[6:] = -1.0  # off, so that nothing of them is in the Jacobian
    a, b = (hessian_spectrum(model, (x, labels), method="dense") for model in (narrow, wide))
    assert (nonzero(a.eigenvalues()) - nonzero(b.eigenvalues())).abs().max() < 1e-14
    assert eps_rank(a, 1e-3).value == eps_rank(b, 1e-3).value
    assert eps_rank(a, 1e-3, normalised=True).value > eps_rank(b, 1e-3, normalised=True).value


def test_the_effective_rank_of_a_matrix():
    """For a linear model with half squares the matrix can be chosen: its spectrum is that of the inputs' covariance."""

    def rank(diagonal):
        x = torch.diag(torch.tensor(diagonal, dtype=torch.float64).sqrt()) * len(diagonal) ** 0.5
        zeros = torch.zeros(len(diagonal), 1).double()
        return effective_rank(ggn_spectrum(linear(len(diagonal), 1), (x, zeros), "mse")).value

    assert rank([2.0, 1.0, 1.0]) == pytest.approx(2 * math.sqrt(2), rel=1e-12)
    assert rank([1.0] * 5) == pytest.approx(5, rel=1e-12)
    assert rank([3.0, 0.0, 0.0, 0.0]) == pytest.approx(1, rel=1e-12)
    assert rank([200.0, 100.0, 100.0]) == pytest.approx(rank([2.0, 1.0, 1.0]), rel=1e-12)
    assert rank([0.0, 0.0]) == 0
    x, zeros = data(7, 4, 1)[0], torch.zeros(7, 1).double()
    turned = x @ torch.linalg.qr(data(4, 4, 1, seed=1)[0])[0]
    ranks = [effective_rank(ggn_spectrum(linear(4, 1), (item, zeros), "mse")).value for item in (x, turned)]
    assert ranks[0] == pytest.approx(ranks[1], rel=1e-12)
    a, b = [2.0, 1.0, 1.0], [5.0, 1.0]
    assert rank([i * j for i in a for j in b]) == pytest.approx(rank(a) * rank(b), rel=1e-12)


def test_an_absolute_eps_is_not_invariant_to_rescaling_relu_layers():
    x, labels, _ = data(10, 8, 4)
    model = mlp([8, 12, 4])
    before = ggn_spectrum(model, (x, labels))
    hessians = [largest_eigenvalue(hessian_spectrum(model, (x, labels), method="dense")).value]
    kernels = [largest_eigenvalue(ntk_spectrum(model, x)).value]
    with torch.no_grad():
        out = model(x)
        model[0].weight.mul_(3), model[0].bias.mul_(3), model[2].weight.div_(3)
        assert (model(x) - out).abs().max() < 1e-15
    after = ggn_spectrum(model, (x, labels))
    assert eps_rank(before, 1e-12).value == eps_rank(after, 1e-12).value
    assert abs(largest_eigenvalue(before).value / largest_eigenvalue(after).value - 1) > 0.1
    assert eps_rank(before, 3e-2).value != eps_rank(after, 3e-2).value
    assert hessians[0] != pytest.approx(largest_eigenvalue(hessian_spectrum(model, (x, labels), method="dense")).value)
    assert kernels[0] != pytest.approx(largest_eigenvalue(ntk_spectrum(model, x)).value)


def test_the_regulariser_of_an_optimizer_is_no_part_of_the_loss_and_one_in_the_loss_is():
    x, labels, _ = data(10, 8, 4)
    model = mlp([8, 12, 4])
    plain = hessian_operator(model, (x, labels)).dense()
    assert (plain - dense_hessian(model, x, lambda out: functional.cross_entropy(out, labels))).abs().max() < 1e-14
    torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
    assert torch.equal(plain, hessian_operator(model, (x, labels)).dense())
    smooth = lambda out, targets: functional.cross_entropy(out, targets) + 0.1 * out.square().mean()  # noqa: E731
    found = hessian_operator(model, (x, labels), smooth).dense()
    assert (found - dense_hessian(model, x, lambda out: smooth(out, labels))).abs().max() < 1e-14
    assert (found - plain).abs().max() > 1e-4
