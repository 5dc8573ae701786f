"""A freshly initialised twin of a model: what the network would be if its training began today."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from pliant.edit_tensors import TensorEditor
from pliant.errors import IllegalConfiguration, NoEffect
from pliant.events import EventLog
from pliant.isolation import preserved_randomness, seed_everything
from pliant.units.export import canonical_names, refuse_wrapped
from pliant.units.init import InitSpec, initialisers

__all__ = ["copy_of", "fresh_twin", "redraw"]


def fresh_twin(
    model: nn.Module, *, seed: int, init: InitSpec = None, make_model: Callable[[], nn.Module] | None = None
) -> nn.Module:
    """A copy of a model in which everything that training has changed is drawn anew from its initial distribution.

    Parameters that are trained (``requires_grad``) and buffers with a known initial value (running statistics) are
    drawn, each from what its own layer draws. What training does not change keeps its values: frozen parameters and
    the buffers beside them (a pretrained backbone), masks, position tables. The copy is made by :func:`copy_of`.

    A model that initialises its layers itself (``nn.init.orthogonal_(self.fc.weight)`` in ``__init__``) looks like one
    that does not: give ``make_model`` or ``init``, or its twin begins where it never did.

    Args:
        model: The model; nothing about it changes, and no global random state is used.
        seed: Seed of the draws, from a generator of their own. The same seed gives the same twin.
        init: How parameters are initialised, where that is not the default of their layer, see
            :func:`pliant.units.init.initialisers`.
        make_model: Or a function that makes a fresh network as the model was made: what is trained is taken from
            there. It is called with every random state seeded, and put back afterwards.

    Returns:
        The twin, on the model's devices, in its data types and modes, with tied weights tied.

    Raises:
        IllegalConfiguration: If the initial distribution of a trained parameter is not known, naming it; if
            ``make_model`` makes another network, or ``init`` is given as well; for wrapped or compiled models, and for
            models that cannot be copied.
        NoEffect: If no parameter requires a gradient, so that nothing would be drawn.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        >>> twin = fresh_twin(model, seed=0)
        >>> bool((twin[0].weight == model[0].weight).any()), bool(twin[0].weight.abs().max() <= 3**-0.5)
        (False, True)
        >>> torch.equal(fresh_twin(model, seed=0)[0].weight, twin[0].weight)
        True
    """
    twin = copy_of(model)
    if make_model is None:
        redraw(twin, seed=seed, init=init)
    elif init is not None:
        raise IllegalConfiguration("fresh_twin takes init=... or make_model=..., not both.")
    else:
        _take(twin, make_model, seed)
    return twin


def copy_of(model: nn.Module) -> nn.Module:
    """A deep copy of a model that shares nothing with it, and that nobody listens to.

    Hooks are left out, so that neither an attached method, a monitor nor the user's own log hears the copy. Kept are
    those that belong to what the model computes: methods of its own modules, and hooks of PyTorch (weight norm,
    pruning), ``transformers``, ``accelerate`` and ``peft``. Gradients are not copied. Tensors that a forward pass has
    left in an attribute are copied without their graph.

    Raises:
        IllegalConfiguration: For wrapped or compiled models, tensors without values, and models that cannot be copied.

    Example:
        >>> heard = []
        >>> model = nn.Linear(2, 2)
        >>> _ = model.register_forward_hook(lambda *_: heard.append(1))
        >>> twin = copy_of(model)
        >>> _ = twin(torch.ones(1, 2))
        >>> heard, torch.equal(twin.weight, model.weight), twin.weight is model.weight
        ([], True, False)
    """
    if not isinstance(model, nn.Module):
        raise IllegalConfiguration(f"the model is a {type(model).__name__}, not an nn.Module; copy each by itself.")
    refuse_wrapped(model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor) or tensor.is_meta:
            raise IllegalConfiguration(
                f"{name!r} has no values yet (a lazy module, or the meta device): run the model on one batch, or "
                "initialise it, before it is copied."
            )
    memo: dict[int, Any] = {}
    modules = set(map(id, model.modules()))
    kept: list[tuple[OrderedDict[int, Any], dict[int, Any]]] = []
    for module in model.modules():
        for key in _HOOKS:
            hooks: dict[int, Any] = getattr(module, key)
            memo[id(hooks)] = OrderedDict()
            kept.append((memo[id(hooks)], {number: hook for number, hook in hooks.items() if _belongs(hook, modules)}))
        for value in (value for key, value in vars(module).items() if key not in _REGISTERED):
            memo.update((id(leaf), _apart(leaf)) for leaf in pytree.tree_leaves(value) if _needs_help(leaf))
    try:
        twin = copy.deepcopy(model, memo)
        for mine, hooks in kept:
            mine.update(copy.deepcopy(hooks, memo))
    except Exception as error:
        raise IllegalConfiguration(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}). Keep what cannot be copied "
            "(open files, locks, loaders) out of the module's attributes, or define __deepcopy__ on its owner."
        ) from error
    return twin


def redraw(model: nn.Module, *, seed: int, init: InitSpec = None) -> None:
    """Draw a model anew in place, as :func:`fresh_twin` does it to a copy.

    Args:
        model: The model.
        seed: Seed of the draws.
        init: As in :func:`fresh_twin`.

    Raises:
        IllegalConfiguration: If the initial distribution of a trained parameter is not known; nothing has been
            changed then.
        NoEffect: If no parameter requires a gradient.
    """
    inits = initialisers(model, init)
    tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    canonical = set(canonical_names(model).values())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trained:
        raise NoEffect(_NOTHING_TRAINED.format(type(model).__name__))
    drawn = trained | {name for name in _buffers_beside(model) if inits.get(name) is not None}
    edit = TensorEditor(tensors, {}, inits, (seed,), num_members=None, events=EventLog(1))
    names = [name for name in tensors if name in drawn and name in canonical]
    for name in names:  # before anything is written
        if name in trained and inits.get(name) is None:
            raise IllegalConfiguration(
                f"how {name!r} was initialised is not known (it is not a parameter of a PyTorch layer), so no fresh "
                'twin can be drawn. Say it, for example init={"' + name + '": "kaiming_uniform"}, or, where it is not '
                "trained, freeze it with requires_grad_(False)."
            )
    for name in names:
        edit.assign(name, edit.draw(name), moments="keep")
    _restart_power_iterations(model, edit)


def _take(twin: nn.Module, make_model: Callable[[], nn.Module], seed: int) -> None:
    """Give a copy what training changes, as a newly made network has it."""
    with preserved_randomness(twin):
        seed_everything(twin, seed)
        made = make_model()
    if not isinstance(made, nn.Module):
        raise IllegalConfiguration(f"make_model returned a {type(made).__name__}, not an nn.Module.")
    mine, other = ({name: tuple(value.shape) for name, value in net.named_parameters()} for net in (twin, made))
    if mine != other:
        name = min(key for key, _ in mine.items() ^ other.items())
        raise IllegalConfiguration(f"make_model makes another network than the model: {name!r} differs.")
    trained = {name for name, parameter in twin.named_parameters() if parameter.requires_grad}
    if not trained:
        raise NoEffect(_NOTHING_TRAINED.format(type(twin).__name__))
    tensors: dict[str, Tensor] = {**dict(twin.named_parameters()), **dict(twin.named_buffers())}
    values: dict[str, Tensor] = {**dict(made.named_parameters()), **dict(made.named_buffers())}
    edit = TensorEditor(tensors, {}, {}, (seed,), num_members=None, events=EventLog(1))
    for name in trained | {key for key in _buffers_beside(twin) if key in values}:
        edit.assign(name, values[name].detach().to(tensors[name]), moments="keep")


_NOTHING_TRAINED = (
    "no parameter of {} requires a gradient, so a fresh twin would be a plain copy. Call model.requires_grad_(True) on "
    "what is trained."
)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_REGISTERED = frozenset([*_HOOKS, "_parameters", "_buffers", "_modules"])
_OF_THE_MODEL = frozenset(["torch", "transformers", "accelerate", "peft"])


def _belongs(hook: Any, modules: set[int]) -> bool:
    """Whether a hook is a part of what the model computes, and not somebody who listens."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    if id(getattr(hook, "__self__", None)) in modules:
        return True
    where = getattr(hook, "__module__", None) or type(hook).__module__
    return where.partition(".")[0] in _OF_THE_MODEL


