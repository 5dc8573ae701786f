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
    """Base of every error that Pliant raises on purpose.

    Example:
        >>> import pliant
        >>> try:
        ...     pliant.Parseval(strength=-1.0).check()
        ...     pliant.records.read_records("no/such/folder")
        ... except pliant.PliantError as error:
        ...     print(type(error).__name__)
        RecordError
    """


class UnsupportedError(PliantError):
    """Something about the model, the optimizer or the request cannot be handled.

    Example:
        >>> import pliant
        >>> [issubclass(error, pliant.UnsupportedError) for error in (pliant.NotYetSupported, pliant.RecordError)]
        [True, False]
    """


class UnsupportedOp(UnsupportedError):
    """The model uses an operation that cannot be followed, or cannot be exported at all.

    Example:
        >>> import pliant
        >>> issubclass(pliant.UnsupportedOp, pliant.UnsupportedError)  # see pliant.declare_units
        True
    """


class NotYetSupported(UnsupportedError):
    """The request is sensible, but this version does not do it; the message names what does work.

    Example:
        >>> import torch, pliant
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.LBFGS(model.parameters())
        >>> try:
        ...     pliant.attach(model, optimizer, pliant.ReDo(), example_inputs=torch.randn(3, 4))
        ... except pliant.NotYetSupported as error:
        ...     print("LBFGS" in str(error))
        True
    """


class IllegalConfiguration(UnsupportedError):
    """The pieces do not fit together: wrong mode, wrong order, a value out of range.

    Example:
        >>> import torch, pliant
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> try:
        ...     pliant.attach(model, optimizer, pliant.ReDo(tau=-1.0), example_inputs=torch.randn(3, 4))
        ... except pliant.IllegalConfiguration as error:
        ...     print(error)
        ReDo: tau=-1.0 is out of range; it must be finite and >= 0.
    """


class NoEffect(UnsupportedError):
    """What was asked for would silently do nothing; raised instead of pretending to protect or to measure.

    Example:
        >>> import torch, pliant
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> try:
        ...     pliant.attach(model, optimizer, pliant.ReDo(where="encoder.*"), example_inputs=torch.randn(3, 4))
        ... except pliant.NoEffect as error:
        ...     print("encoder.*" in str(error))
        True
    """


class RecordError(PliantError):
    """A record or results folder is damaged, or belongs to a different experiment.

    Example:
        >>> import pliant
        >>> try:
        ...     pliant.records.read_records("no/such/folder")
        ... except pliant.RecordError as error:
        ...     print(error)
        no/such/folder: there is no such folder. Give the results folder of a run
    """


class NoEffectWarning(UserWarning):
    """A method waits for a call that has not come, so that it has done nothing so far.

    Example:
        >>> import pliant
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", pliant.NoEffectWarning)  # who wants it raised
        >>> issubclass(pliant.NoEffectWarning, UserWarning)
        True
    """


class ResolutionWarning(UserWarning):
    """What was asked for is finer than what the computation can tell apart, so that no number is given.

    Example:
        >>> from pliant.errors import ResolutionWarning
        >>> issubclass(ResolutionWarning, UserWarning)
        True
    """
