"""Averages of a model over training: what a reset makes new in the model becomes new in them, too."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from pliant.errors import IllegalConfiguration
from pliant.handle import Handle
from pliant.stats.capture import named_tensors
from pliant.units.several import Models
from pliant.wiring import parts_of

__all__ = ["follow_resets"]


def follow_resets(handle: Handle, average: Models) -> Callable[[], None]:
    r"""Let an average of the model follow its resets: ``torch.optim.swa_utils.AveragedModel``, or an EMA of your own.

    An average over training, :math:`\bar w = \frac{1}{n}\sum_i w_i`, means something where all :math:`w_i` are values
    of the same weight. A unit that is reset is another unit from then on: mixed into what is left of the old one, its
    average would be a feature that neither network has, behind outgoing weights of the old unit. So whatever an edit
    gives a new life in the model (units that are reset, single weights, whole tensors that are drawn anew)
    gets the same new values in the average, at the same moment; everything else in the average stays. From there it
    goes on by the average's own rule: an exponential average forgets the birth within its own horizon, an equal one
    weighs it like the :math:`n` values before, because there is one counter for all weights.

    Edits that are no new life (shrinking, noise, clipping) are left to the average's own rule. After one that changes
    the whole network at once, begin a new average. Averages of batch-norm statistics are worth nothing after a reset:
    call ``torch.optim.swa_utils.update_bn`` before you use the average, as always.

    Args:
        handle: What :func:`pliant.attach` returned, for the plain model.
        average: The ``AveragedModel``, or a module with the names and shapes of the attached model; where several
            modules are attached, a mapping of the same names to their averages.

    Returns:
        A function that ends it.

    Raises:
        IllegalConfiguration: If the average has not the tensors of the attached unit groups.

    Example:
        >>> import torch, pliant
        >>> from torch.optim.swa_utils import AveragedModel
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer, average = torch.optim.SGD(model.parameters(), lr=0.1), AveragedModel(model)
        >>> handle = pliant.attach(model, optimizer, pliant.ReDo(tau=0.9, every=1), example_inputs=torch.randn(3, 4))
        >>> stop = pliant.follow_resets(handle, average)
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(16, 4)).square().mean().backward()
        ...     optimizer.step()  # and, with the resets in it already:
        ...     average.update_parameters(model)
        >>> reset = list(handle.events)[-1].units[0]
        >>> torch.equal(average.module[2].weight[:, reset], model[2].weight[:, reset])
        True
    """
    parts = {name: _averaged(part) for name, part in parts_of(average).items()}
    tensors = named_tensors(parts[""] if set(parts) == {""} else parts)
    mine = handle._editor.tensors
    for name in dict.fromkeys(name for group in handle.units for name in group.tensors):
        if name not in tensors or tensors[name].shape != mine[name].shape:
            has = f"has it as {tuple(tensors[name].shape)}" if name in tensors else "does not have it"
            raise IllegalConfiguration(
                f"{name!r} is {tuple(mine[name].shape)} in the attached model, and the average {has}. Make the average "
                "of that model; of several attached modules, a mapping of their names to their averages."
            )
        if tensors[name] is mine[name]:
            raise IllegalConfiguration("the average is the attached model itself; pass its AveragedModel.")
    averages = handle._editor.averages
    averages.append(tensors)

    def stop() -> None:
        averages[:] = [item for item in averages if item is not tensors]

    return stop


def _averaged(module: nn.Module) -> nn.Module:
    """What ``AveragedModel`` (and, inside it, DistributedDataParallel) holds."""
    kinds = {kind.__name__ for kind in type(module).__mro__}
    return _averaged(module.module) if kinds & {"AveragedModel", "DistributedDataParallel"} else module  # type: ignore[arg-type]
