"""``pliant.huggingface`` with the real Trainer and the real Accelerator, on models from tiny configurations."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import warnings

import frameworks
import pytest
import torch
from frameworks import REPLACE, events, gpt2, resets, tensors, trainer
from torch import nn
from torch.utils.data import IterableDataset

import pliant
from pliant.integrations.protection import require_version

pytest.importorskip("transformers")
import transformers
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState

pytestmark = [pytest.mark.filterwarnings(rule) for rule in frameworks.IGNORED]


class Reporter(transformers.TrainerCallback):
    """What TensorBoard's and the other reporters of Transformers see."""

    def __init__(self) -> None:
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append(dict(logs))


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


@functools.cache
def units():
    """Found once: most tests are about something else."""
    return pliant.find_units(gpt2(), {"input_ids": torch.zeros(2, 6, dtype=torch.long)})


def protection(methods=REPLACE, **given):
    return pliant.huggingface.Protect(methods, **{"units": units(), **given})


@pytest.fixture(scope="module")
def protected(tmp_path_factory):
    """One protected training whose checkpoint at half time others resume."""
    folder, reporter = tmp_path_factory.mktemp("protected"), Reporter()
    protect = pliant.huggingface.Protect(REPLACE, monitor={"metrics": ["dead_fraction"], "every": 2, "budget": None})
    made = trainer(folder, reporter, more=[protect])
    made.train()
    return made, protect, reporter, folder / "checkpoint-3"


def test_it_attaches_inside_train_logs_where_the_trainer_logs_and_lets_go(protected):
    made, protect, reporter, checkpoint = protected
    assert protect.handle.num_steps == 6
    assert sum(resets(protect).values()) > 10
    logged = [entry for entry in made.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logged] == [2, 4, 6]
    assert logged[-1]["pliant/num_resets"] == sum(resets(protect).values())
    assert "pliant/dead_fraction/transformer.h.0.mlp.c_fc" in logged[0]
    assert [entry["pliant/num_resets"] for entry in logged] == [
        entry["pliant/num_resets"] for entry in reporter.seen if "loss" in entry
    ], "reporters stand before the callback and see its numbers all the same"
    assert (checkpoint / "pliant.pt").is_file()
    assert protect.monitor.latest.step == 6
    inner = made.optimizer.optimizer
    assert not protect.handle.is_attached
    assert not inner._optimizer_step_post_hooks
    assert not inner._optimizer_step_pre_hooks
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in made.model.modules())


def test_resuming_continues_bit_by_bit(protected):
    made, protect, _, checkpoint = protected
    again = protection(monitor={"metrics": ["dead_fraction"], "every": 2, "budget": None})
    resumed = trainer(checkpoint.parent, again, model=gpt2(seed=5))
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert equal(tensors(resumed.model), tensors(made.model))
    assert resets(again) == resets(protect)
    assert again.handle.num_steps == 6
    assert [reading.step for reading in again.monitor.history] == [2, 4, 6]


def test_finding_units_and_monitoring_change_nothing(tmp_path):
    plain, watched = (
        trainer(tmp_path / "a", None),
        trainer(tmp_path / "b", pliant.huggingface.Protect([], monitor=True)),
    )
    for made in (plain, watched):
        made.train()
    assert equal(tensors(plain.model), tensors(watched.model)), "the order of the data and all random states are kept"


def test_a_resume_that_would_lose_the_protection_is_refused(protected, tmp_path):
    """In this process by the mark itself; in one that knows nothing of Pliant, by PyTorch, which names it."""
    checkpoint = tmp_path / "checkpoint-3"
    shutil.copytree(protected[3], checkpoint)
    with pytest.raises(pliant.IllegalConfiguration, match="this Trainer has no Protect: the protection would be lost"):
        trainer(tmp_path, None).train(resume_from_checkpoint=str(checkpoint))
    code = f"import torch; torch.load({str(checkpoint / 'scheduler.pt')!r}, weights_only=True)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Unsupported global: GLOBAL pliant.integrations.huggingface.ProtectedCheckpoint" in done.stderr
    pliant.huggingface.unprotect(checkpoint)
    trainer(tmp_path, None).train(resume_from_checkpoint=str(checkpoint))
    with pytest.raises(pliant.IllegalConfiguration, match="there is nothing to end"):
        pliant.huggingface.unprotect(checkpoint)
    with pytest.raises(pliant.IllegalConfiguration, match=r"written without Protect.*on_missing_state"):
        trainer(tmp_path, protection()).train(resume_from_checkpoint=str(checkpoint))
    late = protection(on_missing_state="start")
    trainer(tmp_path, late).train(resume_from_checkpoint=str(checkpoint))
    assert late.handle.num_steps == 3


