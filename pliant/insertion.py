"""Putting norms before activations, and dropout behind them, into a model that is already there.

Where an activation is does not depend on how it is written: the exported graph shows it, as a module or as a function.
What is put in is put round the layer that produces the activation's input, or round the one that reads its output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.optim import Optimizer

from pliant.errors import IllegalConfiguration, NoEffect, NotYetSupported
from pliant.nn.wrapped import Dropped, Normalized
from pliant.surgery import replace_module
from pliant.units.discover import find_units
from pliant.units.export import Exported, as_call, export, training_mode
from pliant.units.graph import UnitGraph
from pliant.units.several import Models, joined
from pliant.units.trace import op_name

__all__ = ["insert_dropout", "insert_normalization"]

_ACTIVATIONS = frozenset({
    "relu", "relu6", "gelu", "silu", "sigmoid", "tanh", "elu", "selu", "celu", "leaky_relu", "softplus", "mish",
    "hardtanh", "hardswish", "hardsigmoid", "softsign", "threshold", "rrelu", "prelu", "_prelu_kernel", "sin", "cos",
    "logsigmoid", "hardshrink", "softshrink", "glu",
})  # fmt: skip
_NORMS = frozenset({
    "batch_norm", "instance_norm", "layer_norm", "rms_norm", "group_norm", "cudnn_batch_norm", "native_layer_norm",
    "native_group_norm", "_native_batch_norm_legit_functional",
})  # fmt: skip
_DROPOUT = frozenset({"dropout", "native_dropout", "feature_dropout", "alpha_dropout"})
_BETWEEN = frozenset({
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "transpose", "permute", "contiguous", "clone", "neg",
    "to", "_to_copy", "alias", "detach", "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "cat",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "unsqueeze", "squeeze", *_DROPOUT,
})  # fmt: skip
_POOLED = frozenset({"mean", "sum", "amax", "select", "slice"})
_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})  # what they put out are activations
_POINTWISE = frozenset({"add", "sub", "rsub", "mul", "div", "pow"})
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LAYER_OPS = frozenset({"linear", "conv1d", "conv2d", "conv3d", "addmm"})
_OF_MATRICES: tuple[type, ...] = (torch.optim.Muon,) if hasattr(torch.optim, "Muon") else ()  # PyTorch 2.9 and later
_FUSED = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


@dataclass(frozen=True)
class _Call:
    """One call of a layer in the graph."""

    node: Node
    source: Node
    weight: Node
    path: str
    layers: frozenset[Node]  # all layer operations of the graph


def insert_normalization(
    model: Models,
    kind: str = "layer",
    *,
    example_inputs: Any,
    optimizers: Sequence[Optimizer] = (),
    gate: str | None = None,
    where: str = "*",
) -> tuple[str, ...]:
    """Put a norm behind every layer whose output goes into an activation and through no norm yet.

    The layers become :class:`~pliant.nn.wrapped.Normalized`: ``0.weight`` is then ``0.layer.weight``, and
    ``0.norm.weight``, ``0.norm.bias`` and perhaps ``0.gate`` are new. Checkpoints made before do not load any more.

    ``kind="batch"`` keeps the function in evaluation mode (up to rounding): running statistics are those of the
    example batch, and gain and offset undo them. Training mode normalises by each batch. ``kind="layer"`` changes the
    function, unless there is a gate, which starts at zero.

    Args:
        model: The model, or several by name; changed in place.
        kind: ``"layer"`` (layer norm; for images over channels and positions) or ``"batch"``.
        example_inputs: One batch as the training loop passes it.
        optimizers: Those that own the parameters; the new ones join the groups of their layers. Without any, make the
            optimizer afterwards.
        gate: ``None``, ``"trained"`` or ``"fixed"``, see :class:`~pliant.nn.wrapped.Normalized`.
        where: Which unit groups, a pattern of names.

    Returns:
        The names of the layers that have a norm behind them now.

    Raises:
        IllegalConfiguration: For an option out of range, or where a named group's activation has no layer before it
            that could be wrapped, with the reason.
        NotYetSupported: For a batch norm on anything but ``[batch, features]`` or images, or on a layer that is called
            more than once.
        NoEffect: If there is no place for a norm.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> insert_normalization(model, example_inputs=torch.randn(3, 4))
        ('0',)
        >>> list(model.state_dict())[:4]
        ['0.layer.weight', '0.layer.bias', '0.norm.weight', '0.norm.bias']
    """
    if kind not in ("layer", "batch"):
        raise IllegalConfiguration(
            f"insert_normalization: kind={kind!r} is out of range; it must be 'layer' or 'batch'."
        )
    if gate not in (None, "trained", "fixed"):
        raise IllegalConfiguration(f"insert_normalization: gate={gate!r}; it must be None, 'trained' or 'fixed'.")
    units = find_units(model, example_inputs)
    whole, inputs = joined(model, example_inputs)
    exported = export(whole, inputs)
    calls = _calls(whole, exported)
    found = _chosen(units, calls, where, "incoming", lambda call: _before_activation(call, whole))
    norms = {path: _norm_of(kind, whole.get_submodule(path), found[path]) for path in found}
    if kind == "batch":
        _calibrate(whole, inputs, norms)
    for path, norm in norms.items():
        old = whole.get_submodule(path)
        _put(whole, optimizers, path, Normalized(old, norm, gate))
    return tuple(norms)


def insert_dropout(
    model: Models, p: float = 0.1, *, example_inputs: Any, where: str = "*", optimizers: Sequence[Optimizer] = ()
) -> tuple[str, ...]:
    """Put dropout between the activations of hidden units and the layers that read them; evaluation is unchanged.

    The layers become :class:`~pliant.nn.wrapped.Dropped`: ``2.weight`` is then ``2.layer.weight``. Where several
    layers read one activation, each gets a mask of its own. What has dropout already is left as it is.

    Args:
        model: The model, or several by name; changed in place.
        p: Probability in [0, 1) of each entry to be zeroed.
        example_inputs: One batch as the training loop passes it.
        where: Which unit groups, a pattern of names.
        optimizers: Those that own the parameters; nothing new is for them to train.

    Returns:
        The names of the layers that have dropout before them now.

    Raises:
        IllegalConfiguration: For ``p`` out of range, or where a named group has no place for it, with the reason.
        NoEffect: If there is no place for it at all.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> insert_dropout(model, 0.5, example_inputs=torch.randn(3, 4))
        ('2',)
    """
    if not 0 <= p < 1:
        raise IllegalConfiguration(f"insert_dropout: p={p!r} is out of range; it must be in [0, 1).")
    units = find_units(model, example_inputs)
    whole, inputs = joined(model, example_inputs)
    found = _chosen(units, _calls(whole, export(whole, inputs)), where, "outgoing", lambda call: _after(call, whole))
    for path in found:
        _put(whole, optimizers, path, Dropped(whole.get_submodule(path), p))
    return tuple(found)


# ---- where ----
def _calls(model: nn.Module, exported: Exported) -> dict[str, list[_Call]]:
    """Weight name to the calls of the layer that owns it."""
    layers = [node for node in exported.nodes if node.op == "call_function" and op_name(node) in _LAYER_OPS]
    found: dict[str, list[_Call]] = {}
    for node in layers:
        source, given = node.args[1:3] if op_name(node) == "addmm" else node.args[:2]  # b + x W, or x W' + b
        weight = exported.parameters.get(given, "") if isinstance(given, Node) else ""
        if isinstance(source, Node) and isinstance(given, Node) and weight.endswith(".weight"):
            call = _Call(node, source, given, weight.removesuffix(".weight"), frozenset(layers))
            found.setdefault(weight, []).append(call)
    return found


def _chosen(
    units: UnitGraph, calls: Mapping[str, list[_Call]], where: str, role: Any, reason_of: Any
) -> dict[str, list[_Call]]:
    """Layer to its calls, for those that can be wrapped; refuses named groups for which there are none."""
    found: dict[str, list[_Call]] = {}
    reasons: dict[str, str] = {}
    for group in units.require(where):
        why = "none of its weights belongs to a linear or convolutional layer that is called as a module"
        mine: dict[str, list[_Call]] = {}
        for piece in group.role(role):
            for name in [piece.name] if piece.name in calls else []:
                problems = {problem for call in calls[name] if (problem := reason_of(call))}
                if problems:
                    why = sorted(problems)[0]
                else:
                    mine[calls[name][0].path] = calls[name]
        found |= mine
        if not mine:
            reasons[group.name] = why
    shown = "; ".join(f"{name!r}: {why}" for name, why in reasons.items())
    if reasons and where != "*":
        raise IllegalConfiguration(f"nothing can be put in for the unit group {shown}.")
    if not found:
        raise NoEffect(f"there is no place to put anything in. {shown}.")
    return found


def _unfit(call: _Call, model: nn.Module) -> str:
    """Why a layer cannot be wrapped at all."""
    if not call.path:
        return "the model is that layer itself, which the user's own loop calls"
    layer, parent = (model.get_submodule(path) for path in (call.path, call.path.rpartition(".")[0]))
    if not isinstance(layer, _LAYERS) and not _is_conv1d(layer):
        return f"{call.path!r} is a {type(layer).__name__}, not a linear or convolutional layer"
    if isinstance(parent, _FUSED):
        return f"the fused inference path of {type(parent).__name__} reads the weights of {call.path!r} by itself"
    if any(user not in call.layers for user in call.weight.users):
        return f"the weight of {call.path!r} is used by other code, too"
    stack = call.node.meta.get("nn_module_stack") or {}
    if stack and list(stack.values())[-1][0].replace("L['self'].", "") != call.path:
        return f"{call.path!r} is not called as a module: its weight is used by other code"
    return ""


def _is_conv1d(layer: nn.Module) -> bool:
    """Hugging Face's linear layer of GPT-2, whose weight is inputs x outputs."""
    return type(layer).__name__ == "Conv1D" and isinstance(getattr(layer, "nf", None), int)


