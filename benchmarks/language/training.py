"""The runs of the study of language models: drifting texts, a small GPT-2, and adapters on a frozen one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional as F

import pliant
from benchmarks.prediction.study import rounded
from pliant.bench.data.files import digest
from pliant.bench.data.language import make_text
from pliant.bench.data.text import read_texts
from pliant.bench.streams.base import generator
from pliant.interventions.base import Intervention
from pliant.lora import RankRecycling

__all__ = ["ADAPTERS", "ALPHABET", "STEP_SIZES", "TEXT", "Preset", "Way", "run_adapters", "run_text"]

ALPHABET = "\n ." + "".join(map(chr, range(ord("a"), ord("z") + 1)))
"""What a text is reduced to: capitals become small, everything else is left out."""
VOCABULARY = 32
"""Tokens of the model: three are never seen."""


@dataclass(frozen=True)
class Preset:
    """What decides the numbers.

    Attributes:
        layers: Blocks of the model.
        width: Of the residual stream.
        heads: Attention heads.
        context: Characters of a passage.
        batch: Passages per step.
        steps: Steps per task.
        num_tasks: Tasks that are reported.
        num_tuning_tasks: Tasks for choosing a setting.
        window: Tasks at the beginning and at the end that are compared.
        characters: Length of a generated text.
        rank: Components of each adapter.
        base_steps: Steps of the frozen base's own training.
        adapter_steps: Steps per task with adapters.
        num_adapter_tasks: Tasks with adapters.
        num_adapter_tuning_tasks: The same for choosing a setting.
        adapter_window: As ``window``, of the tasks with adapters.
        data_dir: A folder with texts instead of generated ones; empty: generated.
        data_digest: Of the texts in it.
    """

    layers: int = 2
    width: int = 32
    heads: int = 2
    context: int = 32
    batch: int = 8
    steps: int = 100
    num_tasks: int = 20
    num_tuning_tasks: int = 12
    window: int = 10
    characters: int = 60_000
    rank: int = 4
    base_steps: int = 1500
    adapter_steps: int = 60
    num_adapter_tasks: int = 12
    num_adapter_tuning_tasks: int = 8
    adapter_window: int = 5
    data_dir: str = ""
    data_digest: str = ""

    def with_texts(self, folder: str) -> Preset:
        """The same on texts of one's own."""
        files = sorted(Path(folder).glob("*.txt"))
        if not files:
            raise SystemExit(f"{folder}: no .txt file found")
        seen = ",".join(digest(path) for path in files)
        return Preset(**{**self.__dict__, "data_dir": folder, "data_digest": seen})


@dataclass(frozen=True)
class Way:
    """A way of training, and the three settings that are tried.

    Attributes:
        title: For tables.
        settings: What is tried: of the step size, where there is no method, else of the method's option.
        make: From a setting and the preset to the methods; ``None``: the setting is the step size.
    """

    title: str
    settings: tuple[float | str, ...]
    make: Callable[[Any, Preset], list[Intervention]] | None = None
    methods: Callable[[Preset], list[Intervention]] = lambda _: []


STEP_SIZES = (1e-3, 3e-3, 1e-2)

TEXT: dict[str, Way] = {
    "plain": Way("no protection", STEP_SIZES),
    "fresh": Way("a fresh network for each task", STEP_SIZES, methods=lambda _: [pliant.FreshStart()]),
    "l2": Way("L2 (decoupled)", (0.03, 0.3, 3.0), lambda s, _: [pliant.L2(s)]),
    "l2_init": Way("L2 Init (decoupled)", (0.03, 0.3, 3.0), lambda s, _: [pliant.L2Init(s)]),
    "continual_backprop": Way(
        "continual backprop", (1e-4, 1e-3, 1e-2), lambda s, _: [pliant.ContinualBackprop(s, maturity_threshold=50)]
    ),
    "redo": Way("ReDo", (0.1, 0.3, 0.6), lambda s, p: [pliant.ReDo(tau=s, every=p.steps)]),
    "shrink_and_perturb": Way(
        "shrink and perturb", (0.9, 0.6, 0.3), lambda s, _: [pliant.ShrinkAndPerturb(shrink=s, noise_scale=0.1)]
    ),
    "head_reset": Way(
        "layer reset",
        ("transformer.wte", "transformer.wte,transformer.h.1", "transformer.wte,transformer.h.0"),
        lambda s, _: [pliant.LayerReset(s)],
    ),
    "optimizer_reset": Way("optimizer reset", ("all", "moments", "step"), lambda s, _: [pliant.OptimizerReset(part=s)]),
}
"""Training on one text in ever other ciphers. The order is that of the runs: what has no method comes first."""