def test_checkpoints_of_something_else_are_refused(protected, tmp_path):
    checkpoint = tmp_path / "checkpoint-3"
    shutil.copytree(protected[3], checkpoint)
    state = torch.load(checkpoint / "pliant.pt", weights_only=True)

    def message(methods=REPLACE, model=None):
        made = trainer(tmp_path, protection(methods), model=model)
        with pytest.raises(pliant.IllegalConfiguration) as caught:
            made.train(resume_from_checkpoint=str(checkpoint))
        assert not any(module._forward_pre_hooks for module in made.model.modules()), "nothing is left behind"
        return str(caught.value)

    assert "ContinualBackprop" in message(pliant.ReDo())
    torch.save({**state, "handle": {**state["handle"], "groups": {"other": 3}}}, checkpoint / "pliant.pt")
    assert "unit groups: transformer" in message()
    torch.save({**state, "version": 99}, checkpoint / "pliant.pt")
    assert "another version of Pliant" in message()
    (checkpoint / "pliant.pt").unlink()
    assert "pliant.pt is missing" in message()


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"bf16": True, "gradient_accumulation_steps": 2}, id="bf16 and accumulation"),
        pytest.param(
            {"torch_compile": True, "torch_compile_backend": "eager"},
            marks=[pytest.mark.wide, pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")],
            id="compiled",
        ),
        pytest.param({"optim": "schedule_free_adamw", "lr_scheduler_type": "constant"}, id="schedule-free"),
    ],
)
def test_ways_to_train(options, tmp_path, protected):
    protect = pliant.huggingface.Protect(REPLACE)
    made = trainer(tmp_path, protect, save_strategy="no", **options)
    made.train()
    assert protect.handle.num_steps == 6, "accumulated batches are one step"
    assert sum(resets(protect).values()) > 10
    assert {parameter.dtype for parameter in made.model.parameters()} == {torch.float32}
    if "torch_compile" in options:
        assert events(protect) == events(protected[1]), "the hooks were compiled along"
        torch.compiler.reset()


def test_training_goes_on_with_the_same_clocks(tmp_path):
    protect = protection()
    made = trainer(tmp_path, protect, save_strategy="no", max_steps=2)
    made.train()
    made.train()
    assert protect.handle.num_steps == 4
    another = trainer(tmp_path, protect, save_strategy="no", max_steps=2, model=gpt2(seed=3))
    another.train()
    assert protect.handle.num_steps == 2, "another model begins anew"


class Stream(IterableDataset):
    def __iter__(self):
        return iter(frameworks.sentences())


def test_a_stream_is_not_read_ahead(tmp_path):
    def train(**given):
        made = trainer(tmp_path, pliant.huggingface.Protect(REPLACE, **given), max_steps=1, save_strategy="no")
        made.train_dataset = Stream()
        made.train()
        return made.callback_handler.callbacks[0].handle

    with pytest.raises(pliant.IllegalConfiguration, match=r"is a stream.*example_inputs=batch"):
        train()
    batch = {"input_ids": torch.zeros(2, 6, dtype=torch.long)}
    assert train(example_inputs=batch).num_steps == 1
    assert train(units=pliant.find_units(gpt2(), batch)).num_steps == 1


def test_what_is_given_wrongly_says_what_to_do(tmp_path):
    made = trainer(tmp_path, None)
    with pytest.raises(pliant.IllegalConfiguration, match=r"is a trainer, not a model.*pliant\.huggingface\.Protect"):
        pliant.attach(made, made.optimizer, REPLACE)
    with pytest.raises(pliant.IllegalConfiguration, match=r"is a trainer, not a model"):
        pliant.monitor(made, made.optimizer)
    with pytest.raises(pliant.IllegalConfiguration, match=r"no optimizer yet \(None\).*pliant\.huggingface\.Protect"):
        pliant.attach(made.model, made.optimizer, REPLACE, example_inputs=frameworks.sentences(2))
    with pytest.raises(pliant.IllegalConfiguration, match=r"InsertNormalization changes.*before the trainer"):
        pliant.huggingface.Protect(pliant.InsertNormalization())
    with pytest.raises(pliant.NoEffect, match="nothing is attached yet: it is when training begins"):
        _ = pliant.huggingface.Protect(REPLACE).handle
    assert pliant.huggingface.Protect(REPLACE).monitor is None
    with pytest.raises(pliant.IllegalConfiguration, match=r"works inside transformers\.Trainer only"):
        pliant.huggingface.Protect(REPLACE).on_train_begin(None, None, None)
    compiled = gpt2()
    compiled.compile()
    with pytest.raises(pliant.IllegalConfiguration, match=r"is compiled.*give the Trainer the plain model"):
        trainer(tmp_path, pliant.huggingface.Protect(REPLACE), model=compiled).train()
    with pytest.raises(pliant.IllegalConfiguration, match=r"transformers 4\.57\.1 is installed.*5\.0 and later"):
        require_version("transformers", "4.57.1", "5.0", "huggingface")


