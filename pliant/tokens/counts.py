"""How often tokens occur: in batches, or in what an attached method has heard."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pliant.errors import IllegalConfiguration, NoEffect
from pliant.handle import Handle

__all__ = ["count_tokens", "occurrences", "rare_tokens"]


def count_tokens(batches: Iterable[Tensor], num_tokens: int) -> Tensor:
    """How often each token occurs in some batches, int64 ``[num_tokens]``.

    Args:
        batches: Integer tensors of any shape.
        num_tokens: Size of the vocabulary.

    Raises:
        IllegalConfiguration: If a token is outside of the vocabulary.

    Example:
        >>> count_tokens([torch.tensor([[0, 2, 2]]), torch.tensor([3])], 5)
        tensor([1, 0, 2, 1, 0])
    """
    total = torch.zeros(num_tokens, dtype=torch.long)
    for batch in batches:
        counts = torch.bincount(batch.reshape(-1).cpu(), minlength=num_tokens)
        if len(counts) > num_tokens:
            raise IllegalConfiguration(
                f"token {len(counts) - 1} is outside of a vocabulary of {num_tokens}: grow it first, see "
                "pliant.tokens.grow_vocabulary."
            )
        total += counts
    return total


def rare_tokens(counts: Tensor, at_most: int = 0) -> Tensor:
    """The tokens that occur at most so often, int64 ``[n]``; with 0, those that never do.

    Args:
        counts: ``[num_tokens]``, from :func:`count_tokens` or :func:`occurrences`.
        at_most: The largest count that is rare.

    Example:
        >>> rare_tokens(torch.tensor([4, 0, 1]), at_most=1)
        tensor([1, 2])
    """
    return (counts <= at_most).nonzero().flatten()


def occurrences(handle: Handle) -> dict[str, Tensor]:
    """How often each token has occurred in training since ``attach``, by the name of the embedding's weight.

    Under DDP, what this process has seen since the method last looked is missing from the others' counts.

    Args:
        handle: A handle with a :class:`~pliant.tokens.reset.TokenReset`.

    Raises:
        NoEffect: If it has none.

    Example:
        >>> from pliant.tokens import TokenReset
        >>> model = torch.nn.Sequential(torch.nn.Embedding(4, 8), torch.nn.Linear(8, 8), torch.nn.ReLU(),
        ...                             torch.nn.Linear(8, 4))
        >>> import pliant
        >>> optimizer, ids = torch.optim.SGD(model.parameters(), lr=0.1), torch.tensor([[0, 2, 2]])
        >>> handle = pliant.attach(model, optimizer, TokenReset(unseen_for=100), example_inputs=ids)
        >>> model(ids).sum().backward(); optimizer.step()
        >>> occurrences(handle)
        {'0.weight': tensor([1, 0, 2, 0])}
    """
    found: dict[str, Tensor] = {}
    for memory in handle.state_dict()["memory"].values():
        tensors = memory["tensors"]
        if "pending" in tensors and "count" in tensors:
            for name, total in tensors["count"].items():
                found[name] = total + tensors["pending"][name]
    if not found:
        raise NoEffect(
            "no TokenReset is attached, and nobody else counts tokens; pliant.tokens.count_tokens counts them."
        )
    return found
