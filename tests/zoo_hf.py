"""The zoo: Hugging Face models from tiny configurations: GPT-2, Llama, ViT and BERT.

They are called as users call them: with a dict, labels included, which makes them return an output object with loss,
logits and a cache. The other families are in ``zoo_hf_more.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from zoo_base import Group, case

try:  # the optional extra "huggingface"
    import transformers as hf
except ImportError:  # pragma: no cover
    hf = None

VOCABULARY = 13


def text(steps: int = 6, *, mask: bool = True, labels: bool = True) -> Any:
    """Token ids with a mask that hides the padded end of the second example, and labels."""

    def batch(size: int) -> dict[str, torch.Tensor]:
        made = {"input_ids": torch.randint(3, VOCABULARY, (size, steps))}
        if mask:
            made["attention_mask"] = torch.ones(size, steps, dtype=torch.long)
            made["attention_mask"][1:2, -2:] = 0
        if labels:
            made["labels"] = made["input_ids"].clone()
        return made

    return batch


def labelled(name: str, shape: tuple[int, ...], classes: int = 3) -> Any:
    """A floating-point input under its keyword, with class labels."""
    return lambda size: {name: torch.randn(size, *shape), "labels": torch.randint(0, classes, (size,))}


def ends(prefix: str, *suffixes: str) -> str:
    """``ends("a.b", "w[-1]", "v[-2]")`` is ``"a.b.w[-1] a.b.v[-2]"``."""
    return " ".join(f"{prefix}.{suffix}" for suffix in suffixes)


def both(prefix: str, *layers: str, dim: int = -2) -> str:
    """The outputs of some layers: weight and bias."""
    return " ".join(f"{prefix}.{layer}.weight[{dim}] {prefix}.{layer}.bias[-1]" for layer in layers)


# ---- GPT-2: Conv1D stores inputs x outputs; one fused matrix makes [3, heads, dims]; the embedding is also the head
def gpt2_layer(at: str, heads: int, dims: int, hidden: int) -> dict[str, Group]:
    qkv = f"{at}.attn.c_attn.weight[-1] {at}.attn.c_attn.bias[-1]"
    out = f"{at}.attn.c_proj.weight[-2]"
    return {
        f"{at}.attn.c_attn:heads": Group(heads, f"{qkv} {out}", site="heads"),
        f"{at}.attn.c_attn:head_dims": Group(dims, qkv, site="head_dims", preserves=False, tap="none"),
        f"{at}.attn.c_attn#2:head_dims": Group(dims, f"{qkv} {out}", site="head_dims"),
        f"{at}.mlp.c_fc": Group(hidden, ends(f"{at}.mlp", "c_fc.weight[-1]", "c_fc.bias[-1]", "c_proj.weight[-2]")),
    }


def gpt2_stream(at: str) -> str:
    return (
        both(at, "ln_1", "ln_2", dim=-1)
        + f" {at}.attn.c_attn.weight[-2] {at}.mlp.c_fc.weight[-2] "
        + both(at, "attn.c_proj", "mlp.c_proj", dim=-1)
    )


GPT2 = {
    "transformer.wte:residual": Group(
        8,
        "transformer.wte.weight[-1] transformer.wpe.weight[-1] "
        + " ".join(gpt2_stream(f"transformer.h.{i}") for i in range(2))
        + " "
        + both("transformer", "ln_f", dim=-1),
        site="residual",
        preserves=False,
    ),
    **gpt2_layer("transformer.h.0", 2, 4, 12),
    **gpt2_layer("transformer.h.1", 2, 4, 12),
}


def make_gpt2(**more: Any) -> nn.Module:
    return hf.GPT2LMHeadModel(
        hf.GPT2Config(
            n_layer=2, n_head=2, n_embd=8, n_inner=12, vocab_size=VOCABULARY, n_positions=10, bos_token_id=1,
            eos_token_id=2, loss_type="ForCausalLM", **more,
        )
    )  # fmt: skip


# ---- Llama: no biases, RMSNorm, gate times value; each key-value head serves two query heads; rotary embeddings cut
# queries and keys into halves, so their dimensions inside a head are fixed
def llama_attention(at: str, kv_heads: int, shared: int, dims: int) -> dict[str, Group]:
    queries = f"{at}.q_proj.weight[-2] {at}.o_proj.weight[-1]"
    return {
        f"{at}.q_proj:heads": Group(kv_heads, f"{queries} {at}.k_proj.weight[-2] {at}.v_proj.weight[-2]", site="heads"),
        f"{at}.q_proj#2:heads": Group(shared, queries, site="heads"),  # the queries of one key-value head
        f"{at}.v_proj:head_dims": Group(dims, f"{at}.v_proj.weight[-2] {at}.o_proj.weight[-1]", site="head_dims"),
    }


def llama_stream(at: str) -> str:
    return ends(
        at,
        *("input_layernorm.weight[-1]", "post_attention_layernorm.weight[-1]", "self_attn.o_proj.weight[-2]"),
        *(f"self_attn.{name}_proj.weight[-1]" for name in "qkv"),
    )


LLAMA = {
    "model.embed_tokens:residual": Group(
        16,
        "model.embed_tokens.weight[-1] model.norm.weight[-1] lm_head.weight[-1] "
        + llama_stream("model.layers.0")
        + " "
        + ends("model.layers.0.mlp", "gate_proj.weight[-1]", "up_proj.weight[-1]", "down_proj.weight[-2]"),
        site="residual",
        preserves=False,
    ),
    **llama_attention("model.layers.0.self_attn", 2, 2, 4),
    "model.layers.0.mlp.gate_proj": Group(
        10, ends("model.layers.0.mlp", "gate_proj.weight[-2]", "up_proj.weight[-2]", "down_proj.weight[-1]")
    ),
}


def make_llama(**more: Any) -> nn.Module:
    return hf.LlamaForCausalLM(
        hf.LlamaConfig(
            hidden_size=16, intermediate_size=10, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=VOCABULARY, max_position_embeddings=16, attention_dropout=0.1, **more,
        )
    )  # fmt: skip


# ---- encoders: three separate projections with biases; adding a vector to all keys shifts the scores of a query alike,
# which softmax does not see, so nothing depends on the keys' bias
def encoder_attention(
    query: str, key: str, value: str, out: str, heads: int, dims: int, first: str
) -> dict[str, Group]:
    scores = f"{query}.weight[-2] {query}.bias[-1] {key}"
    values = f"{value}.weight[-2] {value}.bias[-1] {out}.weight[-1]"
    return {
        f"{first}:heads": Group(heads, f"{scores} {values}", site="heads"),
        f"{first}:head_dims": Group(dims, scores, site="head_dims", preserves=False, tap="none"),
        f"{value}:head_dims": Group(dims, values, site="head_dims"),
    }


def vit_attention(at: str) -> dict[str, Group]:
    key = f"{at}.k_proj.weight[-2] {at}.k_proj.bias[-1]"
    return encoder_attention(f"{at}.q_proj", key, f"{at}.v_proj", f"{at}.o_proj", 2, 4, f"{at}.q_proj")


VIT_AT = "vit.layers.0"
VIT = {
    "vit.embeddings.patch_embeddings.projection:residual": Group(
        8,
        "vit.embeddings.cls_token[-1] vit.embeddings.position_embeddings[-1] "
        + both("vit.embeddings", "patch_embeddings.projection", dim=-4)
        + " "
        + both(VIT_AT, "layernorm_before", "layernorm_after", dim=-1)
        + " "
        + both(VIT_AT, "attention.o_proj", "mlp.fc2")
        + " "
        + ends(VIT_AT, *(f"attention.{name}_proj.weight[-1]" for name in "qkv"), "mlp.fc1.weight[-1]")
        + " vit.layernorm.weight[-1] vit.layernorm.bias[-1] classifier.weight[-1]",
        site="residual",
        preserves=False,
    ),
    **vit_attention(f"{VIT_AT}.attention"),
    f"{VIT_AT}.mlp.fc1": Group(12, both(VIT_AT, "mlp.fc1") + f" {VIT_AT}.mlp.fc2.weight[-1]"),
}


def bert_layer(at: str) -> dict[str, Group]:
    attn = f"{at}.attention.self"
    key = f"{attn}.key.weight[-2] {attn}.key.bias[-1]"
    out = f"{at}.attention.output.dense"
    return {
        **encoder_attention(f"{attn}.query", key, f"{attn}.value", out, 2, 4, f"{attn}.query"),
        f"{at}.intermediate.dense": Group(12, both(at, "intermediate.dense") + f" {at}.output.dense.weight[-1]"),
    }


def bert_stream(at: str) -> str:
    return " ".join(
        [
            *(f"{at}.attention.self.{name}.weight[-1]" for name in ("query", "key", "value")),
            both(at, "attention.output.dense", "output.dense"),
            both(at, "attention.output.LayerNorm", "output.LayerNorm", dim=-1),
            f"{at}.intermediate.dense.weight[-1]",
        ]
    )


BERT_AT = "bert.encoder.layer.0"
BERT_STREAM = (
    ends("bert.embeddings", *(f"{name}_embeddings.weight[-1]" for name in ("word", "position", "token_type")))
    + " bert.embeddings.LayerNorm.weight[-1] bert.embeddings.LayerNorm.bias[-1] "
    + bert_stream(BERT_AT)
)
BERT = {
    "bert.embeddings.word_embeddings:residual": Group(
        8, f"{BERT_STREAM} bert.pooler.dense.weight[-1]", site="residual", preserves=False
    ),
    **bert_layer(BERT_AT),
    "bert.pooler.dense": Group(8, both("bert", "pooler.dense") + " classifier.weight[-1]"),
}
# the decoder is the word embedding again, so the transform before it produces units of the residual stream
BERT_MLM = {
    "bert.embeddings.word_embeddings:residual": Group(
        8,
        f"{BERT_STREAM} "
        + both("cls.predictions.transform", "dense")
        + " "
        + ends("cls.predictions.transform", "dense.weight[-1]", "LayerNorm.weight[-1]", "LayerNorm.bias[-1]"),
        site="residual",
        preserves=False,
    ),
    **bert_layer(BERT_AT),
}


def make_bert(kind: str) -> nn.Module:
    return getattr(hf, kind)(
        hf.BertConfig(
            hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, vocab_size=VOCABULARY,
            max_position_embeddings=10, num_labels=3,
        )
    )  # fmt: skip


def sentences(size: int) -> dict[str, torch.Tensor]:
    """What a BERT tokenizer returns, with one label per sequence."""
    made = text(labels=False)(size)
    made["token_type_ids"] = (torch.arange(6) > 2).long().repeat(size, 1)
    return {**made, "labels": torch.randint(0, 3, (size,))}


if hf is not None:
    case(
        "hf_gpt2",
        text(),
        GPT2,
        excluded={"transformer.wte.weight[-2]": "vocabulary", "transformer.wpe.weight[-2]": "position"},
    )(make_gpt2)
    case("hf_gpt2_eager", text(labels=False), GPT2)(lambda: make_gpt2(attn_implementation="eager", use_cache=False))
    case("hf_llama", text(), LLAMA, excluded={"model.layers.0.self_attn.k_proj.weight[-2]": "rotary"})(make_llama)
    case("hf_llama_eager", text(mask=False), LLAMA)(lambda: make_llama(attn_implementation="eager"))
    case(
        "hf_vit",
        labelled("pixel_values", (3, 4, 4)),
        VIT,
        inert=f"{VIT_AT}.attention.k_proj.bias[-1]",
        excluded={"vit.embeddings.cls_token[-2]": "single", "classifier.weight[-2]": "classes"},
    )(
        lambda: hf.ViTForImageClassification(
            hf.ViTConfig(
                hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, image_size=4,
                patch_size=2, num_labels=3, hidden_dropout_prob=0.1,
            )
        )
    )  # fmt: skip
    case("hf_bert", sentences, BERT, inert=f"{BERT_AT}.attention.self.key.bias[-1]")(
        lambda: make_bert("BertForSequenceClassification")
    )
    case("hf_bert_mlm", text(), BERT_MLM, inert=f"{BERT_AT}.attention.self.key.bias[-1]")(
        lambda: make_bert("BertForMaskedLM")
    )
