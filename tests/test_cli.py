"""The command line: what it does, and the one line that it says when something is wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import pliant.bench.demo
from pliant.bench.demo import Tuned, demo, read_tuned
from pliant.cli import main
from pliant.commands import COMMANDS
from pliant.commands.progress import Board
from pliant.errors import IllegalConfiguration

ROOT = Path(__file__).parents[1]
TINY = ["--set", "stream.num_examples=16", "stream.num_epochs=1", "--tasks", "3", "--seeds", "2", "--workers", "0"]

NETS = """
import warnings

import torch
from torch import nn

def make():
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))

def with_inputs():
    return make(), torch.zeros(2, 6)

def linear():
    return nn.Linear(6, 3)

def number():
    return 3

def broken():
    raise RuntimeError("no weights here")

def compiled():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.compile's own
        return torch.compile(make())

NOTHING = None
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    (tmp_path / "cli_nets.py").write_text(NETS)
    yield
    sys.modules.pop("cli_nets", None)


def run(*arguments: str) -> int:
    return main([part for argument in arguments for part in argument.split()])


def run_tiny(*arguments: str) -> int:
    return main(["run", "random_label_digits", *TINY, *(part for argument in arguments for part in argument.split())])


# ---------------------------------------------------------------------------------------------------- what works


def test_help_names_every_command_and_option(capsys):
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)
    assert "pliant demo" in text
    for name, cls in COMMANDS.items():
        assert run(name, "--help") == 0
        text = capsys.readouterr().out
        assert all(example in text for example in cls.examples), name
        assert "--debug" in text


def test_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("pliant 0.")


def test_list_says_everything_that_can_be_named(capsys):
    assert run("list") == 0
    text = capsys.readouterr().out
    for word in (
        "random_label_digits",
        "permuted_mnist",
        "continual_backprop",
        "replacement_rate=0.0001",
        "effective_rank_fraction",
        "permuted_mnist mini",
        "num_examples=10000",
    ):
        assert word in text, word
    assert run("list methods") == 0
    text = capsys.readouterr().out
    assert "shrink_and_perturb" in text
    assert "random_label_digits" not in text


def test_run_leaves_records_and_the_second_time_runs_nothing(capsys, tmp_path):
    assert run_tiny("--method continual_backprop --set replacement_rate=0.01 --lr 0.05") == 0
    output = capsys.readouterr()
    assert "continual_backprop" in output.out
    (folder,) = (tmp_path / "results").iterdir()
    config = json.loads((folder / "experiment.json").read_text())["experiment"]
    assert config["methods"][0]["replacement_rate"] == 0.01
    assert config["optimizer"]["lr"] == 0.05
    assert config["stream"]["num_examples"] == 16
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("seed-*.json")}
    assert sorted(times) == ["seed-0000.json", "seed-0001.json"]
    assert run_tiny("--method continual_backprop --set replacement_rate=0.01 --lr 0.05") == 0
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("seed-*.json")} == times


def test_run_composes_methods_and_sets_every_part(tmp_path):
    assert (
        run_tiny("--method redo l2 --set redo.tau=0.2 l2.strength=1e-3 --set model.hidden=[8,8] --optimizer adam") == 0
    )
    (path,) = (tmp_path / "results").glob("*/experiment.json")
    config = json.loads(path.read_text())["experiment"]
    assert [(m["name"], m.get("tau"), m.get("strength")) for m in config["methods"]] == [
        ("redo", 0.2, None),
        ("l2", None, 0.001),
    ]
    assert config["model"]["hidden"] == [8, 8]
    assert config["optimizer"]["name"] == "adam"


def test_run_takes_an_experiment_file(tmp_path):
    (tmp_path / "mine.toml").write_text(
        'stream = "random_label_digits"\npreset = "demo"\nlabel = "mine"\nnum_tasks = 2\n'
        "[stream_options]\nnum_examples = 16\nnum_epochs = 1\n"
    )
    assert run("run mine.toml --seeds 1 --workers 0") == 0
    (path,) = (tmp_path / "results").glob("*/seed-0000.json")
    assert json.loads(path.read_text())["meta"]["label"] == "mine"


def test_run_without_a_preset_uses_the_streams_own_defaults(tmp_path):
    (tmp_path / "cli_stream.py").write_text("from pliant.bench.streams import RandomLabelDigits as Mine\n")
    short = "--set stream.num_examples=16 stream.num_epochs=1 --tasks 2 --seeds 1 --workers 0"
    assert run("run cli_stream:Mine", short) == 0


