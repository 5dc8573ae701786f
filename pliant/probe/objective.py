"""What a batch of a task is, and the loss and accuracy of a network on it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pliant.devices import can_read
from pliant.errors import IllegalConfiguration
from pliant.units.export import training_mode

__all__ = ["Loss", "Measured", "Objective", "accuracy_of", "inputs_of"]

Loss = Literal["cross_entropy", "mse", "next_token"] | Callable[[Any, Any], Tensor] | None
"""A named loss, a function of outputs and targets, or ``None``: chosen by the targets."""

_TARGETS = ("labels", "label", "targets", "target")
_IGNORED = -100  # the target that PyTorch's cross-entropy leaves out


class Measured(NamedTuple):
    """A network on a batch.

    Attributes:
        loss: Mean loss with its graph, ``[]``.
        right: Which predictions were right, bool of any shape; ``None`` where that makes no sense. Counting them can
            wait until several batches have come together.
        targets: What they were compared with, in the same shape; negative ones are padding.
    """

    loss: Tensor
    right: Tensor | None = None
    targets: Tensor | None = None

    @property
    def accuracy(self) -> float | None:
        """Share of right predictions, padding left out."""
        return accuracy_of([self])


class Objective:
    """The loss of a network on a batch, in the forms that training loops use.

    A batch is a tuple of inputs with the targets last, a mapping of keyword inputs (targets under ``labels`` or
    ``targets``), or, for language models, token ids alone. Without a loss: what a Hugging Face model says itself where
    it is given labels; else the cross-entropy for integer targets, the mean squared error for others, and the
    next token for token ids.

    Args:
        loss: See :data:`Loss`.
        function: ``(model, batch) -> loss`` instead of all of this, for loops of any other form.

    Raises:
        IllegalConfiguration: If both are given, or the loss is not known.

    Example:
        >>> model = nn.Linear(2, 3)
        >>> measured = Objective()(model, (torch.zeros(4, 2), torch.tensor([0, 1, 2, 0])))
        >>> measured.loss.shape, measured.right.shape
        (torch.Size([]), torch.Size([4]))
    """

    def __init__(self, loss: Loss = None, function: Callable[[nn.Module, Any], Tensor] | None = None) -> None:
        if function is not None and loss is not None:
            raise IllegalConfiguration("give loss=... or objective=..., not both: an objective is the loss.")
        if not callable(loss) and loss not in (None, "cross_entropy", "mse", "next_token"):
            raise IllegalConfiguration(
                f"there is no loss {loss!r}; known are 'cross_entropy', 'mse', 'next_token', or give a function of "
                "outputs and targets."
            )
        self.loss, self.function = loss, function
        self._signatures: dict[tuple[type, str], bool] = {}

    def __call__(self, model: nn.Module, batch: Any) -> Measured:
        """Run the model on a batch.

        Raises:
            IllegalConfiguration: If the batch, the outputs and the loss do not fit together.
        """
        if self.function is not None:
            return Measured(self.function(model, batch))
        if isinstance(batch, Mapping):
            return self._of_mapping(model, batch)
        if isinstance(batch, Tensor):
            return self._next_token(_logits(model(batch)), batch)
        if isinstance(batch, (tuple, list)) and len(batch) >= 2:
            *inputs, targets = batch
            if isinstance(inputs[0], Mapping):
                return self._of_targets(model(**inputs[0]), targets)
            return self._of_targets(model(*inputs), targets)
        raise IllegalConfiguration(
            f"a batch of type {type(batch).__name__} does not say what is to be learnt: use (inputs, targets), a "
            "mapping with 'labels', token ids, or objective=lambda model, batch: ..."
        )

    def check(self, model: nn.Module, batches: Sequence[Any]) -> None:
        """Refuse labels out of range before an accelerator meets them, which would not survive it.

        Args:
            model: A network whose outputs say how many classes there are.
            batches: All batches.

        Raises:
            IllegalConfiguration: For a label that is no class.
        """
        first = batches[0]
        if self.function is not None or callable(self.loss) or not isinstance(first, (tuple, list)) or len(first) < 2:
            return
        if not isinstance(first[-1], Tensor) or first[-1].is_floating_point() or can_read(first[-1]):
            return
        with torch.no_grad(), training_mode(model, False):
            *inputs, targets = first
            logits = _logits(model(**inputs[0]) if isinstance(inputs[0], Mapping) else model(*inputs))
            size = logits.shape[_class_dim(logits, targets)]
            bad = torch.stack([((b[-1] >= size) | ((b[-1] < 0) & (b[-1] != _IGNORED))).any() for b in batches])
            if bool(bad.any()):
                raise _out_of_range(logits, batches[int(bad.int().argmax())][-1], size)

    def _of_mapping(self, model: nn.Module, batch: Mapping[str, Any]) -> Measured:
        key = next((key for key in _TARGETS if key in batch), None)
        if key is None or self.loss == "next_token":
            if not isinstance(batch.get("input_ids"), Tensor):
                raise IllegalConfiguration(
                    f"the batch has the keys {sorted(batch)}, and neither targets ({', '.join(_TARGETS)}) nor "
                    "'input_ids' to predict: add targets, or give objective=lambda model, batch: ..."
                )
            ids, mask = batch["input_ids"], batch.get("attention_mask")
            inputs = {name: value for name, value in batch.items() if name not in _TARGETS}
            return self._next_token(_logits(model(**inputs)), ids, mask)
        if self.loss is None and self._takes(model, key):
            output = model(**batch)
            own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
            if isinstance(own, Tensor):
                return Measured(own, *self._hits(output, batch[key], shifted=_is_causal(model)))
        else:
            output = model(**{name: value for name, value in batch.items() if name != key})
        return self._of_targets(output, batch[key])

    def _takes(self, model: nn.Module, key: str) -> bool:
        """Whether a model's forward has an argument of this name; looked up once."""
        known = type(model), key
        if known not in self._signatures:
            takes = inspect.signature(model.forward).parameters
            self._signatures[known] = key in takes or any(p.kind is p.VAR_KEYWORD for p in takes.values())
        return self._signatures[known]

    def _of_targets(self, output: Any, targets: Any) -> Measured:
        if callable(self.loss):
            return Measured(self.loss(output, targets), *self._hits(output, targets))
        if not isinstance(targets, Tensor):
            raise IllegalConfiguration(
                f"the targets are of type {type(targets).__name__}, not a tensor: give a function, "
                "loss=lambda outputs, targets: ..."
            )
        logits = _logits(output)
        if self.loss == "mse" or (self.loss is None and targets.is_floating_point()):
            return Measured(F.mse_loss(logits, _like(targets, logits)))
        return _cross_entropy(logits, targets)

    def _next_token(self, logits: Tensor, ids: Tensor, mask: Tensor | None = None) -> Measured:
        if ids.is_floating_point() or self.loss not in (None, "next_token"):
            raise IllegalConfiguration(
                "a batch that is one tensor is taken for token ids, whose next ones are predicted; this one has no "
                "targets for its loss. Use (inputs, targets), or objective=lambda model, batch: ..."
            )
        if logits.ndim != 3 or logits.shape[:2] != ids.shape:
            raise IllegalConfiguration(
                f"the next token needs outputs [batch, tokens, vocabulary]; for ids {tuple(ids.shape)} the model gives "
                f"{tuple(logits.shape)}."
            )
        targets = ids if mask is None else ids.masked_fill(mask == 0, _IGNORED)
        return _cross_entropy(logits[:, :-1], targets[:, 1:])

    def _hits(self, output: Any, targets: Any, *, shifted: bool = False) -> tuple[Tensor | None, Tensor | None]:
        """Right predictions, where outputs and targets look like a classification."""
        try:
            logits = _logits(output)
        except IllegalConfiguration:
            return None, None
        if not isinstance(targets, Tensor) or targets.is_floating_point():
            return None, None
        if shifted:
            logits, targets = logits[:, :-1], targets[:, 1:]
        dim = _class_dim(logits, targets, strict=False)
        return (None, None) if dim is None else (logits.detach().argmax(dim) == targets, targets)


