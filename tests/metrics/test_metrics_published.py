"""Every published number that the catalogue says a metric reproduces, computed as its authors do, and compared."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pliant import metrics, spectrum
from pliant.metrics import CATALOGUE

generator = torch.Generator().manual_seed(0)
ACT_NU = torch.randn(300, 24, generator=generator, dtype=torch.float64).relu()
ACT_NU[:, :3] = 0.0
ACT_NU[:, 3] *= torch.rand(300, generator=generator) < 0.005
ACT_NU[:, 4] *= 1e-3
ACT_NU[:, 5] *= 1e-8
ACT_NU[:, 6:8] = ACT_NU[:, 8:10]
ACT_NU[:, 10] *= torch.rand(300, generator=generator) < 0.04
LOGITS_NC = torch.randn(50, 5, generator=generator, dtype=torch.float64)
AFTER_NC = LOGITS_NC + 0.3 * torch.randn(50, 5, generator=generator, dtype=torch.float64)
MODEL = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).double()
with torch.no_grad():
    for parameter in MODEL.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) / 3)
INITIAL = [p.detach() + 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in MODEL.parameters()]
X, Y = torch.randn(9, 6, generator=generator, dtype=torch.float64), torch.arange(9) % 3
SIGMA = np.linalg.svd(ACT_NU.numpy(), compute_uv=False)


def parameters() -> list[Tensor]:
    return [p.detach() for p in MODEL.parameters()]


def changes() -> Tensor:
    return torch.cat([(p - q).flatten() for p, q in zip(parameters(), INITIAL, strict=True)])


def matrices() -> list[Tensor]:
    return [p for p in parameters() if p.ndim == 2]


def gradients() -> dict[str, Tensor]:
    found = torch.autograd.grad(F.cross_entropy(MODEL(X), Y), list(MODEL.parameters()))
    return dict(zip(dict(MODEL.named_parameters()), found, strict=True))


def single_gradients() -> Tensor:
    losses = [F.cross_entropy(MODEL(x[None]), y[None]) for x, y in zip(X, Y, strict=True)]
    rows = [torch.autograd.grad(loss, list(MODEL.parameters())) for loss in losses]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


def activation_gradients() -> Tensor:
    h = MODEL[:2](X).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(MODEL[2:](h), Y, reduction="sum"), h)
    return gradient


def single_losses(labels: int | None = None) -> list[Tensor]:
    given = Y if labels is None else torch.full_like(Y, labels)
    return [F.cross_entropy(MODEL(x[None]), y[None]) for x, y in zip(X, given, strict=True)]


def flat(loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(MODEL.parameters()), retain_graph=True)])


def fisher() -> float:
    """The squared length of the gradient for every label, weighed by how likely the network finds it."""
    p_NC = MODEL(X).softmax(1).detach()
    lengths_NC = torch.stack([torch.stack([flat(one).square().sum() for one in single_losses(c)]) for c in range(3)], 1)
    return float((p_NC * lengths_NC).sum(1).mean())


def kernel() -> np.ndarray:
    rows = torch.stack([flat(value) for value in MODEL(X).flatten()])
    return np.linalg.eigvalsh((rows @ rows.T).detach().numpy())


def top_of_the_hessian() -> float:
    parameters = list(MODEL.parameters())
    first = torch.cat(
        [g.flatten() for g in torch.autograd.grad(F.cross_entropy(MODEL(X), Y), parameters, create_graph=True)]
    )
    rows = [torch.autograd.grad(entry, parameters, retain_graph=True, allow_unused=True) for entry in first]
    filled = [[torch.zeros_like(p) if g is None else g for g, p in zip(row, parameters, strict=True)] for row in rows]
    dense = torch.stack([torch.cat([g.flatten() for g in row]) for row in filled])
    return float(np.linalg.eigvalsh(dense.detach().numpy())[-1])


def sphere_penalty() -> float:
    gram = (ACT_NU.T @ ACT_NU).numpy() / 300
    return float((gram**2).sum() - np.trace(gram) ** 2 / 24)


def effective_rank(sigma: np.ndarray) -> float:
    p = sigma / sigma.sum()
    return float(np.exp(-sum(x * math.log(x) for x in p if x > 0)))


def counted(cumulative: np.ndarray, share: float) -> int:
    return int((cumulative / cumulative[-1] < share).sum()) + 1


def off_diagonal(square: np.ndarray) -> float:
    return float(square[~np.eye(len(square), dtype=bool)].mean())


def joudaki_stable_rank() -> float:
    centred = ACT_NU - ACT_NU.mean(0)
    return float((centred**2).sum() ** 2 / ((centred.T @ centred) ** 2).sum())


def joudaki_duplicates() -> float:
    unit_UN = F.normalize(ACT_NU.T, dim=1)
    return float(((unit_UN @ unit_UN.T) > 0.95).triu(1).any(1).double().mean())


def gramma(grad_UI: Tensor) -> float:
    score = grad_UI.abs().mean(1)
    return float((score / (score.mean() + 1e-8) <= 0.01).double().mean())


def dopamine(tau: float) -> float:
    score = ACT_NU.abs().mean(0)
    return float((score / (score.mean() + 1e-9) <= tau).double().mean())


TANH_NU = 1 - (4 * torch.randn(60, 7, generator=generator, dtype=torch.float64) + torch.arange(7) * 3).tanh() ** 2

# (what the metric says, what its authors compute), by metric and source as the catalogue names it.
CASES: dict[tuple[str, str], Callable[[], tuple[object, object]]] = {
    ("dead_fraction", "Dohare et al. 2024, dead units (MNIST)"): lambda: (
        24 * metrics.dead_fraction(ACT_NU),
        sum(float(ACT_NU[:, u].abs().sum()) == 0 for u in range(24)),
    ),
    ("dead_fraction", "Dohare et al. 2024, dormant units (ImageNet, CIFAR)"): lambda: (
        metrics.dead_fraction(ACT_NU, share=0.99),
        float(((ACT_NU != 0).double().mean(0) < 0.01).double().mean()),
    ),
    ("dead_fraction", "Joudaki et al. 2025, code, dead neurons"): lambda: (
        metrics.dead_fraction(ACT_NU, tol=1e-7, share=0.95),
        float(((ACT_NU.abs() < 1e-7).double().mean(0) > 0.95).double().mean()),
    ),
    ("dead_fraction", "traintools, dead fraction"): lambda: (
        metrics.dead_fraction(ACT_NU, tol=1e-3),
        float((ACT_NU.abs().amax(0) < 1e-3).double().mean()),
    ),
    ("dormant_fraction", "Sokar et al. 2023, dormant neurons"): lambda: (
        [metrics.dormant_fraction(ACT_NU.abs().mean(0), tau) for tau in (0.025, 0.1)],
        [float((ACT_NU.abs().mean(0) / ACT_NU.abs().mean() <= tau).double().mean()) for tau in (0.025, 0.1)],
    ),
    ("dormant_fraction", "Dopamine, ReDo"): lambda: (
        [metrics.dormant_fraction(ACT_NU.abs().mean(0), tau) for tau in (0.0, 0.025, 0.1)],
        [dopamine(tau) for tau in (0.0, 0.025, 0.1)],
    ),
    ("active_fraction", "Plasticine, dormant units (ReLU)"): lambda: (
        1 - metrics.active_fraction(ACT_NU),
        float((ACT_NU == 0).double().mean()),
    ),
    ("frozen_fraction", "Joudaki et al. 2025, theorem 2.1, frozen units"): lambda: (
        metrics.frozen_fraction(TANH_NU, tol=1e-4),
        float(np.mean([all(abs(float(d)) <= 1e-4 for d in TANH_NU[:, u]) for u in range(7)])),
    ),
    ("cloned_fraction", "Joudaki et al. 2025, code, duplicate neurons"): lambda: (
        metrics.cloned_fraction(ACT_NU, sign="same", centred=False, count="spare"),
        joudaki_duplicates(),
    ),
    ("effective_rank", "Roy and Vetterli 2007, effective rank"): lambda: (
        metrics.effective_rank(ACT_NU),
        effective_rank(SIGMA),
    ),
    ("effective_rank", "Dohare et al. 2024, effective rank"): lambda: (
        metrics.effective_rank(ACT_NU),
        effective_rank(SIGMA),
    ),
    ("effective_rank", "Joudaki et al. 2025, code, effective rank"): lambda: (
        metrics.effective_rank(ACT_NU),
        math.exp(-sum(p * math.log(p + 1e-12) for p in SIGMA / SIGMA.sum())),
    ),
    ("effective_rank", "Plasticine, effective rank"): lambda: (
        metrics.effective_rank(ACT_NU),
        effective_rank(SIGMA),
    ),
    ("stable_rank", "Rudelson and Vershynin 2007, numerical rank"): lambda: (
        metrics.stable_rank(ACT_NU),
        np.linalg.norm(ACT_NU, "fro") ** 2 / np.linalg.norm(ACT_NU, 2) ** 2,
    ),
    ("srank", "Kumar et al. 2021, srank, effective rank"): lambda: (
        metrics.srank(ACT_NU),
        next(k + 1 for k, part in enumerate(np.cumsum(SIGMA) / SIGMA.sum()) if part >= 0.99),
    ),
    ("srank", "Dohare et al. 2024, stable rank"): lambda: (metrics.srank(ACT_NU), counted(np.cumsum(SIGMA), 0.99)),
    ("srank", "Plasticine, stable rank"): lambda: (metrics.srank(ACT_NU), counted(np.cumsum(SIGMA), 0.99)),
    ("approximate_rank", "Dohare et al. 2024, code, approximate rank"): lambda: (
        metrics.approximate_rank(ACT_NU),
        counted(np.cumsum(SIGMA**2), 0.99),
    ),
    ("participation_ratio", "Joudaki et al. 2025, code, stable rank"): lambda: (
        metrics.participation_ratio(ACT_NU),
        joudaki_stable_rank(),
    ),
    ("participation_ratio", "SPHERE 2026, isotropy"): lambda: (
        metrics.participation_ratio(ACT_NU, centred=False) / 24,
        float(np.trace(gram := (ACT_NU.T @ ACT_NU).numpy() / 300) ** 2 / (24 * (gram**2).sum())),
    ),
    ("numerical_rank", "Lyle et al. 2022, feature rank"): lambda: (
        metrics.numerical_rank(ACT_NU),
        int((np.linalg.svd(ACT_NU.numpy() / math.sqrt(300), compute_uv=False) > 0.01).sum()),
    ),
    ("numerical_rank", "Dohare et al. 2024, code, rank"): lambda: (
        metrics.numerical_rank(torch.diag(torch.arange(4.0)), 0.0, "nothing"),
        3,
    ),
    ("numerical_rank", "torch.linalg.matrix_rank"): lambda: (
        metrics.numerical_rank(ACT_NU, 300 * torch.finfo(torch.float64).eps, "largest"),
        torch.linalg.matrix_rank(ACT_NU),
    ),
    ("weight_magnitude", "Dohare et al. 2024, weight magnitude (MNIST)"): lambda: (
        metrics.weight_magnitude(matrices()),
        sum(float(w.abs().sum()) for w in matrices()) / (6 * 8 + 8 * 3),
    ),
    ("weight_magnitude", "Dohare et al. 2024, weight magnitude (CIFAR)"): lambda: (
        metrics.weight_magnitude(parameters()),
        float(torch.cat([p.flatten() for p in parameters()]).abs().mean()),
    ),
    ("distance_from_initialisation", "Lyle et al. 2023, distance from initialisation"): lambda: (
        metrics.distance_from_initialisation(parameters(), INITIAL),
        float(changes().norm()),
    ),
    ("distance_from_initialisation", "Plasticine, weight difference"): lambda: (
        metrics.distance_from_initialisation(parameters(), INITIAL) / math.sqrt(sum(p.numel() for p in INITIAL)),
        float(changes().square().mean().sqrt()),
    ),
    ("distance_from_initialisation", "Kumar et al. 2023, L2 Init"): lambda: (
        metrics.distance_from_initialisation(parameters(), INITIAL) ** 2,
        sum(float(((p - q) ** 2).sum()) for p, q in zip(parameters(), INITIAL, strict=True)),
    ),
    ("gradient_norm", "torch.nn.utils.get_total_norm"): lambda: (
        metrics.gradient_norm(gradients().values()),
        torch.nn.utils.get_total_norm(list(gradients().values())),
    ),
    ("gradient_dormant_fraction", "GraMa 2025, published code"): lambda: (
        metrics.gradient_dormant_fraction(gradients()["0.weight"].abs().mean(1)),
        gramma(gradients()["0.weight"]),
    ),
    ("gradient_dormant_fraction", "GraMa 2025, paper"): lambda: (
        metrics.gradient_dormant_fraction(activation_gradients().abs().mean(0)),
        gramma(activation_gradients().T),
    ),
    ("gradient_interference", "Lyle et al. 2023, gradient covariance"): lambda: (
        metrics.gradient_interference(single_gradients()),
        off_diagonal(np.array([[float(F.cosine_similarity(a, b, dim=0)) for b in single_gradients()]
                               for a in single_gradients()])),
    ),
    ("isotropy_gap", "SPHERE 2026, published code, feature loss"): lambda: (
        [metrics.isotropy_gap(ACT_NU, relative=False), metrics.isotropy_gap(ACT_NU[:9], relative=False)],
        [sphere_penalty(), float(24 * np.linalg.eigvalsh((ACT_NU[:9].T @ ACT_NU[:9]).numpy() / 9).var())],
    ),
    ("empirical_fisher_trace", "Kunstner et al. 2019, empirical Fisher"): lambda: (
        metrics.empirical_fisher_trace(single_gradients()),
        float(torch.trace(single_gradients().T @ single_gradients() / 9)),
    ),
    ("fisher_trace", "Fisher information, trace"): lambda: (spectrum.fisher_trace(MODEL, (X, Y)).value, fisher()),
    ("ntk_effective_rank", "nngeometry, NTK"): lambda: (
        spectrum.ntk_effective_rank(MODEL, X).value,
        effective_rank(kernel()[kernel() > 0]),
    ),
    ("ntk_condition", "Xiao et al. 2020, condition number of the NTK"): lambda: (
        spectrum.ntk_condition(MODEL, X).value,
        (found := kernel()[kernel() > 1e-12])[-1] / found[0],
    ),
    ("sharpness", "Cohen et al. 2021, sharpness"): lambda: (
        spectrum.sharpness(MODEL, (X, Y), steps=60).value,
        top_of_the_hessian(),
    ),
    ("churn", "Tang et al. 2025, C-CHAIN"): lambda: (
        metrics.churn(LOGITS_NC, AFTER_NC, kind="squared"),
        F.mse_loss(LOGITS_NC, AFTER_NC),
    ),
    ("churn", "Schaul et al. 2022, policy churn"): lambda: (
        metrics.churn(LOGITS_NC, AFTER_NC, kind="argmax"),
        float((LOGITS_NC.argmax(1) != AFTER_NC.argmax(1)).double().mean()),
    ),
    ("feature_norm", "Plasticine, feature norm"): lambda: (
        metrics.feature_norm(ACT_NU),
        float(torch.norm(ACT_NU, dim=1).mean()),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "source"), list(CASES))
def test_it_is_the_published_number(name: str, source: str) -> None:
    ours, theirs = CASES[name, source]()
    np.testing.assert_allclose(np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float), rtol=1e-6)


def test_nothing_is_claimed_without_a_test() -> None:
    claimed = {(name, source) for name, info in CATALOGUE.items() for source in info.compatible_with}
    assert set(CASES) == claimed


def test_the_data_tells_definitions_apart() -> None:
    """On it the numbers of one name are different numbers: none of the comparisons above holds by chance."""
    dead = [metrics.dead_fraction(ACT_NU, **options) for options in ({}, {"share": 0.99}, {"tol": 1e-7, "share": 0.95})]
    dead += [metrics.dead_fraction(ACT_NU, tol=1e-3), metrics.dormant_fraction(ACT_NU.mean(0), 0.1)]
    assert len({round(float(value), 6) for value in dead}) >= 4
    ranks = [metrics.stable_rank(ACT_NU), metrics.srank(ACT_NU), metrics.participation_ratio(ACT_NU)]
    assert len({round(float(value), 3) for value in ranks}) == 3