def _before_activation(call: _Call, model: nn.Module) -> str:
    """Why no norm can be put behind this call of a layer; nothing if it can."""
    if why := _unfit(call, model):
        return why
    reached, pending, seen = False, [call.node], {call.node}
    while pending:
        for user in pending.pop().users:
            name = op_name(user) if user.op == "call_function" else user.op
            if name in _NORMS:
                return f"{call.path!r} has a norm behind it already"
            if name in _ACTIVATIONS or _is_gated_by_itself(user, call.node):
                reached = True
            elif name in _BETWEEN or name in ("mul", "getitem") or (name in _POINTWISE and _of(call.node, user)[0]):
                pending += [user] if user not in seen else []
                seen.add(user)
            else:
                return f"the output of {call.path!r} does not go into an activation alone, but also into {name!r}"
    return "" if reached else f"the output of {call.path!r} goes into no activation"


def _is_gated_by_itself(node: Node, start: Node) -> bool:
    """Whether a product is that of a tensor and an activation of it, as SiLU or GELU written out."""
    if node.op != "call_function" or op_name(node) != "mul" or len(node.all_input_nodes) < 2:
        return False
    return any(all(_of(start, item)) for item in node.all_input_nodes)


def _of(start: Node, node: Node) -> tuple[bool, bool]:
    """Whether a node is computed from ``start`` alone, element by element; and whether an activation is on the way."""
    met, pending, seen = False, [node], {start}
    while pending:
        item = pending.pop()
        if item in seen:
            continue
        seen.add(item)
        inputs = [each for each in item.all_input_nodes if isinstance(each.meta.get("val"), Tensor)]  # no sizes
        name = op_name(item) if item.op == "call_function" else ""
        if not inputs or (len(inputs) > 1 and name not in _POINTWISE):
            return False, met
        met |= name in _ACTIVATIONS
        pending += inputs
    return True, met


