"""Resuming is bitwise through every format that people save in: safetensors and torch.distributed.checkpoint, too.

Plain ``torch.save`` is in ``test_contracts_matrix.py``, for every method and architecture.
"""

from __future__ import annotations

import json

import fsdp_worker
import pytest
import torch
import torch.distributed.checkpoint as dcp
import two_processes
import zoo
from contract_tools import METHODS, Run, assert_same_bits
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import pliant
from pliant.checkpoint import pack, unpack
from pliant.wiring import is_dry_step

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.distributed is (unavailable|disabled).*")


@pytest.mark.parametrize("method", METHODS)
def test_resuming_through_safetensors_is_bitwise(method, tmp_path):
    """One file for the model and the handle: tensors, and the rest as metadata."""
    whole = Run("conv_bn_flatten", "sgd_momentum", METHODS[method]).train()
    cut = Run("conv_bn_flatten", "sgd_momentum", METHODS[method]).train(0, 4)
    tensors, metadata = pack(cut.handle.state_dict())
    json.loads(metadata["pliant"])
    save_file({**cut.model.state_dict(), **tensors}, tmp_path / "all.safetensors", metadata=metadata)

    rest = Run("conv_bn_flatten", "sgd_momentum", METHODS[method], seed=1, handle_seed=8)
    with safe_open(tmp_path / "all.safetensors", "pt") as file:
        loaded = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state = unpack(loaded, file.metadata())
    rest.model.load_state_dict({name: loaded[name] for name in rest.model.state_dict()})
    rest.optimizer.load_state_dict(cut.optimizer.state_dict())
    rest.handle.load_state_dict(state)
    assert_same_bits(whole.bits(), rest.train(4).bits())


def test_half_a_safetensors_checkpoint_is_refused():
    tensors, metadata = pack(Run("mlp", "sgd", METHODS["redo"]).train().handle.state_dict())
    with pytest.raises(pliant.IllegalConfiguration, match=r"save_file\(.*metadata=metadata"):
        unpack(tensors, None)
    name = tensors.popitem()[0]
    with pytest.raises(pliant.IllegalConfiguration, match=name):
        unpack(tensors, metadata)


@pytest.mark.parametrize("optimizer", ["sgd_momentum", "adam_amsgrad", "adamw_fused"])
@pytest.mark.parametrize("method", METHODS)
def test_resuming_through_the_distributed_checkpoint_is_bitwise(method, optimizer, tmp_path):
    """The handle is handed over like a model: ``dcp.save({..., "pliant": handle})``, and loads in place."""
    whole = Run("conv_bn_flatten", optimizer, METHODS[method]).train()
    cut = Run("conv_bn_flatten", optimizer, METHODS[method]).train(0, 4)
    cut.optimizer.zero_grad()  # without gradients and state, an optimizer is made to take a dry step
    model, state = get_state_dict(cut.model, cut.optimizer)
    dcp.save({"model": model, "optimizer": state, "pliant": cut.handle}, checkpoint_id=tmp_path)
    assert cut.handle.num_steps == 4
    assert_same_bits(whole.bits(), cut.train(4).bits())  # saving changes nothing

    rest = Run("conv_bn_flatten", optimizer, METHODS[method], seed=1, handle_seed=8)
    rest.handle.batch(rest.batch(0))  # what keeps examples has to have room for those that are loaded
    model, state = get_state_dict(rest.model, rest.optimizer)
    dcp.load({"model": model, "optimizer": state, "pliant": rest.handle}, checkpoint_id=tmp_path)
    set_state_dict(rest.model, rest.optimizer, model_state_dict=model, optim_state_dict=state)
    assert_same_bits(whole.bits(), rest.train(4).bits())


def test_a_dry_step_is_no_step_and_a_warm_up_from_zero_is_one():
    run = Run("mlp", "adam", METHODS["several"])
    monitor = pliant.monitor(run.model, run.optimizer, units=run.handle.units, every=1)
    seen = []
    run.optimizer.register_step_post_hook(lambda optimizer, *_: seen.append(is_dry_step(optimizer)))
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    get_state_dict(run.model, run.optimizer)
    assert seen == [True]
    assert run.handle.num_steps == 0
    assert not monitor.history
    assert all(torch.equal(before[key], value) for key, value in run.model.state_dict().items())
    for group in run.optimizer.param_groups:
        group["lr"] = 0.0
    zoo.loss_of(run.model(run.batch(0))).backward()
    run.optimizer.step()
    assert seen == [True, False]
    assert run.handle.num_steps == 1
    assert len(monitor.history) == 1


@pytest.mark.slow
def test_resuming_a_sharded_run_is_bitwise(tmp_path):
    """FSDP2 over two processes, resumed by two, and by one that is not sharded at all."""
    results = two_processes.run("fsdp_worker", "checkpoints", tmp_path)
    for key in fsdp_worker.RESUMED:
        for result in results:
            whole, rest = result[key]
            assert whole["events"][len(whole["events"]) - len(rest["events"]) :] == rest["events"]
            assert rest["events"] or key in ("fresh_start", "hare_and_tortoise")
            assert whole["tensors"].keys() == rest["tensors"].keys()
            for name, value in whole["tensors"].items():
                assert torch.equal(value, rest["tensors"][name]), (key, name)

        alone = fsdp_worker.Run(*fsdp_worker.RUNS[key], None)
        fsdp_worker.load(alone, tmp_path / key)
        for name, value in alone.train(fsdp_worker.CUT).result()["tensors"].items():
            assert torch.allclose(value.double(), whole["tensors"][name].double(), atol=1e-9), (key, name)
