"""What scripts share that measure cells: a process for each, results kept after each, the table of the last run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overhead import measure_in_process

BY = {"wall": "wall clock", "cpu": "processor time", None: "not counted"}
TRIES = 4


@dataclass(frozen=True)
class Script:
    """One script of cells.

    Args:
        file: Its file, which is run again for each cell.
        doc: What its ``--help`` says.
        cells: Names of the cells, in order.
        measure: From a cell's name, rounds and the size of a block to its result, with ``"clock"`` None if it does not
            count, and must be measured again.
        size: From a cell's name, and whether it is only to be tried, to the size of a block.
        table: The results in Markdown.
        results: Where they are kept.
        rounds: Unless the user says otherwise.
        limit: What a ratio may be at most.
    """

    file: str
    doc: str | None
    cells: Sequence[str]
    measure: Callable[[str, int, float], dict[str, Any]]
    size: Callable[[str, bool], float]
    table: Callable[[dict[str, Any]], str]
    results: Path
    rounds: int
    limit: float

    def main(self) -> None:
        """Measure what the command line says, each cell in a process of its own."""
        parser = argparse.ArgumentParser(description=self.doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--only", default="", help="cells whose name contains this")
        parser.add_argument("--rounds", type=int, default=self.rounds)
        parser.add_argument("--out", type=Path, default=self.results)
        parser.add_argument("--table", action="store_true", help="print the table of the results, measure nothing")
        parser.add_argument("--quick", action="store_true", help="two short rounds; nothing is kept")
        parser.add_argument("--cell", help=argparse.SUPPRESS)
        parser.add_argument("--size", type=float, help=argparse.SUPPRESS)
        options = parser.parse_args()
        if not any(options.only in cell for cell in self.cells):
            parser.error(f"no cell's name contains {options.only!r}; there are {', '.join(self.cells)}")
        if options.cell:
            print(json.dumps(self.measure(options.cell, options.rounds, options.size)))
        elif options.table:
            print(self.table(json.loads(options.out.read_text())))
        else:
            rounds = 2 if options.quick else options.rounds
            print(self.table(self._measure_all(options.only, rounds, None if options.quick else options.out)))

    def _measure_all(self, only: str, rounds: int, out: Path | None) -> dict[str, Any]:
        from pliant.bench.environment import run_meta

        meta = run_meta()
        known: dict[str, Any] = {}
        if only and out is not None and out.exists():  # the others stay, with the commit of theirs
            known = {cell["cell"]: cell for cell in json.loads(out.read_text())["cells"]}
        results: dict[str, Any] = {"limit": self.limit, "meta": meta, "cells": []}
        for cell in self.cells:
            if only in cell:
                size = self.size(cell, out is None)
                command = [self.file, "--cell", cell, "--rounds", str(rounds), "--size", str(size)]
                found = measure_in_process(cell, command, 1 if out is None else TRIES)
                known[cell] = {**found, "commit": meta["git_commit"]}
                results["cells"] = [known[other] for other in self.cells if other in known]
                if out is not None:
                    out.parent.mkdir(parents=True, exist_ok=True)
                    out.write_text(json.dumps(results, indent=1) + "\n")
        return results


def shown(cell: dict[str, Any], kinds: Sequence[str], number: str, digits: int = 4) -> list[str]:
    """Ratios of a cell for its table; in brackets where it does not count."""
    found = cell["ratios"][cell["clock"] or "wall"]
    texts = [f"{found[kind][number]:.{digits}f}" for kind in kinds]
    return [f"({text})" for text in texts] if cell["clock"] is None else texts
