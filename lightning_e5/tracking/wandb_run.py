"""One W&B run: whether there is one, where it lies, what its metrics are called, and reading it back from its file.

A training stage has a W&B run of its own, written while it trains; a finished run directory has one more, of its
results. All of one experiment, or of one ablation, share a group.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_e5.config.experiment import Node
from lightning_e5.files.run_layout import VALIDATED
from lightning_e5.files.storage import sha256_text, write_text
from lightning_e5.redaction import hidden_message, redact_all

PROJECT = "lightning_e5"
#: The folder of W&B's files in a stage's or run's directory.
FOLDER = "wandb"
#: ``job_type`` of the W&B run that holds a run directory's results.
RESULTS = "results"
_IDENTITY = "run_id"
#: The name of a W&B run of an ablation: of its run directory, and of the stage (or `RESULTS`).
ABLATION_RUN = re.compile(r"(?P<variant>.+)-seed(?P<seed>\d+)/(?P<stage>.+)")
#: Columns of ``metrics.jsonl`` that the metrics of a stage call by another name.
RENAMED = {"pairs": "pairs_seen", "tokens": "tokens_seen"}
#: A process that was killed leaves its file to W&B's own process, which may take this long to end as well.
_SETTLED_SECONDS = 2.0


def history_name(stage: str, column: str) -> str:
    """The W&B name of a column of a training stage's ``metrics.jsonl``, ``<stage>/<column>`` as in ``metrics.json``; values of its
    validations are ``val/...`` in every stage's run."""
    return column if column.startswith(VALIDATED) else f"{stage}/{RENAMED.get(column, column)}"


def log_columns(stage: str, row: Mapping[str, float]) -> dict[str, float]:
    """A row of W&B's history under the names of ``metrics.jsonl``: the inverse of `history_name`."""
    names = {new: old for old, new in RENAMED.items()}
    columns = {name.removeprefix(f"{stage}/"): value for name, value in row.items()}
    return {names.get(name, name): value for name, value in columns.items()}


def variant_of(name: str, seed: int) -> str:
    """The variant that a run of an ablation is of, from its name ``<variant>-seed<seed>``; of any other run its name."""
    return name.removesuffix(f"-seed{seed}")


def wandb_mode(settings: Mapping[str, Any]) -> str:
    """``online``, ``offline`` or ``disabled``: ``auto`` is as WANDB_MODE says, else online for a user who is logged in."""
    mode = str(settings.get("mode", "auto"))
    if mode != "auto":
        return mode
    asked = os.environ.get("WANDB_MODE", "")
    if asked in ("online", "offline", "disabled"):
        return asked
    return "online" if key_present() else "offline"


def start_run(settings: Mapping[str, Any], *, directory: Path, job_type: str, config: Mapping[str, Any]) -> Any:
    """Start or continue the W&B run that lies in ``directory``.

    Args:
        settings: the ``logger`` node of an experiment.
        directory: a stage's or a run's; W&B writes into its folder ``wandb``.
        job_type: the stage's name, or `RESULTS`.
        config: the resolved experiment; it and the settings are redacted, and ``variant`` and ``stage`` are added.

    Returns:
        A ``wandb.Run`` that is not the process's global one, so that it neither takes nor disturbs a user's own.

    Raises:
        Exception: whatever W&B raises; W&B is never required, so the caller goes on without it.
    """
    import wandb

    (directory / FOLDER).mkdir(parents=True, exist_ok=True)
    config, settings = redact_all([dict(config), dict(settings)])
    run = str(config.get("name") or directory.name)
    facts = {"variant": variant_of(run, config.get("seed", 0)), "stage": job_type}
    return wandb.init(
        project=settings.get("project") or PROJECT,
        entity=settings.get("entity"),
        group=settings.get("group") or run,
        name=f"{settings.get('name') or run}/{job_type}",
        job_type=job_type,
        tags=settings.get("tags") or [],
        id=run_id(directory),
        resume="allow",
        dir=str(directory),
        mode=wandb_mode(settings),  # type: ignore[arg-type]
        config={**config, **facts},
        reinit="create_new",
        # Neither the command line nor the machine's state is sent: a token on a command line would go with it.
        settings=wandb.Settings(
            silent=True, console="off", x_disable_stats=True, x_disable_meta=True, program="lightning_e5", save_code=False, init_timeout=30,
        ),
    )  # fmt: skip


def run_id(directory: Path) -> str:
    """The id of the W&B run of a directory: made once and kept there, so that a resumed process continues the run while
    a directory that was emptied and made again gets another one."""
    path = directory / FOLDER / _IDENTITY
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, sha256_text(f"{directory.resolve()} {time.time_ns()} {os.getpid()}")[:16])
    return path.read_text(encoding="utf-8").strip()


def run_files(directory: Path) -> list[Path]:
    """The ``.wandb`` files of a directory's run, one per process that wrote it, oldest first.

    W&B names a process's folder after the mode, the second and the run, and the second and later ones of one second with a number.
    """
    name = run_id(directory)
    folder_name = re.compile(rf"(?:offline-)?run-(?P<second>\d{{8}}_\d{{6}})-{name}(?:-(?P<place>\d+))?")
    found: list[tuple[str, int, Path]] = []
    for path in (directory / FOLDER).glob(f"*/run-{name}.wandb"):
        # `latest-run` is a link to one of them.
        if match := folder_name.fullmatch(path.parent.name):
            found.append((match["second"], int(match["place"] or 0), path))
    return [path for _, _, path in sorted(found)]


def read_records(path: Path, kind: str | None = None) -> Iterator[Node]:
    """The records of a ``.wandb`` file in order, of one kind or of all; of a torn file those before the tear."""
    from wandb.util import get_core_path

    command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", "-run-file", str(path.resolve())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if kind is None or f'"type":"{kind}"' in line:
                record = json.loads(line)
                if kind is None or record["type"] == kind:
                    yield record


def read_history(directory: Path) -> dict[int, Node]:
    """Step -> what W&B's own files hold of it, over all processes that wrote the run; the file is the only truth, since
    W&B's process writes late and loses what it had not written when it is killed."""
    rows: dict[int, Node] = {}
    for path in run_files(directory):
        age = time.time() - path.stat().st_mtime
        if 0 <= age < _SETTLED_SECONDS:
            time.sleep(_SETTLED_SECONDS - age)
        for record in read_records(path, "history"):
            item = record["history"]["item"]
            rows.setdefault(int(item["_step"]), {k: v for k, v in item.items() if not k.startswith("_")})
    return rows


def first_line(error: Exception) -> str:
    """Kind and first line of an error of W&B, for a message."""
    return hidden_message(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")


def key_present() -> bool:
    """Whether this user is logged in at W&B."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return "api.wandb.ai" in netrc.read_text(encoding="utf-8")
    except OSError:
        return False
