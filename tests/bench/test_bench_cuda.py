"""Members on an accelerator: captured steps are eager ones, and stacked convolutions are single networks."""

from __future__ import annotations

import pytest
import torch

from pliant.bench.engine import Members, can_stack
from pliant.bench.experiment import Experiment
from pliant.bench.graphs import Captured

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

MODELS = {
    "mlp": ("mlp", {"hidden": (8, 6)}),
    "convnet": ("convnet", {"channels": (4,), "kernels": (3,), "hidden": (8,), "image": (3, 8, 8)}),
    "resnet": ("resnet", {"width": 4, "blocks": (1, 1), "image": (3, 8, 8)}),
}
CBP = ("continual_backprop", {"replacement_rate": 0.05, "maturity_threshold": 3})


def run(experiment, seeds, **options):
    members = Members(experiment, seeds, None, device="cuda", **options)
    members.run()
    members.close()
    return members


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("model", MODELS)
def test_captured_steps_are_eager_steps(model, optimizer):
    stream = "stream_zoo:Tiny" if model == "mlp" else "task_zoo:Pictures"
    experiment = Experiment(stream, [CBP], (optimizer, {"lr": 0.01}), MODELS[model], num_tasks=2)
    assert can_stack(experiment, "cuda")
    captured = run(experiment, (0, 1), stacked=True)
    assert isinstance(captured.steps, Captured)
    assert captured.steps.graphs
    eager = run(experiment, (0, 1), stacked=True, by_hand=False)
    for member, seed in enumerate((0, 1)):
        alone = run(experiment, (seed,), stacked=False, by_hand=False)
        for other, position in ((eager, member), (alone, 0)):
            for name, values in other.series_of(position).items():
                assert captured.series_of(member)[name] == pytest.approx(values, abs=1e-3, nan_ok=True), name
