"""Recomputing a small part of the forward pass to read what no hook can see."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from pliant.errors import IllegalConfiguration
from pliant.units.export import Exported
from pliant.units.trace import op_name

__all__ = ["Hit", "Nearest", "Replay", "Rows", "extract_replay", "nearest_hook", "tensor_leaves"]

_DROPOUT = frozenset({"dropout", "feature_dropout", "alpha_dropout"})
_RANDOM = frozenset({"bernoulli", "rand", "randn", "rand_like", "randn_like", "native_dropout", "multinomial", "rrelu"})


@dataclass(frozen=True)
class Hit:
    """One tensor that one hook sees: module, input or output, and which of its flattened tensors."""

    module: str
    kind: Literal["input", "output"]
    slot: int


@dataclass(frozen=True)
class Replay:
    """The operations from one hook to a site inside the forward pass, dropout removed.

    Attributes:
        module: Name of the module whose hook feeds it (``""`` is the root).
        kind: Whether its inputs or its outputs are fed.
        slots: Which of the flattened tensors are fed, in order.
        names: Parameters and buffers that are fed after them, in order.
        graph: The subgraph as a module.
        shapes: Shapes of the fed tensors at export, for error messages.
    """

    module: str
    kind: Literal["input", "output"]
    slots: tuple[int, ...]
    names: tuple[str, ...]
    graph: GraphModule
    shapes: tuple[tuple[int, ...], ...]

    def __call__(self, call: Any, tensors: Mapping[str, Tensor]) -> Tensor:
        """The site's value for one call of the module.

        Args:
            call: What the hook saw: ``(args, kwargs)`` of the module, or its output.
            tensors: Parameters and buffers by name, as they are now.

        Raises:
            IllegalConfiguration: If the inputs have sizes that the exported graph had fixed.
        """
        leaves = tensor_leaves(call)
        fed = [leaves[slot].detach() for slot in self.slots]
        try:
            with torch.no_grad():
                result = self.graph(*fed, *(tensors[name].detach() for name in self.names))
        except RuntimeError as error:
            raise IllegalConfiguration(
                f"activations inside {self.module or 'the model'!r} are read by replaying its exported graph, which "
                f"was made for inputs of shapes {list(self.shapes)} and cannot take {[tuple(t.shape) for t in fed]}. "
                "Pass example_inputs of the shapes that occur in training."
            ) from error
        return result  # type: ignore[no-any-return]


def tensor_leaves(tree: Any) -> list[Tensor]:
    """The tensors of a nested structure, in order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


@dataclass(frozen=True)
class Rows:
    """Which rows of the activations are wanted: those that the router sends to one expert.

    Attributes:
        ids: The node that gives each row's expert.
        expert: Whose rows.
        products: The products of rows with the matrices of their experts.
    """

    ids: Node
    expert: int
    products: Container[Node]


@dataclass(frozen=True)
class Nearest:
    """The hook that is nearest to a site, and what has to be computed from there."""

    module: str
    kind: Literal["input", "output"]
    slots: Mapping[Node, int]
    reach: _Reach


def nearest_hook(exported: Exported, targets: Sequence[Node], seen: Mapping[Hit, set[Node]]) -> Nearest | None:
    """The hook from which some nodes take the fewest operations; ``None`` where none suffices.

    Args:
        exported: The exported model.
        targets: The nodes to compute, the site first.
        seen: For each hook that fires once per forward, the nodes whose value it sees.
    """
    hooks: dict[tuple[str, Literal["input", "output"]], dict[Node, int]] = {}
    for hit, nodes in seen.items():
        fed = hooks.setdefault((hit.module, hit.kind), {})
        for node in nodes:
            fed.setdefault(node, hit.slot)
    before = _ancestors(targets[0])
    best: Nearest | None = None
    for (name, when), fed in reversed(hooks.items()):  # the latest hook is the nearest: others have to be shorter
        if not before.isdisjoint(fed):
            other = _reach(exported, targets, fed, len(best.reach.inner) if best else len(before) + 2)
            if other is not None:
                best = Nearest(name, when, fed, other)
    return best