def test_report_writes_everything(capsys, tmp_path):
    assert run_tiny() == 0
    assert run_tiny("--method l2") == 0
    capsys.readouterr()
    assert run("report results --out a/report.html --csv a.csv --markdown a.md --figure a.svg") == 0
    text = capsys.readouterr().out
    assert "no protection" in text
    assert "baseline" in text
    for name in ("a/report.html", "a.csv", "a.md", "a.svg"):
        assert (tmp_path / name).stat().st_size > 200, name
        assert f"wrote {name}" in text
    page = (tmp_path / "a/report.html").read_text()
    assert "http:" not in page
    assert "https:" not in page


def test_units_shows_and_proves(capsys):
    assert run("units cli_nets:make --input 6 --verify") == 0
    text = capsys.readouterr().out
    assert "every group is proven" in text
    assert "it is the model's output" in text
    assert run("units cli_nets:with_inputs") == 0


def test_a_damaged_graph_is_not_proven(capsys, monkeypatch):
    from pliant.units.verify import Verification

    monkeypatch.setattr(Verification, "failures", ("permuting the units of 'x' changes the output",))
    assert run("units cli_nets:make --input 6 --verify") == 1
    assert "NOT proven" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------- what is wrong

WRONG = {
    "demoo": "there is no command 'demoo'; nearest: demo",
    "run random_label_digts": "there is no stream 'random_label_digts'; nearest: random_label_digits",
    "run random_label_digits --method contnual_backprop": "no method 'contnual_backprop'; nearest: continual_backprop",
    "run random_label_digits --method redo --set taw=1": "no option of method redo 'taw'; nearest: tau",
    "run random_label_digits --method redo --set tau=-1": "tau=-1.0 is out of range",
    "run random_label_digits --method redo --set tau": "write KEY=VALUE",
    "run random_label_digits --method redo --set tau=1 tau=2": "tau is set twice",
    "run random_label_digits --set tau=1": "say whose option it is",
    "run random_label_digits --method redo --set reddo.tau=1": "nearest: redo",
    "run random_label_digits --set stream.num_exmples=3": "nearest: num_examples",
    "run random_label_digits --set stream.num_examples=0": "num_examples must be in 1..1797",
    "run random_label_digits --set model.hiden=3": "nearest: hidden",
    "run random_label_digits --preset mni": "no preset of random_label_digits 'mni'; valid: demo",
    "run random_label_digits --optimizer adamm": "nearest: adam",
    "run random_label_digits --lr abc": "--lr abc: expected FLOAT",
    "run random_label_digits --lr=-1": "Invalid learning rate: -1.0",
    "run random_label_digits --tasks 0": "num_tasks must be at least 1",
    "run random_label_digits --seeds 3:1": "a range such as 10:20",
    "run random_label_digits --seeds x": "give a number such as 10",
    "run random_label_digits --workers -1": "give 0 or a positive number",
    "run random_label_digits --sedes 3": "no option of pliant run '--sedes'; nearest: --seeds",
    "run random_label_digits --stream x": "no option of pliant run '--stream'",
    "run random_label_digits --data-dir .": "reads no data files",
    "run random_label_digits --method l2 l2": "each method can be given once",
    "run": "STREAM",
    "run missing.toml": "missing.toml: cannot be read as an experiment",
    "run nowhere:Stream": "module 'nowhere' cannot be imported",
    "list stream": "no list 'stream'; nearest: streams",
    "report nowhere": "nowhere: there is no such folder",
    "report .": "holds no records",
    "units cli_nets": "write my.module:factory",
    "units nowhere:make": "module 'nowhere' cannot be imported from here",
    "units cli_nets:mak": "no function in module cli_nets 'mak'; nearest: make",
    "units cli_nets:make": "say what it takes, for example --input 3,32,32",
    "units cli_nets:make --input 6,x": "give the sizes of one example",
    "units cli_nets:make --input 7": "fails on the example inputs",
    "units cli_nets:linear --input 6": "has no hidden units",
    "units cli_nets:number --input 6": "returned int",
    "units cli_nets:broken --input 6": "raised RuntimeError: no weights here",
    "units cli_nets:compiled --input 6": "is compiled",
    "units cli_nets:NOTHING --input 6": "is no function",
    "demo --seeds 90:110": "seeds 100 to 104 chose the settings",
    "demo --workers -1": "give 0 or a positive number",
}