def _after(call: _Call, model: nn.Module) -> str:
    """Why no dropout can be put before this call of a layer; nothing if it can."""
    if why := _unfit(call, model):
        return why
    node = call.source
    while node.op == "call_function" and op_name(node) not in _ACTIVATIONS | _RECURRENT | {"mul"}:
        if op_name(node) in _DROPOUT:
            return f"{call.path!r} has dropout before it already"
        inputs = node.all_input_nodes
        if op_name(node) not in _BETWEEN | _POOLED | {"getitem"} or not inputs:
            return f"{call.path!r} reads the output of {op_name(node)!r}, which is no activation"
        node = inputs[0]
    return "" if node.op == "call_function" else f"{call.path!r} reads no activation"


# ---- what ----
def _norm_of(kind: str, layer: nn.Module, calls: Sequence[_Call]) -> nn.Module:
    rank = calls[0].node.meta["val"].ndim
    if _is_conv1d(layer) and kind == "layer":
        return nn.LayerNorm(layer.nf)
    if isinstance(layer, nn.Linear):
        if kind == "layer":
            return nn.LayerNorm(layer.out_features)
        if rank == 2 and len(calls) == 1:
            return nn.BatchNorm1d(layer.out_features)
    elif isinstance(layer, _LAYERS):
        channels = int(layer.out_channels)  # type: ignore[arg-type]
        if kind == "layer":
            return nn.GroupNorm(1, channels)
        if len(calls) == 1:
            return _BATCH_NORMS[rank - 3](channels)
    raise NotYetSupported(
        f"no batch norm can be put behind {calls[0].path!r}: its output has {rank} dimensions and it is called "
        f"{len(calls)} times in a forward pass. Use kind='layer', or leave it out with where=..."
    )


