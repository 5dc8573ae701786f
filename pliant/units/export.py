"""From a module to an ATen graph with parameter names: ``torch.export`` with its traps kept shut."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.utils import _pytree as pytree

from pliant.errors import IllegalConfiguration, UnsupportedOp
from pliant.quiet import unrecorded
from pliant.units.call import call_with, distinct
from pliant.units.layers import expose_layers, refusing_packed

__all__ = [
    "Exported",
    "as_call",
    "canonical_names",
    "export",
    "grouped_experts",
    "model_outputs",
    "plain_attention",
    "refuse_wrapped",
    "training_mode",
]

Inputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]

_WRAPPERS = {
    "DistributedDataParallel": "find the units of the plain model first, then wrap it in DistributedDataParallel",
    "FullyShardedDataParallel": "find the units of the plain model before sharding it; names survive",
    "DataParallel": "pass the plain model (`model.module`) instead",
}


@dataclass(frozen=True)
class Exported:
    """An exported graph and who its placeholders are.

    Attributes:
        nodes: The graph's nodes, in order.
        program: The exported program itself.
        parameters: Placeholder to canonical parameter or buffer name.
        inputs: The user's input placeholders, in the order of the flattened call.
        constants: Placeholders of tensors that are neither.
        args: Positional inputs of the call.
        kwargs: Keyword inputs of the call.
    """

    nodes: tuple[Node, ...]
    program: ExportedProgram
    parameters: dict[Node, str]
    inputs: tuple[Node, ...]
    constants: tuple[Node, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def as_call(example_inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of ``model(...)``.

    Args:
        example_inputs: A tensor, a tuple of positional inputs, or a mapping of keyword inputs.
    """
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Every name of every parameter and buffer, mapped to the first name of the same tensor (tied weights)."""
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    for source in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
        for name, tensor in source:
            names[name] = first.setdefault(id(tensor), name)
    return names


def refuse_wrapped(model: nn.Module, *, sharded: bool = False) -> None:
    """Refuse modules whose export would fail, or silently break them, before it is tried.

    Args:
        model: The model.
        sharded: Accept modules on which ``fully_shard`` was called: nothing will be exported.

    Raises:
        IllegalConfiguration: For DDP, FSDP and compiled modules; the message names the order that works.
    """
    for name, module in model.named_modules():
        kinds = {cls.__name__ for cls in type(module).__mro__}
        where = f"submodule {name!r}" if name else "the model"
        if "OptimizedModule" in kinds or getattr(module, "_compiled_call_impl", None) is not None:
            raise IllegalConfiguration(
                f"{where} is compiled: hooks added after torch.compile never fire. "
                "Call pliant.attach (or find_units) on the plain model first, and torch.compile afterwards."
            )
        for kind, advice in _WRAPPERS.items():
            if kind in kinds:
                raise IllegalConfiguration(f"{where} is wrapped in {kind}: {advice}.")
        if "FSDPModule" in kinds and not sharded:
            raise IllegalConfiguration(f"{where} is sharded by fully_shard: {_WRAPPERS['FullyShardedDataParallel']}.")


@contextlib.contextmanager
def training_mode(model: nn.Module, training: bool = True) -> Iterator[None]:
    """Put every module in training (or evaluation) mode and restore each one's own flag afterwards."""
    flags = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Keep ``nn.TransformerEncoder`` and ``nn.MultiheadAttention`` off their fused inference path."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def grouped_experts(model: nn.Module) -> Iterator[None]:
    """Let Hugging Face's stacked experts compute grouped products: a loop over those that the data chose has no graph.

    The function is the same, to rounding; the implementation that the model was set to comes back.
    """
    found: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    configs = {id(item): item for item in found if getattr(item, "_experts_implementation", None) == "eager"}
    for config in configs.values():
        config._experts_implementation = "grouped_mm"
    try:
        yield
    finally:
        for config in configs.values():
            config._experts_implementation = "eager"


@contextlib.contextmanager
def _no_distribution_checks() -> Iterator[None]:
    """Argument validation of ``torch.distributions`` branches on data, which export cannot follow."""
    before = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


