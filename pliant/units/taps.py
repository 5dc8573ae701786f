"""Where to read each group's activations, decided at discovery and proved by value.

The site of a group is the tensor that its consumer reads, or, where dropout lies before the consumer, the tensor
that goes into the dropout (after a dropout of one half, three quarters of a ReLU layer look dead). A tap is a hook
that sees exactly that tensor. Candidates are not guessed from module types: the model runs once on generic
parameters with a hook on every module, and a hook qualifies only if in *every* call of its module the tensor it saw
equals the exported graph's value at one of the group's sites. Where no hook qualifies (functional code,
``nn.MultiheadAttention``), the few operations from the nearest hook to the site are replayed.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.fx import Interpreter, Node
from torch.utils import _pytree as pytree

from pliant.units import axes as ax
from pliant.units.axes import Atom, Axis
from pliant.units.call import call_with
from pliant.units.experts import rows_of_group
from pliant.units.export import Exported, grouped_experts, plain_attention, training_mode
from pliant.units.group import Tap, UnitGroup
from pliant.units.jitter import jittered
from pliant.units.layers import RECURRENT
from pliant.units.replay import Hit, Replay, Rows, extract_replay, nearest_hook, tensor_leaves
from pliant.units.rules.shape import is_uniform
from pliant.units.several import Several
from pliant.units.trace import Trace, op_name

__all__ = ["find_taps"]

_DROPOUT = frozenset({"dropout", "native_dropout", "feature_dropout", "alpha_dropout"})
_TRANSPARENT = _DROPOUT | frozenset(
    [
        *("view", "reshape", "_unsafe_view", "flatten", "unflatten", "transpose", "permute", "t", "contiguous"),
        *("clone", "unsqueeze", "squeeze", "expand", "detach", "alias", "_to_copy", "to"),
        *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
        *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool2d"),
        *("constant_pad_nd", "pad", "reflection_pad1d", "replication_pad1d", "reflection_pad2d", "replication_pad2d"),
    ]
)


@dataclass
class Sites:
    """The nodes at which a group can be read, the first of them preferred, and whether it is a consumer's input."""

    nodes: list[Node] = field(default_factory=list)
    direct: bool = True


def find_taps(
    model: nn.Module, exported: Exported, trace: Trace, groups: Sequence[UnitGroup], atoms: dict[str, Atom]
) -> tuple[dict[str, Tap], dict[str, Replay]]:
    """A tap for every group that can be read, and the replays that some of them need."""
    sites = {group.name: _sites(trace, group, atoms[group.name]) for group in groups}
    state, values, calls = _observe(model, exported, trace)
    seen = calls.unique()
    nearest: dict[Node, Any] = {}  # the experts of a layer have a site in common
    taps: dict[str, Tap] = {}
    replays: dict[str, Replay] = {}
    for group in groups:
        found = sites[group.name]
        if not found.nodes:
            continue
        node = found.nodes[0]
        located = _locate(trace.of(node), atoms[group.name])
        if located is None:
            continue
        dim, table = located
        ids = rows_of_group(group, trace)
        if ids is not None and group.slices[0].at is not None:  # a hook sees the rows of all experts
            if node not in nearest:
                nearest[node] = nearest_hook(exported, (node, ids), seen)
            rows = Rows(ids, group.slices[0].at[1], trace.products)
            replay = extract_replay(exported, node, nearest[node], values, rows, state)
            if replay is not None:
                taps[group.name] = Tap(replay.kind, replay.module, 0, dim, table, replay=True)
                replays[group.name] = replay
            continue
        found = Sites(_alike(trace, found.nodes, atoms[group.name], located), found.direct)
        hit = _choose(found, values, calls, group)
        if hit is not None:
            taps[group.name] = Tap(hit.kind, hit.module, hit.slot, dim, table)
            continue
        replay = extract_replay(exported, node, nearest_hook(exported, (node,), seen), values)
        if replay is not None:
            taps[group.name] = Tap(replay.kind, replay.module, 0, dim, table, replay=True)
            replays[group.name] = replay
    return taps, replays


def _sites(trace: Trace, group: UnitGroup, atom: Atom) -> Sites:
    members = {(piece.name, piece.dim) for piece in group.slices}
    result = Sites()
    for consumer in trace.consumers:
        if (consumer.weight, consumer.weight_dim) not in members:
            continue
        node = _before_dropout(trace, consumer.source, atom)
        result.direct &= node is consumer.source
        node = _before_view(trace, node, atom)
        if node.op == "call_function" and _carries(trace.of(node), atom) and node not in result.nodes:
            result.nodes.append(node)
    result.nodes.sort(key=is_uniform)  # the zeros that a loop starts from are seen by its hook, but never replayed
    if any(_is_step(node) for node in result.nodes):  # a cell in a loop: every step counts, not only those fed back
        steps = [node for node in trace.values if _is_step(node) and _carries(trace.of(node), atom)]
        return Sites(steps, direct=False)
    sequences = [node for node in result.nodes if _is_sequence(node)]
    nodes = sequences or result.nodes
    counts = {node: _samples(trace, node, atom) for node in nodes}  # not what a squeeze-and-excite gate has averaged
    best = [node for node in nodes if counts[node] == max(counts.values())]
    return Sites(best, result.direct and not sequences)  # the layer's own output serves packed sequences too


