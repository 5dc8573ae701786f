"""Formulas and markup of docstrings, as a terminal can show them."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["plain_formula", "plain_text"]

_SIGNS = {
    "leftarrow": " ← ", "gets": " ← ", "rightarrow": " → ", "to": " → ", "mapsto": " ↦ ", "le": " ≤ ", "leq": " ≤ ",
    "ge": " ≥ ", "geq": " ≥ ", "ne": " ≠ ", "neq": " ≠ ", "ll": " ≪ ", "gg": " ≫ ", "approx": " ≈ ", "propto": " ∝ ",
    "sim": " ~ ", "in": " ∈ ", "notin": " ∉ ", "cdot": " · ", "times": " × ", "odot": " ⊙ ", "otimes": " ⊗ ",
    "pm": " ± ", "circ": "∘", "sum": "Σ", "prod": "Π", "int": "∫", "nabla": "∇", "partial": "∂", "infty": "∞",
    "top": "ᵀ", "forall": "∀ ", "lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈", "rceil": "⌉", "langle": "⟨",
    "rangle": "⟩", "lVert": "‖", "rVert": "‖", "lvert": "|", "rvert": "|", "ldots": "…", "dots": "…", "cdots": "…",
    "quad": "  ", "qquad": "    ", "mid": " | ", "prime": "'", "star": "*", "ast": "*", "wedge": " ∧ ", "vee": " ∨ ",
    "cup": " ∪ ", "cap": " ∩ ", "setminus": " \\ ", "left": "", "right": "", "big": "", "Big": "", "bigl": "",
    "bigr": "", "Bigl": "", "Bigr": "", "limits": "", "displaystyle": "", "middle": "", "|": "‖", ",": " ", ";": " ",
    ":": " ", "!": "", " ": " ", "{": "{", "}": "}", "ell": "ℓ", "_": "_", "%": "%", "&": "&", "#": "#",
}  # fmt: skip
_CONTENTS = {"text", "mathrm", "mathbf", "mathcal", "mathbb", "mathit", "mathsf", "boldsymbol", "operatorname", "bm"}
_ACCENTS = {"bar": "\u0304", "hat": "\u0302", "tilde": "\u0303", "widehat": "\u0302", "widetilde": "\u0303"}
_TOKEN = re.compile(r"\\([A-Za-z]+\*?)|\\(.)|(.)", re.DOTALL)


def plain_text(text: str) -> str:
    r"""Text of a docstring without markup; formulas inside it become plain ones.

    >>> plain_text("See :meth:`~a.b.step` of ``ReDo``: :math:`s \\le \\tau`.")
    'See step of ReDo: s ≤ τ.'
    """
    text = re.sub(r":math:`([^`]*)`", lambda found: plain_formula(found[1]), text)
    text = re.sub(r":\w+:`~?(?:[\w.]*\\.)?([^`]*)`", lambda found: found[1].rpartition(".")[2], text)
    return text.replace("``", "")


def plain_formula(latex: str) -> str:
    r"""LaTeX in the letters that a terminal has; commands that are not known lose their backslash.

    >>> plain_formula(r"s_i = \frac{\mathbb{E}|h_i|}{\tfrac1U \sum_k \mathbb{E}|h_k|} \le \tau")
    's_i = E|h_i| / (1/U Σ_k E|h_k|) ≤ τ'
    >>> plain_formula(r"\theta \leftarrow (1 - \alpha\lambda)\,\theta")
    'θ ← (1 - αλ) θ'
    """
    lines = [_read(re.sub(r"\s+", " ", line).strip()) for line in latex.replace("&", "").split(r"\\")]
    closed = [re.sub(r"(?<=[⌊⌈⟨(]) | (?=[⌋⌉⟩),])", "", line) for line in lines]
    return "\n".join(re.sub(r"(?<=\S) {2,3}(?=\S)", " ", line).strip() for line in closed)


def _read(latex: str) -> str:
    out, rest = "", latex
    while rest:
        piece, rest = _next(rest)
        out += piece
    return out


def _next(latex: str) -> tuple[str, str]:
    """The first token of a formula, converted, and what follows it."""
    if latex[0] == "{":
        inner, rest = _group(latex)
        return _read(inner), rest
    if latex[0] in "_^" and len(latex) > 1:
        piece, rest = _next(latex[1:].lstrip())
        if latex[0] == "^" and piece in ("ᵀ", "'", "*"):
            return piece, rest
        return latex[0] + (piece if re.fullmatch(r"[\w'*+∞-]*", piece) else f"({piece})"), rest
    found = _TOKEN.match(latex)
    assert found is not None  # the last alternative takes any character
    rest = latex[found.end() :]
    name = found[1] or found[2]
    if name is None:
        return found[3], rest
    if name in ("frac", "tfrac", "dfrac"):
        above, rest = _next(rest.lstrip())
        below, rest = _next(rest.lstrip())
        slash = "/" if len(above + below) <= 4 else " / "
        return _one(above) + slash + _one(below), rest
    if name in ("begin", "end"):
        return "", _group(rest)[1] if rest.startswith("{") else rest
    if name in _CONTENTS or name in _ACCENTS or name in ("sqrt", "overline"):
        inner, rest = _next(rest.lstrip()) if rest.strip() else ("", "")
        if name in _CONTENTS:
            return inner, rest
        if name == "sqrt":
            return f"√{_one(inner)}", rest
        if name == "overline":
            return f"mean({inner})", rest
        return inner[:1] + _ACCENTS[name] + inner[1:], rest
    return _SIGNS[name] if name in _SIGNS else _greek(name), rest


def _greek(name: str) -> str:
    """The letter of this name, or the name where it is none."""
    case, letter = ("CAPITAL" if name[0].isupper() else "SMALL"), name.removeprefix("var").upper()
    try:
        return unicodedata.lookup(f"GREEK {case} LETTER {'LAMDA' if letter == 'LAMBDA' else letter}")
    except KeyError:
        return name


def _one(piece: str) -> str:
    """In brackets, unless it reads as one thing."""
    return piece if re.fullmatch(r"[\w.']+|\w?\|[^|+]*\|", piece) or not piece else f"({piece})"


def _group(latex: str) -> tuple[str, str]:
    """What stands in the braces at the beginning, and what follows them."""
    depth = 0
    for place, letter in enumerate(latex):
        if latex[place - 1] != "\\" or place == 0:
            depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth == 0:
            return latex[1:place], latex[place + 1 :]
    return latex[1:], ""
