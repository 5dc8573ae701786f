"""L2-ER (Prakash, He, Guo et al., 2025): weight decay, and steps that raise the effective rank of hidden features."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pliant.devices import can_read
from pliant.errors import IllegalConfiguration, NoEffect, NoEffectWarning, NotYetSupported
from pliant.interventions.base import Context, Host, Intervention, PerUnit, Tensors, require
from pliant.interventions.l2 import L2
from pliant.interventions.state import StateKind
from pliant.interventions.weight_penalty import wide
from pliant.search import Domain, Range
from pliant.sharded import is_sharded
from pliant.units.group import UnitGroup
from pliant.units.several import Several

__all__ = ["L2EffectiveRank"]

_SMALL = 1e-8
_INPUTS, _FORM = "inputs", "form "


@final
@dataclass(frozen=True)
class L2EffectiveRank(Intervention):
    r"""Coupled weight decay, and every so many steps a step of gradient ascent on the features' effective rank.

    .. math:: \theta \leftarrow \theta + \alpha_{ER} \nabla_\theta \operatorname{mean}_l \operatorname{erank}(\Phi_l),
        \qquad \operatorname{erank}(\Phi) = \exp\Bigl(-\sum_i p_i \ln(p_i + 10^{-8})\Bigr), \qquad
        p_i = \frac{\sigma_i}{\sum_j \sigma_j}

    :math:`\Phi_l` are the features of layer l on the minibatches of the last ``every`` steps together, neither centred
    nor normalised, and :math:`\sigma` their singular values. The step is plain: no momentum, no decay, apart from the
    optimizer. The minibatches come through ``handle.batch(...)``.

    Args:
        strength: :math:`\alpha_{ER} >= 0`, the size of these steps (with ``apply="loss"`` the factor in the loss);
            ``0``: none.
        l2: :math:`\lambda >= 0`: before every step of the optimizer :math:`\lambda\theta` is added to the gradient, for
            all parameters; ``0``: not.
        every: Optimizer steps between two steps of effective rank.
        repeats: How many of these at a time.
        apply: ``"step"``, apart from the optimizer, or ``"loss"``: subtracted from the loss through
            ``handle.penalty()`` at every ``every``-th step, of that step's features, which need no second forward pass.
        rank: ``"singular"``, or ``"gram"``: :math:`(\sum \sigma^2)^2 / \sum \sigma^4` instead, which needs the Gram
            matrix alone and no decomposition.
        project: ``None``, or a number of random mixtures of the samples that stand for all of them.
        keep: ``None``: the minibatches of all ``every`` steps, or only so many of the last ones.
        max_norm: ``None``, or the largest length of the gradient of a step; a longer one is shortened to it. A rank
            does not change with the features' scale, so its gradient grows as they shrink: without a limit, a step on
            a layer that is almost silent can be of any size.
        where: Which unit groups are features, a pattern of names.
        inputs: How many leading parts of a batch ``(x, ..., y)`` the model takes; ``None``: as many as its ``forward``
            has parameters without a default.

    State:
        ``inputs``: the minibatches; ``dead``: whether a group's features were all zero.

    Edits:
        The parameters, and their gradients; moments are kept.

    Deviations from the published code:
        A layer of zeros has no rank and no gradient (theirs: 1, and whatever the zero matrix gives); it is reported.
        Batch norms use the batch without updating running statistics (theirs updates them in one benchmark).

    Source:
        Prakash, He, Guo et al., Spectral Collapse Drives Loss of Plasticity in Deep Continual Learning (2025),
        arXiv:2509.22335, and the authors' code, ``KevinGuo27/lop-jax``.

    Raises:
        IllegalConfiguration: At ``attach``, for a hyper-parameter out of range; at a batch that the model cannot take,
            or one with ``apply="step"`` whose examples have other shapes than those before it.
        NoEffect: At ``attach``, if no group can be listened to.
        NotYetSupported: At ``attach``, with ``apply="step"`` and several processes, or a sharded model.

    Example:
        >>> L2EffectiveRank().null().strength, L2EffectiveRank().null().l2
        (0.0, 0.0)
    """

    strength: float = 1e-2
    l2: float = 1e-3
    every: int = 100
    repeats: int = 1
    apply: str = "step"
    rank: str = "singular"
    project: int | None = None
    keep: int | None = None
    max_norm: float | None = None
    where: str = "*"
    inputs: int | None = None

    state: ClassVar[Mapping[str, StateKind]] = {
        _INPUTS: Tensors(),
        "seen": Host(0),
        "dead": PerUnit(dtype="bool", per_group=True),
    }
    acts_in_quiet: ClassVar[bool] = True
    source: ClassVar[str] = "Prakash et al. 2025"
    search: ClassVar[Mapping[str, Domain]] = {
        "strength": Range(1e-4, 1e-1, log=True),
        "l2": Range(1e-6, 1e-2, log=True),
    }
    defaults: ClassVar[Mapping[str, str]] = {
        "strength": "authors' code, Permuted MNIST (er_lr; 1e-3 for CIFAR, 1e-4 for ImageNet, 1e-6 for Slippery Ant)",
        "l2": "authors' code, all benchmarks (weight decay before the optimizer's own update)",
        "every": "authors' code, Permuted MNIST with batches of one (er_batch; 12 for ImageNet, 5 for CIFAR)",
        "repeats": "authors' code (er_step)",
        "apply": "authors' code",
        "rank": "authors' code",
        "project": "authors' code: all samples",
        "keep": "authors' code: all minibatches since the last such step",
        "max_norm": "authors' code: no limit",
        "where": "authors' code, Permuted MNIST: all hidden layers (the last two for ImageNet and CIFAR)",
        "inputs": "a choice of this library",
    }

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]  # only the loss needs what the training forward made
        """Features with their graph, for the loss."""
        return frozenset({"features"}) if self.apply == "loss" and self.strength > 0 else frozenset()

    @property
    def needs_penalty(self) -> bool:
        """Whether it acts through the loss."""
        return self.apply == "loss" and self.strength > 0

    @property
    def needs_batch(self) -> bool:
        """Whether it waits for minibatches."""
        return self.apply == "step" and self.strength > 0

    @property
    def changes_gradients(self) -> bool:
        """For the weight decay."""
        return self.l2 > 0

    def null(self) -> L2EffectiveRank:
        """Neither decay nor steps."""
        return replace(self, strength=0.0, l2=0.0)

    def unit_pattern(self) -> str:
        """The features."""
        return self.where

    def samples(self, step: int) -> bool:
        """At the steps whose loss gets a term."""
        return self.needs_penalty and step % self.every == 0

    def next_step(self, ctx: Context) -> int:
        """The end of the period."""
        return ctx.clock.next(self.every if self.strength > 0 else None)

    def check(self) -> None:
        """Check the hyper-parameters, on which it depends what is listened to."""
        require(0 <= self.strength < float("inf"), self, "strength", ">= 0 and finite")
        require(0 <= self.l2 < float("inf"), self, "l2", ">= 0 and finite")
        require(isinstance(self.every, int) and self.every >= 1, self, "every", "a whole number >= 1")
        require(isinstance(self.repeats, int) and self.repeats >= 1, self, "repeats", "a whole number >= 1")
        require(self.apply in ("step", "loss"), self, "apply", "'step' or 'loss'")
        require(self.rank in ("singular", "gram"), self, "rank", "'singular' or 'gram'")
        require(self.project is None or self.project >= 1, self, "project", "None or >= 1")
        require(self.keep is None or self.keep >= 1, self, "keep", "None or >= 1")
        require(self.max_norm is None or self.max_norm > 0, self, "max_norm", "None or > 0")
        require(self.inputs is None or self.inputs >= 1, self, "inputs", "None or >= 1")

    def prepare(self, ctx: Context) -> None:
        """That there are features, and that all processes would do the same."""
        if not self._groups(ctx) and self.strength > 0:
            raise NoEffect(
                f"L2EffectiveRank: no unit group that matches where={self.where!r} can be listened to with gradients."
            )
        if not self.needs_batch:
            return
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        if several and torch.distributed.get_world_size() > 1:
            raise NotYetSupported(
                "L2EffectiveRank: with several processes each has minibatches of its own, and steps apart from the "
                "optimizer would drive the copies of the model apart. Use apply='loss', whose gradients are averaged."
            )
        if any(is_sharded(tensor) for tensor in ctx.edit.tensors.values()):
            raise NotYetSupported(
                "L2EffectiveRank: a sharded model cannot be run apart from training; use apply='loss'."
            )

    # ---- events ----
    def on_batch(self, ctx: Context, batch: Any) -> Any:
        """Keep the inputs."""
        if not self.needs_batch:
            return batch
        leaves, form = pytree.tree_flatten(_inputs_of(ctx, batch, self.inputs))
        tensors = [isinstance(leaf, Tensor) for leaf in leaves]
        others = [None if is_tensor else leaf for leaf, is_tensor in zip(leaves, tensors, strict=True)]
        if any(not isinstance(leaf, (bool, int, float, str, type(None))) for leaf in others):
            raise IllegalConfiguration(
                "L2EffectiveRank: the batch holds something else than tensors, numbers and strings. Pass what the "
                "model takes, in tuples, lists and dicts, through handle.batch(...)."
            )
        kept = ctx.tensors(_INPUTS)  # one mapping for all optimizers, whose names say the form of the inputs, too
        text = _FORM + json.dumps([pytree.treespec_dumps(form), others, tensors])
        if text not in kept:
            kept.clear()
            kept[text] = torch.zeros(())
        place = int(ctx.host["seen"]) % (self.keep or self.every)
        for index, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                kept[f"{place}:{index}"] = leaf.detach().clone()
        ctx.host["seen"] = int(ctx.host["seen"]) + 1
        return batch

    def before_step(self, ctx: Context) -> None:
        """Weight decay, coupled: it goes through momentum and Adam's scaling."""
        L2(self.l2, apply="gradient").before_step(ctx)

    def penalty(self, ctx: Context) -> Tensor | None:
        """The term for the loss."""
        groups = self._groups(ctx) if self.needs_penalty and (ctx.clock.step + 1) % self.every == 0 else ()
        if not groups:
            return None
        heard = {group.name: found for group in groups if (found := ctx.features(group))}
        if not heard:
            raise IllegalConfiguration(
                "L2EffectiveRank: handle.penalty() was called without a training forward pass before it. Call it "
                "between the forward and the backward pass, with the model in training mode."
            )
        return -self.strength * self._mean_rank(ctx, groups, heard)

    def after_step(self, ctx: Context) -> None:
        """The steps of effective rank."""
        if not self.needs_batch or not ctx.clock.every(self.every) or not ctx.tensors(_INPUTS):
            return
        groups = self._groups(ctx)
        inputs = self._kept(ctx)
        for _ in range(self.repeats):
            leaves = {name: item.detach().requires_grad_() for name, item in ctx.parameters().items()}
            with torch.enable_grad():
                rank = self._mean_rank(ctx, groups, ctx.hear(inputs, groups, leaves, training=True))
            if not rank.requires_grad:
                return
            found = torch.autograd.grad(rank, list(leaves.values()), allow_unused=True)
            moved = {name: grad for name, grad in zip(leaves, found, strict=True) if grad is not None}
            size = self._step_size(ctx, list(moved.values()))
            ctx.edit.add(list(moved), [grad * _beside(size, grad) for grad in moved.values()], reason="effective rank")

    def on_record(self, ctx: Context) -> Mapping[str, float]:
        """How many groups gave zeros alone when last looked at, the mean over members."""
        flags = [ctx.state(group)["dead"].float().mean() for group in self._groups(ctx)]
        return {"dead_groups": float(torch.stack(flags).sum())} if flags and self.strength > 0 else {}

    # ---- inside ----
    def _groups(self, ctx: Context) -> tuple[UnitGroup, ...]:
        """Those whose activations are tensors of the forward pass."""
        groups = ctx.groups(self.where)
        return tuple(group for group in groups if group.tap is not None and group.name not in ctx.units.replays)

    def _kept(self, ctx: Context) -> Any:
        """All minibatches as one; their order is no matter to a rank."""
        kept, lead = ctx.tensors(_INPUTS), 0 if ctx.num_members is None else 1
        text = next(name for name in kept if name.startswith(_FORM))
        form, leaves, tensors = json.loads(text.removeprefix(_FORM))
        places = sorted({int(name.partition(":")[0]) for name in kept if name != text})
        for index, is_tensor in enumerate(tensors):
            if is_tensor:
                parts = [kept[f"{place}:{index}"] for place in places]
                shapes = {tuple(part.shape[:lead]) + tuple(part.shape[lead + 1 :]) for part in parts}
                if len(shapes) > 1:
                    raise IllegalConfiguration(
                        f"L2EffectiveRank: inputs of the last {len(parts)} minibatches have examples of several shapes "
                        f"({', '.join(map(str, sorted(shapes)))}), which cannot be put together. Use keep=1, or pad."
                    )
                leaves[index] = torch.cat(parts, lead) if parts[0].ndim > lead else parts[-1]
        return pytree.tree_unflatten(leaves, pytree.treespec_loads(form))

    def _mean_rank(self, ctx: Context, groups: tuple[UnitGroup, ...], heard: Mapping[str, list[Tensor]]) -> Tensor:
        """Mean over the groups that were heard, summed over members: ``[]``."""
        terms = []
        for group in groups:
            if group.name in heard:
                features = wide(torch.cat(heard[group.name], -2))
                dead = features.detach().abs().amax((-2, -1)) == 0
                self._note(ctx, group, dead.reshape(-1, 1) if ctx.num_members is not None else dead.reshape(1))
                terms.append(torch.where(dead, 0.0, self._rank(ctx, _alive(features, dead))).sum())
        return torch.stack(terms).mean() if terms else torch.zeros(())

    def _rank(self, ctx: Context, features: Tensor) -> Tensor:
        """Of each member, ``[]`` or ``[S]``."""
        if self.project is not None and self.project < features.shape[-2]:
            rows = features.new_empty(*features.shape[:-2], self.project, features.shape[-2])
            features = ctx.edit.draw_normal(rows).to(features.dtype) @ features
        if self.rank == "gram":
            features = features / torch.linalg.vector_norm(features.detach(), dim=(-2, -1), keepdim=True)
            is_tall = features.shape[-2] > features.shape[-1]
            gram = features.mT @ features if is_tall else features @ features.mT
            ratio: Tensor = gram.diagonal(dim1=-2, dim2=-1).sum(-1).square() / gram.square().sum((-2, -1))
            return ratio
        sigma = torch.linalg.svdvals(features)
        p = sigma / sigma.sum(-1, keepdim=True).clamp(min=_SMALL)
        rank: Tensor = (-(p * (p + _SMALL).log()).sum(-1)).exp()
        return rank

    def _step_size(self, ctx: Context, gradients: list[Tensor]) -> float | Tensor:
        """What the gradients are multiplied by: a number, or ``[]`` or ``[S]``."""
        if self.max_norm is None:
            return self.strength
        lead = 0 if ctx.num_members is None else 1
        squares = torch.stack([wide(grad).square().flatten(lead).sum(-1) for grad in gradients]).sum(0)
        return self.strength * (self.max_norm / squares.sqrt()).clamp(max=1.0)

    def _note(self, ctx: Context, group: UnitGroup, dead: Tensor) -> None:
        """Remember a group of zeros; say it once, where reading is free."""
        noted = ctx.state(group)["dead"]
        if can_read(dead) and bool((dead & ~noted).any()):
            warnings.warn(
                f"L2EffectiveRank: all units of {group.name!r} are zero on all samples. No gradient of any rank "
                "reaches them, so that this method cannot revive them; a method that resets units can.",
                NoEffectWarning,
                stacklevel=2,
            )
        noted.copy_(dead if ctx.live is None else torch.where(ctx.live > 0, dead, noted))


