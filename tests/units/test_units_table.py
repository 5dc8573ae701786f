"""The table of architectures in the documentation says what is found today."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from zoo import NAMES, ZOO

import pliant

ROOT = Path(__file__).resolve().parents[2]
ADVICE = "run `python benchmarks/architectures.py`"


def rows() -> dict[str, str]:
    lines = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8").splitlines()
    cells = [line.strip("|").split(" | ", 1) for line in lines if line.startswith("| ") and "permuted" not in line]
    return {name.strip(): rest for name, rest in cells}


def test_every_network_of_the_zoo_is_in_the_table():
    assert tuple(rows()) == NAMES, ADVICE


@pytest.mark.parametrize("name", NAMES[::4])
def test_what_the_table_says_is_found(name):
    spec = importlib.util.spec_from_file_location("architectures", ROOT / "benchmarks" / "architectures.py")
    architectures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(architectures)
    units = pliant.find_units(ZOO[name].model(), ZOO[name].batch())
    assert rows()[name].startswith(f"{architectures.found(units)} |"), ADVICE
