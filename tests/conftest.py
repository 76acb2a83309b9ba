"""Fixtures of the whole suite: no network, one small finished run, a small real encoder."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_e5.threads import wait_briefly
from tests.processes import outside_of_jobs

wait_briefly()  # before torch is imported, as under the command line
# Figures that tests want are those of a CPU; LIGHTNING_E5_TEST_GPU=1 lets the few see a GPU that want one.
if not os.environ.get("LIGHTNING_E5_TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
# No training of a test is a rank of the job in which the tests run; where SLURM's daemons are is no matter of a job.
for name in os.environ.keys() - outside_of_jobs().keys() - {"SLURM_CONF"}:
    del os.environ[name]
ROOT = Path(__file__).resolve().parents[1]
# Processes that tests start elsewhere, notebooks among them, import this clone, installed or not.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
SMOKE = ROOT / "experiments" / "smoke.yaml"
# A shell's background jobs begin with SIGINT ignored, and so would every process that a test starts and interrupts.
for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL), (signal.SIGUSR1, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, default)


#: Files whose tests start whole runs, ablations or ranks: begun first, so that two processes end at the same time.
LONG_FILES = (
    "test_runs.py", "test_notebooks.py", "test_faults.py", "test_ranks.py", "test_fsdp.py", "test_ablate.py", "test_run_ranks.py", "test_ablations_yaml.py",
    "test_build_ccpairs.py", "test_consistency_filter.py", "test_reference.py", "test_ccpairs_datamodule.py", "test_stackexchange.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files first; the order within a file stays."""
    items.sort(key=lambda item: LONG_FILES.index(item.path.name) if item.path.name in LONG_FILES else len(LONG_FILES))


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector need not look through PyTorch and Lightning after every training."""
    gc.freeze()


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection that is not local raises, so that a test cannot depend on the network."""
    real = socket.socket.connect

    def connect(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX and isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"tests are offline: {address}")
        real(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture(autouse=True)
def no_secrets_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process hides the secrets of all configurations that it has read, in all that it writes."""
    from lightning_e5 import redaction

    monkeypatch.setattr(redaction, "_remembered", set())


@pytest.fixture(autouse=True)
def own_arithmetic() -> Iterator[None]:
    """A run within a test's process sets torch's threads and turns denormal numbers into zeros; the next test must not compute so."""
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else None
    yield
    if torch := sys.modules.get("torch"):
        torch.set_flush_denormal(False)
        if threads is not None and torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def smoke_runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the smoke run, which begins beside the first tests where any test wants it, so that few have to wait.

    Of several processes of pytest-xdist the first makes it for all.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    runs = tmp_path_factory.getbasetemp().parent / "smoke-runs" if worker else tmp_path_factory.mktemp("runs")
    runs.mkdir(exist_ok=True)
    process = None
    if worker in (None, "gw0") and any("smoke_run" in getattr(item, "fixturenames", ()) for item in request.session.items):
        command = [sys.executable, "-m", "lightning_e5", "run", str(SMOKE), f"runs_dir={runs}"]
        with (runs / "stdout.txt").open("w") as out, (runs / "stderr.txt").open("w") as errors:
            offline = {**os.environ, "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
            # The shell notes how it ended, for all processes that wait.
            process = subprocess.Popen(["sh", "-c", '"$@"; echo $? > "$0"', str(runs / "exit_code.txt"), *command], cwd=ROOT, stdout=out, stderr=errors, env=offline)
    yield runs
    if process is not None:
        process.wait()


@pytest.fixture(scope="session")
def smoke_run(smoke_runs: Path) -> Path:
    """The directory of a finished smoke run: every stage of the quickstart, on real text, at test size."""
    until = time.monotonic() + 540
    while not (code := (smoke_runs / "exit_code.txt").read_text() if (smoke_runs / "exit_code.txt").exists() else ""):
        assert time.monotonic() < until, "the smoke run did not end"
        time.sleep(0.2)
    assert code.strip() == "0", "".join((smoke_runs / f"{stream}.txt").read_text() for stream in ("stdout", "stderr"))
    return smoke_runs / "smoke"


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Real sentences of many lengths: this project's own documentation."""
    found = []
    for path in sorted((ROOT / "lightning_e5").rglob("*.py")):
        found += [block.strip() for block in path.read_text(encoding="utf-8").split('"""')[1::2] if block.strip()]
    return found


@pytest.fixture(scope="session")
def small_tokenizer(texts: list[str]):  # type: ignore[no-untyped-def]
    """A WordPiece tokenizer of 800 tokens with E5's prefixes."""
    from lightning_e5.stages.vocabulary import train_wordpiece
    from lightning_e5.text import TextTokenizer

    return TextTokenizer(train_wordpiece(texts, texts, 800), max_length=48)


@pytest.fixture
def small_bert(small_tokenizer):  # type: ignore[no-untyped-def]
    """A 2-layer BERT with random weights and dropout 0.1, a fresh one per test."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=small_tokenizer.backend.get_vocab_size(), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=128,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False)
