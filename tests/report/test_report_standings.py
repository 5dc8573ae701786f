"""What one stream and several streams say of each method, against counting by hand."""

import itertools
import json
import math

import numpy as np
import pytest
from report_records import run

from pliant.errors import RecordError
from pliant.intervals import estimate, rank_correlation
from pliant.records import Record, experiment_id
from pliant.report import csv_text, html_text, markdown_text, read_trials, summarise
from pliant.report.curves import stream_curves
from pliant.report.grids import budget_grid, leaderboard, price_grid, standing_grid
from pliant.report.metrics import metric_info
from pliant.report.overview import overview
from pliant.report.standings import passes, ranked, seconds_per_task, standings
from pliant.report.style import styles_of

CBP = ("CBP", ({"name": "continual_backprop"},))
FRESH = ("fresh", ({"name": "fresh_start"},))


def records(label, methods, curves, name="s", control=False, series="online_accuracy", meta=None, config=None):
    """One record per seed with this very series; a string is a run that diverged."""
    stream = {"name": name} | ((config or {}).get("stream") or {})
    experiment = {"stream": stream, "methods": list(methods)} | {
        k: v for k, v in (config or {}).items() if k != "stream"
    }
    found = []
    for seed, curve in enumerate(curves):
        broken = isinstance(curve, str)
        values = {} if broken else curve if isinstance(curve, dict) else {series: list(curve)}
        found.append(
            Record(
                experiment=experiment,
                experiment_id=experiment_id(experiment, name, label),
                seed=seed,
                status="failed" if broken else "complete",
                error="the loss is NaN" if broken else None,
                series=values,
                meta={"label": label, "stream": {"title": name, "control": control}}
                | ({"failure": curve} if broken else {})
                | (meta or {}),
            )
        )
    return found


def by_label(found, threshold=None):
    (stream,) = summarise(found)
    return {s.method.label: s for s in standings(stream, threshold)}


def test_a_standing_against_counting_by_hand():
    generator = np.random.default_rng(0)
    plain, protected, fresh = (generator.uniform(size=(4, 30)) for _ in range(3))
    found = by_label(
        records("none", (), plain)
        + records(*CBP, protected, meta={"seconds": 60.0, "num_stacked": 4})
        + records(*FRESH, fresh)
    )
    cbp = found["CBP"]
    assert cbp.average == estimate(protected.mean(1)) or cbp.average.mean == pytest.approx(protected.mean())
    gains = protected.mean(1) - plain.mean(1)
    assert cbp.gain.mean == pytest.approx(gains.mean())
    assert cbp.gain.half_width == pytest.approx(estimate(gains.tolist()).half_width)
    assert cbp.fresh_area.mean == pytest.approx((protected - fresh).mean())
    assert cbp.fresh_last.mean == pytest.approx((protected[:, -10:] - fresh[:, -10:]).mean())
    assert cbp.change.mean == pytest.approx((protected[:, -10:].mean(1) - protected[:, :10].mean(1)).mean())
    assert cbp.seconds.mean == pytest.approx(60 / 4 / 30)
    assert found["none"].gain is None
    assert found["none"].fresh_area is not None
    assert found["fresh"].fresh_area is None
    assert math.isnan(found["none"].p_adjusted)
    # Two comparisons in the family: CBP and the fresh network.
    assert cbp.p_adjusted >= cbp.p


def test_onset_is_when_it_becomes_worse_than_fresh_and_never_where_it_does_not():
    falling = [0.9] * 10 + [0.1] * 10  # behind 0.5 once five of the last ten are low: 0.5 at task 15, below it at 16
    found = by_label(
        records("falls", (), [falling, falling, [0.9] * 20])
        + records("same", ({"name": "l2"},), [[0.5] * 20] * 3)
        + records(*FRESH, [[0.5] * 20] * 3),
        threshold=0.8,
    )
    assert found["falls"].onset == (16.0, 2, 3, 0)
    assert found["same"].onset == (math.inf, 0, 3, 0)
    assert found["falls"].reached == (10.0, 3, 3, 0)
    assert found["same"].reached.median == math.inf
    grid = standing_grid(list(found.values()))
    texts = {line.label: [cell.text for cell in line.cells] for line in grid.lines}
    assert "16 (2 of 3)" in texts["falls"]
    assert "never" in texts["same"]


