"""Both engines: order, deaths of workers, mistakes, and clean ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_e5.curation.engines import engine
from lightning_e5.curation.engines.engine import LocalEngine, RayEngine, make_engine
from lightning_e5.curation.engines.processes import TaskFailed, WorkerDied
from lightning_e5.errors import UserError
from tests.lightning_e5.curation.engines import engine_tasks
from tests.lightning_e5.curation.engines.engine_tasks import Job
from tests.processes import alive

ROOT = Path(__file__).resolve().parents[4]


def jobs(folder: Path, count: int = 6, **deaths: int) -> list[Job]:
    return [Job(f"job {i}", i, folder, deaths.get(f"job{i}", 0)) for i in range(count)]


def test_results_come_in_order_from_several_processes(tmp_path: Path) -> None:
    results = list(LocalEngine(workers=2).map(engine_tasks.square, jobs(tmp_path), title="squares"))
    assert [value for value, _ in results] == [0, 1, 4, 9, 16, 25]
    processes = {process for _, process in results}
    assert len(processes) == 2 and os.getpid() not in processes
    assert list(LocalEngine(workers=2).map(engine_tasks.square, [], title="none")) == []


def test_a_dead_workers_task_is_tried_once_more(tmp_path: Path) -> None:
    results = list(LocalEngine(workers=2).map(engine_tasks.square, jobs(tmp_path, job2=1), title="squares"))
    assert [value for value, _ in results] == [0, 1, 4, 9, 16, 25]
    assert len(list(tmp_path.glob("try-2-*"))) == 2


def test_a_task_whose_worker_dies_twice_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkerDied, match=r"squares: the worker of task job 1 died twice \(exit code -9\)"):
        list(LocalEngine(workers=1).map(engine_tasks.square, jobs(tmp_path, job1=2), title="squares"))


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (engine_tasks.mistake, UserError, "^job 0: no such file$"),
        (engine_tasks.defect, TaskFailed, "(?s)work: task job 0 failed:.*KeyError: 'job 0'"),
        (engine_tasks.full_disk, OSError, "No space left on device: 'somewhere'"),
    ],
)
def test_what_a_task_raises(tmp_path: Path, function: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        list(LocalEngine(workers=1).map(function, jobs(tmp_path, 1), title="work"))


def test_gpus_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7,9")
    seen = set(LocalEngine(workers=8).map(engine_tasks.visible_gpus, jobs(tmp_path, 4), title="gpus", gpus_per_task=2))
    assert seen == {"3,5", "6,7"}
    with pytest.raises(UserError, match="needs 6 GPUs and this machine shows 5"):
        list(LocalEngine().map(engine_tasks.visible_gpus, jobs(tmp_path, 1), title="gpus", gpus_per_task=6))


def test_a_task_without_a_gpu_of_its_own_sees_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Else there would be a model per core in the memory of the first."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    for count in (0, 2):
        monkeypatch.setattr(engine, "visible_gpus", lambda count=count: count)
        assert set(LocalEngine(workers=2).map(engine_tasks.visible_gpus, jobs(tmp_path, 2), title="embed")) == {""}
        assert ("embed: tasks compute on the CPU; the 2 GPUs" in capsys.readouterr().err) is bool(count)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    code = (
        "import sys, pathlib\n"
        "from lightning_e5.curation.engines.engine import LocalEngine\n"
        "from tests.lightning_e5.curation.engines import engine_tasks as t\n"
        "if __name__ == '__main__':\n"
        "    jobs = [t.Job(f'job {i}', i, pathlib.Path(sys.argv[1])) for i in range(4)]\n"
        "    list(LocalEngine(workers=2).map(t.sleep_long, jobs, title='sleep'))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # Where these tests run in the background, SIGINT is ignored, and a child would inherit that.
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    wait_until(lambda: len(list(tmp_path.glob("pid-*"))) == 2)
    parent.send_signal(number)
    errors = parent.communicate(timeout=30)[1]
    assert number == signal.SIGKILL or errors.count("Traceback") == 1, errors
    pids = [int(p.name.removeprefix("pid-")) for p in tmp_path.glob("pid-*")]
    wait_until(lambda: not any(map(alive, pids)))


def wait_until(condition: Any, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_engines_by_name() -> None:
    assert isinstance(make_engine("local"), LocalEngine) and isinstance(make_engine("ray"), RayEngine)
    engine = LocalEngine(2)
    assert make_engine(engine) is engine and isinstance(make_engine(None), LocalEngine)
    with pytest.raises(UserError, match="engine: 'rai' is no engine; did you mean 'ray'"):
        make_engine("rai")
    with pytest.raises(UserError, match="workers: 0"):
        LocalEngine(0)


def test_ray_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"Ray is not installed; pip install -r requirements-cluster\.txt"):
        list(RayEngine().map(engine_tasks.square, jobs(tmp_path), title="squares"))


@pytest.fixture
def two_nodes() -> Iterator[str]:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    yield cluster.address
    cluster.shutdown()


@pytest.mark.slow
def test_ray_on_two_nodes_survives_a_dead_worker(tmp_path: Path, two_nodes: str) -> None:
    engine = RayEngine(address=two_nodes, retries=1)
    results = list(engine.map(engine_tasks.square, jobs(tmp_path, job2=1), title="squares"))
    assert [value for value, _ in results] == [0, 1, 4, 9, 16, 25]
    assert len(list(tmp_path.glob("try-2-*"))) == 2
    assert len(set(engine.map(engine_tasks.ray_node, jobs(tmp_path), title="nodes"))) == 2
    again = tmp_path / "again"
    again.mkdir()
    with pytest.raises(WorkerDied, match="the worker of task job 1 died on 2 tries"):
        list(engine.map(engine_tasks.square, jobs(again, 2, job1=2), title="squares"))
    with pytest.raises(UserError, match=r"^job 0: no such file$"):
        list(engine.map(engine_tasks.mistake, jobs(tmp_path, 1), title="work"))
    with pytest.raises(UserError, match="needs 1 GPUs per task; the Ray cluster has 0"):
        list(engine.map(engine_tasks.square, jobs(tmp_path), title="squares", gpus_per_task=1))
