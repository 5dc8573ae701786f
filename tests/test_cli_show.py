"""``pliant show`` and the columns of ``pliant list methods``: everything comes from the methods themselves."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest

from pliant.bench import catalogue
from pliant.bench.catalogue import Cost, about
from pliant.bench.experiment import method_table
from pliant.cli import main
from pliant.commands.formula import plain_formula, plain_text
from pliant.commands.show import page

ODD = '''
"""Not the package's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

from pliant.interventions import ReDo
from pliant.interventions.base import Intervention, PerParameter, PerUnit


@final
@dataclass(frozen=True)
class Odd(Intervention):
    r"""Odd units are odd: :math:`u \\bmod 2`.

    .. math:: x \\leftarrow \\frac{x}{2}

    Args:
        strength: How odd, a word
            of two lines.

    Edits:
        Nothing at all.

    Source:
        Nobody (2020).
    """

    strength: float
    kind: str = "even"

    state: ClassVar[Mapping[str, object]] = {"start": PerParameter("initial"), "seen": PerUnit(dtype="int64")}
    source: ClassVar[str] = "Nobody 2020"
    defaults: ClassVar[Mapping[str, str]] = {"kind": "a coin"}

    def null(self):
        return Odd(0.0)

    def after_step(self, ctx):
        pass


class Both(ReDo):
    """Every option has a default."""

    def conflicts_with(self, other):
        return "both recycle" if isinstance(other, ReDo) else None


