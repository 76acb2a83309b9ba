"""What decides a stage's bits beside its fingerprint: code, machine, and what its texts name without saying that they do.

Within a run directory these may change (a run that is continued elsewhere, or after an edit, keeps what it has finished);
between runs a result is shared only where all of them are equal.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning_e5
from lightning_e5.config.experiment import Node
from lightning_e5.distributed.devices import visible_gpus
from lightning_e5.files.digests import FileDigests
from lightning_e5.pipeline.code_digest import code_digest, targets
from lightning_e5.pipeline.fingerprint import deciding

_RANKS = ("accelerator", "devices", "num_nodes", "strategy")
_HUB_NAME = re.compile(r"([\w.-]+)/([\w.-]+)")
#: What may appear while a stage is computed: a model that is fetched.
_FETCHED = "fetched"


def result_facts(node: Node, digests: FileDigests) -> Node:
    """The facts as they are now: files of code are read anew where they changed.

    Args:
        node: of the stage.
        digests: of files' contents.
    """
    from lightning_e5.tracking.run_directory import numerics

    plain = {key: value for key, value in deciding(node).items() if key != "inputs"}
    texts = sorted(set(_texts(plain)))
    return {
        "version": lightning_e5.__version__,
        "machine": platform.machine(),
        "numerics": numerics(),
        "code": code_digest(sorted(set(targets(plain)))),
        "ranks": _ranks(node),
        "named": {text: digest for text in texts if (digest := _named_here(text, digests)) is not None},
        _FETCHED: {text: revision for text in texts if (revision := _fetched_revision(text)) is not None},
    }


def unchanged(before: Node, after: Node) -> bool:
    """Whether all facts are what they were, but for models that were fetched in between."""
    still = {text: revision for text, revision in after[_FETCHED].items() if text in before[_FETCHED]}
    return {**after, _FETCHED: still} == before


def _ranks(node: Node) -> Node:
    """On what a training is shared out, as sums over ranks are rounded otherwise; nothing for other stages."""
    if "module" not in node:
        return {}
    given = {key: value for key, value in (node.get("trainer") or {}).items() if key in _RANKS}
    launched = {name: os.environ[name] for name in ("WORLD_SIZE", "SLURM_NTASKS") if name in os.environ}
    return {**given, **launched, "gpus": visible_gpus()}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key != "_target_":
                yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _named_here(text: str, digests: FileDigests) -> str | None:
    """The digest of a file or model folder in the current folder of that name; a fingerprint has those that a path leads to."""
    path = Path(text)
    try:
        if "/" not in text and (path.is_file() or (path / "config.json").is_file()):
            return digests.of_place(path)
    except (OSError, ValueError):  # a text that no path can be
        return None
    return None


def _fetched_revision(text: str) -> str | None:
    """The revision of a model of the hub that is here under its name; None for any other text, and for one not fetched."""
    match = _HUB_NAME.fullmatch(text)
    if match is None:
        return None
    from huggingface_hub.constants import HF_HUB_CACHE

    path = Path(HF_HUB_CACHE, f"models--{match[1]}--{match[2]}", "refs", "main")
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
