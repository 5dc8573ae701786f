"""Reinforcement learning in changing environments."""

from __future__ import annotations
