"""Every entry of the catalogue: what it says of batch size, offset and scale is shown, and the rules hold."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks import metrics_table
from pliant import metrics, spectrum
from pliant.mechanisms import MECHANISMS
from pliant.metrics import CATALOGUE

NUM_UNITS = 12
POPULATION = 512
NUM_FEW = 4

Data = dict[str, Tensor]


def population(seed: int = 0) -> Data:
    """Samples of a network with something of everything: dead, dormant, rare, saturated and copied units."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    act_NU = normal(POPULATION, NUM_UNITS).relu()
    act_NU[:, :2] = 0.0
    act_NU[:, 2] *= 1e-4
    act_NU[:, 3] = 2 * act_NU[:, 4]
    act_NU[:, 5] *= torch.rand(POPULATION, generator=generator) < 0.05
    derivative_NU = 1 - normal(POPULATION, NUM_UNITS).tanh() ** 2
    derivative_NU[:, :2] = 0.0
    derivative_NU[:, 2] = 1e-3
    derivative_NU[:, 3] *= torch.rand(POPULATION, generator=generator) < 0.1
    grads_NUI = normal(POPULATION, NUM_UNITS, 3) + 1
    grads_NUI[:, :1] = 0.0
    grads_NUI[:, 1:3] = 0.05 * (grads_NUI[:, 1:3] - 1)  # noise without a direction
    return {
        "act_NU": act_NU,
        "derivative_NU": derivative_NU,
        "grads_NUI": grads_NUI,
        "logits_NC": normal(POPULATION, 4) + 0.5,
        "after_NC": normal(POPULATION, 4),
        "weight_OI": normal(6, 5) + 0.1,
        "initial_OI": normal(6, 5),
    }


def take(data: Data, index: Tensor) -> Data:
    return {name: value if name.endswith("OI") else value[index] for name, value in data.items()}