_STATE = frozenset(["past_key_values", "mems", "encoder_last_hidden_state", "router_logits", "encoder_router_logits"])


def model_outputs(output: Any) -> list[Tensor]:
    """The tensors of a model's output that are its function, in order.

    Left out is what a model hands back for its own later use: caches of keys and values, and the entries
    ``past_key_values``, ``mems``, ``encoder_last_hidden_state`` and ``router_logits`` of a Hugging Face output. They
    follow a permutation of hidden units as the units themselves do. Hidden states and attention maps are only in an
    output that was asked for them, so they count.

    Args:
        output: A tensor, or any nesting of tuples, lists, mappings and output dataclasses.

    Example:
        >>> model_outputs({"logits": torch.zeros(2), "past_key_values": (torch.ones(3),)})
        [tensor([0., 0.])]
    """
    if isinstance(output, Mapping):
        return model_outputs([value for key, value in output.items() if key not in _STATE])
    if isinstance(output, (tuple, list)):
        return [leaf for item in output for leaf in model_outputs(item)]
    if any(cls.__name__ == "Cache" and cls.__module__.startswith("transformers.") for cls in type(output).__mro__):
        return []
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


@contextlib.contextmanager
def _outputs_only(model: nn.Module) -> Iterator[None]:
    """Reduce the output to :func:`model_outputs` for a while: export refuses objects that it does not know."""
    handle = model.register_forward_hook(lambda _, __, output: tuple(model_outputs(output)))
    try:
        yield
    finally:
        handle.remove()


