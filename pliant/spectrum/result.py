"""A spectrum as nodes and weights, exact or by quadrature, and what it was made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Spectrum"]


@dataclass(frozen=True)
class Spectrum:
    r"""Eigenvalues of a symmetric matrix, or the quadrature that stands for them.

    For any function f, :math:`\operatorname{tr} f(M) \approx D \, \overline{\sum_k w_k f(\lambda_k)}`, the mean over
    probes; of an exact spectrum there is one probe, and it is equality.

    Attributes:
        matrix: ``"ggn"``, ``"ntk"`` or ``"hessian"``.
        method: ``"layers"``, ``"jacobian"``, both, ``"parameters"`` or ``"dense"`` for exact ones, else ``"lanczos"``.
        nodes: For each probe its nodes, float64 ``[m]``, ascending. They may differ in number.
        weights: For each probe its weights, ``[m]``; they sum to 1.
        residuals: For each node how far the next eigenvalue can be, ``[m]``; zeros for exact ones.
        dimension: :math:`D`, what the weights are shares of: for the Hessian, and for all that comes from Lanczos'
            method, the number of parameters; for exact Gauss-Newton and NTK spectra that or the number of outputs of
            the batch, whichever is smaller.
        max_rank: The largest rank that is possible: parameters, or outputs of the batch where these are fewer.
        num_samples: Samples, or positions with a target, that the loss averages over.
        num_outputs: Outputs of each.
        num_parameters: Parameters.
        loss: The loss.
        mode: ``"eval"`` or ``"train"``.
        resolution: Below this absolute value eigenvalues cannot be told from zero or from each other: rounding for
            exact ones, else :math:`(\lambda_{\max} - \lambda_{\min})\,\pi / 2m`.
        seeds: That of each probe; none for exact ones.

    Example:
        >>> import torch
        >>> from pliant.spectrum import ggn_spectrum
        >>> spectrum = ggn_spectrum(torch.nn.Linear(4, 1, bias=False), (torch.eye(4), torch.zeros(4, 1)), "mse")
        >>> spectrum.matrix, spectrum.dimension, spectrum.num_samples
        ('ggn', 4, 4)
    """

    matrix: str
    method: str
    nodes: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    residuals: tuple[Tensor, ...]
    dimension: int
    max_rank: int
    num_samples: int
    num_outputs: int
    num_parameters: int
    loss: str
    mode: str
    resolution: float
    seeds: tuple[int, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether these are the eigenvalues themselves."""
        return self.method != "lanczos"

    @property
    def num_probes(self) -> int:
        """How many random vectors it rests on; 1 for an exact one."""
        return len(self.nodes)

    def eigenvalues(self) -> Tensor:
        """All eigenvalues of an exact spectrum, ascending, zeros included: float64 ``[D]``.

        Raises:
            ValueError: For a quadrature, whose nodes are no list of eigenvalues.
        """
        if not self.exact:
            raise ValueError("the nodes of a Lanczos quadrature are not the eigenvalues; use nodes and weights.")
        counts = (self.weights[0] * self.dimension).round().long()
        return self.nodes[0].repeat_interleave(counts)

    def pooled(self, leave_out: int | None = None) -> tuple[Tensor, Tensor]:
        """Nodes and weights of all probes together (but one), weights summing to 1."""
        kept = [index for index in range(self.num_probes) if index != leave_out]
        weights = torch.cat([self.weights[index] for index in kept]) / len(kept)
        return torch.cat([self.nodes[index] for index in kept]), weights

    def __str__(self) -> str:
        from pliant.spectrum import quantities as q

        if self.exact:
            how = f"exact ({self.method})"
        else:
            how = f"Lanczos, {min(map(len, self.nodes))} steps, {self.num_probes} probes, seeds {list(self.seeds)}"
        lines = [
            f"{self.matrix} spectrum of {self.num_parameters} parameters: {how}",
            f"  {self.num_samples} samples x {self.num_outputs} outputs, loss {self.loss}, mode {self.mode}",
            f"  resolution           {self.resolution:.3g}",
        ]
        for name, estimate in (
            ("largest eigenvalue", q.largest_eigenvalue(self)),
            ("smallest eigenvalue", q.smallest_eigenvalue(self)),
            ("trace", q.trace(self)),
            ("effective rank", q.effective_rank(self)),
            ("negative mass", q.negative_mass(self)),
        ):
            lines.append(f"  {name:<20} {estimate}")
        return "\n".join(lines)
