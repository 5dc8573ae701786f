"""Contract settings of the regularisers, so strong that they act within a few steps."""

from __future__ import annotations

from typing import Any

from pliant.interventions import L2, L2Init, Parseval, SpectralRegularisation

METHODS: dict[str, Any] = {
    "l2": L2(0.5),
    "l2_gradient": L2(0.5, apply="gradient"),
    "l2_loss": L2(0.5, apply="loss"),
    "l2_init": L2Init(0.5),
    "l1_init": L2Init(0.05, norm="l1"),
    "l2_init_gradient": L2Init(0.5, apply="gradient"),
    "spectral_regularisation": SpectralRegularisation(0.005),
    "spectral_gradient": SpectralRegularisation(0.005, apply="gradient", every=2),
    "spectral_loss": SpectralRegularisation(0.005, apply="loss"),
    "parseval": Parseval(0.01, reference_width=None),
    "parseval_gradient": Parseval(0.1, apply="gradient", normalise_rows=True, reference_width=None, every=3),
    "parseval_loss": Parseval(0.01, apply="loss", reference_width=None),
}
SEEDLESS: frozenset[str] = frozenset(name for name in METHODS if not name.startswith("spectral"))
"""Those that draw nothing, so that another seed changes nothing."""
