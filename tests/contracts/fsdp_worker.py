"""Jobs of one FSDP2 process, and the same training in one process on the whole batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import zoo
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

import pliant
from pliant.interventions import (
    FIRE,
    L2,
    ContinualBackprop,
    FreshStart,
    GradientNoise,
    HareAndTortoise,
    L2Init,
    LayerReset,
    NormalizeAndProject,
    OptimizerReset,
    Parseval,
    ReDo,
    ReGraMa,
    SelectiveWeightReset,
    SelfNormalizedReset,
    ShrinkAndPerturb,
    SpectralRegularisation,
    WeightClipping,
    WeightNoise,
)

STEPS = 18


def mlp() -> nn.Module:
    """Seven units over two processes (4 + 3), five (3 + 2), and an output whose second part is empty."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(6, 7), nn.LayerNorm(7), nn.ReLU()),
        *(nn.Linear(7, 5), nn.Tanh()),
        nn.Linear(5, 1),
    ).double()


def conv() -> nn.Module:
    """A norm with running statistics and a flatten: each filter owns sixteen columns of the last layer."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten()),
        nn.Linear(3 * 16, 2),
    ).double()
    model[1].eval()  # in training mode each process would normalise by its own half of the batch
    return model


def transformer() -> nn.Module:
    """Heads whose activations no hook sees: a part of the graph is replayed, with gathered weights."""
    model = zoo.ZOO["transformer_post_norm"].model().double()
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def raw() -> nn.Module:
    """Matrices stored as inputs x outputs: the units are columns, of which each process holds a part of the rows."""
    return zoo.ZOO["mlp_raw"].model().double()


MODELS = {"mlp": (mlp, (6,)), "conv": (conv, (1, 6, 6)), "transformer": (transformer, (3, 5)), "raw": (raw, (5,))}
# what is sharded on its own, before the whole
BLOCKS = {
    **{"mlp": ("0", "3"), "conv": ("0",), "raw": ()},
    "transformer": ("encoder.layers.0", "encoder.layers.1.linear1"),
}
REPLACE = ContinualBackprop(0.1, maturity_threshold=2, decay_rate=0.9, decide_every=2)
RUNS: dict[str, tuple[str, Any, str]] = {
    "continual_backprop": ("mlp", REPLACE, "adam"),
    "continual_backprop_exact": ("mlp", ContinualBackprop(0.1, maturity_threshold=2, exact=True), "sgd"),
    "continual_backprop_conv": ("conv", REPLACE, "adam"),
    "continual_backprop_heads": ("transformer", REPLACE, "adam"),
    "continual_backprop_columns": ("raw", REPLACE, "adam"),
    "redo": ("mlp", ReDo(tau=0.6, every=4), "adam"),
    "regrama": ("mlp", ReGraMa(tau=0.8, every=4), "adam"),
    "regrama_columns": ("raw", ReGraMa(tau=0.8, every=4), "sgd"),
    "selective_weight_reset": ("mlp", SelectiveWeightReset(0.5, every=4), "adam"),
    "selective_weight_reset_share": ("mlp", SelectiveWeightReset(0.123, "proportional", every=3), "sgd"),
    "self_normalized_reset": (
        "mlp",
        SelfNormalizedReset(0.5, initial_threshold=2, max_threshold=4, update_every=3, min_active=0.5),
        "adam",
    ),
    "redo_conv": ("conv", ReDo(tau=0.9, every=2), "sgd"),
    "shrink_and_perturb": ("mlp", ShrinkAndPerturb(0.9, 0.1, every=3), "adam"),
    "shrink_and_perturb_softly": ("mlp", ShrinkAndPerturb(0.99, 0.01, every=1, noise="normal"), "adam"),
    "fresh_start": ("conv", FreshStart(), "adam"),
    "layer_reset": ("conv", LayerReset(2, every=4), "adam"),
    "fire": ("transformer", FIRE(every=4), "adam"),
    "hare_and_tortoise": ("conv", HareAndTortoise(0.8, every=4), "sgd"),
    "optimizer_reset": ("mlp", OptimizerReset(every=4), "adam"),
    "l2_init": ("conv", L2Init(0.1), "adam"),
    "l2_init_gradient": ("mlp", L2Init(0.1, apply="gradient", norm="l1"), "adam"),
    "spectral": ("mlp", SpectralRegularisation(0.01), "sgd"),
    "spectral_loss": ("conv", SpectralRegularisation(0.01, apply="loss"), "adam"),
    "parseval_gradient": ("conv", Parseval(0.01, apply="gradient", reference_width=None), "sgd"),
    "noise": ("mlp", [WeightClipping(0.9), GradientNoise(0.05), WeightNoise(0.1, "entry")], "adam"),
    "normalize_and_project": ("mlp", NormalizeAndProject(decay=0.1), "adam"),
    "normalize_and_project_jointly": ("mlp", NormalizeAndProject(affine="project", every=2), "sgd"),
    "several": ("conv", [L2(0.1), ShrinkAndPerturb(0.5, 0.5), REPLACE], "rmsprop"),
}
OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "adam_fused": lambda p: torch.optim.Adam(p, lr=1e-2, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
}


def batch(name: str, step: int, rank: int | None) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, *MODELS[name][1], generator=generator, dtype=torch.float64)
    y = torch.randn(8, 1, generator=generator, dtype=torch.float64)
    return (x, y) if rank is None else (x[4 * rank : 4 * rank + 4], y[4 * rank : 4 * rank + 4])


def _init(name: str) -> Any:
    return zoo.ZOO["mlp_raw"].init if name == "raw" else None


class Run:
    """A training run: on one process (``rank=None``), or sharded over two."""

    def __init__(
        self,
        name: str,
        methods: Any,
        optimizer: str,
        rank: int | None,
        *,
        mesh_shape: tuple[int, ...] = (2,),
        mixed: bool = False,
    ) -> None:
        self.name, self.rank = name, rank
        self.dtype = torch.float32 if mixed else torch.float64
        self.model = MODELS[name][0]().to(self.dtype)
        units = pliant.find_units(self.model, batch(name, 0, None)[0].to(self.dtype))
        if rank is not None:
            from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if mixed else None, reduce_dtype=self.dtype)
            mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=("replicate", "shard")[-len(mesh_shape) :])
            for block in BLOCKS[name]:
                fully_shard(self.model.get_submodule(block), mesh=mesh, mp_policy=policy)
            fully_shard(self.model, mesh=mesh, mp_policy=policy)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.handle = pliant.attach(self.model, self.optimizer, methods, units=units, seed=3, init=_init(name))

    def train(self, start: int = 0, stop: int = STEPS) -> Run:
        for step in range(start, stop):
            x, y = (tensor.to(self.dtype) for tensor in batch(self.name, step, self.rank))
            self.optimizer.zero_grad()
            ((self.model(x).flatten(1) - y).square().mean() + self.handle.penalty()).backward()
            self.optimizer.step()
            if step % 6 == 5:
                with torch.no_grad():
                    self.model(x)  # leaves unsharded copies of some parameters behind
                self.handle.task_boundary()
        return self

    def result(self) -> dict[str, Any]:
        """Everything, as plain tensors."""
        tensors = {f"model.{key}": whole(value) for key, value in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{name}.{key}"] = whole(value)
        for index, per_group in self.handle.state_dict()["state"].items():
            for group, entries in per_group.items():
                tensors |= {f"handle.{index}.{group}.{key}": value for key, value in entries.items()}
        return {
            "tensors": tensors,
            "events": [[e.step, e.group, e.action, list(e.units), e.reason] for e in self.handle.events],
            "random": self.handle.state_dict()["random"],
        }


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor().detach().clone() if hasattr(tensor, "full_tensor") else tensor.detach().clone()


def measured(rank: int | None) -> dict[str, Any]:
    """What a monitor reads in a sharded run: of the samples and gradients of all processes."""
    run = Run("transformer", L2(0.1), "adam", rank)
    watch = pliant.monitor(run.model, run.optimizer, units=run.handle.units, every=4, budget=None)
    run.train(0, 4)
    return watch.latest.values


def overflow(rank: int, optimizer: str) -> dict[str, Any]:
    """A step that overflows in one process is skipped in both, by the scaler or by a fused optimizer."""
    run = Run("mlp", REPLACE, optimizer, rank)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=1000)
    for step in range(8):
        x, y = batch("mlp", step, rank)
        run.optimizer.zero_grad()
        loss = (run.model(x) - y).square().mean()
        scaler.scale(loss * float("inf") if step == 5 and rank == 1 else loss).backward()
        scaler.step(run.optimizer)
        scaler.update()
    return run.result() | {"num_steps": run.handle.num_steps}


def equality(rank: int, folder: Path) -> dict[str, Any]:
    results = {key: Run(*arguments, rank).train().result() for key, arguments in RUNS.items()}
    results["mixed_precision"] = Run("transformer", REPLACE, "adam", rank, mixed=True).train().result()
    results["hybrid"] = Run(*RUNS["several"], rank, mesh_shape=(2, 1)).train().result()
    results["overflow"] = {name: overflow(rank, name) for name in ("adam", "adam_fused")}
    results["measured"], results["refusals"] = measured(rank), refusals()
    return results


def refusals() -> dict[str, str]:
    """What attach says to layouts that it does not know."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    def message(model: nn.Module, **given: Any) -> str:
        try:
            pliant.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), REPLACE, **given)
        except pliant.PliantError as error:
            return f"{type(error).__name__}: {error}"
        return "accepted"

    x = torch.randn(2, 6, dtype=torch.float64)
    plain = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    units = pliant.find_units(plain, x)
    mesh = init_device_mesh("cpu", (2,))
    found = {}
    tensor_parallel = parallelize_module(plain, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    found["tensor_parallel"] = message(tensor_parallel, units=units)
    both = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    mesh_2d = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "tensor"))
    parallelize_module(both, mesh_2d["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    found["both"] = message(fully_shard(both, mesh=mesh_2d["data"]), units=units)
    sharded = fully_shard(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).double(), mesh=mesh)
    found["no_units"] = message(sharded, example_inputs=x)
    found["members"] = message(sharded, units=units, seed=[0, 1])
    sharded(x)  # it still works
    return found


CUT = 9
RESUMED = ("continual_backprop", "redo_conv", "fresh_start", "hare_and_tortoise")


def load(run: Run, path: Path) -> None:
    from torch.distributed.checkpoint import load as load_checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    model, optimizer = get_state_dict(run.model, run.optimizer)
    load_checkpoint({"model": model, "optimizer": optimizer, "pliant": run.handle}, checkpoint_id=path)
    set_state_dict(run.model, run.optimizer, model_state_dict=model, optim_state_dict=optimizer)


def checkpoints(rank: int, folder: Path) -> dict[str, Any]:
    """Each run whole, and cut in two with a checkpoint between."""
    from torch.distributed.checkpoint import save as save_checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict

    results = {}
    for key in RESUMED:
        run = Run(*RUNS[key], rank).train(0, CUT)
        model, optimizer = get_state_dict(run.model, run.optimizer)
        save_checkpoint({"model": model, "optimizer": optimizer, "pliant": run.handle}, checkpoint_id=folder / key)
        rest = Run(*RUNS[key], rank)
        load(rest, folder / key)
        results[key] = [run.train(CUT).result(), rest.train(CUT).result()]
    return results
