"""The benchmark suite: streams of tasks, models, the engine that runs many seeds at once, and its records."""

from __future__ import annotations