@pytest.mark.parametrize(("line", "message"), WRONG.items(), ids=WRONG)
def test_what_a_user_gets_wrong_is_one_line_and_leaves_nothing(capsys, tmp_path, line: str, message: str):
    before = sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__")
    assert run(line) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.startswith("pliant: ")
    assert output.err.count("\n") == 1
    assert "Traceback" not in output.err
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == before


def test_debug_shows_where(capsys):
    assert run("report nowhere --debug") == 2
    assert "Traceback" in capsys.readouterr().err


def test_missing_data_is_said_before_anything_runs(capsys, tmp_path, monkeypatch):
    from pliant.bench.data import mnist

    monkeypatch.setattr(mnist, "MIRRORS", ())
    monkeypatch.setattr(mnist.download, "__defaults__", ((), *mnist.download.__defaults__[1:]))
    assert run("run permuted_mnist --data-dir empty --seeds 1") == 2
    error = capsys.readouterr().err
    assert "train-images-idx3-ubyte" in error
    assert "empty" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_a_damaged_record_is_named_with_its_remedy(capsys, tmp_path):
    assert run_tiny() == 0
    (path,) = (tmp_path / "results").glob("*/seed-0000.json")
    path.write_text(path.read_text()[:100])
    capsys.readouterr()
    for again in (lambda: run_tiny(), lambda: run("report results")):
        assert again() == 2
        error = capsys.readouterr().err
        assert "seed-0000.json" in error
        assert "damaged" in error
        assert error.count("\n") == 1
    assert len(path.read_text()) == 100  # nobody wrote over what is left of it


def test_a_folder_that_holds_another_experiment(capsys, tmp_path):
    assert run_tiny() == 0
    (path,) = (tmp_path / "results").glob("*/experiment.json")
    data = json.loads(path.read_text())
    data["experiment"]["num_tasks"] = 4
    path.write_text(json.dumps(data))
    capsys.readouterr()
    assert run_tiny("--seeds 3") == 2
    error = capsys.readouterr().err
    assert path.parent.name in error
    assert error.count("\n") == 1
    # And the folder of one experiment is no results folder.
    assert run_tiny(f"--out results/{path.parent.name}") == 2
    assert "name the one it lies in" in capsys.readouterr().err


def test_report_asks_which_stream_and_which_metric(capsys):
    assert run_tiny() == 0
    assert (
        run("run permuted_digits --set stream.num_epochs=1 stream.num_examples=16 --tasks 2 --seeds 1 --workers 0") == 0
    )
    capsys.readouterr()
    for line, message in (
        ("--figure f.svg", "add --stream with one of"),
        ("--stream permuted_digts", "nearest: permuted_digits"),
        ("--stream permuted_digits --figure f.svg --metric test_acuracy", "nearest: test_accuracy"),
    ):
        assert run(f"report results {line}") == 2
        assert message in capsys.readouterr().err
    assert run("report results --stream permuted_digits --figure f.svg --metric test_accuracy") == 0
    assert "Random label" not in capsys.readouterr().out


def test_a_diverged_seed_is_reported_and_is_no_success(capsys):
    assert run_tiny("--lr 1e30") == 1
    output = capsys.readouterr()
    assert "failed" in output.out
    assert "failed: no protection" in output.err


# ------------------------------------------------------------------------------------------ Ctrl-C, and the demo


SLOW = """
import time
from dataclasses import dataclass
from pliant.bench.streams import RandomLabelDigits

@dataclass(frozen=True)
class Slow:
    name = "slow"
    num_inputs = 64
    num_classes = 10

    def task(self, index, seed):
        time.sleep(0.1)
        return RandomLabelDigits(num_examples=16, num_epochs=1).task(index, seed)
"""


@pytest.mark.parametrize(
    ("number", "workers"),
    [
        (signal.SIGINT, "2"),
        pytest.param(signal.SIGINT, "0", marks=pytest.mark.wide),
        pytest.param(signal.SIGTERM, "2", marks=pytest.mark.wide),
    ],
)
def test_an_interrupted_run_says_how_to_go_on_and_goes_on(tmp_path, number, workers):
    (tmp_path / "cli_slow.py").write_text(SLOW)
    arguments = f"run cli_slow:Slow --seeds 2 --tasks 25 --workers {workers}".split()
    command = [sys.executable, "-m", "pliant.cli", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("results/*/.lock")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "run the same command again" in err
    assert "Traceback" not in err
    assert not list(tmp_path.glob("results/*/seed-*.json"))
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("results/*/seed-*.json"))) == 2


