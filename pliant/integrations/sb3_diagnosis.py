"""Diagnosis and probe of agents: each network on the states that the agent itself has visited."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from stable_baselines3.common.base_class import BaseAlgorithm

from pliant.agents import attached_to, parts_of_agent
from pliant.diagnosis import Diagnosis, diagnose
from pliant.diagnosis.findings import Verdict
from pliant.errors import IllegalConfiguration, NotYetSupported
from pliant.integrations.sb3_networks import SEQUENCE, Network, batch_of, fresh_policy, head_of, networks_of
from pliant.integrations.sb3_states import states_of
from pliant.probe import ProbeResult, RandomTargets, probe

__all__ = ["AgentDiagnosis", "diagnose_agent", "probe_agent"]

_ORDER: tuple[Verdict, ...] = ("plasticity", "unknown", "not plasticity")


@dataclass(frozen=True)
class AgentDiagnosis(Mapping[str, Diagnosis]):
    """The diagnosis of each network of an agent, by name; ``print`` it.

    Attributes:
        networks: ``"actor"`` and ``"critic"``, or ``"critic"`` alone.
        agent: The algorithm.
        source: Where the states come from, in words.

    Example:
        >>> import pliant
        >>> from stable_baselines3 import PPO
        >>> agent = PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32, device="cpu", seed=0).learn(64)
        >>> found = pliant.sb3.diagnose(agent, twins=2)
        >>> sorted(found), found.agent
        (['actor', 'critic'], 'PPO')
    """

    networks: Mapping[str, Diagnosis]
    agent: str
    source: str

    @property
    def verdict(self) -> Verdict:
        """``"plasticity"`` if one network shows it, else ``"unknown"`` if one is unknown, else ``"not plasticity"``."""
        return min((found.verdict for found in self.networks.values()), key=_ORDER.index)

    def __getitem__(self, name: str) -> Diagnosis:
        return self.networks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.networks)

    def __len__(self) -> int:
        return len(self.networks)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as what JSON can hold."""
        networks = {name: found.to_dict() for name, found in self.networks.items()}
        return {"agent": self.agent, "source": self.source, "verdict": self.verdict, "networks": networks}

    def __str__(self) -> str:
        """A line for each network, then the page of each."""
        width = max(map(len, self.networks))
        lines = [f"{self.agent}, {self.source}: {self.verdict}"]
        for name, found in self.networks.items():
            what = f" ({', '.join(found.mechanisms)})" if found.mechanisms else ""
            lines.append(f"  {name:<{width}}  {found.verdict}{what}")
        for name, found in self.networks.items():
            lines += ["", f"-- {name} --", textwrap.indent(str(found), "  ", lambda line: bool(line.strip()))]
        return "\n".join(lines)


