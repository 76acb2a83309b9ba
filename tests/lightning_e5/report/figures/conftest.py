"""An ablation of two variants of which the paper names one."""

from __future__ import annotations

import pytest

from lightning_e5.files.storage import write_json
from lightning_e5.results.ablation import AblationData


@pytest.fixture
def ablation(make_run, tmp_path):
    """Its data, as read from its files."""
    folder = tmp_path / "ablations" / "lift-laptop"
    for name, lift in (("plain", 0.0), ("lifted", 0.2)):
        make_run(f"{name}-seed1", lift=lift, folder="ablations/lift-laptop")
    write_json(folder / "ablation.json", {
        "ablation": "lift", "scale": "laptop", "file": "lift.yaml", "question": "Does a lift help?", "held_constant": [], "baseline": "plain",
        "report": ["second/docs/ndcg@10"], "seeds": [1],
        "paper": {"source": "Table 8", "note": "", "figures": {"nDCG@10": {"lifted": 51.6}}},
        "variants": {n: {"description": "", "runs": {"1": f"{n}-seed1"}} for n in ("plain", "lifted")},
    })  # fmt: skip
    return AblationData(folder)
