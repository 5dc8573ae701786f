"""How far each tensor is from the model's output, counted in layers: what "the last layers" of a network are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from torch import Tensor, nn
from torch.fx import Node

from pliant.units.export import Exported

__all__ = ["depths_by_order", "depths_in_graph", "layer_types", "module_of"]


def module_of(name: str) -> str:
    """The name of the module that owns a tensor; of a parametrized one, the module that it parametrizes.

    Example:
        >>> module_of("head.parametrizations.weight.original0"), module_of("scale")
        ('head', '')
    """
    return name.partition(".parametrizations.")[0] if ".parametrizations." in name else name.rpartition(".")[0]


def layer_types(model: nn.Module, names: Iterable[str]) -> dict[str, type[nn.Module]]:
    """Tensor name to the type of the module that owns it (of a parametrized one: the module itself).

    Example:
        >>> layer_types(nn.Sequential(nn.Linear(2, 3)), ["0.weight"])
        {'0.weight': <class 'torch.nn.modules.linear.Linear'>}
    """
    return {name: type(model.get_submodule(module_of(name))) for name in names}


def depths_in_graph(exported: Exported, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Tensor name to the number of layers with weights that follow it on the longest way to an output.

    0 is the output layer, or one of several (an actor's and a critic's), with its bias. A norm counts as a part of the
    layer before it, and a counter as a part of its module. What is used more than once counts where it is used last,
    and what no output depends on is left out.

    Args:
        exported: The exported model.
        tensors: Its parameters and floating-point buffers by canonical name.
    """
    computed: dict[Node, frozenset[str]] = {}  # what does not depend on the data, and the tensors that it is made of
    from_data = set(exported.inputs)
    for node in exported.nodes:
        if node in exported.parameters:
            computed[node] = frozenset({exported.parameters[node]} & set(tensors))
        elif any(source in from_data for source in node.all_input_nodes):
            from_data.add(node)
        elif node not in from_data:
            computed[node] = frozenset().union(*(computed.get(source, ()) for source in node.all_input_nodes))

    def used_by(node: Node) -> frozenset[str]:
        return frozenset().union(*(computed.get(source, ()) for source in node.all_input_nodes))

    def is_layer(node: Node) -> bool:
        return node in from_data and any(_is_matrix(tensors[name], 0) for name in used_by(node))

    height: dict[Node, float] = {}
    for node in reversed(exported.nodes):
        ways = [height[user] + is_layer(user) for user in node.users]
        height[node] = 0 if node.op == "output" else max(ways, default=-math.inf)
    found: dict[str, int] = {}
    for node in exported.nodes:
        if node in from_data and node.op != "output" and height[node] >= 0:
            for name in used_by(node):
                found[name] = min(found.get(name, int(height[node])), int(height[node]))
    modules = {module_of(name): depth for name, depth in found.items()}
    counters = [name for name in exported.parameters.values() if name not in tensors and module_of(name) in modules]
    ordered = {name: found[name] for name in tensors if name in found}
    return ordered | {name: modules[module_of(name)] for name in counters}


def depths_by_order(tensors: Mapping[str, Tensor], num_members: int | None = None) -> dict[str, int]:
    """The same from the order in which the model's layers were registered, for units that were declared by hand.

    Args:
        tensors: Parameters and buffers by canonical name, in order.
        num_members: S for a stack of members, else ``None``.

    Example:
        >>> depths_by_order(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1)).state_dict())
        {'2.bias': 0, '2.weight': 0, '1.bias': 1, '1.weight': 1, '0.bias': 1, '0.weight': 1}
    """
    lead = 0 if num_members is None else 1
    layers: dict[str, None] = {}
    found: dict[str, int] = {}
    weighted = {module_of(name) for name, tensor in tensors.items() if _is_matrix(tensor, lead)}
    for name in reversed(list(tensors)):
        module = module_of(name)
        if module in weighted:
            layers[module] = None
        found[name] = len(layers) - (module in weighted)
    return found


def _is_matrix(tensor: Tensor, lead: int) -> bool:
    return tensor.ndim - lead >= 2
