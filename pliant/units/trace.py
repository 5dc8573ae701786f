"""Following axes through an exported graph: the context in which the op rules run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from pliant.units import axes as ax
from pliant.units.axes import Axis
from pliant.units.group import Role

__all__ = ["RULES", "Consumer", "Trace", "arg", "live_nodes", "rule"]

Rule = Callable[["Trace", Node], Any]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register an op rule under ATen names (``"linear"`` stands for every overload of ``aten.linear``)."""

    def register(function: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise AssertionError(f"two rules for {name}")
            RULES[name] = function
        return function

    return register


def arg(node: Node, index: int, name: str, default: Any = None) -> Any:
    """An argument of an op, given by position or by keyword, or its default."""
    if index < len(node.args):
        return node.args[index]
    return node.kwargs.get(name, default)


def op_name(node: Node) -> str:
    """The op's name without namespace and overload; in-place ops lose their underscore."""
    target = node.target
    packet = getattr(target, "overloadpacket", None)
    if packet is None:
        return str(getattr(target, "__name__", target))
    namespace, name = str(packet).split(".", 1)
    name = name.rstrip("_") if not name.startswith("_") else "_" + name[1:].rstrip("_")
    return name if namespace == "aten" else f"{namespace}.{name}"


@dataclass(frozen=True)
class Consumer:
    """A place where a parameter dimension contracts with an activation."""

    weight: str
    weight_dim: int
    node: Node
    source: Node


@dataclass
class Trace:
    """Everything the rules read and write while they walk the graph once.

    Attributes:
        values: Node to its axes (one per dimension), or a tuple of such for several results.
        parameter_axes: Name of each parameter and buffer to its axes.
        roles: ``(name, dim from the end)`` to the roles that rules gave it.
        consumers: Where units are consumed by weights, in graph order.
        unknown: Ops met that no rule explains, with the number of times.
        used: Parameters and buffers that the graph reads.
        blends: Nodes computed entry by entry from parameters alone (a standardised or noisy weight), with those
            operands that have the shape of the result: what happens to the result happens to them.
        orders: The order of dimensions of those blends that are a permutation of their operand.
        moving: Nodes that depend on more than parameters and buffers.
        shifted: Blends that are not zero where their operands are (``exp(w)``, ``1 + w``): zeroed outgoing weights
            do not silence what they consume.
        buffers: Names of the buffers among the tensors.
        inputs: The model's input tensors, and their places in the flattened call.
        starts: Inputs that recurrent units start from: place, row (layer and direction), axis of the units.
        finals: States that recurrent layers end with: the units of each row.
    """

    parameter_axes: dict[str, tuple[Axis, ...]]
    values: dict[Node, Any] = field(default_factory=dict)
    views: dict[Node, tuple[str, tuple[int | None, ...]]] = field(default_factory=dict)
    roles: dict[tuple[str, int], set[Role]] = field(default_factory=dict)
    consumers: list[Consumer] = field(default_factory=list)
    unknown: dict[str, int] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    blends: dict[Node, tuple[Node, ...]] = field(default_factory=dict)
    orders: dict[Node, tuple[int, ...]] = field(default_factory=dict)
    moving: set[Node] = field(default_factory=set)
    shifted: set[Node] = field(default_factory=set)
    buffers: frozenset[str] = frozenset()
    inputs: dict[Node, int] = field(default_factory=dict)
    starts: list[tuple[int, int | None, Axis]] = field(default_factory=list)
    finals: dict[Node, list[Axis]] = field(default_factory=dict)

    # ---- reading ----
    def of(self, node: Any) -> tuple[Axis, ...]:
        """The axes of a tensor-valued node."""
        return self.values[node]  # type: ignore[no-any-return]

    def shape(self, node: Node) -> tuple[int, ...]:
        """The concrete shape of a tensor-valued node."""
        return shape_of(node.meta["val"])

    def is_parameter(self, node: Any) -> bool:
        """Whether the node is a parameter or buffer, a plain view of one, or computed from some entry by entry."""
        return node in self.views or node in self.blends

    # ---- writing ----
    def role(self, node: Any, dim: int, role: Role) -> None:
        """Say how a parameter's dimension is used; ignored where the node is no view of a parameter."""
        for part in self.blends.get(node, ()):
            self.role(part, self._before(node, dim), role)
        if node not in self.views:
            return
        name, dims = self.views[node]
        original = dims[dim]
        if name in self.buffers:  # whatever a buffer does, nobody draws it anew
            role = "carried"
        if original is not None:
            self.roles.setdefault((name, original), set()).add(role)

    def consume(self, node: Node, source: Any, weight: Any, dim: int) -> None:
        """Record that ``weight`` contracts its dimension ``dim`` with the activation ``source``."""
        self.role(weight, dim, "outgoing")
        if weight in self.shifted:
            ax.mark(self.of(weight)[dim], "mixed")
        for part in self.blends.get(weight, ()):
            self.consume(node, source, part, self._before(weight, dim))
        if weight in self.views:
            name, dims = self.views[weight]
            original = dims[dim]
            if name in self.buffers:  # a fixed matrix cannot be zeroed
                ax.mark(self.of(weight)[dim], "mixed")
            if original is not None:
                self.consumers.append(Consumer(name, original, node, source))

    def _before(self, node: Node, dim: int) -> int:
        """The dimension of a permuted blend's operand that its dimension ``dim`` was, counted from the end."""
        order = self.orders.get(node)
        return dim if order is None else order[dim] - len(order)

    def opaque(self, node: Node, reason: str) -> Any:
        """Axes of a result that nothing is known about: every dimension frozen."""
        return opaque_like(node.meta.get("val"), reason)

    def freeze_inputs(self, node: Node, reason: str) -> None:
        """Freeze every axis of every tensor that goes into a node."""
        for source in node.all_input_nodes:
            for axis in flat_axes(self.values.get(source)):
                ax.freeze(axis, reason)

    # ---- walking ----
    def run(self, nodes: Iterable[Node]) -> None:
        """Apply the rules to the graph's calls, in order."""
        order = list(nodes)
        live = live_nodes(order)
        for node in order:
            if node not in live:  # attention weights that were averaged for nobody must not mark the heads
                continue
            if node.op == "placeholder" and node not in self.views:
                self.moving.add(node)
            self.moving.update([node] if self.moving.intersection(node.all_input_nodes) else ())
            if node.op == "call_function" and node not in self.values:  # a rule may know what an item of its result is
                self.values[node] = self._call(node)

    def _call(self, node: Node) -> Any:
        name = op_name(node)
        if not _has_tensor(node.meta.get("val")) and name not in ("getitem", "wrap_with_set_grad_enabled"):
            return None  # sizes, guards and other scalars
        if name in RULES:
            return RULES[name](self, node)
        self.unknown[name] = self.unknown.get(name, 0) + 1
        reason = f"the operation {name!r} has no rule"
        self.freeze_inputs(node, reason)
        return self.opaque(node, reason)


def live_nodes(nodes: Iterable[Node]) -> set[Node]:
    """The nodes that the model's output, a written tensor, or a reading of the units (``meta["read"]``) depends on."""
    live: set[Node] = set()
    for node in reversed(list(nodes)):
        schema = getattr(node.target, "_schema", None)
        if node in live or node.op == "output" or node.meta.get("read") or (schema is not None and schema.is_mutable):
            live.add(node)
            live.update(node.all_input_nodes)
    return live


def shape_of(value: Any) -> tuple[int, ...]:
    """Sizes as integers; symbolic sizes give their example value."""
    return tuple(_hint(size) for size in value.shape)


def _hint(size: Any) -> int:
    return size if isinstance(size, int) else int(size.node.hint)


def _has_tensor(value: Any) -> bool:
    if isinstance(value, Tensor):
        return True
    return isinstance(value, (tuple, list)) and any(_has_tensor(item) for item in value)


def opaque_like(value: Any, reason: str) -> Any:
    """Frozen axes in the structure of an example value."""
    if isinstance(value, Tensor):
        return tuple(ax.fresh(size, reason) for size in shape_of(value))
    if isinstance(value, (tuple, list)):
        return tuple(opaque_like(item, reason) for item in value)
    return None


def flat_axes(value: Any) -> list[Axis]:
    """All axes in a node's value, whether it is one tensor or several."""
    if not isinstance(value, tuple) or not value:
        return []
    if _is_axes(value):
        return list(value)
    return [axis for item in value for axis in flat_axes(item)]


def _is_axes(value: Sequence[Any]) -> bool:
    """One tensor's axes are a tuple of axes, i.e. atoms appear three levels down."""
    probe: Any = value
    for _ in range(3):
        if not isinstance(probe, tuple) or not probe:
            return False
        probe = probe[0]
    return isinstance(probe, ax.Atom)


def parameter_views(
    names: Mapping[Node, str], parameter_axes: Mapping[str, tuple[Axis, ...]]
) -> dict[Node, tuple[str, tuple[int | None, ...]]]:
    """The identity views of the graph's parameter placeholders; dims are counted from the end."""
    return {node: (name, tuple(range(-len(parameter_axes[name]), 0))) for node, name in names.items()}


def dtype_is_float(node: Node) -> bool:
    """Whether a node holds floating-point numbers (indices and masks carry no units)."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and (value.dtype.is_floating_point or value.dtype == torch.complex64)
