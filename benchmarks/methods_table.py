"""Write docs/methods/README.md, the table of all methods, from what the methods say of themselves.

    python benchmarks/methods_table.py            # writes it
    python benchmarks/methods_table.py --check    # exit code 1 if it is not up to date, costs apart

What a method costs is what ``benchmarks/speed/methods.py`` has measured last.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pliant.bench.catalogue import About, about, catalogue  # noqa: E402
from pliant.commands.formula import plain_text  # noqa: E402

PAGE = ROOT / "docs" / "methods" / "README.md"
INTRODUCTION = """# Methods

Written by `python benchmarks/methods_table.py` from the methods themselves; `pliant show METHOD` says more about each. *Acts* is when the default does something. *Needs a boundary*: without `handle.task_boundary()` the default does nothing. *Cost* is the time of a training step over that of a plain one, for a network of 784-512-512-512-10 at batch 128 with Adam on one thread of a CPU; for layers and optimizers, over the step of what they stand in for (the same network with ReLU, SGD or Adam); a dash says that it has not been measured.

| method | source | acts | needs a boundary | changes | cost |
|:--|:--|:--|:--|:--|--:|
"""  # noqa: E501

PART = "nothing by itself: it is a part of the model or of the loop"


def row(item: About) -> str:
    """One line of the table."""
    path = ROOT / item.page
    name = f"[`{item.name}`]({path.name})" if path.exists() else f"`{item.name}`"
    edits = plain_text(" ".join(item.edits.replace("``", "`").split()))
    edits = re.sub(r"\s*\([^()]*\)", "", edits).rstrip(".").replace("|", r"\|")
    boundary = "yes" if item.needs_boundary else "no"
    cost = f"{item.cost.step:.2f}" if item.cost else "–"
    return f"| {name} | {item.source or '–'} | {item.when or '–'} | {boundary} | {edits or PART} | {cost} |"


def table() -> str:
    """The whole page."""
    return INTRODUCTION + "\n".join(row(about(name)) for name in catalogue()) + "\n"


def without_costs(page: str) -> list[str]:
    """Its lines without the last column."""
    return [line.rpartition(" | ")[0] if line.startswith("| ") else line for line in page.splitlines()]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is not up to date")
    options = parser.parse_args(arguments)
    if not options.check:
        PAGE.write_text(table(), encoding="utf-8")
        return 0
    is_right = PAGE.exists() and without_costs(PAGE.read_text(encoding="utf-8")) == without_costs(table())
    if not is_right:
        print(f"{PAGE.relative_to(ROOT)} is not up to date: run python benchmarks/methods_table.py")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