def _beside(size: float | Tensor, gradient: Tensor) -> float | Tensor:
    """A factor in the gradient's type, in a shape that broadcasts to it."""
    if isinstance(size, float):
        return size
    return size.to(gradient.dtype).reshape(*size.shape, *[1] * (gradient.ndim - size.ndim))


def _alive(features: Tensor, dead: Tensor) -> Tensor:
    """Something harmless in place of a matrix of zeros, whose singular vectors are arbitrary."""
    harmless = torch.eye(features.shape[-2], features.shape[-1], dtype=features.dtype, device=features.device)
    return torch.where(dead[..., None, None], harmless, features)


def _inputs_of(ctx: Context, batch: Any, count: int | None) -> Any:
    """What of a batch goes into the model."""
    root = ctx.modules[""]
    if isinstance(batch, Tensor):
        return batch
    wanted = inspect.signature(root.forward).parameters.values()
    if isinstance(batch, Mapping):
        names = {item.name for item in wanted}
        takes_all = isinstance(root, Several) or any(item.kind is item.VAR_KEYWORD for item in wanted)
        found = {key: value for key, value in batch.items() if takes_all or key in names}
        if not found:
            raise IllegalConfiguration(
                f"L2EffectiveRank: the batch has the entries {', '.join(map(str, batch))}, none of which the model "
                f"takes ({', '.join(names)})."
            )
        return found
    if isinstance(batch, (tuple, list)) and batch:
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        needed = sum(item.kind in positional and item.default is item.empty for item in wanted)
        return tuple(batch[: count or max(1, needed)])
    raise IllegalConfiguration(
        f"L2EffectiveRank: the batch is of type {type(batch).__name__}; pass a tensor, (inputs, targets) or a mapping "
        "through handle.batch(...)."
    )
