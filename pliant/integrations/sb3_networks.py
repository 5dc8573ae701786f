"""The networks of an agent as modules of their own: observations in, values or the parameters of a distribution out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from stable_baselines3.common.preprocessing import preprocess_obs
from torch import Tensor, nn

from pliant.fresh import copy_of
from pliant.integrations.sb3_states import States

__all__ = ["SEQUENCE", "Network", "batch_of", "fresh_policy", "head_of", "networks_of"]

SEQUENCE = 16
"""Consecutive states that a policy with a memory sees as one sequence, from a state of zeros on."""


class Network(nn.Module):
    """One network of a policy, its tensors under the names that they have in the policy.

    Args:
        policy: The policy.
        parts: Names of the modules that the network consists of.
        compute: What it computes of an observation (and an action) with them.
    """

    def __init__(self, policy: Any, parts: tuple[str, ...], compute: Callable[..., Any]) -> None:
        super().__init__()
        for name in parts:
            place: nn.Module = self
            *path, leaf = name.split(".")
            for step in path:
                if step not in place._modules:
                    place.add_module(step, nn.Module())
                place = place.get_submodule(step)
            place.add_module(leaf, policy.get_submodule(name))
        self._compute = compute
        space = policy.observation_space
        self._keys: tuple[str, ...] | None = tuple(space.spaces) if hasattr(space, "spaces") else None
        self._preprocess = space, bool(policy.normalize_images)

    def forward(self, *inputs: Tensor) -> Any:
        """The tensors of the observation, in the order of a mapping's keys, then the action if it takes one."""
        num = 1 if self._keys is None else len(self._keys)
        observation: Any = inputs[0] if self._keys is None else dict(zip(self._keys, inputs[:num], strict=True))
        return self._compute(self, observation, *inputs[num:])

    def features(self, extractor: str, observation: Any) -> Tensor:
        """What one of its features extractors makes of an observation, ``[B, F]``."""
        space, normalise = self._preprocess
        found: Tensor = self.get_submodule(extractor)(preprocess_obs(observation, space, normalize_images=normalise))
        return found


class _Head:
    """The actor or the critic of a policy that has both: features, memory, hidden layers, head."""

    def __init__(self, extractor: str, memory: str | None, net: str, head: str) -> None:
        self.extractor, self.memory, self.net, self.head = extractor, memory, net, head

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of its modules in the policy."""
        return tuple(name for name in (self.extractor, self.memory, self.net, self.head) if name is not None)

    def __call__(self, network: Network, observation: Any) -> Tensor:
        hidden = network.features(self.extractor, observation)
        if self.memory is not None:
            memory = network.get_submodule(self.memory)
            if isinstance(memory, nn.LSTM):
                out, _ = memory(hidden.reshape(-1, SEQUENCE, memory.input_size).swapaxes(0, 1))
                hidden = out.transpose(0, 1).flatten(0, 1)
            else:
                hidden = memory(hidden)
        found: Tensor = network.get_submodule(self.head)(network.get_submodule(self.net)(hidden))
        return found


def _actor(network: Network, observation: Any) -> Any:
    """Mean and log of the deviation of a squashed Gaussian, or the action itself."""
    actor: Any = network.get_submodule("actor")
    if not hasattr(actor, "get_action_dist_params"):
        return actor(observation)
    mean, log_std, _ = actor.get_action_dist_params(observation)
    return mean, log_std


def _critic(network: Network, observation: Any, action: Tensor) -> Tensor:
    """The value that each critic gives, ``[B, critics]``, or its quantiles, ``[B, critics * quantiles]``."""
    found = network.get_submodule("critic")(observation, action)
    return found.flatten(1) if isinstance(found, Tensor) else torch.cat(found, dim=1)


def _q_net(network: Network, observation: Any) -> Tensor:
    found: Tensor = network.get_submodule("q_net")(observation)
    return found


def _quantile_net(network: Network, observation: Any) -> Tensor:
    found: Tensor = network.get_submodule("quantile_net")(observation)  # [B, quantiles, actions]
    return found.flatten(1)


def networks_of(family: str, policy: Any) -> dict[str, Network]:
    """The trained networks of a policy, by name: actor and critic, or the critic alone.

    Args:
        family: As in :class:`pliant.agents.AgentParts`.
        policy: The agent's policy, or a fresh one like it.
    """
    if family == "actor_critic":
        return {"actor": Network(policy, ("actor",), _actor), "critic": Network(policy, ("critic",), _critic)}
    if family in ("q_net", "quantile_net"):
        return {"critic": Network(policy, (family,), _q_net if family == "q_net" else _quantile_net)}
    memories: tuple[str | None, str | None] = (None, None)
    if family == "recurrent":
        of_critic = "lstm_critic" if policy.lstm_critic is not None else "critic"
        memories = "lstm_actor", "lstm_actor" if policy.shared_lstm else of_critic
    second = "features_extractor" if policy.share_features_extractor else "vf_features_extractor"
    actor = _Head("features_extractor", memories[0], "mlp_extractor.policy_net", "action_net")
    critic = _Head(second, memories[1], "mlp_extractor.value_net", "value_net")
    return {"actor": Network(policy, actor.parts, actor), "critic": Network(policy, critic.parts, critic)}


def head_of(family: str, which: str, network: Network) -> str:
    """A pattern of names: the last layers of a network, which scale its outputs."""
    if family in ("policy", "recurrent"):
        return "action_net" if which == "actor" else "value_net"
    chains: dict[str, str] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            chains[name.rpartition(".")[0]] = name  # the last one of each chain of layers
    heads = [name for chain, name in chains.items() if not chain.endswith(("latent_pi", "linear", "cnn"))]
    if which == "actor":
        names = {name for name, module in network.named_modules() if isinstance(module, nn.Linear)}
        heads = [name for name in ("actor.mu", "actor.log_std") if name in names] or heads
    return ", ".join(name for name in heads if "features_extractor" not in name)


def fresh_policy(agent: Any) -> Any:
    """A policy as the agent's constructor makes it."""
    options = dict(agent.policy_kwargs)
    if agent.use_sde:
        options["use_sde"] = True
    policy = agent.policy_class(agent.observation_space, agent.action_space, agent.lr_schedule, **options)
    return policy.to(agent.device)


