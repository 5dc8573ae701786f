"""A bound on what collapsing a network changes, from its distance to the manifold and the smaller network alone."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils import _pytree as pytree

from pliant.errors import UnsupportedError
from pliant.forward import outputs
from pliant.manifolds import error_functions, error_norms  # their rules register themselves
from pliant.manifolds.error_rules import RULES, Bounded, Known, NoBound, per_example
from pliant.manifolds.partition import Partition
from pliant.manifolds.projection import project
from pliant.manifolds.structure import TensorBlocks, block_structure, tensors_of
from pliant.units.export import export
from pliant.units.trace import op_name

__all__ = ["output_bound"]

_SAME = 1e-9
_RULES_OF = (error_functions, error_norms)


def output_bound(model: nn.Module, partition: Partition, inputs: Any) -> tuple[float | None, str]:
    """A bound on the difference of outputs between a network and the nearest one on the manifold.

    Args:
        model: The model, in float64; it is not changed.
        partition: Its blocks.
        inputs: A batch, in float64.

    Returns:
        The bound on the largest difference of any entry of an output, in evaluation mode, relative to the largest
        absolute entry of that output; or ``None`` and the reason why there is none.
    """
    wide = copy.deepcopy(model).eval()
    on = copy.deepcopy(wide)
    on.load_state_dict(project(wide, partition, "both"), strict=False)
    try:
        graph = export(wide, inputs, dynamic=False)
    except UnsupportedError as error:
        return None, str(error)
    centres, actuals = tensors_of(on), tensors_of(wide)
    everything = {**dict(wide.named_parameters()), **dict(wide.named_buffers())}
    blocks = {**_unblocked(actuals, partition), **block_structure(wide, partition)}
    values: dict[Node, Any] = {}
    for node, name in graph.parameters.items():
        own = everything[name].detach()
        values[node] = Known(centres[name].detach() if name in actuals else own, own, blocks.get(name))
    leaves = [leaf for leaf in pytree.tree_leaves((graph.args, graph.kwargs)) if isinstance(leaf, Tensor)]
    for node, leaf in zip(graph.inputs, leaves, strict=False):
        values[node] = Bounded(leaf, leaf.new_zeros(len(leaf))) if leaf.is_floating_point() else Known(leaf, leaf)
    targets = {spec.arg.name: spec.target for spec in graph.program.graph_signature.input_specs}
    for node in graph.constants:
        held = graph.program.constants.get(str(targets.get(node.name)))
        values[node] = Known(held, held)
    found: list[Any] = []
    try:
        with torch.no_grad():
            for node in graph.nodes:
                if node.op == "call_function":
                    values[node] = _step(node, values)
                elif node.op == "output":
                    found = [values[item] for item in pytree.tree_leaves(node.args) if isinstance(item, Node)]
                elif node.op == "get_attr":
                    raise NoBound(f"a subgraph ({node.target})")
    except NoBound as error:
        return None, f"no rule bounds {error}"
    results = [item for item in found if isinstance(item, (Bounded, Known)) and _is_floating(item.centre)]
    real, wanted = outputs(on, inputs), outputs(wide, inputs)
    ends = results[len(results) - len(real) :]  # buffers that the forward pass would write come first
    if len(ends) != len(real) or any(
        item.centre.shape != true.shape or not torch.allclose(item.centre, true, rtol=_SAME, atol=_SAME)
        for item, true in zip(ends, real, strict=True)
    ):
        return None, "the exported graph computes something else in evaluation mode"
    found_errors = []
    for item, output in zip(ends, wanted, strict=True):
        most = item.error if isinstance(item, Bounded) else per_example(item.actual - item.centre, item.centre)
        found_errors.append(float(most.max()) / max(float(output.abs().max()), 1e-300) if output.numel() else 0.0)
    return max(found_errors, default=0.0), ""


def _unblocked(tensors: Mapping[str, Tensor], partition: Partition) -> dict[str, TensorBlocks]:
    """Tensors without blocks of two: every entry is a block of its own."""
    return {name: TensorBlocks(name, tuple(value.shape), False, {}, partition) for name, value in tensors.items()}


def _is_floating(item: Any) -> bool:
    return isinstance(item, Tensor) and item.is_floating_point()


def _step(node: Node, values: dict[Node, Any]) -> Any:
    def at(item: Any) -> Any:
        return values[item] if isinstance(item, Node) else item

    args = [_mapped(item, at) for item in node.args]
    kwargs = {key: _mapped(item, at) for key, item in node.kwargs.items()}
    if node.target is operator.getitem:
        return args[0][args[1]] if isinstance(args[0], tuple) else _plain(node.target, args, kwargs)
    name, op = op_name(node), _out_of_place(node.target)
    tensors = [item for item in pytree.tree_leaves((args, kwargs), is_leaf=_is_value) if _is_value(item)]
    if not any(isinstance(item, Bounded) for item in tensors):
        return _plain(op, args, kwargs)
    if name in RULES:
        return RULES[name](name, op, args, kwargs)
    if not all(_is_same(item) for item in tensors):
        raise NoBound(repr(name))
    result = _of(op, args, kwargs, "centre")  # nothing has differed so far: masks, standardised inputs
    return pytree.tree_map(lambda leaf: _certain(leaf) if isinstance(leaf, Tensor) else leaf, result)


def _is_value(item: Any) -> bool:
    return isinstance(item, (Known, Bounded))


def _is_same(item: Known | Bounded) -> bool:
    if isinstance(item, Bounded):
        return not bool(item.error.any())
    return item.centre is item.actual or bool(torch.equal(item.centre, item.actual))


def _certain(leaf: Tensor) -> Known | Bounded:
    return Bounded(leaf, leaf.new_zeros(len(leaf) if leaf.ndim else 1)) if _is_floating(leaf) else Known(leaf, leaf)


def _plain(op: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
    """An operation on what is known in both networks."""
    centre, actual = (_of(op, args, kwargs, which) for which in ("centre", "actual"))
    if isinstance(centre, (tuple, list)):
        return tuple(Known(c, a) for c, a in zip(centre, actual, strict=True))
    return Known(centre, actual) if isinstance(centre, Tensor) else centre


def _of(op: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], which: str) -> Any:
    def read(item: Any) -> Any:
        return getattr(item, which if isinstance(item, Known) else "centre") if _is_value(item) else item

    return op(*[_mapped(item, read) for item in args], **{key: _mapped(item, read) for key, item in kwargs.items()})


def _mapped(item: Any, of: Callable[[Any], Any]) -> Any:
    """Lists may hold values; a tuple is what an operation with several results has returned, or a shape."""
    if isinstance(item, (list, tuple)) and not _is_value(item):
        found = [_mapped(one, of) for one in item]
        return tuple(found) if type(item) is tuple else found
    return of(item)


def _out_of_place(target: Any) -> Callable[..., Any]:
    """An operation that leaves its first argument as it is."""
    name = str(getattr(target, "overloadpacket", target)).rpartition(".")[2]
    if not name.endswith("_") or name.startswith("_"):
        return target  # type: ignore[no-any-return]

    def run(first: Any, *args: Any, **kwargs: Any) -> Any:
        return target(first.clone() if isinstance(first, Tensor) else first, *args, **kwargs)

    return run
