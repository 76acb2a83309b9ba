"""Fixtures of the whole suite: no network, one small finished run, a small real encoder."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is imported: threads that wait sleep, as under the command line.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
ROOT = Path(__file__).resolve().parents[1]
# Processes that tests start elsewhere, notebooks among them, import this clone, installed or not.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
SMOKE = ROOT / "experiments" / "smoke.yaml"


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


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of a finished smoke run: every stage of the quickstart, on real text, at test size.

    Where several processes of pytest-xdist share the suite, the first makes it and the others wait.
    """
    import fcntl
    import subprocess

    parallel = "PYTEST_XDIST_WORKER" in os.environ
    runs = tmp_path_factory.getbasetemp().parent / "smoke-runs" if parallel else tmp_path_factory.mktemp("runs")
    runs.mkdir(exist_ok=True)
    with (runs / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (runs / "stdout.txt").is_file():
            command = [sys.executable, "-m", "lightning_e5", "run", str(SMOKE), f"runs_dir={runs}"]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=540)
            assert done.returncode == 0, done.stdout + done.stderr
            (runs / "stderr.txt").write_text(done.stderr)
            (runs / "stdout.txt").write_text(done.stdout)
    yield runs / "smoke"


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
