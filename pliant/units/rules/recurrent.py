"""Recurrent layers and cells: gates are blocks of rows, and the recurrent matrix has its units in rows and columns.

A unit of an LSTM owns four rows of ``weight_ih`` and of ``weight_hh``, four entries of both biases, and one column
of ``weight_hh``: what it sends to every unit, itself included, at the next time step. The rows are incoming, the
column is outgoing. A unit whose outgoing weights are zero (the column too) influences nothing, whatever it
remembers, so a reset of it preserves the function.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Literal

from torch.export.graph_signature import OutputKind
from torch.fx import Node

from pliant.units import axes as ax
from pliant.units.axes import Atom, Axis
from pliant.units.export import Exported
from pliant.units.group import StateSlice
from pliant.units.layers import CELLS, RECURRENT
from pliant.units.rules.shape import COPIES, VIEWS, is_uniform
from pliant.units.trace import Trace, op_name, rule

_TIME = "a recurrent layer walks through it in order"
_GIVEN = "the state that its units start from is given from outside, unit by unit"
FINAL = "it is the model's output: a final state, whose initial state must be passed in, too, to count as carried on"
_LAYERS = "its entries are the layers and directions of a recurrent network"


# ---- layers ----
@rule("lstm")
def lstm(trace: Trace, node: Node) -> Any:
    """``nn.LSTM``: four gates; with ``proj_size`` the cell's units are consumed by the projection only."""
    return _layers(trace, node, gates=4)


@rule("gru")
def gru(trace: Trace, node: Node) -> Any:
    """``nn.GRU``: three gates."""
    return _layers(trace, node, gates=3)


@rule("rnn_tanh", "rnn_relu")
def rnn(trace: Trace, node: Node) -> Any:
    """``nn.RNN``: no gates."""
    return _layers(trace, node, gates=1)


def _layers(trace: Trace, node: Node, *, gates: int) -> Any:
    if "input" not in str(node.target):
        reason = "a recurrent layer on packed sequences has no rule"
        trace.freeze_inputs(node, reason)
        return trace.opaque(node, reason)
    source: Any = node.args[0]
    given: Any = node.args[1]
    states: list[Node] = list(given) if isinstance(given, (list, tuple)) else [given]
    weights, has_biases, num_layers = list(node.args[2]), node.args[3], int(node.args[4])  # type: ignore[arg-type]
    directions = 2 if node.args[7] else 1
    batch_first = bool(node.args[8])
    source_axes = trace.of(source)
    time = 1 if batch_first else 0
    ax.freeze(source_axes[time], _TIME)
    each = len(weights) // (num_layers * directions)
    output = next((user for user in node.users if _is_item(user, 0)), None)
    inputs, hidden, cells = source_axes[-1], [], []
    for layer in range(num_layers):
        is_first, is_last = layer == 0, layer == num_layers - 1
        outputs = []
        for _ in range(directions):
            own, weights = weights[:each], weights[each:]
            projection = own.pop() if each - (4 if has_biases else 2) else None
            cell, sent = _gates(trace, own, inputs, gates, projection)
            if is_first:
                trace.consume(node, source, own[0], -1)
            else:
                trace.role(own[0], -1, "outgoing")
            if is_last and output is not None:  # what the recurrent matrix consumes: the output at each time step
                trace.consume(node, output, own[1], -1)
            else:
                trace.role(own[1], -1, "outgoing")
            cells.append(cell)
            hidden.append(sent)
            outputs.append(sent)
        inputs = ax.concat(outputs)
    batch = source_axes[1 - time]
    results = [(hidden, states[0])] + ([(cells, states[1])] if len(states) > 1 else [])
    for axes, state in results:
        _start(trace, state, axes, batch)
    first = (source_axes[0], source_axes[1], inputs)
    return (first, *(_last(trace, node, at, axes, batch) for at, (axes, _) in enumerate(results, start=1)))


