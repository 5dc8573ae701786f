"""What ``agent.save`` keeps of the protection, and what happens when a saved agent is trained without it.

Stable-Baselines3 pickles the attributes of an agent, builds its networks and optimizers anew when it loads them, and so
loses every hook. The guard is such an attribute: it takes the state of the handles along, stands before ``learn()`` of
the loaded agent, and does not let it train until the same methods are attached, which then go on from that state.
"""

from __future__ import annotations

import io
import operator
import pydoc
import sys
import weakref
from collections.abc import Sequence
from typing import Any

import torch

from pliant.errors import IllegalConfiguration

__all__ = ["Guard", "attached_to", "forget", "guard_of", "restored"]

_PLACE = "_setup_learn"  # called by every learn() before anything else; an attribute of this name is found first
_VERSION = 1


class Guard:
    """Stands before ``learn()`` of one agent.

    Attributes:
        entries: What is attached: handle, and its monitor if there is one.
        pending: What was saved and is not attached again yet: names of methods, their state, the monitor's state.
    """

    __slots__ = ("_agent", "entries", "pending")

    def __init__(self, agent: Any = None, pending: Sequence[dict[str, Any]] = ()) -> None:
        self._agent: Any = None if agent is None else weakref.ref(agent)
        self.entries: list[list[Any]] = []
        self.pending = list(pending)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Begin ``learn()``, whose callbacks may attach what is missing; then look whether anything is."""
        agent = self._agent() if self._agent is not None else sys._getframe(1).f_locals.get("self")
        if agent is None or vars(agent).get(_PLACE) is not self:
            raise IllegalConfiguration(
                "this agent was saved while Pliant protected it, and is not trained by its own learn(): call "
                "pliant.sb3.forget(agent) to go on without protection."
            )
        self._agent = weakref.ref(agent)
        begun = getattr(type(agent), _PLACE)(agent, *args, **kwargs)
        if self.pending:
            names = ", ".join(name for entry in self.pending for name in entry["methods"])
            kind = type(agent).__name__
            raise IllegalConfiguration(
                f"this {kind} was saved while {names} protected it. {kind}.load makes new optimizers, so that nothing "
                f"protects it now. Go on with agent.learn(..., callback=pliant.sb3.Protect(...)) or "
                "pliant.attach(agent, ...) with the same methods, which continue from their saved state; or say "
                "pliant.sb3.forget(agent) to train without."
            )
        return begun

    def add(self, handle: Any) -> None:
        """Take a handle in, and give it the state that was saved, if there is one of the same methods.

        Raises:
            IllegalConfiguration: If something else was saved than is attached.
        """
        methods = [repr(method) for method in handle.methods]
        if self.pending:
            found = next((entry for entry in self.pending if entry["methods"] == methods), None)
            if found is None:
                saved = "; ".join(", ".join(entry["methods"]) for entry in self.pending)
                raise IllegalConfiguration(
                    f"this agent was saved while {saved} protected it, and {', '.join(methods)} is attached now. "
                    "Attach the same to continue, or call pliant.sb3.forget(agent) first to begin anew."
                )
            handle.load_state_dict(found["handle"])
            self.pending.remove(found)
            self.entries.append([handle, None, found["monitor"]])
        else:
            self.entries.append([handle, None, None])
        handle.also_remove([_Leave(self, handle)])

    def watch(self, handle: Any, monitor: Any) -> bool:
        """Keep a monitor beside its handle; whether it goes on from a saved state."""
        for entry in self.entries:
            if entry[0] is handle:
                entry[1] = monitor
                state, entry[2] = entry[2], None
                if state is not None:
                    monitor.load_state_dict(state)
                    return True
        return False

    def leave(self, handle: Any) -> None:
        """A handle is detached; the last one takes the guard along."""
        self.entries = [entry for entry in self.entries if entry[0] is not handle]
        agent = None if self._agent is None else self._agent()
        if agent is not None and not self.entries and not self.pending and vars(agent).get(_PLACE) is self:
            delattr(agent, _PLACE)

    def state(self) -> bytes:
        """All states, as ``torch.save`` writes them."""
        now = [
            {
                "methods": [repr(method) for method in handle.methods],
                "handle": handle.state_dict(),
                "monitor": saved if monitor is None else monitor.state_dict(),
            }
            for handle, monitor, saved in self.entries
        ]
        stream = io.BytesIO()
        torch.save({"version": _VERSION, "entries": [*now, *self.pending]}, stream)
        return stream.getvalue()

    def __reduce__(self) -> Any:
        """As a call of :func:`restored`, found by name: without Pliant, loading warns of it and gives a plain agent."""
        return operator.call, (_Located(), self.state())


class _Located:
    """:func:`restored`, or ``None`` where Pliant is not installed: calling that is an error that the loader expects."""

    def __reduce__(self) -> Any:
        return pydoc.locate, (f"{__name__}.restored",)


class _Leave:
    """A hook that a handle removes when it is detached."""

    def __init__(self, guard: Guard, handle: Any) -> None:
        self.guard, self.handle = guard, weakref.ref(handle)

    def remove(self) -> None:
        handle = self.handle()
        if handle is not None:
            self.guard.leave(handle)


def restored(state: bytes) -> Guard:
    """The guard of a loaded agent.

    Raises:
        RuntimeError: If another version wrote it; Stable-Baselines3 then warns and leaves it out.
    """
    saved = torch.load(io.BytesIO(state), map_location="cpu", weights_only=True)
    if saved["version"] != _VERSION:
        raise RuntimeError(
            f"the state of Pliant's protection has version {saved['version']}; this is version {_VERSION}"
        )
    return Guard(pending=saved["entries"])


def guard_of(agent: Any) -> Guard:
    """The guard of an agent, put before its ``learn()`` if there is none yet."""
    found = vars(agent).get(_PLACE)
    if isinstance(found, Guard):
        found._agent = weakref.ref(agent)
        return found
    guard = Guard(agent)
    setattr(agent, _PLACE, guard)
    return guard


def attached_to(agent: Any) -> list[Any]:
    """The handles that are attached to an agent."""
    found = vars(agent).get(_PLACE)
    return [entry[0] for entry in found.entries] if isinstance(found, Guard) else []


def forget(agent: Any) -> None:
    """Let a loaded agent train without the methods that it was saved with; their state is dropped.

    What is attached at present stays.

    Args:
        agent: An agent of Stable-Baselines3.

    Example:
        >>> import tempfile, pliant
        >>> from stable_baselines3 import DQN
        >>> agent = DQN("MlpPolicy", "CartPole-v1", buffer_size=100, device="cpu")
        >>> handle = pliant.attach(agent, pliant.ReDo())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     agent.save(f"{folder}/agent")
        ...     loaded = DQN.load(f"{folder}/agent", env=agent.get_env(), device="cpu")
        >>> try:
        ...     _ = loaded.learn(1)
        ... except pliant.IllegalConfiguration:
        ...     print("it was protected")
        it was protected
        >>> pliant.sb3.forget(loaded)
    """
    found = vars(agent).get(_PLACE)
    if isinstance(found, Guard):
        found.pending.clear()
        if not found.entries:
            delattr(agent, _PLACE)