def _calibrate(model: nn.Module, inputs: Any, norms: Mapping[str, nn.Module]) -> None:
    """Give every batch norm the statistics of the example batch, and the gain and offset that undo them."""
    seen: dict[str, Tensor] = {}

    def keeper(path: str) -> Any:
        return lambda _, __, output: seen.__setitem__(path, output.detach())

    hooks = [model.get_submodule(path).register_forward_hook(keeper(path)) for path in norms]
    args, kwargs = as_call(inputs)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.no_grad(), training_mode(model, False):
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
    with torch.no_grad():
        for path, norm in norms.items():
            assert isinstance(norm, _BATCH_NORMS)
            norm.to(seen[path])
            assert norm.running_mean is not None and norm.running_var is not None  # noqa: PT018
            output = seen[path]
            dims = [dim for dim in range(output.ndim) if dim != 1]
            variance, mean = torch.var_mean(output.double(), dims, correction=0)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            norm.weight.copy_((variance + norm.eps).sqrt())
            norm.bias.copy_(mean)


def _put(model: nn.Module, optimizers: Sequence[Optimizer], path: str, new: nn.Module) -> None:
    """Replace a layer by one that contains it."""
    old = model.get_submodule(path)
    new.train(old.training)
    first = next(old.parameters())
    owners = {id(p): item for item in optimizers for group in item.param_groups for p in group["params"]}
    mine = [p for p in old.parameters() if id(p) in owners]
    if mine:
        if all(p.ndim > 1 and isinstance(owners[id(p)], _OF_MATRICES) for p in mine):
            mine = [p for p in model.parameters() if id(p) in owners and p.ndim == 1] or mine
        mine.sort(key=lambda p: p.ndim)  # a norm's gains join the biases rather than the weights
        replace_module(model, optimizers, path, new, like=mine[0])
        return
    inner = {id(p) for p in old.parameters()}
    for p in new.parameters() if optimizers else ():  # nobody trains this layer, nor what is put round it
        p.requires_grad_(id(p) in inner and p.requires_grad)
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new.to(device=first.device, dtype=first.dtype))
