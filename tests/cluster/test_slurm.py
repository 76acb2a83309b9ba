"""SLURM itself (`.ci/slurm.sh`): an ablation as an array, preempted and requeued, and a training of two tasks."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from lightning_e5.ablation.slurm import SlurmLauncher
from lightning_e5.errors import UserError
from lightning_e5.files.storage import read_json
from tests.cluster.trainings import BASE, ROOT, assert_same_training, environment, experiment, rows, run_command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
SCRIPT = ROOT / ".ci" / "slurm.sh"
#: Long enough to be preempted twice in between.
STEPS = 400
TIMED = ("seconds", "data_seconds", "mfu", "memory_gb", "pairs_per_second", "tokens_per_second")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which SLURM's commands find it."""
    if shutil.which("slurmctld") is None or shutil.which("munged") is None:
        missing = "SLURM is not installed, or not in PATH (`.ci/slurm.sh install` as root; Debian's daemons are in /usr/sbin)"
        pytest.fail(missing) if os.environ.get("CI_SLURM") == "1" else pytest.skip(missing)
    if os.getuid() != 0:
        pytest.skip("slurmd needs root")
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run(["bash", str(SCRIPT), "start", str(folder)], capture_output=True, text=True, timeout=120)
    assert started.returncode == 0, started.stdout + started.stderr
    yield environment(SLURM_CONF=str(folder / "slurm.conf"))
    subprocess.run(["bash", str(SCRIPT), "stop", str(folder)], check=True, timeout=120)


def wait_until(done: Callable[[], object], process: subprocess.Popen[str] | None = None, seconds: float = 400) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < until, "did not happen in time"
        time.sleep(0.1)


def said_by(command: list[str], slurm: dict[str, str]) -> str:
    return subprocess.run(command, env=slurm, check=True, capture_output=True, text=True).stdout


def jobs(slurm: dict[str, str]) -> dict[str, str]:
    listed = said_by(["squeue", "--noheader", "--array", "--format=%i %T"], slurm).splitlines()
    return dict(line.split() for line in listed)


def ablation(folder: Path) -> Path:
    """The smoke ablation's two variants, one seed, with a training that lasts for some seconds."""
    tree = yaml.safe_load((ROOT / "experiments" / "ablations" / "smoke.yaml").read_text())
    over = {"threads": 1, "logger": {"mode": "disabled"}, "stages": {"pretrain": {"data": {"max_steps": STEPS}}}}
    tree |= {"ablation": "preempted", "seeds": [1], "scales": {"laptop": {"base": str(BASE), "over": over}}}
    path = folder / "preempted.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def test_a_preempted_array_ends_as_runs_that_nothing_interrupted(slurm: dict[str, str], tmp_path: Path) -> None:
    file, directory = ablation(tmp_path), tmp_path / "ablations" / "preempted-laptop"
    warm, cold = directory / "warm-seed1", directory / "cold-seed1"
    command = [sys.executable, "-m", "lightning_e5", "ablate", str(file), f"runs_dir={tmp_path}", "--launcher", "slurm", "--slurm", "timeout_min=60"]
    ablate = subprocess.Popen(command, cwd=ROOT, env=slurm, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    # A warning, as SLURM sends it before a time limit: all processes of the job get it.
    wait_until(lambda: len(rows(warm)) >= 40, ablate)
    array = sorted(jobs(slurm))
    assert [job.partition("_")[2] for job in array] == ["0", "1"] and len({job.partition("_")[0] for job in array}) == 1, "one array"
    subprocess.run(["scancel", "--signal=USR1", array[0]], env=slurm, check=True)
    wait_until(lambda: jobs(slurm).get(array[0]) == "PENDING", ablate)
    stopped_at = len(rows(warm))
    assert 40 <= stopped_at < STEPS
    saved = [int(p.stem.removeprefix("step-")) for p in (warm / "stages/pretrain/checkpoints").glob("step-*.ckpt")]
    assert max(saved) == stopped_at, "nothing but the step that it was in is lost"
    wait_until(lambda: read_json(directory / "status.json")["warm-seed1"]["state"] == "waiting", ablate)

    # A job of more priority, for which SLURM itself preempts and requeues what runs.
    wait_until(lambda: len(rows(warm)) >= stopped_at + 40 and len(rows(cold)) >= 40, ablate)
    urgent = ["sbatch", "--partition=high", "--ntasks=2", f"--output={tmp_path / 'urgent.txt'}", "--wrap=hostname"]
    subprocess.run(urgent, env=slurm, check=True, capture_output=True)
    wait_until(lambda: (tmp_path / "urgent.txt").is_file(), ablate)

    said = ablate.communicate(timeout=580)[0]
    assert ablate.returncode == 0, said
    assert {name: row["state"] for name, row in read_json(directory / "status.json").items()} == {"warm-seed1": "finished", "cold-seed1": "finished"}
    log = (directory / "warm-seed1.log").read_text()
    assert log.count("stopped; the same command continues") >= 1 and log.count("pretrain: continues") >= 1

    for run in (warm, cold):
        alone = [*run_command(directory / f"{run.name}.yaml"), f"runs_dir={tmp_path / 'alone'}", "stage_cache=null"]
        done = subprocess.run(alone, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=580)
        assert done.returncode == 0, done.stderr
        whole = tmp_path / "alone" / run.name
        assert (whole / "metrics.json").read_bytes() == (run / "metrics.json").read_bytes()
        assert digests(whole / "stages/pretrain/encoder") == digests(run / "stages/pretrain/encoder")
        assert untimed(whole) == untimed(run) and len(untimed(run)) == STEPS


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}


