"""Agents of Stable-Baselines3, looked at without importing it: their networks, optimizers, and what a save keeps."""

from pliant.agents.guard import Guard, attached_to, forget, guard_of
from pliant.agents.parts import Agent, AgentParts, is_agent, parts_of_agent, refuse_methods
from pliant.agents.targets import Targets, follow

__all__ = [
    "Agent",
    "AgentParts",
    "Guard",
    "Targets",
    "attached_to",
    "follow",
    "forget",
    "guard_of",
    "is_agent",
    "parts_of_agent",
    "refuse_methods",
]
