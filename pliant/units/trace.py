"""Following axes through an exported graph: the context in which the op rules run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.fx import Node

from pliant.units import axes as ax
from pliant.units.axes import Atom, Axis
from pliant.units.group import Role

__all__ = ["RULES", "Consumer", "Key", "Trace", "View", "arg", "live_nodes", "rule"]

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
    if name.startswith("__"):
        return name  # `__and__` is no in-place op
    name = name.rstrip("_") if not name.startswith("_") else "_" + name[1:].rstrip("_")
    return name if namespace == "aten" else f"{namespace}.{name}"


Key = tuple[str, int]
View = tuple[frozenset[Key], ...]


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
        views: Nodes that are computed from parameters alone (views, cuts, joins, element-wise combinations), and for
            each of their dimensions the parameter dimensions ``(name, dim from the end)`` that it came from.
        uses: ``(name, dim from the end)`` to the roles that rules gave it, each with the axis that was used so: of
            a fused weight that is cut or viewed, every part has its own role.
        consumers: Where units are consumed by weights, in graph order.
        unknown: Ops met that no rule explains, with the number of times.
        used: Parameters and buffers that the graph reads.
        moving: Nodes that depend on more than parameters and buffers.
        learned: Dimensions of parameters that stand where activations do.
        shifted: What is computed from parameters and is not zero where they are (``exp(w)``, ``1 + w``): zeroed
            outgoing weights do not silence what they consume.
        routed: Tensors in which experts are stacked: name to the dimension of the experts, counted from the end, and
            the node that says which expert each row of the activations goes to.
        products: Nodes that multiply rows by the matrices of their experts.
        buffers: Names of the buffers among the tensors.
        inputs: The model's input tensors, and their places in the flattened call.
        starts: Inputs that recurrent units start from: place, row (layer and direction), axis of the units.
        finals: States that recurrent layers end with: the units of each row.
    """

    parameter_axes: dict[str, tuple[Axis, ...]]
    values: dict[Node, Any] = field(default_factory=dict)
    views: dict[Node, View] = field(default_factory=dict)
    uses: dict[Key, list[tuple[Role, Axis]]] = field(default_factory=dict)
    consumers: list[Consumer] = field(default_factory=list)
    unknown: dict[str, int] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    moving: set[Node] = field(default_factory=set)
    learned: set[Key] = field(default_factory=set)
    shifted: set[Node] = field(default_factory=set)
    routed: dict[str, set[tuple[int, Node]]] = field(default_factory=dict)
    products: set[Node] = field(default_factory=set)
    buffers: frozenset[str] = frozenset()
    inputs: dict[Node, int] = field(default_factory=dict)
    starts: list[tuple[int, int | None, Axis]] = field(default_factory=list)
    finals: dict[Node, list[Axis]] = field(default_factory=dict)
    _place: dict[Node, int] = field(default_factory=dict)
    _past: dict[Node, int] = field(default_factory=dict)  # bit i of an entry: the node depends on the i-th one
    _branch: dict[Node, int] = field(default_factory=dict)  # the same, with a contraction in between

    # ---- reading ----
    def of(self, node: Any) -> tuple[Axis, ...]:
        """The axes of a tensor-valued node."""
        return self.values[node]  # type: ignore[no-any-return]

    def shape(self, node: Node) -> tuple[int, ...]:
        """The concrete shape of a tensor-valued node."""
        return shape_of(node.meta["val"])

    def is_parameter(self, node: Any) -> bool:
        """Whether the node is a parameter or buffer, or computed from such alone."""
        return node in self.views

    def branches(self, newer: Node, older: Node) -> bool:
        """Whether ``newer`` was computed from ``older`` by way of a matrix product, convolution or attention."""
        return bool(self._branch.get(newer, 0) >> self._place[older] & 1)

    def roles_of(self, name: str, dim: int, atom: Atom) -> set[Role]:
        """The roles in which the units of ``atom`` were used on one dimension of a parameter."""
        top = atom.root()
        return {role for role, axis in self.uses.get((name, dim), ()) if any(top is leaf for leaf in ax.leaves(axis))}

    # ---- writing ----
    def role(self, node: Any, dim: int, role: Role) -> None:
        """Say how a parameter's dimension is used; ignored where the node is not computed from parameters alone."""
        if node not in self.views:
            return
        axis = self.of(node)[dim]
        for key in self.views[node][dim]:  # whatever a buffer does, nobody draws it anew
            self.uses.setdefault(key, []).append(("carried" if key[0] in self.buffers else role, axis))

    def learn(self, node: Any) -> None:
        """Say that a parameter stands where activations do (class token, learned queries): it produces its entries."""
        for dim, keys in enumerate(self.views.get(node, ())):
            self.role(node, dim, "incoming")
            self.learned |= keys

    def consume(self, node: Node, source: Any, weight: Any, dim: int) -> None:
        """Record that ``weight`` contracts its dimension ``dim`` with the activation ``source``."""
        self.role(weight, dim, "outgoing")
        keys = sorted(self.views.get(weight, {dim: ()})[dim])
        if keys and (weight in self.shifted or all(name in self.buffers for name, _ in keys)):
            ax.mark(self.of(weight)[dim], "mixed")  # a fixed matrix, or a function of one, cannot be zeroed
        for name, original in keys:
            self.consumers.append(Consumer(name, original, node, source))

    def route(self, weight: Any, dim: int, rows: Any) -> None:
        """Say that rows of activations choose entries of a dimension of ``weight``: those of their expert."""
        for name, original in self.views[weight][dim] if weight in self.views else ():
            self.routed.setdefault(name, set()).add((original, rows))

    def multiply(self, node: Node, *operands: Any) -> None:
        """Note a product with matrices of experts, looked up for each row."""
        names = {name for operand in operands for keys in self.views.get(operand, ()) for name, _ in keys}
        if not names.isdisjoint(self.routed):
            self.products.add(node)

    def derive(self, node: Node, *sources: Any) -> None:
        """Note that ``node`` is an element-wise combination of ``sources``, if those are parameters, all of them."""
        if not sources or not all(source in self.views for source in sources):
            return
        rank = max(len(self.views[source]) for source in sources)
        dims: list[frozenset[Key]] = [frozenset()] * rank
        for source in sources:
            for back, keys in enumerate(reversed(self.views[source]), start=1):
                dims[-back] |= keys
        self.views[node] = tuple(dims)
        if self.shifted.intersection(sources):
            self.shifted.add(node)

    def freeze_unused(self) -> None:
        """Freeze every part of every parameter that no rule gave a role."""
        for name, axes in self.parameter_axes.items():
            reason = "no rule says how it is used" if name in self.used else "it is not used in the forward pass"
            for dim, axis in zip(range(-len(axes), 0), axes, strict=True):
                for atom in ax.leaves(axis):
                    if atom.size > 1 and not self.roles_of(name, dim, atom):
                        atom.freeze(reason)

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
        for place, node in enumerate(order):
            self._place[node] = place
            past = branch = 0
            for source in () if op_name(node) in _BLANK else node.all_input_nodes:
                past |= self._past.get(source, 0) | (1 << self._place[source])
                branch |= self._branch.get(source, 0)
            self._past[node] = past
            self._branch[node] = branch | (past if op_name(node) in _CONTRACTIONS else 0)
            if node.op == "placeholder" and node not in self.views:
                self.moving.add(node)
            self.moving.update([node] if self.moving.intersection(node.all_input_nodes) else ())
            if node.op == "call_function" and node not in self.values:  # a rule may know what an item of its result is
                # attention weights that were averaged for nobody must not mark the heads
                self.values[node] = self._call(node) if node in live else self.opaque(node, "it is not used")

    def _call(self, node: Node) -> Any:
        name = op_name(node)
        if not _has_tensor(node.meta.get("val")) and name != "getitem":
            return None  # sizes, guards and other scalars
        if name in RULES:
            return RULES[name](self, node)
        self.unknown[name] = self.unknown.get(name, 0) + 1
        reason = f"the operation {name!r} has no rule"
        self.freeze_inputs(node, reason)
        return self.opaque(node, reason)