def test_where_less_is_better_signs_colours_and_ranks_turn_round():
    found = (
        records("none", (), [[1.0, 1.1], [1.2, 1.1], [1.0, 1.0]], series="online_mse")
        + records("good", ({"name": "l2"},), [[0.5, 0.4], [0.6, 0.5], [0.5, 0.4]], series="online_mse")
        + records("bad", ({"name": "redo"},), [[3.0, 3.1], [3.2, 3.1], [3.0, 3.3]], series="online_mse")
        + records(*FRESH, [[0.8, 0.8]] * 3, series="online_mse")
    )
    (stream,) = summarise(found)
    assert stream.score.better == "lower"
    standing = by_label(found)
    assert standing["good"].gain.mean < 0
    assert standing["none"].onset.median == 1.0  # behind from the beginning
    assert standing["good"].onset.median == math.inf
    whole = overview([stream])
    board = leaderboard(whole)
    assert [line.label for line in board.lines] == ["good", "none", "bad", "fresh"]  # a reference takes no rank
    cells = {
        line.label: dict(zip([h.name for h in board.headings[1:]], line.cells, strict=True)) for line in board.lines
    }
    assert cells["good"]["beats no protection"].value == 1.0
    assert cells["bad"]["beats no protection"].value == 0.0
    assert "best" in cells["good"][stream.title].verdict
    gains = {line.label: line.cells[1] for line in standing_grid(list(standing.values())).lines}
    assert "good" in gains["good"].verdict
    assert "bad" in gains["bad"].verdict
    assert whole.profile is None  # squared errors have no place on the scale of accuracies
    page = html_text(found)
    assert "less is better" in page


def test_what_diverged_is_the_worst_and_what_was_killed_is_left_out():
    found = records(*CBP, [[0.5, 0.5], "diverged", "crashed", [math.nan, 0.5]])
    (stream,) = summarise(found)
    assert ranked(stream.methods[0], stream.score) == {0: 0.5, 1: -math.inf, 3: -math.inf}


def test_stability_comes_from_the_series_of_earlier_tasks():
    own = [0.9, 0.8, 0.7, 0.6]
    past = [math.nan, 0.5, 0.4, 0.3]
    curve = {"online_accuracy": [0.5] * 4, "test_accuracy": own, "past_accuracy": past}
    found = by_label(records("none", (), [curve, curve]))["none"]
    assert found.past.mean == pytest.approx(np.mean(past[1:]))
    expected = [0.5 - 0.9, 0.4 - 0.85, 0.3 - 0.8]
    assert found.transfer.mean == pytest.approx(np.mean(expected))
    recorded = curve | {"backward_transfer": [math.nan, -0.1, -0.2, -0.3]}
    (stream,) = summarise(records("none", (), [recorded, recorded]))
    assert standings(stream)[0].transfer.mean == pytest.approx(-0.2)
    assert next(m for m in stream.metrics if m.name == "backward_transfer").percent
    without = by_label(records("none", (), [{"online_accuracy": [0.5], "past_accuracy": [math.nan]}]))["none"]
    assert (without.past, without.transfer) == (None, None)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"stream": {"num_epochs": 5}, "methods": []}, 5.0),
        ({"stream": {"num_epochs": 2}, "methods": [{"name": "experience_replay", "ratio": 1.0}]}, 4.0),
        ({"stream": {"num_epochs": 2}, "methods": [{"name": "experience_replay", "ratio": "?"}]}, None),
        ({"stream": {}, "methods": []}, None),
        ({"stream": "s"}, None),
        ({"stream": {"num_epochs": True}}, None),
    ],
)
def test_passes(config, expected):
    assert passes(config) == expected


def test_seconds_that_nobody_wrote_down():
    (stream,) = summarise(records("none", (), [[0.5]]))
    assert seconds_per_task(stream.methods[0]) is None
    (stream,) = summarise(records("none", (), [[0.5]], meta={"seconds": 2.0, "num_stacked": 0}))
    assert seconds_per_task(stream.methods[0]) is None


# ---- several streams


def several():
    """Two streams and a control; B leads on both streams, and is last where nothing changes."""
    found = []
    for name, control, levels in (
        ("s", False, (0.2, 0.5, 0.8)),
        ("t", False, (0.3, 0.4, 0.9)),
        ("c", True, (0.9, 0.8, 0.7)),
    ):
        for (label, methods), level in zip(
            (("none", ()), ("A", ({"name": "l2"},)), ("B", ({"name": "redo"},))), levels, strict=True
        ):
            curves = [[level + 0.001 * seed] * 4 for seed in range(4)]
            found += records(label, methods, curves, name, control)
    return found


def test_the_leaderboard_over_two_streams_and_a_control():
    whole = overview(summarise(several()))
    entries = {e.label: e for e in whole.entries}
    assert {label: e.rank.mean for label, e in entries.items()} == {"none": 3.0, "A": 2.0, "B": 1.0}
    assert entries["B"].improvement.mean == 1.0
    assert entries["none"].improvement is None
    scores = np.concatenate([[level + 0.001 * seed for seed in range(4)] for level in (0.8, 0.9)])
    assert entries["B"].iqm.mean == pytest.approx(np.sort(scores)[2:6].mean())
    assert [order.agreement.mean for order in whole.orders] == pytest.approx([-1.0, -1.0])
    assert whole.orders[0].static == {"none": 1.0, "A": 2.0, "B": 3.0}
    assert [line.label for line in leaderboard(whole).lines] == ["B", "A", "none"]
    prices = {line.label: line.cells for line in price_grid(whole).lines}
    assert prices["B"][1].value == pytest.approx(-0.2)
    assert prices["B"][1].verdict == "bad"
    assert prices["B"][2].value == pytest.approx(0.6)