def tiny_demo(*, quick: bool = False) -> list[Tuned]:
    """The demo with all its streams and methods, and almost no work."""
    tiny = []
    for tuned in demo(quick=quick):
        short = []
        for experiment in tuned.experiments:
            options = {**experiment.stream.options, "num_examples": 16, "num_epochs": 1}
            short.append(experiment.replace(stream=replace(experiment.stream, options=options), num_tasks=2))
        tiny.append(replace(tuned, experiments=tuple(short)))
    return tiny


def test_the_demo_from_start_to_report(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(pliant.bench.demo, "demo", tiny_demo)
    assert run("demo --out shown --seeds 2 --workers 0") == 0
    output = capsys.readouterr()
    assert "shown/report.html" in output.out
    assert output.err.count("tasks, accuracy while learning") == 18
    page = (tmp_path / "shown/report.html").read_text()
    for word in ("continual backprop", "Held-out accuracy", "stationary control", "CC BY 4.0", "Dead units"):
        assert word in page, word
    assert len(list((tmp_path / "shown/results").glob("*/seed-*.json"))) == 36
    # What was run is not run again.
    assert run("demo --out shown --seeds 2 --workers 0") == 0
    assert capsys.readouterr().err == ""


def test_what_the_demo_runs():
    plans = demo()
    assert [tuned.stream for tuned in plans] == ["random_label_digits", "permuted_digits", "stationary_digits"]
    for tuned in plans:
        assert tuned.text
        names = [[part.name for part in experiment.methods] for experiment in tuned.experiments]
        assert sorted(names) == [
            [],
            ["continual_backprop"],
            ["fresh_start"],
            ["l2"],
            ["redo"],
            ["shrink_and_perturb"],
        ]
        # Whatever is not the method or its step size is the same for all.
        shared = {
            json.dumps(
                {key: value for key, value in experiment.to_dict().items() if key not in ("methods", "optimizer")}
            )
            for experiment in tuned.experiments
        }
        assert len(shared) == 1
    assert all(tuned.experiments[0].num_tasks <= 12 for tuned in demo(quick=True))


TUNED = """
stream = "random_label_digits"
preset = "demo"
[tuning]
text = "how"
[[runs]]
label = "a"
methods = []
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TUNED + "[[runs]]\nlabel = 'b'\nmethods = []\n", "two runs are the same"),
        (TUNED + "[[runs]]\nlabel = 'b'\nmethods = [{ name = 'l3' }]\n", "no method 'l3'; nearest: l2"),
        (TUNED + "[[runs]]\nlable = 'b'\n", "nearest: label"),
        (TUNED.replace("preset", "prset"), "nearest: preset"),
        (TUNED.replace('"demo"', '"dmo"'), "valid: demo|nearest: demo"),
        (TUNED + "[[runs]]\nmethods = []\n", "a run without label"),
        ("stream = ", "x.toml"),
        ('stream = "random_label_digits"\n', "preset is missing"),
    ],
)
def test_a_wrong_tuned_file_is_named(text, message):
    assert len(read_tuned(TUNED, "x.toml").experiments) == 1
    with pytest.raises(IllegalConfiguration, match=message) as caught:
        read_tuned(text, "x.toml")
    assert str(caught.value).startswith("x.toml: ")


def test_the_board_fits_and_tells_the_time_left():
    import io

    from rich.console import Console

    from pliant.bench.runner import Progress

    experiments = [experiment for tuned in demo() for experiment in tuned.experiments]
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=16)
    board = Board(experiments, {experiment.id: 100 for experiment in experiments}, 10, {}, 2, console)
    assert board.seconds_left() != board.seconds_left()  # nothing is known yet
    first = experiments[0]
    progress = Progress(first.id, first.label, tuple(range(10)), 25, 50, 0.5, 0.75, 1, 20.0, "online_accuracy")
    with board.shown():
        board.update(progress)
    # One experiment is half done after 20 s; 17.5 are left, for two workers.
    assert board.seconds_left() == pytest.approx(17.5 * 40 / 2)
    console.print(board)
    text = console.file.getvalue()
    last = text.splitlines()[-16:]
    assert len(last) <= 16
    assert "75.0 %" in text
    assert "more rows not shown" in text
    board.update(replace(progress, num_done=50))
    assert board.rows[first.id].finished
