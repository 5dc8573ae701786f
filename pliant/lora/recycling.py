"""RankRecycling: fold weak components of LoRA adapters into the base, and draw them anew (after ReLoRA, 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from pliant.devices import can_read
from pliant.errors import IllegalConfiguration, NoEffect, NotYetSupported
from pliant.interventions.base import Context, Intervention, PerUnit, Tensors, require
from pliant.interventions.state import StateKind
from pliant.lora.layers import Pair, check_foldable, contributions, folded_delta, pairs
from pliant.lora.saving import fingerprint, guard, mark
from pliant.search import Domain, Range
from pliant.units.export import canonical_names
from pliant.units.group import UnitGroup

__all__ = ["RankRecycling"]


@final
@dataclass(frozen=True)
class RankRecycling(Intervention):
    r"""At task boundaries, or every so many steps, let the weakest components of LoRA adapters begin anew.

    .. math::
        c_i = |s|\, \|b_i\| \|a_i\|, \qquad
        W \leftarrow W + s \sum_{i \text{ weak}} b_i a_i^\top, \qquad
        a_i \sim \text{its initial distribution}, \quad b_i \leftarrow 0

    The function in evaluation mode is the same before and after, up to the rounding of :math:`W`; what the adapter
    has learnt stays, and the components are free to learn something else. (In training mode, dropout in front of the
    adapter no longer reaches what is in the base.) ``RankRecycling(fraction=1.0)`` merges whole adapters and
    starts them anew, as ReLoRA does.

    Only active adapters that the optimizer trains are touched. From the first fold on, also after ``detach()``, the
    adapter alone is not the model any more, and ``save_pretrained`` says so: see :func:`pliant.lora.save_folded`.

    Args:
        fraction: Which share of each adapter's components, the weakest ones, rounded, at least one; ``0``: none (a
            no-op).
        every: Period in optimizer steps; ``None``: at task boundaries.
        maturity_threshold: Components that are younger, in steps, are left alone.
        fold: Whether the components go into the base weight; else what they have learnt is dropped, which changes the
            function and leaves the base as it is.
        shared_base: Whether to fold where other adapters, that are not active, share the base weight: what the model
            does with them changes then.
        saving: ``"refuse"``: ``save_pretrained`` is an error after a fold; ``"beside"``: it also writes the base
            weights, which :func:`pliant.lora.load_folded` reads.
        where: Which unit groups, a pattern of names; those that are no adapter's components are left alone.

    State:
        ``born``: the step at which each component began; ``base``: some entries of each folded base weight, by which a
        resumed run notices a base without the folds.

    Edits:
        The base weights (also frozen ones), the components' rows of ``A`` (initial distribution) and columns of ``B``
        (zero), and the moments of both (zero). In an embedding, ``A`` and ``B`` change places.

    Deviations from the published code:
        ReLoRA merges all components, prunes most of the moments, and warms the step size up again. Here the moments of
        the components that begin anew are cleared, and the step size is the user's.

    Source:
        Lialin et al., ReLoRA: High-Rank Training Through Low-Rank Updates (2023), arXiv:2307.05695; at task
        boundaries, Xia et al., Chain of LoRA (2024), arXiv:2401.04151. Weak components alone: this library.

    Raises:
        IllegalConfiguration: At ``attach``, for an argument out of range, merged adapters, or other adapters on the
            same base; later, if the base weights lack the folds of the loaded state.
        NotYetSupported: At ``attach``, for an unknown ``peft``, quantised or half-precision base weights, tied ones,
            and variants such as DoRA.
        NoEffect: At ``attach``, if the model has no LoRA layer that is trained.

    Example:
        >>> RankRecycling(every=500).null().fraction
        0.0
    """

    fraction: float = 0.25
    every: int | None = None
    maturity_threshold: int = 100
    fold: bool = True
    shared_base: bool = False
    saving: Literal["refuse", "beside"] = "refuse"
    where: str = "*lora_*"

    hint: ClassVar[str] = (
        "It acts on the components of LoRA adapters, which a model has after peft.get_peft_model(model, "
        "peft.LoraConfig(...)), while they are active and not merged (unmerge_adapter())."
    )
    state: ClassVar[Mapping[str, StateKind]] = {"born": PerUnit(dtype="int64"), "base": Tensors()}
    source: ClassVar[str] = "Lialin et al. 2023, and this library"
    search: ClassVar[Mapping[str, Domain]] = {"fraction": Range(0.05, 1.0, log=True)}
    defaults: ClassVar[Mapping[str, str]] = {
        "fraction": "a choice of this library; 1 in ReLoRA and Chain of LoRA",
        "every": "task boundaries, as in Chain of LoRA; ReLoRA merges every 5,000 steps",
        "maturity_threshold": "a choice of this library, as in continual backprop",
        "fold": "as in ReLoRA and Chain of LoRA",
        "shared_base": "a choice of this library: nothing changes that nobody looks at",
        "saving": "a choice of this library: half a model is not written",
        "where": "all adapters",
    }

    @property
    def needs_boundary(self) -> bool:
        """Whether it waits for task boundaries."""
        return self.every is None and self.fraction != 0

    def null(self) -> RankRecycling:
        """No component."""
        return replace(self, fraction=0.0)

    def unit_pattern(self) -> str:
        """The groups that it edits."""
        return self.where

    def check(self) -> None:
        """Refuse arguments out of range."""
        require(0 <= self.fraction <= 1, self, "fraction", "in [0, 1]")
        require(self.every is None or self.every >= 1, self, "every", "None or >= 1")
        require(self.maturity_threshold >= 0, self, "maturity_threshold", ">= 0")
        require(self.saving in ("refuse", "beside"), self, "saving", "'refuse' or 'beside'")

    def next_step(self, ctx: Context) -> int:
        """The end of the period; after a state with folds was loaded, the guard stands before the next step."""
        if ctx.tensors("base"):
            guard(ctx.modules[""], self.saving)
        return ctx.clock.next(self.every)

    def prepare(self, ctx: Context) -> None:
        """Check that there are components, and that folding them is exact."""
        if ctx.num_members is not None:
            raise NotYetSupported("RankRecycling: a stack of members has no adapters of peft; attach to one model.")
        found = self._components(ctx)
        if not found:
            raise NoEffect(
                f"RankRecycling: this optimizer trains no active LoRA component that matches {self.where!r}."
            )
        for group, pair in found:
            slices = {(piece.name, piece.role) for piece in group.slices}
            if slices != {(pair.a, "incoming"), (pair.b, "outgoing")}:
                raise NotYetSupported(
                    f"RankRecycling: the components of {pair.layer!r} (adapter {pair.adapter!r}) are tied to other "
                    f"tensors ({', '.join(group.tensors)}). Leave them out with where=..."
                )
            for name in (pair.a, pair.b):
                ctx.edit.init_of(name)
            if self.fold:
                self._check_fold(ctx, pair)

    def after_step(self, ctx: Context) -> None:
        """When due by steps."""
        if ctx.clock.every(self.every):
            self._recycle(ctx)

    def at_task_boundary(self, ctx: Context, data: Any = None) -> None:
        """When due by tasks."""
        if self.every is None:
            self._recycle(ctx)

    # ---- internals ----
    def _components(self, ctx: Context) -> list[tuple[UnitGroup, Pair]]:
        """The groups of this optimizer that are components of active adapters."""
        by_factor = {pair.a: pair for pair in pairs(ctx.modules[""])}
        found = []
        for group in ctx.groups(self.where):
            pair = next((by_factor[name] for name in group.tensors if name in by_factor), None)
            if pair is None or pair.a not in (piece.name for piece in group.role("incoming")):
                continue
            layer: Any = ctx.modules[pair.layer]
            if layer.merged_adapters:
                raise IllegalConfiguration(
                    f"RankRecycling: the adapters {', '.join(map(repr, layer.merged_adapters))} are merged into the "
                    f"base weight of {pair.layer!r}: call unmerge_adapter() first."
                )
            if pair.adapter in layer.active_adapters and not layer.disable_adapters:
                found.append((group, pair))
        return found

    def _check_fold(self, ctx: Context, pair: Pair) -> None:
        names: dict[str, list[str]] = {}
        for name, first in canonical_names(ctx.modules[""]).items():
            names.setdefault(first, []).append(name)
        layer: Any = ctx.modules[pair.layer]
        check_foldable(layer, pair, names, shared_base=self.shared_base)
        with torch.no_grad():
            everything = torch.ones(pair.rank, dtype=torch.bool, device=layer.get_base_layer().weight.device)
            mine = folded_delta(layer, pair, ctx.whole(pair.a), ctx.whole(pair.b), everything)
            theirs = layer.get_delta_weight(pair.adapter)
        if mine.shape != theirs.shape or not torch.allclose(mine.to(theirs.dtype), theirs, rtol=1e-4, atol=1e-6):
            raise NotYetSupported(
                f"RankRecycling: peft says that {pair.layer!r} (adapter {pair.adapter!r}) changes its base weight in "
                "another way than by scaling * B A. Leave it out with where=..., or pass fold=False."
            )

    def _recycle(self, ctx: Context) -> None:
        if self.fraction == 0:
            return
        found = self._components(ctx)
        for _, pair in found:
            self._check_base(ctx, pair)
        chosen = [(group, pair, *self._weak(ctx, group, pair)) for group, pair in found]  # all before any is edited
        for group, pair, mask, count in chosen:
            if can_read(mask) and not bool(mask.any()):
                continue
            if self.fold:
                self._fold(ctx, pair, mask)
            reason = f"among the {count} weakest of {pair.rank} components" + (", folded" if self.fold else "")
            if pair.kind == "embedding":
                ctx.edit.reset(group, mask, incoming="zero", outgoing="keep", reason=reason)
                ctx.edit.reset_weights(pair.b, mask.expand(ctx.whole(pair.b).shape), reason=reason)
            else:
                ctx.edit.reset(group, mask, reason=reason)
            alive = mask if ctx.edit.live is None else mask & (ctx.edit.live > 0)
            born = ctx.state(group)["born"]
            born.copy_(torch.where(alive, _now(ctx, born), born))

    def _weak(self, ctx: Context, group: UnitGroup, pair: Pair) -> tuple[Tensor, int]:
        """The weakest components that are old enough, bool ``[rank]``, and how many there may be."""
        layer: Any = ctx.modules[pair.layer]
        with torch.no_grad():
            found = contributions(ctx.whole(pair.a), ctx.whole(pair.b), layer.scaling[pair.adapter])
        finite = ctx.check_finite(found, group, "weights")
        born = ctx.state(group)["born"]
        candidates = finite & (_now(ctx, born) - born >= self.maturity_threshold)
        count = max(1, round(self.fraction * pair.rank))
        order = found.masked_fill(~candidates, float("inf")).argsort(stable=True)
        return candidates & torch.zeros_like(candidates).scatter(0, order[:count], True), count

    def _fold(self, ctx: Context, pair: Pair, mask: Tensor) -> None:
        layer = ctx.modules[pair.layer]
        check_foldable(layer, pair, {pair.base: [pair.base]}, shared_base=self.shared_base)  # adapters may have come
        with torch.no_grad():
            delta = folded_delta(layer, pair, ctx.whole(pair.a), ctx.whole(pair.b), mask)
        ctx.edit.add([pair.base], [delta], reason=f"components of {pair.a!r} folded in")
        if not ctx.edit.dry_run:
            ctx.tensors("base")[pair.base] = fingerprint(ctx.whole(pair.base))
            mark(layer)
            guard(ctx.modules[""], self.saving)

    def _check_base(self, ctx: Context, pair: Pair) -> None:
        """Refuse a base weight that lacks the folds of the state that was loaded."""
        before = ctx.tensors("base").get(pair.base)
        if before is None:
            return
        mark(ctx.modules[pair.layer])
        now = fingerprint(ctx.whole(pair.base))
        if not torch.equal(before.to(now.device), now):
            raise IllegalConfiguration(
                f"RankRecycling: {pair.base!r} is not the base weight that components were folded into: the adapter "
                "was loaded onto another base. Call pliant.lora.load_folded(model, directory), or load the whole "
                "state_dict of the model; if the base was changed on purpose, attach anew without loading this state."
            )


def _now(ctx: Context, like: Tensor) -> Tensor:
    return torch.as_tensor(ctx.clock.now(), dtype=torch.int64, device=like.device)
