"""Contracts about training set-ups: mixed precision, accumulation, compilation, checkpointing, closures, copies."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import zoo
from contract_tools import METHODS, Run, assert_same_bits, listed, num_hooks, units_of
from torch import nn
from torch.utils.checkpoint import checkpoint
from zoo import ZOO

import pliant
from pliant import IllegalConfiguration
from pliant.interventions import L2, ContinualBackprop, ReDo
from pliant.interventions.base import Intervention

UNIT_METHODS = ("continual_backprop", "redo")


# ---- mixed precision ----
@pytest.mark.parametrize("optimizer", ["adam", "adam_fused", "sgd_momentum", "sgd_fused"])
@pytest.mark.parametrize("method", METHODS)
def test_a_skipped_amp_step_does_nothing(method, optimizer):
    """One run with a step that overflows, one without that step: everything else is the same, bit by bit."""

    def train(overflow_at):
        run = Run("conv_bn_flatten", optimizer, METHODS[method])
        for module in run.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()  # a forward pass changes running statistics whether or not the step is skipped
        scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=1000, backoff_factor=0.5)
        for step in range(8):
            if step == 5 and overflow_at is None:
                continue
            run.optimizer.zero_grad()
            loss = zoo.loss_of(run.model(run.batch(step)))
            scaler.scale(loss * math.inf if step == overflow_at else loss).backward()
            scaler.step(run.optimizer)
            scaler.update()
        return run

    skipped, never = train(5), train(None)
    assert skipped.handle.num_steps == never.handle.num_steps == 7
    assert_same_bits(never.bits(), skipped.bits())


def test_activations_that_overflow_in_a_skipped_step_leave_no_trace():
    """In float16 the forward pass itself overflows, which is why the scaler skips; the next step must be clean."""
    run = Run("mlp", "sgd", ReDo(tau=0.0, every=1))
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    for step in range(3):
        run.optimizer.zero_grad()
        x = run.batch(step)
        scaler.scale(zoo.loss_of(run.model(x * math.inf if step == 1 else x))).backward()
        scaler.step(run.optimizer)
        scaler.update()
    assert run.handle.num_steps == 2


def test_counters_do_not_saturate_in_bfloat16():
    method = ContinualBackprop(replacement_rate=0.01, maturity_threshold=300, decide_every=1)
    run = Run("mlp", "sgd", method, dtype=torch.bfloat16)
    for step in range(302):
        run.optimizer.zero_grad()
        zoo.loss_of(run.model(run.batch(step % 3))).backward()
        run.optimizer.step()
        if step == 299:
            state = run.handle.state_dict()["state"][0]
            assert all(entry["age"].dtype == torch.int64 and int(entry["age"].min()) == 300 for entry in state.values())
            assert not run.handle.num_resets
    # mature at step 301; 14 units at 0.01 a step
    state = run.handle.state_dict()["state"][0]
    assert sum(float(entry["budget"]) for entry in state.values()) == pytest.approx(2 * 0.14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_every_tensor_keeps_its_type(method, dtype):
    run = Run("conv_bn_flatten", "adam", METHODS[method], dtype=dtype)
    before = {key: value.dtype for key, value in run.train(0, 1).bits().items() if isinstance(value, torch.Tensor)}
    after = run.train(1).bits()
    for key, kind in before.items():
        assert after[key].dtype == kind, key
    assert all(p.dtype == dtype for p in run.model.parameters())


def test_autocast_statistics_are_kept_in_float32():
    run = Run("mlp", "adam", METHODS["continual_backprop"])
    for step in range(5):
        run.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = zoo.loss_of(run.model(run.batch(step)))
        loss.backward()
        run.optimizer.step()
    assert all(e["activation"].dtype == torch.float32 for e in run.handle.state_dict()["state"][0].values())
    assert run.handle.num_resets


# ---- what one step is ----
@pytest.mark.parametrize("method", UNIT_METHODS)
def test_micro_batches_count_as_one_step(method):
    """Four micro-batches see exactly what one batch sees."""
    whole = Run("mlp", "sgd", METHODS[method], dtype=torch.float64)
    parts = Run("mlp", "sgd", METHODS[method], dtype=torch.float64)
    for step in range(8):
        x = whole.batch(step, 8)
        whole.optimizer.zero_grad()
        whole.model(x).square().mean().backward()
        whole.optimizer.step()
        parts.optimizer.zero_grad()
        for piece in x.chunk(4):
            (parts.model(piece).square().mean() / 4).backward()
        parts.optimizer.step()
    assert whole.handle.num_steps == parts.handle.num_steps == 8
    assert list(whole.handle.events) == list(parts.handle.events)
    assert len(whole.handle.events) > 0
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_evaluation_and_no_grad_passes_leave_no_trace():
    a, b = (Run("mlp", "adam", METHODS["continual_backprop"]) for _ in range(2))
    for step in range(8):
        for run in (a, b):
            run.optimizer.zero_grad()
            if run is b:
                with torch.no_grad():
                    run.model(100 * run.batch(50))  # a rollout in training mode
                run.model.eval()
                run.model(100 * run.batch(51))
                run.model.train()
                pliant.stats.capture(run.model, units_of("mlp"), 100 * run.batch(52))
            zoo.loss_of(run.model(run.batch(step))).backward()
            run.optimizer.step()
    assert_same_bits(a.bits(), b.bits())


@pytest.mark.parametrize("optimizer", ["sgd_momentum", "adam", "adamw_fused", "rmsprop"])
@pytest.mark.parametrize("method", METHODS)
def test_a_closure_is_the_same_step(method, optimizer):
    run = Run("mlp", optimizer, METHODS[method])
    if any(item.changes_gradients for item in listed(METHODS[method])):
        with pytest.raises(IllegalConfiguration, match="closure"):
            run.optimizer.step(lambda: zoo.loss_of(run.model(run.batch(0))))
        return
    plain = Run("mlp", optimizer, METHODS[method]).train(0, 5)
    for step in range(5):
        torch.manual_seed(step)
        batch = run.handle.batch(run.batch(step))

        def closure(step=step, batch=batch):
            run.optimizer.zero_grad()
            loss = zoo.loss_of(run.model(batch))
            (loss + run.handle.penalty(loss=loss, reference=run.batch(step + 1000))).backward()
            return loss

        run.optimizer.step(closure)
        if step + 1 in (3, 6):
            run.handle.task_boundary()
    assert_same_bits(plain.bits(), run.bits())


class Clip(Intervention):
    """A method that changes gradients, to see that it is refused where there are none."""

    def null(self):
        return self

    def before_step(self, ctx):
        for parameter in ctx.parameters().values():
            assert parameter.grad is not None
            parameter.grad.clamp_(-0.01, 0.01)


def test_gradient_changing_methods_refuse_closures_and_work_without():
    run = Run("mlp", "sgd", Clip())
    run.train(0, 1)
    with pytest.raises(IllegalConfiguration, match="closure"):
        run.optimizer.step(lambda: zoo.loss_of(run.model(run.batch(1))))
    with pytest.raises(IllegalConfiguration, match="closure"):
        run.optimizer.step(closure=lambda: zoo.loss_of(run.model(run.batch(1))))
    run.handle.detach()
    assert num_hooks(run.model, run.optimizer) == 0


def test_gradient_changing_methods_change_the_step():
    plain, clipped = Run("mlp", "sgd").train(0, 1), Run("mlp", "sgd", Clip()).train(0, 1)
    start = ZOO["mlp"].model()
    for p, q, r in zip(start.parameters(), plain.model.parameters(), clipped.model.parameters(), strict=True):
        assert (p - r).abs().max() <= 0.05 * 0.01 + 1e-8
        assert (p - r).abs().max() <= (p - q).abs().max() + 1e-8


# ---- compilation ----
@pytest.mark.parametrize(
    "method", [METHODS["continual_backprop"], ReDo(tau=1.0, every=1), L2(0.1)], ids=["continual_backprop", "redo", "l2"]
)
@pytest.mark.parametrize("name", ["mlp", "conv_bn_flatten", "mlp_functional", "transformer_post_norm"])
def test_compiled_is_eager_in_one_graph(name, method):
    """Attached before torch.compile: no extra graph, no recompilation, the same resets."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    eager = Run(name, "sgd", method)
    run = Run(name, "sgd", method)
    for module in (*eager.model.modules(), *run.model.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    if hasattr(run.model, "rate"):
        run.model.rate = eager.model.rate = 0.0
    compiled = torch.compile(run.model, backend=backend, fullgraph=True)
    for step in range(8):
        for one, call in ((eager, eager.model), (run, compiled)):
            one.optimizer.zero_grad()
            zoo.loss_of(call(one.batch(step))).backward()
            one.optimizer.step()
    assert len(graphs) == 1
    assert list(run.handle.events) == list(eager.handle.events)
    assert isinstance(method, L2) or len(run.handle.events) > 0
    for p, q in zip(run.model.parameters(), eager.model.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-5)
    torch._dynamo.reset()


def test_compiled_samples_taken_now_and_then_cause_no_recompilation():
    """A Python branch on the step would recompile until PyTorch gives up; sums since the last sample do not."""
    torch._dynamo.reset()
    run = Run("mlp", "sgd", ReDo(tau=1.0, every=3))
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(run.model, backend=backend, fullgraph=True)
    for step in range(10):
        run.optimizer.zero_grad()
        zoo.loss_of(compiled(run.batch(step))).backward()
        run.optimizer.step()
        run.model.eval()
        compiled(run.batch(step))
        run.model.train()
    assert len(graphs) == 2  # training and evaluation
    assert {event.step for event in run.handle.events} == {3, 6, 9}
    torch._dynamo.reset()


def test_compiled_through_aot_autograd():
    torch._dynamo.reset()
    eager = Run("mlp", "adam", METHODS["continual_backprop"]).train(0, 6)
    run = Run("mlp", "adam", METHODS["continual_backprop"])
    compiled = torch.compile(run.model, backend="aot_eager", fullgraph=True)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for step in range(6):
        torch.manual_seed(step)
        run.optimizer.zero_grad()
        zoo.loss_of(compiled(run.batch(step))).backward()
        run.optimizer.step()
        if step + 1 in (3, 6):
            run.handle.task_boundary()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1
    assert list(run.handle.events) == list(eager.handle.events)
    for p, q in zip(run.model.parameters(), eager.model.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)
    torch._dynamo.reset()


# ---- activation checkpointing ----
class Checkpointed(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.body = nn.Sequential(nn.ReLU(), nn.Linear(8, 6), nn.Tanh())
        self.head = nn.Linear(6, 3)
        self.kind = kind

    def inner(self, h):
        return self.head(self.body(h))

    def forward(self, x):
        h = self.first(x)
        if self.kind == "none":
            return self.inner(h)
        return checkpoint(self.inner, h, use_reentrant=self.kind == "reentrant")


@pytest.mark.parametrize("kind", ["reentrant", "non_reentrant"])
@pytest.mark.parametrize("method", ["continual_backprop", "redo"])
def test_activation_checkpointing_counts_once(kind, method):
    runs = []
    for how in ("none", kind):
        torch.manual_seed(0)
        model = Checkpointed("none")
        units = pliant.find_units(model, torch.randn(4, 5))
        model.kind = how
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        handle = pliant.attach(model, optimizer, METHODS[method], units=units)
        sums = []
        for step in range(6):
            optimizer.zero_grad()
            for part in (0, 1):  # with accumulation, too
                model(ZOO["mlp"].batch(4, seed=10 * step + part)).square().mean().backward()
            counts = [item.num_samples for item in handle._collector.accumulators.values()]
            sums.append(counts)
            optimizer.step()
        runs.append((sums, list(handle.events), [p.clone() for p in model.parameters()]))
    plain, checkpointed = runs
    assert plain[0] == checkpointed[0]
    assert plain[1] == checkpointed[1]
    assert len(plain[1]) > 0
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(plain[2], checkpointed[2], strict=True))


# ---- copies, schedulers, parameter groups ----
def test_a_deep_copy_is_free_of_the_original():
    """EMA copies, target networks and probes are trained or run without a trace in the original."""
    a, b = (Run("mlp", "adam", METHODS["continual_backprop"]) for _ in range(2))
    for step in range(8):
        for run in (a, b):
            run.optimizer.zero_grad()
            if run is b:
                other = copy.deepcopy(run.model)
                torch.optim.swa_utils.AveragedModel(run.model).update_parameters(run.model)
                zoo.loss_of(other(100 * run.batch(70))).backward()  # with gradients, in training mode
                torch.optim.SGD(other.parameters(), lr=0.1).step()
            zoo.loss_of(run.model(run.batch(step))).backward()
            run.optimizer.step()
    assert_same_bits(a.bits(), b.bits())


def test_schedulers_and_new_parameter_groups():
    run = Run("mlp", "sgd_momentum", [L2(0.1), METHODS["redo"]])
    scheduler = torch.optim.lr_scheduler.StepLR(run.optimizer, 1, gamma=0.5)
    extra = nn.Parameter(torch.ones(3))
    for step in range(6):
        run.train(step, step + 1)
        scheduler.step()
        if step == 2:
            run.optimizer.add_param_group({"params": [extra], "lr": 0.1})
    assert torch.equal(extra, torch.ones(3))
    assert run.handle.num_steps == 6
    ctx = run.handle._contexts[0][0]
    assert ctx.learning_rates(["0.weight"]) == [0.02 * 0.5**6]  # L2 follows the schedule


def test_l2_follows_the_step_size_of_each_parameter():
    model = ZOO["mlp"].model()
    before = {k: v.clone() for k, v in model.named_parameters()}
    groups = [{"params": list(model[0].parameters()), "lr": 0.5}, {"params": list(model[2:].parameters())}]
    optimizer = torch.optim.SGD(groups, lr=0.25)
    pliant.attach(model, optimizer, L2(0.1), example_inputs=torch.randn(3, 5))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        rate = 0.5 if name.startswith("0.") else 0.25
        assert torch.allclose(p, before[name] * (1 - 0.1 * rate)), name


def test_the_optimizer_can_be_copied_and_pickled_while_attached():
    run = Run("mlp", "adam", METHODS["redo"]).train(0, 2)
    assert copy.deepcopy(run.optimizer).state_dict()["state"].keys() == run.optimizer.state_dict()["state"].keys()
