"""What is short: time, disk, memory, processes. Nothing is lost or half-written, and it goes on with the same bits."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_bench_runner import METHODS, series, tiny

from pliant import records
from pliant.bench import checkpoint
from pliant.bench.experiment import Experiment
from pliant.bench.jobs import survey
from pliant.bench.memory import check_memory, num_parameters, return_freed, total_memory
from pliant.bench.runner import _Watch, run_experiments
from pliant.errors import IllegalConfiguration
from pliant.records import StorageError

HERE = Path(__file__).parent


def methods(num_tasks=8, **options):
    return tiny(num_tasks=num_tasks, methods=METHODS["continual_backprop"], **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The records of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    run_experiments([methods()], [0, 1], folder, num_workers=0)
    return series(folder, methods())


def hidden(folder):
    """What a writer leaves behind when it is stopped."""
    return [path for path in folder.rglob(".*") if path.name.endswith(".tmp")]


# ---- time


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.wide)])
def test_the_time_is_up_at_a_task_boundary_and_a_later_run_goes_on(tmp_path, whole, num_workers):
    slow = methods(seconds=0.25)
    quick = tiny(num_tasks=2)
    report = run_experiments([quick, slow], [0, 1], tmp_path, num_workers=num_workers, max_seconds=1.0 + num_workers)
    assert report.out_of_time
    assert not report.interrupted
    assert "the time is up" in report.message
    assert "run the same command again" in report.message
    found = records.read_records(tmp_path)
    assert all(record.status == "complete" for record in found)
    assert len(series(tmp_path, slow)) == 0
    seen = []
    report = run_experiments([quick, methods()], [0, 1], tmp_path, num_workers=0, on_progress=seen.append)
    assert (report.num_complete, report.out_of_time) == (4, False)
    assert series(tmp_path, slow) == whole


def test_a_task_that_would_end_too_late_is_not_begun():
    asked = []
    watch = _Watch(time.time() + 1000, lambda: bool(asked))
    assert not watch()  # nobody knows yet how long a task lasts
    watch.last -= 2000
    watch.task_done()
    assert watch()
    watch = _Watch(None, lambda: bool(asked))
    watch.longest = 1e9
    assert not watch()
    asked.append(True)
    assert watch()


def test_time_must_be_positive(tmp_path):
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(IllegalConfiguration, match="max_seconds"):
            run_experiments([tiny()], [0], tmp_path, num_workers=0, max_seconds=wrong)
    assert list(tmp_path.iterdir()) == []


# ---- disk


@contextlib.contextmanager
def small_files(size):
    """No file may grow beyond this: every write behind it fails, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("size", "every", "num_workers"),
    [
        pytest.param(200, 0.0, 0, id="no folder"),
        pytest.param(5000, 0.0, 0, id="no checkpoint"),
        pytest.param(1500, 1e9, 0, id="no record"),
        pytest.param(5000, 0.0, 2, id="no checkpoint in a worker", marks=pytest.mark.wide),
    ],
)
def test_a_write_that_fails_stops_the_run_and_loses_nothing(tmp_path, whole, size, every, num_workers):
    with small_files(size), pytest.raises(StorageError, match=r"cannot be written.*what was finished is kept"):
        run_experiments([methods()], [0, 1], tmp_path, num_workers=num_workers, checkpoint_every=every)
    assert hidden(tmp_path) == []
    assert series(tmp_path, methods()) == {}
    assert run_experiments([methods()], [0, 1], tmp_path, num_workers=0).num_complete == 2
    assert series(tmp_path, methods()) == whole


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("a small file system cannot be mounted here; the limit on file sizes is tested all the same")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_stops_the_run_and_more_space_lets_it_go_on(small_disk, whole):
    """Filled to several heights, so that it is the folder, a checkpoint, a later checkpoint or a record that fails."""
    stopped = set()
    for room in (0, 8, 24, 60, 100):
        results = small_disk / "results"
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        os.truncate(filler, max(0, filler.stat().st_size - 1024 * room))
        try:
            run_experiments([methods()], [0, 1], results, num_workers=0, checkpoint_every=0)
        except StorageError as error:
            message = str(error)
            stopped.add(len(list(results.rglob("*"))) if results.exists() else 0)
            if "No space left" not in message:
                raise
        assert hidden(small_disk) == []
        filler.unlink()
        run_experiments([methods()], [0, 1], results, num_workers=0, checkpoint_every=0)
        assert series(results, methods()) == whole
        shutil.rmtree(results)
    assert len(stopped) >= 2, "it stopped at different moments"


# ---- memory


def test_what_can_never_fit_is_refused_with_what_would():
    experiment = tiny()
    task = experiment.build_stream().task(0, 0)
    assert num_parameters(experiment) == sum(p.numel() for p in experiment.build_model(0).parameters())
    assert task.num_bytes == 22 * 6 * 4 + 22 * 8 + 5 * 6 * 4 + 5 * 8
    each = 8 * num_parameters(experiment) + task.num_bytes
    check_memory(experiment, 3, task, memory=3 * each)
    with pytest.raises(IllegalConfiguration, match=r"of 3 seeds.*at most 2 seeds together \(--stack 2\)"):
        check_memory(experiment, 3, task, memory=3 * each - 1)
    with pytest.raises(IllegalConfiguration, match=r"of 1 seed, .*: take a smaller preset"):
        check_memory(experiment, 1, task, memory=each - 1)
    assert total_memory() > 2**28


