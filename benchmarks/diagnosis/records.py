"""The scores of one half of the networks on disk, a file for each network: ``fit/mlp.json``, ``judge/vit.json`` ..."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "read", "write"]

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "diagnosis"


def write(half: str, config: dict[str, Any], cases: list[dict[str, Any]]) -> None:
    """Replace the files of a half.

    Args:
        half: ``"fit"`` or ``"judge"``.
        config: What is the same for all cases.
        cases: The cases in the order in which they were measured, which is kept.
    """
    folder = RESULTS / half
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.json"):
        old.unlink()
    by_network: dict[str, list[dict[str, Any]]] = {}
    for number, case in enumerate(cases):
        by_network.setdefault(case["network"], []).append({"number": number, **case})
    for network, own in by_network.items():
        text = json.dumps({"config": config, "cases": own}, separators=(",", ":"))
        (folder / f"{network}.json").write_text(text + "\n", encoding="utf-8")


def read(half: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The configuration and all cases of a half, in the order in which they were measured."""
    files = sorted((RESULTS / half).glob("*.json"))
    if not files:
        raise SystemExit(f"no records in {RESULTS / half}: run `python benchmarks/diagnosis/cases.py {half}` first.")
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    if any(data["config"] != found[0]["config"] for data in found):
        raise SystemExit(f"the files in {RESULTS / half} are of different runs: measure that half anew.")
    return found[0]["config"], sorted((case for data in found for case in data["cases"]), key=lambda c: c["number"])
