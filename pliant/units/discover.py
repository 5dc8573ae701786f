"""Finding unit groups: rules over the exported graph, then a group for every free atom."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from pliant.errors import IllegalConfiguration, NoEffect, UnsupportedOp
from pliant.units import axes as ax
from pliant.units import rules as _rules  # noqa: F401  (importing it registers the rules)
from pliant.units.axes import Atom, Axis
from pliant.units.depth import depths_in_graph
from pliant.units.experts import each_expert
from pliant.units.export import Exported, Inputs, as_call, export, refuse_wrapped
from pliant.units.graph import UnitGraph
from pliant.units.group import Role, Site, TensorSlice, UnitGroup
from pliant.units.inputs import check_inputs
from pliant.units.rules.conv import KERNEL
from pliant.units.rules.parametrized import freeze_coupled
from pliant.units.rules.recurrent import FINAL, is_masked_start, is_state, state_slices
from pliant.units.several import Models, Several, joined
from pliant.units.taps import find_taps
from pliant.units.trace import Trace, flat_axes, live_nodes, opaque_like, parameter_views

__all__ = ["check_call", "find_units"]

Key = tuple[str, int]
OUTPUT = "it is the model's output"
_OF_MODULE = re.compile(r"(in_proj_|[qkv]_proj_)?(weight|bias)(_[gv]|_orig|_[ih]h(_(?P<layer>l\d+(_reverse)?))?)?")
_PARAMETRIZED = re.compile(r"parametrizations\.(\w+)\.original\d*")


def find_units(model: Models, example_inputs: Any) -> UnitGraph:
    """Find the groups of interchangeable hidden units of a model, or of several that train together.

    The model's training-mode forward is exported to a graph of ATen operations; rules follow every dimension of
    every parameter through it. What can be permuted without changing the output is a unit group; everything else is
    listed in ``excluded`` with the reason. The model, its mode and the random state are left as they were.

    Args:
        model: Any ``nn.Module`` that ``torch.export`` can follow. Pass it before wrapping it in DDP or FSDP and
            before ``torch.compile``. Or several by name, ``{"actor": actor, "critic": critic}``: the names become
            prefixes, and what they share (a trunk, a tied matrix) is one group. Leave out networks that no optimizer
            trains, such as target networks.
        example_inputs: One small batch as the training loop passes it: a tensor, a tuple, or a dict of keywords; the
            inputs themselves may be nested dicts, tuples and lists of tensors. For several models, a mapping from
            their names to the inputs of each.

    Returns:
        The unit graph; ``print`` it to see what was found.

    Raises:
        IllegalConfiguration: If the model is wrapped or compiled, or rejects the example inputs.
        UnsupportedOp: If ``torch.export`` cannot follow the model; see :func:`~pliant.units.declare.declare_units`.
        NoEffect: If the model has no hidden units at all.

    Example:
        >>> import torch, pliant
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> units = pliant.find_units(model, torch.randn(3, 4))
        >>> [(group.name, group.size, group.tensors) for group in units]
        [('0', 8, ('0.weight', '0.bias', '2.weight'))]
        >>> units.excluded[("2.weight", -2)]
        "it is the model's output"
    """
    model, inputs = joined(model, example_inputs)
    refuse_wrapped(model)
    check_call(model, inputs)
    units, has_replays = _find(model, _export(model, inputs, dynamic=False))
    if has_replays:  # only these need a graph for inputs of other sizes, which takes three times as long to make
        units, _ = _find(model, _export(model, inputs, dynamic=True))
    return units


def _find(model: nn.Module, exported: Exported) -> tuple[UnitGraph, bool]:
    """The units of an exported model, and whether some are read by a replay."""
    tensors = _tensors(model)
    trace = _trace(exported, tensors)
    excluded = _close(trace, tensors)
    groups, atoms = _collect(exported, trace, tensors, excluded)
    states = {group.name: state_slices(trace, exported, atoms[group.name]) for group in groups}
    if not groups:
        reasons = sorted(set(excluded.values()))
        raise NoEffect(
            f"{_title(model)} has no hidden units that could be measured or reset. "
            f"Its parameters are excluded because: {'; '.join(reasons) or 'it has no parameters'}."
        )
    taps, replays = find_taps(model, exported, trace, groups, atoms)
    done = tuple(replace(group, tap=taps.get(group.name), state=states[group.name]) for group in groups)
    graph = UnitGraph(done, excluded, dict(trace.unknown), replays, depths_in_graph(exported, tensors))
    return graph, bool(replays)


def _title(model: nn.Module) -> str:
    parts = model.children() if isinstance(model, Several) else [model]
    return " and ".join(type(part).__name__ for part in parts)


def check_call(model: nn.Module, inputs: Inputs) -> None:
    """Refuse example inputs that cannot be those of the model, or of one of several.

    Args:
        model: The module, or several as one.
        inputs: Its inputs, as :func:`~pliant.units.several.joined` gives them.

    Raises:
        IllegalConfiguration: See :func:`~pliant.units.inputs.check_inputs`.
    """
    if isinstance(model, Several):
        for name, (args, kwargs) in as_call(inputs)[0][0].items():
            check_inputs(model.get_submodule(name), kwargs or args, f" of {name!r}")
    else:
        check_inputs(model, inputs)


def _export(model: nn.Module, inputs: Inputs, *, dynamic: bool) -> Exported:
    """Export one module, or several as one; of several, say which cannot be followed."""
    if not isinstance(model, Several):
        return export(model, inputs, dynamic=dynamic)
    try:
        return export(model, inputs, dynamic=dynamic)
    except (IllegalConfiguration, UnsupportedOp):
        for name, (args, kwargs) in as_call(inputs)[0][0].items():
            try:
                export(model.get_submodule(name), kwargs or args)
            except (IllegalConfiguration, UnsupportedOp) as error:
                raise type(error)(f"in {name!r}: {error}") from error
        raise


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and floating-point buffers by canonical name."""
    result: dict[str, Tensor] = dict(model.named_parameters())
    result.update((name, item) for name, item in model.named_buffers() if item.dtype.is_floating_point)
    return result


