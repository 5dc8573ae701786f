"""Adapters to training frameworks, one file each: ``pliant.sb3``, ``pliant.huggingface``, ``pliant.lightning``.

Each has a callback ``Protect``, which attaches methods and a monitor when the framework's own training begins. A file
is imported when its name is first used, and nothing else of Pliant imports a framework.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from pliant.errors import IllegalConfiguration

__all__ = ["EXTRAS", "integration"]

EXTRAS = {
    "sb3": ("stable_baselines3", "rl"),
    "huggingface": ("transformers", "huggingface"),
    "lightning": ("lightning", "lightning"),
}
"""Name of the integration: the package that it needs, and the extra of Pliant that brings it."""


def integration(name: str) -> ModuleType:
    """The module of an integration: what ``pliant.sb3`` is.

    Args:
        name: A key of :data:`EXTRAS`.

    Raises:
        IllegalConfiguration: If the framework is not installed, or cannot be imported; it names the extra.
    """
    package, extra = EXTRAS[name]
    try:
        import_module(package)
    except ImportError as error:
        raise IllegalConfiguration(
            f"pliant.{name} needs {package}, which cannot be imported ({error}): pip install 'pliant[{extra}]'."
        ) from error
    return import_module(f"pliant.integrations.{name}")
