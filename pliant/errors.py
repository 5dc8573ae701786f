"""The errors that Pliant raises; every message says what is wrong, where, and what to do about it."""

from __future__ import annotations

__all__ = [
    "IllegalConfiguration",
    "NoEffect",
    "NoEffectWarning",
    "NotYetSupported",
    "PliantError",
    "RecordError",
    "ResolutionWarning",
    "UnsupportedError",
    "UnsupportedOp",
]


class PliantError(Exception):
    """Base of every error that Pliant raises on purpose."""


class UnsupportedError(PliantError):
    """Something about the model, the optimizer or the request cannot be handled."""


class UnsupportedOp(UnsupportedError):
    """The model uses an operation that cannot be followed, or cannot be exported at all."""


class NotYetSupported(UnsupportedError):
    """The request is sensible, but this version does not do it; the message names what does work."""


class IllegalConfiguration(UnsupportedError):
    """The pieces do not fit together: wrong mode, wrong order, a value out of range."""


class NoEffect(UnsupportedError):
    """What was asked for would silently do nothing; raised instead of pretending to protect or to measure."""


class RecordError(PliantError):
    """A record or results folder is damaged, or belongs to a different experiment."""


class NoEffectWarning(UserWarning):
    """A method waits for a call that has not come, so that it has done nothing so far."""


class ResolutionWarning(UserWarning):
    """What was asked for is finer than what the computation can tell apart, so that no number is given."""