def arguments(name: str, data: Data, change: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> tuple[object, ...]:
    """What the metric reads, after a change of all of it."""
    found: list[object] = []
    for parameter in inspect.signature(CATALOGUE[name].function).parameters:
        if parameter in ("act_NU", "matrix"):
            found.append(change(data["act_NU"]))
        elif parameter == "mean_abs_activation":
            found.append(change(data["act_NU"]).abs().mean(0))
        elif parameter == "derivative_NU":
            found.append(derivative_after(change, data["derivative_NU"]))
        elif parameter == "mean_abs_gradient":
            found.append(change(data["grads_NUI"].mean(0).abs().mean(-1)))
        elif parameter == "grads":
            found.append([change(data["grads_NUI"].mean(0))])
        elif parameter == "grads_NP":
            found.append(change(data["grads_NUI"].flatten(1)))
        elif parameter in ("before_NC", "logits_NC", "outputs_NC"):
            found.append(change(data["logits_NC"]))
        elif parameter == "after_NC":
            found.append(change(data["after_NC"]))
        elif parameter in ("tensors", "before"):
            found.append([change(data["weight_OI"])])
        elif parameter == "initial":
            found.append([data["initial_OI"]])
        elif parameter == "after":
            found.append([change(data["weight_OI"] + 0.1 * data["initial_OI"])])
    return tuple(found)


def derivative_after(change: Callable[[Tensor], Tensor], derivative: Tensor) -> Tensor:
    """The derivative of a changed activation: the chain rule, by autograd."""
    h = torch.zeros_like(derivative, requires_grad=True)
    (slope,) = torch.autograd.grad(change(h).sum(), h)
    return derivative * slope


def value(name: str, data: Data, change: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> float:
    return float(CATALOGUE[name].function(*arguments(name, data, change)))


def apart(a: float, b: float) -> float:
    return abs(a - b) / max(abs(a), abs(b), 1e-12)


NAMES = [name for name in CATALOGUE if CATALOGUE[name].needs != "model"]  # those are in tests/spectrum
COMPUTED = [name for name in NAMES if CATALOGUE[name].needs != "weights"]


def test_the_names_are_those_of_the_functions() -> None:
    for name, info in CATALOGUE.items():
        assert info.name == name == info.function.__name__
        module = spectrum if info.needs == "model" else metrics
        assert getattr(module, name) is info.function
        assert info.module == module.__name__
        for sentence in (info.depends_on_batch, info.depends_on_offset, info.depends_on_scale):
            assert re.fullmatch(r"(No|Yes): [^A-Z].*\.", sentence), sentence
    # What is one number and not a mask, a score or a matrix is in the catalogue.
    others = {"clone_labels", "dormancy_score", "gradient_covariance", "gradient_dormancy_score"}
    functions = {name for name in metrics.__all__ if inspect.isfunction(getattr(metrics, name))}
    assert functions - set(CATALOGUE) - others == {name for name in functions if name.endswith("_mask")}


def test_mechanisms_are_shown_by_metrics_that_exist() -> None:
    named = {name for mechanism in MECHANISMS.values() for name in mechanism.metrics}
    assert named <= set(CATALOGUE), named - set(CATALOGUE)


@pytest.mark.parametrize("name", NAMES)
def test_dependence_on_offset_and_scale(name: str) -> None:
    data = population()
    plain = value(name, data)
    assert math.isfinite(plain)
    shifted = value(name, data, lambda tensor: tensor + 200)
    scaled = value(name, data, lambda tensor: tensor * 1024)
    for sentence, changed in ((CATALOGUE[name].depends_on_offset, shifted), (CATALOGUE[name].depends_on_scale, scaled)):
        if sentence.startswith("No"):
            assert apart(plain, changed) < 1e-9, sentence
        else:
            assert apart(plain, changed) > 0.02, sentence
        if sentence.startswith("Yes: proportional"):
            assert changed == pytest.approx(1024 * plain)


@pytest.mark.parametrize("name", COMPUTED)
def test_dependence_on_the_number_of_samples(name: str) -> None:
    """The mean over many small batches is the value on all samples, or it is not."""
    data = population()
    generator = torch.Generator().manual_seed(1)
    draws = [torch.randperm(POPULATION, generator=generator)[:NUM_FEW] for _ in range(150)]
    few = sum(value(name, take(data, index)) for index in draws) / len(draws)
    bias = apart(few, value(name, data))
    assert bias < 0.05 if CATALOGUE[name].depends_on_batch.startswith("No") else bias > 0.08, (few, value(name, data))


def test_weights_do_not_know_the_batch() -> None:
    for name in set(NAMES) - set(COMPUTED):
        assert CATALOGUE[name].depends_on_batch.startswith("No")


def test_claims_beyond_the_defaults() -> None:
    """What the sentences say of other arguments."""
    data = population()
    for name in ("effective_rank", "stable_rank", "srank", "approximate_rank"):
        rank, act_NU = CATALOGUE[name].function, data["act_NU"]
        assert apart(float(rank(act_NU + 5, centred=True)), float(rank(act_NU, centred=True))) < 1e-9
    act_NU = data["act_NU"]
    assert metrics.numerical_rank(1024 * act_NU, 1e-3, "largest") == metrics.numerical_rank(act_NU, 1e-3, "largest")
    before_NC, after_NC = data["logits_NC"], data["after_NC"]
    same = metrics.churn(before_NC, after_NC, kind="argmax")
    assert same == metrics.churn(1024 * before_NC, 1024 * after_NC, kind="argmax")
    now, then = [data["weight_OI"]], [data["initial_OI"]]
    both = metrics.weight_growth([1024 * w for w in now], [1024 * w for w in then])
    assert both.item() == pytest.approx(metrics.weight_growth(now, then).item())
    # Dead, frozen: more samples can only revive.
    few, many = take(data, torch.arange(8)), data
    for name in ("dead_fraction", "frozen_fraction"):
        assert value(name, many) <= value(name, few)
    # Diversity: too low by one part in N in the mean.
    index = torch.Generator().manual_seed(0)
    draws = [torch.randperm(POPULATION, generator=index)[:5] for _ in range(400)]
    outputs_NC = torch.nn.functional.normalize(data["logits_NC"], dim=1)
    mean = sum(float(metrics.output_diversity(outputs_NC[i])) for i in draws) / len(draws)
    assert mean == pytest.approx(float(metrics.output_diversity(outputs_NC)) * (1 - 1 / 5), rel=0.02)


def members(name: str, data: list[Data]) -> tuple[tuple[object, ...], dict[str, bool]]:
    """The arguments of several networks as a stack."""
    each = [arguments(name, one) for one in data]
    stacked = [
        torch.stack(parts) if isinstance(parts[0], Tensor) else [torch.stack([part[0] for part in parts])]
        for parts in zip(*each, strict=True)
    ]
    lists = any(isinstance(part, list) for part in stacked)
    return tuple(stacked), {"members": True} if lists else {}


@pytest.mark.parametrize("name", NAMES)
def test_a_stack_is_its_members_and_broken_data_spares_the_others(name: str) -> None:
    function = CATALOGUE[name].function
    data = [population(seed) for seed in range(3)]
    stacked, options = members(name, data)
    values = function(*stacked, **options)
    assert values.tolist() == pytest.approx([value(name, one) for one in data], rel=1e-9)
    for broken in (math.nan, math.inf):
        if name == "entropy" and broken == math.inf:
            continue
        first = stacked[0][0] if isinstance(stacked[0], list) else stacked[0]
        first = first.clone()
        first[1].view(-1)[2] = broken
        again = function([first] if isinstance(stacked[0], list) else first, *stacked[1:], **options)
        if name == "non_finite_fraction":
            assert again[1] > 0
        else:
            assert again[1].isnan()
        assert torch.equal(again[[0, 2]], values[[0, 2]])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_measured_in_single_precision(name: str, dtype: torch.dtype) -> None:
    def cast(part: object, to: torch.dtype) -> object:
        return [tensor.to(to) for tensor in part] if isinstance(part, list) else part.to(to)  # type: ignore[attr-defined]

    parts = [cast(part, dtype) for part in arguments(name, population())]
    result = CATALOGUE[name].function(*parts)
    assert result.dtype == torch.float32
    # The same numbers in double precision.
    exact = CATALOGUE[name].function(*[cast(part, torch.float64) for part in parts])
    assert result.item() == pytest.approx(exact.item(), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_no_value(name: str) -> None:
    """Zero units, zero samples, no tensor at all, not a tensor."""
    function = CATALOGUE[name].function
    parts = arguments(name, population())
    if isinstance(parts[0], list):
        with pytest.raises(ValueError, match="holds no tensors"):
            function(*[[] for _ in parts])
        with pytest.raises(ValueError, match="is empty"):
            function(*[[torch.zeros(0, 3)] for _ in parts])
        return
    ndim = parts[0].ndim  # type: ignore[attr-defined]
    for shape in {(0,) * ndim, (0, *(4,) * (ndim - 1)), (*(4,) * (ndim - 1), 0)}:
        with pytest.raises(ValueError, match=r"is empty|two outputs or more|two samples or more"):
            function(*[torch.zeros(shape) for _ in parts])
    with pytest.raises(ValueError, match="must be a tensor"):
        function(*[[1.0, 2.0] for _ in parts])


@pytest.mark.parametrize("name", [name for name in NAMES if CATALOGUE[name].needs in ("activations", "derivatives")])
def test_a_silent_layer_never_looks_healthy(name: str) -> None:
    """A dead layer gets the worst value there is, or no verdict."""
    silent = {key: tensor * 0 for key, tensor in population().items()}
    result, better = value(name, silent), CATALOGUE[name].better
    worst = {"low": 1.0, "high": 0.0, None: 0.0}[better]
    assert math.isnan(result) or result == worst


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_changed_and_no_gradient_kept(name: str) -> None:
    parts = arguments(name, population())
    tensors = [tensor for part in parts for tensor in (part if isinstance(part, list) else [part])]
    copies = [tensor.clone() for tensor in tensors]
    for tensor in tensors:
        tensor.requires_grad_()
    state = torch.get_rng_state()
    assert not CATALOGUE[name].function(*parts).requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, copies, strict=True))


def test_the_page_is_what_the_catalogue_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert metrics_table.main(["--check"]) == 0, capsys.readouterr().out
    page = metrics_table.page()
    for info in CATALOGUE.values():
        for sentence in (info.depends_on_batch, *info.compatible_with, *info.differs_from.values()):
            assert sentence.replace("|", r"\|") in page, (info.name, sentence)
