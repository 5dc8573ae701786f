"""For methods that change the model itself: the optimizers own everything new, and nothing that is gone.

New parameters join an existing parameter group, with that group's options, so that schedulers, which hold one entry
per group, stay right; replaced parameters give up their place in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.errors import IllegalConfiguration

__all__ = ["adopt", "operate", "replace_module"]

_OF_MATRICES: tuple[type, ...] = (torch.optim.Muon,) if hasattr(torch.optim, "Muon") else ()  # PyTorch 2.9 and later


def adopt(optimizers: Sequence[Optimizer], parameters: Sequence[nn.Parameter], like: nn.Parameter) -> None:
    """Put new parameters into the parameter group of an old one, with its step size and all other options.

    Args:
        optimizers: The optimizers.
        parameters: The new parameters; those that need no gradient or are owned already are left out.
        like: The parameter whose group they join.

    Raises:
        IllegalConfiguration: If nobody owns ``like``, or its optimizer cannot train such a parameter.

    Example:
        >>> old, new = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> optimizer = torch.optim.SGD(old.parameters(), lr=0.1)
        >>> adopt([optimizer], list(new.parameters()), like=old.weight)
        >>> len(optimizer.param_groups), len(optimizer.param_groups[0]["params"])
        (1, 4)
    """
    optimizer, group, _ = _place(optimizers, like)
    owned = _owned(optimizers)
    for parameter in parameters:
        if id(parameter) in owned or not parameter.requires_grad:
            continue
        if isinstance(optimizer, _OF_MATRICES) and parameter.ndim != 2:
            raise IllegalConfiguration(
                f"a new parameter of shape {tuple(parameter.shape)} cannot join a parameter group of Muon, which "
                "trains matrices only; choose one that another optimizer owns (like=...)."
            )
        group["params"].append(parameter)
        owned.add(id(parameter))


def replace_module(
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    name: str,
    new: nn.Module,
    *,
    like: nn.Parameter | None = None,
) -> None:
    """Put another module in a module's place, and its parameters in the place of the old ones.

    A new parameter of an old one's name takes over its place in the parameter group; further ones join the group of
    ``like``. Parameters that the new module shares with the old one (it may contain it) stay where they are. The
    optimizer's state of parameters that are gone is dropped.

    Args:
        model: The model.
        optimizers: The optimizers.
        name: Name of the module to be replaced, such as ``"head"``.
        new: The new module; it is moved to the old one's device and type.
        like: Whose group further parameters join; ``None``: that of the old module's first owned parameter.

    Raises:
        IllegalConfiguration: If there is no such module, or new parameters have no group to join.

    Example:
        >>> import torch
        >>> from pliant.surgery import replace_module
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> replace_module(model, [optimizer], "2", torch.nn.Linear(8, 3))
        >>> [tuple(parameter.shape) for parameter in optimizer.param_groups[0]["params"]]
        [(8, 4), (8,), (3, 8), (3,)]
    """
    path, _, leaf = name.rpartition(".")
    try:
        old = model.get_submodule(name)
        parent = model.get_submodule(path)
    except AttributeError as error:
        raise IllegalConfiguration(f"the model has no module {name!r} to be replaced.") from error
    if not leaf:
        raise IllegalConfiguration("the root of a model cannot be replaced: the user's own loop calls it.")
    first = next(old.parameters(), next(model.parameters()))
    new.to(device=first.device, dtype=first.dtype)
    owned = _owned(optimizers)
    if like is None:
        like = next((p for p in old.parameters() if id(p) in owned), None)
    before = dict(old.named_parameters())
    setattr(parent, leaf, new)
    alive = {id(p) for p in model.parameters()}
    for key, parameter in new.named_parameters():
        gone = before.get(key)
        if gone is not None and id(gone) in owned and id(gone) not in alive and id(parameter) not in owned:
            optimizer, group, position = _place(optimizers, gone)
            group["params"][position] = parameter
            optimizer.state.pop(gone, None)
            owned.add(id(parameter))
    fresh = [p for p in new.parameters() if p.requires_grad and id(p) not in owned]
    if fresh:
        if like is None:
            raise IllegalConfiguration(
                f"no optimizer owns a parameter of {name!r}, so it is not known who trains what replaces it; say it "
                "with like=..., a parameter whose group the new ones join."
            )
        adopt(optimizers, fresh, like)
    for gone in before.values():  # what is left of the old module and has no successor
        place = _find(optimizers, gone)
        if place is not None and id(gone) not in alive:
            optimizer, group, position = place
            del group["params"][position]
            optimizer.state.pop(gone, None)


def operate(
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    seed: int,
    surgery: Callable[[nn.Module, Sequence[Optimizer]], None],
) -> tuple[str, ...]:
    """Let a method change the model, and check that the optimizers have followed.

    Args:
        model: The model.
        optimizers: Its optimizers.
        seed: Seed of the randomness inside (new layers); the global random state is restored.
        surgery: What changes the model.

    Returns:
        The names of the tensors that are new, and of those that are gone.

    Raises:
        IllegalConfiguration: If a new parameter belongs to no optimizer, one that was owned is not any more, or an
            optimizer still trains what the model has lost. The model stays as the method left it.

    Example:
        >>> import torch
        >>> from pliant.surgery import operate, replace_module
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> def wider(model, optimizers):
        ...     replace_module(model, optimizers, "2", torch.nn.Linear(8, 3))
        >>> _ = operate(model, [optimizer], 0, wider)
        >>> model[2].out_features
        3
    """
    before = list(model.named_parameters())  # alive, so that no new parameter can get an old one's id
    known = {id(p): name for name, p in before}
    trained = _owned(optimizers)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        surgery(model, optimizers)
    now = {id(p): (name, p) for name, p in model.named_parameters()}
    owned = _owned(optimizers)
    expected = {key for key, (_, p) in now.items() if p.requires_grad and (key in trained or key not in known)}
    orphans = sorted(now[key][0] for key in expected - owned)
    if orphans:
        raise IllegalConfiguration(
            f"after the change of the model no optimizer trains {', '.join(orphans)}: in surgery(), use "
            "pliant.surgery.replace_module or adopt."
        )
    lost = sorted(known[key] for key in owned - set(now) if key in known)
    if lost:
        raise IllegalConfiguration(
            f"after the change of the model an optimizer still trains {', '.join(lost)}, which the model does not have "
            "any more: in surgery(), use pliant.surgery.replace_module."
        )
    new = (name for key, (name, _) in now.items() if key not in known)
    return (*new, *(name for name, p in before if id(p) not in now))


def _owned(optimizers: Sequence[Optimizer]) -> set[int]:
    return {id(p) for item in optimizers for group in item.param_groups for p in group["params"]}


def _find(optimizers: Sequence[Optimizer], parameter: Tensor) -> tuple[Optimizer, dict[str, Any], int] | None:
    """The optimizer, the group and the place in it of a parameter."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for position, candidate in enumerate(group["params"]):
                if candidate is parameter:
                    return optimizer, group, position
    return None


def _place(optimizers: Sequence[Optimizer], parameter: Tensor) -> tuple[Optimizer, dict[str, Any], int]:
    place = _find(optimizers, parameter)
    if place is None:
        raise IllegalConfiguration(
            f"no given optimizer owns the parameter of shape {tuple(parameter.shape)} whose group the new ones join."
        )
    return place
