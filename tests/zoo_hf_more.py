"""The zoo: Hugging Face encoder-decoders (T5, Whisper), ConvNeXt, and a mixture of experts (Mixtral)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from zoo_base import Group, case
from zoo_hf import VOCABULARY, both, encoder_attention, ends, hf, labelled, llama_attention, llama_stream, text

# ---- T5: the first layer's relative position bias is added in every layer of its stack, which makes head i of one
# layer and head i of the next one unit; the decoder's cross-attention has no such bias
T5_ENCODER = ["encoder.block.0.layer.0.SelfAttention", "encoder.block.1.layer.0.SelfAttention"]
T5_DECODER = ["decoder.block.0.layer.0.SelfAttention"]
T5_CROSS = ["decoder.block.0.layer.1.EncDecAttention"]
T5_FFN = [
    f"{at}.DenseReluDense" for at in ("encoder.block.0.layer.1", "encoder.block.1.layer.1", "decoder.block.0.layer.2")
]
T5_NORMS = [
    *(f"encoder.block.{i}.layer.{j}.layer_norm" for i in range(2) for j in range(2)),
    *(f"decoder.block.0.layer.{j}.layer_norm" for j in range(3)),
    *("encoder.final_layer_norm", "decoder.final_layer_norm"),
]


def t5_heads(*layers: str, bias: bool) -> dict[str, Group]:
    members = " ".join(ends(at, *(f"{n}.weight[-2]" for n in "qkv"), "o.weight[-1]") for at in layers)
    extra = f" {layers[0]}.relative_attention_bias.weight[-1]" if bias else ""
    dims: dict[str, Group] = {}
    for at in layers:
        scores, values = ends(at, "q.weight[-2]", "k.weight[-2]"), ends(at, "v.weight[-2]", "o.weight[-1]")
        dims[f"{at}.q:head_dims"] = Group(4, scores, site="head_dims", preserves=False, tap="none")
        dims[f"{at}.v:head_dims"] = Group(4, values, site="head_dims")
    return {f"{layers[0]}.q:heads": Group(2, members + extra, site="heads"), **dims}


T5 = {
    "shared:residual": Group(
        8,
        "shared.weight[-1] "
        + " ".join(
            ends(at, *(f"{n}.weight[-1]" for n in "qkv"), "o.weight[-2]") for at in T5_ENCODER + T5_DECODER + T5_CROSS
        )
        + " "
        + " ".join(ends(at, "wi_0.weight[-1]", "wi_1.weight[-1]", "wo.weight[-2]") for at in T5_FFN)
        + " "
        + " ".join(f"{at}.weight[-1]" for at in T5_NORMS),
        site="residual",
        preserves=False,
    ),
    **t5_heads(*T5_ENCODER, bias=True),
    **t5_heads(*T5_DECODER, bias=True),
    **t5_heads(*T5_CROSS, bias=False),
    **{f"{at}.wi_0": Group(12, ends(at, "wi_0.weight[-2]", "wi_1.weight[-2]", "wo.weight[-1]")) for at in T5_FFN},
}


def make_t5(**more: Any) -> nn.Module:
    return hf.T5ForConditionalGeneration(
        hf.T5Config(
            d_model=8, d_kv=4, d_ff=12, num_layers=2, num_decoder_layers=1, num_heads=2, vocab_size=VOCABULARY,
            feed_forward_proj="gated-gelu", relative_attention_num_buckets=8, relative_attention_max_distance=8,
            decoder_start_token_id=0, **more,
        )
    )  # fmt: skip


# ---- ConvNeXt: depthwise convolutions and layer scales carry the stream, which a downsampling replaces
def convnext_block(at: str) -> str:
    return (
        f"{at}.layer_scale_parameter[-1] {at}.dwconv.weight[-4] {at}.dwconv.bias[-1] {at}.pwconv1.weight[-1] "
        + both(at, "layernorm", dim=-1)
        + " "
        + both(at, "pwconv2")
    )


STAGES = [f"convnext.encoder.stages.{i}.layers.0" for i in range(2)]
DOWN = "convnext.encoder.stages.1.downsampling_layer"
CONVNEXT = {
    "convnext.embeddings.patch_embeddings:residual": Group(
        4,
        both("convnext.embeddings", "patch_embeddings", dim=-4)
        + " "
        + both("convnext.embeddings", "layernorm", dim=-1)
        + f" {convnext_block(STAGES[0])} {DOWN}.0.weight[-1] {DOWN}.0.bias[-1] {DOWN}.1.weight[-3]",
        site="residual",
        preserves=False,
    ),
    f"{DOWN}.1:residual": Group(
        6,
        f"{DOWN}.1.weight[-4] {DOWN}.1.bias[-1] {convnext_block(STAGES[1])} "
        "convnext.layernorm.weight[-1] convnext.layernorm.bias[-1] classifier.weight[-1]",
        site="residual",
        preserves=False,
    ),
    **{
        f"{at}.pwconv1": Group(size, both(at, "pwconv1") + f" {at}.pwconv2.weight[-1]")
        for at, size in zip(STAGES, (16, 24), strict=True)
    },
}


# ---- Whisper: keys have no bias; a convolutional front end; the encoder's positions are a fixed table
def whisper_attention(at: str) -> dict[str, Group]:
    found = encoder_attention(
        f"{at}.q_proj", f"{at}.k_proj.weight[-2]", f"{at}.v_proj", f"{at}.out_proj", 2, 4, f"{at}.k_proj"
    )
    return found


def whisper_stream(at: str, attentions: tuple[str, ...]) -> str:
    parts = [both(at, "fc2"), f"{at}.fc1.weight[-1]", both(at, "final_layer_norm", dim=-1)]
    for name in attentions:
        parts += [both(at, f"{name}_layer_norm", dim=-1), both(at, f"{name}.out_proj")]
        parts.append(f"{at}.{name}.q_proj.weight[-1]")
    parts.append(ends(f"{at}.self_attn", "k_proj.weight[-1]", "v_proj.weight[-1]"))
    return " ".join(parts)


ENC, DEC = "model.encoder.layers.0", "model.decoder.layers.0"
WHISPER = {
    "model.encoder.conv1": Group(8, both("model.encoder", "conv1", dim=-3) + " model.encoder.conv2.weight[-2]"),
    "model.encoder.conv2:residual": Group(
        8,
        "model.encoder.conv2.weight[-3] model.encoder.conv2.bias[-1] model.encoder.embed_positions.weight[-1] "
        + whisper_stream(ENC, ("self_attn",))
        + " "
        + both("model.encoder", "layer_norm", dim=-1)
        + " "
        + ends(f"{DEC}.encoder_attn", "k_proj.weight[-1]", "v_proj.weight[-1]"),
        site="residual",
        preserves=False,
    ),
    "model.decoder.embed_tokens:residual": Group(
        8,
        "model.decoder.embed_tokens.weight[-1] model.decoder.embed_positions.weight[-1] "
        + whisper_stream(DEC, ("self_attn", "encoder_attn"))
        + " "
        + both("model.decoder", "layer_norm", dim=-1),
        site="residual",
        preserves=False,
    ),
    **whisper_attention(f"{ENC}.self_attn"),
    **whisper_attention(f"{DEC}.self_attn"),
    **whisper_attention(f"{DEC}.encoder_attn"),
    f"{ENC}.fc1": Group(12, both(ENC, "fc1") + f" {ENC}.fc2.weight[-1]"),
    f"{DEC}.fc1": Group(10, both(DEC, "fc1") + f" {DEC}.fc2.weight[-1]"),
}  # fmt: skip


def speech(size: int) -> dict[str, torch.Tensor]:
    return {"input_features": torch.randn(size, 4, 12), "labels": torch.randint(3, VOCABULARY, (size, 5))}


if hf is not None:
    case("hf_t5", text(), T5, excluded={T5_ENCODER[0] + ".relative_attention_bias.weight[-2]": "position"})(make_t5)
    case(
        "hf_convnext",
        labelled("pixel_values", (3, 8, 8)),
        CONVNEXT,
        excluded={f"{STAGES[0]}.dwconv.weight[-3]": "single", f"{STAGES[0]}.dwconv.weight[-1]": "kernel"},
    )(
        lambda: hf.ConvNextForImageClassification(
            hf.ConvNextConfig(
                hidden_sizes=[4, 6], depths=[1, 1], num_stages=2, num_labels=3, patch_size=2, image_size=8
            )
        )
    )
    case("hf_whisper", speech, WHISPER, excluded={"model.encoder.conv1.weight[-2]": "input"})(
        lambda: hf.WhisperForConditionalGeneration(
            hf.WhisperConfig(
                d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
                encoder_ffn_dim=12, decoder_ffn_dim=10, vocab_size=VOCABULARY, num_mel_bins=4, max_source_positions=6,
                max_target_positions=8, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
                begin_suppress_tokens=None,
            )
        )
    )  # fmt: skip


# ---- Mixtral: stacked experts [experts, 2 x hidden, width]; unit u is the hidden units of each expert, gate and value
MIX = "model.layers.0"
MIXTRAL = {
    "model.embed_tokens:residual": Group(
        16,
        "model.embed_tokens.weight[-1] model.norm.weight[-1] lm_head.weight[-1] "
        + llama_stream(MIX)
        + " "
        + ends(f"{MIX}.mlp", "gate.weight[-1]", "experts.gate_up_proj[-1]", "experts.down_proj[-2]"),
        site="residual",
        preserves=False,
        tap="any",  # the experts see each token more than once
    ),
    **llama_attention(f"{MIX}.self_attn", 2, 2, 4),
    **{
        f"{MIX}.mlp.experts.gate_up_proj.{e}": Group(
            12, ends(f"{MIX}.mlp.experts", f"gate_up_proj[{e}][-2]", f"down_proj[{e}][-1]"), tap="replay"
        )
        for e in range(3)
    },
}


def make_mixtral(**more: Any) -> nn.Module:
    return hf.MixtralForCausalLM(
        hf.MixtralConfig(
            hidden_size=16, intermediate_size=12, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=VOCABULARY, num_local_experts=3, num_experts_per_tok=2, max_position_embeddings=16, **more,
        )
    )  # fmt: skip


if hf is not None:
    case(
        "hf_mixtral",
        text(8),
        MIXTRAL,
        excluded={f"{MIX}.mlp.experts.down_proj[-3]": "experts", f"{MIX}.mlp.gate.weight[-2]": "router"},
    )(make_mixtral)
