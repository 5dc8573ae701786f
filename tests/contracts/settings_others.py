"""Contract settings of compositions, and of methods that come from outside the package."""

from __future__ import annotations

from typing import Any

from third_party import OveractiveDecay

from pliant.interventions import L2, ContinualBackprop, ExperienceReplay, ReDo

METHODS: dict[str, Any] = {
    "experience_replay": ExperienceReplay(capacity=6, ratio=0.5),
    "third_party": OveractiveDecay(limit=1.0, decay=0.5, every=3),
    "several": [L2(0.1), ReDo(tau=1.0, every=2), ContinualBackprop(0.2, maturity_threshold=1, decide_every=1)],
}
SEEDLESS: frozenset[str] = frozenset({"third_party"})
"""Those that draw nothing, so that another seed changes nothing."""