def _needs_help(leaf: Any) -> bool:
    """What ``deepcopy`` refuses: results of a computation that is recorded, and generators."""
    return isinstance(leaf, torch.Generator) or (isinstance(leaf, Tensor) and leaf.grad_fn is not None)


def _apart(leaf: Any) -> Any:
    return leaf.clone_state() if isinstance(leaf, torch.Generator) else leaf.detach().clone()


def _buffers_beside(model: nn.Module) -> Iterator[str]:
    """Buffers of all modules but those whose parameters are all frozen."""
    for path, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if not own or any(parameter.requires_grad for parameter in own):
            yield from (f"{path}.{leaf}" if path else leaf for leaf, _ in module.named_buffers(recurse=False))


def _restart_power_iterations(model: nn.Module, edit: TensorEditor) -> None:
    """Spectral norm keeps estimates of singular vectors, which belong to the weights that are gone."""
    for path, module in model.named_modules():
        if isinstance(module, nn.utils.parametrizations._SpectralNorm):
            parametrized: Any = model.get_submodule(path.rpartition(".")[0])
            with torch.no_grad():
                for leaf, buffer in module.named_buffers(recurse=False):
                    edit.assign(f"{path}.{leaf}", nn.functional.normalize(edit.draw_normal(buffer), dim=0))
                if hasattr(module, "_u"):
                    module._power_method(module._reshape_weight_to_matrix(parametrized.original), 15)
