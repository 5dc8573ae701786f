"""Where readings go: files, and the loggers that people use. What a logger needs is imported when it is first used."""

from __future__ import annotations

import csv
import json
import math
import re
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TextIO, final

from pliant.errors import IllegalConfiguration
from pliant.monitor.alarms import Alarm
from pliant.monitor.history import Reading

__all__ = ["CSVWriter", "JSONLWriter", "MLflowWriter", "TensorBoardWriter", "WandbWriter", "Writer"]


class Writer(Protocol):
    """Something that stores readings; anything with these three methods will do."""

    def write(self, reading: Reading) -> None:
        """Store a reading."""

    def write_alarm(self, alarm: Alarm) -> None:
        """Store an alarm that was raised, or withdrawn (``alarm.cleared`` is then a step)."""

    def close(self) -> None:
        """No more will come."""


def _imported(module: str, extra: str, writer: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise IllegalConfiguration(
            f"{writer} needs {extra}, which cannot be imported ({error}): pip install 'pliant[{extra}]'."
        ) from error


def _named(reading: Reading, prefix: str) -> dict[str, float]:
    return {
        f"{prefix}/{metric}/{where}": value
        for metric, places in reading.values.items()
        for where, value in places.items()
    }


class _File:
    """A text file that is appended to, and complete after every reading."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: TextIO | None = None

    def open(self) -> TextIO:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8", newline="")
        return self._file

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


@final
class CSVWriter:
    """Appends to a table: one row for each value, with the columns ``step, metric, where, value``.

    Alarms are rows, too: their metric is ``alarm:<mechanism>`` (``cleared:<mechanism>`` when withdrawn), their value
    that of the metric. What is not finite is written as ``nan``.

    Args:
        path: The file; folders are made.

    Example:
        >>> import tempfile, pathlib, torch, pliant
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "plasticity.csv"
        >>> watch = pliant.monitor(
        ...     model, optimizer, ["weight_magnitude"], example_inputs=torch.randn(3, 4), every=1, budget=None,
        ...     writers=[pliant.CSVWriter(path)],
        ... )
        >>> model(torch.randn(3, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> watch.detach()
        >>> path.read_text().splitlines()[0]
        'step,metric,where,value'
    """

    def __init__(self, path: str | Path) -> None:
        self._file = _File(path)

    def _rows(self, rows: list[tuple[int, str, str, float]]) -> None:
        file = self._file.open()
        out = csv.writer(file, lineterminator="\n")
        if not file.tell():
            out.writerow(("step", "metric", "where", "value"))
        out.writerows(rows)
        file.flush()

    def write(self, reading: Reading) -> None:
        """Append the values."""
        pairs = ((metric, where, v) for metric, places in reading.values.items() for where, v in places.items())
        self._rows([(reading.step, metric, where, value) for metric, where, value in pairs])

    def write_alarm(self, alarm: Alarm) -> None:
        """Append the alarm."""
        kind, step = ("alarm", alarm.step) if alarm.cleared is None else ("cleared", alarm.cleared)
        self._rows([(step, f"{kind}:{alarm.mechanism}", alarm.where, alarm.value)])

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@final
class JSONLWriter:
    """Appends one JSON object per line: ``{"step", "values", "num_samples"}``, or ``{"alarm": {...}}``.

    JSON has no NaN: what is not finite is ``null``.

    Args:
        path: The file; folders are made.

    Example:
        >>> import tempfile, pathlib, torch, pliant
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "plasticity.jsonl"
        >>> watch = pliant.monitor(
        ...     model, optimizer, ["weight_magnitude"], example_inputs=torch.randn(3, 4), every=1, budget=None,
        ...     writers=[pliant.JSONLWriter(path)],
        ... )
        >>> model(torch.randn(3, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> watch.detach()
        >>> path.read_text().startswith('{"step": 1')
        True
    """

    def __init__(self, path: str | Path) -> None:
        self._file = _File(path)

    def _line(self, entry: dict[str, Any]) -> None:
        file = self._file.open()
        file.write(json.dumps(entry, allow_nan=False) + "\n")
        file.flush()

    def write(self, reading: Reading) -> None:
        """Append the values."""
        values = {
            metric: {where: value if math.isfinite(value) else None for where, value in places.items()}
            for metric, places in reading.values.items()
        }
        self._line({"step": reading.step, "values": values, "num_samples": dict(reading.num_samples)})

    def write_alarm(self, alarm: Alarm) -> None:
        """Append the alarm."""
        entry = alarm.to_dict()
        self._line({"alarm": {**entry, "value": alarm.value if math.isfinite(alarm.value) else None}})

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@final
class TensorBoardWriter:
    """Writes scalars ``<prefix>/<metric>/<where>`` and alarms as text (extra ``tensorboard``).

    Args:
        folder: A folder for a new ``SummaryWriter``, or a ``SummaryWriter`` that is used already (and not closed).
        prefix: Of all tags.

    Example:
        >>> import pliant
        >>> watch = pliant.monitor(model, optimizer, writers=[pliant.TensorBoardWriter("runs")])  # doctest: +SKIP
    """

    def __init__(self, folder: Any, prefix: str = "pliant") -> None:
        self._prefix, self._owns = prefix, isinstance(folder, (str, Path))
        if self._owns:
            _imported("tensorboard", "tensorboard", type(self).__name__)
            self._out: Any = import_module("torch.utils.tensorboard").SummaryWriter(str(folder))
        else:
            self._out = folder

    def write(self, reading: Reading) -> None:
        """Add the scalars."""
        for name, value in _named(reading, self._prefix).items():
            self._out.add_scalar(name, value, reading.step)

    def write_alarm(self, alarm: Alarm) -> None:
        """Add the alarm's sentence."""
        self._out.add_text(f"{self._prefix}/alarms", str(alarm), alarm.cleared or alarm.step)

    def close(self) -> None:
        """Flush, and close what was opened here."""
        self._out.flush()
        if self._owns:
            self._out.close()


@final
class WandbWriter:
    """Logs to a Weights & Biases run (extra ``wandb``).

    The values have their own step, ``<prefix>/step``, so that they do not get in the way of the steps of the run.
    Alarms are alerts of the run.

    Args:
        run: The run, from ``wandb.init(...)``; the one that is active if left out.
        prefix: Of all names.

    Raises:
        IllegalConfiguration: If no run is given, and ``wandb`` is not installed or has none active.

    Example:
        >>> import pliant
        >>> watch = pliant.monitor(model, optimizer, writers=[pliant.WandbWriter()])  # doctest: +SKIP
    """

    def __init__(self, run: Any = None, prefix: str = "pliant") -> None:
        if run is None:
            run = _imported("wandb", "wandb", type(self).__name__).run
        if run is None:
            raise IllegalConfiguration("no Weights & Biases run is active: call wandb.init(...) first, or pass run=.")
        self._run, self._prefix = run, prefix
        run.define_metric(f"{prefix}/step", hidden=True)
        run.define_metric(f"{prefix}/*", step_metric=f"{prefix}/step")

    def write(self, reading: Reading) -> None:
        """Log the values."""
        self._run.log({f"{self._prefix}/step": reading.step, **_named(reading, self._prefix)})

    def write_alarm(self, alarm: Alarm) -> None:
        """Send an alert."""
        self._run.alert(title=f"{alarm.mechanism} in {alarm.where}", text=str(alarm))

    def close(self) -> None:
        """The run is its owner's to finish."""


@final
class MLflowWriter:
    """Logs metrics to an MLflow run, and alarms as its tags (extra ``mlflow``).

    Characters that MLflow does not allow in a name become ``_``.

    Args:
        run_id: The run; the active one (or a new one) if left out.
        prefix: Of all names.

    Example:
        >>> import pliant
        >>> watch = pliant.monitor(model, optimizer, writers=[pliant.MLflowWriter()])  # doctest: +SKIP
    """

    def __init__(self, run_id: str | None = None, prefix: str = "pliant") -> None:
        self._mlflow = _imported("mlflow", "mlflow", type(self).__name__)
        self._prefix = prefix
        self._run_id = run_id or (self._mlflow.active_run() or self._mlflow.start_run()).info.run_id

    @staticmethod
    def _allowed(name: str) -> str:
        return re.sub(r"[^\w\-. /]", "_", name)

    def write(self, reading: Reading) -> None:
        """Log the values."""
        values = {self._allowed(name): value for name, value in _named(reading, self._prefix).items()}
        self._mlflow.log_metrics(values, step=reading.step, run_id=self._run_id)

    def write_alarm(self, alarm: Alarm) -> None:
        """Set a tag with the alarm's sentence."""
        name = self._allowed(f"{self._prefix}.alarm.{alarm.metric}.{alarm.where}")
        self._mlflow.MlflowClient().set_tag(self._run_id, name, str(alarm))

    def close(self) -> None:
        """The run is its owner's to end."""
