"""What a run records of itself beside its results: ``environment.json``, and messages to the user."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from lightning_e5.config.experiment import Node
from lightning_e5.errors import UserError, suggestion
from lightning_e5.files.run_layout import ENVIRONMENT
from lightning_e5.files.storage import read_json, write_json
from lightning_e5.progress import clear_line, printable
from lightning_e5.redaction import hidden_message

#: Variables of the process that choose instructions or kernels.
_NUMERIC_VARIABLES = (
    "ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE",
    "OPENBLAS_CORETYPE", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE",
)  # fmt: skip
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
        "numerics": numerics(),
    }


def numerics() -> dict[str, Any]:
    """What decides, beside configuration and seed, whether a result is equal byte for byte to another machine's or day's.

    Equality is claimed for equal values of these, and for them only: another number of threads or another instruction set
    sums in another order, another build of torch has other kernels.
    """
    import torch

    cuda = torch.cuda.is_available()
    return {
        "torch": torch.__version__,
        "torch_git": torch.version.git_version,
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "compute_capability": ".".join(map(str, torch.cuda.get_device_capability())) if cuda else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        **{name: os.environ.get(name) for name in _NUMERIC_VARIABLES},
    }


def record_environment(directory: Path, say: Callable[[str], None]) -> None:
    """Write a run's ``environment.json``; where the run is continued under other `numerics`, say so in one line."""
    found = environment()
    try:
        before = dict(read_json(directory / ENVIRONMENT)["numerics"])
    except (UserError, KeyError, TypeError, ValueError):  # a new run, an older one's record, or a damaged one
        before = {}
    now = found["numerics"]
    changes = [f"{key} {before.get(key)} -> {now[key]}" for key in now if before and before.get(key) != now[key]]
    if changes:
        say(f"continued under other conditions ({', '.join(changes)}): what is computed now is not byte-equal to what the earlier ones would give")
    write_json(directory / ENVIRONMENT, found)


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


def check_logger(settings: Node) -> None:
    """Check the ``logger`` node of an experiment; UserError names what is wrong."""
    known = ("mode", "project", "group", "name", "tags", "entity", "log_model")
    for key, value in settings.items():
        if key not in known:
            raise UserError(f"logger: unknown key {key!r}{suggestion(key, known)}")
        if key == "mode" and value not in _MODES:
            raise UserError(f"logger.mode: {value!r} is not one of {', '.join(_MODES)}")
        if key == "log_model" and not isinstance(value, bool):
            raise UserError(f"logger.log_model: {value!r} is not true or false")


def warn(message: str) -> None:
    """A message to the user beside the progress bars."""
    clear_line()
    print(printable(hidden_message(message)), file=sys.stderr, flush=True)
