"""GPT-2- and Llama-style models: units and heads are protected, rows of tokens kept fresh; the page and the study."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from lm_tools import VOCABULARY, gpt2, ids, llama, logits, train

import pliant
from benchmarks.language import study, training
from pliant import IllegalConfiguration, NoEffect, NotYetSupported
from pliant.tokens import (
    TokenReset,
    TokenTable,
    count_tokens,
    grow_vocabulary,
    occurrences,
    rare_tokens,
    renew_tokens,
    token_tables,
)

ROOT = Path(__file__).parents[2]
MODELS = {
    "gpt2_tied": gpt2,
    "gpt2_untied": lambda seed=0: gpt2(seed, tie_word_embeddings=False),
    "llama_tied": lambda seed=0: llama(seed, tied=True),
    "llama_untied": llama,
}
_UNITS: dict[str, pliant.UnitGraph] = {}


def units_of(name):
    if name not in _UNITS:
        _UNITS[name] = pliant.find_units(MODELS[name](), {"input_ids": ids(), "labels": ids()})
    return _UNITS[name]


def protected(name, method, *, lr=1e-2, **attach):
    model = MODELS[name]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    return model, optimizer, pliant.attach(model, optimizer, method, units=units_of(name), **attach)


# ---- units and heads ----
HIDDEN = {"gpt2": ["transformer.h.0.mlp.c_fc", "transformer.h.1.mlp.c_fc"], "llama": ["model.layers.0.mlp.gate_proj"]}
HEADS = {
    "gpt2": ["transformer.h.0.attn.c_attn:heads", "transformer.h.1.attn.c_attn:heads"],
    "llama": ["model.layers.0.self_attn.q_proj:heads", "model.layers.0.self_attn.q_proj#2:heads"],
}
METHODS = {
    "continual_backprop": lambda where: pliant.ContinualBackprop(0.5, maturity_threshold=1, where=where),
    "redo": lambda where: pliant.ReDo(tau=5.0, every=2, where=where),
    "regrama": lambda where: pliant.ReGraMa(tau=5.0, every=2, where=where),
    "self_normalized_reset": lambda where: pliant.SelfNormalizedReset(
        initial_threshold=2, min_threshold=1, check_every=1, where=where
    ),
}
MLP = {"gpt2": "*.mlp", "llama": "*.mlp"}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_feed_forward_units_are_protected_where_they_are_named(name, method):
    family = name.partition("_")[0]
    model, optimizer, handle = protected(name, METHODS[method](MLP[family]))
    before = copy.deepcopy(model.state_dict())
    train(model, optimizer, 4)
    touched = {group for group, count in handle.num_resets.items() if count}
    if method == "self_normalized_reset":  # GELU and SiLU gates hardly ever rest at zero
        assert touched <= set(HIDDEN[family])
    else:
        assert touched == set(HIDDEN[family])
    assert all(p.isfinite().all() for p in model.parameters())
    assert not torch.equal(before[next(iter(before))], model.state_dict()[next(iter(before))])


@pytest.mark.parametrize("name", ["gpt2_tied", "llama_untied"])
def test_heads_are_units_also_where_key_value_heads_are_shared(name):
    family = name.partition("_")[0]
    model, optimizer, handle = protected(name, pliant.ReDo(tau=5.0, every=2, where="*:heads"))
    train(model, optimizer, 2)
    assert {group for group, count in handle.num_resets.items() if count} <= set(HEADS[family])
    assert sum(int(n) for n in handle.num_resets.values())
    handle.detach()
    _, optimizer, handle = protected(name, pliant.ContinualBackprop(0.9, maturity_threshold=1, decide_every=1))
    assert {*HIDDEN[family], *HEADS[family]} == {group.name for group in handle.units.select("*")}


@pytest.mark.parametrize("name", ["gpt2_untied", "llama_tied"])
@pytest.mark.parametrize("site", ["hidden", "heads"])
def test_a_reset_is_the_network_without_those_units(name, site):
    """In float64: fresh incoming weights change nothing, since what they send out is zero."""
    family, (units, model) = name.partition("_")[0], (units_of(name), MODELS[name]().double())
    group = units[(HIDDEN if site == "hidden" else HEADS)[family][0]]
    assert group.reset_preserves_function
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    without = copy.deepcopy(model)
    first = torch.arange(group.size) == 0
    with torch.no_grad():
        for piece in group.role("outgoing"):
            without.get_parameter(piece.name).index_fill_(piece.dim, piece.positions()[0], 0)
    handle = pliant.attach(model, optimizer, pliant.ReDo(tau=0.0, where=group.name), units=units)
    handle._editor.reset(group, first)
    assert float((logits(model) - logits(without)).abs().max() / logits(model).abs().max()) <= 1e-13
    incoming = group.role("incoming")[0]
    old, new = (item.get_parameter(incoming.name).movedim(incoming.dim, 0) for item in (without, model))
    assert not torch.equal(old[incoming.positions()[0]], new[incoming.positions()[0]])


def test_frozen_units_are_left_alone_and_named():
    model = gpt2()
    model.transformer.h[0].requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    handle = pliant.attach(model, optimizer, pliant.ReDo(tau=5.0, every=2), units=units_of("gpt2_tied"))
    train(model, optimizer, 2)
    assert "frozen parameters" in handle.excluded["transformer.h.0.mlp.c_fc"]
    assert {name.split(".")[2] for name, count in handle.num_resets.items() if count} == {"1"}
    handle.detach()
    with pytest.raises(NoEffect, match=r"has frozen parameters \(transformer\.h\.0\.mlp\.c_fc\)"):
        pliant.attach(model, optimizer, pliant.ReDo(where="transformer.h.0.mlp"), units=units_of("gpt2_tied"))


# ---- tokens: where they are ----
TABLES = {
    "gpt2_tied": TokenTable("transformer.wte", "transformer.wte.weight", "", "", 13, True, None),
    "gpt2_untied": TokenTable("transformer.wte", "transformer.wte.weight", "lm_head.weight", "", 13, False, None),
    "llama_tied": TokenTable("model.embed_tokens", "model.embed_tokens.weight", "", "", 13, True, None),
    "llama_untied": TokenTable(
        "model.embed_tokens", "model.embed_tokens.weight", "lm_head.weight", "", 13, False, None
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_tables_of_tokens_are_found_and_those_of_positions_are_not(name):
    assert token_tables(MODELS[name]()) == (TABLES[name],)


class Plain(nn.Module):
    def __init__(self, tied=False):
        super().__init__()
        self.places, self.symbols = nn.Embedding(6, 8), nn.Embedding(VOCABULARY, 8, padding_idx=0)
        self.up, self.head = nn.Linear(8, 8), nn.Linear(8, VOCABULARY)
        if tied:
            self.head.weight = self.symbols.weight

    def forward(self, input_ids):
        return self.head(torch.relu(self.up(self.symbols(input_ids) + self.places.weight[: input_ids.shape[1]])))


def test_plain_models_say_which_table_and_which_head():
    with pytest.raises(IllegalConfiguration, match=r"several embeddings \('places', 'symbols'\)"):
        token_tables(Plain())
    found = token_tables(Plain(), "symbols")[0]
    assert (found.head, found.bias, found.is_tied, found.padding) == ("", "", False, 0)
    assert token_tables(Plain(), "symbols", "head")[0].head == "head.weight"
    tied = token_tables(Plain(tied=True), "symbols")[0]
    assert (tied.head, tied.bias, tied.is_tied) == ("", "head.bias", True)
    with pytest.raises(NoEffect, match=r"no embedding matches where='wrong'.*'symbols'"):
        token_tables(Plain(), "wrong")
    with pytest.raises(IllegalConfiguration, match="there is no module 'wrong'"):
        token_tables(Plain(), "symbols", "wrong")
    with pytest.raises(IllegalConfiguration, match="one row for each of the 13"):
        token_tables(Plain(), "symbols", "up")


# ---- tokens: counted ----
def test_occurrences_are_those_of_the_batches():
    batches = [ids(step, below=9) for step in range(6)]
    model, optimizer, handle = protected("gpt2_tied", TokenReset(unseen_for=100, every=4))
    train(model, optimizer, 6, below=9)
    logits(model, ids(0))  # neither evaluation
    with torch.no_grad():
        model(input_ids=ids(0))  # nor passes without gradients count
    counts = count_tokens(batches, VOCABULARY)
    assert torch.equal(occurrences(handle)["transformer.wte.weight"], counts)
    assert set(range(9, 13)) <= set(rare_tokens(counts).tolist())
    handle.detach()
    assert not any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(IllegalConfiguration, match="token 12 is outside of a vocabulary of 9"):
        count_tokens([torch.tensor([12])], 9)


class Checkpointed(Plain):
    def forward(self, input_ids):
        return torch.utils.checkpoint.checkpoint(super().forward, input_ids, use_reentrant=False)


@pytest.mark.parametrize("compiled", [False, True])
def test_checkpointed_and_compiled_forwards_count_once(compiled):
    model = Plain() if compiled else Checkpointed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    units = pliant.find_units(Plain(), ids())
    handle = pliant.attach(model, optimizer, TokenReset(unseen_for=100, every=2, where="symbols"), units=units)
    call = torch.compile(model, backend="eager", fullgraph=True) if compiled else model
    for step in range(3):
        call(ids(step, below=9)).square().mean().backward()
        optimizer.step()
    wanted = count_tokens([ids(step, below=9) for step in range(3)], 13)
    assert torch.equal(occurrences(handle)["symbols.weight"], wanted)


# ---- tokens: kept fresh ----
@pytest.mark.parametrize("name", MODELS)
def test_rows_of_unseen_tokens_are_at_the_mean_of_those_in_use_with_empty_moments(name):
    table = TABLES[name]
    model, optimizer, handle = protected(name, TokenReset(unseen_for=4, every=4, noise_scale=0.0))
    train(model, optimizer, 4, below=9)
    seen = occurrences(handle)[table.weight] > 0
    assert 4 <= int((~seen).sum()) < 9
    for tensor in filter(None, (table.weight, table.head)):
        weight = model.get_parameter(tensor).detach()
        torch.testing.assert_close(weight[~seen], weight[seen].mean(0).expand_as(weight[~seen]))
        moments = optimizer.state[model.get_parameter(tensor)]
        assert not moments["exp_avg"][~seen].any()
        assert not moments["exp_avg_sq"][~seen].any()
        assert moments["exp_avg_sq"][seen].any(1).all()
        assert int(moments["step"]) == 4
    assert handle.record()["TokenReset.unseen_fraction"] == pytest.approx(float((~seen).float().mean()))


def test_what_is_computed_without_unseen_tokens_stays():
    for name in ("gpt2_untied", "llama_tied"):
        model, optimizer, handle = protected(name, TokenReset(unseen_for=4, every=100))
        train(model, optimizer, 6, below=9)
        seen = occurrences(handle)[TABLES[name].weight] > 0
        batch = seen.nonzero().flatten()[:6].view(1, -1)
        before = logits(model, batch)
        renew_tokens(model, optimizer, rare_tokens(seen.int()), seed=3)
        after = logits(model, batch)
        assert torch.equal(before[..., seen], after[..., seen])
        assert (before[..., ~seen] != after[..., ~seen]).all()


def test_all_tokens_at_once_are_active_forgetting():
    model, optimizer, handle = protected("gpt2_tied", TokenReset(unseen_for=0, every=3, init="init"))
    train(model, optimizer, 3)
    weight = model.transformer.wte.weight
    assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.3)
    assert not optimizer.state[weight]["exp_avg"].any()
    assert optimizer.state[model.transformer.wpe.weight]["exp_avg"].any()
    assert [event.reason for event in handle.events] == ["all tokens"]


def test_the_padding_row_is_left_alone():
    model = Plain(tied=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = TokenReset(unseen_for=0, every=1, where="symbols")
    pliant.attach(model, optimizer, method, example_inputs=ids(below=9))
    before = model.symbols.weight.detach().clone()
    model(ids(below=9)).square().mean().backward()
    optimizer.zero_grad()
    optimizer.step()
    assert torch.equal(model.symbols.weight[0], before[0])
    assert (model.symbols.weight[1:] != before[1:]).any(1).all()


def test_resuming_nulls_dry_runs_and_seeds():
    method = TokenReset(unseen_for=2, every=2)

    def run(cut=None, given=method, seed=0, **attach):
        model, optimizer, handle = protected("gpt2_untied", given, seed=seed, **attach)
        train(model, optimizer, cut or 7, below=9)
        if cut:
            saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), handle.state_dict()))
            model, optimizer, handle = protected("gpt2_untied", given, seed=50, **attach)
            for item, state in zip((model, optimizer, handle), saved, strict=True):
                item.load_state_dict(state)
            train(model, optimizer, range(cut, 7), below=9)
        return model.state_dict(), handle

    def same(one, other):
        return all(torch.equal(one[0][name], other[0][name]) for name in one[0])

    whole = run()
    assert same(whole, run(cut=3))
    assert same(whole, run(cut=4))
    assert torch.equal(
        occurrences(whole[1])["transformer.wte.weight"], occurrences(run(cut=3)[1])["transformer.wte.weight"]
    )
    plain = run(given=method.null())
    assert same(plain, run(dry_run=True))
    assert not same(plain, whole)
    assert not same(whole, run(seed=1))


def test_tokens_that_nobody_hears_are_an_error():
    class Direct(Plain):
        def forward(self, input_ids):
            return self.head(torch.relu(self.up(nn.functional.embedding(input_ids, self.symbols.weight))))

    model = Direct()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pliant.attach(model, optimizer, TokenReset(every=2, where="symbols"), example_inputs=ids(below=9))
    model(ids()).square().mean().backward()
    optimizer.step()
    with pytest.raises(IllegalConfiguration, match=r"'symbols' was given no token in 2 training steps.*model\.train"):
        optimizer.step()


def test_nothing_trained_is_no_effect():
    model = gpt2()
    model.transformer.wte.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with pytest.raises(NoEffect, match="trains no embedding"):
        pliant.attach(model, optimizer, TokenReset(), units=units_of("gpt2_tied"))


@pytest.mark.parametrize(
    ("field", "value"),
    [("unseen_for", -1), ("every", 0), ("init", "zero"), ("noise_scale", -0.1), ("noise_scale", float("inf"))],
)
def test_options_out_of_range_are_refused(field, value):
    with pytest.raises(IllegalConfiguration, match=rf"TokenReset: {field}=.*must be"):
        protected("gpt2_tied", TokenReset(**{field: value}))


# ---- more rows ----
@pytest.mark.parametrize("name", MODELS)
def test_a_vocabulary_grows_and_the_optimizer_follows(name):
    table = TABLES[name]
    method = TokenReset(unseen_for=2, every=2)
    model, optimizer, handle = protected(name, method)
    train(model, optimizer, 3)
    loss = model(input_ids=ids(), labels=ids()).loss  # a graph that is still alive
    with pytest.raises(IllegalConfiguration, match=r"is attached to this model.*detach\(\), grow, attach again"):
        grow_vocabulary(model, optimizer, 16)
    state, before = handle.state_dict(), logits(model)
    handle.detach()
    old = {n: (model.get_parameter(n).detach().clone(), copy.deepcopy(optimizer.state[model.get_parameter(n)]))
           for n in filter(None, (table.weight, table.head))}  # fmt: skip
    grown = grow_vocabulary(model, optimizer, 16, noise_scale=0.0)
    assert grown == TokenTable(table.module, table.weight, table.head, "", 16, table.is_tied, None)
    assert model.config.vocab_size == 16
    assert torch.equal(logits(model)[..., :13], before)
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert owned == {id(p) for p in model.parameters()}
    for tensor, (values, moments) in old.items():
        now = model.get_parameter(tensor)
        assert torch.equal(now[:13], values)
        torch.testing.assert_close(now[13:].detach(), values.mean(0).expand(3, -1))
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[now][key][:13], moments[key])
            assert not optimizer.state[now][key][13:].any()
        assert int(optimizer.state[now]["step"]) == 3
    units = pliant.find_units(model, {"input_ids": ids(), "labels": ids()})
    handle = pliant.attach(model, optimizer, method, units=units)
    handle.load_state_dict(state, on_mismatch="reinit_group")
    counts = occurrences(handle)[table.weight]
    assert torch.equal(counts[:13], count_tokens([*(ids(step) for step in range(3)), ids()], 13))
    assert not counts[13:].any()
    train(model, optimizer, range(3, 6), below=16)
    assert occurrences(handle)[table.weight][13:].any()
    assert torch.isfinite(loss)


def test_growing_behind_the_back_of_a_handle_is_said():
    model, optimizer, _ = protected("llama_untied", TokenReset(every=2))
    model.resize_token_embeddings(16, mean_resizing=False)
    with pytest.raises(
        IllegalConfiguration, match=r"had 13 rows when pliant was attached and has 16 now.*grow_vocabulary"
    ):
        train(model, optimizer, 1)


def test_plain_models_grow_too():
    for tied in (False, True):
        model = Plain(tied)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        model(ids()).square().mean().backward()
        optimizer.step()
        before = model(ids()).detach()
        found = grow_vocabulary(model, optimizer, 20, where="symbols", head="head")
        assert (found.num_tokens, found.is_tied) == (20, tied)
        assert (model.symbols.num_embeddings, model.head.out_features) == (20, 20)
        assert (model.head.weight is model.symbols.weight) == tied
        torch.testing.assert_close(model(ids())[..., :13], before)
        model(ids(below=20)).square().mean().backward()
        optimizer.step()
        assert tied or not model.symbols.weight[0].any(), "the padding row stays zero"


def test_what_cannot_grow_is_refused():
    model = Plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(IllegalConfiguration, match="not more than the 13 rows"):
        grow_vocabulary(model, optimizer, 13, where="symbols")
    with pytest.raises(IllegalConfiguration, match="2 embeddings match"):
        grow_vocabulary(model, optimizer, 20, where="symbols,places")
    odd = torch.optim.Adafactor(model.parameters(), lr=0.1)
    model(ids()).square().mean().backward()
    odd.step()
    with pytest.raises(NotYetSupported, match="Adafactor"):
        grow_vocabulary(model, odd, 20, where="symbols")
    assert model.symbols.num_embeddings == 13
    with pytest.raises(IllegalConfiguration, match=r"not all rows of 'symbols\.weight', which has 13"):
        renew_tokens(model, optimizer, [13], where="symbols")
    with pytest.raises(IllegalConfiguration, match=r"no given optimizer trains 'symbols\.weight'"):
        renew_tokens(model, torch.optim.SGD(model.up.parameters(), lr=0.1), [1], where="symbols")


# ---- the pages ----
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")  # peft 0.18
def test_the_snippets_of_the_page_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    pytest.importorskip("peft")
    page = ROOT / "docs" / "language_models.md"
    snippets = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(compile(snippet, page.name, "exec"), names)
    assert "transformer.h.0.mlp.c_fc" in capsys.readouterr().out
    assert len(snippets) >= 5


def test_the_page_of_the_study_is_what_its_records_say():
    assert study.main(["page", "--check"]) == 0


@pytest.mark.wide
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_the_study_runs_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    pytest.importorskip("peft")
    small = {
        "width": 8, "context": 8, "batch": 2, "steps": 2, "num_tasks": 2, "num_tuning_tasks": 2, "characters": 500,
        "rank": 2, "base_steps": 2, "adapter_steps": 2, "num_adapter_tasks": 2, "num_adapter_tuning_tasks": 2,
    }  # fmt: skip
    preset = training.Preset(**small)
    monkeypatch.setattr(study, "SEEDS", range(1))
    for part in study.PARTS:
        ways = {
            name: study.PARTS[part][name]
            for name in ("plain", "l2", "continued", "recycled")
            if name in study.PARTS[part]
        }
        monkeypatch.setitem(study.PARTS, part, ways)
        monkeypatch.setitem(study.TUNING, part, (100,))
    records = study.records_of(preset, tmp_path)
    assert study.run(records, preset, tmp_path / "bases", 0.0) == 3, "out of time at once"
    assert study.run(records, preset, tmp_path / "bases", 10.0) == 0
    assert len(records.all()) == 4 * 3 + 4
    assert not list(study.missing(records, preset))
    plain = study.chosen(records, preset, "text", "plain")
    l2 = [record for record in records.all() if record["cell"]["way"] == "l2"]
    assert {record["cell"]["step_size"] for record in l2} == {plain["step_size"]}
    assert all(len(record["online"]) == record["cell"]["tasks"] for record in records.all())
    recycled = [r for r in records.read("adapters-reported") if r["cell"]["way"] == "recycled"]
    assert recycled[0]["resets"] == 2 * 4 * 1  # two layers, four matrices, one of two components, at one boundary