def _is_causal(model: nn.Module) -> bool:
    """Models of Hugging Face that shift the labels themselves."""
    return type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))


def _logits(output: Any) -> Tensor:
    """The tensor in a model's output that is compared with the targets."""
    if isinstance(output, Tensor):
        return output
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if found is None and isinstance(output, (tuple, list)) and output:
        found = output[0]
    if not isinstance(found, Tensor):
        raise IllegalConfiguration(
            f"the model's output, a {type(output).__name__}, is no tensor and has no 'logits': give "
            "loss=lambda outputs, targets: ..."
        )
    return found


def _like(targets: Tensor, logits: Tensor) -> Tensor:
    """Targets in the shape of the outputs; never broadcast, which would compare each with all."""
    if targets.shape == logits.shape:
        return targets.to(logits.dtype)
    if targets.numel() == logits.numel() and targets.shape[0] == logits.shape[0]:
        return targets.reshape(logits.shape).to(logits.dtype)
    raise IllegalConfiguration(
        f"the targets have shape {tuple(targets.shape)}, the model's outputs {tuple(logits.shape)}: they do not fit."
    )


def _class_dim(logits: Tensor, targets: Tensor, *, strict: bool = True) -> Any:
    """The dimension of the classes: the last one, or the second as PyTorch has it."""
    if logits.ndim == targets.ndim + 1:
        if logits.shape[:-1] == targets.shape:
            return -1
        if logits.shape[:1] + logits.shape[2:] == targets.shape:
            return 1
    if not strict:
        return None
    raise IllegalConfiguration(
        f"integer targets of shape {tuple(targets.shape)} are no classes of outputs of shape {tuple(logits.shape)}, "
        "which need one dimension more; for another loss, give loss=lambda outputs, targets: ..."
    )


