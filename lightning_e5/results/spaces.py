"""What a run keeps of its embedding spaces: where its encoders lie, and the passages that they were trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_modules.pair_rows import source_codes, take_rows
from data_modules.pair_store import SHARDS, PairStore
from data_modules.pair_store import TABLE as PAIR_TABLE
from lightning_e5.config.experiment import Node
from lightning_e5.result_row import evaluated_encoders
from lightning_e5.results.run import TABLE, RunData
from lightning_e5.rng import generator

_ENCODER_SETTINGS = ("precision", "prefixes", "max_length", "prefix_ablation")


def encoder_folders(run: RunData) -> dict[str, tuple[Path, Node]]:
    """Model -> its folder and the settings that it was evaluated with; those whose folder is not there any more are left out."""
    found: dict[str, tuple[Path, Node]] = {}
    for stage in run.stages_with(TABLE):
        node = run.config["stages"][stage]
        settings = {key: node[key] for key in _ENCODER_SETTINGS if key in node}
        for model, (reference, dimensions) in evaluated_encoders(node).items():
            folder = run.input_path(reference)
            if folder.is_dir():
                found[model] = (folder, settings if dimensions is None else {**settings, "truncate_dim": dimensions})
    return found


def training_passages(run: RunData, sources: int, of_a_source: int) -> dict[str, list[str]]:
    """Source -> some of its passages, at random (always the same), of the largest sources of the first stage with pairs.

    Passages that were planted as mismatches are left out.
    """
    holders = [run.stage(stage) for stage in run.config["stages"]]
    folder = next((one for one in holders if any((one / name).is_file() for name in (SHARDS, PAIR_TABLE))), None)
    if folder is None:
        return {}
    store = PairStore(folder)
    names, code_N = source_codes(store)
    planted_N = np.zeros(store.rows, bool)
    if "planted" in store.columns:
        planted_N = store.read(["planted"])["planted"].to_numpy(zero_copy_only=False)
    found: dict[str, list[str]] = {}
    for code in np.argsort(-np.bincount(code_N, minlength=len(names)), kind="stable")[:sources].tolist():
        rows = np.flatnonzero((code_N == code) & ~planted_N)
        chosen = np.sort(generator(0, "map", names[code]).permutation(rows)[:of_a_source])
        if len(chosen):
            found[names[code]] = take_rows(store, chosen, ["passage"])["passage"].to_pylist()
    return found