# ---- losses ----
def batch_of(
    agent: Any, family: str, which: str, states: States
) -> tuple[tuple[Any, ...], Callable[[Any, Any], Tensor] | None]:
    """A batch for one network, inputs and then targets, and the loss that the agent trains it with on such a batch.

    The loss is that of a step at the present policy: ratios of PPO are one, no gradient is clipped, and of a critic
    with quantiles the mean is compared.
    """
    observations = states.observations
    leaves = tuple(observations.values()) if isinstance(observations, Mapping) else (observations,)
    if family in ("policy", "recurrent"):
        if which == "critic":
            return (*leaves, states.returns), nn.functional.mse_loss
        return (*leaves, (states.actions, states.advantages)), _policy_gradient(agent)
    networks = networks_of(family, agent.policy)
    targets = _td_targets(agent, family, networks, states)
    if family != "actor_critic":
        return (*leaves, (states.actions.long(), targets)), partial(_huber, agent.action_space.n)
    num: int = agent.policy.critic.n_critics
    if which == "critic":
        return (*leaves, states.actions, targets), partial(_mean_square, num)
    return (*leaves, leaves), _value_of_actions(networks["critic"], num)


def _mean_square(num: int, values: Tensor, targets: Tensor) -> Tensor:
    return (_per_critic(values, num) - targets).square().sum(1).mean()


def _per_critic(values: Tensor, num: int) -> Tensor:
    """Mean over the quantiles of each critic, ``[B, critics]``."""
    return values.reshape(len(values), num, -1).mean(2)


def _huber(num_actions: int, values: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
    actions, wanted = targets
    of_actions = values.reshape(len(values), -1, int(num_actions)).mean(1)
    return nn.functional.smooth_l1_loss(of_actions.gather(1, actions), wanted)


def _policy_gradient(agent: Any) -> Callable[[Any, Any], Tensor] | None:
    policy = agent.policy
    if agent.use_sde:  # its deviation depends on the hidden layer, which this network does not hand out
        return None
    distribution = copy.copy(policy.action_dist)
    log_std = policy.log_std.detach().clone() if isinstance(getattr(policy, "log_std", None), Tensor) else None
    is_discrete = hasattr(agent.action_space, "n") and not agent.action_space.shape

    def loss(parameters: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
        actions, advantages = targets
        now = distribution.proba_distribution(parameters, *(() if log_std is None else (log_std,)))
        chosen = actions.long().flatten() if is_discrete else actions
        scaled = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        found: Tensor = -(scaled.flatten() * now.log_prob(chosen)).mean()
        return found

    return loss


def _squashed(mean: Tensor, log_std: Tensor) -> Tensor:
    """An action out of a squashed Gaussian, with noise that is always the same; the mean with gSDE."""
    if log_std.shape != mean.shape:
        return mean.tanh()
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0)).to(mean)
    return (mean + log_std.exp() * noise).tanh()


def _value_of_actions(critic: Network, num: int) -> Callable[[Any, Any], Tensor]:
    """Minus the smallest value that the critics give to the actor's actions; the entropy is left out."""
    frozen = copy_of(critic).requires_grad_(False)

    def loss(output: Any, observation: tuple[Tensor, ...]) -> Tensor:
        actions = _squashed(*output) if isinstance(output, tuple) else output
        found: Tensor = -_per_critic(frozen(*observation, actions), num).min(1).values.mean()
        return found

    return loss


def _td_targets(agent: Any, family: str, networks: Mapping[str, Network], states: States) -> Tensor:
    """What the critics learn: the reward and the discounted value that the target networks give to the next state."""
    policy, following = agent.policy, states.next_observations
    assert states.rewards is not None
    with torch.no_grad():
        if family == "q_net":
            value = policy.q_net_target(following).max(1, keepdim=True).values
        elif family == "quantile_net":
            value = policy.quantile_net_target(following).mean(1).max(1, keepdim=True).values
        else:
            actor = getattr(policy, "actor_target", policy.actor)
            mean, *rest = actor.get_action_dist_params(following) if hasattr(actor, "latent_pi") else (None,)
            action = _squashed(mean, rest[0]) if mean is not None else actor(following)
            found = policy.critic_target(following, action)
            values = found.mean(2) if isinstance(found, Tensor) else torch.cat(found, dim=1)
            value = values.min(1, keepdim=True).values
        result: Tensor = states.rewards + states.discounts * value
        return result
