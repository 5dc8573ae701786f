"""What an agent trains: its networks and their optimizers, the inputs that show them, and how they began."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.agents.observations import example_actions, example_observations
from pliant.errors import IllegalConfiguration, NotYetSupported
from pliant.interventions.base import Intervention
from pliant.optimizer_state import MomentSpec
from pliant.units.init import Init
from pliant.units.several import Models

__all__ = ["Agent", "AgentParts", "family_of", "is_agent", "parts_of_agent", "refuse_methods"]

_FROM = ("stable_baselines3", "sb3_contrib")
_FAMILIES = {
    **dict.fromkeys(("PPO", "A2C", "MaskablePPO"), "policy"),
    "RecurrentPPO": "recurrent",
    **dict.fromkeys(("SAC", "TQC", "TD3"), "actor_critic"),
    "DQN": "q_net",
    "QRDQN": "quantile_net",
}
_REFUSED = {
    "TRPO": "it updates its actor by a line search and not by its optimizer, so no hook sees these updates",
    "ARS": "it has no gradients and no optimizer",
    "CrossQ": "its BatchRenorm layers branch on how many batches they have seen, which cannot be exported",
}
_AS_TENSORFLOW = {"square_avg": 1.0}  # of RMSpropTFLike
_EXAMPLES = 4
_SEQUENCES = 2


class Agent(Protocol):
    """An algorithm of Stable-Baselines3 (``PPO``, ``SAC``, ...) or sb3-contrib."""

    policy: Any
    observation_space: Any
    action_space: Any

    def learn(self, total_timesteps: int, callback: Any = None) -> Any:
        """Train."""


@dataclass(frozen=True)
class AgentParts:
    """The trained parts of an agent.

    Attributes:
        kind: The algorithm that it is, or is derived from: ``"PPO"``.
        family: How its networks are arranged: ``"policy"``, ``"recurrent"``, ``"actor_critic"``, ``"q_net"`` or
            ``"quantile_net"``.
        models: The policy, or ``{"actor": ..., "critic": ...}``; target networks are no part of it.
        optimizers: Theirs; the first one steps once per gradient step.
        init: How the parameters were initialised, where that is not PyTorch's default.
        moments: From where a new weight's moments start, where the optimizer is Stable-Baselines3's own.
        targets: Trained networks and their target networks, in pairs.
        inputs: Makes the inputs of the models out of observations and (for critics) actions.
        example_inputs: Inputs of a few observations drawn from the observation space.
        exportable: A context in which ``torch.export`` can follow the models.
    """

    kind: str
    family: str
    models: Models
    optimizers: list[Optimizer]
    init: Mapping[str, Init] | None
    moments: MomentSpec
    targets: tuple[tuple[nn.Module, nn.Module], ...]
    inputs: Callable[[Any, Tensor | None], Any]
    example_inputs: Any
    exportable: Callable[[], contextlib.AbstractContextManager[None]]


def is_agent(item: Any) -> bool:
    """Whether something is an algorithm of Stable-Baselines3, which is not imported for that."""
    return any(kind.__name__ == "BaseAlgorithm" and _is_theirs(kind) for kind in type(item).__mro__)


def _is_theirs(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _FROM


def family_of(agent: Any) -> tuple[str, str]:
    """The algorithm that an agent is or is derived from, and how its networks are arranged.

    Raises:
        NotYetSupported: For an algorithm that cannot be protected; it says why, or what to do instead.
    """
    for kind in type(agent).__mro__:
        if _is_theirs(kind) and kind.__name__ in _REFUSED:
            raise NotYetSupported(f"{kind.__name__} cannot be protected: {_REFUSED[kind.__name__]}.")
        if _is_theirs(kind) and kind.__name__ in _FAMILIES:
            return kind.__name__, _FAMILIES[kind.__name__]
    raise NotYetSupported(
        f"how the networks of {type(agent).__name__} are arranged is not known (known are {', '.join(_FAMILIES)}). If "
        'they are PyTorch modules, give them with their optimizers: pliant.attach({"actor": actor, "critic": critic}, '
        "[...], method, example_inputs=...)."
    )


def parts_of_agent(agent: Any) -> AgentParts:
    """The trained networks of an agent and all that attaching to them needs.

    Args:
        agent: An algorithm of Stable-Baselines3.

    Raises:
        NotYetSupported: For an algorithm that cannot be protected.
        IllegalConfiguration: If it has no policy yet, or its replay buffer holds less than a batch.
    """
    kind, family = family_of(agent)
    policy: Any = getattr(agent, "policy", None)
    if policy is None:
        raise IllegalConfiguration(f"this {kind} has no policy yet (_init_setup_model=False?): build it first.")
    _check_buffer(agent, kind)
    targets: list[tuple[nn.Module, nn.Module]] = []
    models: Models
    if family == "actor_critic":
        trained: dict[str, nn.Module] = {"actor": policy.actor, "critic": policy.critic}
        models, optimizers = trained, [policy.critic.optimizer, policy.actor.optimizer]
        for name, module in trained.items():
            target = getattr(policy, f"{name}_target", None)
            if target is not None:
                targets.append((module, target))
    elif family in ("q_net", "quantile_net"):
        network = getattr(policy, family)
        models, optimizers = network, [policy.optimizer]
        targets.append((network, getattr(policy, f"{family}_target")))
    else:
        models, optimizers = policy, [policy.optimizer]
    inputs: Callable[[Any, Tensor | None], Any] = _observations
    if family == "recurrent":
        inputs = _Sequences(agent)
    elif family == "actor_critic":
        inputs = _actor_and_critic
    size = _EXAMPLES
    observations = example_observations(agent.observation_space, size, policy.device)
    actions = example_actions(agent.action_space, size, policy.device) if family == "actor_critic" else None
    return AgentParts(
        kind=kind,
        family=family,
        models=models,
        optimizers=optimizers,
        init=_initial(policy) if family in ("policy", "recurrent") else None,
        moments=_AS_TENSORFLOW if any(type(item).__name__ == "RMSpropTFLike" for item in optimizers) else None,
        targets=tuple(targets),
        inputs=inputs,
        example_inputs=inputs(observations, actions),
        exportable=(lambda: _one_sequence(policy)) if family == "recurrent" else contextlib.nullcontext,
    )


def _check_buffer(agent: Any, kind: str) -> None:
    """A replay buffer that can never hold a batch would train on copies of a few transitions, silently."""
    buffer, batch = getattr(agent, "replay_buffer", None), getattr(agent, "batch_size", None)
    if buffer is None or not isinstance(batch, int):
        return
    holds = buffer.buffer_size * getattr(buffer, "n_envs", 1)
    if holds < batch:
        raise IllegalConfiguration(
            f"the replay buffer of this {kind} holds {holds} transitions (buffer_size={agent.buffer_size}), less than "
            f"one batch of {batch}: every batch would be copies of the same few. Make buffer_size at least {batch}, "
            "better thousands."
        )


def refuse_methods(kind: str, methods: Sequence[Any]) -> None:
    """Refuse methods that an unmodified ``learn()`` cannot serve.

    Args:
        kind: The algorithm.
        methods: The interventions.

    Raises:
        NotYetSupported: Naming the method, why, and what does work.
    """
    for method in methods:
        if not isinstance(method, Intervention):
            continue  # attach says so
        name = type(method).__name__
        if method.changes_model:
            raise NotYetSupported(
                f"{name} changes the network, and an agent that was saved with a changed network cannot be loaded "
                f"({kind}.load builds the policy anew), nor would its target networks follow. Build the layers into "
                "the policy with policy_kwargs, and choose a method that edits weights."
            )
        if method.needs_penalty:
            has_choice = hasattr(method, "apply")
            raise NotYetSupported(
                f"{name} adds a term to the loss, and the loss is computed inside of {kind}.learn(). "
                + (
                    "Choose another value of apply=..., which acts at the optimizer's step."
                    if has_choice
                    else "Use it in a loop of your own, with (loss + handle.penalty()).backward()."
                )
            )
        if method.needs_batch:
            raise NotYetSupported(
                f"{name} acts on batches, and these are drawn inside of {kind}.learn(). Use it in a loop of your own, "
                "with handle.batch(...)."
            )


# ---- inputs ----
def _observations(observations: Any, actions: Tensor | None) -> Any:
    return (observations,)


def _actor_and_critic(observations: Any, actions: Tensor | None) -> Any:
    return {"actor": (observations,), "critic": (observations, actions)}


class _Sequences:
    """Observations as sequences that begin with a state of zeros."""

    def __init__(self, agent: Any) -> None:
        self.states = agent._last_lstm_states

    def __call__(self, observations: Any, actions: Tensor | None) -> Any:
        leaf = next(iter(observations.values())) if isinstance(observations, Mapping) else observations
        hidden = self.states.pi[0]
        state = torch.zeros(hidden.shape[0], _SEQUENCES, hidden.shape[2], device=leaf.device)
        states = type(self.states)((state, state.clone()), (state.clone(), state.clone()))
        return (observations, states, torch.zeros(len(leaf), device=leaf.device))


@contextlib.contextmanager
def _one_sequence(policy: Any) -> Iterator[None]:
    """The policy without its branch on where episodes begin: the same units, in sequences without a break.

    The states that go in and out stay apart from the units: a reset unit starts with what the rollout had stored.
    """

    def process(features: Tensor, states: Any, episode_starts: Tensor, lstm: nn.LSTM) -> tuple[Tensor, Any]:
        num = states[0].shape[1]
        sequence = features.reshape((num, -1, lstm.input_size)).swapaxes(0, 1)
        out, _ = lstm(sequence)
        return torch.flatten(out.transpose(0, 1), start_dim=0, end_dim=1), states

    policy._process_sequence = process
    try:
        yield
    finally:
        del policy._process_sequence


# ---- initial distributions ----
def _initial(policy: Any) -> dict[str, Init] | None:
    """How an actor-critic policy draws its weights: orthogonal matrices, each entry with the deviation that it has."""
    found: dict[str, Init] = {}
    if isinstance(getattr(policy, "log_std", None), Tensor):
        found["log_std"] = Init("constant", float(policy.log_std_init))
    if getattr(policy, "ortho_init", False):
        gains = {"action_net": 0.01, "value_net": 1.0}
        inside = ("features_extractor", "pi_features_extractor", "vf_features_extractor", "mlp_extractor")
        gains |= {name: math.sqrt(2) for name in inside if hasattr(policy, name)}
        for name, module in policy.named_modules():
            gain = gains.get(name.partition(".")[0])
            if gain is None or not isinstance(module, (nn.Linear, nn.Conv2d)):
                continue
            rows = module.weight.shape[0]
            found[f"{name}.weight"] = Init("normal", gain / math.sqrt(max(rows, module.weight.numel() // rows)))
            if module.bias is not None:
                found[f"{name}.bias"] = Init("constant", 0.0)
    return found or None
