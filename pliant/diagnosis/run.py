"""``diagnose``: a network beside fresh twins, on one batch."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from pliant.diagnosis.attached import attached
from pliant.diagnosis.causal import TrainsLike, causal_test
from pliant.diagnosis.evidence import findings
from pliant.diagnosis.findings import CausalTest, Diagnosis, Finding, Verdict
from pliant.diagnosis.signals import signals
from pliant.diagnosis.traps import traps
from pliant.errors import IllegalConfiguration, NoEffect, UnsupportedOp
from pliant.fresh import fresh_twin
from pliant.observation import Observation, observe
from pliant.probe import Objective, ProbeResult
from pliant.probe.objective import Loss, inputs_of
from pliant.units import UnitGraph, find_units

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from pliant.handle import Handle
    from pliant.units.init import InitSpec

__all__ = ["diagnose", "parts"]

_MARGIN = 0.1  # of the fresh networks' progress: a smaller gap in the probe counts as none
_FEW = 16  # examples; fewer say little about what units do


def diagnose(
    model: nn.Module,
    batch: Any,
    loss_fn: Loss = None,
    *,
    units: UnitGraph | None = None,
    example_inputs: Any = None,
    twins: int = 5,
    seed: int = 0,
    mode: Literal["train", "eval"] = "train",
    mask: Tensor | None = None,
    init: InitSpec = None,
    make_model: Callable[[], nn.Module] | None = None,
    handle: Handle | None = None,
    optimizer: Optimizer | None = None,
    probe: ProbeResult | None = None,
    causal: TrainsLike | None = None,
) -> Diagnosis:
    """Which mechanisms of lost plasticity a network shows, beside freshly initialised twins on the same batch.

    Each metric is measured on the network and on its twins, and only what no twin shows is a finding. Nothing about
    the model changes. A finding is a correlate: whether the network learns worse than a fresh one is what a probe
    measures (:func:`pliant.probe.probe`); give its result, and it decides.

    Args:
        model: The network, in any mode, before ``torch.compile`` and DDP.
        batch: Inputs and targets as training has them: ``(x, y)``, a mapping with ``labels``, or token ids. At least
            16 examples, better several times the width of a layer.
        loss_fn: ``loss_fn(outputs, targets)``, or a name, see :data:`pliant.probe.objective.Loss`. By default the
            model's own loss, the cross-entropy for integer targets, the mean squared error for others.
        units: The unit groups, if they were found or declared before.
        example_inputs: A small batch of inputs to find them with, if ``batch`` will not do.
        twins: How many fresh twins. More make a finding surer.
        seed: Of the twins.
        mode: ``"train"``: batch norm uses this batch and dropout drops, in the network and in its twins. ``"eval"``:
            batch norm uses running statistics, which a fresh twin has never gathered, so ranks and counts of units
            behind one mean less.
        mask: Bool ``[B, T]``, false where a position is padding; a mapping's own masks are read.
        init: How parameters are initialised where that is not their layer's default, see
            :func:`~pliant.fresh.fresh_twin`.
        make_model: Or a function that makes a fresh network, as there.
        handle: Of methods that are attached: what each has done so far is told.
        optimizer: What trains the network: whether its settings leave a manifold of clones is measured, and how far its
            memory still moves frozen units is told.
        probe: The result of a probe of this network.
        causal: With what to train, for the test whether large weights are the cause: see
            :class:`~pliant.diagnosis.causal.TrainsLike`.

    Returns:
        The diagnosis; ``print`` it, or write ``to_html()``.

    Raises:
        IllegalConfiguration: If the model, the batch, the loss and the options do not fit together.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3))
        >>> batch = torch.randn(128, 8), torch.randint(3, (128,))
        >>> diagnose(model, batch).verdict
        'not plasticity'
        >>> with torch.no_grad():
        ...     _ = model[0].weight[:8].zero_(), model[0].bias[:8].fill_(-1)
        >>> found = diagnose(model, batch)
        >>> found.mechanisms[0], found.findings[0].value
        ('dead_units', 0.25)
    """
    if not isinstance(model, nn.Module):
        raise IllegalConfiguration(
            f"diagnose takes one module, not a {type(model).__name__}: diagnose an actor and its critic one by one, or "
            "an agent of Stable-Baselines3 with pliant.sb3.diagnose(agent)."
        )
    if twins < 0:
        raise IllegalConfiguration(f"diagnose: twins must not be negative, but is {twins}.")
    inputs, loss = parts(model, batch, loss_fn)
    unknowns: list[str] = []
    units = _units(model, inputs if example_inputs is None else example_inputs, units, unknowns)

    def look(net: nn.Module) -> Observation:
        return observe(net, inputs, loss, units=units, mode=mode, mask=mask)

    here = look(model)
    others = _twins(model, look, twins, seed, init, make_model, unknowns)
    twin_losses = [other.loss for other in others if other.loss is not None]
    found = findings(signals(here), [signals(other) for other in others], loss=here.loss, twin_losses=twin_losses)
    _missing(here, unknowns)
    tested = _causal(model, inputs, found, causal, init)
    verdict, reason = _verdict(found, unknowns, probe)
    return Diagnosis(
        verdict=verdict,
        reason=reason,
        findings=tuple(found),
        unknowns=tuple(unknowns),
        remarks=tuple(_remarks(model, here, twin_losses, mode)),
        facts={
            "loss": here.loss,
            "twin_losses": twin_losses,
            "num_examples": here.num_examples,
            "num_groups": len(here.groups),
            "mode": mode,
            "seed": seed,
        },
        causal=tested,
        traps=traps(model, here, inputs, loss, optimizer, has_copies=any(f.metric == "copied_fraction" for f in found)),
        methods=() if handle is None else attached(handle),
        probe=None if probe is None else str(probe),
    )


class _Answer(nn.Module):
    """Stands for a model that has already run: the loss is computed from its output."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.output


