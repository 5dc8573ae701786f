r"""A copy of a model with other widths: new empty parameters, and the numbers in the modules that speak of widths.

PyTorch's layers say in known attributes how wide they are. A module of the user's own may keep widths and head counts
in attributes of any name; those whose name says so and whose value is a width of its own tensors are changed, too.
Nothing depends on that guess being right: who asks for the copy proves it by running it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn

from pliant.manifolds.structure import is_group_axis
from pliant.units import UnitGraph
from pliant.units.export import canonical_names

__all__ = ["new_shapes", "resized"]

_WIDTH_WORDS = ("dim", "width", "embed", "embd", "hidden", "size", "features", "channels", "inner", "model", "planes")
_HEAD_WIDTHS = ("head_dim", "head_size", "dim_head", "d_head", "dim_per_head", "d_kv", "key_value_proj_dim")
_NOT_WIDTHS = (
    "vocab",
    "patch",
    "model_dim",
    "image",
    "kernel",
    "layers",
    "position",
    "batch",
    "groups",
)


def new_shapes(model: nn.Module, units: UnitGraph, counts: Mapping[str, Sequence[float]]) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors when every unit is taken ``counts[group][unit]`` times.

    Args:
        model: The model.
        units: Its unit graph.
        counts: Group name to the number of copies of each unit, ``[U]``; a share where copies are merged.
    """
    per_place: dict[tuple[str, int], Tensor] = {}
    canonical = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, number in counts.items():
        for piece in units[name].slices:
            key = (piece.name, piece.dim)
            each = per_place.setdefault(key, torch.ones(canonical[piece.name].shape[piece.dim], dtype=torch.float64))
            where = piece.positions()
            each[where.flatten()] *= torch.tensor(number, dtype=torch.float64)[:, None].expand(where.shape).flatten()
    result = {name: list(tensor.shape) for name, tensor in canonical.items()}
    for (name, dim), each in per_place.items():
        result[name][dim] = round(float(each.sum()))
    return {name: tuple(shape) for name, shape in result.items()}


def resized(
    model: nn.Module,
    units: UnitGraph,
    shapes: Mapping[str, tuple[int, ...]],
    sizes: Mapping[str, int],
) -> nn.Module:
    """A copy of a model with empty tensors of other shapes, and modules that agree with them.

    Args:
        model: The model; it is not changed.
        units: Its unit graph.
        shapes: Canonical tensor name to its new shape.
        sizes: Group name to its new number of units.
    """
    wide = copy.deepcopy(model)
    names = canonical_names(wide)
    made: dict[str, Tensor] = {}
    for prefix, module in wide.named_modules():
        for store in (module._parameters, module._buffers):
            for leaf, tensor in list(store.items()):
                name = names.get(f"{prefix}.{leaf}" if prefix else leaf)
                if tensor is None or name is None or shapes[name] == tuple(tensor.shape):
                    continue
                if name not in made:
                    empty = tensor.detach().new_zeros(shapes[name])
                    is_trained = isinstance(tensor, nn.Parameter)
                    made[name] = nn.Parameter(empty, tensor.requires_grad) if is_trained else empty
                store[leaf] = made[name]
    heads = {g.name: (g.size, sizes.get(g.name, g.size)) for g in units if g.site in ("heads", "head_dims")}
    whole = _Widths(model, "", model, units, shapes, sizes, heads)
    for (prefix, old), module in zip(model.named_modules(), wide.modules(), strict=True):
        if (
            isinstance(module, (nn.LayerNorm, nn.RMSNorm))
            and module.weight is None
            and len(module.normalized_shape) == 1
        ):
            module.normalized_shape = (whole.of("width", module.normalized_shape[0]),)  # nothing of its own says it
            continue
        _adapt(module, _Widths(model, prefix, old, units, shapes, sizes, heads))
    configs = {id(config): config for module in wide.modules() if _is_config(config := getattr(module, "config", None))}
    for config in configs.values():  # the modules of one model share one
        _adapt_numbers(vars(config), whole)
    return wide