def _inline(graph_module: torch.fx.GraphModule) -> None:
    """Put the bodies of ``with torch.no_grad():`` and ``with torch.autocast(...):`` back where they were.

    Export wraps them in higher-order operations over a subgraph; what they say about gradients and precision does
    not matter to the axes, and a flat graph is all that the rules, taps and replays have to understand.
    """
    graph, changed = graph_module.graph, False
    for node in list(graph.nodes):
        if node.op != "call_function" or str(getattr(node.target, "__name__", "")) not in _WRAPPED:
            continue
        at = next(i for i, item in enumerate(node.args) if _subgraph(graph_module, item) is not None)
        body = _subgraph(graph_module, node.args[at])
        _inline(body)
        inside: dict[Node, Any] = {}
        inputs = iter(node.args[at + 1 :])
        with graph.inserting_before(node):
            for inner in body.graph.nodes:
                if inner.op == "placeholder":
                    inside[inner] = next(inputs)
                elif inner.op != "output":
                    inside[inner] = graph.node_copy(inner, inside.__getitem__)
        results = torch.fx.node.map_arg(next(iter(reversed(body.graph.nodes))).args[0], inside.__getitem__)
        for user in list(node.users):
            user.replace_all_uses_with(results[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(node)
        changed = True
    if changed:
        for node in list(graph.nodes):
            if node.op == "get_attr" and not node.users:
                graph.erase_node(node)
        graph.lint()
        graph_module.recompile()


_WRAPPED = frozenset(["wrap_with_set_grad_enabled", "wrap_with_autocast"])


def _subgraph(owner: torch.fx.GraphModule, item: Any) -> Any:
    if not isinstance(item, Node) or item.op != "get_attr":
        return None
    found = getattr(owner, str(item.target), None)
    return found if isinstance(found, torch.fx.GraphModule) else None


def export(model: nn.Module, example_inputs: Inputs, *, dynamic: bool = True) -> Exported:
    """Export the model's training-mode forward.

    Parameters, buffers, training flags and the random state are left as they were.

    Args:
        model: The model.
        example_inputs: Its inputs.
        dynamic: Whether sizes that the graph does not fix are exported as dynamic, so that it can be replayed on other
            batch sizes.

    Raises:
        IllegalConfiguration: For wrapped modules, and when the model itself rejects the example inputs.
        UnsupportedOp: When ``torch.export`` cannot follow the model (data-dependent control flow).
    """
    refuse_wrapped(model)
    args, kwargs = distinct(as_call(example_inputs))
    with refusing_packed(model):
        _check_runs(model, args, kwargs)
    sizes = (
        tuple(_dynamic(item) for item in args),
        {name: _dynamic(item) for name, item in kwargs.items()},
    )
    with (
        training_mode(model),
        plain_attention(),
        grouped_experts(model),
        _outputs_only(model),
        _no_distribution_checks(),
        unrecorded(),
        _quiet(),
        torch.random.fork_rng(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            program = _export(model, args, kwargs, sizes if dynamic else None)
        except Exception as error:
            raise UnsupportedOp(
                f"torch.export cannot follow {type(model).__name__}: {_first_line(error)}. {_advice(model)}"
            ) from error
    _inline(program.graph_module)
    expose_layers(program.graph)
    return _describe(model, program, args, kwargs)


def _check_runs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A clear error for inputs that the model rejects, before export says it in its own words."""
    buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
    try:
        with training_mode(model), torch.no_grad(), torch.random.fork_rng(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "None of the inputs have requires_grad")  # reentrant checkpoints
            call_with(model, buffers, copy.copy(args), kwargs)
    except Exception as error:
        shapes = [str(tuple(item.shape)) for item in pytree.tree_leaves(args) if isinstance(item, Tensor)]
        shapes += [f"{key} {tuple(item.shape)}" for key, item in kwargs.items() if isinstance(item, Tensor)]
        raise IllegalConfiguration(
            f"{type(model).__name__} fails on the example inputs ({', '.join(shapes)}) in training mode: "
            f"{_first_line(error)}. Pass one small batch exactly as your training loop passes it, for example "
            "example_inputs=(x,), with at least two examples where the model has batch norm."
        ) from error


def _advice(model: nn.Module) -> str:
    """What to change in a model that cannot be exported."""
    if any(getattr(module, "layerdrop", 0) for module in model.modules()):
        return (
            "It skips whole layers at random (layerdrop): find the units of the same model with layerdrop 0 in its "
            "configuration and pass them with units=; names are the same."
        )
    return (
        "A forward pass that branches on the data is the usual reason; rewrite the branch with torch.where "
        "or torch.cond, or state the units by hand with pliant.declare_units (those of submodules that can be "
        "exported are found as before)."
    )


_SYMBOLIC_SHAPES = "torch.fx.experimental.symbolic_shapes"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Export logs sizes that it cannot make dynamic, and prints whole graphs before it fails: the error says enough."""
    loggers = [logging.getLogger(name) for name in ("torch._export.non_strict_utils", _SYMBOLIC_SHAPES)]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    traced = getattr(torch.fx.config, "do_not_emit_stack_traces", None)
    if traced is not None:
        torch.fx.config.do_not_emit_stack_traces = True  # where each operation was written: nobody reads that here
    try:
        yield
    finally:
        if traced is not None:
            torch.fx.config.do_not_emit_stack_traces = traced
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _export(model: nn.Module, args: Any, kwargs: Any, dynamic: tuple[Any, Any] | None) -> ExportedProgram:
    if dynamic is None:
        return torch.export.export(model, args, kwargs, strict=False)
    shapes = {**dict(enumerate(dynamic[0])), **dynamic[1]}
    try:
        given = dynamic[0] if not kwargs else shapes
        return torch.export.export(model, args, kwargs, strict=False, dynamic_shapes=given or None)
    except Exception:  # some models fix every size: the static graph is all that is needed for discovery
        return torch.export.export(model, args, kwargs, strict=False)


def _dynamic(item: Any) -> Any:
    return pytree.tree_map(
        lambda leaf: dict.fromkeys(range(leaf.ndim), Dim.AUTO) if isinstance(leaf, Tensor) else None, item
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


def _describe(model: nn.Module, program: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Exported:
    names = canonical_names(model)
    parameters: dict[Node, str] = {}
    inputs: list[Node] = []
    constants: list[Node] = []
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.target in names:
            parameters[node] = names[str(spec.target)]
        elif spec.kind is InputKind.USER_INPUT:
            inputs.append(node)
        else:
            constants.append(node)
    return Exported(tuple(program.graph.nodes), program, parameters, tuple(inputs), tuple(constants), args, kwargs)
