"""How records are sorted into streams and methods, and what their headline says."""

import pytest
from report_records import ABOUT, STREAM, run

from pliant.errors import RecordError
from pliant.intervals import estimate
from pliant.report.metrics import format_estimate, format_value, metric_info
from pliant.report.style import styles_of
from pliant.report.summary import headline, headline_metrics, summarise

CBP = ("Continual backprop", ({"name": "continual_backprop", "replacement_rate": 0.001},))
FRESH = ("Fresh start", ({"name": "fresh_start"},))


def test_no_records_is_an_error() -> None:
    with pytest.raises(RecordError, match="no records to report on"):
        summarise([])


def test_methods_are_ordered_baseline_first_reference_last() -> None:
    records = run(*FRESH) + run(*CBP) + run() + run("L2", ({"name": "l2", "strength": 0.1},))
    (stream,) = summarise(records)
    assert [m.label for m in stream.methods] == ["No protection", "Continual backprop", "L2", "Fresh start"]
    assert [m.is_baseline for m in stream.methods] == [True, False, False, False]
    assert [m.is_reference for m in stream.methods] == [False, False, False, True]
    assert stream.title == "Digits with random labels"
    assert [m.name for m in stream.metrics] == ["online_accuracy", "dead_fraction", "weight_magnitude"]


def test_the_order_of_the_records_is_no_matter() -> None:
    records = run(*CBP) + run() + run(*FRESH, failed=(1,))
    assert summarise(records) == summarise(list(reversed(records)))


def test_controls_come_last_and_streams_in_the_order_of_their_runs() -> None:
    control, about = {"name": "a_control"}, {"control": True}
    records = (
        run(stream=control, about=about, meta={"started": "2025-01-01"})
        + run(stream={"name": "b"}, meta={"started": "2025-01-03"})
        + run(stream={"name": "c"}, meta={"started": "2025-01-02"})
    )
    streams = summarise(records)
    assert [(s.name, s.control) for s in streams] == [("c", False), ("b", False), ("a_control", True)]
    assert streams[0].title == "C"


def test_headline_numbers() -> None:
    records = run(start=0.8, end=0.2) + run(*CBP, start=0.7, end=0.9, seeds=(0, 1, 2, 3))
    (stream,) = summarise(records)
    base, protected = headline(stream, metric_info("online_accuracy"))
    assert base.difference is None
    assert base.change.mean == pytest.approx(base.last.mean - base.first.mean)
    assert base.change.half_width == pytest.approx(0, abs=1e-12)  # the seeds differ, their changes do not
    assert protected.last.num == 4
    assert protected.difference is not None
    assert (protected.difference.num, protected.difference.num_excluded) == (3, 1)
    line = [0.7 + 0.2 * t / 19 for t in range(20)]
    assert protected.first.mean == pytest.approx(sum(line[:10]) / 10 + 0.015)
    assert protected.last.mean == pytest.approx(sum(line[10:]) / 10 + 0.015)


def test_failed_and_diverged_seeds_are_counted_and_in_no_mean() -> None:
    (stream,) = summarise(run(seeds=range(5), failed=(1,), diverged=(3,)))
    (row,) = headline(stream, metric_info("online_accuracy"))
    assert (row.first.num, row.last.num, row.change.num) == (3, 3, 3)
    assert row.last.num_excluded == 1
    assert row.num_failed == 1
    assert row.first.mean == pytest.approx(headline(*_only((0, 2, 4)))[0].first.mean)


def _only(seeds):
    (stream,) = summarise(run(seeds=seeds))
    return stream, metric_info("online_accuracy")


def test_a_method_whose_seeds_all_failed_is_still_a_row() -> None:
    (stream,) = summarise(run() + run(*CBP, failed=(0, 1, 2)))
    _, row = headline(stream, metric_info("online_accuracy"))
    assert (row.last.num, row.num_failed) == (0, 3)


def test_a_short_run_and_a_long_run_of_one_stream_are_never_averaged() -> None:
    records = run(num_tasks=20) + run(num_tasks=8, stream={**STREAM, "num_tasks": 8}, about=ABOUT)
    titles = {s.title: s.window for s in summarise(records)}
    assert titles == {
        "Digits with random labels (num_tasks 20)": 10,
        "Digits with random labels (num_tasks 8)": 4,
    }


