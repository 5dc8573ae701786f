"""The table of docs/architectures.md: what is found in every network of the tests' zoo, and proof that it is right.

    python benchmarks/architectures.py            # writes docs/architectures.md
    python benchmarks/architectures.py --only gpt # prints some rows, writes nothing

Every network is built as the tests build it. Its groups are verified on generic parameters in float64, in evaluation
and in training mode: permuting the units of a group must leave the output as it was, and permuting them while leaving
out any one tensor must not.
"""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architectures.md"
SITES = ("hidden", "heads", "head_dims", "residual")
sys.path.insert(0, str(ROOT / "tests"))

HEADER = """# Architectures

What `pliant.find_units` finds, without being told anything about the network, in the small networks that the tests are
run on. The groups that must be found in each are written down by hand in the tests; a group too few fails them just as
a group too many.

- **groups**: sets of interchangeable units. Hidden units and attention heads are what methods edit unless told
  otherwise; dimensions inside heads and residual streams are edited only if they are named.
- **read**: whether activations are seen by a hook, by replaying a part of the forward pass from the nearest hook, or
  not at all (such a group can be edited, and methods that need activations refuse it by name).
- **left out**: dimensions of parameters and buffers that belong to no group, each with its reason in `units.excluded`
  (inputs, outputs, kernels, vocabulary, ...). Every other one belongs to a group.
- **permuted**: the largest relative change of the output, over all groups, when the units of a group are permuted.
- **one left out**: the smallest change, over all groups and their tensors, when one tensor is left out of the
  permutation: what the check would see if discovery had forgotten it.

Written by `python benchmarks/architectures.py`.

| network | hidden | heads | inside heads | residual | read: hook / replay / no | left out | permuted | one left out |
|---|---|---|---|---|---|---|---|---|
"""


def row(name: str) -> str:
    """One network's line."""
    import zoo

    import pliant

    case = zoo.ZOO[name]
    model, batch = case.model(), case.batch()
    units = pliant.find_units(model, batch)
    verification = units.verify(model, batch)
    if not verification.ok:
        raise SystemExit(f"{name}: {verification}")
    change = max(check.change for check in verification.groups)
    omissions = [check.smallest_omission for check in verification.groups]
    omission = min((value for value in omissions if not math.isnan(value)), default=math.nan)
    return f"| {name} | {found(units)} | {change:.0e} | {omission:.0e} |"


def found(units: Any) -> str:
    """The columns that say what was found."""
    read = Counter("no" if group.tap is None else "replay" if group.tap.replay else "hook" for group in units)
    sites = " | ".join(_groups([group.size for group in units if group.site == site]) for site in SITES)
    taps = " / ".join(str(read[kind]) for kind in ("hook", "replay", "no"))
    return f"{sites} | {taps} | {len(units.excluded)}"


def _groups(sizes: list[int]) -> str:
    """Number of groups, and their sizes."""
    if not sizes:
        return ""
    low, high = min(sizes), max(sizes)
    return f"{len(sizes)} of {low}" if low == high else f"{len(sizes)} of {low} to {high}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="networks whose name contains this")
    options = parser.parse_args()
    import torch
    import zoo

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    names = [name for name in zoo.NAMES if options.only is None or options.only in name]
    lines = []
    for name in names:
        lines.append(row(name))
        print(lines[-1], flush=True)
    if options.only is None:
        PAGE.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