def _trace(exported: Exported, tensors: dict[str, Tensor]) -> Trace:
    parameter_axes = {name: tuple(ax.fresh(size) for size in tensor.shape) for name, tensor in tensors.items()}
    buffers = frozenset(name for name, tensor in tensors.items() if not isinstance(tensor, nn.Parameter))
    trace = Trace(parameter_axes, buffers=buffers)
    known = {node: name for node, name in exported.parameters.items() if name in parameter_axes}
    trace.views.update(parameter_views(known, parameter_axes))
    trace.used.update(known[node] for node in live_nodes(exported.nodes) if node in known)
    for node in exported.nodes:
        if node.op != "placeholder":
            continue
        if node in known:
            trace.values[node] = parameter_axes[known[node]]
        else:
            if node in exported.inputs and isinstance(node.meta.get("val"), Tensor):
                trace.inputs[node] = len(trace.inputs)
            reason = (
                "it is tied to the model's input (a batch, time, space or feature axis of the data)"
                if node in exported.inputs
                else "it is tied to a constant of the model"
            )
            trace.values[node] = opaque_like(node.meta.get("val"), reason)
            if node in trace.inputs and is_masked_start(node):
                units = ax.fresh(trace.shape(node)[-1])
                trace.values[node] = (*trace.values[node][:-1], units)
                trace.starts.append((trace.inputs[node], None, units))
    freeze_coupled(trace)
    trace.run(exported.nodes)
    for node in exported.nodes:
        if node.op == "output":
            for source in node.all_input_nodes:
                if source in exported.parameters:  # mutated buffers are outputs of the program, not of the model
                    continue
                if not is_state(trace, source):
                    for axis in trace.finals.get(source, []):
                        ax.freeze(axis, FINAL)
                    for axis in flat_axes(trace.values.get(source)):
                        ax.freeze(axis, OUTPUT)
    return trace


def _close(trace: Trace, tensors: dict[str, Tensor]) -> dict[Key, str]:
    """Freeze what no rule gave a role, and return the reason of every dimension with a frozen part."""
    trace.freeze_unused()
    for axes in trace.parameter_axes.values():  # resolving one axis may coarsen, and freeze, an atom of another
        for axis in axes:
            ax.resolve(axis)
    excluded: dict[Key, str] = {}
    for name, axes in trace.parameter_axes.items():
        for dim, axis in zip(range(-len(axes), 0), axes, strict=True):
            reason = next((atom.frozen for atom in ax.leaves(axis) if atom.frozen), None)
            if tensors[name].shape[dim] == 1 and reason not in (OUTPUT, KERNEL):
                reason = "it has a single entry"
            if reason is not None:
                excluded[name, dim] = reason
    return excluded


