"""How long a step waits for a checkpoint: of the one that it writes itself, and of the one that a thread writes.

The state is that of a training of the shape: its weights and AdamW's two moments, 12 bytes for each of the parameters, with real values.
``copy_first_s`` is the first one, whose memory is new; ``copy_s`` the median of the others, and what a step waits for; ``written_s``
when that file is whole. On a GPU the copy goes on after the host has asked for it; ``copied_s`` is when it is done.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common import SHAPES, VOCABULARY, arguments, report, synchronize
from lightning_e5.training.background_writer import BackgroundWriter, HostCopy
from lightning_e5.training.checkpointing import checkpoint_path, save_checkpoint


def main() -> None:
    """Command line."""
    chosen = arguments(
        __doc__ or "", shape={"default": "bert-base", "choices": list(SHAPES), "help": "default bert-base"},
        folder={"type": Path, "default": None, "help": "where the checkpoints are written (default: the folder for temporary files)"},
    )  # fmt: skip
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    state = training_state(chosen.shape, device)
    size = sum(t.numel() * t.element_size() for values in (state["state_dict"], *state["optimizer_states"]) for t in values.values())
    direct, asked, copied, written = ([] for _ in range(4))  # type: ignore[var-annotated]
    copy = HostCopy()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        writer = BackgroundWriter(partial(save_checkpoint, keep=1))
        for number in range(1, chosen.rounds + 2):
            synchronize()
            started = time.perf_counter()
            save_checkpoint(checkpoint_path(Path(folder), 2 * number), state, keep=1)
            direct.append(time.perf_counter() - started)
            started = time.perf_counter()
            copy.take(state)
            asked.append(time.perf_counter() - started)
            synchronize()
            copied.append(time.perf_counter() - started)
            started = time.perf_counter()
            writer.submit(checkpoint_path(Path(folder), 2 * number + 1), state)
            writer.finish()
            written.append(time.perf_counter() - started)
    row: dict[str, Any] = {
        "shape": chosen.shape, "device": str(device), "gigabytes": size / 1e9, "direct_s": statistics.median(direct[1:]), "copy_first_s": asked[0],
        "copy_s": statistics.median(asked[1:]), "copied_s": statistics.median(copied[1:]), "written_s": statistics.median(written[1:]),
    }  # fmt: skip
    report([row], chosen.json)


def training_state(shape: str, device: torch.device) -> dict[str, Any]:
    """Weights and moments of an encoder of this shape, as a training's checkpoint holds them."""
    from transformers import BertConfig, BertModel

    layers, width, heads, inner = SHAPES[shape]
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=inner,
    )  # fmt: skip
    model: nn.Module = BertModel(config, add_pooling_layer=False)
    model = model.to(device)
    weights = model.state_dict()
    moments = {f"{name}.{moment}": torch.rand_like(p.detach()) for name, p in model.named_parameters() for moment in ("exp_avg", "exp_avg_sq")}
    return {"state_dict": weights, "optimizer_states": [moments], "global_step": 1}


if __name__ == "__main__":
    main()
