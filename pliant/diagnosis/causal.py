"""Is the size of the weights the cause? Another size of the same function is probed beside the network itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from pliant.diagnosis.findings import CausalTest
from pliant.errors import UnsupportedError
from pliant.intervals import paired_difference
from pliant.probe import ProbeResult, probe
from pliant.probe.objective import Loss

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from pliant.units.init import InitSpec

__all__ = ["TrainsLike", "causal_test"]


@dataclass(frozen=True)
class TrainsLike:
    """What the causal test trains on, as :func:`pliant.probe.probe` takes it.

    Attributes:
        task: A probe task, a loader, or inputs and targets.
        optimizer: From parameters to an optimizer.
        steps: Optimizer steps of each network.
        seeds: Tasks that are drawn; intervals need at least two, and few say little.
        loss: The loss; by default the task's own.
    """

    task: Any
    optimizer: Callable[[Any], Optimizer]
    steps: int = 200
    seeds: int = 5
    loss: Loss = None


def causal_test(model: nn.Module, inputs: Any, how: TrainsLike, init: InitSpec = None) -> CausalTest:
    """Probe a network and a copy that computes the same function with incoming weights of their initial size.

    Both meet the same tasks in the same order beside the same fresh twins, so that their difference is that of the
    weights' size alone. Where the activation functions allow no such rescaling (tanh, GELU, norms), nothing can be
    said.

    Args:
        model: The network.
        inputs: A batch of its inputs.
        how: What it is trained on.
        init: How parameters are initialised.
    """
    from pliant.probe.rescale import rescaled

    try:
        other = rescaled(model, inputs, init=init)
    except UnsupportedError as error:
        return CausalTest(None, f"Not known: {error}")
    options: dict[str, Any] = {
        "optimizer": how.optimizer, "steps": how.steps, "seeds": how.seeds, "loss": how.loss, "init": init
    }  # fmt: skip
    results = [probe(net, how.task, **options) for net in (model, other.model)]
    finals = [_final(result) for result in results]
    gain = paired_difference(finals[0], finals[1])
    gaps = f"gap to fresh networks {results[0].gap.mean:.3g} as it is, {results[1].gap.mean:.3g} rescaled"
    if gain.num < 2 or gain.low != gain.low:
        return CausalTest(None, f"Not known: {gain.num} seeds give no interval ({gaps}).")
    interval = f"final loss lower by {gain.mean:.3g}, 95 % interval {gain.low:.3g} to {gain.high:.3g}; {gaps}"
    if gain.low > 0:
        return CausalTest(True, f"Yes: the same function with smaller weights learns better ({interval}).")
    return CausalTest(False, f"Not shown: the same function with smaller weights learns no better ({interval}).")


def _final(result: ProbeResult) -> dict[int, float]:
    """The aged network's final loss by seed."""
    found = {}
    for run in result.runs:
        if run.network == "aged":
            tail = run.loss[-max(1, len(run.loss) // 10) :]
            found[run.seed] = sum(tail) / len(tail)
    return found
