"""What a run leaves behind: ``environment.json``, one row of ``metrics.jsonl`` per step, and the W&B mirror of them."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment

from lightning_e5.config import Node, redact
from lightning_e5.errors import UserError, suggestion
from lightning_e5.storage import read_log, write_text

METRICS_LOG = "metrics.jsonl"
_MODES = ("auto", "online", "offline", "disabled")


def environment() -> dict[str, Any]:
    """Commit, package versions and hardware of this process."""
    import torch

    names = ["torch", "lightning", "transformers", "tokenizers", "numpy", "wandb", "faiss-gpu", "bm25s", "scikit-learn"]
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": versions,
    }


def _git(*arguments: str) -> str | None:
    root = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", "--no-optional-locks", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    match = re.search(r"model name\s*:\s*(.*)", text)
    return match.group(1) if match else platform.processor()


class JsonlLogger(Logger):
    """A Lightning logger that appends one JSON row per call to ``metrics.jsonl``."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.path = directory / METRICS_LOG
        self._file: Any = None

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> str:
        return "0"

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The open file."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
        return self._file

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.experiment.write(json.dumps({"step": step, **metrics}) + "\n")
        self.experiment.flush()

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the resolved configuration lies beside as ``config.yaml``."""

    def truncate(self, step: int) -> None:
        """Drop rows after ``step`` and a torn last line, so that a resumed run continues without gap or repetition."""
        self.finalize("truncate")
        rows = [row for row in read_metrics_log(self.path.parent) if row["step"] <= step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def finalize(self, status: str) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def read_metrics_log(directory: Path) -> list[dict[str, float]]:
    """The rows of ``metrics.jsonl``; a torn last line (a killed writer's) is left out."""
    return read_log(directory / METRICS_LOG)


def check_logger(settings: Node) -> None:
    """Check the ``logger`` node of an experiment; UserError names what is wrong."""
    known = ("mode", "project", "group", "name", "tags", "entity")
    for key, value in settings.items():
        if key not in known:
            raise UserError(f"logger: unknown key {key!r}{suggestion(key, known)}")
        if key == "mode" and value not in _MODES:
            raise UserError(f"logger.mode: {value!r} is not one of {', '.join(_MODES)}")


def wandb_logger(settings: Node, *, directory: Path, run: str, stage: str, config: Node) -> Logger | None:
    """A W&B logger for one stage, or None where it is disabled.

    ``auto`` is online for a user who is logged in, else offline; W&B is never required. The run's id is derived from
    the directory, so a resumed stage continues its run.
    """
    mode = settings.get("mode", "auto")
    if mode == "disabled":
        return None
    if mode == "auto":
        mode = "online" if _wandb_key_present() else "offline"
    from hashlib import sha256

    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    identity = sha256(f"{directory.resolve()}".encode()).hexdigest()[:16]
    directory.mkdir(parents=True, exist_ok=True)
    logger = WandbLogger(
        project=settings.get("project", "lightning_e5"),
        entity=settings.get("entity"),
        group=settings.get("group") or run,
        name=f"{settings.get('name') or run}/{stage}",
        job_type=stage,
        tags=redact(settings.get("tags") or []),
        id=identity,
        resume="allow",
        save_dir=str(directory),
        mode=mode,
        config=redact(config),
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True, program="lightning_e5", save_code=False),
    )
    return logger


def _wandb_key_present() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return "api.wandb.ai" in netrc.read_text(encoding="utf-8")
    except OSError:
        return False


def warn(message: str) -> None:
    """A message to the user beside the progress bars."""
    print(message, file=sys.stderr, flush=True)
