"""Many members in one model: the same network with S sets of weights, trained at once, equal to S single runs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from pliant.bench.stacked import StackedConv2d, StackedLinear, stack_layer, stackable
from pliant.errors import IllegalConfiguration, NotYetSupported

__all__ = ["StackedLinear", "needs_device", "stack", "unstack"]


def _build(models: Sequence[nn.Module]) -> nn.Module:
    """Return the stacked module tree; refuse what is not made of layers that can be stacked and of functions."""
    first = models[0]
    own = [parameter for module in first.modules() for parameter in module.parameters(recurse=False)]
    if len(own) != len(set(map(id, own))):
        raise NotYetSupported("stack: the model shares one parameter between several places; run its seeds singly")
    kinds = [[(name, type(module)) for name, module in model.named_modules()] for model in models]
    if any(kind != kinds[0] for kind in kinds):
        raise IllegalConfiguration("stack: the models are not built alike; stack models of one architecture only")
    for name, module in first.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        if any(hooks):
            raise IllegalConfiguration(f"stack: module {name!r} has hooks; stack the models before anything attaches")
        own_tensors = {**module._parameters, **module._buffers}
        held = [] if stackable(module) else [key for key, tensor in own_tensors.items() if tensor is not None]
        if held:
            raise NotYetSupported(
                f"stack: module {name!r} ({type(module).__name__}) holds {', '.join(held)} itself, and has no stacked "
                "form; run the seeds of this model singly"
            )
    stacked = copy.deepcopy(first)
    if stackable(first):
        return stack_layer(models)
    done: dict[int, nn.Module] = {}
    for name, module in list(stacked.named_modules(remove_duplicate=False)):
        if stackable(module):
            if id(module) not in done:
                done[id(module)] = stack_layer([model.get_submodule(name) for model in models])
            parent, _, child = name.rpartition(".")
            setattr(stacked.get_submodule(parent), child, done[id(module)])
    return stacked


def needs_device(model: nn.Module) -> bool:
    """Whether stacking pays on an accelerator only: a CPU gains nothing from a grouped convolution."""
    return any(isinstance(module, (nn.Conv2d, StackedConv2d)) for module in model.modules())


def _first_width(model: nn.Module) -> int:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            return module.in_features
    raise NotYetSupported("stack: the model has no nn.Linear, so nothing can be stacked")


def _prove(models: Sequence[nn.Module], example_inputs: Tensor | None) -> None:
    """Raise NotYetSupported unless outputs and gradients of the stack are those of the single models.

    Runs on float64 copies with every parameter drawn at random, each member on a batch of its own, in the mode
    that the models are in: whatever mixes members, batch and features, or draws random numbers, shows.
    """
    rng = torch.Generator().manual_seed(0)
    singles = [copy.deepcopy(model).double() for model in models]
    with torch.no_grad():
        for single in singles:
            for parameter in single.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=rng, dtype=torch.float64) * 0.5)
                parameter.requires_grad_(True)
    if example_inputs is None:
        shape: tuple[int, ...] = (5, _first_width(models[0]))
    else:
        shape = tuple(example_inputs.shape)
    x_SBF = torch.randn(len(models), *shape, generator=rng, dtype=torch.float64)
    stacked = _build(singles)
    refusal = "run the seeds of this model singly"
    try:
        with torch.random.fork_rng(devices=[]):
            wanted = torch.stack([single(x) for single, x in zip(singles, x_SBF, strict=True)])
            got = stacked(x_SBF)
    except (RuntimeError, IndexError, ValueError, TypeError, IllegalConfiguration) as error:
        raise NotYetSupported(f"stack: the model fails on inputs [S, B, F] ({error}); {refusal}") from error
    if got.shape != wanted.shape or not torch.allclose(got, wanted, rtol=1e-9, atol=1e-9):
        raise NotYetSupported(f"stack: the stacked outputs differ from those of the single models; {refusal}")
    weights = torch.randn(wanted.shape, generator=rng, dtype=torch.float64)
    torch.autograd.backward([(got * weights).sum(), (wanted * weights).sum()])
    for name, parameter in stacked.named_parameters():
        grads = [single.get_parameter(name).grad for single in singles]
        if parameter.grad is None or any(grad is None for grad in grads):
            if parameter.grad is None and all(grad is None for grad in grads):
                continue
            raise NotYetSupported(f"stack: {name} gets a gradient only in one of the two forms; {refusal}")
        if not torch.allclose(parameter.grad, torch.stack(cast(list[Tensor], grads)), rtol=1e-9, atol=1e-9):
            raise NotYetSupported(f"stack: the gradient of {name} differs from the single models'; {refusal}")


def stack(models: Sequence[nn.Module], example_inputs: Tensor | None = None) -> nn.Module:
    """Combine S models of one architecture into one that computes them all at once.

    Linear layers, convolutions and batch normalisations get stacked forms (``pliant.bench.stacked``), pooling and
    flattening see members as part of the batch, and functions between them must not care about a leading axis; the
    module tree and the parameter names stay. Training the stack with a loss that is a sum over members, and an
    optimizer whose update is elementwise, is training every member alone: bitwise for the MLPs of the benchmarks, up
    to rounding otherwise.

    Args:
        models: the members, in order; they are not changed and share no memory with the result.
        example_inputs: a batch ``[B, ...]`` of one member, used for its shape; default: 5 rows of the first
            linear layer's width.

    Returns:
        A module with parameters ``[S, ...]`` that maps ``[S, B, ...]`` to ``[S, B, ...]``.

    Raises:
        NotYetSupported: the model has other layers with parameters, or its stacked form does not provably give
            the same outputs and gradients (checked on random weights in float64).
        IllegalConfiguration: no models, models that differ, or models that something is attached to.

    >>> models = [nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(2)]
    >>> x_SBF = torch.rand(2, 5, 3)
    >>> torch.allclose(stack(models)(x_SBF)[0], models[0](x_SBF[0]))
    True
    """
    if not models:
        raise IllegalConfiguration("stack: no models given")
    stacked = _build(models)
    _prove(models[:2], example_inputs)
    return stacked.train(models[0].training)


def unstack(stacked: nn.Module, member: int) -> dict[str, Tensor]:
    """Return the state dict of one member: it loads into the single model. Tensors are copies.

    Args:
        stacked: a model made by :func:`stack`.
        member: which one, from 0.
    """
    return {name: tensor[member].detach().clone() for name, tensor in stacked.state_dict().items()}