def _samples(trace: Trace, node: Node, atom: Atom) -> int:
    """How many values per unit a node holds."""
    located = _locate(trace.of(node), atom)
    if located is None:
        return 0
    dim, table = located
    shape = trace.shape(node)
    return math.prod(shape) // shape[dim] * len(table[0])


def _is_sequence(node: Node) -> bool:
    """Whether a node is a recurrent layer's output at every time step; a head may read the last step only."""
    return _is_first(node) and op_name(node.args[0]) in RECURRENT  # type: ignore[arg-type]


def _is_step(node: Node) -> bool:
    """Whether a node is the hidden state that a recurrent cell returns."""
    if _is_first(node):
        return op_name(node.args[0]) == "lstm_cell"  # type: ignore[arg-type]
    return op_name(node) in ("gru_cell", "rnn_tanh_cell", "rnn_relu_cell")


def _is_first(node: Node) -> bool:
    return node.target is operator.getitem and bool(node.args[1] == 0)


def _before_dropout(trace: Trace, source: Node, atom: Atom) -> Node:
    """The input of the earliest dropout between the nonlinearity and ``source``, or ``source`` itself."""
    site = node = source
    while node.op == "call_function" and op_name(node) in _TRANSPARENT:
        before = node.args[0]
        if not isinstance(before, Node) or not _carries(trace.of(before), atom):
            break
        if op_name(node) in _DROPOUT:
            site = before
        node = before
    return site


def _before_view(trace: Trace, node: Node, atom: Atom) -> Node:
    """The input of a view that only joins samples (batch and time) and leaves the units where they are."""
    while node.op == "call_function" and op_name(node) in ("view", "reshape", "_unsafe_view"):
        before = node.args[0]
        if not isinstance(before, Node) or _locate(trace.of(before), atom) != _locate(trace.of(node), atom):
            break
        node = before
    return node


def _alike(trace: Trace, nodes: Sequence[Node], atom: Atom, located: Any) -> list[Node]:
    """The nodes that hold the units at the same place as the first one; a concatenation stands for its operand, too."""
    wider = list(nodes)
    for node in nodes:
        if op_name(node) in ("cat", "concat", "concatenate"):
            operands: Any = node.args[0]
            wider.extend(o for o in operands if o.op == "call_function" and _carries(trace.of(o), atom))
    return [node for node in dict.fromkeys(wider) if _locate(trace.of(node), atom) == located]


def _carries(axes: Sequence[Axis], atom: Atom) -> bool:
    return any(atom.root() is leaf.root() for axis in axes for leaf in ax.leaves(axis))


def _locate(axes: Sequence[Axis], atom: Atom) -> tuple[int, tuple[tuple[int, ...], ...]] | None:
    """The one dimension that carries the units, and their positions along it."""
    found = [dim for dim, axis in enumerate(axes) if _carries([axis], atom)]
    if len(found) != 1:
        return None
    table = ax.positions(axes[found[0]], atom)
    return found[0] - len(axes), tuple(tuple(row) for row in table)


