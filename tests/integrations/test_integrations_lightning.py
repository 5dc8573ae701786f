"""``pliant.lightning`` with the real Trainer."""

from __future__ import annotations

import frameworks
import pytest
import torch
from frameworks import REPLACE, events, fit, resets, tensors

import pliant

pytest.importorskip("lightning")
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision

lightning, Regression, Adversaries = frameworks.lightning_modules()

pytestmark = [pytest.mark.filterwarnings(rule) for rule in frameworks.IGNORED]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def protected(folder, **given):
    protect, module = pliant.lightning.Protect(REPLACE), Regression()
    fit(folder, module, protect, **given)
    return protect, module


def test_it_attaches_to_any_loop_and_lets_go(tmp_path):
    logger = CSVLogger(str(tmp_path))
    protect = pliant.lightning.Protect(REPLACE, monitor={"metrics": ["dead_fraction"], "every": 2, "budget": None})
    module = Regression()
    trainer = fit(tmp_path, module, protect, logger=logger)
    assert protect.handle.num_steps == trainer.global_step == 6
    assert sum(resets(protect).values()) > 5
    rows = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
    columns = rows[0].split(",")
    at = columns.index("pliant/num_resets")
    assert [float(row.split(",")[at]) for row in rows[1:]][-1] == sum(resets(protect).values())
    assert "pliant/dead_fraction/net.0" in columns
    assert len(rows) == 1 + 3
    assert not protect.handle.is_attached
    assert not trainer.optimizers[0]._optimizer_step_post_hooks
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_protection_is_what_attach_does_in_a_loop_of_ones_own(tmp_path):
    protect, module = protected(tmp_path)
    mine = Regression()
    optimizer = mine.configure_optimizers()
    handle = pliant.attach(mine, optimizer, REPLACE, example_inputs=torch.zeros(2, 4))
    for _ in range(2):
        for index, batch in enumerate(frameworks.points()):
            optimizer.zero_grad()
            mine.training_step(batch, index).backward()
            optimizer.step()
    assert equal(tensors(mine), tensors(module))
    assert [[e.step, e.group, e.action, list(e.units)] for e in handle.events] == events(protect)


@pytest.mark.parametrize(
    ("options", "steps"),
    [({"precision": "bf16-mixed", "accumulate_grad_batches": 3}, 2), ({"precision": "bf16-true"}, 6)],
    ids=["mixed", "true"],
)
def test_bfloat16_and_accumulation(options, steps, tmp_path):
    protect, module = protected(tmp_path, **options)
    assert protect.handle.num_steps == steps
    assert sum(resets(protect).values()) > 0
    dtypes = {parameter.dtype for parameter in module.parameters()}
    assert dtypes == {torch.bfloat16 if options["precision"] == "bf16-true" else torch.float32}


class Overflowing(Regression):
    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        return loss * float("inf") if (self.current_epoch, index) == (0, 1) else loss


