"""Jobs on a Ray cluster of two nodes on this machine: the bits of a local run, whatever is killed."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(HERE))

from test_bench_runner import METHODS, series, tiny  # noqa: E402

from pliant import records  # noqa: E402
from pliant.bench import checkpoint  # noqa: E402
from pliant.bench.runner import run_experiments  # noqa: E402

ray = pytest.importorskip("ray", reason="Ray is not installed here; `make test-ray` runs this in a venv of its own")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def cluster():
    """Two nodes with one CPU each; the second may be killed and is replaced then."""
    from ray.cluster_utils import Cluster

    # The nodes' processes import from where this one does.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), *filter(None, sys.path)])
    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    made = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    made.small = small
    made.second = made.add_node(**small)
    made.wait_for_nodes()
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


def local(experiments, seeds, folder):
    run_experiments(experiments, seeds, folder, num_workers=0)
    return {experiment.id: series(folder, experiment) for experiment in experiments}


def test_the_records_are_those_of_a_local_run(cluster, tmp_path):
    experiments = [tiny(num_tasks=3, methods=METHODS[name]) for name in ("none", "continual_backprop")]
    experiments.append(tiny(num_tasks=3, explode=(1, 2)))
    seen = []
    report = run_experiments(
        experiments, [0, 1], tmp_path / "ray", backend="ray", num_workers=None, max_stacked=1, on_progress=seen.append
    )
    assert (report.num_complete, report.num_failed) == (5, 1)
    assert {progress.seeds for progress in seen} == {(0,), (1,)}
    run_experiments(experiments, [0, 1], tmp_path / "local", num_workers=0, max_stacked=1)
    for experiment in experiments:
        assert series(tmp_path / "ray", experiment) == series(tmp_path / "local", experiment)
        assert checkpoint.find_checkpoints(tmp_path / "ray" / experiment.id) == []


def test_a_killed_worker_is_replaced_and_its_job_goes_on(cluster, tmp_path):
    deadly = tiny(num_tasks=8, die=(1, 4), die_once=str(tmp_path / "died"), seconds=0.2)
    hopeless = tiny(num_tasks=3, die=(0, 1))
    seen = []
    report = run_experiments(
        [deadly, hopeless], [0, 1], tmp_path / "ray", backend="ray", checkpoint_every=0, on_progress=seen.append
    )
    assert (tmp_path / "died").exists()
    assert (report.num_complete, report.num_failed) == (2, 2)
    failed = [record for record in records.read_records(tmp_path / "ray") if record.status == "failed"]
    assert all("worker on the cluster ended" in record.error for record in failed)
    assert {record.experiment_id for record in failed} == {hopeless.id}
    done = [progress.num_done for progress in seen if progress.experiment_id == deadly.id]
    assert done[-1] == 8
    assert done.count(1) == 1, "it went on from a checkpoint that had arrived"
    whole = local([tiny(num_tasks=8, die=(1, 4), die_once=str(tmp_path / "died"))], [0, 1], tmp_path / "local")
    assert series(tmp_path / "ray", deadly) == whole[deadly.id]


def test_a_machine_that_is_gone_is_done_without(cluster, tmp_path):
    experiments = [tiny(num_tasks=n, methods=METHODS["shrink_and_perturb"], seconds=0.2) for n in (8, 9)]
    gone = []

    def kill(progress):
        if len(gone) == 0 and progress.num_done >= 3:
            cluster.remove_node(cluster.second, allow_graceful=False)
            gone.append(progress)

    report = run_experiments(experiments, [0, 1], tmp_path / "ray", backend="ray", checkpoint_every=0, on_progress=kill)
    assert gone
    assert (report.num_complete, report.num_failed) == (4, 0)
    whole = local(
        [experiment.replace(stream="stream_zoo:Tiny") for experiment in experiments], [0, 1], tmp_path / "local"
    )
    for experiment in experiments:
        assert series(tmp_path / "ray", experiment) == whole[experiment.id]
    cluster.second = cluster.add_node(**cluster.small)
    cluster.wait_for_nodes()


def test_the_time_is_up_and_a_local_run_goes_on(cluster, tmp_path):
    slow = tiny(num_tasks=12, methods=METHODS["continual_backprop"], seconds=0.6)
    for _ in range(4):  # on a busy machine, the time may be up before the first task is done
        report = run_experiments([slow], [0, 1], tmp_path / "ray", backend="ray", max_seconds=6.0)
        assert report.out_of_time
        if checkpoint.find_checkpoints(tmp_path / "ray" / slow.id):
            break
    assert checkpoint.find_checkpoints(tmp_path / "ray" / slow.id) == [(0, 1)]
    quick = tiny(num_tasks=12, methods=METHODS["continual_backprop"])
    seen = []
    assert run_experiments([quick], [0, 1], tmp_path / "ray", num_workers=0, on_progress=seen.append).num_complete == 2
    assert len(seen) < 12
    assert series(tmp_path / "ray", slow) == local([quick], [0, 1], tmp_path / "local")[quick.id]


def test_ctrl_c_keeps_what_was_done(cluster, tmp_path):
    slow = tiny(num_tasks=30, seconds=0.2)

    def interrupt(progress):
        if progress.num_done == 3:
            raise KeyboardInterrupt

    started = time.monotonic()
    report = run_experiments([slow], [0, 1], tmp_path / "ray", backend="ray", checkpoint_every=0, on_progress=interrupt)
    assert report.interrupted
    assert time.monotonic() - started < 60
    assert checkpoint.find_checkpoints(tmp_path / "ray" / slow.id) == [(0, 1)]
    seen = []
    run_experiments([tiny(num_tasks=30)], [0, 1], tmp_path / "ray", num_workers=0, on_progress=seen.append)
    assert len(seen) < 28
    assert series(tmp_path / "ray", slow) == local([tiny(num_tasks=30)], [0, 1], tmp_path / "local")[slow.id]
