"""What each method costs: over a plain step, over the same mathematics by hand, in memory, and in its rare steps.

    python benchmarks/speed/methods.py                  # all methods, a few minutes each; it goes on where it stopped
    python benchmarks/speed/methods.py --only redo l2   # some of them
    python benchmarks/speed/methods.py --again          # also those that have been measured
    python benchmarks/speed/methods.py --quick          # a look: few steps, nothing in the repository is written
    python benchmarks/speed/methods.py --spread         # measure nothing; only write what the records say elsewhere

Every file of ``benchmarks/speed/minimal`` is one method, timed on the network of its ``base.py`` with Adam, on one
thread, in a process of its own; ``parts.py`` has those that are layers or optimizers, and what a plain step is there.
Four copies take turns on the same batches, a block of steps each: plain, plain again, the method, and the method by
hand. A round gives one ratio of times per copy; medians are reported. A method counts only if the two plain copies
agree within one per cent, by the wall clock or else by processor time, and is otherwise measured again. Blocks are
short, so that the median does not see what happens once in a thousand steps:
the share of time inside the method is measured by itself, over whole periods.

Results with configuration, versions and commit go to ``benchmarks/results/speed/methods.json``; what counts goes into
``pliant/interventions/costs.json``, which ``pliant show`` and ``pliant list`` read, and between the markers of the
pages in ``docs/methods``.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.speed.overhead import BLOCK_SECONDS, ROUNDS, TRIES, in_turn, measure_in_process, ratios, trusted  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "speed" / "methods.json"
COSTS = ROOT / "pliant" / "interventions" / "costs.json"
PAGES = ROOT / "docs" / "methods"
ARMS = ("plain", "plain_again", "method", "by_hand")
EVENTS = ("before_step", "after_step", "penalty", "on_batch")
OPTIMIZER = {"name": "adam", "lr": 1e-4}
WARM_UP, NUM_BATCHES, NUM_BOUNDARIES = 40, 32, 5
LONGEST_PERIOD = 200
"""Methods with a longer period are timed with one of this length, and their share of time is scaled to their own."""


def names() -> list[str]:
    """The interventions that are written by hand, by name."""
    return sorted(path.stem for path in (Path(__file__).parent / "minimal").glob("[!_]*.py") if path.stem != "base")


def minimal(name: str) -> Any:
    """The module with ``METHOD`` and ``ByHand``."""
    return importlib.import_module(f"benchmarks.speed.minimal.{name}")


def parts() -> Mapping[str, Any]:
    """The layers and optimizers, by name."""
    from benchmarks.speed.parts import PARTS

    return PARTS


def described(name: str) -> str:
    """The method as it is timed."""
    return parts()[name].text if name in parts() else repr(minimal(name).METHOD)


class Arm:
    """One copy of the network and its loop."""

    def __init__(self, kind: str, name: str, method: Any = None) -> None:
        import torch

        import pliant
        from benchmarks.speed.minimal.base import BATCH_SIZE, NUM_CLASSES, NUM_INPUTS, Minimal, network
        from pliant.interventions.base import Intervention

        if name in parts():
            self.model, self.optimizer = parts()[name].build(kind)
        else:
            self.model = network()
            self.optimizer = torch.optim.Adam(self.model.parameters(), lr=OPTIMIZER["lr"])
        generator = torch.Generator().manual_seed(0)
        self.batches = [
            (
                torch.rand(BATCH_SIZE, NUM_INPUTS, generator=generator),
                torch.randint(NUM_CLASSES, (BATCH_SIZE,), generator=generator),
            )
            for _ in range(NUM_BATCHES)
        ]
        self.done, self.handle, self.by_hand = 0, None, Minimal(self.model, self.optimizer)
        self.calls: dict[str, bool] = {}
        if name in parts():
            pass  # nothing is attached, and nothing is done by hand between the parts of a step
        elif kind == "method":
            method = minimal(name).METHOD if method is None else method
            self.handle = pliant.attach(self.model, self.optimizer, method, example_inputs=self.batches[0][0])
            overridden = {call: getattr(type(method), call) is not getattr(Intervention, call) for call in EVENTS}
            self.calls = {"batch": overridden["on_batch"], "penalty": overridden["penalty"]}
        elif kind == "by_hand":
            self.by_hand = minimal(name).ByHand(self.model, self.optimizer)

    def run(self, steps: int) -> tuple[float, float]:
        """Train; wall and processor seconds."""
        wall, cpu = time.perf_counter(), time.process_time()
        if self.handle is None:
            self._run_by_hand(steps)
        else:
            self._run_method(steps)
        result = time.perf_counter() - wall, time.process_time() - cpu
        self.done += steps
        return result

    def _run_by_hand(self, steps: int) -> None:
        from torch.nn.functional import cross_entropy

        model, optimizer, hand = self.model, self.optimizer, self.by_hand
        for step in range(self.done, self.done + steps):
            x, y = hand.extend(*self.batches[step % NUM_BATCHES])
            optimizer.zero_grad()
            hand.add_to_loss(cross_entropy(model(x), y), x).backward()
            hand.before_step()
            optimizer.step()
            hand.after_step()

    def _run_method(self, steps: int) -> None:
        from torch.nn.functional import cross_entropy

        model, optimizer, handle = self.model, self.optimizer, self.handle
        batched, penalised = self.calls["batch"], self.calls["penalty"]
        for step in range(self.done, self.done + steps):
            x, y = self.batches[step % NUM_BATCHES]
            if batched:
                x, y = handle.batch((x, y))
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            if penalised:
                loss = loss + handle.penalty(loss=loss, reference=x)
            loss.backward()
            optimizer.step()


def measure(name: str, rounds: int, quick: bool) -> dict[str, Any]:
    """One method, in this process."""
    import torch

    torch.set_num_threads(1)
    arms = {kind: Arm(kind, name) for kind in ARMS}
    warm_up = 4 if quick else WARM_UP
    step = min(arm.run(warm_up)[0] for arm in arms.values()) / warm_up
    block = 4 if quick else max(8, 8 * round(BLOCK_SECONDS / step / 8))
    times = in_turn(arms, rounds, block)
    clocks, over_hand = ratios(times, "plain"), ratios(times, "by_hand")
    clock = trusted(clocks)
    plain = statistics.median(t[0] for t in times["plain"]) / block
    parameters = num_bytes(dict(arms["plain"].model.named_parameters()))
    added = num_bytes(dict(arms["method"].model.named_parameters())) - parameters
    if name in parts():
        added += num_bytes(arms["method"].optimizer.state_dict()) - num_bytes(arms["plain"].optimizer.state_dict())
        share, boundary, kept = 0.0, 0.0, 0
    else:
        share, boundary = inside(name, minimal(name).METHOD, plain, quick)
        kept = num_bytes(arms["method"].handle.state_dict())
    return {
        "method": described(name),
        "step": clocks[clock or "wall"]["method"]["median"],
        "by_hand": over_hand[clock or "wall"]["method"]["median"],
        "memory": (added + kept) / parameters,
        "acting": share,
        "boundary": boundary,
        "clock": clock,
        "ratios": clocks,
        "microseconds_per_step": plain * 1e6,
        "block": block,
        "rounds": rounds,
        **({"against": parts()[name].against} if name in parts() else {"optimizer": OPTIMIZER}),
    }


def num_bytes(tree: Any) -> int:
    """Bytes of all tensors in nested containers, random states and counts of resets left out."""
    import torch

    if isinstance(tree, torch.Tensor):
        return tree.numel() * tree.element_size()
    if isinstance(tree, Mapping):
        return sum(num_bytes(value) for key, value in tree.items() if key not in ("random", "num_resets", "schedules"))
    return sum(map(num_bytes, tree)) if isinstance(tree, (list, tuple)) else 0


def inside(name: str, method: Any, plain: float, quick: bool) -> tuple[float, float]:
    """The share of training time inside the method's events, and what a task boundary costs in plain steps."""
    longest = 8 if quick else LONGEST_PERIOD
    period = getattr(method, "every", None)
    is_long = isinstance(period, int) and period > longest
    timed = dataclasses.replace(method, every=longest) if is_long else method
    arm, spent = Arm("method", name, timed), [0.0]
    with stopwatch(type(method), spent):
        arm.run(longest)  # state is made, kernels are warm
        spent[0] = 0.0
        wall, _ = arm.run(2 * longest)
    scale = longest / period if is_long and isinstance(period, int) else 1.0
    share = scale * spent[0] / (wall - spent[0] * (1 - scale))
    costs = []
    for _ in range(NUM_BOUNDARIES if method.needs_boundary else 0):
        start = time.perf_counter()
        arm.handle.task_boundary(arm.batches[0])
        costs.append(time.perf_counter() - start)
        arm.run(1)
    return share, statistics.median(costs) / plain if costs else 0.0


