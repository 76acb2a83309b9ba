"""Before anything runs: whether an encoder will run without padding, and what padding costs where it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lightning_e5.config.experiment import outside_path
from lightning_e5.config.known_encoders import KNOWN_ENCODERS
from lightning_e5.errors import UserError
from lightning_e5.files.storage import read_json
from lightning_e5.models.folder import stored_settings
from lightning_e5.models.packed.families import MODEL_TYPES, why_padded
from lightning_e5.training.chunks import sorted_chunks
from lightning_e5.types import TokenBatch

#: The shortest text that the estimate reckons with: two special tokens, a prefix and a word.
_SHORTEST = 5


def padding_line(pretrained: str) -> tuple[bool | None, str]:
    """Whether the encoder of a name is padded, and a line that says so; None and why, where that cannot be known offline.

    Args:
        pretrained: as `lightning_e5.models.reference.model_folder` takes it; nothing is fetched.
    """
    name = pretrained.partition("#")[0]
    config = _config(name)
    if config is None and name not in KNOWN_ENCODERS:
        return None, f"{name} is not here, so whether it runs without padding is not known yet ({', '.join(MODEL_TYPES)} do)"
    reason = None if config is None else why_padded(config)  # all that are known without being here have one
    if reason is None:
        return False, "runs without padding"
    return True, f"padded path: {reason} has no forward pass without padding here ({', '.join(MODEL_TYPES)} have one)"


def padding_share(texts: int, max_length: int, chunk_tokens: int) -> float:
    """Padded tokens over real ones, of texts whose lengths spread evenly up to ``max_length``, sorted by length and cut in chunks.

    Args:
        texts: of a step.
        max_length: tokens of the longest.
        chunk_tokens: encoded at once, as `lightning_e5.training.grad_cache.GradCache` has it.
    """
    lengths_B = torch.linspace(min(_SHORTEST, max_length), max_length, max(1, texts), device="cpu").round().long()
    tokens = int(lengths_B.sum())
    chunks = sorted_chunks(TokenBatch(torch.zeros(tokens, dtype=torch.int8, device="cpu"), lengths_B), chunk_tokens)
    return sum(len(chunk.lengths) * chunk.lengths[-1] for chunk in chunks) / tokens


def _config(name: str) -> dict[str, Any] | None:
    """The ``config.json`` of a folder, or of a hub name that was fetched before; None where it is not here or cannot be read."""
    outside = outside_path(name)
    folder = outside if outside is not None else Path(name)
    try:
        path = stored_settings(folder).transformer / "config.json" if folder.is_dir() else _fetched_before(name)
        found = None if path is None or not path.is_file() else read_json(path)
    except UserError:  # what is damaged is told by what loads it
        return None
    return found if isinstance(found, dict) else None


def _fetched_before(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # no hub name
        return None
    return Path(path) if isinstance(path, str) else None
