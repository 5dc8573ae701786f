"""Jobs of one of two processes: training through the adapters, as torchrun would start it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import frameworks

import pliant


def _as_launched(rank: int) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29512", "LOCAL_WORLD_SIZE": "2"}


def everything(rank: int, folder: Path) -> dict[str, Any]:
    """One after the other: imports cost more than training."""
    _as_launched(rank)
    jobs = (huggingface, huggingface_sharded, lightning, lightning_sharded)
    return {job.__name__: job(rank, folder) for job in jobs}


def huggingface(rank: int, folder: Path) -> dict[str, Any]:
    protect = pliant.huggingface.Protect(frameworks.REPLACE, monitor={"every": 2, "budget": None})
    trainer = frameworks.trainer(folder / "hf", protect)
    trainer.train()
    wrapped = type(trainer.model_wrapped).__name__
    again = pliant.huggingface.Protect(frameworks.REPLACE)
    resumed = frameworks.trainer(folder / "hf", again)
    try:
        resumed.train(resume_from_checkpoint=str(folder / "hf" / "checkpoint-3"))
    except RuntimeError as error:  # the oldest supported Transformers cannot load its own optimizer's state here
        if "(tagged with cpu:0)" not in str(error):
            raise
        resumed = None
    return {
        "wrapped": wrapped,
        "tensors": frameworks.tensors(trainer.model),
        "events": frameworks.events(protect),
        "resumed": None if resumed is None else frameworks.tensors(resumed.model),
        "readings": {key: value for key, value in trainer.state.log_history[0].items() if key.startswith("pliant/")},
    }


def huggingface_sharded(rank: int, folder: Path) -> dict[str, Any]:
    """FSDP2. Accelerate shards on accelerators alone, so it is told that the processes have some; the rest is real."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    with _pretending(PartialState, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        found: dict[str, Any] = {}
        protect = pliant.huggingface.Protect(frameworks.REPLACE, example_inputs=frameworks.batch())
        trainer = frameworks.trainer(folder / "sharded", protect, **_SHARDED)
        trainer.train()
        again = pliant.huggingface.Protect(frameworks.REPLACE, example_inputs=frameworks.batch())
        resumed = frameworks.trainer(folder / "sharded", again, **_SHARDED)
        resumed.train(resume_from_checkpoint=str(folder / "sharded" / "checkpoint-3"))
        late = frameworks.trainer(folder / "late", None, **_SHARDED)
        late.add_callback(pliant.huggingface.Protect(frameworks.REPLACE, example_inputs=frameworks.batch()))
        per_weight = pliant.huggingface.Protect(pliant.L2Init(0.1), example_inputs=frameworks.batch())
        for name, refused in (("late", late), ("per_weight", frameworks.trainer(folder, per_weight, **_SHARDED))):
            try:
                refused.train()
            except (pliant.IllegalConfiguration, pliant.NotYetSupported) as error:
                found[name] = str(error)
    return {
        **found,
        "kinds": sorted({type(value).__name__ for value in trainer.model.parameters()}),
        "tensors": _whole(trainer.model),
        "resumed": _whole(resumed.model),
        "events": frameworks.events(protect),
    }


_SHARDED = {
    "fsdp": "full_shard auto_wrap",
    "fsdp_config": {
        **{"version": 2, "transformer_layer_cls_to_wrap": ["GPT2Block"]},
        **{"cpu_ram_efficient_loading": False, "sync_module_states": False},
    },
}


def _whole(model: Any) -> dict[str, Any]:
    return {name: value.full_tensor().detach().clone() for name, value in model.named_parameters()}


@contextlib.contextmanager
def _pretending(state: Any, kind: Any, other: Any) -> Iterator[None]:
    original = state.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if self.distributed_type == kind:
            self.distributed_type = other

    state._reset_state()
    state.__init__ = init
    try:
        yield
    finally:
        state.__init__ = original
        state._reset_state()


def lightning(rank: int, folder: Path) -> dict[str, Any]:
    _, regression, _ = frameworks.lightning_modules()
    protect, module = pliant.lightning.Protect(frameworks.REPLACE), regression()
    trainer = frameworks.fit(folder, module, protect, devices=2, strategy="ddp")
    return {
        "strategy": type(trainer.strategy).__name__,
        "tensors": frameworks.tensors(module),
        "events": frameworks.events(protect),
    }


def lightning_sharded(rank: int, folder: Path) -> dict[str, Any]:
    """FSDP2: the user calls ``fully_shard`` in ``configure_model``, and the callback finds the units before."""
    from lightning.pytorch.strategies import ModelParallelStrategy
    from torch.distributed.fsdp import fully_shard

    _, regression, _ = frameworks.lightning_modules()

    class Sharded(regression):  # type: ignore[misc, valid-type]
        def configure_model(self) -> None:
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    protect, module = pliant.lightning.Protect(frameworks.REPLACE), Sharded()
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False)
    frameworks.fit(folder, module, protect, devices=2, strategy=strategy)
    return {"tensors": _whole(module), "events": frameworks.events(protect)}
