"""Running a model once, forward and backward, while everything stays as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from pliant.errors import IllegalConfiguration, NotYetSupported
from pliant.forward import untouched
from pliant.observation.outputs import as_rows, first_line, logits_of, measured, takes_softmax
from pliant.observation.rows import Masks, kept_rows
from pliant.observation.values import GroupObservation, Observation
from pliant.sharded import is_sharded, reshard, sharded_modules
from pliant.stats.capture import named_tensors
from pliant.stats.derivative import activation_derivative
from pliant.stats.reader import TapReader
from pliant.units import UnitGraph, find_units
from pliant.units.call import call_with
from pliant.units.export import as_call, model_outputs, refuse_wrapped
from pliant.units.group import UnitGroup
from pliant.units.replay import tensor_leaves
from pliant.units.several import Models, joined

__all__ = ["observe"]


def observe(
    model: Models,
    inputs: Any,
    loss: Callable[[Any], Tensor] | None = None,
    *,
    units: UnitGraph | None = None,
    where: str = "*",
    mode: Literal["train", "eval"] | None = None,
    mask: Tensor | None = None,
    num_samples: int = 2048,
) -> Observation:
    r"""Run a model on one batch, forward and backward, and return what its units did.

    Nothing is changed, to the bit: parameters, buffers, ``.grad``, modes, the random state, the attributes of modules
    and hooks are as before, and no attached method or monitor hears it. The model runs on copies of its parameters,
    all of which get gradients, frozen ones too.

    Args:
        model: The model, or several by name, before ``torch.compile`` and DDP.
        inputs: A tensor, a tuple of positional inputs, or a mapping of keyword inputs; for several models, a mapping
            from their names to the inputs of each.
        loss: From the model's output to a scalar. ``None``: the output's own ``loss`` where it has one (Hugging Face
            models with labels), else none, and no gradients.
        units: Its unit groups, if they were found or declared before.
        where: Which groups, a pattern of names.
        mode: ``"train"``: every module in training mode (batch norm uses the batch, dropout drops). ``"eval"``: every
            module in evaluation mode. ``None``: every module in the one that it is in.
        mask: Bool ``[B, T]``, false where a position is padding. By default ``attention_mask`` and
            ``decoder_attention_mask`` of a mapping of inputs.
        num_samples: At most so many samples of each group are kept, a random choice that is always the same. Loss and
            gradients are those of the whole batch.

    Returns:
        The observation.

    Raises:
        IllegalConfiguration: If the model fails on the inputs in this mode, or the loss is no differentiable scalar.
        NoEffect: If no group matches ``where``.
        NotYetSupported: For the gradients of a model that ``fully_shard`` has split.
        UnsupportedOp: If units have to be found, and the model cannot be exported.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x, y = torch.randn(32, 4), torch.randint(2, (32,))
        >>> seen = observe(model, x, lambda output: torch.nn.functional.cross_entropy(output, y))
        >>> hidden = seen.groups["0"]
        >>> hidden.act_NU.shape, hidden.derivative_NU.shape, hidden.grad_NU.shape
        (torch.Size([32, 8]), torch.Size([32, 8]), torch.Size([32, 8]))
        >>> assert torch.equal(hidden.derivative_NU, (hidden.act_NU > 0).float())
        >>> sorted(seen.gradients), model[0].weight.grad
        (['0.bias', '0.weight', '2.bias', '2.weight'], None)
    """
    if mode not in ("train", "eval", None):
        raise IllegalConfiguration(f"observe: mode must be 'train', 'eval' or None, not {mode!r}.")
    if num_samples < 1:
        raise IllegalConfiguration("observe: num_samples must be at least 1.")
    if units is None:
        units = find_units(model, inputs)
    groups = units.require(where) if len(units) or where != "*" else ()
    module, given = joined(model, inputs)
    refuse_wrapped(module, sharded=True)
    shards = sharded_modules(module)
    if shards and loss is not None:
        raise NotYetSupported(
            "gradients of a model that fully_shard has split cannot be observed: look at it before it is sharded, or "
            "leave the loss out to see its activations."
        )
    training = None if mode is None else mode == "train"
    look = _Look(module, given, loss, Masks(module, inputs, mask), num_samples)
    with untouched(module, training), _attributes_kept(module), torch.enable_grad():
        try:
            return look.run(groups, units, training)
        finally:
            reshard(shards)


@contextlib.contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """Put back what every module has as attributes: counters, caches, a weight that a hook computes anew."""
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)


class _Whole(nn.Module):
    """Runs any code while the model's tensors are swapped: a backward pass runs checkpointed modules again."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, body: Callable[[], Observation]) -> Observation:
        return body()