def test_a_task_that_can_never_fit_is_not_even_made():
    """What its stream says of it is enough."""
    long = Experiment(("slowly_changing_regression", {"task_length": 10**13}), num_tasks=1)
    with pytest.raises(IllegalConfiguration, match=r"needs at least \d+ TB"):
        check_memory(long, 1)


def test_an_impossible_experiment_leaves_no_folder(tmp_path):
    huge = tiny().replace(model=("mlp", {"hidden": [3_000_000, 3_000_000]}))
    with pytest.raises(IllegalConfiguration, match="72 TB"):
        run_experiments([tiny(), huge], [0], tmp_path, num_workers=0)
    assert list(tmp_path.iterdir()) == []


def test_seeds_can_be_stacked_in_smaller_groups(tmp_path):
    experiment = tiny()
    plan = survey(experiment, range(5), tmp_path, max_stacked=2)
    assert plan.groups == ((0, 1), (2, 3), (4,))
    assert list(tmp_path.iterdir()) == []  # a survey writes nothing
    run_experiments([experiment], range(5), tmp_path / "groups", num_workers=0, max_stacked=2)
    run_experiments([experiment], range(5), tmp_path / "one", num_workers=0)
    for one, other in zip(*(records.read_records(tmp_path / name) for name in ("groups", "one")), strict=True):
        assert one.series["loss"] == pytest.approx(other.series["loss"], rel=1e-5)
    with pytest.raises(IllegalConfiguration, match="at least one seed in a stack"):
        survey(experiment, [7], tmp_path, max_stacked=0)


# ---- processes


def test_a_worker_that_was_killed_is_replaced_and_its_job_goes_on(tmp_path):
    experiment = tiny(num_tasks=6, die=(1, 3), die_once=str(tmp_path / "died"))
    seen = []
    report = run_experiments(
        [experiment], [0, 1], tmp_path / "broken", num_workers=1, checkpoint_every=0, on_progress=seen.append
    )
    assert (tmp_path / "died").exists()
    assert (report.num_complete, report.num_failed) == (2, 0)
    done = [progress.num_done for progress in seen]
    assert done[-1] == 6
    assert len(done) <= 7, "it went on from its checkpoint"
    run_experiments([experiment], [0, 1], tmp_path / "whole", num_workers=0)
    assert series(tmp_path / "broken", experiment) == series(tmp_path / "whole", experiment)
    assert checkpoint.find_checkpoints(tmp_path / "broken" / experiment.id) == []


CROWDED = """
import resource, sys
sys.path[:0] = [{here!r}, {root!r}]
from test_bench_limits import methods
from pliant.bench.runner import run_experiments
from pliant.errors import PliantError
if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NPROC, ({limit}, {limit}))
    try:
        print(run_experiments([methods()], [0, 1], {results!r}, num_workers=2, max_stacked=1).message)
    except PliantError as error:
        print("refused:", error)
"""


@pytest.mark.wide
@pytest.mark.skipif(sys.platform != "linux", reason="counts the processes of a user as Linux does")
def test_where_no_process_can_be_started_it_says_so_or_makes_do_with_fewer(tmp_path, whole):
    """With room for no whole worker, and for one of the two."""
    # The limit does not hold for root, so that the runner becomes somebody else, who may read and write here.
    command = [sys.executable, str(tmp_path / "run.py")]
    if os.getuid() == 0:
        rights = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
        command = ["setpriv", "--reuid=65534", "--clear-groups", *rights, *command]
        probe = shutil.which("setpriv") and subprocess.run([*command[:-1], "-c", ""], capture_output=True, check=False)
        if not probe or probe.returncode:
            pytest.skip("root has no limit on processes, and cannot become somebody else here")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HOME": str(tmp_path)}
    said = set()
    for limit in (4, 6):
        results = tmp_path / f"results-{limit}"
        script = CROWDED.format(here=str(HERE), root=str(HERE.parents[1]), limit=limit, results=str(results))
        (tmp_path / "run.py").write_text(script)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said.add(done.stdout.split()[0])
        assert "no worker process could be started" in done.stdout or "2 of 2 records complete" in done.stdout
        found = records.read_records(results) if results.exists() else []
        assert not any(record.status == "failed" for record in found)
        run_experiments([methods()], [0, 1], results, num_workers=0)
        assert set(series(results, methods())) == set(whole)
    assert said == {"refused:", "2"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc is asked to give memory back")
def test_freed_memory_between_used_blocks_goes_back_to_the_system():
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    pairs = [(bytearray(60_000), bytearray(2_000)) for _ in range(1500)]  # 90 MB below the size that is mapped
    kept = [small for _, small in pairs]
    del pairs
    before = resident()
    if not return_freed():
        pytest.skip("another C library than glibc")
    assert before - resident() > 40_000_000
    assert len(kept) == 1500
