"""Write docs/streams.md, the table of all streams and a section for each, from the streams and their presets.

    python benchmarks/streams_table.py            # writes it
    python benchmarks/streams_table.py --check    # exit code 1 if it is not up to date

What a stream is stands in its docstring; what a preset sets, in ``pliant/bench/presets.py``.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pliant.bench.presets import PRESETS  # noqa: E402
from pliant.bench.streams import STREAMS, Traits, traits  # noqa: E402

PAGE = ROOT / "docs" / "streams.md"
INTRODUCTION = """# Streams

Written by `python benchmarks/streams_table.py` from the streams themselves. A stream gives random access: `task(index, seed)` returns the same bytes for the same arguments, whatever ran before, so a run can stop and go on anywhere and seeds need no order. `paper` is the published problem, with the network and the step size of its plain learner (where a paper gives a grid, one of its values); `mini` runs on a CPU in minutes. `pliant run STREAM --preset PRESET` runs one, `--set stream.OPTION=VALUE` changes it.

*Memory* is what one task of one seed takes, in the preset's sizes (the images that tasks are made of are held once besides). *Learns* names what is minimised and what is counted before each update. *Forgetting*: tests of earlier tasks still mean something, so that accuracy on them is recorded, too.

Multi-layer perceptrons start with He-uniform weights and zero biases, as those of Dohare et al.; the networks of other papers start as PyTorch's layers do. Every task of a stream is shown in whole passes, each in an order of its own.

Streams of agents (what they learn is `ppo`) have tasks that are no examples: a task is the time until the next change of an environment, and its score is a return. They need the extra `rl`.

**Files.** Where a data set is read from files, they are looked for in the folder that `--data-dir` names (the folder of the data set, or one that has it as a sub-folder), else in `$PLIANT_DATA_DIR`, else in `pliant` in the user's cache. What is missing is downloaded, where it can be, with its checksum (`pip install 'pliant[data]'`; MNIST needs nothing installed). CIFAR is read in the binary version, ImageNet 32x32 as one `.npy` file per class or in its published batches (npz or pickled; a pickle is read without running anything in it), MNIST and EMNIST as idx files, texts as UTF-8. A file that is truncated or another one is an error that names its size and checksum. Files that hold a subset of CIFAR are read if `--set stream.subset=N` says how many training images of each class there are; the subset is then part of the experiment's identity.

| stream | tasks differ in | learns | data | presets | memory of a task | forgetting |
|:--|:--|:--|:--|:--|--:|:--|
"""  # noqa: E501

DIFFER = {
    "permuted_digits": "a permutation of the pixels",
    "permuted_mnist": "a permutation of the pixels",
    "random_label_digits": "images and random labels",
    "stationary_digits": "nothing (the control)",
    "input_permuted": "a permutation of the pixels",
    "slowly_changing_regression": "one bit, or fifteen, of the inputs",
    "continual_imagenet": "the two classes",
    "class_incremental": "five more classes",
    "random_label_images": "the order of the labels",
    "label_permuted": "the names of the classes",
    "five_plus_one": "their classes, five or one",
    "data_growth": "the number of images",
    "continual_tiny_imagenet": "ten more classes",
    "label_noise": "the share of wrong labels, and images",
    "recurring": "which of a few concepts they have",
    "smooth_drift": "the mixture of two concepts",
    "day_and_weather": "light and weather",
    "regime_switching": "the dynamics of the series",
    "click_through": "tastes and vocabulary",
    "character_drift": "cipher, vocabulary or text",
    "changing_control": "goal, sensors and actions",
    "slippery_ant": "the friction of the ground",
    "ant": "nothing (the policy changes what it sees)",
    "hopper": "nothing",
    "walker": "nothing",
    "folder": "your data",
    "iterable": "your data",
}

EXAMPLES = {
    "folder": """```python
import numpy as np

from pliant.bench.streams import write_folder

months = ((np.random.rand(500, 20), np.random.randint(0, 3, 500)) for _ in range(24))
write_folder(months, "months", num_classes=3)
```

Then `pliant run folder --data-dir months --tasks 24 --method continual_backprop`. `write_folder` takes any iterable of tasks, of `(inputs, targets)`, or of these with test inputs and targets, of arrays or tensors, and holds one task at a time; it returns the checksum for `digest`.""",  # noqa: E501
    "iterable": """```python
import numpy as np


def months(seed):
    rng = np.random.default_rng(seed)
    while True:
        yield rng.random((500, 20)), rng.integers(0, 3, 500)
```