def test_a_penalty_needs_one_line_and_says_so(tmp_path):
    penalised = pliant.L2Init(0.5, apply="loss")
    with pytest.warns(pliant.NoEffectWarning, match=r"L2Init: handle\.penalty\(\) was not called in 2 steps"):
        trainer(tmp_path, protection(penalised), max_steps=2, save_strategy="no").train()


class Gradients(transformers.TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.found = model.transformer.h[0].mlp.c_fc.weight.grad.clone()


def test_the_recipes_of_the_documentation(tmp_path):
    args = transformers.TrainingArguments(
        str(tmp_path), max_steps=2, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True
    )
    given = {"Trainer": transformers.Trainer, "model": gpt2(), "args": args, "train_dataset": frameworks.sentences()}
    found = frameworks.run_recipes("Hugging Face Trainer", given)
    assert found["protect"].handle.num_steps == 2

    def gradient(kind, **given):  # of the first step, with or without the penalty
        look, options = Gradients(), {"max_steps": 1, "save_strategy": "no", "max_grad_norm": 0, "logging_steps": 5}
        found["protect"] = protection(pliant.L2(0.5, apply="loss"))  # what the class of the recipe asks
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if kind is transformers.Trainer else "error", pliant.NoEffectWarning)
            trainer(tmp_path, found["protect"], more=[look], kind=kind, **options, **given).train()
        return look.found

    added = [
        gradient(found["Penalised"], **given) - gradient(transformers.Trainer, **given)
        for given in ({}, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2})
    ]
    assert added[0].abs().max() > 0
    torch.testing.assert_close(added[0], added[1], atol=1e-6, rtol=1e-4)  # once, however many batches are accumulated

    AcceleratorState._reset_state(reset_partial_state=True)
    model, data = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)), frameworks.points()
    given = {"accelerator": Accelerator(cpu=True), "model": model, "x": torch.randn(2, 4), "loader": data}
    found = frameworks.run_recipes(
        "Accelerate in your own loop", {**given, "optimizer": torch.optim.Adam(model.parameters())}
    )
    assert found["accelerator"]._custom_objects == [found["handle"]]


# ---- Accelerate in a loop of one's own ----
def accelerated(folder, stop, *, load=None, register=True):
    """Six batches, two of them a step, in bfloat16, as a user of Accelerate writes it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
    units = pliant.find_units(model, torch.randn(2, 4))
    model, optimizer = accelerator.prepare(model, torch.optim.Adam(model.parameters(), 1e-2))
    handle = pliant.attach(model, optimizer, REPLACE, units=units)
    if register:
        accelerator.register_for_checkpointing(handle)
    if load is not None:
        accelerator.load_state(str(load))
    batches = [(torch.randn(8, 4, generator=torch.Generator().manual_seed(i)), torch.ones(8, 1)) for i in range(12)]
    for index, (x, y) in enumerate(batches):
        if load is not None and index < 6:
            continue
        if index == stop:
            break
        with accelerator.accumulate(model):
            accelerator.backward((model(x) - y).square().mean())
            optimizer.step()
            optimizer.zero_grad()
    if folder is not None:
        accelerator.save_state(str(folder))
    return handle, tensors(model)


def test_accelerate_saves_and_loads_the_handle_as_its_own(tmp_path):
    handle, expected = accelerated(None, 12)
    assert handle.num_steps == 6
    accelerated(tmp_path, 6)
    resumed, found = accelerated(None, 12, load=tmp_path)
    assert equal(found, expected)
    assert int(resumed.num_resets["0"]) == int(handle.num_resets["0"]) > 0
    with pytest.raises(RuntimeError, match="does not match the number of registered objects"):
        accelerated(None, 12, load=tmp_path, register=False)


def test_a_step_that_the_scaler_skips_does_nothing():
    """float16: Accelerate's optimizer calls the scaler, which calls the real one or does not."""
    AcceleratorState._reset_state(reset_partial_state=True)
    Accelerator(cpu=True)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer = AcceleratedOptimizer(torch.optim.Adam(model.parameters(), 1e-2), scaler=scaler)
    handle = pliant.attach(model, [optimizer], REPLACE, example_inputs=torch.randn(2, 4))
    for step in range(5):
        before = tensors(model)
        loss = model(torch.randn(8, 4)).square().mean()
        scaler.scale(loss * float("inf") if step == 2 else loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert equal(before, tensors(model)) == optimizer.step_was_skipped == (step == 2)
    assert handle.num_steps == 4