def test_labels_that_two_experiments_share_are_told_apart_by_their_settings() -> None:
    records = []
    for lr in (0.1, 0.01):
        optimizer = {"name": "SGD", "lr": lr}
        records += run("backprop", optimizer=optimizer) + run("CBP", CBP[1], optimizer=optimizer)
    (stream,) = summarise(records)
    labels = {m.label: m for m in stream.methods}
    assert set(labels) == {"backprop (lr 0.1)", "backprop (lr 0.01)", "CBP (lr 0.1)", "CBP (lr 0.01)"}
    # Each is compared with the unprotected run of the same step size.
    for lr in ("0.1", "0.01"):
        base = stream.baseline_of(labels[f"CBP (lr {lr})"])
        assert base is not None
        assert base.label == f"backprop (lr {lr})"


def test_no_comparison_rather_than_a_wrong_one() -> None:
    optimizers = [{"name": "SGD", "lr": lr} for lr in (0.1, 0.01, 0.001)]
    records = run("b", optimizer=optimizers[0]) + run("b", optimizer=optimizers[1]) + run(*CBP, optimizer=optimizers[2])
    (stream,) = summarise(records)
    assert stream.baseline_of(stream.methods[-1]) is None
    assert all(row.difference is None for row in headline(stream, metric_info("online_accuracy")))


def test_labels_without_a_name() -> None:
    (stream,) = summarise(run(None) + run(None, ({"name": "l2"}, {"name": "redo", "tau": 0.1})))
    assert [m.label for m in stream.methods] == ["no protection", "l2 + redo"]
    (stream,) = summarise(run("Plain", meta={"label": "From the meta"}))
    assert stream.methods[0].label == "From the meta"


def test_tolerates_records_with_hardly_anything() -> None:
    records = run(None, stream={"name": "s"}, names=(), num_tasks=0, optimizer=None, meta={"started": None})
    (stream,) = summarise(records)
    assert stream.metrics == headline_metrics(stream) == []
    assert stream.num_tasks == stream.window == 0


def test_headline_metrics() -> None:
    def names(*series: str) -> list[str]:
        return [m.name for m in headline_metrics(summarise(run(names=series))[0])]

    assert names("online_accuracy", "test_accuracy", "loss") == ["online_accuracy", "test_accuracy"]
    assert names("loss", "end_accuracy") == ["end_accuracy"]
    assert names("episode_return") == ["episode_return"]


@pytest.mark.parametrize(
    ("value", "name", "signed", "text"),
    [
        (0.5, "online_accuracy", True, "+50.0"),
        (-0.0001, "online_accuracy", True, "0.0"),
        (0.0, "online_accuracy", False, "0.0"),
        (-0.5, "loss", False, "−0.500"),
        (1234.5, "loss", False, "1234"),
        (1e-9, "loss", False, "1.00e−09"),
        (float("nan"), "loss", False, "–"),
        (float("inf"), "loss", True, "–"),
    ],
)
def test_numbers_on_paper(value: float, name: str, signed: bool, text: str) -> None:
    assert format_value(value, metric_info(name), signed=signed) == text


def test_an_estimate_on_paper_never_hides_that_it_has_no_interval() -> None:
    accuracy = metric_info("online_accuracy")
    assert format_estimate(estimate([0.5]), accuracy) == "50.0 ± ?"
    assert format_estimate(estimate([]), accuracy) == "–"
    assert format_estimate(estimate([0.5, 0.5]), accuracy) == "50.0 ± 0.0"


def test_styles_are_the_same_in_every_report_and_all_different() -> None:
    records = (
        run() + run(*CBP) + run(*FRESH) + run("Mine", ({"name": "my.module:Mine"},)) + run("L2", ({"name": "l2"},))
    )
    styles = styles_of(summarise(records))
    assert len(set(styles.values())) == 5
    again = styles_of(summarise(run("L2", ({"name": "l2"},)) + run(*CBP)))
    assert again["L2"] == styles["L2"]
    assert again["Continual backprop"] == styles["Continual backprop"]
    sweep = []
    for lr in (0.1, 0.03, 0.01):
        for label, method in (("backprop", ()), CBP):
            sweep += run(label, method, optimizer={"lr": lr})
    styles = styles_of(summarise(sweep))
    assert len(set(styles.values())) == 6
    assert len({style.colour for style in styles.values()}) == 2
    many = [record for i in range(20) for record in run(f"m{i}", ({"name": f"method_{i}"},), seeds=(0,))]
    assert len(set(styles_of(summarise(many)).values())) == 20