def test_a_method_that_did_not_run_everywhere_has_no_rank():
    found = several() + records("C", ({"name": "fire"},), [[0.99] * 4] * 4, "s")
    entries = {e.label: e for e in overview(summarise(found)).entries}
    assert (entries["C"].rank, entries["C"].iqm, entries["C"].num_missing) == (None, None, 1)
    assert entries["B"].rank.mean == 1.0
    text = markdown_text(found)
    assert "not run" in text


def test_a_stream_with_one_method_takes_no_rank_from_the_others():
    found = several() + records("none", (), [[0.5] * 4] * 4, "alone")
    whole = overview(summarise(found))
    assert len(whole.continual) == 3
    assert [s.name for s in whole.ranking.values()] == ["s", "t"]
    assert {e.label: e.rank.mean for e in whole.entries} == {"none": 3.0, "A": 2.0, "B": 1.0}


def test_the_order_of_architectures():
    found = []
    for name, control, levels in (("s", False, (0.2, 0.5, 0.8)), ("c", True, (0.9, 0.7, 0.8))):
        for width, level in zip((10, 20, 30), levels, strict=True):
            config = {"model": {"name": "mlp", "hidden": [width]}}
            found += records("none", (), [[level] * 4] * 3, name, control, config=config)
    (order,) = [o for o in overview(summarise(found)).orders if o.what.startswith("architectures")]
    assert order.what == "architectures with no protection"
    assert order.agreement.mean == pytest.approx(rank_correlation([0.2, 0.5, 0.8], [0.9, 0.7, 0.8]))
    assert list(order.static) == ["mlp (hidden [10])", "mlp (hidden [20])", "mlp (hidden [30])"]
    assert "rank correlation" in html_text(found)


def test_scores_at_equal_budgets_with_and_without_replay():
    found = []
    replay = ({"name": "experience_replay", "capacity": 10, "ratio": 1.0},)
    for epochs, (plain, replayed) in ((1, (0.5, 0.6)), (2, (0.7, 0.8))):
        config = {"stream": {"num_epochs": epochs}}
        found += records("none", (), [[plain] * 4] * 3, config=config)
        found += records("replay", replay, [[replayed] * 4] * 3, config=config)
    (budgets,) = overview(summarise(found)).budgets
    assert (budgets.title, budgets.budgets) == ("s", [1.0, 2.0, 4.0])
    means = {label: [None if e is None else round(e.mean, 9) for e in row] for label, row in budgets.rows.items()}
    assert means == {"none": [0.5, 0.7, 0.7], "replay": [None, 0.6, 0.8]}
    assert [line.cells[0].text for line in budget_grid(budgets).lines] == ["50.0 ± 0.0", "–"]
    assert "at equal gradient evaluations" in html_text(found)


def test_runs_of_different_length_are_never_compared():
    found = records("none", (), [[0.5] * 8], config={"num_tasks": 8})
    found += records(*CBP, [[0.5] * 4], config={"num_tasks": 4})
    assert sorted(s.title for s in summarise(found)) == ["s (num_tasks 4)", "s (num_tasks 8)"]


def test_only_controls_are_a_leaderboard_of_their_own():
    whole = overview(summarise([r for r in several() if r.meta["stream"]["control"]]))
    assert len(whole.continual) == 1
    assert not whole.controls


# ---- long streams


def test_long_streams_are_thinned_and_say_so():
    generator = np.random.default_rng(0)
    data = generator.uniform(size=(3, 1001))
    found = records("none", (), data)
    (stream,) = summarise(found)
    metric = metric_info("online_accuracy")
    (curve,) = stream_curves(stream, metric, styles_of([stream]))
    assert (curve.step, len(curve.points), curve.length) == (5, 201, 1001)
    assert curve.points[0].mean == pytest.approx(data[:, :5].mean())
    assert curve.points[-1].mean == pytest.approx(data[:, -1].mean())
    assert (curve.task(1), curve.task(201)) == (3.0, 1001.0)
    assert "Each point is the mean over 5 tasks." in html_text(found)


def test_large_results_stay_small():
    generator = np.random.default_rng(0)
    names = ("online_accuracy", "test_accuracy", "past_accuracy", "dead_fraction", "weight_magnitude", "stable_rank")
    found = []
    for method in range(10):
        curves = [{n: generator.uniform(size=500).tolist() for n in names} for _ in range(10)]
        found += records(f"m{method}", ({"name": f"method_{method}"},) if method else (), curves)
    assert len(html_text(found)) < 1_500_000