In `mine.py`, this runs with `pliant run iterable --set stream.source=mine:months stream.num_classes=3 --tasks 24`.""",
}


def markdown(text: str) -> str:
    """Docstring markup as Markdown, one line per paragraph."""
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    return "\n\n".join(re.sub(r":class:`(?:[\w.]*\.)?(\w+)`", r"`\1`", p.replace("``", "`")) for p in paragraphs)


def parts(cls: type) -> tuple[str, str]:
    """The text of a stream's docstring, and its source with the deviations."""
    text = inspect.getdoc(cls) or ""
    text = text.partition("\n>>> ")[0].rstrip()
    body, _, rest = text.partition("\nAttributes:\n")
    source = re.search(r"^Source: (.*)", rest, re.MULTILINE | re.DOTALL)
    return body.strip(), source[1].strip() if source else ""


def built(name: str, settings: dict[str, Any]) -> Traits:
    """What the stream of a preset says of itself."""
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in settings["stream"].items()}
    return traits(STREAMS[name](**options))


def size(num_bytes: int | None) -> str:
    """Bytes for people."""
    if num_bytes is None:
        return "–"
    for unit in ("kB", "MB"):
        num_bytes = num_bytes / 1000  # type: ignore[assignment]
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
    return f"{num_bytes / 1000:.3g} GB"


def needed(name: str, settings: dict[str, Any]) -> str:
    """The data set that a preset needs."""
    return built(name, settings).requires_data or "none"


def row(name: str) -> str:
    """One line of the table."""
    presets = PRESETS.get(name, {})
    if not presets:
        return f"| [`{name}`](#{name}) | {DIFFER[name]} | what you say | yours | – | – | – |"
    abouts = {preset: built(name, settings) for preset, settings in presets.items()}
    first = next(iter(abouts.values()))
    data = list(dict.fromkeys(needed(name, settings) for settings in presets.values()))
    memory = ", ".join(dict.fromkeys(size(about.task_bytes) for about in abouts.values()))
    forgetting = "yes" if any(about.measures_past for about in abouts.values()) else "no"
    loss = first.loss.replace("_", " ")
    return (
        f"| [`{name}`](#{name}) | {DIFFER[name]} | {loss}, {first.score} | {', '.join(data)} "
        f"| {', '.join(f'`{preset}`' for preset in presets)} | {memory} | {forgetting} |"
    )


def setting(options: dict[str, Any]) -> str:
    """Options in one line."""
    return ", ".join(f"{key}={value}" for key, value in options.items() if key != "name").replace("'", "")


def section(name: str) -> str:
    """What a stream is, where it comes from, and its presets."""
    cls = STREAMS[name]
    body, source = parts(cls)
    lines = [f"## {name}", "", markdown(body)]
    if source:
        lines += ["", f"**Source.** {markdown(source)}"]
    if name in EXAMPLES:
        lines += ["", EXAMPLES[name]]
    presets = PRESETS.get(name, {})
    if presets:
        lines += ["", "| preset | tasks | data | stream | network | optimizer |", "|:--|--:|:--|:--|:--|:--|"]
    for preset, settings in presets.items():
        network, optimizer = settings["model"], settings["optimizer"]
        schedule = settings.get("schedule", {})
        steps = f"; step sizes: {schedule['name']}, {setting(schedule)}" if schedule else ""
        cells = [
            f"`{preset}`",
            f"{settings['num_tasks']:,}",
            needed(name, settings),
            setting(settings["stream"]) or "–",
            f"{network['name']} {setting(network)}".rstrip(),
            f"{optimizer['name']} {setting(optimizer)}{steps}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(line.rstrip() for line in lines)


def page() -> str:
    """All of it."""
    table = INTRODUCTION + "\n".join(row(name) for name in STREAMS)
    return table + "\n\n" + "\n\n".join(section(name) for name in STREAMS) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is not up to date")
    options = parser.parse_args(arguments)
    if not options.check:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    is_right = PAGE.exists() and PAGE.read_text(encoding="utf-8") == page()
    if not is_right:
        print(f"{PAGE.relative_to(ROOT)} is not up to date: run python benchmarks/streams_table.py")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
