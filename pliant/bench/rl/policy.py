"""The policy of Stable-Baselines3 with the networks and the optimizer of an experiment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.optim import Optimizer

from pliant.errors import IllegalConfiguration

__all__ = ["Policy"]

_PARTS = ("policy_net", "value_net", "policy_head", "value_head")


@final
class Policy(ActorCriticPolicy):
    """An actor and critic whose hidden layers, heads and optimizer are given; all else is Stable-Baselines3's.

    Args:
        observation_space: as of the base.
        action_space: as of the base.
        lr_schedule: as of the base.
        network: has ``policy_net``, ``value_net``, ``policy_head``, ``value_head`` and ``hidden``, as
            :class:`~pliant.bench.models.ActorCritic`.
        make_optimizer: makes the optimizer of this policy.
        use_sde: False; the base is told so by the algorithm.

    Raises:
        IllegalConfiguration: the network has no such parts.
    """

    def __init__(
        self,
        observation_space: Any,
        action_space: Any,
        lr_schedule: Any,
        *,
        network: Any,
        make_optimizer: Callable[[nn.Module], Optimizer],
        use_sde: bool = False,
    ) -> None:
        if not all(isinstance(getattr(network, part, None), nn.Module) for part in _PARTS):
            raise IllegalConfiguration(
                f"an agent needs a model with {', '.join(_PARTS)}, such as actor_critic; {type(network).__name__} has "
                "none: give --set model.name=actor_critic"
            )
        self._given: Any = (network, make_optimizer)
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=list(network.hidden),
            ortho_init=False,
            use_sde=use_sde,
        )

    @property
    def network(self) -> Any:
        """The module that was given; its parts are this policy's."""
        return self._given[0]

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        network, make_optimizer = self._given
        self.mlp_extractor.policy_net, self.mlp_extractor.value_net = network.policy_net, network.value_net
        self.action_net, self.value_net = network.policy_head, network.value_head
        self.optimizer = make_optimizer(self)