def extract_replay(
    exported: Exported,
    site: Node,
    nearest: Nearest | None,
    values: Mapping[Node, Tensor],
    rows: Rows | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> Replay | None:
    """The smallest replay that reaches ``site`` from one hook.

    Args:
        exported: The exported model.
        site: The node to compute.
        nearest: From where.
        values: The nodes' values in the observed run.
        rows: Only these rows of it. The replay is then tried on the observed run.
        state: The parameters and buffers of that run.

    Returns:
        The replay, or ``None`` where the subgraph is random or no hook suffices.
    """
    if nearest is None:
        return None
    graph = _build(exported, site, nearest.reach, rows)
    if graph is None:
        return None
    fed = nearest.reach.fed
    shapes = tuple(tuple(values[node].shape) for node in fed)
    names = tuple(exported.parameters[node] for node in nearest.reach.parameters)
    if rows is not None and state is not None:
        want = values[site][values[rows.ids] == rows.expert]
        got = graph(*(values[node] for node in fed), *(state[name] for name in names))
        if got.shape != want.shape or not torch.allclose(got, want, rtol=1e-3, atol=1e-5):
            return None
    return Replay(nearest.module, nearest.kind, tuple(nearest.slots[node] for node in fed), names, graph, shapes)


@dataclass(frozen=True)
class _Reach:
    """What has to be computed from a hook to a site, and from what."""

    inner: tuple[Node, ...]
    fed: tuple[Node, ...]
    parameters: tuple[Node, ...]
    sizes: tuple[Node, ...]


def _ancestors(site: Node) -> set[Node]:
    """Everything that a node depends on."""
    pending, seen = [site], {site}
    while pending:
        for source in pending.pop().all_input_nodes:
            if source not in seen:
                seen.add(source)
                pending.append(source)
    return seen - {site}


def _reach(exported: Exported, targets: Sequence[Node], available: Mapping[Node, int], limit: int) -> _Reach | None:
    """What leads from a hook's tensors to some nodes; ``None`` if that takes at least ``limit`` operations."""
    inner: list[Node] = []
    fed: list[Node] = []
    parameters: list[Node] = []
    sizes: list[Node] = []
    pending, seen = list(targets), set(targets)
    while pending:
        node = pending.pop()
        if node in exported.parameters:
            parameters.append(node)
        elif node in available and node is not targets[0]:
            fed.append(node)
        elif op_name(node) == "sym_size":
            sizes.append(node)
        elif node.op != "call_function" or op_name(node) in _RANDOM or len(inner) + 1 >= limit:
            return None
        else:
            inner.append(node)
            for source in node.all_input_nodes:
                if source not in seen:
                    seen.add(source)
                    pending.append(source)
    return _Reach(tuple(inner), tuple(fed), tuple(parameters), tuple(sizes)) if fed else None


def _build(exported: Exported, site: Node, reach: _Reach, rows: Rows | None = None) -> GraphModule | None:
    order = {node: place for place, node in enumerate(exported.nodes)}
    graph: Graph = Graph()
    mapped: dict[Node, Node] = {}
    for node in [*reach.fed, *reach.parameters]:
        mapped[node] = graph.placeholder(node.name)
    for node in reach.sizes:
        size = _same_size(graph, node, reach.fed, mapped)
        if size is None:
            return None
        mapped[node] = size
    is_cut = rows is not None and any(_is_grouped(node, rows) for node in reach.inner)

    def own(of: Node) -> Node:
        """The rows of the wanted expert."""
        assert rows is not None
        chosen = graph.call_function(torch.ops.aten.eq.Scalar, (mapped[rows.ids], rows.expert))
        return graph.call_function(torch.ops.aten.index.Tensor, (of, [chosen]))

    for node in sorted(reach.inner, key=order.__getitem__):
        if rows is not None and is_cut and _is_grouped(node, rows):  # nothing is computed for other experts
            matrix = graph.call_function(torch.ops.aten.select.int, (mapped[node.args[1]], 0, rows.expert))  # type: ignore[index]
            mapped[node] = graph.call_function(torch.ops.aten.mm.default, (own(mapped[node.args[0]]), matrix))  # type: ignore[index]
            continue
        if op_name(node) in _DROPOUT:
            mapped[node] = mapped[node.args[0]]  # type: ignore[index]
            continue
        like = _float_like(node, reach.fed)
        if like is not None:
            fill = [mapped.get(item, item) if isinstance(item, Node) else item for item in node.args[0]]  # type: ignore[union-attr]
            maker = getattr(torch.ops.aten, f"new_{op_name(node)}").default
            mapped[node] = graph.call_function(maker, (mapped[like], fill, *node.args[1:]))
            continue
        copied = graph.node_copy(node, mapped.__getitem__)
        if op_name(node) == "scaled_dot_product_attention" and len(copied.args) > 4:
            copied.args = (*copied.args[:4], 0.0, *copied.args[5:])
        if "dropout_p" in copied.kwargs:
            copied.kwargs = {**copied.kwargs, "dropout_p": 0.0}
        mapped[node] = copied
        if is_cut and op_name(node) == "index" and node.args[0] in exported.parameters:  # biases of the experts
            mapped[node] = own(copied)
    graph.output(mapped[site] if rows is None or is_cut else own(mapped[site]))
    return GraphModule({}, graph)


def _is_grouped(node: Node, rows: Rows) -> bool:
    """Whether a product takes sorted rows and whole stacks of matrices."""
    return node in rows.products and op_name(node).rpartition(".")[2] in (
        "grouped_mm_fallback",
        "grouped_mm",
        "_grouped_mm",
    )


def _float_like(node: Node, fed: tuple[Node, ...]) -> Node | None:
    """A fed tensor of the same floating-point type as a tensor that is made on the spot.

    The replay makes it (the zeros that a recurrent layer starts from) in the type and on the device that the model
    has by then.
    """
    if op_name(node) not in ("zeros", "ones", "full") or not node.meta["val"].dtype.is_floating_point:
        return None
    return next((source for source in fed if source.meta["val"].dtype == node.meta["val"].dtype), None)


def _same_size(graph: Graph, node: Node, fed: tuple[Node, ...], mapped: dict[Node, Node]) -> Node | None:
    """A symbolic size, read off a fed tensor that has the same one."""
    wanted = str(node.meta["val"])
    for source in fed:
        for dim, size in enumerate(source.meta["val"].shape):
            if str(size) == wanted:
                return graph.call_function(torch.ops.aten.sym_size.int, (mapped[source], dim))
    return None
