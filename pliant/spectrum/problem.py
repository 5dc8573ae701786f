"""A model on one batch as a function of its parameters, whatever the model is."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from pliant.errors import IllegalConfiguration, NoEffect, UnsupportedOp
from pliant.forward import call
from pliant.spectrum.losses import LossSpec, make_target
from pliant.units.export import Inputs, model_outputs
from pliant.units.patterns import matches

__all__ = ["Mode", "Problem"]

Mode = Literal["eval", "train"]


class Problem:
    r"""Outputs :math:`f(\theta)` and loss of a model on a fixed batch, as functions of flat or named parameters.

    Nothing of the model changes: parameters are copies, buffers are restored, nobody records the forward passes.

    Args:
        model: The model.
        batch: Inputs and targets: ``(x, y)``; inputs are a tensor, a tuple of positional inputs or a mapping.
        loss: ``"cross_entropy"``, ``"mse"`` (half the squared error, summed over outputs and averaged over samples) or
            a function of output and targets.
        where: Which trainable parameters count, a pattern of names as in :class:`pliant.attach`.
        mode: ``"eval"`` or ``"train"``; ``None`` only for a model on which it makes no difference.
        active: The logits that count, indices or a mask over the last dimension of the output; ``None``: all.
        dtype: What is computed in; ``None``: the parameters' own, at least float32.

    Attributes:
        parameters: Name to a detached copy in ``dtype``.
        num_parameters: Entries of all of them.
        num_samples: Samples of the batch.
        num_positions: Places with a target: the samples, or the tokens of all samples.
        num_outputs: Components of the output at each of them, active logits only.
        mode: As given, or ``"eval"``.
        independent: Whether the output of a sample does not depend on the others.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Any,
        loss: LossSpec,
        *,
        where: str = "*",
        mode: Mode | None = None,
        active: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.model, self.mode = model, _mode_of(model, mode)
        inputs, targets = _split(batch)
        own = {name: item for name, item in model.named_parameters() if item.requires_grad}
        chosen = {name: item for name, item in own.items() if matches(name, where)}
        if not chosen:
            raise NoEffect(f"no trainable parameter of {type(model).__name__} matches where={where!r}.")
        self.dtype = dtype or _common_dtype(chosen)
        if self.dtype not in (torch.float32, torch.float64):
            raise IllegalConfiguration(f"dtype={self.dtype}: curvature is computed in float32 or float64.")
        self.parameters = {name: item.detach().to(self.dtype) for name, item in chosen.items()}
        self.names, self.sizes = list(self.parameters), [item.numel() for item in self.parameters.values()]
        self.num_parameters = sum(self.sizes)
        self.device = next(iter(self.parameters.values())).device
        frozen = {name: item for name, item in model.named_parameters() if name not in chosen}
        self._constants = {
            name: item.detach().to(self.dtype, copy=True)
            for name, item in (*frozen.items(), *model.named_buffers())
            if item.is_floating_point() and item.dtype != self.dtype
        }
        self._buffers = {name for name, _ in model.named_buffers()} & set(self._constants)
        self.inputs = pytree.tree_map(self._cast, inputs)
        self.num_samples = _num_samples(self.inputs)
        self._active: Tensor | None = None
        with torch.no_grad(), self.explained("the forward pass"):
            raw = self._raw(self.parameters, self.inputs)
        self._active = _indices(active, raw.shape[-1] if raw.ndim else 0, self.device)
        if raw.ndim == 0 or raw.shape[0] != self.num_samples:
            raise IllegalConfiguration(
                f"the output has shape {tuple(raw.shape)} on {self.num_samples} samples: its first dimension must be "
                "that of the samples, as must that of the inputs."
            )
        out = self._select(raw)
        self.target, self._arrange = make_target(loss, out, targets, self._active, raw.shape[-1])
        arranged = self._arrange(out)
        _check_finite(arranged, self.target.loss(arranged), self.target.name)
        valid = self.target.valid
        self.num_positions = arranged.shape[0] * arranged.shape[1] if valid is None else int(valid.sum())
        self.num_outputs = arranged.shape[2]
        self.independent = self._is_independent(raw)
        self.at_parameters = arranged

    # ---- the functions ----
    def outputs(self, parameters: Mapping[str, Tensor], inputs: Any = None) -> Tensor:
        """Outputs as ``[N, P, C]``: samples, positions and components that count."""
        return self._arrange(self._select(self._raw(parameters, self.inputs if inputs is None else inputs)))

    def sample(self, index: int) -> Any:
        """The inputs of one sample, as a batch of one."""
        return self._slice(slice(index, index + 1))

    # ---- flat vectors ----
    def named(self, flat_D: Tensor) -> dict[str, Tensor]:
        """A vector over all parameters as tensors by name (views)."""
        parts = torch.split(flat_D, self.sizes)
        shapes = [item.shape for item in self.parameters.values()]
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, shapes, strict=True)}

    @contextlib.contextmanager
    def explained(self, what: str) -> Iterator[None]:
        """Say what to do where PyTorch cannot differentiate; attention runs by its plain formula meanwhile."""
        recurrent = any(isinstance(module, (nn.RNNBase, nn.RNNCellBase)) for module in self.model.modules())
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "There is a performance drop")
            warnings.filterwarnings("ignore", "TF32 acceleration on top of oneDNN")
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if recurrent:  # the fused kernels of recurrent layers have a first derivative only
                stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            try:
                yield
            except (RuntimeError, NotImplementedError) as error:
                if (explained := _explanation(error, what, type(self.model).__name__)) is None:
                    raise
                raise explained from error

    # ---- inside ----
    def _raw(self, parameters: Mapping[str, Tensor], inputs: Any) -> Tensor:
        constants = {key: item.clone() if key in self._buffers else item for key, item in self._constants.items()}
        result = call(self.model, inputs, {**constants, **parameters}, training=self.mode == "train")
        if isinstance(result, Tensor):
            return result
        logits = result.get("logits") if isinstance(result, Mapping) else getattr(result, "logits", None)
        found = [logits] if isinstance(logits, Tensor) else [t for t in model_outputs(result) if t.is_floating_point()]
        if len(found) != 1:
            raise IllegalConfiguration(
                f"{type(self.model).__name__} returns {len(found)} tensors of numbers, and none is called logits. Wrap "
                "it in a module that returns the one whose loss is meant."
            )
        return found[0]

    def _select(self, raw: Tensor) -> Tensor:
        return raw if self._active is None else raw.index_select(-1, self._active)

    def _cast(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        leaf = leaf.detach().to(self.device)
        return leaf.to(self.dtype) if leaf.is_floating_point() else leaf

    def _slice(self, index: slice | Tensor) -> Any:
        count = self.num_samples
        return pytree.tree_map(
            lambda leaf: leaf[index] if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == count else leaf,
            self.inputs,
        )

    def _is_independent(self, raw: Tensor) -> bool:
        """Whether every other sample alone gives the outputs that it has in the whole batch."""
        if self.mode == "train" or self.num_samples == 1:
            return self.num_samples == 1
        half = slice(0, self.num_samples, 2)
        try:
            with torch.no_grad(), self.explained("the forward pass"):
                part = self._raw(self.parameters, self._slice(half))
        except (UnsupportedOp, IllegalConfiguration, RuntimeError, ValueError):
            return False  # a fixed batch size, for example
        if part.shape[1:] != raw.shape[1:] or len(part) != len(raw[half]):
            return False
        scale = raw.abs().max().clamp(min=torch.finfo(raw.dtype).tiny)
        return bool((part - raw[half]).abs().max() <= 1e4 * torch.finfo(raw.dtype).eps * scale)


def _split(batch: Any) -> tuple[Inputs, Any]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise IllegalConfiguration(
            f"the batch is a {type(batch).__name__}; pass inputs and targets, as in (x, y). Inputs may be a tensor, a "
            "tuple of positional inputs, or a mapping of keyword inputs."
        )
    return batch[0], batch[1]


def _num_samples(inputs: Any) -> int:
    leaves = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    if not leaves or leaves[0].ndim == 0:
        raise IllegalConfiguration("the inputs hold no tensor with samples along its first dimension.")
    if any(leaf.numel() == 0 for leaf in leaves):
        raise IllegalConfiguration("the batch is empty: curvature of no samples is not defined. Pass at least one.")
    return leaves[0].shape[0]


def _mode_of(model: nn.Module, mode: Mode | None) -> Mode:
    if mode not in (None, "eval", "train"):
        raise IllegalConfiguration(f"mode={mode!r}: it is 'eval' or 'train'.")
    norms = [name for name, item in model.named_modules() if _uses_the_batch(item)]
    if mode is None and norms:
        raise IllegalConfiguration(
            f"{norms[0]!r} is a batch norm, and curvature differs between its modes: say mode='eval' (running "
            "statistics) or mode='train' (those of the batch)."
        )
    drops = [n for n, item in model.named_modules() if isinstance(item, nn.modules.dropout._DropoutNd) and item.p > 0]
    if mode == "train" and drops:
        raise IllegalConfiguration(
            f"{drops[0]!r} drops units at random in mode='train', so that the loss is no function of the parameters. "
            "Set its p to 0 meanwhile, or use mode='eval'."
        )
    return mode or "eval"


def _uses_the_batch(module: nn.Module) -> bool:
    """Batch norm and its like with running statistics, which are not used in training mode."""
    return getattr(module, "track_running_stats", False) is True and hasattr(module, "running_mean")


def _common_dtype(parameters: Mapping[str, Tensor]) -> torch.dtype:
    wide = torch.float64 if any(item.dtype == torch.float64 for item in parameters.values()) else torch.float32
    return wide


def _indices(active: Any, num_logits: int, device: torch.device) -> Tensor | None:
    if active is None:
        return None
    found = torch.as_tensor(active, device=device)
    if found.dtype == torch.bool:
        if found.shape != (num_logits,):
            raise IllegalConfiguration(
                f"active is a mask of shape {tuple(found.shape)}, but the model has {num_logits} logits."
            )
        found = found.nonzero().flatten()
    found = found.flatten().long()
    if found.numel() == 0 or len(torch.unique(found)) != len(found):
        raise IllegalConfiguration("active must name at least one logit, and each once.")
    if int(found.min()) < 0 or int(found.max()) >= num_logits:
        raise IllegalConfiguration(
            f"active names logit {int(found.max() if found.min() >= 0 else found.min())}, but the model has "
            f"{num_logits} (0 to {num_logits - 1})."
        )
    return found


def _check_finite(outputs: Tensor, loss: Tensor, name: str) -> None:
    if not bool(torch.isfinite(loss)):
        where = "the outputs are finite" if bool(torch.isfinite(outputs).all()) else "so are outputs of the model"
        raise IllegalConfiguration(
            f"the loss ({name}) on this batch is {float(loss)}, and {where}: curvature is not defined there. Look for "
            "NaN or infinite weights and inputs first (pliant.metrics has non-finite fractions)."
        )


_IN_PLACE = ("inplace operation", "in-place", "mutate a captured")
_NO_SECOND = (
    "differentiate twice",
    "once_differentiable",
    "is not implemented",
    "derivative for",
    "not differentiable",
)


def _explanation(error: Exception, what: str, model: str) -> UnsupportedOp | None:
    """What to do about an error of PyTorch's; ``None`` for one that is not about derivatives."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if any(part in str(error) for part in _IN_PLACE):
        return UnsupportedOp(
            f"{what}: {model} writes into a tensor that its derivatives still need ({text}). Write out of place "
            "(x = x + y instead of x += y)."
        )
    if any(part in str(error) for part in _NO_SECOND):
        return UnsupportedOp(
            f"{what}: an operation of {model} cannot be differentiated as often as this needs ({text}). Fused kernels "
            "need their plain version, and an autograd.Function a backward that can be differentiated. The exact "
            "Gauss-Newton spectrum (ggn_spectrum) needs first derivatives alone."
        )
    return None