def parts(model: nn.Module, batch: Any, loss_fn: Loss) -> tuple[Any, Callable[[Any], Tensor] | None]:
    """The inputs of the model, and the loss as a function of its output."""
    objective = Objective(loss_fn)
    if isinstance(batch, Mapping):
        own = dict(batch) if loss_fn is None and _takes(model, "labels") else inputs_of(batch)
        has_targets = any(key in batch for key in ("labels", "label", "targets", "target"))
        if not has_targets and "input_ids" not in batch:
            return own, None
        return own, lambda output: objective(_Answer(output), batch).loss
    if isinstance(batch, Tensor) and batch.is_floating_point():
        return batch, None
    if isinstance(batch, (tuple, list)) and len(batch) < 2:
        return tuple(batch), None
    return inputs_of(batch), lambda output: objective(_Answer(output), batch).loss


def _takes(model: nn.Module, name: str) -> bool:
    takes = inspect.signature(model.forward).parameters
    return name in takes or any(p.kind is p.VAR_KEYWORD for p in takes.values())


def _units(model: nn.Module, inputs: Any, units: UnitGraph | None, unknowns: list[str]) -> UnitGraph:
    if units is not None:
        return units
    try:
        return find_units(model, inputs)
    except UnsupportedOp as error:
        unknowns.append(
            f"units: {error} Until then nothing is known of dead, saturated or cloned units and of features; pass "
            "units=pliant.declare_units(...)."
        )
    except NoEffect as error:
        unknowns.append(f"units: {error}")
    return UnitGraph(())


def _twins(
    model: nn.Module,
    look: Callable[[nn.Module], Observation],
    count: int,
    seed: int,
    init: InitSpec,
    make_model: Callable[[], nn.Module] | None,
    unknowns: list[str],
) -> list[Observation]:
    """Observations of fresh twins; why there are none otherwise."""
    if not count:
        unknowns.append("fresh twins: none were asked for (twins=0), so nothing says what is usual for this network")
        return []
    found: list[Observation] = []
    try:
        for number in range(count):
            found.append(look(fresh_twin(model, seed=seed + number, init=init, make_model=make_model)))
    except NoEffect as error:
        unknowns.append(f"fresh twins: {error}")
    except IllegalConfiguration as error:
        if make_model is not None or found:
            raise
        unknowns.append(f"fresh twins: {error} Or give make_model=..., a function that makes a fresh network.")
    return found


