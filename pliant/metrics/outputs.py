r"""The network's outputs: how certain they are, how much they differ between inputs, and how much a step moves them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pliant.metrics._inputs import all_finite, floating, nan_where_broken

__all__ = ["churn", "entropy", "output_diversity"]


def churn(before_NC: Tensor, after_NC: Tensor, kind: Literal["distance", "squared", "argmax"] = "distance") -> Tensor:
    r"""How much the outputs on a reference batch have changed.

    .. math:: \text{distance: } \frac1N \sum_n \lVert f_n^+ - f_n \rVert_2, \qquad
        \text{squared: } \frac{1}{NC} \sum_{n,c} (f_{nc}^+ - f_{nc})^2, \qquad
        \text{argmax: } \frac1N \, \bigl|\{ n : \arg\max f_n^+ \ne \arg\max f_n \}\bigr|

    Churn is meant on data that the step was not made on: there the change was not asked for.

    Args:
        before_NC: Outputs before a step (or several), shape ``[..., N, C]``: N samples, C outputs.
        after_NC: Outputs of the same samples after it, same shape.
        kind: Which of the three; ``"argmax"`` is for classes or actions.

    Returns:
        Shape ``[...]``, ``>= 0``; in the outputs' own units, their square, or a fraction in ``[0, 1]``. NaN where a
        member's data is not finite.

    Raises:
        ValueError: If the shapes differ, there are fewer than two axes, the input is empty, ``kind`` is unknown, or it
            is ``"argmax"`` with a single output.

    Source:
        Tang et al. (2025), *Mitigating plasticity loss in continual reinforcement learning by reducing churn*, arXiv
        2506.00592 (squared); Schaul et al. (2022), *The phenomenon of policy churn*, arXiv 2206.00730 (argmax).

    Cost: one pass over ``N * C`` entries per member, no host synchronisation.

    Example:
        >>> before_NC = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> churn(before_NC, before_NC + torch.tensor([3.0, 4.0]))
        tensor(5.)
        >>> churn(before_NC, before_NC.flip(0), kind="argmax")
        tensor(1.)
    """
    before, after = floating(before_NC, axes=2, what="before_NC"), floating(after_NC, axes=2, what="after_NC")
    if before.shape != after.shape:
        raise ValueError(f"before_NC {tuple(before.shape)} and after_NC {tuple(after.shape)} must have one shape")
    finite = all_finite(before, axes=2) & all_finite(after, axes=2)
    if kind == "distance":
        value = torch.linalg.vector_norm(after - before, dim=-1).mean(-1)
    elif kind == "squared":
        value = (after - before).square().mean((-2, -1))
    elif kind == "argmax":
        if before.shape[-1] == 1:
            raise ValueError("one output has no argmax that could change; take kind='distance' or 'squared'")
        value = (before.argmax(-1) != after.argmax(-1)).to(before.dtype).mean(-1)
    else:
        raise ValueError(f"kind must be 'distance', 'squared' or 'argmax', not {kind!r}")
    return nan_where_broken(value, finite)


def entropy(logits_NC: Tensor) -> Tensor:
    r"""Mean entropy of the softmax over the outputs, in nats.

    .. math:: \frac1N \sum_n -\sum_c p_{nc} \ln p_{nc}, \qquad p_n = \operatorname{softmax}(f_n)

    0 where the network is certain, :math:`\ln C` where all outputs are alike. Certain before a new task has been
    learned means that the gradient of the cross-entropy says little else than which samples are wrong.

    Args:
        logits_NC: Logits, shape ``[..., N, C]``, C at least 2. Minus infinity is a class that is masked out.

    Returns:
        Shape ``[...]``, in ``[0, ln C]``; NaN where a member has a NaN, plus infinity, or a sample without any class.

    Raises:
        ValueError: If there are fewer than two outputs or two axes, or the input is empty.

    Source:
        Shannon's; in reinforcement learning the entropy of the policy, of which a collapse is a known failure.

    Cost: one pass over ``N * C`` entries per member, no host synchronisation.

    Example:
        >>> entropy(torch.zeros(3, 4)).exp().round(decimals=4)
        tensor(4.)
        >>> logits_NC = torch.randn(16, 5)                       # larger logits are more certain
        >>> assert entropy(10 * logits_NC) < entropy(logits_NC)
    """
    logits = floating(logits_NC, axes=2, what="logits_NC")
    if logits.shape[-1] < 2:
        raise ValueError("a softmax over one output is always certain; entropy needs two outputs or more")
    log_p = logits.log_softmax(-1)
    surprise: Tensor = torch.special.entr(log_p.exp()).sum(-1)
    return surprise.mean(-1)


def output_diversity(outputs_NC: Tensor) -> Tensor:
    r"""How much of the outputs depends on the input: the share of their energy that varies between samples.

    .. math:: \frac{\sum_n \lVert f_n - \bar f \rVert^2}{\sum_n \lVert f_n \rVert^2}
        = 1 - \frac{\lVert \bar f \rVert^2}{\tfrac1N \sum_n \lVert f_n \rVert^2}

    For outputs of equal length this is one minus the mean cosine over all pairs of samples. 0 if the network gives
    every input the same answer.

    Args:
        outputs_NC: Outputs, or probabilities, shape ``[..., N, C]``, N at least 2. With logits a constant that all
            classes share counts as sameness although the softmax ignores it.

    Returns:
        Shape ``[...]``, in ``[0, 1]``; 0 if all outputs are zero, NaN where a member's data is not finite.

    Raises:
        ValueError: If there are fewer than two samples or two axes, or the input is empty.

    Source:
        The decomposition of the second moment into mean and variance.

    Cost: two passes over ``N * C`` entries per member, no host synchronisation.

    Example:
        >>> output_diversity(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))         # cosines 1, 0, 0, 1
        tensor(0.5000)
        >>> assert output_diversity(torch.full((8, 3), 0.7)) == 0
    """
    outputs = floating(outputs_NC, axes=2, what="outputs_NC")
    if outputs.shape[-2] < 2:
        raise ValueError("the outputs of one sample cannot differ; pass two samples or more")
    finite = all_finite(outputs, axes=2)
    largest = outputs.abs().amax((-2, -1), keepdim=True)
    outputs = outputs / torch.where(largest == 0, torch.ones_like(largest), largest)
    # Deviations from the first sample: exactly zero where all outputs are the same, whatever the rounding of a mean.
    shifted = outputs - outputs[..., :1, :]
    varying = (shifted - shifted.mean(-2, keepdim=True)).square().sum((-2, -1))
    energy = outputs.square().sum((-2, -1))
    share = (varying / torch.where(energy == 0, torch.ones_like(energy), energy)).clamp(max=1.0)
    return nan_where_broken(share, finite)
