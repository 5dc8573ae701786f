"""Tasks to probe a network with: what is drawn from a seed, in an order that the seed decides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pliant.errors import IllegalConfiguration
from pliant.probe.objective import Loss
from pliant.write import stream_of

__all__ = [
    "Data",
    "Gathered",
    "HeldOutClasses",
    "PermutedInputs",
    "RandomLabels",
    "RandomTargets",
    "RandomTokens",
    "Task",
    "on_device",
]

Inputs = Tensor | Mapping[str, Tensor] | tuple[Tensor, ...]


@runtime_checkable
class Task(Protocol):
    """Anything that gives the batches of a learning problem for a seed."""

    def batches(self, seed: int, steps: int) -> Sequence[Any]:
        """The batches of one run, as many as there are steps; the same for the same seed."""


_EVALUATED = 1024  # examples per batch where nothing is trained
_TOGETHER = 8


def _generator(seed: int, purpose: int) -> torch.Generator:
    """Which examples, what is done to them, and their order do not depend on each other."""
    return torch.Generator("cpu").manual_seed(stream_of(4 * seed + purpose))


class Gathered(Sequence[Any]):
    """Batches that are cut out of the data when they are asked for."""

    def __init__(self, tree: Any, order: Sequence[Tensor]) -> None:
        self.tree, self.order = tree, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return Gathered(self.tree, self.order[key])
        chosen = self.order[key]
        return pytree.tree_map(lambda tensor: tensor[chosen], self.tree)

    def __iter__(self) -> Iterator[Any]:
        leaves, form = pytree.tree_flatten(self.tree)
        for start in range(0, len(self.order), _TOGETHER):  # one access to memory for several batches
            order = self.order[start : start + _TOGETHER]
            sizes = [len(index) for index in order]
            chosen = order[0] if len(order) == 1 else torch.cat(list(order))
            pieces = [torch.split(leaf[chosen], sizes) for leaf in leaves]
            for parts in zip(*pieces, strict=True):
                yield pytree.tree_unflatten(parts, form)

    def to(self, device: torch.device) -> Gathered:
        """The same on a device."""
        return Gathered(on_device(self.tree, device), [index.to(device) for index in self.order])


@dataclass(frozen=True, kw_only=True, eq=False)
class Data:
    """Examples as tensors, learnt in an order that the seed decides: new examples, classes or labels of your own.

    Args:
        inputs: ``[N, ...]``: a tensor, a tuple of positional inputs, or a mapping of keyword inputs.
        targets: ``[N, ...]``: classes (integers) or values (floating point); ``None`` for token ids, whose next tokens
            are predicted, and for mappings that hold their targets.
        batch_size: Examples per step; passes over the data follow each other, each in a new order, and what does not
            fill a batch is left out of that pass.
        num_examples: So many examples are drawn with the seed; ``None``: all of them.
        loss: See :data:`~pliant.probe.objective.Loss`.
        test: Inputs and targets that are not trained on, for ``probe(..., evaluation="task")``; ``None``: the examples
            themselves are evaluated.

    Raises:
        IllegalConfiguration: Without examples, for tensors of different lengths, or a number out of range.

    Example:
        >>> task = Data(inputs=torch.randn(6, 2), targets=torch.arange(6) % 3, batch_size=4)
        >>> inputs, targets = task.batches(seed=0, steps=2)[1]
        >>> inputs.shape, targets.shape
        (torch.Size([4, 2]), torch.Size([4]))
    """

    inputs: Inputs = field(repr=False)
    targets: Tensor | None = field(default=None, repr=False)
    batch_size: int = 32
    num_examples: int | None = None
    loss: Loss = None
    test: tuple[Any, Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check that the pieces fit."""
        leaves = [leaf for leaf in pytree.tree_leaves((self.inputs, self.targets)) if leaf is not None]
        wrong = next((leaf for leaf in leaves if not isinstance(leaf, Tensor) or leaf.ndim == 0), None)
        if wrong is not None:
            raise self._refusal(f"needs tensors [N, ...], not {type(wrong).__name__}")
        lengths = {len(leaf) for leaf in leaves}
        if len(lengths) != 1:
            raise self._refusal(f"inputs and targets have different numbers of examples: {sorted(lengths)}")
        if 0 in lengths:
            raise self._refusal("there are no examples")
        if self.batch_size < 1:
            raise self._refusal(f"batch_size must be at least 1, not {self.batch_size}")
        if self.num_examples is not None and not 1 <= self.num_examples <= min(lengths):
            raise self._refusal(f"num_examples must be in 1..{min(lengths)}, not {self.num_examples}")

    def batches(self, seed: int, steps: int) -> Sequence[Any]:
        """See :class:`Task`."""
        data = self._examples(seed)
        generator = _generator(seed, 2)
        count = len(pytree.tree_leaves(data)[0])
        size = min(self.batch_size, count)
        order: list[Tensor] = []
        while len(order) < steps:
            order += torch.split(torch.randperm(count, generator=generator, device="cpu"), size)[: count // size]
        return Gathered(data, order[:steps])

    def evaluation(self, seed: int) -> Sequence[Any]:
        """All examples of the task, or its test data under the same change, in large batches."""
        data = self._examples(seed) if self.test is None else _joined(*self.drawn(self.test, _generator(seed, 1)))
        count = len(pytree.tree_leaves(data)[0])
        return Gathered(data, torch.split(torch.arange(count, device="cpu"), _EVALUATED))

    def _examples(self, seed: int) -> Any:
        index = self.chosen(_generator(seed, 0))
        chosen = pytree.tree_map(lambda t: None if t is None else t[index.to(t.device)], (self.inputs, self.targets))
        return _joined(*self.drawn(chosen, _generator(seed, 1)))

    def chosen(self, generator: torch.Generator) -> Tensor:
        """Which examples the task of this generator has, ``[M]``."""
        count = len(pytree.tree_leaves(self.inputs)[0])
        if self.num_examples is None:
            return torch.arange(count, device="cpu")
        return torch.randperm(count, generator=generator, device="cpu")[: self.num_examples]

    def drawn(self, data: tuple[Any, Any], generator: torch.Generator) -> tuple[Any, Any]:
        """Inputs and targets of the task of this generator, made of the chosen ones."""
        return data

    def _refusal(self, what: str) -> IllegalConfiguration:
        return IllegalConfiguration(f"{type(self).__name__}: {what}.")


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class RandomLabels(Data):
    """Learn random classes of given inputs by heart: nothing that was learnt before helps with them.

    Args:
        num_classes: Labels are uniform in ``0 .. num_classes - 1``.

    Source:
        Lyle et al., Understanding plasticity in neural networks (2023), arXiv:2303.01486.

    Example:
        >>> task = RandomLabels(inputs=torch.randn(8, 2), num_classes=3)
        >>> one, again, other = (task.batches(seed, 1)[0][1] for seed in (0, 0, 1))
        >>> torch.equal(one, again), torch.equal(one, other)
        (True, False)
    """

    num_classes: int = 10

    def __post_init__(self) -> None:
        """Check that the pieces fit."""
        super().__post_init__()
        if self.num_classes < 2:
            raise self._refusal(f"num_classes must be at least 2, not {self.num_classes}")
        if self.test is not None:
            raise self._refusal("random labels do not generalise, so test=... has no meaning")

    def drawn(self, data: tuple[Any, Any], generator: torch.Generator) -> tuple[Any, Any]:
        """New labels, whatever the targets were."""
        inputs, _ = data
        first = pytree.tree_leaves(inputs)[0]
        return inputs, torch.randint(0, self.num_classes, (len(first),), generator=generator, device="cpu").to(
            first.device
        )


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class RandomTargets(Data):
    """Learn random values of given inputs by heart: the regression among the tasks.

    Args:
        num_outputs: Values per example, standard normal.

    Example:
        >>> RandomTargets(inputs=torch.randn(8, 2), num_outputs=3).batches(0, 1)[0][1].shape
        torch.Size([8, 3])
    """

    num_outputs: int = 1

    def drawn(self, data: tuple[Any, Any], generator: torch.Generator) -> tuple[Any, Any]:
        """New values, whatever the targets were."""
        inputs, _ = data
        first = pytree.tree_leaves(inputs)[0]
        values = torch.randn(len(first), self.num_outputs, generator=generator, device="cpu")
        return inputs, values.to(first.device)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class PermutedInputs(Data):
    """The old task with its inputs permuted: features or pixels of every example alike, or the vocabulary of tokens.

    The labels stay, so that only the first layer's view of the world changes. Token ids are renamed instead, in the
    targets too where the next token is predicted.

    Args:
        vocabulary: Number of token ids; ``None``: one more than the largest.

    Source:
        The permuted MNIST of Goodfellow et al. (2013), arXiv:1312.6211, as used by Dohare et al. (Nature 2024).

    Example:
        >>> task = PermutedInputs(inputs=torch.arange(4.0).expand(2, 4), targets=torch.tensor([0, 1]))
        >>> inputs, targets = task.batches(0, 1)[0]
        >>> inputs.sort().values.tolist()
        [[0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]]
    """

    vocabulary: int | None = None

    def drawn(self, data: tuple[Any, Any], generator: torch.Generator) -> tuple[Any, Any]:
        """Permuted inputs."""
        inputs, targets = data
        key = "input_ids" if isinstance(inputs, Mapping) else 0 if isinstance(inputs, tuple) else None
        tensor: Tensor = inputs if key is None else inputs[key]
        if tensor.is_floating_point():
            order = torch.randperm(tensor[0].numel(), generator=generator, device="cpu").to(tensor.device)
            new = tensor.flatten(1)[:, order].reshape(tensor.shape)
        else:
            size = self._vocabulary(key)
            new = (
                torch.randperm(size, generator=generator, device="cpu")
                .to(tensor.device)[tensor.long()]
                .to(tensor.dtype)
            )
        if key is None:
            return new, targets
        if isinstance(inputs, Mapping):
            return {**inputs, key: new}, targets
        return (new, *inputs[1:]), targets

    def _vocabulary(self, key: Any) -> int:
        given: Any = self.inputs
        return self.vocabulary or int((given if key is None else given[key]).max()) + 1


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOutClasses(Data):
    """Learn classes that the network has not been trained on, for networks that have an output for them.

    Args:
        classes: The classes that were held out; examples of others are left out.

    Example:
        >>> task = HeldOutClasses(inputs=torch.randn(6, 2), targets=torch.arange(6) % 3, classes=(2,))
        >>> task.batches(0, 1)[0][1].tolist()
        [2, 2]
    """

    classes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check that the pieces fit."""
        super().__post_init__()
        if self.targets is None or self.targets.is_floating_point() or self.targets.ndim != 1:
            raise self._refusal("needs one class per example, targets [N] of integers")
        missing = [label for label in self.classes if not bool((self.targets == label).any())]
        if missing or not self.classes:
            raise self._refusal(f"there is no example of the classes {missing or '()'}")

    def chosen(self, generator: torch.Generator) -> Tensor:
        """The examples of the classes."""
        assert self.targets is not None
        found = torch.isin(self.targets.cpu(), torch.tensor(self.classes)).nonzero()[:, 0]
        if self.num_examples is None:
            return found
        return found[torch.randperm(len(found), generator=generator, device="cpu")[: self.num_examples]]


@final
@dataclass(frozen=True, kw_only=True)
class RandomTokens:
    """Learn random sequences of tokens by heart, the next token from those before: for language models.

    Args:
        vocabulary: Tokens are uniform in ``0 .. vocabulary - 1``.
        length: Tokens per sequence.
        num_sequences: Sequences of the task.
        batch_size: Sequences per step.

    Example:
        >>> RandomTokens(vocabulary=5, length=4, num_sequences=2).batches(0, 1)[0].shape
        torch.Size([2, 4])
    """

    vocabulary: int
    length: int = 32
    num_sequences: int = 64
    batch_size: int = 16

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.vocabulary < 2 or self.length < 2 or self.num_sequences < 1 or self.batch_size < 1:
            raise IllegalConfiguration(f"{self!r}: needs a vocabulary and a length of at least 2, and sequences.")

    def batches(self, seed: int, steps: int) -> Sequence[Any]:
        """See :class:`Task`."""
        generator = _generator(seed, 3)
        tokens = torch.randint(0, self.vocabulary, (self.num_sequences, self.length), generator=generator, device="cpu")
        return Data(inputs=tokens, batch_size=self.batch_size).batches(seed, steps)


def _joined(inputs: Any, targets: Any) -> Any:
    """Inputs and targets as a batch."""
    if targets is None:
        return inputs
    return (*inputs, targets) if isinstance(inputs, tuple) else (inputs, targets)


def on_device(tree: Any, device: torch.device) -> Any:
    """Nested data with every tensor on a device."""
    return pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, tree)
