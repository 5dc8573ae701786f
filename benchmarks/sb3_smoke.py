"""Every agent of Stable-Baselines3 with every method, briefly: does it act, is it refused by name, or does it fail?

    python benchmarks/sb3_smoke.py                      # all of them, under a minute on a quiet core
    python benchmarks/sb3_smoke.py --agents PPO SAC     # some
    python benchmarks/sb3_smoke.py --methods ReDo L2

Tiny networks on CartPole and Pendulum; each pair trains for some 20 gradient steps in its own ``learn()``. A method
counts as working when it has edited something, the weights are finite, and the number of gradient steps that its clock
has counted is the agent's own. The exit status is 1 if a pair neither works nor is refused by name.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

import pliant
from pliant import interventions
from pliant.interventions import (
    FIRE,
    L2,
    AdaptiveNormalization,
    CChain,
    ContinualBackprop,
    ExperienceReplay,
    FeatureNorm,
    FreshStart,
    GradientNoise,
    HareAndTortoise,
    InsertDropout,
    InsertNormalization,
    L2EffectiveRank,
    L2Init,
    LayerReset,
    NormalizeAndProject,
    OptimizerReset,
    Parseval,
    PlasticityInjection,
    ReDo,
    ReGraMa,
    SelectiveWeightReset,
    SelfNormalizedReset,
    ShrinkAndPerturb,
    SpectralRegularisation,
    WeightClipping,
    WeightNoise,
)

_ON = {"n_steps": 32, "batch_size": 16, "n_epochs": 6}
_OFF = {"learning_starts": 12, "batch_size": 8, "buffer_size": 200}
_STEP = {"train_freq": 1}


def _maker(library: str, kind: str, policy: str, env: str, **options: Any) -> Callable[[], Any]:
    def make() -> Any:
        from importlib import import_module

        networks = {"net_arch": [8, 6], **({"lstm_hidden_size": 6} if "Lstm" in policy else {})}
        algorithm = getattr(import_module(library), kind)
        return algorithm(policy, env, policy_kwargs=networks, device="cpu", seed=0, **options)

    return make


_SB3, _CONTRIB, _CART, _PENDULUM = "stable_baselines3", "sb3_contrib", "CartPole-v1", "Pendulum-v1"
AGENTS: dict[str, tuple[Callable[[], Any], int]] = {
    "PPO": (_maker(_SB3, "PPO", "MlpPolicy", _CART, **_ON), 64),
    "A2C": (_maker(_SB3, "A2C", "MlpPolicy", _PENDULUM, n_steps=4), 80),
    "SAC": (_maker(_SB3, "SAC", "MlpPolicy", _PENDULUM, **_OFF), 34),
    "TD3": (_maker(_SB3, "TD3", "MlpPolicy", _PENDULUM, **_OFF), 34),
    "DDPG": (_maker(_SB3, "DDPG", "MlpPolicy", _PENDULUM, **_OFF), 34),
    "DQN": (_maker(_SB3, "DQN", "MlpPolicy", _CART, **_OFF, **_STEP), 34),
    "RecurrentPPO": (_maker(_CONTRIB, "RecurrentPPO", "MlpLstmPolicy", _CART, **_ON), 64),
    "QRDQN": (_maker(_CONTRIB, "QRDQN", "MlpPolicy", _CART, **_OFF, **_STEP), 34),
    "TQC": (_maker(_CONTRIB, "TQC", "MlpPolicy", _PENDULUM, **_OFF), 34),
}
"""Name to what makes the agent, and the time steps that it trains for."""

METHODS: dict[str, Any] = {
    type(method).__name__: method
    for method in (
        FIRE(every=3),
        L2(0.01),
        AdaptiveNormalization(),
        CChain(0.02),
        ContinualBackprop(0.2, maturity_threshold=1, decay_rate=0.9, decide_every=1),
        ExperienceReplay(capacity=8),
        FeatureNorm(0.1),
        FreshStart(every=1),
        GradientNoise(0.1),
        HareAndTortoise(0.5, every=3),
        InsertDropout(0.1),
        InsertNormalization(),
        L2EffectiveRank(0.02),
        L2Init(0.01),
        LayerReset(every=3),
        NormalizeAndProject(decay=0.1, unnormalised="ignore"),
        OptimizerReset(every=3),
        Parseval(0.01, reference_width=None),
        PlasticityInjection(),
        ReDo(tau=1.0, every=3),
        ReGraMa(tau=1.0, every=3),
        SelectiveWeightReset(0.5, every=3),
        SelfNormalizedReset(0.5, initial_threshold=2, max_threshold=4, update_every=3, min_active=0.5),
        ShrinkAndPerturb(0.99, 0.01, every=3),
        SpectralRegularisation(0.005),
        WeightClipping(0.5),
        WeightNoise(0.1),
    )
}
"""Every exported method, so strong that it acts within a few steps."""

assert set(METHODS) == set(interventions.__all__)


def smoke(agent: str, method: str) -> str:
    """One agent with one method.

    Returns:
        ``"works"``, or ``"refused: "`` and why.

    Raises:
        AssertionError: If it neither works nor is refused.
    """
    make, steps = AGENTS[agent]
    trained = make()
    protect = pliant.sb3.Protect(METHODS[method], seed=1, monitor=False)
    try:
        trained.learn(steps, callback=protect)
    except pliant.NotYetSupported as error:
        if not str(error).startswith(method):
            raise
        return f"refused: {error}"
    handle = protect.handle
    if METHODS[method].needs_boundary:
        handle.task_boundary()
    updates = trained._n_updates
    if agent in ("PPO", "RecurrentPPO"):  # these count epochs
        updates = updates * 2 if agent == "PPO" else handle.num_steps
    assert handle.num_steps == updates, f"{handle.num_steps} steps were counted in {updates} updates"
    assert len(handle.events), "nothing was edited"
    broken = [name for name, value in trained.policy.state_dict().items() if not bool(torch.isfinite(value).all())]
    assert not broken, f"not finite: {', '.join(broken)}"
    protect.detach()
    trained.predict(trained.observation_space.sample())
    return "works"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", nargs="+", default=list(AGENTS), choices=AGENTS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    began, failed = time.perf_counter(), []
    width = max(map(len, METHODS))
    print(f"{'':<{width}}  " + "  ".join(options.agents))
    for method in options.methods:
        row = []
        for agent in options.agents:
            try:
                found = smoke(agent, method)
            except Exception as error:
                found = f"FAILS: {type(error).__name__}: {error}"
                failed.append(f"{agent} with {method} {found}")
            row.append(f"{found.partition(':')[0]:<{len(agent)}}")
        print(f"{method:<{width}}  " + "  ".join(row), flush=True)
    print(f"{time.perf_counter() - began:.0f} s")
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
