"""Every agent with one method, and two kinds of agents with every method; all pairs: ``benchmarks/sb3_smoke.py``."""

from __future__ import annotations

import pytest

pytest.importorskip("sb3_contrib", reason="recurrent and quantile agents are in sb3-contrib")
from benchmarks.sb3_smoke import AGENTS, METHODS, smoke

REFUSED = {"AdaptiveNormalization", "InsertDropout", "InsertNormalization", "PlasticityInjection", "ExperienceReplay"}
REFUSED |= {"CChain", "FeatureNorm", "L2EffectiveRank"}


@pytest.mark.wide
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("agent", ["PPO", "TD3"])
def test_every_method_works_or_is_refused_by_name(agent, method):
    assert smoke(agent, method).partition(":")[0] == ("refused" if method in REFUSED else "works")


@pytest.mark.wide
@pytest.mark.parametrize("agent", [name for name in AGENTS if name not in ("PPO", "TD3")])
def test_every_agent_works_with_resets_and_with_whole_tensors(agent):
    assert smoke(agent, "ReDo") == "works"
    assert smoke(agent, "ShrinkAndPerturb") == "works"
