"""How long it takes to find the units of large networks, on one thread.

    python benchmarks/speed/discovery.py           # measures, and writes benchmarks/results/speed/discovery.json

Each network is built from its configuration (nothing is downloaded) in a process of its own. The first call includes
what PyTorch sets up once per process; the table gives it and the median of three later calls, in CPU time, which
other programs on the machine disturb less. The records have the wall time, too.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results" / "speed" / "discovery.json"
NETWORKS = ("gpt2, 12 layers", "vit base, 12 layers", "resnet-like, 16 convolutions")


def build(name: str) -> tuple[Any, Any]:
    """A network and one small batch."""
    import torch
    from torch import nn

    if name.startswith("gpt2"):
        from transformers import GPT2Config, GPT2LMHeadModel

        ids = torch.randint(0, 50257, (2, 16))
        return GPT2LMHeadModel(GPT2Config()), {"input_ids": ids, "labels": ids}
    if name.startswith("vit"):
        from transformers import ViTConfig, ViTForImageClassification

        return ViTForImageClassification(ViTConfig()), {"pixel_values": torch.randn(2, 3, 224, 224)}
    layers: list[nn.Module] = []
    for index in range(16):
        layers += [nn.Conv2d(3 if index == 0 else 128, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)), torch.randn(2, 3, 32, 32)


def measure(name: str) -> dict[str, Any]:
    import torch

    import pliant

    torch.set_num_threads(1)
    model, batch = build(name)
    seconds, cpu_seconds = [], []
    for _ in range(4):
        start, cpu_start = time.perf_counter(), time.process_time()
        units = pliant.find_units(model, batch)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "network": name,
        "parameters": parameters,
        "groups": len(units),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
    }


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
        return
    from pliant.bench.environment import run_meta

    results = []
    print("| network | parameters | groups | first call | later calls |\n|---|---|---|---|---|")
    for name in NETWORKS:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, __file__, name], env=environment, capture_output=True, text=True, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        results.append(found)
        first, *later = found["cpu_seconds"]
        millions = found["parameters"] / 1e6
        print(f"| {name} | {millions:.1f} M | {found['groups']} | {first:.1f} s | {statistics.median(later):.1f} s |")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"meta": run_meta(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
