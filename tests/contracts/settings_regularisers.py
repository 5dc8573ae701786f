"""Contract settings of the regularisers, so strong that they act within a few steps."""

from __future__ import annotations

from typing import Any

from pliant.interventions import (
    L2,
    CChain,
    FeatureNorm,
    GradientNoise,
    L2EffectiveRank,
    L2Init,
    Parseval,
    SpectralRegularisation,
    WeightClipping,
    WeightNoise,
)

METHODS: dict[str, Any] = {
    "l2": L2(0.5),
    "l2_gradient": L2(0.5, apply="gradient"),
    "l2_loss": L2(0.5, apply="loss"),
    "l2_effective_rank": L2EffectiveRank(0.02, l2=0.1, every=2),
    "l2_effective_rank_loss": L2EffectiveRank(0.02, l2=0.0, every=2, apply="loss", rank="gram"),
    "l2_init": L2Init(0.5),
    "l1_init": L2Init(0.05, norm="l1"),
    "l2_init_gradient": L2Init(0.5, apply="gradient"),
    "spectral_regularisation": SpectralRegularisation(0.005),
    "spectral_gradient": SpectralRegularisation(0.005, apply="gradient", every=2),
    "spectral_loss": SpectralRegularisation(0.005, apply="loss"),
    "parseval": Parseval(0.01, reference_width=None),
    "parseval_gradient": Parseval(0.1, apply="gradient", normalise_rows=True, reference_width=None, every=3),
    "parseval_loss": Parseval(0.01, apply="loss", reference_width=None),
    "c_chain": CChain(0.02, start=2, window=8),
    "feature_norm": FeatureNorm(0.1, "*"),
    "weight_clipping": WeightClipping(0.5),
    "gradient_noise": GradientNoise(0.1),
    "gradient_noise_fixed": GradientNoise(0.01, decay=0.9, relative_to="nothing"),
    "weight_noise": WeightNoise(0.1),
    "weight_noise_relative": WeightNoise(0.05, relative_to="entry", every=2),
}
_DRAWS = ("spectral", "gradient_noise", "weight_noise")
SEEDLESS: frozenset[str] = frozenset(name for name in METHODS if not name.startswith(_DRAWS))
"""Those that draw nothing, so that another seed changes nothing."""