_SIZES = frozenset(["sym_size", "sym_stride", "sym_numel", "sym_storage_offset", "_assert_tensor_metadata"])


_BLANK = frozenset(["zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "empty_like"])
"""What has the shape of its operand does not depend on its values."""

_CONTRACTIONS = frozenset(
    [
        *("linear", "addmm", "baddbmm", "mm", "bmm", "matmul", "einsum", "scaled_dot_product_attention"),
        *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution"),
    ]
)


def live_nodes(nodes: Iterable[Node]) -> set[Node]:
    """The nodes that the model's output, a written tensor, or a reading of the units (``meta["read"]``) depends on.

    Reading a tensor's size is no use of it.
    """
    live: set[Node] = set()
    for node in reversed(list(nodes)):
        schema = getattr(node.target, "_schema", None)
        if node in live or node.op == "output" or node.meta.get("read") or (schema is not None and schema.is_mutable):
            live.add(node)
            if op_name(node) not in _SIZES:
                live.update(node.all_input_nodes)
    return live


def shape_of(value: Any) -> tuple[int, ...]:
    """Sizes as integers; symbolic sizes give their example value."""
    return tuple(_hint(size) for size in value.shape)


def _hint(size: Any) -> int:
    if isinstance(size, int):
        return size
    if size.node.hint is not None:
        return int(size.node.hint)
    # how many entries a mask selects depends on the data: each such number stands for a size of its own
    symbols = {symbol: _SELECTED + sum(map(ord, str(symbol))) for symbol in size.node.expr.free_symbols}
    backed = {symbol: size.node.shape_env.size_hint(symbol) for symbol in symbols if not str(symbol).startswith("u")}
    return int(size.node.expr.subs({**symbols, **backed}))


_SELECTED = 1_000_003


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


def parameter_views(names: Mapping[Node, str], parameter_axes: Mapping[str, tuple[Axis, ...]]) -> dict[Node, View]:
    """The identity views of the graph's parameter placeholders; dims are counted from the end."""
    return {
        node: tuple(frozenset([(name, dim)]) for dim in range(-len(parameter_axes[name]), 0))
        for node, name in names.items()
    }