class _Heard:
    """The activations of one group, as they passed."""

    def __init__(self, group: UnitGroup, reader: TapReader) -> None:
        self.group, self.reader = group, reader
        self.values: list[Tensor] = []
        self.edges: list[Any] = []

    def add(self, seen: Any) -> None:
        if torch._C._current_graph_task_id() != -1:  # a checkpointed forward that is run again
            return
        live = self._live(seen)
        self.values.append(live.detach().clone())  # it may be changed in place later
        self.edges.append(get_gradient_edge(live) if live.grad_fn is not None else None)

    def _live(self, seen: Any) -> Tensor:
        replay = self.reader.replay
        if replay is None:
            return self.reader.live(seen)
        leaves = tensor_leaves(seen)
        try:
            fed = [leaves[slot] for slot in replay.slots]
            return replay.graph(*fed, *(self.reader.tensors[name] for name in replay.names))  # type: ignore[no-any-return]
        except RuntimeError:
            return replay(seen, self.reader.tensors)  # says what is wrong

    def hook(self, model: nn.Module) -> Any:
        module = model.get_submodule(self.reader.tap.module)
        if self.reader.tap.kind == "input":
            return module.register_forward_pre_hook(lambda _, args, kwargs: self.add((args, kwargs)), with_kwargs=True)
        return module.register_forward_hook(lambda _, __, output: self.add(output))


class _Look:
    """One look, in the order in which it happens."""

    def __init__(
        self, model: nn.Module, inputs: Any, loss: Callable[[Any], Tensor] | None, masks: Masks, limit: int
    ) -> None:
        self.model, self.loss, self.masks, self.limit = model, loss, masks, limit
        self.args, self.kwargs = as_call(inputs)
        tensors = named_tensors(model)
        own = dict(model.named_parameters())
        self.trainable = frozenset(name for name, parameter in own.items() if parameter.requires_grad)
        # what is sharded is gathered by hooks of its own, and has no gradient here
        self.state = {name: tensor.detach().clone() for name, tensor in tensors.items() if not is_sharded(tensor)}
        self.weights = {name: self.state[name] for name in own if name in self.state}
        for tensor in self.weights.values():
            tensor.requires_grad_(tensor.is_floating_point())
        self.tensors = {**tensors, **self.state}

    def run(self, groups: tuple[UnitGroup, ...], units: UnitGraph, training: bool | None) -> Observation:
        heard: dict[str, _Heard] = {}
        for group in groups:
            if group.tap is not None and group.size:
                reader = TapReader(group, units.replays.get(group.name), self.tensors, members=False)
                heard[group.name] = _Heard(group, reader)

        def body() -> Observation:
            return self._body(groups, heard, units, training)

        swapped = {f"model.{name}": tensor for name, tensor in self.state.items()}
        return call_with(_Whole(self.model), swapped, (body,), {})  # type: ignore[no-any-return]

    def _body(
        self, groups: tuple[UnitGroup, ...], heard: Mapping[str, _Heard], units: UnitGraph, training: bool | None
    ) -> Observation:
        output = self._forward(heard)
        loss = self._loss_of(output)
        derivatives = {
            name: [activation_derivative(value, edge) for value, edge in zip(item.values, item.edges, strict=True)]
            for name, item in heard.items()
        }
        logits, mask = logits_of(output), self.masks.of_output()
        gradients, of_acts, of_logits = self._gradients(loss, heard, logits)
        seen: dict[str, GroupObservation] = {}
        unseen: dict[str, str] = {}
        for group in groups:
            item = heard.get(group.name)
            if item is None:
                unseen[group.name] = "no hook can see its activations" if group.size else "it has no units"
            elif not item.values:
                unseen[group.name] = "its module did not run on this batch"
            else:
                rows = kept_rows(item.values, item.reader.tap, self.masks.of(group.name), self.limit)
                if len(rows):
                    pieces = derivatives[group.name], of_acts[group.name]
                    seen[group.name] = _of_group(item, rows, *pieces, gradients, loss is not None)
                else:
                    unseen[group.name] = "the batch has no sample for it that is not padding"
        return Observation(
            seen,
            unseen,
            loss=None if loss is None else float(loss.detach()),
            outputs=tuple(measured(leaf) for leaf in model_outputs(output) if leaf.is_floating_point()),
            logits_NC=as_rows(logits, mask),
            logits_grad_NC=as_rows(of_logits, mask),
            is_classification=None if loss is None else takes_softmax(loss, output),
            gradients={name: measured(gradient) for name, gradient in gradients.items()},
            weights={name: measured(tensor) for name, tensor in self.weights.items()},
            trainable=self.trainable,
            num_examples=next((len(leaf) for leaf in tensor_leaves((self.args, self.kwargs)) if leaf.ndim), 0),
            training=training,
            units=units,
        )

    def _forward(self, heard: Mapping[str, _Heard]) -> Any:
        handles = [item.hook(self.model) for item in heard.values()]
        try:
            return self.model(*self.args, **self.kwargs)
        except IllegalConfiguration:
            raise
        except Exception as error:
            mode = "training" if self.model.training else "evaluation"
            advice = " mode='eval' lets batch norm use its running statistics." if self.model.training else ""
            raise IllegalConfiguration(
                f"{type(self.model).__name__} fails on this batch in {mode} mode: {first_line(error)}.{advice}"
            ) from error
        finally:
            for handle in handles:
                handle.remove()

    def _loss_of(self, output: Any) -> Tensor | None:
        if self.loss is None:
            own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
            return own if isinstance(own, Tensor) and own.numel() == 1 and own.requires_grad else None
        try:
            loss = self.loss(output)
        except Exception as error:
            raise IllegalConfiguration(
                f"the loss function raised {type(error).__name__} on the model's output: {first_line(error)}."
            ) from error
        if not isinstance(loss, Tensor) or not loss.is_floating_point():
            what = type(loss).__name__ if not isinstance(loss, Tensor) else str(loss.dtype)
            raise IllegalConfiguration(f"the loss must be a scalar tensor of a floating-point type, not {what}.")
        if loss.numel() != 1:
            raise IllegalConfiguration(
                f"the loss must be a scalar, but has shape {tuple(loss.shape)}: reduce it as in training, for "
                "example with .mean()."
            )
        if not loss.requires_grad:
            raise IllegalConfiguration(
                "the loss does not depend on the model's parameters: no gradient can be seen. Do not detach the "
                "output or use torch.no_grad() inside the loss function or the model."
            )
        return loss

    def _gradients(
        self, loss: Tensor | None, heard: Mapping[str, _Heard], logits: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, list[Tensor | None]], Tensor | None]:
        """Gradients of the loss: by parameter name, of every activation that was heard, and of the logits."""
        of_acts: dict[str, list[Tensor | None]] = {name: [None] * len(item.edges) for name, item in heard.items()}
        if loss is None:
            return {}, of_acts, None
        names = [name for name, tensor in self.weights.items() if tensor.requires_grad]
        places = [(name, i) for name, item in heard.items() for i, edge in enumerate(item.edges) if edge is not None]
        sources: list[Any] = [self.weights[name] for name in names]
        sources += [heard[name].edges[i] for name, i in places]
        sources += [logits] if logits is not None and logits.requires_grad else []
        try:
            found = torch.autograd.grad(loss.reshape(()), sources, allow_unused=True)
        except RuntimeError as error:
            if "use_reentrant" not in str(error) and "Checkpointing is not compatible" not in str(error):
                raise
            raise IllegalConfiguration(
                "the model checkpoints its activations in the reentrant way, which gives no gradients of activations: "
                "use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
            ) from error
        for (name, i), gradient in zip(places, found[len(names) :], strict=False):
            of_acts[name][i] = gradient
        of_logits = found[-1] if len(sources) > len(names) + len(places) else None
        return (
            {name: value for name, value in zip(names, found, strict=False) if value is not None},
            of_acts,
            of_logits,
        )


