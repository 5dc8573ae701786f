"""The metrics that are one number per layer or per network: what each needs, and whose number it is.

Names conflict across the field: three quantities are called "stable rank", two "effective rank", four "dormant" or
"dead". Each entry therefore says which published numbers it reproduces, and how, and which others bear its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from pliant.metrics.info import MetricInfo
from pliant.metrics.of_models import OF_MODELS

__all__ = ["CATALOGUE", "MetricInfo"]


_NO_DATA = "No: it looks at weights, not at data."
_MEAN = "No: a mean over samples; more of them make it more exact."
_RANK_BATCH = "Yes: at most min(N, U), and it rises with N; compare at one batch size, several times U."
_RANK_OFFSET = "Yes: an offset is one large direction that hides the others; centred=True takes it out."
_RANK_SCALE = "No: relative to the singular values themselves."
_PROPORTIONAL = "Yes: proportional."

_ENTRIES = (
    MetricInfo(
        "dead_fraction", "activations", "layer", "low",
        "Yes: more samples can only revive units.",
        "Yes: with an offset no unit is exactly zero.",
        "No: zero stays zero.",
        {
            "Dohare et al. 2024, dead units (MNIST)": "times the number of units; on 2,000 examples of the next task",
            "Dohare et al. 2024, dormant units (ImageNet, CIFAR)": "share=0.99: not zero on less than 1 % of samples",
            "Joudaki et al. 2025, code, dead neurons": "tol=1e-7, share=0.95",
            "traintools, dead fraction": "tol=1e-3",
        },
        {
            "Plasticine, dormant units": "the share of entries that are zero, of all units: one minus active_fraction",
            "Sokar et al. 2023, dormant neurons": "relative to the layer's mean: dormant_fraction",
        },
    ),
    MetricInfo(
        "dormant_fraction", "activations", "layer", "low",
        "Yes: on few samples a unit that is on rarely looks dormant.",
        "Yes: an offset brings every score nearer to 1, and hides dormant units.",
        "No: relative to the layer's mean.",
        {
            "Sokar et al. 2023, dormant neurons": "tau=0.025 or 0.1, as the figure says",
            "Dopamine, ReDo": "its 1e-9 in the denominator matters for activations that small only",
        },
        {
            "Dohare et al. 2024, dormant units": "how often a unit is not zero: dead_fraction with share=0.99",
            "Plasticine, dormant units": "the share of entries that are zero: one minus active_fraction",
            "GraMa": "gradients in the place of activations: gradient_dormant_fraction",
        },
    ),
    MetricInfo(
        "active_fraction", "activations", "layer", None,
        _MEAN,
        "Yes: an offset moves entries over zero.",
        "No: only signs count.",
        {"Plasticine, dormant units (ReLU)": "one minus it"},
        {},
    ),
    MetricInfo(
        "saturated_fraction", "derivatives", "layer", "low",
        "Yes: on few samples a unit that is flat often may be so on all; take more than 1 / (1 - share).",
        "No: a constant added to the activation has no derivative.",
        "Yes: a factor on the activation is one on its derivative, beside a fixed tau.",
        {},
        {
            "Joudaki et al. 2025, code, saturated neurons":
                "the loss's gradient over the mean activation: it falls with the loss and with the batch size, "
                "so that a network that fits well counts as saturated",
            "Dohare et al. 2024, saturated units (regression)": "entries with |tanh| > 0.9 on one example",
            "Plasticine, dormant units (tanh)": "entries with |tanh| > 0.99",
        },
    ),
    MetricInfo(
        "frozen_fraction", "derivatives", "layer", "low",
        "Yes: more samples can only thaw units.",
        "No: a constant added to the activation has no derivative.",
        "No: zero stays zero.",
        {"Joudaki et al. 2025, theorem 2.1, frozen units": "tol=0; tol=1e-4 in their simulations"},
        {},
    ),
    MetricInfo(
        "cloned_fraction", "activations", "layer", "low",
        "Yes: on few samples chance makes copies; take several times U.",
        "No: correlations are centred.",
        "No: nor does the scale of single units.",
        {"Joudaki et al. 2025, code, duplicate neurons": 'sign="same", centred=False, count="spare"'},
        {
            "Joudaki et al. 2025, cloning R2":
                "how well units follow planted copies: one minus the ratio of standard deviations",
        },
    ),
    MetricInfo(
        "num_distinct_units", "activations", "layer", "high",
        "Yes: on few samples chance makes copies; take several times U.",
        "No: correlations are centred.",
        "No: nor does the scale of single units.",
    ),
    MetricInfo(
        "effective_rank", "activations", "layer", "high",
        _RANK_BATCH, _RANK_OFFSET, _RANK_SCALE,
        {
            "Roy and Vetterli 2007, effective rank": "as it is",
            "Dohare et al. 2024, effective rank": "as it is; theirs is 1 for an all-zero matrix",
            "Joudaki et al. 2025, code, effective rank": "of at most 1,024 rows",
            "Plasticine, effective rank": "as it is",
        },
        {"Kumar et al. 2021, effective rank": "srank"},
    ),
    MetricInfo(
        "stable_rank", "activations", "layer", "high",
        _RANK_BATCH, _RANK_OFFSET, _RANK_SCALE,
        {"Rudelson and Vershynin 2007, numerical rank": "as it is"},
        {
            "Dohare et al. 2024, stable rank": "srank with delta=0.01",
            "Plasticine, stable rank": "srank with delta=0.01",
            "Joudaki et al. 2025, code, stable rank": "participation_ratio",
        },
    ),
    MetricInfo(
        "srank", "activations", "layer", "high",
        _RANK_BATCH, _RANK_OFFSET, _RANK_SCALE,
        {
            "Kumar et al. 2021, srank, effective rank": "delta=0.01",
            "Dohare et al. 2024, stable rank": "delta=0.01; abs approximate rank in their code",
            "Plasticine, stable rank": "delta=0.01",
        },
        {
            "Rudelson and Vershynin 2007": "squared Frobenius over squared spectral norm: stable_rank",
            "Roy and Vetterli 2007, effective rank": "effective_rank",
        },
    ),
    MetricInfo(
        "approximate_rank", "activations", "layer", "high",
        _RANK_BATCH, _RANK_OFFSET, _RANK_SCALE,
        {"Dohare et al. 2024, code, approximate rank": "share=0.99"},
        {"Dohare et al. 2024, code, abs approximate rank": "singular values, not their squares: srank"},
    ),
    MetricInfo(
        "participation_ratio", "activations", "layer", "high",
        _RANK_BATCH,
        "No: columns are centred.",
        _RANK_SCALE,
        {
            "Joudaki et al. 2025, code, stable rank": "of at most 1,024 rows; its documentation says something else",
            "SPHERE 2026, isotropy": "centred=False, over the number of units",
        },
        {"Rudelson and Vershynin 2007, stable rank": "squared Frobenius over squared spectral norm: stable_rank"},
    ),
    MetricInfo(
        "isotropy_gap", "activations", "layer", "low",
        "Yes: at least 1 - min(N, U) / U, and it falls with N; compare at one batch size, several times U.",
        "Yes: an offset is one large direction.",
        "No: a share; with relative=False it grows with the fourth power.",
        {"SPHERE 2026, published code, feature loss": "relative=False"},
        {"SPHERE 2026, published code, output loss": "of routing probabilities, and over their number"},
    ),
    MetricInfo(
        "numerical_rank", "activations", "layer", "high",
        "Yes: at most min(N, U); the tolerance itself does not move with N.",
        "Yes: an offset may be one more direction.",
        'Yes: the tolerance is absolute; relative_to="largest" takes the scale out.',
        {
            "Lyle et al. 2022, feature rank": "tol=0.01, relative to samples",
            "Dohare et al. 2024, code, rank": 'tol=0, relative_to="nothing"',
            "torch.linalg.matrix_rank": 'relative_to="largest", tol=max(N, U) times the precision of the type',
        },
        {"Rudelson and Vershynin 2007, numerical rank": "squared Frobenius over squared spectral norm: stable_rank"},
    ),
    MetricInfo(
        "weight_magnitude", "weights", "network", "low",
        _NO_DATA,
        "Yes: an offset counts as size.",
        _PROPORTIONAL,
        {
            "Dohare et al. 2024, weight magnitude (MNIST)": "of the weight matrices",
            "Dohare et al. 2024, weight magnitude (CIFAR)": "of all parameters, biases and norms included",
        },
        {
            "Plasticine, weight magnitude": "the root mean square of all parameters",
            "Lyle et al. 2023, weight norm": "the Euclidean norm: distance_from_initialisation from zeros",
        },
    ),
    MetricInfo(
        "weight_growth", "weights", "network", "low",
        _NO_DATA,
        "Yes: an offset counts as size.",
        "Yes: proportional to the scale of the weights; not if the initial ones are scaled with them.",
    ),
    MetricInfo(
        "distance_from_initialisation", "weights", "network", "low",
        _NO_DATA,
        "Yes: an offset is a distance.",
        "Yes: a factor on the weights moves them away.",
        {
            "Lyle et al. 2023, distance from initialisation": "as it is",
            "Plasticine, weight difference": "over the square root of the number of parameters",
            "Kumar et al. 2023, L2 Init": "its square, times the strength",
        },
        {"Dohare et al. 2024, weight change (RL)": "the sum of |change| over one update cycle"},
    ),
    MetricInfo(
        "update_to_weight_ratio", "weights", "network", None,
        "No: it looks at weights; the step that it measures may well depend on the batch.",
        "Yes: an offset counts as size of the weights.",
        "No: relative to the weights.",
        {},
        {"Karpathy's update-to-data ratio": "standard deviations in the place of norms"},
    ),
    MetricInfo(
        "gradient_norm", "gradients", "network", None,
        "Yes: of a mean loss the noise in it falls with the number of samples.",
        "Yes: an offset counts as size.",
        "Yes: proportional, to the scale of the loss as well.",
        {"torch.nn.utils.get_total_norm": "as it is"},
        {},
    ),
    MetricInfo(
        "gradient_dormant_fraction", "gradients", "layer", "low",
        "Yes: on few samples noise keeps up the gradient of every unit that is on.",
        "Yes: an offset brings every score nearer to 1.",
        "No: relative to the layer's mean, so that the scale of the loss is no matter.",
        {
            "GraMa 2025, published code": "tau=0.01, mean absolute gradient of the incoming weights",
            "GraMa 2025, paper": "mean over samples of the absolute gradient of the activation",
        },
        {"Sokar et al. 2023, dormant neurons": "activations in the place of gradients: dormant_fraction"},
    ),
    MetricInfo(
        "gradient_interference", "gradients", "network", "low",
        "No: a mean over pairs of samples; more of them make it more exact.",
        "Yes: an offset is a common direction.",
        "No: cosines; nor does the scale of single samples.",
        {"Lyle et al. 2023, gradient covariance": "the mean off its diagonal; the matrix is gradient_covariance"},
        {},
    ),
    MetricInfo(
        "gradient_rank", "gradients", "network", "high",
        "Yes: at most N, and it rises with it; compare at one number of samples.",
        "Yes: an offset is a common direction.",
        "No: directions alone; nor does the scale of single samples.",
        {},
        {"gradients' rank in LoRA and its kin": "of the gradient of one weight matrix, summed over samples"},
    ),
    MetricInfo(
        "empirical_fisher_trace", "gradients", "network", None,
        _MEAN,
        "Yes: an offset counts as length.",
        "Yes: with its square.",
        {"Kunstner et al. 2019, empirical Fisher": "the trace of its mean over samples"},
        {"Fisher information, trace": "labels drawn from the network, not the given ones: fisher_trace"},
    ),
    MetricInfo(
        "churn", "outputs", "network", None,
        _MEAN,
        "No: a difference of outputs.",
        'Yes: proportional; kind="argmax" is not.',
        {
            "Tang et al. 2025, C-CHAIN": 'kind="squared"',
            "Schaul et al. 2022, policy churn": 'kind="argmax"',
        },
        {},
    ),
    MetricInfo(
        "feature_norm", "activations", "layer", None,
        _MEAN,
        "Yes: an offset counts as length.",
        _PROPORTIONAL,
        {"Plasticine, feature norm": "as it is"},
        {"Lyle et al. 2024, feature norm penalty": "the mean of the squared length"},
    ),
    MetricInfo(
        "entropy", "outputs", "network", "high",
        _MEAN,
        "No: the softmax does not see it.",
        "Yes: larger logits are more certain.",
    ),
    MetricInfo(
        "output_diversity", "outputs", "network", "high",
        "Yes: too low by about one part in N.",
        "Yes: an offset is the same answer to every input.",
        "No: a share of the outputs' own energy.",
    ),
    MetricInfo(
        "non_finite_fraction", "weights", "network", "low",
        "No: a share of entries.",
        "No: what is not finite stays so.",
        "No: what is not finite stays so.",
    ),
)  # fmt: skip

CATALOGUE: Mapping[str, MetricInfo] = MappingProxyType({entry.name: entry for entry in (*_ENTRIES, *OF_MODELS)})
"""By name, in the order of a page: units, ranks, weights, gradients, outputs, and what needs a model."""