# ---- lists of trials


def trials(tmp_path, scores, **more):
    path = tmp_path / "deep" / "tuning.json"
    path.parent.mkdir(exist_ok=True)
    methods = {
        name: {"experiment": {"stream": {"name": "some_stream"}}, "trials": [{"score": s} for s in values]}
        for name, values in scores.items()
    }
    path.write_text(json.dumps({"tuning_seeds": [100, 101], "methods": methods, "rule": "highest"} | more))
    return path


def test_trials_are_read_and_failed_ones_count_as_the_worst(tmp_path):
    trials(tmp_path, {"none": [0.5, None, 0.3], "l2": [0.2, 0.9, 0.4]})
    (found,) = read_trials(tmp_path)
    assert (found.title, found.budget, found.seeds) == ("Some stream", 3, (100, 101))
    assert found.scores["none"] == [0.5, 0.2, 0.3]
    assert found.num_failed == {"none": 1, "l2": 0}
    pairs = [max(pair) for pair in itertools.combinations([0.5, 0.2, 0.3], 2)]
    assert [b.mean for b in found.curve("none")] == pytest.approx([1 / 3, sum(pairs) / 3, 0.5])
    page = html_text(several(), trials=[found])
    assert "3 settings for every method" in page
    assert "1 failed settings count as the worst score" in page


def study(tmp_path, method, scores, **more):
    experiment = {"stream": {"name": "some_stream"}, "methods": []}
    trials = [
        {"number": i, "experiment_id": f"{method}-{i}", "score": s, "num_failed": 0} for i, s in enumerate(scores)
    ]
    setting = {"tuning_seeds": [100, 101], "sampler": "tpe"}
    data = {"version": 1, "label": method, "rule": "best", "lower_is_better": True, "setting": setting}
    data |= {"experiment": experiment, "trials": trials, "meta": {"git_commit": "c0ffee"}} | more
    (tmp_path / f"some_stream-{method}-0123.json").write_text(json.dumps(data))


def test_studies_about_one_stream_belong_together(tmp_path):
    study(tmp_path, "a", [3.0, None, 1.0])
    study(tmp_path, "b", [2.0, 5.0, 4.0])
    study(tmp_path, "c", [2.0], rule="another")
    together, other = read_trials(tmp_path)
    assert list(together.scores) == ["a", "b"]
    assert together.scores["a"] == [3.0, 5.0, 1.0]
    assert together.curve("a")[-1].mean == 1.0
    assert (together.metric.better, together.commit, other.rule) == ("lower", "c0ffee", "another")
    assert together.ids == {f"{method}-{i}" for method in "ab" for i in range(3)}
    assert "the search learnt from its trials" in html_text(several(), trials=[together])


def test_trials_where_less_is_better_fall(tmp_path):
    trials(tmp_path, {"none": [3.0, 1.0, 2.0]}, metric="online_mse")
    (found,) = read_trials(tmp_path)
    assert [b.mean for b in found.curve("none")] == pytest.approx([2.0, 4 / 3, 1.0])
    assert all(b.low <= b.mean <= b.high for b in found.curve("none"))


def test_files_that_are_no_trials_are_left_alone_and_damaged_ones_named(tmp_path):
    (tmp_path / "other.json").write_text('{"methods": {}}')
    (tmp_path / "broken.json").write_text('{"tuning_seeds": [1], "methods"')
    assert read_trials(tmp_path) == []
    path = trials(tmp_path, {"none": [0.5]})
    path.write_text(path.read_text().replace("0.5", "true"))
    with pytest.raises(RecordError, match=r"tuning.json: damaged, a trial of 'none' has the score True"):
        read_trials(tmp_path)


# ---- what every output says of a number's origin


def test_the_csv_says_where_each_number_is_from():
    import csv
    import io

    found = run() + run(*CBP, start=0.7, end=0.9, meta={"git_commit": "c0ffee"})
    rows = list(csv.DictReader(io.StringIO(csv_text(found))))
    row = next(r for r in rows if r["method"] == "CBP" and r["metric"] == "online_accuracy")
    assert (row["commit"], row["pliant"], row["torch"], row["seeds"]) == ("c0ffee", "0.1.0", "2.13.0", "0 1 2")
    assert float(row["average_mean"]) == pytest.approx(0.81)
    assert float(row["difference_p_holm"]) < 1e-6


def test_every_number_of_the_page_leads_to_a_run():
    page = html_text(several())
    import re

    targets = set(re.findall(r'href="#(run-[^"]+)"', page))
    ids = set(re.findall(r'id="(run-[^"]+)"', page))
    assert targets == ids
    assert len(ids) == 9
