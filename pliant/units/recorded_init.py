"""Initial distributions of Hugging Face models, found by watching the model's own ``_init_weights``.

Every architecture of ``transformers`` initialises its weights its own way: ``initializer_range``, GPT-2's residual
projections scaled with the depth, T5's factors per matrix. Instead of repeating these rules, the model's own code
runs on a copy whose parameters are empty shells (``meta`` tensors), and each random or constant fill is noted as it
is dispatched. No random number is drawn, nothing is downloaded, and the model is not touched.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pliant.sharded import sharded_modules
from pliant.units.export import canonical_names

__all__ = ["Fill", "recorded_fills"]

_CUT = 4.0  # a normal distribution that is cut off further out than this many deviations counts as one


class Fill(NamedTuple):
    """What a tensor was filled with: the kind and scale of :class:`~pliant.units.init.Init`."""

    kind: Literal["constant", "uniform", "normal"]
    scale: float


def recorded_fills(model: nn.Module) -> dict[str, Fill | None]:
    """What ``initialize_weights`` of the Hugging Face models inside a model fills each of their tensors with.

    Args:
        model: Any module; it is not changed.

    Returns:
        Canonical tensor name to its fill, for the tensors that such a model initialises; ``None`` where it writes
        something that is no plain distribution (a table of sinusoids). Empty without a Hugging Face model.
    """
    roots = _roots(model)
    if not roots:
        return {}
    canonical = canonical_names(model)
    result: dict[str, Fill | None] = {}
    for prefix in roots:
        root = model.get_submodule(prefix)
        try:
            found = _record(root)
        except Exception:  # code that cannot run on shells: unknown, which asks the user for `init=`
            found = dict.fromkeys(_tensor_names(root))
        for name, fill in found.items():
            full = f"{prefix}.{name}" if prefix else name
            if canonical.get(full) == full:  # of tied tensors the first name, which is the one that others are tied to
                result[full] = fill
    return result


def _roots(model: nn.Module) -> list[str]:
    """Names of the outermost submodules that initialise themselves the way ``transformers`` models do."""
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(not root or name.startswith(f"{root}.") for root in found)
        if not inside and all(hasattr(module, key) for key in ("initialize_weights", "_init_weights", "config")):
            found.append(name)
    return found


def _tensor_names(module: nn.Module) -> list[str]:
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return [name for name, _ in named]


def _record(model: nn.Module) -> dict[str, Fill | None]:
    shell = _shell(model)
    watch = _Watch(shell)
    with warnings.catch_warnings(), _truncated(watch), watch, torch.no_grad():
        warnings.simplefilter("ignore")
        shell.initialize_weights()  # type: ignore[operator]
    return watch.fills()


def _shell(model: nn.Module) -> nn.Module:
    """A copy with empty tensors of its own under every name: tied ones are initialised apart, then tied."""
    tensors = [*model.parameters(), *model.buffers()]
    memo: dict[int, Any] = {
        id(tensor): torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for tensor in tensors
    }
    shell = _copied(model, memo)
    for module in shell.modules():
        module.__dict__.pop("_is_hf_initialized", None)
        for key, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[key] = nn.Parameter(torch.empty_like(parameter), parameter.requires_grad)
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = torch.empty_like(buffer)
    return shell


def _copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """``copy.deepcopy``, also of modules that ``fully_shard`` forbids to copy.

    They are copied without what it gave them: its class in front of theirs, its hooks, and its state, which holds
    groups of processes.
    """
    sharded = sharded_modules(model)
    for module in sharded:
        plain = type(module).__mro__[2]  # behind the class that was made for it, and FSDPModule
        memo[id(module)] = object.__new__(plain)
    for module in sharded:
        for key, value in vars(module).items():
            if not key.startswith("__composable_api_state"):
                kept = OrderedDict() if key.endswith("_hooks") else copy.deepcopy(value, memo)
                vars(memo[id(module)])[key] = kept
    return copy.deepcopy(model, memo)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes what is written into the tensors of a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: dict[int, str] = {}
        self.sizes: dict[int, int] = {}
        self.padded: set[int] = set()
        self.found: dict[int, Fill | None] = {}
        for source in (module.named_parameters(), module.named_buffers()):
            for name, tensor in source:
                self.names[_key(tensor)] = name
                self.sizes[_key(tensor)] = tensor.numel()
        for child in module.modules():
            if isinstance(child, nn.Embedding) and child.padding_idx is not None:
                self.padded.add(_key(child.weight))

    def fills(self) -> dict[str, Fill | None]:
        return {self.names[key]: fill for key, fill in self.found.items()}

    def note(self, tensor: Tensor, fill: Fill | None) -> None:
        """Note a write; one into a part of a tensor leaves a distribution only if it is the same."""
        key = _key(tensor)
        if key not in self.names:
            return
        if tensor.numel() == self.sizes[key]:
            self.found[key] = fill
        elif fill == Fill("constant", 0.0) and key in self.padded:
            pass  # the row of the padding token
        elif self.found.get(key) != fill:
            self.found[key] = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket).removeprefix("aten.")
        if func._schema.is_mutable and args and isinstance(args[0], Tensor):
            self.note(args[0], _fill(name, args, kwargs or {}, self.found.get(_key(args[0]))))
        return func(*args, **(kwargs or {}))


def _fill(name: str, args: Any, kwargs: Any, before: Fill | None) -> Fill | None:
    given = [item for item in args[1:] if isinstance(item, (int, float))]
    if name == "normal_":
        mean, std = [*given, 0.0, 1.0][:2] if len(given) != 1 else (given[0], kwargs.get("std", 1.0))
        return Fill("normal", float(std)) if mean == 0 else None
    if name == "uniform_":
        low, high = [*given, 0.0, 1.0][:2] if len(given) != 1 else (given[0], kwargs.get("to", 1.0))
        return Fill("uniform", float(high)) if low == -high else None
    if name == "zero_":
        return Fill("constant", 0.0)
    if name == "fill_" and given:
        return Fill("constant", float(given[0]))
    if name in ("mul_", "div_") and given and before is not None:
        factor = float(given[0]) if name == "mul_" else 1 / float(given[0])
        return Fill(before.kind, before.scale * (factor if before.kind == "constant" else abs(factor)))
    return None


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@contextlib.contextmanager
def _truncated(watch: _Watch) -> Iterator[None]:
    """``nn.init.trunc_normal_`` draws by rejection and skips shells: it is noted where it would have drawn."""
    original = getattr(nn.init, "_no_grad_trunc_normal_", None)
    if original is None:
        yield
        return

    def note(tensor: Tensor, mean: float, std: float, a: float, b: float, generator: Any = None) -> Tensor:
        if not tensor.is_meta:
            return original(tensor, mean, std, a, b, generator=generator)  # type: ignore[no-any-return]
        uncut = mean == 0 and min(-a, b) >= _CUT * std
        watch.note(tensor, Fill("normal", float(std)) if uncut else None)
        return tensor

    nn.init._no_grad_trunc_normal_ = note
    try:
        yield
    finally:
        nn.init._no_grad_trunc_normal_ = original
