"""LoRA adapters: their components are units; weak ones are folded into the base, exactly, and begin anew."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from lm_tools import gpt2, ids, llama, logits, train  # noqa: E402

import pliant  # noqa: E402
from pliant import IllegalConfiguration, NoEffect, NotYetSupported  # noqa: E402
from pliant.lora import (  # noqa: E402
    BASE_FILE,
    RankRecycling,
    check_peft,
    contributions,
    folded_weights,
    load_folded,
    pairs,
    save_folded,
)
from pliant.units.init import Init, initialisers  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),  # peft 0.18
]

GPT2_TARGETS = ["c_attn", "c_fc", "c_proj"]
LLAMA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FIRST = "base_model.model.transformer.h.0.mlp.c_fc"


def adapted(model: nn.Module | None = None, targets: list[str] = GPT2_TARGETS, seed: int = 0, **more):
    model = gpt2() if model is None else model
    options = {"r": 4, "lora_alpha": 8, "fan_in_fan_out": targets is GPT2_TARGETS, **more}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, **options)).double().train()


def adam(model: nn.Module, lr: float = 1e-2):
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)


def protected(model, method, optimizer=None, **attach):
    optimizer = adam(model) if optimizer is None else optimizer
    return optimizer, pliant.attach(model, optimizer, method, units=units_of(model), **attach)


_UNITS: dict[tuple[str, ...], pliant.UnitGraph] = {}


def units_of(model):
    """Found once for models of the same tensors."""
    key = tuple(name for name, _ in model.named_parameters())
    if key not in _UNITS:
        _UNITS[key] = pliant.find_units(model, {"input_ids": ids()})
    return _UNITS[key]


AT_BOUNDARIES = RankRecycling(0.5, maturity_threshold=0)


# ---- components are units ----
def test_components_are_found_as_units_and_are_a_symmetry():
    model = adapted(lora_dropout=0.1)
    batch = {"input_ids": ids(), "labels": ids()}
    units = pliant.find_units(model, batch)
    assert units.verify(model, batch).ok
    found = {pair.a: pair for pair in pairs(model)}
    assert len(found) == 2 * 4
    for name, pair in found.items():
        group = units[name.removesuffix(".weight")]
        assert (group.size, group.site, group.reset_preserves_function) == (4, "hidden", True)
        assert [(piece.name, piece.role) for piece in group.slices] == [(pair.a, "incoming"), (pair.b, "outgoing")]


def test_adapters_are_drawn_as_peft_draws_them_and_not_as_the_model_around_them():
    assert initialisers(adapted())[f"{FIRST}.lora_A.default.weight"] == Init("uniform", 8**-0.5)
    assert initialisers(adapted())[f"{FIRST}.lora_B.default.weight"] == Init("constant", 0.0)
    gaussian = initialisers(adapted(init_lora_weights="gaussian"))
    assert gaussian[f"{FIRST}.lora_A.default.weight"] == Init("normal", 1 / 4)
    embedding = initialisers(adapted(targets=["wte"]))
    assert embedding["base_model.model.transformer.wte.lora_embedding_A.default"] == Init("constant", 0.0)
    assert embedding["base_model.model.transformer.wte.lora_embedding_B.default"] == Init("normal", 1.0)
    for name, way in (("lora_A.default.weight", "pissa"), ("lora_B.default.weight", "pissa")):
        assert initialisers(adapted(gpt2().float(), init_lora_weights=way))[f"{FIRST}.{name}"] is None
    model = adapted()
    optimizer, handle = protected(model, pliant.LayerReset("*lora_*"))
    train(model, optimizer, 3)
    handle.task_boundary()
    layer = model.get_submodule(FIRST)
    assert not layer.lora_B["default"].weight.any()
    assert 0.3 < layer.lora_A["default"].weight.abs().max() <= 8**-0.5


def test_with_a_frozen_base_methods_for_units_act_on_components_alone():
    model = adapted()
    before = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer, handle = protected(model, [pliant.ContinualBackprop(0.5, maturity_threshold=1), pliant.ReDo(5.0, 2)])
    train(model, optimizer, 4)
    reset = {name for name, count in handle.num_resets.items() if count}
    assert reset == {pair.a.removesuffix(".weight") for pair in pairs(model)}
    assert all(torch.equal(tensor, model.get_parameter(name)) for name, tensor in before.items())
    assert "frozen parameters: " in handle.excluded[f"{FIRST}.base_layer"]
    handle.detach()
    with pytest.raises(NoEffect, match="frozen parameters"):
        protected(model, pliant.ReDo(where="*c_fc.base_layer"))


# ---- the fold ----
def two_adapters():
    model = adapted()
    model.add_adapter("second", peft.LoraConfig(r=3, target_modules=["c_fc"], fan_in_fan_out=True))
    model.double()
    model.base_model.set_adapter(["default", "second"])
    return model.train()


def convolution():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.look = nn.Embedding(13, 36)
            self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4 * 16, 13)

        def forward(self, input_ids, labels=None):
            out = self.head(
                torch.relu(self.conv(self.look(input_ids).unflatten(-1, (1, 6, 6)).flatten(0, 1))).flatten(1)
            )
            loss = None if labels is None else nn.functional.cross_entropy(out, labels.flatten())
            return type("Output", (dict,), {"logits": out, "loss": loss})(logits=out)

    torch.manual_seed(0)
    return adapted(Net(), ["look", "conv", "head"])


FOLDABLE = {
    "gpt2": adapted,
    "rank_stabilised": lambda: adapted(use_rslora=True),
    "dropout": lambda: adapted(lora_dropout=0.3),
    "bias": lambda: adapted(lora_bias=True),
    "gaussian": lambda: adapted(init_lora_weights="gaussian"),
    "two_active": two_adapters,
    "llama": lambda: adapted(llama(), LLAMA_TARGETS),
    "embedding": lambda: adapted(llama(), ["embed_tokens", "q_proj"]),
    "convolution": convolution,
}


@pytest.mark.parametrize("name", FOLDABLE)
def test_the_function_is_the_same_before_and_after(name):
    torch.manual_seed(0)
    model = FOLDABLE[name]()
    optimizer, handle = protected(model, AT_BOUNDARIES)
    train(model, optimizer, 6)
    before, state = logits(model), copy.deepcopy(model.state_dict())
    handle.task_boundary()
    after = logits(model)
    assert float((after - before).abs().max() / before.abs().max()) <= 1e-12
    found = pairs(model)
    assert set(folded_weights(model)) == {pair.base for pair in found}
    for pair in found:
        a, b = state[pair.a], state[pair.b]
        layer = model.get_submodule(pair.layer)
        sizes = contributions(a, b, layer.scaling[pair.adapter])
        count = max(1, round(0.5 * pair.rank))
        weak = set(sizes.argsort()[:count].tolist())
        events = [event for event in handle.events if event.group == pair.a.removesuffix(".weight")]
        assert set(events[0].units) == weak
        for i in range(pair.rank):
            rows = model.get_parameter(pair.a).select(0, i), model.get_parameter(pair.b).select(1, i)
            same = torch.equal(rows[0], a.select(0, i)) and torch.equal(rows[1], b.select(1, i))
            assert same == (i not in weak)
            if i in weak:  # one factor is zero and the other is not, so that the component can learn
                assert rows[0].any() != rows[1].any()
                moments = optimizer.state[model.get_parameter(pair.a)]
                assert not moments["exp_avg"].select(0, i).any()
                assert not optimizer.state[model.get_parameter(pair.b)]["exp_avg_sq"].select(1, i).any()
            else:
                assert (
                    optimizer.state[model.get_parameter(pair.a)]["exp_avg"].select(0, i).any() or name == "convolution"
                )
        assert not model.get_parameter(pair.base).requires_grad
    train(model, optimizer, range(6, 8))
    fresh = {pair.b: model.get_parameter(pair.b) for pair in found if pair.kind == "linear"}
    assert all(tensor.flatten(1).norm(dim=0).all() for tensor in fresh.values())


def test_all_components_are_what_peft_itself_would_merge():
    model = adapted()
    optimizer, handle = protected(model, RankRecycling(1.0, maturity_threshold=0))
    train(model, optimizer, 4)
    twin = copy.deepcopy(model)
    twin.merge_adapter()
    handle.task_boundary()
    for pair in pairs(model):
        torch.testing.assert_close(model.get_parameter(pair.base), twin.get_parameter(pair.base), rtol=0, atol=1e-14)
        assert not model.get_parameter(pair.b).any()


def test_young_components_wait_and_dropped_ones_leave_the_base_alone():
    model = adapted()
    optimizer, handle = protected(model, RankRecycling(0.25, every=3, maturity_threshold=6))
    train(model, optimizer, 9)
    chosen = [(event.step, event.units) for event in handle.events if event.group == f"{FIRST}.lora_A.default"]
    assert [step for step, _ in chosen] == [6, 9]
    assert chosen[0][1] != chosen[1][1], "what began at step 6 is the weakest at step 9, and too young"
    handle.detach()
    model = adapted()
    optimizer, handle = protected(model, RankRecycling(0.5, maturity_threshold=0, fold=False))
    train(model, optimizer, 4)
    before, base = logits(model), {pair.base: model.get_parameter(pair.base).clone() for pair in pairs(model)}
    handle.task_boundary()
    assert (logits(model) - before).abs().max() > 1e-6
    assert all(torch.equal(tensor, model.get_parameter(name)) for name, tensor in base.items())
    assert not folded_weights(model)


def test_adapters_that_are_not_active_are_left_alone_or_refused():
    model = adapted()
    model.add_adapter("second", peft.LoraConfig(r=3, target_modules=["c_fc"], fan_in_fan_out=True))
    model.double()
    model.set_adapter("default")
    with pytest.raises(IllegalConfiguration, match=r"shares its base weight with the adapters 'second'.*shared_base"):
        protected(model, AT_BOUNDARIES)
    optimizer, handle = protected(model, RankRecycling(0.5, maturity_threshold=0, shared_base=True))
    train(model, optimizer, 4)
    second = {name: p.clone() for name, p in model.named_parameters() if ".second." in name}
    before = logits(model)
    model.set_adapter("second")
    others = logits(model)
    model.set_adapter("default")
    handle.task_boundary()
    torch.testing.assert_close(logits(model), before, rtol=1e-12, atol=1e-14)
    assert all(torch.equal(tensor, model.get_parameter(name)) for name, tensor in second.items())
    model.set_adapter("second")
    assert (logits(model) - others).abs().max() > 1e-9, "as it was accepted"


# ---- contracts ----
def run(steps=8, cut=None, method=None, seed=0, **attach):
    model = adapted(lora_dropout=0.1)
    method = RankRecycling(0.5, every=3, maturity_threshold=1) if method is None else method
    optimizer, handle = protected(model, method, seed=seed, **attach)
    train(model, optimizer, cut or steps)
    if cut:
        saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), handle.state_dict()))
        model = adapted(lora_dropout=0.1, seed=5)
        optimizer, handle = protected(model, method, seed=99, **attach)
        model.load_state_dict(saved[0])
        optimizer.load_state_dict(saved[1])
        handle.load_state_dict(saved[2])
        train(model, optimizer, range(cut, steps))
    return model, handle


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_resuming_is_bitwise_and_the_guard_stands_again():
    whole, _ = run()
    resumed, _ = run(cut=4)
    assert same(whole, resumed)
    with pytest.raises(IllegalConfiguration, match="save_folded"):
        resumed.save_pretrained("nowhere")


def test_seeds_dry_runs_nulls_and_detaching():
    method = RankRecycling(0.5, every=3, maturity_threshold=1)
    plain, handle = run(method=method.null())
    dry, dry_handle = run(dry_run=True)
    assert same(plain, dry)
    assert not len(handle.events)
    assert sum(int(n) for n in dry_handle.num_resets.values())
    assert not folded_weights(dry)
    assert "save_pretrained" not in vars(dry)
    acted, handle = run()
    assert not same(acted, plain)
    assert not same(acted, run(seed=1)[0])
    handle.detach()
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    assert not any(getattr(module, name) for module in acted.modules() for name in names)


# ---- saving ----
def test_half_a_model_is_not_written_and_a_whole_one_comes_back(tmp_path):
    model = adapted()
    optimizer, handle = protected(model, AT_BOUNDARIES)
    train(model, optimizer, 4)
    model.save_pretrained(str(tmp_path / "before"))  # nothing is folded yet
    handle.task_boundary()
    with pytest.raises(IllegalConfiguration, match=r"8 base weights.*save_folded.*merge_and_unload"):
        model.save_pretrained(str(tmp_path / "half"))
    twin = copy.deepcopy(run()[0])
    assert twin.save_pretrained.args[0] is twin, "a copy is guarded by itself"
    save_folded(model, tmp_path / "whole")
    loaded = peft.PeftModel.from_pretrained(gpt2(), str(tmp_path / "whole"), is_trainable=True).double().train()
    assert (logits(loaded) - logits(model)).abs().max() > 1e-6, "the adapter alone is another model"
    for _ in range(2):  # twice does no harm
        assert set(load_folded(loaded, tmp_path / "whole")) == set(folded_weights(model))
        # the factors went through peft's single precision
        torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-6)
    with pytest.raises(IllegalConfiguration, match="save_folded"):
        loaded.save_pretrained(str(tmp_path / "again"))
    merged = model.merge_and_unload()
    merged.save_pretrained(str(tmp_path / "merged"))
    assert (tmp_path / "merged" / "config.json").exists()


def test_a_base_without_the_folds_is_noticed():
    model = adapted()
    optimizer, handle = protected(model, AT_BOUNDARIES)
    train(model, optimizer, 4)
    handle.task_boundary()
    state = handle.state_dict()
    other = adapted()
    lora = {name: value for name, value in model.state_dict().items() if "lora_" in name}
    other.load_state_dict(lora, strict=False)  # the adapter alone
    _, resumed = protected(other, AT_BOUNDARIES)
    resumed.load_state_dict(state)
    with pytest.raises(
        IllegalConfiguration, match=r"not the base weight that components were folded into.*load_folded"
    ):
        resumed.task_boundary()


def test_base_weights_can_be_written_beside_the_adapter(tmp_path):
    model = adapted()
    optimizer, handle = protected(model, RankRecycling(0.5, maturity_threshold=0, saving="beside"))
    train(model, optimizer, 4)
    handle.task_boundary()
    model.save_pretrained(str(tmp_path))
    assert (tmp_path / BASE_FILE).exists()
    load_folded(model, tmp_path)
    with pytest.raises(IllegalConfiguration, match="does not exist"):
        load_folded(model, tmp_path / "elsewhere")
    other = adapted(llama(), LLAMA_TARGETS)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(IllegalConfiguration, match="missing in this model"):
        load_folded(other, tmp_path)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in before.items())


# ---- bad input ----
def test_versions_of_peft_out_of_range_are_refused():
    for version in ("0.17.9", "0.3.0.dev0", "1.0.0", "2.1"):
        with pytest.raises(NotYetSupported, match=rf"peft {version}.*use 0\.18 or later, below 1\.0"):
            check_peft(version)
    for version in ("0.18.0", "0.21.2", "0.99"):
        check_peft(version)
    check_peft()


def test_without_peft_there_is_nothing_to_act_on_and_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "site-packages" not in entry])
    with pytest.raises(NoEffect, match=r"peft is not installed.*pip install 'pliant\[lora\]'"):
        pairs(nn.Linear(2, 2))


def test_units_that_would_stay_dead_are_refused():
    """A of an embedding starts at zero, and so would B after a reset."""
    model = adapted(llama(), ["embed_tokens", "q_proj"])
    with pytest.raises(IllegalConfiguration, match=r"lora_embedding_A.*start at zero.*RankRecycling knows how"):
        protected(model, pliant.ReDo())
    protected(model, pliant.ReDo(where="*q_proj.lora_A"))


class Quantised(peft.tuners.lora.layer.Linear):
    """A layer of a backend of its own, as peft has for quantised weights."""


def quantised():
    model = adapted()
    model.get_submodule(FIRST).__class__ = Quantised
    return model


REFUSED = {
    "no_adapter": (lambda: gpt2().double(), NoEffect, r"no unit group matches.*peft\.get_peft_model"),
    "dora": (lambda: adapted(use_dora=True), NotYetSupported, "no plain LoRA but Dora.*where="),
    "half": (lambda: adapted().bfloat16(), NotYetSupported, "torch.bfloat16.*lost.*float32.*fold=False"),
    "tied": (lambda: adapted(targets=["wte"]), NotYetSupported, "used elsewhere.*lm_head.weight"),
    "quantised": (quantised, NotYetSupported, "Quantised.*quantised or split.*fold=False"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_folded_is_refused_by_name(name):
    make, error, text = REFUSED[name]
    model = make()
    with pytest.raises(error, match=text):
        protected(model, RankRecycling())


def test_merged_adapters_are_refused():
    model = adapted()
    optimizer = adam(model)
    model.merge_adapter()
    with pytest.raises(IllegalConfiguration, match=r"merged into the base weight.*unmerge_adapter"):
        protected(model, AT_BOUNDARIES, optimizer)
    model.unmerge_adapter()
    protected(model, AT_BOUNDARIES, optimizer)


@pytest.mark.parametrize(
    ("field", "value"),
    [("fraction", -0.1), ("fraction", float("nan")), ("every", 0), ("maturity_threshold", -1), ("saving", "maybe")],
)
def test_options_out_of_range_are_refused(field, value):
    with pytest.raises(IllegalConfiguration, match=rf"RankRecycling: {field}=.*must be"):
        protected(adapted(), RankRecycling(**{field: value}))


def test_a_pattern_that_matches_nothing_is_no_effect():
    with pytest.raises(NoEffect, match="nothing"):
        protected(adapted(), RankRecycling(where="nothing*"))
    with pytest.raises(NoEffect, match=r"has no LoRA layer of peft.*get_peft_model"):
        protected(gpt2().double(), RankRecycling(where="*"))
