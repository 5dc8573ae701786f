"""What spectra cost on one thread: the exact Gauss-Newton spectrum, products with vectors, Lanczos.

    python benchmarks/speed/spectrum.py            # a minute; writes results/speed/spectrum.json and the page
    python benchmarks/speed/spectrum.py --table    # the table of the last run, in Markdown

The network is 784-100-100-100-10 (99,710 parameters) with cross-entropy on random inputs and labels, in float32. The
product by hand is ``torch.func.jvp(torch.func.grad(loss))`` of ``functional_call``; it takes turns with the library's.
Medians over the repetitions are reported, with the smallest and the largest; processor time stands beside wall time,
since the machine may be shared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.speed.overhead import ENVIRONMENT  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "speed" / "spectrum.json"
PAGE = ROOT / "docs" / "spectrum.md"
REPEATS = 7
SEED = 0


def timed(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Any]:
    """Seconds of each, in turn, after one call that is not counted."""
    for function in functions.values():
        function()
    found: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            found[name]["wall"].append(time.perf_counter() - wall)
            found[name]["cpu"].append(time.process_time() - cpu)
    return {
        name: {
            clock: {"median": statistics.median(values), "min": min(values), "max": max(values)}
            for clock, values in clocks.items()
        }
        for name, clocks in found.items()
    }


def measure() -> dict[str, Any]:
    """Everything, in this process."""
    import torch
    from torch import nn
    from torch.nn import functional

    from benchmarks.speed.methods import processor
    from pliant.bench.environment import run_meta
    from pliant.spectrum import (
        basis_bytes,
        ggn_operator,
        ggn_spectrum,
        gram_bytes,
        hessian_operator,
        hessian_spectrum,
        ntk_spectrum,
    )

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    widths = [784, 100, 100, 100]
    layers: list[nn.Module] = []
    for index in range(3):
        layers += [nn.Linear(widths[index], widths[index + 1]), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(100, 10))
    small = torch.randn(200, 784), torch.randint(10, (200,))
    large = torch.randn(2000, 784), torch.randint(10, (2000,))
    few = small[0][:50], small[1][:50]
    hessian, ggn = hessian_operator(model, large), ggn_operator(model, large)
    vector = torch.randn(hessian.dimension)
    parameters = {name: item.detach() for name, item in model.named_parameters()}
    tangent = hessian.problem.named(vector)

    def loss(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional.cross_entropy(torch.func.functional_call(model, tensors, (large[0],)), large[1])

    def by_hand() -> Any:
        return torch.func.jvp(torch.func.grad(loss), (parameters,), (tangent,))

    def training_step() -> Any:
        return torch.autograd.grad(functional.cross_entropy(model(large[0]), large[1]), list(model.parameters()))

    results = timed(
        {
            "exact Gauss-Newton spectrum, 200 samples": lambda: ggn_spectrum(model, small),
            "exact Gauss-Newton spectrum, 50 samples": lambda: ggn_spectrum(model, few),
            "exact kernel spectrum, 200 samples": lambda: ntk_spectrum(model, small[0]),
        },
        REPEATS,
    )
    results |= timed(
        {
            "product with the Hessian, 2000 samples": lambda: hessian(vector),
            "the same by hand, jvp(grad)": by_hand,
            "product with the Gauss-Newton matrix, 2000 samples": lambda: ggn(vector),
            "gradient, 2000 samples": training_step,
        },
        3 * REPEATS,
    )
    lanczos = {"100 Lanczos steps with the Hessian, 2000 samples": lambda: hessian_spectrum(model, large, num_probes=1)}
    results |= timed(lanczos, 3)
    product, hand = (
        results[name] for name in ("product with the Hessian, 2000 samples", "the same by hand, jvp(grad)")
    )
    return {
        "seconds": results,
        "product_over_by_hand": {clock: product[clock]["median"] / hand[clock]["median"] for clock in ("wall", "cpu")},
        "bytes": {
            "Gram matrix of 200 samples": gram_bytes(200 * 9, hessian.dimension),
            "basis of 100 steps": basis_bytes(hessian.dimension, 100),
        },
        "config": {"widths": [*widths, 10], "dtype": "float32", "seed": SEED, "repeats": REPEATS, "threads": 1},
        "meta": {**run_meta(), "processor": processor(), "load": os.getloadavg()[0]},
    }


def table(results: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| | median (min to max), seconds | processor time |", "|---|---|---|"]
    for name, clocks in results["seconds"].items():
        wall, cpu = clocks["wall"], clocks["cpu"]
        lines.append(
            f"| {name} | {wall['median']:.3f} ({wall['min']:.3f} to {wall['max']:.3f}) | {cpu['median']:.3f} |"
        )
    ratio = results["product_over_by_hand"]
    meta = results["meta"]
    lines += [
        "",
        f"The library's product takes {ratio['wall']:.2f} times the one by hand ({ratio['cpu']:.2f} by CPU time). "
        f"784-100-100-100-10, float32, one thread, seed {results['config']['seed']}; {meta['processor']}, PyTorch "
        f"{meta['torch']}, load {meta['load']:.1f}, commit {(meta['git_commit'] or 'unknown')[:9]}.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="measure nothing, print the table of the last run")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure()))
        return
    if not options.table:
        command = [sys.executable, __file__, "--here"]
        done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"failed:\n{done.stderr}")
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(json.loads(done.stdout.splitlines()[-1]), indent=1) + "\n", encoding="utf-8")
    text = table(json.loads(RESULTS.read_text(encoding="utf-8")))
    print(text)
    if not options.table:
        from benchmarks.speed.methods import between_markers

        PAGE.write_text(between_markers(PAGE.read_text(encoding="utf-8"), text), encoding="utf-8")


if __name__ == "__main__":
    main()
