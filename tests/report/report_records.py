"""Small made-up results for the tests of the reports."""

import math
from collections.abc import Sequence

from pliant.records import Record, experiment_id

STREAM = {"name": "digits", "num_tasks": 20}
ABOUT = {"title": "Digits with random labels", "description": "Labels drawn anew."}


def run(
    label: str | None = "No protection",
    methods: Sequence[dict] = (),
    *,
    seeds: Sequence[int] = (0, 1, 2),
    start: float = 0.8,
    end: float = 0.2,
    num_tasks: int = 20,
    stream: dict | None = None,
    about: dict | None = None,
    failed: Sequence[int] = (),
    diverged: Sequence[int] = (),
    names: Sequence[str] = ("online_accuracy", "dead_fraction", "weight_magnitude"),
    meta: dict | None = None,
    **config,
) -> list[Record]:
    """One experiment: every series goes straight from ``start`` to ``end``, moved by a hundredth per seed."""
    experiment = {
        "stream": stream or STREAM,
        "methods": list(methods),
        "optimizer": {"name": "SGD", "lr": 0.1},
    } | config
    records = []
    for seed in seeds:
        length = num_tasks // 2 if seed in failed else num_tasks
        line = [start + (end - start) * t / max(1, num_tasks - 1) + 0.01 * seed for t in range(length)]
        if seed in diverged:
            line[-3:] = [math.nan] * 3
        records.append(
            Record(
                experiment=experiment,
                experiment_id=experiment_id(experiment, str(experiment["stream"]["name"]), label or "none"),
                seed=seed,
                status="failed" if seed in failed else "complete",
                error="the loss is NaN" if seed in failed else None,
                series=dict.fromkeys(names, line),
                meta={"pliant": "0.1.0", "torch": "2.13.0", "commit": "abc", "started": "2025-01-02T03:04:05"}
                | ({} if label is None else {"label": label})
                | {"stream": about if about is not None else {} if stream else ABOUT}
                | (meta or {}),
            )
        )
    return records
