"""The entries of the catalogue that need a model and a batch; :mod:`pliant.spectrum` computes them."""

from __future__ import annotations

from pliant.metrics.info import MetricInfo

__all__ = ["OF_MODELS"]

OF_MODELS = (
    MetricInfo(
        "curvature_share", "model", "network", "high",
        "Yes: the possible rank grows with N, and eigenvalues of samples that are unlike shrink as 1 / N.",
        "No: the softmax does not see a constant on all outputs.",
        "Yes: larger outputs have larger derivatives, until the softmax is saturated and all curvature is gone.",
        {},
        {
            "Prakash et al. 2025, code, normalised eps-rank":
                "of the Hessian, from the smoothed density of one probe, at an eps that was chosen to fit",
        },
        "pliant.spectrum",
    ),
    MetricInfo(
        "ntk_effective_rank", "model", "network", "high",
        "Yes: at most N times the number of outputs, and it rises with N.",
        "No: a constant has no derivative.",
        "Yes: a factor on the outputs is one on the derivatives of all layers but the last.",
        {"nngeometry, NTK": "the effective rank of its eigenvalues"},
        {},
        "pliant.spectrum",
    ),
    MetricInfo(
        "ntk_condition", "model", "network", "low",
        "Yes: it rises with N, as samples come that are like others.",
        "No: a constant has no derivative.",
        "Yes: a factor on the outputs is one on the derivatives of all layers but the last.",
        {"Xiao et al. 2020, condition number of the NTK": "of the finite network, not its limit"},
        {"condition number of a weight matrix": "the ratio of its singular values"},
        "pliant.spectrum",
    ),
    MetricInfo(
        "sharpness", "model", "network", None,
        "Yes: the largest eigenvalue of a mean is at most the mean of the largest ones.",
        "No: the softmax does not see a constant on all outputs.",
        "Yes: larger outputs have larger derivatives, until the softmax is saturated.",
        {"Cohen et al. 2021, sharpness": "compare it with 2 over the step size"},
        {"sharpness-aware minimisation, sharpness": "the largest rise of the loss within a ball of weights"},
        "pliant.spectrum",
    ),
    MetricInfo(
        "fisher_trace", "model", "network", None,
        "No: a mean over samples; more of them make it more exact.",
        "No: the softmax does not see a constant on all outputs.",
        "Yes: larger outputs have larger derivatives, until the softmax is saturated.",
        {"Fisher information, trace": "for cross-entropy, exactly: no label is drawn"},
        {"empirical Fisher, trace": "the given labels: empirical_fisher_trace"},
        "pliant.spectrum",
    ),
    MetricInfo(
        "expected_one_step_gain", "model", "network", "high",
        "Yes: of a larger batch the noise is smaller.",
        "No: the softmax does not see a constant on all outputs.",
        "Yes: gradients and curvature grow, and the softmax is saturated.",
        {},
        {"Wang et al. 2026, optimization readiness": "its formula was not available; both join gradient and noise"},
        "pliant.spectrum",
    ),
)  # fmt: skip
"""Read with cross-entropy; a constant and a factor are those of the outputs."""
