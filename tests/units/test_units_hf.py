"""Hugging Face models: what counts as output, where initial distributions come from, what users are told."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from zoo import ZOO, call

import pliant
from pliant.units.export import export, model_outputs
from pliant.units.init import Init, initialisers

hf = pytest.importorskip("transformers")

LLAMA_LIKE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 300,
}  # fmt: skip
VIT_LIKE = {key: value for key, value in LLAMA_LIKE.items() if key != "vocab_size"}

BUILT = {
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=300, bos_token_id=1, eos_token_id=2)
    ),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA_LIKE, initializer_range=0.03)),
    "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(**VIT_LIKE, image_size=32, patch_size=4)),
    "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**LLAMA_LIKE)),
    "t5": lambda: hf.T5ForConditionalGeneration(
        hf.T5Config(
            d_model=64, d_kv=16, d_ff=96, num_layers=1, num_heads=4, vocab_size=300, feed_forward_proj="gated-gelu",
            decoder_start_token_id=0,
        )
    ),
    "convnext": lambda: hf.ConvNextForImageClassification(
        hf.ConvNextConfig(hidden_sizes=[32, 64], depths=[1, 1], num_stages=2)
    ),
    "whisper": lambda: hf.WhisperForConditionalGeneration(
        hf.WhisperConfig(
            d_model=64, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
            encoder_ffn_dim=96, decoder_ffn_dim=96, vocab_size=300, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            begin_suppress_tokens=None,
        )
    ),
    "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**LLAMA_LIKE, num_key_value_heads=2)),
}  # fmt: skip
UNKNOWN = {"model.encoder.embed_positions.weight"}  # Whisper's table of sinusoids


@pytest.mark.parametrize("family", BUILT)
def test_initial_distributions_are_those_of_freshly_built_models(family):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BUILT[family]()
    before, state = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    found = initialisers(model)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(module.__dict__.get("_is_hf_initialized", True) for module in model.modules())
    assert found == initialisers(model)  # no chance in it
    for name, parameter in model.named_parameters():
        init, values = found[name], parameter.detach()
        if name in UNKNOWN:
            assert init is None
        elif init.kind == "constant":
            assert (values == init.scale).all(), name
        else:
            deviation = init.scale / 3**0.5 if init.kind == "uniform" else init.scale
            # the estimate from n values is within 4 of its own deviations 1 / sqrt(2 n); the padding row is zero
            assert float(values.std()) == pytest.approx(deviation, rel=4 / (2 * values.numel()) ** 0.5 + 0.01), name


def test_special_cases_are_recorded():
    found = initialisers(BUILT["gpt2"]())
    assert found["transformer.h.0.mlp.c_fc.weight"] == Init("normal", 0.02)
    assert found["transformer.h.1.attn.c_proj.weight"] == Init("normal", 0.02 / 4**0.5)  # 1 / sqrt(2 n_layer)
    found = initialisers(BUILT["t5"]())
    assert found["shared.weight"] == Init("normal", 1.0)  # and not that of the head, which is tied to it
    assert found["encoder.block.0.layer.0.SelfAttention.q.weight"].scale == pytest.approx((64 * 16) ** -0.5)
    assert found["encoder.block.0.layer.1.DenseReluDense.wo.weight"].scale == pytest.approx(96**-0.5)
    assert initialisers(BUILT["convnext"]())["convnext.encoder.stages.0.layers.0.layer_scale_parameter"].scale == 1e-6
    assert initialisers(BUILT["mixtral"]())["model.layers.0.mlp.experts.gate_up_proj"] == Init("normal", 0.02)


class Wrapped(nn.Module):
    """A user's own head on a library's backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = BUILT["bert"]().bert
        self.head = nn.Linear(64, 2)

    def forward(self, input_ids):
        return self.head(self.backbone(input_ids).last_hidden_state[:, 0])


def test_a_backbone_inside_a_user_model_and_overrides():
    model = Wrapped()
    found = initialisers(model)
    assert found["backbone.encoder.layer.0.output.dense.weight"] == Init("normal", 0.02)
    assert found["head.weight"] == Init("uniform", 64**-0.5)
    chosen = initialisers(model, {"backbone.encoder.*": "xavier_uniform"})
    assert chosen["backbone.encoder.layer.0.output.dense.weight"] == Init("uniform", (6 / 160) ** 0.5)
    assert chosen["head.weight"] == found["head.weight"]
    experts = initialisers(BUILT["mixtral"](), {"*.down_proj": "lecun_normal"})
    assert experts["model.layers.0.mlp.experts.down_proj"] == Init("normal", 96**-0.5)  # [experts, width, hidden]
    ids = torch.randint(3, 300, (2, 5))
    units = pliant.find_units(model, {"input_ids": ids})
    assert units["backbone.encoder.layer.0.intermediate.dense"].size == 96
    assert units.verify(model, {"input_ids": ids}).ok