def _collect(
    exported: Exported, trace: Trace, tensors: dict[str, Tensor], excluded: dict[Key, str]
) -> tuple[list[UnitGroup], dict[str, Atom]]:
    members: dict[int, tuple[Atom, list[tuple[Key, Axis]]]] = {}
    for name, axes in trace.parameter_axes.items():
        for dim, axis in zip(range(-len(axes), 0), axes, strict=True):
            for atom in ax.leaves(axis):
                if atom.frozen is None and atom.size > 1:
                    members.setdefault(id(atom), (atom, []))[1].append(((name, dim), axis))
    groups: list[UnitGroup] = []
    atoms: dict[str, Atom] = {}
    for atom, found in members.values():
        group = _group(trace, atom, found, atoms)
        if isinstance(group, str):
            for key, _ in found:
                excluded.setdefault(key, group)
            continue
        for own in each_expert(group, atom, exported, trace):
            groups.append(own)
            atoms[own.name] = atom
    return groups, atoms


def _group(trace: Trace, atom: Atom, found: list[tuple[Key, Axis]], taken: Iterable[str]) -> UnitGroup | str:
    slices = []
    ambiguous = False
    for (name, dim), axis in found:
        roles = trace.roles_of(name, dim, atom)
        ambiguous |= len(roles) > 1
        role: Role = next(kind for kind in ("incoming", "outgoing", "carried") if kind in roles)
        if {"incoming", "outgoing"} <= roles:
            role = "both"
        try:
            table = ax.positions(axis, atom)
        except ValueError as error:
            return str(error)
        slices.append(TensorSlice(name, dim, role, tuple(tuple(row) for row in table)))
    incoming = [piece for piece in slices if piece.role in ("incoming", "both")]
    if not incoming:
        return "nothing in the model produces it (it has no incoming weights)"
    outgoing = [piece for piece in slices if piece.role in ("outgoing", "both")]
    site = _site(atom, [axis for _, axis in found], has_outgoing=bool(outgoing))
    computed = [piece for piece in incoming if (piece.name, piece.dim) not in trace.learned]
    if not computed:
        return "its values are learned constants, which are not computed from the data"
    produced = [axis for (name, dim), axis in found if "incoming" in trace.roles_of(name, dim, atom)]
    if site == "hidden" and not outgoing and all(_is_part(axis, atom) for axis in produced):
        return "it numbers the parts that other units consist of, and nothing reads it by itself"
    if len(slices) == 1 and slices[0].role == "incoming":
        return "its entries are summed or averaged, and nothing reads one of them by itself"
    preserves = bool(outgoing) and "mixed" not in atom.marks and not ambiguous
    matrix = next((piece for piece in computed if len(trace.parameter_axes[piece.name]) > 1), computed[0])
    name = _name(matrix.name, site, set(taken), trace.parameter_axes)
    return UnitGroup(name, atom.size, tuple(slices), site, None, preserves)


def _site(atom: Atom, axes: Iterable[Axis], *, has_outgoing: bool) -> Site:
    """What kind of units an atom is.

    Dimensions that a product of two activations contracts or keeps are inside heads where there are heads, or where
    no weight reads them (queries and keys). Others are hidden units whose samples such a product mixes: the features
    of a graph convolution, the values of a single head, a recurrent layer that attention looks back at.
    """
    for kind in ("heads", "experts", "residual"):
        if kind in atom.marks:
            return kind
    if "head_dims" not in atom.marks:
        return "hidden"
    beside = (other for axis in axes for segment in ax.resolve(axis) if atom in segment for other in segment)
    return "head_dims" if not has_outgoing or any("heads" in other.marks for other in beside) else "hidden"


def _is_part(axis: Axis, atom: Atom) -> bool:
    """Whether an atom is a factor beside another free one wherever it occurs (the pieces of a maxout unit)."""
    return all(
        any(other is not atom and other.frozen is None and other.size > 1 for other in segment)
        for segment in ax.resolve(axis)
        if atom in segment
    )


def _name(tensor: str, site: Site, taken: set[str], known: Container[str]) -> str:
    module, _, leaf = _PARAMETRIZED.sub(r"\1", tensor).rpartition(".")
    found = _OF_MODULE.fullmatch(leaf)
    base = module if module and found else tensor
    if found and any(f"{module}.weight_ih_{other}" in known for other in ("l1", "l0_reverse")):
        base = f"{module}.{found['layer']}"
    suffix = "" if site == "hidden" else f":{site}"
    name, count = base + suffix, 1
    while name in taken:
        count += 1
        name = f"{base}#{count}{suffix}"
    return name
