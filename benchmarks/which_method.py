"""Which method should I use? The answer of our own records: every method, on every stream that it was measured on.

    python benchmarks/which_method.py        # writes the tables of docs/which_method.md, from the committed records

For each stream of each study: the mean online score over the whole stream, minus that of plain training with the same
optimizer on the same seeds, with its 95 % interval (t, over seeds). A method is *ahead* where the interval lies on the
good side of zero after Holm's correction for all methods of the stream, *behind* where it lies on the bad side.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pliant.bench.names import snake_case  # noqa: E402
from pliant.intervals import Estimate, paired_difference  # noqa: E402
from pliant.records import read_records, write_atomically  # noqa: E402
from pliant.report import summarise  # noqa: E402
from pliant.report.standings import averages  # noqa: E402
from pliant.report.summary import Method, Stream  # noqa: E402
from pliant.statistics import holm, p_value  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "which_method.md"
COSTS = ROOT / "pliant" / "interventions" / "costs.json"
ALSO_CALLED = {"inserted LayerNorm": "LayerNorm"}
"""Two studies have another name for it."""
STUDIES = {
    "demo": ("demo", "results/demo.md"),
    "comparison": ("all methods", "results/comparison.md"),
    "leaderboard": ("leaderboard", "results/leaderboard.md"),
}
"""Folder of records: what the study is called, and its page."""

PLAIN = "no protection"
OPTIMIZERS = {"momentum 0.9": "no protection, momentum 0.9", "Adam": "no protection, Adam"}
_FEWEST = 3  # methods of a stream: a study that has only begun is left out
AHEAD, BEHIND, OPEN = "▲", "▼", "·"


@dataclass(frozen=True)
class Column:
    """One stream of one study.

    Args:
        study: Folder of the study.
        stream: The stream.
        title: Its title.
        control: Whether nothing changes in it.
        gains: Label of a method to its difference to plain training.
        ahead: Labels that are ahead, and those that are behind.
        percent: Whether differences are shown in points.
        sign: 1 where more is better, -1 where less is.
    """

    study: str
    stream: str
    title: str
    control: bool
    gains: dict[str, Estimate]
    ahead: frozenset[str]
    behind: frozenset[str]
    percent: bool
    sign: int

    def costs(self, label: str, points: float) -> bool:
        """Whether it is behind by at least so many points of accuracy."""
        return self.percent and -100 * self.gains[label].mean >= points

    def cell(self, label: str) -> str:
        """The difference and whether it is one."""
        if label not in self.gains:
            return "–"
        found = self.gains[label]
        mark = AHEAD if label in self.ahead else BEHIND if label in self.behind else OPEN
        scale, digits = (100, 1) if self.percent else (1, 3)
        half = (found.high - found.low) / 2
        return f"{mark} {scale * found.mean:+.{digits}f} ± {scale * half:.{digits}f}".replace("-", "−")


def _is_optimizer(label: str) -> bool:
    return label in OPTIMIZERS.values()


def _plain_of(method: Method, methods: Iterable[Method]) -> Method | None:
    """Plain training with the optimizer that the method was run with, where the study has it."""
    plain = {m.label: m for m in methods if m.label == PLAIN or _is_optimizer(m.label)}
    name = str(method.experiment["optimizer"]["name"])
    momentum = float(method.experiment["optimizer"].get("momentum", 0.0))
    special = {"adam": "no protection, Adam", "adam_equal_betas": "no protection, Adam"}
    wanted = special.get(name, "no protection, momentum 0.9" if momentum else PLAIN)
    return plain.get(wanted, plain.get(PLAIN))


def column(study: str, stream: Stream) -> Column | None:
    """Compare every method of a stream with plain training; None where that is missing, or most of the methods are."""
    metric = stream.score
    if metric is None:
        return None
    gains: dict[str, Estimate] = {}
    for method in stream.methods:
        base = _plain_of(method, stream.methods)
        if base is None or method is base or method.label == PLAIN or _is_optimizer(method.label):
            continue
        gain = paired_difference(averages(method, metric.name), averages(base, metric.name))
        if gain.num >= 2:
            gains[ALSO_CALLED.get(method.label, method.label)] = gain
    if len(gains) < _FEWEST:
        return None
    adjusted = dict(zip(gains, holm([p_value(gain) for gain in gains.values()]), strict=True))
    sure = {label for label, p in adjusted.items() if p < 0.05}
    sign = int(metric.sign)
    return Column(
        study=study,
        stream=stream.name,
        title=stream.title,
        control=stream.control,
        gains=gains,
        ahead=frozenset(label for label in sure if sign * gains[label].mean > 0),
        behind=frozenset(label for label in sure if sign * gains[label].mean < 0),
        percent=metric.percent,
        sign=sign,
    )


def columns() -> list[Column]:
    """All streams of all studies with committed records, in the order of the studies."""
    found = []
    for study in STUDIES:
        if (RESULTS / study).is_dir():
            streams = summarise(read_records(RESULTS / study))
            found += [made for stream in streams if (made := column(study, stream)) is not None]
    return found


def _labels(found: Iterable[Column]) -> list[str]:
    """Methods, those that are ahead most often first, then those behind least often."""
    found = [one for one in found if not one.control]
    labels = list(dict.fromkeys(label for one in found for label in one.gains))

    def order(label: str) -> tuple[float, float, str]:
        tried = [one for one in found if label in one.gains]
        ahead, behind = (sum(label in getattr(one, where) for one in tried) for where in ("ahead", "behind"))
        return (-(ahead - behind) / len(tried), -ahead, label)

    return sorted(labels, key=order)


def _cost(label: str, costs: dict[str, dict[str, float]]) -> str:
    known = costs.get(_key(label, costs))
    return "–" if known is None else f"{known['step']:.2f}"


def _key(label: str, known: Iterable[str]) -> str:
    """The name of the method that a label begins with or is."""
    plain = label.lower().replace(" ", "_").replace("-", "_")
    names = {name.replace("_", ""): name for name in known}
    special = {
        "adam_with_equal_betas": "adam_equal_betas",
        "adaptive_normalisation": "adaptive_normalization",
        "fresh_network_per_task": "fresh_start",
        "inserted_dropout": "insert_dropout",
        "inserted_layernorm": "insert_normalization",
        "l2_er": "l2_effective_rank",
        "layernorm": "insert_normalization",
        "layernorm,_normalise_and_project": "normalize_and_project",
        "optimizer_reset,_momentum_0.9": "optimizer_reset",
    }
    return special.get(plain, names.get(plain.replace("_", ""), snake_case(label)))


def _link(label: str) -> str:
    page = PAGE.parent / "methods" / f"{_key(label, (p.stem for p in (PAGE.parent / 'methods').glob('*.md')))}.md"
    return f"[{label}](methods/{page.name})" if page.exists() else label


def table(found: list[Column]) -> str:
    """Every method by every stream, and what each costs."""
    costs = json.loads(COSTS.read_text(encoding="utf-8"))["methods"]
    heads = [f"{one.title} ([{STUDIES[one.study][0]}]({STUDIES[one.study][1]}))" for one in found]
    heads = [f"*nothing changes:* {head}" if one.control else head for one, head in zip(found, heads, strict=True)]
    lines = ["| method | " + " | ".join(heads) + " | a step costs |", "|:--|" + "--:|" * (len(found) + 1)]
    for label in _labels(found):
        cells = " | ".join(one.cell(label) for one in found)
        lines.append(f"| {_link(label)} | {cells} | {_cost(label, costs)} |")
    return "\n".join(lines)


def _few(labels: list[str], none: str = "none") -> str:
    return ", ".join(_link(label) for label in labels) if labels else none


def answer(found: list[Column]) -> str:
    """The lists that the table comes down to."""
    changing, still = [one for one in found if not one.control], [one for one in found if one.control]

    def count(label: str, where: str, among: list[Column]) -> int:
        return sum(label in getattr(one, where) for one in among)

    def tried(label: str) -> int:
        return sum(label in one.gains for one in changing)

    reference = {"fresh network per task"}
    labels = [label for label in _labels(found) if label not in reference]
    often = [label for label in labels if tried(label) >= 3]
    clean = [label for label in often if count(label, "ahead", changing) >= 2 and not count(label, "behind", changing)]
    mostly = [
        label
        for label in often
        if label not in clean and count(label, "ahead", changing) > 2 * count(label, "behind", changing)
    ]
    rarely = [label for label in labels if count(label, "behind", changing) > count(label, "ahead", changing)]
    priced = [label for label in labels if any(label in one.behind and one.costs(label, 0.1) for one in still)]
    two = [label for label in labels if tried(label) < 3 and count(label, "ahead", changing) == tried(label)]
    return "\n".join(
        [
            "- **Ahead of plain training in two comparisons or more, behind in none** (of at least three): "
            f"{_few(clean)}.",
            f"- **Ahead more than twice as often as behind**: {_few(mostly)}.",
            f"- **Compared twice only, ahead both times**: {_few(two)}.",
            f"- **Behind more often than ahead**, at the settings that were searched: {_few(rarely)}.",
            f"- **They cost accuracy where nothing changes** (a tenth of a point or more): {_few(priced)}.",
        ]
    )


def filled(text: str) -> str:
    """Put both between their markers."""
    found = columns()
    for name, made in (("answer", answer(found)), ("table", table(found))):
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{made}\n{end}{rest.partition(end)[2]}"
    return text


if __name__ == "__main__":
    write_atomically(PAGE, filled(PAGE.read_text(encoding="utf-8")))