def diagnose_agent(
    agent: BaseAlgorithm,
    *,
    num_states: int = 512,
    env: Any = None,
    networks: str | tuple[str, ...] = ("actor", "critic"),
    twins: int = 5,
    seed: int = 0,
    mode: Literal["train", "eval"] = "train",
) -> AgentDiagnosis:
    """Which mechanisms of lost plasticity the networks of an agent show, on states that the agent has visited.

    Each network is diagnosed by itself (:func:`pliant.diagnose`), beside fresh twins that the agent's own policy class
    makes: dead and dormant units are counted over the agent's own states, gradients are those of its own losses.
    Nothing about the agent changes. What critics learn is computed with the target networks; a policy with a memory
    sees sequences of 16 states from a state of zeros on, whatever episodes they are of.

    Args:
        agent: The agent.
        num_states: How many states; fewer where its buffer holds fewer.
        env: An environment in which the policy is run for new states. ``None``: the agent's own buffer.
        networks: Which networks.
        twins: Fresh twins of each.
        seed: Of twins and of the choice of states.
        mode: As for :func:`pliant.diagnose`.

    Returns:
        A mapping from network to its diagnosis.

    Raises:
        NoEffect: If the agent has no states and no environment is given.
        IllegalConfiguration: For a network that the agent does not have.
        NotYetSupported: For an algorithm that is not known, and for SAC and TQC with gSDE.

    Example:
        >>> import pliant
        >>> from stable_baselines3 import PPO
        >>> agent = PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32, device="cpu", seed=0).learn(64)
        >>> found = pliant.sb3.diagnose(agent, twins=2)
        >>> found.verdict, list(found)
        ('not plasticity', ['actor', 'critic'])
    """
    parts = parts_of_agent(agent)
    policy: Any = agent.policy
    views = _chosen(networks_of(parts.family, policy), networks)
    if parts.family == "actor_critic" and agent.use_sde:
        raise NotYetSupported(
            f"{parts.kind} with use_sde=True keeps a noise matrix with the graph of its last step: its networks cannot "
            "be copied, so that there are no fresh twins."
        )
    states = states_of(agent, num_states, env=env, seed=seed)
    if parts.family == "recurrent":
        states = states.cut(len(states.actions) // SEQUENCE * SEQUENCE)
    found: dict[str, Diagnosis] = {}
    for name, view in views.items():
        batch, loss = batch_of(agent, parts.family, name, states)
        found[name] = diagnose(
            view,
            batch if loss is not None else batch[:-1],
            loss,
            twins=twins,
            seed=seed,
            mode=mode,
            make_model=partial(_fresh, agent, parts.family, name),
            handle=None if found else next(iter(attached_to(agent)), None),
            optimizer=parts.optimizers[-1] if name == "actor" else parts.optimizers[0],
        )
    return AgentDiagnosis(found, type(agent).__name__, states.source)


def probe_agent(
    agent: BaseAlgorithm,
    *,
    network: str = "critic",
    num_states: int = 1024,
    batch_size: int = 64,
    env: Any = None,
    steps: int = 500,
    seeds: int = 5,
    reset_head: bool = True,
    moments: Literal["fresh", "carried"] = "fresh",
    **more: Any,
) -> ProbeResult:
    """Whether a network of an agent can still fit new targets on the agent's own states as well as a fresh one.

    A copy of the network and a fresh twin, made by the agent's own policy class, learn the same random values by heart
    (:class:`pliant.probe.RandomTargets`, standard normal, one for each output), with an optimizer like the agent's at
    its present learning rate. Nothing about the agent changes.

    Args:
        agent: The agent.
        network: ``"critic"``: the value function; or ``"actor"``.
        num_states: States that the values are of.
        batch_size: States in a step.
        env: An environment in which the policy is run for new states. ``None``: the agent's own buffer.
        steps: Optimizer steps of each network.
        seeds: How many tasks, or which.
        reset_head: Whether the last layer starts as the twin's. Otherwise a value function whose values are in the
            hundreds has first to unlearn their size, which a fresh one has not.
        moments: ``"carried"``: the network keeps its optimizer's moments.
        **more: Further options of :func:`pliant.probe`, such as ``methods`` and ``twins``.

    Returns:
        As of :func:`pliant.probe`; ``print`` it.

    Raises:
        NoEffect: If the agent has no states and no environment is given.
        IllegalConfiguration: For a network that the agent does not have.
        NotYetSupported: For an algorithm that is not known, or a policy with a memory.

    Source:
        Lyle et al. (2022), *Understanding and Preventing Capacity Loss in Reinforcement Learning*, fit the targets of
        random networks on an agent's states. Deviation: independent random values here, and a fresh head.

    Example:
        >>> import pliant
        >>> from stable_baselines3 import PPO
        >>> agent = PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32, device="cpu", seed=0).learn(64)
        >>> result = pliant.sb3.probe(agent, steps=30, seeds=2)
        >>> result.outcome in ("worse", "better", "no difference shown", "no verdict")
        True
    """
    parts = parts_of_agent(agent)
    if parts.family == "recurrent":
        raise NotYetSupported(
            f"the networks of {parts.kind} see sequences, and the probe's batches are single states: probe the agent's "
            "networks in pieces with pliant.probe(module, task, ...)."
        )
    if parts.family == "actor_critic" and agent.use_sde:
        raise NotYetSupported(
            f"{parts.kind} with use_sde=True keeps a noise matrix with the graph of its last step: its networks cannot "
            "be copied, and copies are what the probe trains."
        )
    view = _chosen(networks_of(parts.family, agent.policy), network)[network]
    states = states_of(agent, num_states, env=env)
    batch, _ = batch_of(agent, parts.family, network, states)
    inputs = batch[:-1]
    output = view(*(leaf[:2] for leaf in inputs))
    outputs = output[0] if isinstance(output, tuple) else output
    task = RandomTargets(inputs=inputs, num_outputs=outputs.shape[1], batch_size=batch_size, loss="mse")
    return probe(
        view,
        task,
        optimizer=parts.optimizers[-1] if network == "actor" else parts.optimizers[0],
        moments=moments,
        steps=steps,
        seeds=seeds,
        reset_head=head_of(parts.family, network, view) if reset_head else None,
        make_model=partial(_fresh, agent, parts.family, network),
        **more,
    )


def _fresh(agent: BaseAlgorithm, family: str, name: str) -> Network:
    return networks_of(family, fresh_policy(agent))[name]


def _chosen(views: Mapping[str, Any], wanted: str | tuple[str, ...]) -> dict[str, Any]:
    """The networks that were asked for; the default asks for more than an agent without an actor has."""
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    found = {name: views[name] for name in names if name in views}
    unknown = [name for name in names if name not in views and name != "actor"]
    if unknown or not found:
        raise IllegalConfiguration(
            f"this agent has the networks {', '.join(views)}, and not {', '.join(unknown or names)}."
        )
    return found