def _of_group(
    item: _Heard,
    rows: Tensor,
    derivatives: list[Tensor | str],
    of_acts: list[Tensor | None],
    gradients: Mapping[str, Tensor],
    with_loss: bool,
) -> GroupObservation:
    def chosen(pieces: list[Tensor]) -> Tensor:
        whole = torch.cat([item.reader.matrix(piece.detach()) for piece in pieces])
        return measured(whole.index_select(0, rows.to(whole.device)))

    missing: dict[str, str] = {}
    reasons = [piece for piece in derivatives if isinstance(piece, str)]
    if reasons:
        missing["derivatives"] = reasons[0]
    known = [piece for piece in of_acts if piece is not None]
    if not with_loss:
        missing["gradients"] = "no loss was given"
    elif not known and item.reader.replay is not None:
        missing["gradients"] = "its activations are recomputed apart from the forward pass"
    elif not known:
        missing["gradients"] = "the loss does not depend on it, or it was computed without gradients"
    filled = [torch.zeros_like(v) if g is None else g for g, v in zip(of_acts, item.values, strict=True)]
    return GroupObservation(
        item.group.name,
        chosen(item.values),
        None if reasons else chosen([piece for piece in derivatives if isinstance(piece, Tensor)]),
        None if "gradients" in missing else chosen(filled),
        _incoming(item.group, gradients),
        sum(item.reader.count(value) for value in item.values),
        missing,
    )


def _incoming(group: UnitGroup, gradients: Mapping[str, Tensor]) -> Tensor | None:
    """Mean absolute gradient of the weights (not biases) that produce each unit, ``[U]``."""
    totals: list[Tensor] = []
    count = 0
    for piece in group.role("incoming"):
        gradient = gradients.get(piece.name)
        if gradient is None or gradient.ndim < 2:
            continue
        rows = measured(gradient).abs().movedim(piece.dim, 0)
        rows = rows[piece.positions().to(rows.device).flatten()].reshape(group.size, -1)
        totals.append(rows.sum(-1))
        count += rows.shape[1]
    return torch.stack(totals).sum(0) / count if count else None