def untimed(run: Path) -> list[dict[str, object]]:
    return [{key: value for key, value in row.items() if key not in TIMED} for row in rows(run)]


def test_two_tasks_of_a_job_train_as_one_process(slurm: dict[str, str], tmp_path: Path) -> None:
    one, two = (experiment(tmp_path, f"ranks{n}", f"{{accelerator: cpu, devices: {n}, backend: gloo}}") for n in (1, 2))
    subprocess.run(run_command(one), cwd=ROOT, env=environment(), check=True, capture_output=True, timeout=580)
    script = f"srun {' '.join(run_command(two))}"
    batch = ["sbatch", "--wait", "--job-name=train", "--ntasks=2", "--ntasks-per-node=2", f"--output={tmp_path / 'job.txt'}", f"--wrap={script}"]
    done = subprocess.run(batch, cwd=ROOT, env=slurm, capture_output=True, text=True, timeout=580)
    said = (tmp_path / "job.txt").read_text()
    assert done.returncode == 0, done.stderr + said
    assert said.count("pretrain: done") == 1, "the first task alone runs the stages"
    assert_same_training(tmp_path / "ranks1", tmp_path / "ranks2")


def test_what_the_launcher_knows_of_its_jobs(slurm: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that someone cancels, one that fails, one that waits, and the end of all of them."""
    monkeypatch.chdir(ROOT)
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    launcher = SlurmLauncher(tmp_path / "slurm", None, {"timeout_min": 5}, 2)
    for name, code in (("fails", "echo said; exit 3"), ("cancelled", "sleep 300"), ("runs", "sleep 300"), ("waits", "sleep 300")):
        launcher.start(name, ["sh", "-c", code], tmp_path / f"{name}.log")
    assert launcher.queued() == {"fails", "cancelled", "runs", "waits"}
    ended: dict[str, int] = {}

    def look(done: Callable[[], object]) -> None:
        until = time.monotonic() + 120
        while not done():
            assert time.monotonic() < until, (ended, launcher.queued(), jobs(slurm))
            ended.update(launcher.ended())
            time.sleep(0.2)

    look(lambda: launcher.queued() == {"waits"} and "fails" in ended)
    assert ended == {"fails": 3} and (tmp_path / "fails.log").read_text() == "said\n"
    array = min(jobs(slurm)).partition("_")[0]
    subprocess.run(["scancel", f"{array}_1"], check=True)
    look(lambda: "cancelled" in ended)
    assert ended["cancelled"] == 1
    assert f"error: SLURM ended the job {array}_1 of this run; see {tmp_path / 'slurm'}" in (tmp_path / "cancelled.log").read_text()
    launcher.start("late", ["sleep", "300"], tmp_path / "late.log")
    launcher.stop()
    look(lambda: len(ended) == 5)
    assert ended["late"] == 143, "it was never submitted"
    assert {ended["runs"], ended["waits"]} <= {1, 15, 143}
    wait_until(lambda: not [job for job in jobs(slurm) if job.startswith(f"{array}_")])
    with pytest.raises(UserError, match=r"--launcher slurm: sbatch refuses the jobs .*partition"):
        wrong = SlurmLauncher(tmp_path / "wrong", None, {"slurm_partition": "absent"}, None)
        wrong.start("a", ["true"], tmp_path / "a.log")
        wrong.ended()