def _missing(here: Observation, unknowns: list[str]) -> None:
    """What a healthy verdict would need and does not have."""
    if here.num_examples < _FEW:
        unknowns.append(
            f"examples: the batch has {here.num_examples}, too few to tell an idle unit from a dead one; pass at "
            f"least {_FEW}, better several hundred"
        )
    if here.loss is None:
        unknowns.append("loss: none was given and the model's output has none, so nothing is known of gradients")
    elif not math.isfinite(here.loss):
        unknowns.append("loss: it is not finite, so nothing else can be judged")
    hidden = [name for name in here.unseen if here.units[name].site == "hidden"]
    for name in hidden:
        unknowns.append(f"{name}: not seen, {here.unseen[name]}")
    for name, weight in here.weights.items():
        if not weight.numel():
            unknowns.append(
                f"{name}: it is empty, shape {tuple(weight.shape)}: a layer without units passes nothing on"
            )
    if not here.trainable:
        unknowns.append("parameters: none requires a gradient, so this network does not learn at all")
    for name, group in here.groups.items():
        if "derivatives" in group.missing and here.units[name].site == "hidden":
            unknowns.append(f"{name}: whether its units are saturated is not known, {group.missing['derivatives']}")
        elif len(group.act_NU) < _FEW and here.num_examples >= _FEW:
            unknowns.append(f"{name}: only {len(group.act_NU)} samples, too few to judge its units")


def _causal(
    model: nn.Module,
    inputs: Any,
    found: Sequence[Finding],
    causal: TrainsLike | None,
    init: InitSpec,
) -> CausalTest | None:
    grown = [f for f in found if f.mechanism == "weight_growth" and f.severity != "note"]
    if causal is None:
        return None
    if not grown:
        return CausalTest(None, "Not tested: the weights have not grown beyond what fresh twins have.")
    return causal_test(model, inputs, causal, init)


def _verdict(found: Sequence[Finding], unknowns: Sequence[str], probe: ProbeResult | None) -> tuple[Verdict, str]:
    serious = [finding for finding in found if finding.severity != "note"]
    names = list(dict.fromkeys(finding.about.title.lower() for finding in serious))
    listed = ", ".join(names)
    outcome = None if probe is None else probe.outcome
    if outcome == "worse":
        what = f"with {listed}" if names else "by a mechanism that no metric here shows"
        return "plasticity", f"The probe shows that this network learns worse than fresh ones, {what}."
    broken = any(finding.mechanism == "non_finite" for finding in serious)
    if probe is not None and not broken and (outcome == "better" or _is_equal(probe)):
        what = f" What was found ({listed}) does not keep it from learning." if names else ""
        shown = "better than fresh ones" if outcome == "better" else "as well as fresh ones, within a tenth"
        return "not plasticity", f"The probe shows that this network learns {shown}.{what}"
    tail = "" if probe is None else " The probe does not decide: its interval allows for a difference, or for none."
    if names:
        weights = [finding.weight for finding in serious]
        if probe is None and all(weight is not None and weight.strength == "none" for weight in weights):
            tail = " In the study, none of these metrics foretold that a network learns worse: let a probe decide."
        return "plasticity", f"Found, beyond what any fresh twin shows: {listed}.{tail}"
    if unknowns:
        return "unknown", f"Nothing was found, but not everything could be looked at: {unknowns[0]}.{tail}"
    if probe is not None:
        return "unknown", f"Nothing beyond what fresh twins show.{tail}"
    more = " There are notes." if found else ""
    return "not plasticity", f"Nothing beyond what fresh twins show.{more}"


def _is_equal(probe: ProbeResult) -> bool:
    """Whether the interval of the gap excludes that a tenth of what fresh networks learn has been lost."""
    return probe.outcome != "no verdict" and probe.gap.num > 1 and probe.gap.high < _MARGIN * probe.progress.mean


def _remarks(model: nn.Module, here: Observation, twin_losses: Sequence[float], mode: str) -> list[str]:
    remarks = []
    if here.loss is not None and twin_losses and math.isfinite(here.loss):
        if here.loss > 1.05 * max(twin_losses):
            remarks.append(
                f"The loss, {here.loss:.4g}, is higher than that of any untrained twin: the batch may not be of the "
                "data that the network was trained on. Only a probe tells whether it can still learn it."
            )
        elif here.loss > 0.95 * min(twin_losses):
            remarks.append(
                "The loss is no lower than that of untrained twins: on this batch nothing has been learned so far. If "
                "no mechanism was found, look at the data, the learning rate and the loss first; a probe decides."
            )
    if mode == "eval" and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        remarks.append(
            "In evaluation mode batch norm uses running statistics, which fresh twins have never gathered: what lies "
            "behind a batch norm is compared with something else. Prefer mode='train'."
        )
    frozen = [name for name in here.weights if name not in here.trainable]
    if frozen and here.trainable:
        remarks.append(
            f"{len(frozen)} parameters are frozen ({frozen[0]}, ...); twins keep them, and they count for no finding "
            "about gradients."
        )
    return remarks