def test_code_that_writes_something_else_is_unknown_and_says_what_to_pass():
    class Odd(hf.BertModel):
        def _init_weights(self, module):
            super()._init_weights(module)
            if isinstance(module, nn.Linear):
                with torch.no_grad():
                    module.weight.normal_(0.1, 0.02).abs_()

    model = Odd(hf.BertConfig(hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2))
    found = initialisers(model)
    assert found["encoder.layer.0.intermediate.dense.weight"] is None
    assert found["encoder.layer.0.intermediate.dense.bias"] == Init("constant", 0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = {"input_ids": torch.randint(3, 13, (2, 5))}
    with pytest.raises(pliant.IllegalConfiguration, match="init="):
        pliant.attach(model, optimizer, pliant.interventions.ReDo(where="*intermediate*"), example_inputs=batch)


def test_caches_are_no_output_and_requested_states_are():
    """With a cache in the output the heads are units all the same; hidden states that were asked for fix the stream."""
    case = ZOO["hf_gpt2"]
    model, batch = case.model(), case.batch()
    output = call(model, {**batch, "use_cache": True})
    assert output.past_key_values is not None
    assert [tuple(item.shape) for item in model_outputs(output)] == [(), tuple(output.logits.shape)]
    assert len(model_outputs(tuple(output.values()))) == 2
    with_cache = pliant.find_units(model, {**batch, "use_cache": True})
    without = pliant.find_units(model, {**batch, "use_cache": False})
    assert with_cache == without
    assert with_cache.verify(model, {**batch, "use_cache": True}).ok
    asked = pliant.find_units(model, {**batch, "output_hidden_states": True})
    assert "transformer.wte:residual" not in asked
    assert asked.excluded["transformer.wte.weight", -1] == "it is the model's output"
    assert asked.verify(model, {**batch, "output_hidden_states": True}).ok


def test_blocks_without_gradients_are_inlined():
    case = ZOO["hf_llama"]
    exported = export(case.model(), case.batch())
    targets = {str(node.target) for node in exported.nodes if node.op == "call_function"}
    assert not any("wrap" in target for target in targets)
    assert any("cos" in target for target in targets)  # the rotary angles, which are computed under no_grad
    assert not any(node.op == "get_attr" for node in exported.nodes)


def test_a_tokenizers_output_object_is_an_input():
    case = ZOO["hf_bert"]
    model, batch = case.model(), hf.BatchEncoding(case.batch())
    units = pliant.find_units(model, batch)
    assert units == pliant.find_units(model, case.batch())
    assert units.verify(model, batch).ok
    assert pliant.stats.capture(model, units, batch)


def test_gradient_checkpointing():
    case = ZOO["hf_llama"]
    model, batch = case.model(), case.batch()
    plain = pliant.find_units(model, batch)
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()
    found = pliant.find_units(model, {**batch, "use_cache": False})
    assert [group.name for group in found] == [group.name for group in plain]
    assert found.verify(model, {**batch, "use_cache": False}).ok


def test_models_that_cannot_be_exported_say_what_to_change():
    model, batch = ZOO["hf_mixtral"].model(), ZOO["hf_mixtral"].batch()
    found = []
    for kind in ("grouped_mm", "batched_mm", "eager"):  # the same units, however the experts are computed
        model.set_experts_implementation(kind)
        units = pliant.find_units(model, batch)
        assert model.config._experts_implementation == kind
        assert units.verify(model, batch).ok
        found.append(units.groups)
    assert found[0] == found[2]
    assert [group.slices for group in found[0]] == [group.slices for group in found[1]]
    model = ZOO["hf_whisper"].model()
    model.model.encoder.layerdrop = 0.5
    with pytest.raises(pliant.UnsupportedOp, match="layerdrop"):
        pliant.find_units(model, ZOO["hf_whisper"].batch())


def test_missing_inputs_are_named():
    case = ZOO["hf_t5"]
    with pytest.raises(pliant.IllegalConfiguration, match=r"input_ids \(4, 6\).*exactly one of input_ids"):
        pliant.find_units(case.model(), {"input_ids": case.batch()["input_ids"]})


@pytest.mark.parametrize("name", ["hf_bert", "hf_vit", "hf_t5", "hf_whisper", "hf_mixtral"])
def test_eager_attention_and_training_without_labels_have_the_same_units(name):
    case = ZOO[name]
    model, batch = case.model(), case.batch()
    want = [(group.name, group.site, group.slices) for group in pliant.find_units(model, batch)]
    model.set_attn_implementation("eager")
    labels = batch.pop("labels")
    if name in ("hf_t5", "hf_whisper"):
        batch["decoder_input_ids"] = labels
    found = pliant.find_units(model, batch)
    assert [(group.name, group.site, group.slices) for group in found] == want
    assert found.verify(model, batch).ok