class stopwatch:  # noqa: N801 (reads like the function it replaces)
    """Adds up the seconds inside a method's events, those of the base class left alone."""

    def __init__(self, cls: type[Any], spent: list[float]) -> None:
        from pliant.interventions.base import Intervention

        self.cls, self.spent = cls, spent
        events = {name: getattr(cls, name) for name in EVENTS}
        self.events = {name: event for name, event in events.items() if event is not getattr(Intervention, name)}
        self.inherited = [name for name in self.events if name not in vars(cls)]

    def __enter__(self) -> None:
        for name, event in self.events.items():
            setattr(self.cls, name, self._timed(event))

    def __exit__(self, *_: object) -> None:
        for name, event in self.events.items():
            setattr(self.cls, name, event)
        for name in self.inherited:
            delattr(self.cls, name)

    def _timed(self, event: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(event)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return event(*args, **kwargs)
            finally:
                self.spent[0] += time.perf_counter() - start

        return timed


def processor() -> str:
    """The machine's own name of its processor."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def spread(results: Mapping[str, Any], costs: Path = COSTS, pages: Path = PAGES) -> list[str]:
    """Write what counts into the package's data file and the pages; returns the names."""
    from pliant.bench.catalogue import Cost

    fields = [field.name for field in dataclasses.fields(Cost) if field.name != "against"]
    counted = {name: item for name, item in sorted(results.items()) if item["clock"] is not None}
    data = {
        "about": "written by benchmarks/speed/methods.py",
        "methods": {
            name: {key: round(item[key], 4) for key in fields}
            | ({"against": item["against"]} if "against" in item else {})
            for name, item in counted.items()
        },
    }
    costs.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    for name, item in counted.items():
        page = pages / f"{name}.md"
        if page.exists():
            meta = item["meta"]
            where = f"{meta['processor']}, PyTorch {meta['torch']}, commit {(meta['git_commit'] or 'unknown')[:9]}"
            with_adam = "" if "against" in item else " Adam,"
            setting = f"784-512-512-512-10, batch 128,{with_adam} one thread; {where}"
            text = f"Measured with `{item['method']}`: {Cost.of(item).sentence()}. {setting}."
            page.write_text(between_markers(page.read_text(encoding="utf-8"), text), encoding="utf-8")
    return list(counted)


def between_markers(page: str, text: str, mark: str = "cost") -> str:
    """The page with this text between its markers."""
    before, _, rest = page.partition(f"<!-- {mark} -->\n")
    _, _, after = rest.partition(f"<!-- /{mark} -->")
    return f"{before}<!-- {mark} -->\n{text}\n<!-- /{mark} -->{after}"


def chosen(options: argparse.Namespace, known: Mapping[str, Any]) -> Iterator[str]:
    """What is to be measured: named or all, without what was measured in the same way."""
    all_names = [*names(), *parts()]
    wrong = set(options.only) - set(all_names)
    if wrong:
        raise SystemExit(f"no such method: {', '.join(sorted(wrong))}; there are {', '.join(all_names)}")
    for name in options.only or all_names:
        item = known.get(name)
        same = item is not None and item["method"] == described(name) and item["rounds"] == options.rounds
        if options.again or not same:
            yield name


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="METHOD", help="these methods")
    parser.add_argument("--rounds", type=int, help="rounds of blocks")
    parser.add_argument("--again", action="store_true", help="measure what has been measured, too")
    parser.add_argument("--quick", action="store_true", help="few steps; print, and write only to --out")
    parser.add_argument("--spread", action="store_true", help="measure nothing, write costs.json and the pages")
    parser.add_argument("--out", type=Path, help=f"where results go (default: {RESULTS.relative_to(ROOT)})")
    parser.add_argument("--method", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (2 if options.quick else ROUNDS)
    if options.method:
        print(json.dumps(measure(options.method, options.rounds, options.quick)))
        return
    from pliant.bench.environment import run_meta

    out = options.out or (None if options.quick else RESULTS)
    known: dict[str, Any] = json.loads(out.read_text())["methods"] if out is not None and out.exists() else {}
    for name in [] if options.spread else chosen(options, known):
        command = [__file__, "--method", name, "--rounds", str(options.rounds), *(["--quick"] if options.quick else [])]
        result = measure_in_process(name, command, 1 if options.quick else TRIES)
        known[name] = {**result, "meta": {**run_meta(), "threads": 1, "processor": processor()}}
        by = {"wall": "wall clock", "cpu": "processor time", None: "not counted"}[result["clock"]]
        print(
            f"{name}: {result['step']:.3f} of a plain step, {result['by_hand']:.3f} of the one by hand, memory "
            f"{result['memory']:.3f}, acting {result['acting']:.4f}, boundary {result['boundary']:.2f} ({by})",
            flush=True,
        )
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps({"methods": dict(sorted(known.items()))}, indent=1) + "\n", encoding="utf-8")
    if out == RESULTS and not options.quick:
        print(f"in costs.json and the pages: {', '.join(spread(known)) or 'nothing'}")


if __name__ == "__main__":
    main()