def _cross_entropy(logits: Tensor, targets: Tensor) -> Measured:
    dim = _class_dim(logits, targets)
    targets = targets.long()
    if dim == -1 and logits.ndim > 2:
        logits, targets = logits.flatten(0, -2), targets.flatten()
    try:
        loss = F.cross_entropy(logits, targets)
    except IndexError as error:
        raise _out_of_range(logits, targets, logits.shape[dim]) from error
    return Measured(loss, logits.detach().argmax(dim) == targets, targets)


def accuracy_of(measured: Sequence[Measured]) -> float | None:
    """Share of right predictions over several batches; ``None`` where one of them has no such thing."""
    right = [item.right.flatten() for item in measured if item.right is not None]
    targets = [item.targets.flatten() for item in measured if item.targets is not None]
    if len(right) < len(measured):
        return None
    count = int((torch.cat(targets) >= 0).sum())
    return int(torch.cat(right).sum()) / max(1, count)


def _out_of_range(logits: Tensor, targets: Tensor, size: int) -> IllegalConfiguration:
    bad = targets[(targets >= size) | ((targets < 0) & (targets != _IGNORED))]
    return IllegalConfiguration(
        f"the task has the label {int(bad.flatten()[0])}, but the model's outputs {tuple(logits.shape)} have {size} "
        "classes (0 and up): give labels in that range, or a model with a larger head."
    )


def inputs_of(batch: Any) -> Any:
    """The inputs in a batch, as they are passed to the model: a tuple of positional ones, or a mapping."""
    if isinstance(batch, Mapping):
        return {name: value for name, value in batch.items() if name not in _TARGETS}
    if isinstance(batch, Tensor):
        return (batch,)
    *inputs, _ = batch
    return dict(inputs[0]) if isinstance(inputs[0], Mapping) else tuple(inputs)
