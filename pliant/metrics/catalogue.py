"""The metrics that are one number per layer or per network: what each needs, and whose number it is.

Names conflict across the field: three quantities are called "stable rank", two "effective rank", four "dormant" or
"dead". Each entry therefore says which published numbers it reproduces, and how, and which others bear its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from torch import Tensor

from pliant.metrics import clones, dormancy, features, finite, gradients, outputs, rank, saturation, weights

__all__ = ["CATALOGUE", "MetricInfo"]


@dataclass(frozen=True)
class MetricInfo:
    """What is known of one metric.

    The three dependences begin with "No" or "Yes" and speak of the default arguments: how the value depends on the
    number of samples, on a constant added to everything that the metric reads, and on a positive factor on it.

    Attributes:
        name: The function's name.
        function: The function; the names of its first parameters say what it takes.
        needs: What it reads.
        per: Whether there is one value for each layer or one for the network.
        better: Which direction is the healthy one, if either is.
        depends_on_batch: On the number of samples.
        depends_on_offset: On an offset.
        depends_on_scale: On the scale.
        compatible_with: Published numbers that it reproduces, and with which arguments.
        differs_from: Numbers of the same name that it does not reproduce, and what they are.
    """

    name: str
    function: Callable[..., Tensor]
    needs: Literal["activations", "derivatives", "gradients", "weights", "outputs"]
    per: Literal["layer", "network"]
    better: Literal["high", "low"] | None
    depends_on_batch: str
    depends_on_offset: str
    depends_on_scale: str
    compatible_with: Mapping[str, str] = field(default_factory=dict)
    differs_from: Mapping[str, str] = field(default_factory=dict)


_NO_DATA = "No: it looks at weights, not at data."
_MEAN = "No: a mean over samples; more of them make it more exact."
_RANK_BATCH = "Yes: at most min(N, U), and it rises with N; compare at one batch size, several times U."
_RANK_OFFSET = "Yes: an offset is one large direction that hides the others; centred=True takes it out."
_RANK_SCALE = "No: relative to the singular values themselves."
_PROPORTIONAL = "Yes: proportional."

_ENTRIES = (
    MetricInfo(
        "dead_fraction", dormancy.dead_fraction, "activations", "layer", "low",
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
        "dormant_fraction", dormancy.dormant_fraction, "activations", "layer", "low",
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
        "active_fraction", features.active_fraction, "activations", "layer", None,
        _MEAN,
        "Yes: an offset moves entries over zero.",
        "No: only signs count.",
        {"Plasticine, dormant units (ReLU)": "one minus it"},
        {},
    ),
    MetricInfo(
        "saturated_fraction", saturation.saturated_fraction, "derivatives", "layer", "low",
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
        "frozen_fraction", saturation.frozen_fraction, "derivatives", "layer", "low",
        "Yes: more samples can only thaw units.",
        "No: a constant added to the activation has no derivative.",
        "No: zero stays zero.",
        {"Joudaki et al. 2025, theorem 2.1, frozen units": "tol=0; tol=1e-4 in their simulations"},
        {},
    ),
    MetricInfo(
        "cloned_fraction", clones.cloned_fraction, "activations", "layer", "low",
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
        "num_distinct_units", clones.num_distinct_units, "activations", "layer", "high",
        "Yes: on few samples chance makes copies; take several times U.",
        "No: correlations are centred.",
        "No: nor does the scale of single units.",
    ),
    MetricInfo(
        "effective_rank", rank.effective_rank, "activations", "layer", "high",
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
        "stable_rank", rank.stable_rank, "activations", "layer", "high",
        _RANK_BATCH, _RANK_OFFSET, _RANK_SCALE,
        {"Rudelson and Vershynin 2007, numerical rank": "as it is"},
        {
            "Dohare et al. 2024, stable rank": "srank with delta=0.01",
            "Plasticine, stable rank": "srank with delta=0.01",
            "Joudaki et al. 2025, code, stable rank": "participation_ratio",
        },
    ),
    MetricInfo(
        "srank", rank.srank, "activations", "layer", "high",
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
        "approximate_rank", rank.approximate_rank, "activations", "layer", "high",
        _RANK_BATCH, _RANK_OFFSET, _RANK_SCALE,
        {"Dohare et al. 2024, code, approximate rank": "share=0.99"},
        {"Dohare et al. 2024, code, abs approximate rank": "singular values, not their squares: srank"},
    ),
    MetricInfo(
        "participation_ratio", rank.participation_ratio, "activations", "layer", "high",
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
        "numerical_rank", rank.numerical_rank, "activations", "layer", "high",
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
        "weight_magnitude", weights.weight_magnitude, "weights", "network", "low",
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
        "weight_growth", weights.weight_growth, "weights", "network", "low",
        _NO_DATA,
        "Yes: an offset counts as size.",
        "Yes: proportional to the scale of the weights; not if the initial ones are scaled with them.",
    ),
    MetricInfo(
        "distance_from_initialisation", weights.distance_from_initialisation, "weights", "network", "low",
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
        "update_to_weight_ratio", weights.update_to_weight_ratio, "weights", "network", None,
        "No: it looks at weights; the step that it measures may well depend on the batch.",
        "Yes: an offset counts as size of the weights.",
        "No: relative to the weights.",
        {},
        {"Karpathy's update-to-data ratio": "standard deviations in the place of norms"},
    ),
    MetricInfo(
        "gradient_norm", gradients.gradient_norm, "gradients", "network", None,
        "Yes: of a mean loss the noise in it falls with the number of samples.",
        "Yes: an offset counts as size.",
        "Yes: proportional, to the scale of the loss as well.",
        {"torch.nn.utils.get_total_norm": "as it is"},
        {},
    ),
    MetricInfo(
        "gradient_dormant_fraction", gradients.gradient_dormant_fraction, "gradients", "layer", "low",
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
        "gradient_interference", gradients.gradient_interference, "gradients", "network", "low",
        "No: a mean over pairs of samples; more of them make it more exact.",
        "Yes: an offset is a common direction.",
        "No: cosines; nor does the scale of single samples.",
        {"Lyle et al. 2023, gradient covariance": "the mean off its diagonal; the matrix is gradient_covariance"},
        {},
    ),
    MetricInfo(
        "churn", outputs.churn, "outputs", "network", None,
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
        "feature_norm", features.feature_norm, "activations", "layer", None,
        _MEAN,
        "Yes: an offset counts as length.",
        _PROPORTIONAL,
        {"Plasticine, feature norm": "as it is"},
        {"Lyle et al. 2024, feature norm penalty": "the mean of the squared length"},
    ),
    MetricInfo(
        "entropy", outputs.entropy, "outputs", "network", "high",
        _MEAN,
        "No: the softmax does not see it.",
        "Yes: larger logits are more certain.",
    ),
    MetricInfo(
        "output_diversity", outputs.output_diversity, "outputs", "network", "high",
        "Yes: too low by about one part in N.",
        "Yes: an offset is the same answer to every input.",
        "No: a share of the outputs' own energy.",
    ),
    MetricInfo(
        "non_finite_fraction", finite.non_finite_fraction, "weights", "network", "low",
        "No: a share of entries.",
        "No: what is not finite stays so.",
        "No: what is not finite stays so.",
    ),
)  # fmt: skip

CATALOGUE: Mapping[str, MetricInfo] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
"""By name, in the order of a page: units, ranks, weights, gradients, outputs."""