THING = 3
'''


@pytest.fixture
def odd(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    (tmp_path / "odd_methods.py").write_text(ODD)
    yield
    sys.modules.pop("odd_methods", None)


def shown(capsys, name: str) -> str:
    assert main(["show", name]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", catalogue.catalogue())
def test_every_method_is_shown_whole_in_eighty_columns(name, capsys):
    text = shown(capsys, name)
    item = about(name)
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith(f"{name}  ({item.cls.__name__})\n")
    for option in item.options:
        assert f"  {option.name} = {option.default}\n" in text
        assert option.meaning, f"the docstring of {name} does not explain {option.name}"
    for word in ("acts", *(("keeps", "edits") if name in method_table() else ()), "cost", "source", "page"):
        assert f"\n  {word} " in text, word
    for markup in (":math:", ".. math", "``", ":meth:", ":class:", "\\"):
        assert markup not in text, f"{markup} is left of the markup"


def test_what_is_said_is_what_the_method_does():
    assert (about("redo").when, about("redo").reads) == ("every 1000 steps", ("mean_abs_activation",))
    assert about("l2").when == "every step"
    assert about("continual_backprop").when == "every 160 steps (512 units)"
    assert about("fresh_start").when == about("shrink_and_perturb").when == "at task boundaries"
    assert about("continual_backprop").keeps["budget"] == "per group, float32"
    assert about("continual_backprop").keeps["age"] == "per unit, int64"
    assert about("fresh_start").needs_boundary
    assert not about("redo").needs_boundary
    assert about("redo").edits.startswith("Incoming weights")


def test_a_method_from_elsewhere_is_shown(odd, capsys):
    text = shown(capsys, "odd_methods:Odd")
    for part in (
        "odd  (Odd)",
        "Odd units are odd: u bmod 2.",
        "    x ← x/2",
        "  strength = (required)\n      How odd, a word of two lines.\n      default: its origin is not stated",
        "  kind = 'even'\n      default: a coin",
        "by its options",
        "start (per parameter, a copy); seen (per unit, int64)",
        "Nothing at all.",
        "not measured",
        "Nobody (2020).",
    ):
        assert part in text, part
    assert "  page" not in text
    assert "redo: both recycle" in shown(capsys, "odd_methods:Both")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("redu", "there is no method or metric 'redu'; nearest: redo"),
        ("odd_methods:Od", "there is no method in module odd_methods 'Od'; nearest: Odd"),
        ("odd_methods:THING", "is not a class"),
        ("nowhere_at_all:Odd", "module 'nowhere_at_all' cannot be imported"),
        ("collections:Counter", "collections:Counter is no method"),
    ],
)
def test_wrong_names_end_in_one_line(odd, name, message, capsys):
    assert main(["show", name]) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_the_list_has_columns(capsys, monkeypatch):
    monkeypatch.setattr(catalogue, "costs", lambda: {"redo": Cost(1.234, 1.0, 0.0, 0.0)})
    assert main(["list", "methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["name", "source", "cost", "needs", "boundary"]
    cost, boundary = lines[1].index("cost"), lines[1].index("needs boundary")
    rows = {line.split()[0]: line for line in lines[2:] if line.startswith("  ") and line[2] != " "}
    assert {*catalogue.catalogue(), "none"} <= set(rows)
    assert rows["redo"][cost:].split() == ["1.23x", "no"]
    assert rows["none"][cost:].split() == ["1.00x", "no"]
    for name, cls in method_table().items():
        assert rows[name][boundary:].strip() == ("yes" if cls().needs_boundary else "no")
        assert cls.source in rows[name]


def test_what_was_measured_is_shown(tmp_path, monkeypatch, capsys):
    """The data file may hold more than is shown: the settings it was measured with."""
    (tmp_path / "costs.json").write_text(
        json.dumps({"methods": {"redo": {"step": 1.1, "by_hand": 1.05, "memory": 0.5, "acting": 0.02, "rounds": 3}}})
    )
    monkeypatch.setattr(catalogue.resources, "files", lambda package: tmp_path)
    catalogue.costs.cache_clear()
    try:
        text = " ".join(shown(capsys, "redo").split())
        assert "1.10 times a plain step, 1.05 times the step written by hand" in text
        assert "0.5 times the parameters' size; 2.0 % of the time" in text
        (tmp_path / "costs.json").unlink()
        catalogue.costs.cache_clear()
        assert "not measured" in shown(capsys, "redo")
    finally:
        catalogue.costs.cache_clear()


def test_a_narrow_page_keeps_long_words_whole():
    item = dataclasses.replace(about("redo"), page="docs/" + "x" * 60)
    assert "docs/" + "x" * 60 in page(item, 40)


@pytest.mark.parametrize(
    ("latex", "plain"),
    [
        (r"\lambda \|\theta - \theta_0\|_2^2", "λ ‖θ - θ_0‖_2^2"),
        (r"W \leftarrow W (W^\top W)^{-1/2}", "W ← W (Wᵀ W)^(-1/2)"),
        (r"\bar h_i = \operatorname{mean}_b |h_{bi}|", "h\u0304_i = mean_b |h_bi|"),
        (r"\sqrt{\frac{d_{out}}{d_{in}}}", "√(d_out / d_in)"),
        (r"\begin{cases} 1 & x > 0 \\ 0 \end{cases}", "1 x > 0\n0"),
        (r"\lfloor c \rfloor \in \{0, 1\}, \Sigma, \varepsilon", "⌊c⌋ ∈ {0, 1}, Σ, ε"),
        (r"a^{b^{c}}", "a^(b^c)"),
        (r"\unknown{x", "unknownx"),
        ("x^", "x^"),
        ("", ""),
    ],
)
def test_formulas_in_the_letters_of_a_terminal(latex, plain):
    assert plain_formula(latex) == plain


def test_roles_lose_their_markup():
    assert plain_text("see :func:`pliant.attach`, ``x``, :class:`Memory`") == "see attach, x, Memory"


def test_a_metric_is_shown_from_the_catalogue(capsys):
    assert main(["show", "effective_rank"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in ("pliant.metrics.effective_rank", "exp", "centred", "Dohare et al. 2024", "srank", "docs/metrics.md"):
        assert part in text, part


def test_a_name_of_both_shows_both(capsys):
    assert main(["show", "feature_norm"]) == 0
    text = capsys.readouterr().out
    assert "FeatureNorm" in text
    assert "pliant.metrics.feature_norm" in text
