"""Curvature one can trust: exact Gauss-Newton and kernel spectra, Hessian-vector products, Lanczos quadrature.

Start with :func:`ggn_spectrum` on 64 to 256 samples of the task that is to be learned next, and pass the result to
:func:`budget_rank`.
"""

from pliant.errors import ResolutionWarning
from pliant.spectrum.budget import BudgetRank, Linearised, budget_eps, budget_rank, linearise
from pliant.spectrum.density import density
from pliant.spectrum.gain import StepGain, expected_one_step_gain
from pliant.spectrum.gram import gram_bytes
from pliant.spectrum.lanczos import Tridiagonal, basis_bytes, lanczos
from pliant.spectrum.products import Operator, ggn_operator, hessian_operator
from pliant.spectrum.quadrature import Quadrature, quadrature
from pliant.spectrum.quantities import (
    Estimate,
    condition_number,
    effective_rank,
    eps_rank,
    largest_eigenvalue,
    negative_mass,
    smallest_eigenvalue,
    trace,
)
from pliant.spectrum.result import Spectrum
from pliant.spectrum.single import curvature_share, fisher_trace, ntk_condition, ntk_effective_rank, sharpness
from pliant.spectrum.spectra import ggn_spectrum, hessian_spectrum, ntk_spectrum

__all__ = [
    "BudgetRank",
    "Estimate",
    "Linearised",
    "Operator",
    "Quadrature",
    "ResolutionWarning",
    "Spectrum",
    "StepGain",
    "Tridiagonal",
    "basis_bytes",
    "budget_eps",
    "budget_rank",
    "condition_number",
    "curvature_share",
    "density",
    "effective_rank",
    "eps_rank",
    "expected_one_step_gain",
    "fisher_trace",
    "ggn_operator",
    "ggn_spectrum",
    "gram_bytes",
    "hessian_operator",
    "hessian_spectrum",
    "lanczos",
    "largest_eigenvalue",
    "linearise",
    "negative_mass",
    "ntk_condition",
    "ntk_effective_rank",
    "ntk_spectrum",
    "quadrature",
    "sharpness",
    "smallest_eigenvalue",
    "trace",
]
