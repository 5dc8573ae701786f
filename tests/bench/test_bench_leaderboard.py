"""The leaderboard: equal budgets, settings that share a stack, and a page that says what the records say."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from benchmarks import leaderboard, leaderboard_page
from benchmarks.leaderboard_claims import CLAIMS, Claim
from benchmarks.leaderboard_runs import Run, merit, outcome, read, verdict
from benchmarks.leaderboard_settings import PARTS, REPORTED, TUNING, WAYS, base, settings, streams, ways
from pliant.bench.engine import can_stack_together
from pliant.bench.tune import check_seeds
from pliant.records import read_records
from pliant.report import read_trials
from pliant.report.metrics import metric_info

ALL = [(part, stream) for part in PARTS for stream in streams(part)]


@pytest.mark.parametrize(("part", "stream"), ALL)
def test_all_have_the_same_budget_and_the_same_step_sizes(part, stream):
    check_seeds(TUNING, REPORTED)
    rates = {}
    for way in ways(part):
        found = settings(stream, way)
        assert len(set(found)) == len(found) == PARTS[part].num_settings, way
        assert {experiment.num_tasks for experiment in found} == {base(stream, "none").num_tasks}
        assert {experiment.label for experiment in found} == {WAYS[way].label}
        rates[way] = [experiment.optimizer.options["lr"] for experiment in found]
    adam = {way for way in rates if way.startswith("adam")}
    assert all(rates[way] == rates["none"] for way in rates.keys() - adam)
    assert rates["adam"] == rates["adam_equal_betas"]
    low, high = min(rates["none"]), max(rates["none"])
    size = base(stream, "none").optimizer.options["lr"]
    assert size / 10 <= low < size / 3  # every sixth or fifth of the range has one
    assert size < high <= 3 * size


def test_the_settings_of_every_way_share_a_stack():
    for way in WAYS:
        assert can_stack_together(settings("slowly_changing_regression", way, num_settings=2)), way


def test_every_claim_is_about_something_that_is_run():
    for claim in CLAIMS:
        assert {claim.way, claim.other or "none"} <= WAYS.keys()
        assert set(claim.streams) <= set(streams("stacked"))
        assert claim.rule in ("beats", "falls", "holds", "fewer dormant")
        assert bool(claim.other) == (claim.rule in ("beats", "fewer dormant"))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("leaderboard")
    options = ["--quick", "--stream", "permuted_digits", "--only", "none", "l2", "--out", str(folder / "out")]
    leaderboard.main(["tune", "run", *options])
    leaderboard.publish("stacked", folder / "out", folder / "results")
    assert not (folder / "results").exists()  # of ten seeds there are two: not yet
    leaderboard.publish("stacked", folder / "out", folder / "results", num_seeds=2)
    return folder


def test_the_settings_of_the_search_were_trained_together(results):
    trials = read_records(results / "out" / "tuning" / "permuted_digits" / "l2")
    assert {record.meta["num_stacked"] for record in trials} == {2}
    (listed,) = read_trials(results / "results")
    assert {name: len(scores) for name, scores in listed.scores.items()} == {"none": 2, "l2": 2}
    published = read_records(results / "results")
    assert [record.seed for record in published] == [0, 1, 0, 1]
    assert all("test_accuracy" in record.series and "stable_rank" not in record.series for record in published)


def test_the_page_says_what_the_records_say(results, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- stacked -->\nold\n<!-- /stacked -->\nafter\n")
    leaderboard_page.write(results / "results", page, tmp_path / "figure.svg", num_seeds=2)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    run = read(results / "results", "stacked", 2)["permuted_digits"]["l2"]
    assert set(run.last) == set(run.held_out) == {0, 1}
    (line,) = [line for line in text.splitlines() if line.startswith("| [L2](../methods/l2.md) | step size")]
    assert f"| {50 * (run.whole[0] + run.whole[1]):.1f} ± " in line
    assert "strength " in line
    assert "Not run yet: fresh network per task" in text
    assert f"| [L2](../methods/l2.md) | {50 * sum(run.trials):.1f} | {100 * max(run.trials):.1f} |" in text
    means = [100 * sum(values) / 2 for values in (run.first.values(), run.last.values())]
    assert run.best == pytest.approx(max(means) / 100)  # of two tasks, one is the first and one the last
    assert f"| Permuted digits | {means[0]:.1f}, {max(means):.1f}, {means[1]:.1f} |" in text
    ElementTree.parse(tmp_path / "figure.svg")


def run_of(*last, metric="online_accuracy", first=0.5, dormant=0.0, diverged=0, held_out=()):
    values = dict(enumerate(last))
    same = dict.fromkeys(values, first)
    return Run(
        metric=metric_info(metric),
        setting="",
        trials=(),
        whole=values,
        first=same,
        last=values,
        best=0.0,
        held_out=dict(enumerate(held_out)),
        dormant=dict.fromkeys(values, dormant),
        past={},
        num_diverged=diverged,
        num_failed=diverged,
    )


def test_claims_are_held_against_the_intervals():
    def one(rule, mine, other=None, **options):
        claim = Claim("", "", "l2", rule, "none" if other else "", ("permuted_digits",))
        there = {"l2": mine, **({"none": other} if other else {})}
        return outcome(claim, {"permuted_digits": there})["permuted_digits"][0]

    better, worse = run_of(0.70, 0.71, 0.72), run_of(0.60, 0.61, 0.62)
    assert one("beats", better, worse) == "yes"
    assert one("beats", worse, better) == "opposite"
    assert one("beats", run_of(0.5, 0.9, 0.6), worse) == "open"
    error, smaller = (run_of(*values, metric="online_mse", first=1.0) for values in ((3.0, 3.1, 3.2), (2.0, 2.1, 2.2)))
    assert one("beats", smaller, error) == "yes"  # less is better
    assert one("falls", error) == "yes"
    assert one("falls", better) == "opposite"
    assert one("holds", better) == "yes"
    assert one("holds", run_of(0.495, 0.494, 0.496)) == "yes"  # half a point
    assert one("holds", run_of(0.2, 0.21, 0.22)) == "opposite"
    many, few = (run_of(0.5, 0.51, 0.52, dormant=share) for share in (0.3, 0.1))
    assert one("fewer dormant", few, many) == "yes"
    assert one("fewer dormant", many, few) == "opposite"
    assert outcome(Claim("", "", "redo", "beats", "none"), {"permuted_digits": {"none": few}}) == {}


def test_verdicts():
    def of(*words):
        return verdict({str(number): (word, None) for number, word in enumerate(words)})

    assert [of(), of("yes", "yes"), of("opposite"), of("yes", "opposite")] == [
        "not run", "confirmed", "contradicted", "mixed",
    ]  # fmt: skip
    assert [of("yes", "open"), of("open"), of("open", "opposite")] == ["partly", "open", "rather contradicted"]


def test_a_seed_that_diverged_is_worse_than_every_other():
    found = merit(run_of(0.5, diverged=1), {0: 0.5}, 2)
    assert found == {0: 0.5, 1: float("-inf")}
    assert merit(run_of(2.0, metric="online_mse"), {0: 2.0}, 2) == {0: -2.0}


def test_the_committed_pages_are_what_the_committed_records_say():
    runs = read(leaderboard.RESULTS, "stacked", 10)
    page = leaderboard_page.PAGE.read_text(encoding="utf-8")
    assert f"<!-- stacked -->\n{leaderboard_page.text(runs)}\n<!-- /stacked -->" in page
    for way, entry in WAYS.items():
        if entry.page and way != "fresh_start":
            said = leaderboard_page.sentence(way, runs)
            block = f"<!-- leaderboard -->\n{said}\n<!-- /leaderboard -->" if said else "<!-- leaderboard -->\n<!-- /"
            assert block in (leaderboard_page.METHODS / f"{entry.page}.md").read_text(encoding="utf-8"), way


def test_the_order_on_the_control_is_held_against_the_order_on_a_stream():
    scores = {"none": (0.5, 0.51), "l2": (0.6, 0.61), "redo": (0.7, 0.71)}
    runs = {
        "permuted_digits": {name: run_of(*values) for name, values in scores.items()},
        "label_permuted": {name: run_of(*(1 - value for value in values)) for name, values in scores.items()},
        "stationary_digits": {name: run_of(*values, held_out=values) for name, values in scores.items()},
    }
    text = leaderboard_page.agreement(runs, 2)
    assert "| Permuted digits | 1.00 [1.00, 1.00] | 1.00 [1.00, 1.00] | 3 |" in text
    assert "| Label permuted | −1.00 [−1.00, −1.00] | −1.00 [−1.00, −1.00] | 3 |" in text
    assert leaderboard_page.agreement({"permuted_digits": runs["permuted_digits"]}, 2) == ""