ADAPTERS: dict[str, Way] = {
    "continued": Way("one LoRA adapter, trained on and on", STEP_SIZES),
    "redrawn": Way("LoRA drawn anew for each task", STEP_SIZES, methods=lambda _: [pliant.LayerReset("*lora_*")]),
    "recycled": Way(
        "the weakest half of its components folded and drawn anew",
        STEP_SIZES,
        methods=lambda p: [RankRecycling(0.5, maturity_threshold=p.adapter_steps // 2)],
    ),
    "merged": Way(
        "all components folded and drawn anew (ReLoRA at boundaries)",
        STEP_SIZES,
        methods=lambda _: [RankRecycling(1.0, maturity_threshold=0)],
    ),
    "dropped": Way(
        "the weakest half dropped and drawn anew",
        STEP_SIZES,
        methods=lambda p: [RankRecycling(0.5, maturity_threshold=p.adapter_steps // 2, fold=False)],
    ),
}
"""Adapters on a frozen base, on one language after another."""


# ---- texts ----
@functools.lru_cache(maxsize=4)
def _ids(preset: Preset, seed: int, language: int) -> np.ndarray:
    if preset.data_dir:
        texts = read_texts(Path(preset.data_dir))
        text = texts[language % len(texts)]
    else:
        text = make_text(generator("language study", seed, language), preset.characters)
    place = {character: k for k, character in enumerate(ALPHABET)}
    return np.array([place[c] for c in text.lower() if c in place])


def _passages(ids: np.ndarray, steps: int, preset: Preset, rng: np.random.Generator) -> Tensor:
    """``[steps, batch, context + 1]``."""
    starts = rng.integers(0, len(ids) - preset.context, (steps, preset.batch))
    return torch.from_numpy(ids[starts[..., None] + np.arange(preset.context + 1)])


def ciphered(preset: Preset, seed: int, task: int) -> Tensor:
    """The seed's text, in the cipher of a task."""
    rng = generator("language study task", seed, task)
    ids = _ids(preset, seed, 0)
    symbols = np.unique(ids)
    cipher = np.arange(len(ALPHABET))
    cipher[symbols] = rng.permutation(symbols)
    return _passages(cipher[ids], preset.steps, preset, rng)


def spoken(preset: Preset, seed: int, task: int, steps: int) -> Tensor:
    """Another language for each task; number 0 is that of the base."""
    return _passages(_ids(preset, seed, task), steps, preset, generator("language study passages", seed, task))


# ---- models ----
def make_model(preset: Preset, seed: int) -> nn.Module:
    """A GPT-2 with tied embeddings, without dropout."""
    torch.manual_seed(int(generator("language study model", seed).integers(2**32)))
    config = hf.GPT2Config(
        n_layer=preset.layers, n_embd=preset.width, n_head=preset.heads, vocab_size=VOCABULARY,
        n_positions=preset.context, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
        activation_function="gelu", bos_token_id=None, eos_token_id=None, loss_type="ForCausalLM",
    )  # fmt: skip
    return hf.GPT2LMHeadModel(config).train()


def _learn(model: nn.Module, optimizer: torch.optim.Optimizer, passages: Tensor) -> list[float]:
    """One pass; the loss of each batch before it is learnt, in nats per character."""
    losses = []
    for batch in passages:
        optimizer.zero_grad(set_to_none=True)
        logits = model(input_ids=batch[:, :-1]).logits
        loss = F.cross_entropy(logits.reshape(-1, VOCABULARY), batch[:, 1:].reshape(-1))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _over_tasks(
    model: nn.Module, optimizer: torch.optim.Optimizer, handle: pliant.Handle, tasks: list[Callable[[], Tensor]]
) -> dict[str, Any]:
    online: list[float | None] = []
    end: list[float | None] = []
    for index, task in enumerate(tasks):
        if index:
            handle.task_boundary()
        losses = _learn(model, optimizer, task())
        online.append(rounded(sum(losses) / len(losses)))
        end.append(rounded(sum(losses[-10:]) / len(losses[-10:])))
    resets = sum(int(total.sum()) for total in handle.num_resets.values())
    handle.detach()
    return {"online": online, "end": end, "resets": resets}


def run_text(preset: Preset, way: str, setting: Any, step_size: float, num_tasks: int, seed: int) -> dict[str, Any]:
    """Train on one text in ever other ciphers."""
    model = make_model(preset, seed)
    chosen = TEXT[way]
    optimizer = torch.optim.Adam(model.parameters(), lr=step_size, fused=True)
    methods = chosen.methods(preset) if chosen.make is None else chosen.make(setting, preset)
    example = {"input_ids": ciphered(preset, seed, 0)[0][:2, :-1]}
    handle = pliant.attach(model, optimizer, methods, example_inputs=example, seed=seed)
    return _over_tasks(
        model, optimizer, handle, [functools.partial(ciphered, preset, seed, task) for task in range(num_tasks)]
    )


def base_of(preset: Preset, seed: int, folder: Path) -> Mapping[str, Tensor]:
    """The frozen base of a seed, trained on the first language; made once, kept in a folder."""
    path = folder / f"base-{seed}.pt"
    if path.exists():
        found: Mapping[str, Tensor] = torch.load(path, weights_only=True)
        return found
    model = make_model(preset, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, fused=True)
    _learn(model, optimizer, spoken(preset, seed, 0, preset.base_steps))
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(model.state_dict(), part)
    part.replace(path)
    return model.state_dict()


def run_adapters(preset: Preset, way: str, step_size: float, num_tasks: int, seed: int, folder: Path) -> dict[str, Any]:
    """Train adapters on the frozen base of a seed, on one language after another."""
    import peft

    model = make_model(preset, seed)
    model.load_state_dict(base_of(preset, seed, folder))
    torch.manual_seed(int(generator("language study adapter", seed).integers(2**32)))
    config = peft.LoraConfig(
        r=preset.rank, lora_alpha=2 * preset.rank, target_modules=["c_attn", "c_fc", "c_proj"], fan_in_fan_out=True
    )
    adapted = peft.get_peft_model(model, config).train()
    optimizer = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], lr=step_size, fused=True)
    steps = preset.adapter_steps
    example = {"input_ids": spoken(preset, seed, 1, steps)[0][:2, :-1]}
    methods = ADAPTERS[way].methods(preset)
    handle = pliant.attach(adapted, optimizer, methods, example_inputs=example, seed=seed)
    tasks = [functools.partial(spoken, preset, seed, task, steps) for task in range(1, num_tasks + 1)]
    return _over_tasks(adapted, optimizer, handle, tasks)
