"""Language models from tiny configurations, as users make them; nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import nn

VOCABULARY = 13


def gpt2(seed: int = 0, **more: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        options = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "loss_type": "ForCausalLM", **more}
        return hf.GPT2LMHeadModel(
            hf.GPT2Config(
                n_layer=2, n_head=2, n_embd=8, n_inner=12, vocab_size=VOCABULARY, n_positions=10, bos_token_id=None,
                eos_token_id=None, **options,
            )
        ).train()  # fmt: skip


def llama(seed: int = 0, *, tied: bool = False) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return hf.LlamaForCausalLM(
            hf.LlamaConfig(
                hidden_size=16, intermediate_size=10, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
                vocab_size=VOCABULARY, max_position_embeddings=16, tie_word_embeddings=tied,
            )
        ).train()  # fmt: skip


def ids(seed: int = 0, *, below: int = VOCABULARY, size: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, below, (size, 6), generator=generator)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range | int, *, below: int = VOCABULARY) -> None:
    for step in range(steps) if isinstance(steps, int) else steps:
        batch = ids(step, below=below)
        torch.manual_seed(step)  # for dropout
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()


@torch.no_grad()
def logits(model: nn.Module, batch: torch.Tensor | None = None) -> torch.Tensor:
    """In evaluation mode."""
    was_training = model.training
    model.eval()
    found: torch.Tensor = model(input_ids=ids(99) if batch is None else batch).logits
    model.train(was_training)
    return found
