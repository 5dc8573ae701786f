"""What is wrong with a network that no longer learns: mechanisms, evidence beside twins, and what acts on them."""

from pliant.diagnosis.causal import TrainsLike
from pliant.diagnosis.findings import AttachedMethod, CausalTest, Diagnosis, Finding, Weight
from pliant.diagnosis.run import diagnose
from pliant.diagnosis.traps import Trap

__all__ = ["AttachedMethod", "CausalTest", "Diagnosis", "Finding", "TrainsLike", "Trap", "Weight", "diagnose"]
