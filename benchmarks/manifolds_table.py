"""Measure which optimizers leave the cloning manifold, and write the table in docs/manifolds.md.

python benchmarks/manifolds_table.py            # about a minute on one core
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pliant import manifolds  # noqa: E402
from pliant.manifolds import Confinement  # noqa: E402

PAGE = ROOT / "docs" / "manifolds.md"
MARKERS = ("<!-- optimizers -->", "<!-- /optimizers -->")
STEPS, FACTOR = 500, 3

o = torch.optim
OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "SGD, lr 0.05": lambda m: o.SGD(m.parameters(), lr=0.05),
    "SGD, lr 0.05, Nesterov 0.9": lambda m: o.SGD(m.parameters(), lr=0.05, momentum=0.9, nesterov=True),
    "RMSprop, lr 0.001": lambda m: o.RMSprop(m.parameters(), lr=1e-3),
    "Adagrad, lr 0.01": lambda m: o.Adagrad(m.parameters(), lr=1e-2),
    "Rprop, lr 0.001": lambda m: o.Rprop(m.parameters(), lr=1e-3),
    "Adam, lr 0.001": lambda m: o.Adam(m.parameters(), lr=1e-3),
    "SGD, lr 0.05, decay 0.05": lambda m: o.SGD(m.parameters(), lr=0.05, weight_decay=0.05),
    "AdamW, lr 0.003, decay 0.05": lambda m: o.AdamW(m.parameters(), lr=3e-3, weight_decay=0.05),
    "Adam, lr 0.003, coupled decay 0.05": lambda m: o.Adam(m.parameters(), lr=3e-3, weight_decay=0.05),
}


def measured(seed: int, make: Callable[[nn.Module], Optimizer]) -> tuple[Confinement, Confinement]:
    """From plain copies, and from redistributed ones."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(64, 5).double(), torch.randn(64, 2).double()
    wide = manifolds.clone(model, FACTOR, x)

    def batch(step: int):
        rows = torch.randint(0, 64, (16,), generator=torch.Generator().manual_seed(1000 * seed + step))
        return x[rows], lambda output: (output - y[rows]).square().mean()

    def run() -> Confinement:
        return manifolds.confinement(wide.model, wide.partition, batch, no_loss, make, steps=STEPS)

    plain = run()
    wide.model.load_state_dict(manifolds.redistributed(wide.model, wide.partition, seed=seed), strict=False)
    return plain, run()


def no_loss(output: torch.Tensor) -> torch.Tensor:
    raise AssertionError("every batch brings its own loss")


def between(values: list[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def table(seeds: int) -> str:
    rows = [
        "| optimizer | distance, from plain copies | distance, from a redistributed leaf | `‖R(t)‖/‖R(0)‖` | verdict |",
        "|:--|:--|:--|:--|:--|",
    ]
    for name, make in OPTIMIZERS.items():
        found = [measured(seed, make) for seed in range(seeds)]
        plain, leaf = [a.distance for a, _ in found], [b.distance for _, b in found]
        ratios = [b.residual_ratio for _, b in found]
        drift = max(b.residual_drift for _, b in found)
        verdict = "leaves" if max(leaf) > 1e-9 else "moves between leaves" if drift > 1e-9 else "stays"
        rows.append(
            f"| {name} | {between(plain, '.0e')} | {between(leaf, '.0e')} | {between(ratios, '.6f')} | {verdict} |"
        )
        print(rows[-1], flush=True)
    laws = (1 - 0.05 * 0.05) ** STEPS, (1 - 3e-3 * 0.05) ** STEPS
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.strip()
    width = 4 * FACTOR
    note = (
        f"Smallest to largest over {seeds} seeds (network, data, batches and redistribution), {STEPS} steps of 16 of "
        f"64 samples, random labels, float64, tanh network 5-{width}-{width}-2 in blocks of {FACTOR}; distance to the "
        f"cloning manifold relative to the norm of the weights. The law `(1 - lr·decay)^t` gives {laws[0]:.6f} for SGD "
        f"and {laws[1]:.6f} for AdamW. `python benchmarks/manifolds_table.py --seeds {seeds}` at commit {commit}, "
        f"PyTorch {torch.__version__.partition('+')[0]}."
    )
    return "\n".join([*rows, "", note])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text = PAGE.read_text(encoding="utf-8")
    start, end = MARKERS
    made = f"{start}\n{table(arguments.seeds)}\n{end}"
    PAGE.write_text(re.sub(f"{start}.*?{end}", lambda _: made, text, flags=re.DOTALL), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