def _gates(trace: Trace, own: Sequence[Any], inputs: Axis, gates: int, projection: Any) -> tuple[Axis, Axis]:
    """Tie the tensors of one cell; returns the axes of its units and of what they send."""
    rows = trace.of(own[0])[-2]
    cell = ax.split(rows, [_length(rows) // gates] * gates)[0]
    for tensor in own:
        axes = trace.of(tensor)
        back = -2 if len(axes) > 1 else -1
        for block in ax.split(axes[back], [_length(cell)] * gates):
            ax.tie(block, cell)
        trace.role(tensor, back, "incoming")
    ax.tie(trace.of(own[0])[-1], inputs)
    sent = cell
    if projection is not None:
        sent, consumed = trace.of(projection)
        ax.tie(consumed, cell)
        trace.role(projection, -1, "outgoing")
        trace.role(projection, -2, "incoming")
    ax.tie(trace.of(own[1])[-1], sent)
    return cell, sent


def _start(trace: Trace, state: Node, hidden: Sequence[Axis], batch: Axis) -> None:
    """The initial state ``[layers, batch, units]``: zeros fix no order, anything else is indexed as the units are."""
    if is_uniform(state) or _is_passed_in(trace, state, hidden, by_row=True):
        return
    layers, examples, units = trace.of(state)
    if any(atom.frozen for atom in ax.leaves(units)):
        for axis in hidden:
            ax.freeze(axis, _GIVEN)
    ax.tie(examples, batch)
    if len(hidden) > 1:
        ax.freeze(layers, _LAYERS)
    for axis in hidden:
        ax.tie(axis, units)
    carry(trace, state)


def _last(trace: Trace, node: Node, at: int, hidden: Sequence[Axis], batch: Axis) -> tuple[Axis, ...]:
    """The final state ``[layers, batch, units]``: layers differ in their units, and selecting one tells them apart."""
    together = False
    for result in [user for user in node.users if _is_item(user, at)]:
        trace.finals[result] = list(hidden)
        for user in result.users:
            if user.op == "output":  # each row for itself: whether it is a state or a result is decided at the end
                continue
            if op_name(user) == "select" and user.args[1] == 0:
                trace.values[user] = (batch, hidden[int(user.args[2])])  # type: ignore[arg-type]
            else:
                together = True
    if together:
        for axis in hidden[1:]:
            ax.tie(axis, hidden[0])
    layers = ax.fresh(len(hidden), _LAYERS if len(hidden) > 1 else None)
    return (layers, batch, hidden[0])


# ---- cells ----
@rule("lstm_cell")
def lstm_cell(trace: Trace, node: Node) -> Any:
    """``nn.LSTMCell``: hidden and cell state have the same units."""
    return _cell(trace, node, gates=4)


@rule("gru_cell")
def gru_cell(trace: Trace, node: Node) -> Any:
    """``nn.GRUCell``."""
    return _cell(trace, node, gates=3)


@rule("rnn_tanh_cell", "rnn_relu_cell")
def rnn_cell(trace: Trace, node: Node) -> Any:
    """``nn.RNNCell``."""
    return _cell(trace, node, gates=1)


def _cell(trace: Trace, node: Node, *, gates: int) -> Any:
    source: Any = node.args[0]
    given: Any = node.args[1]
    states: list[Node] = list(given) if isinstance(given, (list, tuple)) else [given]
    own = [item for item in (*node.args[2:], *node.kwargs.values()) if item is not None]
    units, _ = _gates(trace, own, trace.of(source)[-1], gates, None)
    trace.consume(node, source, own[0], -1)
    trace.consume(node, states[0], own[1], -1)
    for state in states:
        if not is_uniform(state) and not _is_passed_in(trace, state, [units], by_row=False):
            start = trace.of(state)[-1]
            if any(atom.frozen for atom in ax.leaves(start)):
                ax.freeze(units, _GIVEN)
            ax.tie(start, units)
            carry(trace, state)
    for final in [node] if gates < 4 else node.users:
        trace.finals[final] = [units]
    result = (*trace.of(source)[:-1], units)
    return (result, result) if gates == 4 else result


# ---- states ----
def _is_passed_in(trace: Trace, state: Node, hidden: Sequence[Axis], *, by_row: bool) -> bool:
    """Whether a state is an input of the model that serves nothing else: its order is then the units' own."""
    given: Any = state.args[0] if state.meta.get("start") else state
    if given not in trace.inputs or not _starts_only(given, frozenset()):
        return False
    for row, axis in enumerate(hidden):
        trace.starts.append((trace.inputs[given], row if by_row else None, axis))
    return True


def _length(axis: Axis) -> int:
    return sum(map(ax.size_of, axis))


def _is_item(node: Node, index: int) -> bool:
    return node.target is operator.getitem and bool(node.args[1] == index)


def _starts_only(node: Node, between: frozenset[str]) -> bool:
    """Whether a tensor is used only as the state of recurrent operations, through the given other ones."""
    for user in node.users:
        if op_name(user) in RECURRENT | CELLS:
            if user.args[0] is node:
                return False
        elif not user.meta.get("start") and not (op_name(user) in between and _starts_only(user, between)):
            return False
    return bool(node.users)


def is_masked_start(node: Node) -> bool:
    """Whether an input is a state that is cleared or moved (where an episode has ended) before units start from it."""
    between = VIEWS | COPIES | {"mul", "where", "masked_fill"}
    return not _starts_only(node, frozenset()) and _starts_only(node, between)


def is_state(trace: Trace, node: Node) -> bool:
    """Whether an output of the model is the final state of units that started from an input of the model."""
    started = {id(leaf) for _, _, axis in trace.starts for leaf in ax.leaves(axis)}
    rows = trace.finals.get(node, [])
    return bool(rows) and all(id(leaf) in started for axis in rows for leaf in ax.leaves(axis))


def state_slices(trace: Trace, exported: Exported, atom: Atom) -> tuple[StateSlice, ...]:
    """Where a group's units appear in the states that the model takes and returns."""
    found: list[StateSlice] = []

    def add(kind: Literal["input", "output"], slot: int, row: int | None, axis: Axis) -> None:
        known = any((item.kind, item.slot, item.row) == (kind, slot, row) for item in found)
        if not known and any(leaf is atom.root() for leaf in ax.leaves(axis)):
            found.append(StateSlice(kind, slot, row, tuple(tuple(own) for own in ax.positions(axis, atom))))

    for slot, row, axis in trace.starts:  # shorter copies of the operation name the same rows again
        add("input", slot, row, axis)
    output = next(node for node in exported.nodes if node.op == "output")
    specs = exported.program.graph_signature.output_specs
    results: Any = output.args[0]
    tensors = [
        item
        for item, spec in zip(results, specs, strict=True)
        if spec.kind is OutputKind.USER_OUTPUT and isinstance(item, Node)
    ]
    for slot, node in enumerate(tensors):
        if is_state(trace, node):
            rows = trace.finals[node]
            by_row = len(trace.of(node)) == 3
            for row, axis in enumerate(rows):
                add("output", slot, row if by_row else None, axis)
    return tuple(found)


def carry(trace: Trace, state: Node) -> None:
    """A learned initial state is carried by the units, whatever copies and broadcasts lie in between."""
    node: Any = state
    while node not in trace.views and op_name(node) in VIEWS | COPIES:
        node = node.args[0]
    if node in trace.views:
        for back in range(1, len(trace.of(node)) + 1):
            trace.role(node, -back, "carried")
