"""Readings and alarms reach files and loggers, and can be read there."""

from __future__ import annotations

import csv
import json
import math

import pytest
from monitor_tools import Run, kill

import pliant
from pliant.monitor import Reading
from pliant.monitor.alarms import Alarm

READINGS = [
    Reading(
        500, {"dead_fraction": {"fc1": 0.25, "heads:heads": math.nan}, "effective_rank": {"fc1": 3.5}}, {"fc1": 64}
    ),
    Reading(1000, {"dead_fraction": {"fc1": 0.5}}, {"fc1": 64}),
]
ALARM = Alarm("dead_units", "dead_fraction", "fc1", 0.5, 0.01, "history", 1000)
WITHDRAWN = Alarm("dead_units", "dead_fraction", "fc1", 0.5, 0.01, "history", 1000, 1500)


def write(writer) -> None:
    for reading in READINGS:
        writer.write(reading)
    writer.write_alarm(ALARM)
    writer.write_alarm(WITHDRAWN)
    writer.close()


def test_a_table(tmp_path):
    path = tmp_path / "new" / "run.csv"
    write(pliant.CSVWriter(path))
    again = pliant.CSVWriter(path)
    again.write(Reading(1500, {"dead_fraction": {"fc1": 0.0}}, {"fc1": 64}))
    again.close()
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["step", "metric", "where", "value"]
    assert rows[1:4] == [
        ["500", "dead_fraction", "fc1", "0.25"],
        ["500", "dead_fraction", "heads:heads", "nan"],
        ["500", "effective_rank", "fc1", "3.5"],
    ]
    assert rows[5:] == [
        ["1000", "alarm:dead_units", "fc1", "0.5"],
        ["1500", "cleared:dead_units", "fc1", "0.5"],
        ["1500", "dead_fraction", "fc1", "0.0"],
    ]


def test_lines_of_json(tmp_path):
    path = tmp_path / "run.jsonl"
    write(pliant.JSONLWriter(path))
    first, second, alarm, withdrawn = [json.loads(line) for line in path.read_text().splitlines()]
    assert first == {
        "step": 500,
        "values": {"dead_fraction": {"fc1": 0.25, "heads:heads": None}, "effective_rank": {"fc1": 3.5}},
        "num_samples": {"fc1": 64},
    }
    assert second["step"] == 1000
    assert (alarm["alarm"]["mechanism"], alarm["alarm"]["cleared"]) == ("dead_units", None)
    assert withdrawn["alarm"]["cleared"] == 1500


def test_files_are_complete_after_every_reading(tmp_path):
    """Also where the run is cut off: nothing waits in a buffer."""
    writers = [pliant.CSVWriter(tmp_path / "run.csv"), pliant.JSONLWriter(tmp_path / "run.jsonl")]
    run = Run("mlp", metrics=["dead_fraction"], writers=writers).train(60)
    kill(run.model)
    run.train(10)
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "step" in line] == list(range(5, 75, 5))
    assert lines[-1]["alarm"] == run.watch.alarms[-1].to_dict()
    assert len((tmp_path / "run.csv").read_text().splitlines()) == 1 + 14 * 2 + 1
    run.watch.detach()


@pytest.mark.parametrize(
    ("make", "extra"),
    [
        (lambda: pliant.TensorBoardWriter("folder"), "tensorboard"),
        (lambda: pliant.WandbWriter(), "wandb"),
        (lambda: pliant.MLflowWriter(), "mlflow"),
    ],
    ids=["tensorboard", "wandb", "mlflow"],
)
def test_what_is_missing_is_named_with_its_extra(make, extra, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, extra, None)  # as Python marks what cannot be imported
    with pytest.raises(pliant.IllegalConfiguration, match=rf"pip install 'pliant\[{extra}\]'"):
        make()


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(pliant.TensorBoardWriter(tmp_path))
    events = EventAccumulator(str(tmp_path)).Reload()
    dead = events.Scalars("pliant/dead_fraction/fc1")
    assert [(event.step, event.value) for event in dead] == [(500, 0.25), (1000, 0.5)]
    texts = events.Tensors("pliant/alarms/text_summary")
    assert [event.step for event in texts] == [1000, 1500]
    assert b"dead units in 'fc1'" in texts[0].tensor_proto.string_val[0]


def test_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the small build has no database
    mlflow.set_tracking_uri(f"file://{tmp_path}")
    mlflow.set_experiment("health")
    write(pliant.MLflowWriter())
    run = mlflow.active_run().info.run_id
    client = mlflow.MlflowClient()
    history = client.get_metric_history(run, "pliant/dead_fraction/fc1")
    assert [(entry.step, entry.value) for entry in history] == [(500, 0.25), (1000, 0.5)]
    assert "pliant/dead_fraction/heads_heads" in client.get_run(run).data.metrics
    assert "dead units" in client.get_run(run).data.tags["pliant.alarm.dead_fraction.fc1"]
    mlflow.end_run()


def test_wandb(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with pytest.raises(pliant.IllegalConfiguration, match=r"wandb\.init"):
        pliant.WandbWriter()
    run = wandb.init(mode="offline", dir=str(tmp_path), project="pliant")
    write(pliant.WandbWriter(run))
    summary = dict(run.summary)
    run.finish()
    assert summary["pliant/dead_fraction/fc1"] == 0.5
    assert summary["pliant/step"] == 1000