class _Widths:
    """What the numbers of one module may mean: old width to new, old number of heads to new."""

    def __init__(
        self,
        model: nn.Module,
        prefix: str,
        module: nn.Module,
        units: UnitGraph,
        shapes: Mapping[str, tuple[int, ...]],
        sizes: Mapping[str, int],
        heads: Mapping[str, tuple[int, int]],
    ) -> None:
        start = f"{prefix}." if prefix else ""
        own = dict(module.named_parameters(prefix=prefix))
        self.sizes: dict[int, set[int]] = {}
        for name, tensor in own.items():
            for before, after in zip(tensor.shape, shapes.get(name, tensor.shape), strict=True):
                if before != after:
                    self.sizes.setdefault(before, set()).add(after)
        self.heads: dict[int, set[int]] = {}  # of nested groups, a tensor shows the product: query heads
        own_groups = [g for g in units if g.name in heads and any(p.name.startswith(start) for p in g.slices)]
        self.dims: dict[int, set[int]] = {}
        for group in own_groups:
            if group.site == "head_dims":
                before, after = heads[group.name]
                self.dims.setdefault(before, set()).add(after)
        for place in {p.name for g in own_groups for p in g.slices if p.name.startswith(start)}:
            nested = [heads[g.name] for g in own_groups if g.site == "heads" and place in g.tensors]
            self.heads.setdefault(prod(a for a, _ in nested), set()).add(prod(b for _, b in nested))
        weight = f"{start}weight"
        axes = [
            group
            for group in units
            for piece in group.slices
            if piece.name == weight and is_group_axis(model, weight, group, piece)
        ]
        self.num_groups = sizes.get(axes[0].name, axes[0].size) if axes else None

    def of(self, name: str, value: int) -> int:
        """The new value of an attribute; the old one where nothing says that it is a width."""
        low = name.lower()
        if any(word in low for word in _HEAD_WIDTHS) and low != "all_head_size":
            return self._one(self.dims, value)
        if low.endswith("groups") and "head" not in low and "key_value" not in low:
            return value
        if "head" in low and not any(word in low for word in ("dim", "size", "layer")):
            return self._one(self.heads, value)
        if any(word in low for word in _NOT_WIDTHS):
            return value
        if any(word in low for word in _WIDTH_WORDS):
            return self._one(self.sizes, value)
        return value

    @staticmethod
    def _one(table: Mapping[int, set[int]], value: int) -> int:
        found = table.get(value, set())
        return next(iter(found)) if len(found) == 1 else value


def _adapt(module: nn.Module, widths: _Widths) -> None:
    weight = getattr(module, "weight", None)
    shape = tuple(weight.shape) if isinstance(weight, Tensor) else ()
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, nn.Bilinear):
        module.out_features, module.in1_features, module.in2_features = shape
    elif isinstance(module, nn.modules.conv._ConvNd):
        _adapt_conv(module, widths)
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        module.embedding_dim = shape[1]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = shape[0]
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        known = weight if weight is not None else module.running_mean
        module.num_features = len(known) if known is not None else module.num_features
    elif isinstance(module, nn.GroupNorm) and shape:
        is_by_channel = module.num_groups == module.num_channels
        module.num_channels = shape[0]
        module.num_groups = shape[0] if is_by_channel else module.num_groups
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and shape:
        module.normalized_shape = shape
    elif isinstance(module, nn.MultiheadAttention):
        module.embed_dim = module.out_proj.weight.shape[0]
        module.num_heads = widths.of("num_heads", module.num_heads)
        keys, values = module.k_proj_weight, module.v_proj_weight
        module.kdim = module.embed_dim if keys is None else keys.shape[1]
        module.vdim = module.embed_dim if values is None else values.shape[1]
    elif isinstance(module, nn.RNNBase):
        module.hidden_size = cast(Tensor, module.weight_hh_l0).shape[1]
        module.input_size = cast(Tensor, module.weight_ih_l0).shape[1]
        module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
    else:
        _adapt_other(module, widths, shape)


def _adapt_conv(module: nn.modules.conv._ConvNd, widths: _Widths) -> None:
    shape = module.weight.shape
    if module.groups > 1:
        module.groups = widths.num_groups or module.groups
    inside, outside = (shape[0], shape[1]) if module.transposed else (shape[1], shape[0])
    module.in_channels = inside if module.transposed else inside * module.groups
    module.out_channels = outside * module.groups if module.transposed else outside


def _adapt_other(module: nn.Module, widths: _Widths, shape: tuple[int, ...]) -> None:
    """Attributes of a module that PyTorch does not know."""
    _adapt_numbers(vars(module), widths)
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # of Hugging Face: inputs x outputs
        vars(module).update(nx=shape[0], nf=shape[1])


def _is_config(config: Any) -> bool:
    return type(config).__module__.startswith("transformers.")


def _adapt_numbers(values: dict[str, Any], widths: _Widths) -> None:
    for name, value in list(values.items()):
        if type(value) is int and not name.startswith("_"):
            changed = widths.of(
                {"n_head": "num_heads", "nhead": "num_heads", "n_heads": "num_heads"}.get(name, name), value
            )
            if changed != value:
                values[name] = changed
