"""Tiny models and data for the tests of the adapters: nothing is downloaded."""

from __future__ import annotations

import logging
import os
import re
import warnings
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pliant

REPLACE = pliant.ContinualBackprop(replacement_rate=0.2, maturity_threshold=1, decide_every=1)

# what the frameworks warn of among themselves, in one of the supported versions or another
IGNORED = (
    "ignore:.*(does not have many workers|smaller than the logging interval|GPU available but not used|pynvml)",
    "ignore:.*(LeafSpec|treespec|is deprecated|pin_memory|weights_only|litmodels|isinstance_treespec)",
    "ignore:.*(Experiment logs directory|Checkpoint directory|No device id is provided|num_workers|device_ids)",
)


# ---- Hugging Face ----
def gpt2(seed: int = 0, hidden: int = 8) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=13, n_positions=8, n_embd=hidden, n_layer=1, n_head=2, **dropout))


def sentences(count: int = 32) -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(0, 13, (count, 6), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row.clone()} for row in ids]


def batch() -> dict[str, torch.Tensor]:
    """Two of them, as the model takes them."""
    return {name: torch.stack([item[name] for item in sentences(2)]) for name in ("input_ids", "labels")}


def trainer(folder: Path, callback: Any, *, model: Any = None, kind: Any = None, more: Any = (), **given: Any) -> Any:
    """A Trainer for six steps that saves after three of them."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    options = {
        **{"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "report_to": []},
        **{"logging_steps": 2, "save_steps": 3, "use_cpu": True, "disable_tqdm": True, "seed": 1},
        **given,
    }
    made = (kind or transformers.Trainer)(
        model=gpt2() if model is None else model,
        args=transformers.TrainingArguments(str(folder), **options),
        train_dataset=sentences(),
        callbacks=[*([] if callback is None else [callback]), *more],
    )
    made.remove_callback(transformers.PrinterCallback)
    return made


# ---- Lightning ----
def lightning_modules() -> Any:
    """The classes, made when they are asked for: importing Lightning takes seconds."""
    import lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Regression(lightning.LightningModule):
        def __init__(self, width: int = 16) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(
                *(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 8), nn.ReLU()),
                nn.Linear(8, 1),
            )
            self.example_input_array = torch.zeros(2, 4)
            self.protect: Any = None  # whose penalty is part of the loss

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            x, y = batch
            loss = (self(x) - y).square().mean()
            return loss if self.protect is None else loss + self.protect.handle.penalty()

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 1e-2)

    class Adversaries(lightning.LightningModule):
        """Two networks, two optimizers, by hand: the critic steps twice as often."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.automatic_optimization = False
            self.generator = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 4))
            self.critic = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))

        def training_step(self, batch: Any, index: int) -> None:
            real, drawn = batch[0], torch.ones(len(batch[0]), 2)
            of_generator, of_critic = self.optimizers()
            for _ in range(2):
                of_critic.zero_grad()
                self.manual_backward((self.critic(self.generator(drawn).detach()) - self.critic(real)).mean())
                of_critic.step()
            of_generator.zero_grad()
            self.manual_backward(-self.critic(self.generator(drawn)).mean())
            of_generator.step()

        def configure_optimizers(self) -> Any:
            return [torch.optim.Adam(net.parameters(), 1e-3) for net in (self.generator, self.critic)]

    return lightning, Regression, Adversaries


def points(count: int = 24) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(count, 4, generator=generator), torch.randn(count, 1, generator=generator)
    return DataLoader(TensorDataset(x, y), 8)


def fit(folder: Path, module: Any, callback: Any, checkpoint: Any = None, **given: Any) -> Any:
    """Lightning's Trainer for two epochs of three batches each."""
    import lightning

    options = {
        **{"max_epochs": 2, "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False},
        **{"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 2},
        **given,
    }
    callbacks = [] if callback is None else [callback]
    made = lightning.Trainer(default_root_dir=str(folder), callbacks=callbacks, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(does not have many workers|logging interval|LeafSpec|devices|treespec)")
        made.fit(module, points(), ckpt_path=checkpoint)
    return made


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def resets(protect: Any) -> dict[str, int]:
    return {name: int(count) for name, count in protect.handle.num_resets.items()}


def events(protect: Any) -> list[list[Any]]:
    return [[item.step, item.group, item.action, list(item.units)] for item in protect.handle.events]


def run_recipes(heading: str, names: dict[str, Any]) -> dict[str, Any]:
    """Execute the code blocks of one section of ``docs/integrations.md`` with what a user has already."""
    text = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    blocks = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    assert blocks, heading
    names = {"pliant": pliant, "torch": torch, **names}
    for block in blocks:
        exec(compile(block, f"docs/integrations.md, {heading}", "exec"), names)
    return names
