"""Layer reset, also head reset: initialise the last layers, or any others, anew (Nikishin et al., 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

from pliant.errors import IllegalConfiguration, NoEffect
from pliant.interventions.base import Context, Intervention, require
from pliant.interventions.state import matches
from pliant.search import Choice, Domain
from pliant.units.depth import depths_by_order, module_of

__all__ = ["LayerReset"]


@final
@dataclass(frozen=True)
class LayerReset(Intervention):
    r"""At task boundaries, or every so many steps, give whole layers fresh initial values.

    .. math:: \theta_l \sim \text{its initial distribution} \quad \text{for the chosen layers } l.

    ``LayerReset()`` at task boundaries is the head reset of continual learning; ``LayerReset(2, every=20_000)`` the
    periodic reset of the last layers that Nikishin et al. propose against primacy bias.

    Args:
        layers: A number :math:`k`: the last :math:`k` layers with weights, counted back from the outputs through the
            exported graph, with what follows each (norms, biases); a network with several outputs (an actor and a
            critic) has a last layer for each. For declared units, which have no graph, counted in the order in which
            the layers were registered. Or a pattern of names such as ``"head"`` or ``"*.mlp"``. ``0``: none (a no-op).
        every: Period in optimizer steps; ``None``: at task boundaries.

    State:
        None.

    Edits:
        The layers' parameters and buffers (initial distributions) and their optimizer state, step counters included.

    Deviations from the published code:
        See the method's page.

    Source:
        Nikishin et al., The Primacy Bias in Deep Reinforcement Learning (2022), arXiv:2205.07802; as a head reset,
        Dohare et al., Loss of plasticity in deep continual learning (Nature 2024).

    Raises:
        IllegalConfiguration: At ``attach``, for an argument out of range, more layers than there are, or an unknown
            initial distribution.
        NoEffect: At ``attach``, if none of the chosen layers is trained.

    Example:
        >>> LayerReset("head", every=1000).null()
        LayerReset(layers=0, every=1000)
    """

    layers: int | str = 1
    every: int | None = None

    redraws: ClassVar[bool] = True
    source: ClassVar[str] = "Nikishin et al. 2022"
    search: ClassVar[Mapping[str, Domain]] = {"layers": Choice((1, 2))}
    defaults: ClassVar[Mapping[str, str]] = {
        "layers": "the final layer, as the authors' SPR agent (its critic and actor heads are reset whole) and the "
        "head resetting of Dohare et al. 2024",
        "every": "task boundaries, as in Dohare et al. 2024; the authors' code: 20,000 steps (SPR), 100,000 (DrQ) and "
        "200,000 (SAC) of the environment",
    }

    @property
    def needs_boundary(self) -> bool:
        """Whether it waits for task boundaries."""
        return self.every is None and self.layers != 0

    def null(self) -> LayerReset:
        """No layer."""
        return replace(self, layers=0)

    def next_step(self, ctx: Context) -> int:
        """The end of the period."""
        return ctx.clock.next(self.every)

    def prepare(self, ctx: Context) -> None:
        """Check the arguments, that there is something to reset, and that all of it can be drawn."""
        number = self.layers
        require(isinstance(number, str) or number >= 0, self, "layers", "a number >= 0, or a pattern of names")
        require(self.every is None or self.every >= 1, self, "every", "None or >= 1")
        if number == 0:
            return
        depths = _depths(ctx)
        if not isinstance(number, str) and number > 1 + max(depths.values()):
            raise IllegalConfiguration(
                f"LayerReset: layers={number}, but the network has {1 + max(depths.values())} layers with weights: "
                f"{_listed(depths)}. Use FreshStart to initialise all of it."
            )
        chosen = self._chosen(ctx)
        if not any(name in ctx.parameters() for name in chosen):
            raise NoEffect(
                f"LayerReset: layers={number!r} names no layer that this optimizer trains. From the outputs "
                f"backwards, the network has: {_listed(depths)}."
            )
        for name in chosen:
            ctx.edit.init_of(name)

    def after_step(self, ctx: Context) -> None:
        """When due by steps."""
        if ctx.clock.every(self.every):
            self._reset(ctx)

    def at_task_boundary(self, ctx: Context, data: Any = None) -> None:
        """When due by tasks."""
        if self.every is None:
            self._reset(ctx)

    def _reset(self, ctx: Context) -> None:
        for name in self._chosen(ctx):
            ctx.edit.assign(name, ctx.edit.draw(name), moments="zero", reason="layer reset")

    def _chosen(self, ctx: Context) -> list[str]:
        """This optimizer's parameters of the chosen layers, and their buffers that have an initial value."""
        layers, depths = self.layers, _depths(ctx)
        drawn = [name for name in ctx.buffers() if ctx.edit.inits.get(name) is not None]
        if isinstance(layers, str):
            return [name for name in (*ctx.parameters(), *drawn) if matches(name, layers)]
        return [name for name in (*ctx.parameters(), *drawn) if depths.get(name, layers) < layers]


def _depths(ctx: Context) -> Mapping[str, int]:
    return ctx.units.depths or depths_by_order(ctx.edit.tensors, ctx.num_members)


def _listed(depths: Mapping[str, int]) -> str:
    """The modules, the last ones first."""
    by_depth: dict[int, dict[str, None]] = {}
    for name, depth in depths.items():
        by_depth.setdefault(depth, {})[module_of(name) or name] = None
    return "; ".join(f"{depth + 1}: {', '.join(map(repr, by_depth[depth]))}" for depth in sorted(by_depth))