@dataclass
class Calls:
    """What one run of the model showed: which graph nodes each hook's tensor equals, call by call.

    Attributes:
        seen: Hit to the nodes of equal value, one set per call of the module, in the order of first calls.
        counts: Module name to its number of calls. A hit may have fewer: an optional argument is not always given.
    """

    seen: dict[Hit, list[set[Node]]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def always(self, nodes: set[Node]) -> list[Hit]:
        """The hits that see one of the nodes in every call of their module."""
        return [
            hit
            for hit, sets in self.seen.items()
            if len(sets) == self.counts[hit.module] and all(seen & nodes for seen in sets)
        ]

    def unique(self) -> dict[Hit, set[Node]]:
        """The hits of modules that are called exactly once per forward."""
        return {hit: sets[0] for hit, sets in self.seen.items() if self.counts[hit.module] == 1}


def _observe(model: nn.Module, exported: Exported, trace: Trace) -> tuple[dict[str, Tensor], dict[Node, Tensor], Calls]:
    """Run graph and model on the same generic parameters and random state, and compare what they compute."""
    writes = any(getattr(module, "max_norm", None) is not None for module in model.modules())
    state = jittered(model, seed=0, keep_large=not writes)
    args, kwargs = _generic_inputs(exported)
    with torch.no_grad(), torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        values = _interpret(exported, state, args, kwargs, trace.views)
        torch.manual_seed(0)
        calls = _watch(model, state, args, kwargs, values)
    return state, values, calls


def _generic_inputs(exported: Exported) -> tuple[Any, Any]:
    """The example inputs, away from special values such as all zeros."""
    generator = torch.Generator().manual_seed(1)

    def generic(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.dtype.is_floating_point:
            noise = torch.randn(leaf.shape, generator=generator, dtype=torch.float32)
            return leaf.detach() + noise.to(leaf)
        return leaf

    args, kwargs = pytree.tree_map(generic, (exported.args, exported.kwargs))
    return args, kwargs


class _Recorder(Interpreter):
    """Runs the exported graph and keeps the value of every activation in it, as it was when it was made."""

    def __init__(self, exported: Exported, parameters: Container[Node]) -> None:
        super().__init__(exported.program.graph_module)
        self.parameters = parameters
        self.kept: dict[Node, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        """Run one node and keep a copy, since later in-place operations may change the original."""
        result = super().run_node(n)
        if isinstance(result, Tensor) and n not in self.parameters:
            self.kept[n] = result.clone()
        return result


def _interpret(
    exported: Exported, state: dict[str, Tensor], args: Any, kwargs: Any, parameters: Container[Node]
) -> dict[Node, Tensor]:
    leaves = iter(pytree.tree_leaves((args, kwargs)))
    feed: list[Any] = []
    program = exported.program
    placeholders = (node for node in exported.nodes if node.op == "placeholder")
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
        if node in exported.parameters:
            tensor = state[exported.parameters[node]]
            feed.append(tensor.clone() if spec.kind is InputKind.BUFFER else tensor)  # a forward may update buffers
        elif node in exported.inputs:
            feed.append(next(leaves))
        else:
            held = program.constants if str(spec.target) in program.constants else program.state_dict
            feed.append(held[str(spec.target)])
    recorder = _Recorder(exported, parameters)
    recorder.run(*feed)
    return recorder.kept


def _watch(model: nn.Module, state: dict[str, Tensor], args: Any, kwargs: Any, values: dict[Node, Tensor]) -> Calls:
    index: dict[tuple[torch.Size, float], list[Node]] = {}
    for node, value in values.items():
        index.setdefault(_fingerprint(value), []).append(node)
    calls = Calls()
    handles = []
    buffers = dict(model.named_buffers(remove_duplicate=False))

    def look(hit: Hit, tensor: Tensor) -> None:
        same = {node for node in index.get(_fingerprint(tensor), ()) if torch.equal(values[node], tensor)}
        calls.seen.setdefault(hit, []).append(same)

    def before(name: str) -> Any:
        def hook(_: nn.Module, inputs: Any, keywords: Any) -> None:
            calls.counts[name] += 1
            for slot, leaf in enumerate(tensor_leaves((inputs, keywords))):
                look(Hit(name, "input", slot), leaf)

        return hook

    def after(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            for slot, leaf in enumerate(tensor_leaves(output)):
                look(Hit(name, "output", slot), leaf)

        return hook

    for name, module in model.named_modules():
        if isinstance(module, Several):  # nobody calls the container itself in training
            continue
        handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
        handles.append(module.register_forward_hook(after(name)))
    try:
        with training_mode(model), plain_attention(), grouped_experts(model):
            call_with(model, {k: v.clone() if k in buffers else v for k, v in state.items()}, args, kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _fingerprint(tensor: Tensor) -> tuple[torch.Size, float]:
    return tensor.shape, float(tensor.detach().double().sum()) if tensor.numel() else 0.0


def _choose(found: Sites, values: dict[Node, Tensor], calls: Calls, group: UnitGroup) -> Hit | None:
    """The consumer's own input where the site is one, else the earliest hook that always sees a site.

    With several consumers (heads that take turns), what the producing module gives is heard whichever of them runs.
    """
    nodes = {node for node in found.nodes if node in values}
    valid = calls.always(nodes) if nodes else []
    if not valid:
        return None
    # of several models, each may run without the other: a hook inside what they share hears both
    covered = {hit: len(nodes & set().union(*calls.seen[hit])) for hit in valid}
    valid = [hit for hit in valid if covered[hit] == max(covered.values())]
    if found.direct:
        owners = {piece.name.rpartition(".")[0] for piece in group.role("outgoing")}
        made = [hit for hit in valid if hit.kind == "output"] if len(owners) > 1 else []
        for hit in (*made, *valid):
            if hit in made or (hit.kind == "input" and hit.module in owners):
                return hit
    return valid[0]
