"""The field's methods in miniature, each in a few lines: what the verbs and kinds of state have to serve.

They are sketches with the mechanism of the paper and none of its details, and they are no part of the package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from pliant.interventions.base import Context, Host, Intervention, PerParameter, PerUnit, Snapshot
from pliant.interventions.state import StateKind
from pliant.sharded import whole
from pliant.surgery import adopt, replace_module


@dataclass(frozen=True)
class Sketch(Intervention):
    """Acts at every so many steps; its null never does."""

    every: int | None = 2

    def null(self) -> Sketch:
        return replace(self, every=None)

    def after_step(self, ctx: Context) -> None:
        if ctx.clock.every(self.every):
            self.act(ctx)

    def act(self, ctx: Context) -> None:
        raise NotImplementedError

    def matrices(self, ctx: Context) -> dict[str, Tensor]:
        return {name: ctx.whole(name) for name, tensor in ctx.parameters().items() if tensor.ndim == 2}


@final
@dataclass(frozen=True)
class Fire(Sketch):
    """FIRE: every matrix becomes its polar factor."""

    def act(self, ctx: Context) -> None:
        for name, matrix in self.matrices(ctx).items():
            left, _, right = torch.linalg.svd(matrix, full_matrices=False)
            ctx.edit.assign(name, left @ right, moments="keep", reason="orthogonalised")


@final
@dataclass(frozen=True)
class SpectralDiversity(Sketch):
    """SDP: singular values go towards their mean."""

    def act(self, ctx: Context) -> None:
        for name, matrix in self.matrices(ctx).items():
            left, values, right = torch.linalg.svd(matrix, full_matrices=False)
            ctx.edit.assign(name, left @ torch.diag(values.mean() ** 0.5 * values**0.5) @ right, moments="keep")


@final
@dataclass(frozen=True)
class Dash(Sketch):
    """DASH: at a boundary, rows shrink by how little they agree with the gradient on the new data."""

    def at_task_boundary(self, ctx: Context, data: Any = None) -> None:
        if self.every is None:
            return
        named = {name: tensor.detach().requires_grad_() for name, tensor in ctx.parameters().items()}
        with torch.enable_grad():
            loss = ctx.call(data, named, training=True).square().mean()
            gradients = torch.autograd.grad(loss, list(named.values()))
        for (name, weight), gradient in zip(named.items(), gradients, strict=True):
            if weight.ndim == 2:
                agreement = torch.cosine_similarity(weight.detach(), -gradient, dim=1)
                ctx.edit.shrink([name], [agreement.clamp(0.3, 1).unsqueeze(1)])

    def act(self, ctx: Context) -> None:
        pass


@final
@dataclass(frozen=True)
class WeightClipping(Sketch):
    """No weight goes beyond a multiple of the bound that it was drawn from."""

    def act(self, ctx: Context) -> None:
        bounds = {name: 0.9 * ctx.edit.init_of(name).scale for name in self.matrices(ctx)}
        ctx.edit.clamp(list(bounds), [(-bound, bound) for bound in bounds.values()])


@final
@dataclass(frozen=True)
class NormaliseAndProject(Sketch):
    """NaP: matrices go back to the norm they had at the start; nothing is read on the host."""

    state: ClassVar[Mapping[str, StateKind]] = {"initial": PerParameter("initial")}

    def act(self, ctx: Context) -> None:
        initial, matrices = ctx.parameter_state("initial"), self.matrices(ctx)
        factors = [whole(initial[name]).norm() / matrix.norm() for name, matrix in matrices.items()]
        ctx.edit.shrink(list(matrices), factors)


@final
@dataclass(frozen=True)
class L2Init(Sketch):
    """Regenerative regularisation, decoupled: every weight is pulled to where it began."""

    where: str = "*weight"

    state: ClassVar[Mapping[str, StateKind]] = {"initial": PerParameter("initial")}

    def parameter_pattern(self) -> str:
        return self.where

    def act(self, ctx: Context) -> None:
        initial = ctx.parameter_state("initial")
        ctx.edit.shrink(list(initial), [0.9] * len(initial), towards=list(initial.values()))


@final
@dataclass(frozen=True)
class HareAndTortoise(Sketch):
    """A slow network averages the fast one, which now and then goes back to it."""

    state: ClassVar[Mapping[str, StateKind]] = {"tortoise": Snapshot(), "num_leaps": Host(0)}

    def after_step(self, ctx: Context) -> None:
        if self.every is None:
            return
        tortoise = ctx.snapshot("tortoise")
        for name, parameter in ctx.parameters().items():
            tortoise[name].lerp_(parameter.detach(), 0.1)
        if ctx.clock.every(self.every):
            for name in ctx.parameters():
                ctx.edit.assign(name, tortoise[name], moments="keep", reason="back to the slow network")
            ctx.host["num_leaps"] = int(ctx.host["num_leaps"]) + 1

    def on_record(self, ctx: Context) -> Mapping[str, float]:
        return {"num_leaps": float(ctx.host["num_leaps"])}


@final
@dataclass(frozen=True)
class SelectiveWeightReset(Sketch):
    """The smallest weights are drawn anew."""

    redraws: ClassVar[bool] = True

    def act(self, ctx: Context) -> None:
        for name, matrix in self.matrices(ctx).items():
            ctx.edit.reset_weights(name, matrix.abs() <= matrix.abs().quantile(0.1), reason="small")


@final
@dataclass(frozen=True)
class ContinuousCBP(Sketch):
    """Every unit goes towards a new life, the less useful the faster."""

    needs: ClassVar[frozenset[str]] = frozenset({"mean_abs_activation"})
    redraws: ClassVar[bool] = True

    def unit_pattern(self) -> str:
        return "*"

    def act(self, ctx: Context) -> None:
        for group in ctx.groups():
            activity = ctx.stats(group).mean_abs_activation
            ctx.edit.reset(group, 0.2 * torch.sigmoid(1 - activity / activity.mean()), moments="keep")


@final
@dataclass(frozen=True)
class SelfNormalisedResets(Sketch):
    """SNR: a histogram, per unit, of the gaps between firings; a gap beyond its upper tail means a reset."""

    needs: ClassVar[frozenset[str]] = frozenset({"mean_abs_activation"})
    redraws: ClassVar[bool] = True
    state: ClassVar[Mapping[str, StateKind]] = {
        "gaps": PerUnit(0, "int64", shape=(4,)),
        "since": PerUnit(0, "int64"),
        "has_fired": PerUnit(0, "bool"),
    }

    def unit_pattern(self) -> str:
        return "*"

    def after_step(self, ctx: Context) -> None:
        if self.every is None:
            return
        for group in ctx.groups():
            state, fires = ctx.state(group), ctx.stats(group).mean_abs_activation > 0.3
            gap = state["since"].clamp(max=3)
            state["gaps"].scatter_add_(-1, gap.unsqueeze(-1), fires.long().unsqueeze(-1))
            state["since"].add_(1).masked_fill_(fires, 0)
            state["has_fired"].logical_or_(fires)
            tail = state["since"] > state["gaps"].argmax(-1)
            ctx.edit.reset(group, tail & state["has_fired"], reason="silent for longer than ever")


@final
@dataclass(frozen=True)
class Churn(Sketch):
    """C-CHAIN: the outputs on a reference batch stay close to those of a network of some steps ago."""

    state: ClassVar[Mapping[str, StateKind]] = {"lagged": Snapshot()}

    def penalty(self, ctx: Context) -> Tensor | None:
        if self.every is None:
            return None
        reference = torch.linspace(-1, 1, 20).reshape(4, 5)
        with torch.no_grad():
            target = ctx.call(reference, ctx.snapshot("lagged"))
        return (ctx.call(reference) - target).square().mean()

    def act(self, ctx: Context) -> None:
        for name, parameter in ctx.parameters().items():
            ctx.snapshot("lagged")[name].copy_(parameter.detach())


@final
@dataclass(frozen=True)
class ShrinkAndNoise(Sketch):
    """Shrink and perturb per unit and for whole tensors, with the verbs for each."""

    redraws: ClassVar[bool] = True

    def unit_pattern(self) -> str:
        return "*"

    def act(self, ctx: Context) -> None:
        for group in ctx.groups():
            factor = torch.full((group.size,), 0.9)
            ctx.edit.scale(group, factor, role="incoming")
            ctx.edit.perturb(group, 1 - factor)
        for name in self.matrices(ctx):
            ctx.edit.add_noise(name, 0.01)


@final
@dataclass(frozen=True)
class PullBeforeTheStep(Sketch):
    """A penalty by hand: what is left of the old gradients is added before the step."""

    state: ClassVar[Mapping[str, StateKind]] = {"mean": PerParameter(0.0, "float32")}

    def before_step(self, ctx: Context) -> None:
        if self.every is None:
            return
        for name, parameter in ctx.parameters().items():
            mean = ctx.parameter_state("mean")[name]
            mean.lerp_(parameter.grad.float(), 0.5)
            parameter.grad.add_(mean.to(parameter.grad), alpha=0.1)

    def act(self, ctx: Context) -> None:
        pass


# ---- methods that change the model ----
@final
@dataclass(frozen=True)
class InsertNorm(Sketch):
    """A layer norm behind the first layer."""

    changes_model: ClassVar[bool] = True

    def surgery(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        first = model.get_submodule("0")
        replace_module(model, optimizers, "0", nn.Sequential(first, nn.LayerNorm(first.out_features)))

    def act(self, ctx: Context) -> None:
        ctx.edit.clamp(list(self.matrices(ctx)), [(-1.0, 1.0)] * len(self.matrices(ctx)))


class Injected(nn.Module):
    """A frozen head, and two copies of a new one whose difference starts at zero."""

    def __init__(self, old: nn.Linear) -> None:
        super().__init__()
        self.old, self.new, self.copy = old, nn.Linear(old.in_features, old.out_features), None
        self.copy = nn.Linear(old.in_features, old.out_features)
        self.copy.load_state_dict(self.new.state_dict())
        self.old.requires_grad_(False)
        self.copy.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.old(x) + self.new(x) - self.copy(x)


@final
@dataclass(frozen=True)
class PlasticityInjection(Sketch):
    """The head is frozen; a new one learns what is missing."""

    changes_model: ClassVar[bool] = True

    def surgery(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        head = model.get_submodule("4")
        replace_module(model, optimizers, "4", Injected(head))

    def act(self, ctx: Context) -> None:
        ctx.edit.shrink(["4.new.weight"], [0.9])


@final
@dataclass(frozen=True)
class FreshHead(Sketch):
    """Another last layer in place of the old one."""

    changes_model: ClassVar[bool] = True

    def surgery(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        old = model.get_submodule("4")
        replace_module(model, optimizers, "4", nn.Linear(old.in_features, old.out_features, bias=old.bias is not None))

    def act(self, ctx: Context) -> None:
        ctx.edit.shrink(["4.weight"], [0.9])


@final
@dataclass(frozen=True)
class ExtraHeads(Sketch):
    """InFeR: further heads that the network carries along, trained through a penalty only."""

    changes_model: ClassVar[bool] = True
    state: ClassVar[Mapping[str, StateKind]] = {"start": Snapshot()}

    def surgery(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        model.register_module("extra", nn.Linear(3, 2).to(next(model.parameters())))
        model.forward = lambda x: nn.Sequential.forward(_without_extra(model), x)
        adopt(optimizers, list(model.extra.parameters()), like=model.get_parameter("4.weight"))

    def act(self, ctx: Context) -> None:
        ctx.edit.assign("extra.weight", ctx.snapshot("start")["extra.weight"])


def _without_extra(model: nn.Sequential) -> nn.Sequential:
    return nn.Sequential(*(module for name, module in model.named_children() if name != "extra"))


METHODS = {
    cls.__name__: cls()
    for cls in (
        Fire, SpectralDiversity, Dash, WeightClipping, NormaliseAndProject, L2Init, HareAndTortoise,
        SelectiveWeightReset, ContinuousCBP, SelfNormalisedResets, Churn, ShrinkAndNoise, PullBeforeTheStep,
    )
}  # fmt: skip

SURGEONS = {cls.__name__: cls() for cls in (InsertNorm, PlasticityInjection, FreshHead, ExtraHeads)}
