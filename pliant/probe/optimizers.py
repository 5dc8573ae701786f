"""The optimizer of a copy: made by the user's function, or like the one that trains the model."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from pliant.errors import IllegalConfiguration

__all__ = ["MakeOptimizer", "Moments", "described", "like", "maker", "optimizers_for", "owned"]

MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer | Sequence[Optimizer]]
Moments = Literal["fresh", "carried"]


_COUNTERS = ("num_steps", "step", "k")  # some optimizers count in their groups


def like(optimizer: Optimizer, model: nn.Module, other: nn.Module, *, moments: Moments) -> Optimizer:
    """An optimizer for a copy of a model, with the parameter groups and options of the model's own.

    Args:
        optimizer: The optimizer that trains the model; it is not changed.
        model: The model.
        other: The copy, with the same parameter names.
        moments: ``"carried"``: the state comes along; ``"fresh"``: as before the first step.

    Returns:
        The new optimizer. Parameters that do not belong to the model (a temperature) are left out, and so are hooks.

    Raises:
        IllegalConfiguration: If the optimizer owns no parameter of the model, or cannot be copied.

    Example:
        >>> import torch
        >>> model, other = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> new = like(torch.optim.Adam(model.parameters(), lr=0.5), model, other, moments="fresh")
        >>> new.param_groups[0]["params"][0] is other.weight, new.param_groups[0]["lr"], len(new.state)
        (True, 0.5, 0)
    """
    mine, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    memo: dict[int, Any] = {id(parameter): theirs[name] for name, parameter in mine.items()}
    known = {id(parameter) for parameter in mine.values()}
    if not any(id(parameter) in known for parameter in owned([optimizer])):
        raise IllegalConfiguration(f"{type(optimizer).__name__} owns no parameter of {type(model).__name__}.")
    for parameter in owned([optimizer]):  # those of others come along without their values
        memo.setdefault(id(parameter), parameter)
    state = optimizer.state
    kept: defaultdict[Any, Any] = defaultdict(dict)
    if moments == "carried":
        kept.update({parameter: state[parameter] for parameter in state if id(parameter) in known})
    try:
        new: Any = type(optimizer).__new__(type(optimizer))
        new.__setstate__(
            copy.deepcopy({"defaults": optimizer.defaults, "state": kept, "param_groups": optimizer.param_groups}, memo)
        )
        for name, value in vars(optimizer).items():  # what a subclass keeps besides
            if name not in vars(new) and not callable(value) and not name.startswith("_optimizer_"):
                setattr(new, name, copy.deepcopy(value, memo))
    except Exception as error:
        raise IllegalConfiguration(
            f"{type(optimizer).__name__} cannot be copied ({type(error).__name__}: {error}); give "
            "optimizer=lambda parameters: ... instead."
        ) from error
    copies = {id(parameter) for parameter in theirs.values()}
    for group in new.param_groups:
        if moments == "fresh":
            group.update({key: new.defaults[key] for key in _COUNTERS if key in group and key in new.defaults})
        mine_only = [id(parameter) in copies for parameter in group["params"]]
        for key in ("params", "param_names"):
            if key in group:
                group[key] = [item for item, keep in zip(group[key], mine_only, strict=True) if keep]
    new.param_groups = [group for group in new.param_groups if group["params"]]
    return new  # type: ignore[no-any-return]


def maker(
    model: nn.Module, optimizer: Any, moments: Moments | None
) -> Callable[[nn.Module, Literal["aged", "fresh"]], list[Optimizer]]:
    """A function that makes the optimizers of a copy, which is one of the aged network or a fresh one.

    Args:
        model: The live network.
        optimizer: A function of parameters, or the live optimizer, or several.
        moments: What becomes of a live optimizer's moments; see :func:`~pliant.probe.run.probe`.

    Raises:
        IllegalConfiguration: If it is no optimizer, owns nothing, or the choice of moments is missing.
    """
    live = [optimizer] if isinstance(optimizer, Optimizer) else optimizer
    if not callable(live):
        live = [getattr(item, "optimizer", item) for item in live] if isinstance(live, (list, tuple)) else live
        if not isinstance(live, (list, tuple)) or not all(isinstance(item, Optimizer) for item in live) or not live:
            raise IllegalConfiguration(
                f"optimizer=... is a {type(optimizer).__name__}: give a function such as "
                "lambda parameters: torch.optim.Adam(parameters), or the live optimizer."
            )
        if moments not in ("fresh", "carried"):
            raise IllegalConfiguration(
                'with a live optimizer, say moments="fresh" (everybody starts without them) or moments="carried" (the '
                "aged network keeps its own): the two can differ a lot."
            )
        check_steps(live)
        known = {id(parameter) for parameter in model.parameters()}
        mine = [item for item in live if any(id(parameter) in known for parameter in owned([item]))]
        if not mine:
            raise IllegalConfiguration("the live optimizer owns no parameter of the model.")

        def made(net: nn.Module, network: Literal["aged", "fresh"]) -> list[Optimizer]:
            kept: Moments = "carried" if moments == "carried" and network == "aged" else "fresh"
            return [like(item, model, net, moments=kept) for item in mine]

        return made
    if moments is not None:
        raise IllegalConfiguration("moments=... is for a live optimizer; what a function makes has none yet.")
    return lambda net, _: optimizers_for(net, live)


def optimizers_for(model: nn.Module, make: MakeOptimizer) -> list[Optimizer]:
    """What the user's function makes of a network's parameters.

    Args:
        model: The network.
        make: Gets the list of its trained parameters.

    Raises:
        IllegalConfiguration: If it gives no optimizer, one that steps with closures, or one that owns none of the
            parameters.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    made = make(parameters)
    found = list(made) if isinstance(made, Iterable) else [made]
    if not found or not all(isinstance(item, Optimizer) for item in found):
        raise IllegalConfiguration(
            f"optimizer=... gave a {type(made).__name__} for the list of parameters, not an optimizer: use for example "
            "optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3)."
        )
    mine = {id(parameter) for parameter in parameters}
    if not any(id(parameter) in mine for parameter in owned(found)):
        raise IllegalConfiguration(
            "the optimizer that optimizer=... made owns no parameter of the network that it was given: use the "
            "parameters of its argument, not those of the live model."
        )
    check_steps(found)
    return found


def described(optimizers: Sequence[Optimizer]) -> list[dict[str, Any]]:
    """What optimizers are, as JSON data: a kind and its plain options for each parameter group."""
    found = []
    for item in optimizers:
        for group in item.param_groups:
            options = {key: value for key, value in group.items() if key not in ("params", "param_names")}
            plain = {key: float(value) if isinstance(value, Tensor) else value for key, value in options.items()}
            kept = {key: value for key, value in plain.items() if isinstance(value, (bool, int, float, str, tuple))}
            found.append({"kind": type(item).__name__, **kept})
    return found


def check_steps(optimizers: Sequence[Optimizer]) -> None:
    """Refuse optimizers that evaluate the loss several times in a step."""
    for item in optimizers:
        if type(item).__name__ == "LBFGS":
            raise IllegalConfiguration(
                "LBFGS steps with a closure, which there is none of here: use another optimizer."
            )


def owned(optimizers: Sequence[Optimizer]) -> list[Tensor]:
    """All parameters of some optimizers."""
    return [parameter for item in optimizers for group in item.param_groups for parameter in group["params"]]
