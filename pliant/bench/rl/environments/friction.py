"""Changing friction: the slippery environments."""

from __future__ import annotations

import math
from typing import Any, ClassVar, final

from pliant.bench.rl.environments.simulator import ChangingModel
from pliant.errors import NoEffect

__all__ = ["ChangingFriction"]


@final
class ChangingFriction(ChangingModel):
    r"""The sliding friction of everything with everything changes, in a MuJoCo environment.

    A contact has the larger of the frictions of its two geoms, so that changing the floor alone changes nothing where
    the feet have more. Here *all* geoms, and the contact pairs that have a friction of their own, get the value: then
    every contact has it. A body that slides with speed :math:`v` stops after :math:`v^2 / (2 \mu g)`. Friction against
    turning and rolling stays (three-dimensional contacts, as in Gymnasium's environments, have none).

    The values are coefficients of friction, from 1e-5 (the least that MuJoCo has).

    Args, attributes and errors: see :class:`Changing`.

    Raises:
        NoEffect: if nothing in the environment can touch anything, or only without friction.

    Source: Slippery Ant of Dohare et al. (2024), "Loss of plasticity in deep continual learning", Nature 632, whose
    code also sets the sliding friction of all geoms, by writing the default of the XML file anew.
    """

    quantity: ClassVar[str] = "friction"
    legal: ClassVar[tuple[float, float]] = (1e-5, math.inf)
    fields: ClassVar[tuple[str, ...]] = ("geom_friction", "pair_friction")

    def _read(self) -> dict[str, Any]:
        if not _slides(self._model):
            raise NoEffect(
                f"ChangingFriction: in {self.env} nothing can touch anything with friction, so that there is nothing "
                f"to change; wrap an environment with a floor, such as Ant-v5, Hopper-v5 or Walker2d-v5."
            )
        return self._fields()

    def _write(self, value: float) -> None:
        model = self._model
        model.geom_friction[:, 0] = value
        model.pair_friction[:, :2] = value


def _slides(model: Any) -> bool:
    """Whether two geoms can be in contact with friction, by MuJoCo's rules of who collides."""
    if (model.pair_dim > 1).any():
        return True
    body, kind, affinity, dimension = (
        *(model.geom_bodyid, model.geom_contype),
        *(model.geom_conaffinity, model.geom_condim),
    )
    weld = model.body_weldid[body]
    parent = model.body_weldid[model.body_parentid[weld]]
    for one in range(model.ngeom):
        for other in range(one):
            collide = (kind[one] & affinity[other]) | (kind[other] & affinity[one])
            rubs = max(dimension[one], dimension[other]) > 1
            # what is welded together never collides, nor a body with its parent, unless that is the world
            apart = weld[one] != weld[other]
            family = (parent[one] == weld[other] and weld[other]) or (parent[other] == weld[one] and weld[one])
            if collide and rubs and apart and not family:
                return True
    return False