def test_a_step_that_the_scaler_skips_does_nothing(tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    protect, module = pliant.lightning.Protect(REPLACE), Overflowing()
    fit(tmp_path, module, protect, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert scaler.get_scale() == 4
    assert protect.handle.num_steps == 5


def test_several_networks_and_optimizers_by_hand(tmp_path):
    inputs = {"generator": torch.zeros(2, 2), "critic": torch.zeros(2, 4)}
    protect = pliant.lightning.Protect(REPLACE, modules=["generator", "critic"], example_inputs=inputs)
    fit(tmp_path, Adversaries(), protect)
    assert protect.handle.num_steps == 6
    steps = {group: {e.step for e in protect.handle.events if e.group == group} for group in resets(protect)}
    assert steps.keys() == {"generator.0", "critic.0"}
    assert max(steps["generator.0"]) <= 6 < max(steps["critic.0"]), "each group follows its own optimizer's clock"


def test_resuming_continues_bit_by_bit(tmp_path):
    half, whole = pliant.lightning.Protect(REPLACE), pliant.lightning.Protect(REPLACE)
    trainer = fit(tmp_path, Regression(), half, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")  # after training: the state is still there
    expected, resumed = Regression(), Regression()
    fit(tmp_path, expected, whole)
    again = pliant.lightning.Protect(REPLACE)
    fit(tmp_path, resumed, again, tmp_path / "half.ckpt")
    assert equal(tensors(resumed), tensors(expected))
    assert resets(again) == resets(whole)
    assert again.handle.num_steps == 6

    with pytest.warns(UserWarning, match=r"Please add the following callbacks: \['pliant\.lightning\.Protect'\]"):
        fit(tmp_path, Regression(), None, tmp_path / "half.ckpt")
    with pytest.raises(pliant.IllegalConfiguration, match="different interventions"):
        fit(tmp_path, Regression(), pliant.lightning.Protect(pliant.ReDo()), tmp_path / "half.ckpt")
    checkpoint = torch.load(tmp_path / "half.ckpt", weights_only=False)
    checkpoint["callbacks"]["pliant.lightning.Protect"]["version"] = 99
    torch.save(checkpoint, tmp_path / "newer.ckpt")
    with pytest.raises(pliant.IllegalConfiguration, match="another version of Pliant"):
        fit(tmp_path, Regression(), pliant.lightning.Protect(REPLACE), tmp_path / "newer.ckpt")


def test_a_checkpoint_without_protection_is_refused(tmp_path):
    fit(tmp_path, Regression(), None, max_epochs=1).save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(pliant.IllegalConfiguration, match=r"written without Protect.*on_missing_state"):
        fit(tmp_path, Regression(), pliant.lightning.Protect(REPLACE), tmp_path / "plain.ckpt")
    late = pliant.lightning.Protect(REPLACE, on_missing_state="start")
    fit(tmp_path, Regression(), late, tmp_path / "plain.ckpt")
    assert late.handle.num_steps == 3


def test_a_penalty_is_part_of_the_loss(tmp_path):
    method = pliant.L2Init(0.5, apply="loss")
    with pytest.warns(pliant.NoEffectWarning, match=r"L2Init: handle\.penalty\(\) was not called in 6 steps"):
        fit(tmp_path, Regression(), pliant.lightning.Protect(method))
    module = Regression()
    module.protect = pliant.lightning.Protect(method)
    fit(tmp_path, module, module.protect)


def test_what_is_given_wrongly_says_what_to_do(tmp_path):
    with pytest.raises(pliant.NotYetSupported, match=r"GradientNoise changes gradients.*Lightning always steps with a"):
        pliant.lightning.Protect(pliant.GradientNoise(0.1))
    with pytest.raises(pliant.IllegalConfiguration, match=r"is a trainer.*pliant\.lightning\.Protect"):
        pliant.attach(lightning.Trainer(logger=False, accelerator="cpu"), None, REPLACE)
    with pytest.raises(pliant.IllegalConfiguration, match="no submodule 'nett'; it has 'net'"):
        fit(tmp_path, Regression(), pliant.lightning.Protect(REPLACE, modules="nett"))
    bare = Regression()
    bare.example_input_array = None
    with pytest.raises(pliant.IllegalConfiguration, match=r"pass Protect\(\.\.\., example_inputs.*example_input_array"):
        fit(tmp_path, bare, pliant.lightning.Protect(REPLACE))
    compiled = torch.compile(Regression(), backend="eager")
    with pytest.raises(pliant.IllegalConfiguration, match=r"was compiled before training.*on_train_start"):
        fit(tmp_path, compiled, pliant.lightning.Protect(REPLACE))


def test_a_wrapped_optimizer_is_the_one_inside():
    module = Regression()
    optimizer = module.configure_optimizers()
    handle = pliant.attach(module, [LightningOptimizer(optimizer)], REPLACE, example_inputs=torch.zeros(2, 4))
    module.training_step(next(iter(frameworks.points())), 0).backward()
    optimizer.step()
    assert handle.num_steps == 1
    handle.detach()


class Compiled(Regression):
    def on_train_start(self):
        self.net.compile(backend="eager")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_networks_that_are_compiled_when_training_starts(tmp_path):
    protect, module = pliant.lightning.Protect(REPLACE), Compiled()
    fit(tmp_path / "a", module, protect)
    plain, expected = protected(tmp_path / "b")
    assert events(protect) == events(plain)
    assert equal(tensors(module), tensors(expected))


def test_the_recipes_of_the_documentation(tmp_path):
    options = {"max_steps": 2, "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False}
    options |= {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": str(tmp_path)}
    given = {"lightning": lightning, "module": Regression(), "x": torch.zeros(2, 4), "loader": frameworks.points()}
    found = frameworks.run_recipes(
        "Lightning", {**given, "options": options, "noise": torch.zeros(2, 2), "image": torch.zeros(2, 4)}
    )
    assert found["module"].global_step == 2
    fit(tmp_path, Adversaries(), found["protect"])
    assert resets(found["protect"]).keys() <= {"generator.0", "critic.0"}
