"""A small experiment of real stages, on documentation written here, that runs in about a second."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

THINGS = ("array", "graph", "matrix", "table", "tree", "image", "signal", "file", "string", "model")
DEEDS = ("Sort", "Copy", "Merge", "Split", "Count", "Filter", "Compress", "Validate")
PASSAGE = "The {0} given is read once from start to end, and a new {0} is made whose elements were {1} in the order in which they came."


def write_package(root: Path, deeds: tuple[str, ...]) -> Path:
    """A package of documented functions, one per deed and thing."""
    root.mkdir(parents=True, exist_ok=True)
    for thing in THINGS:
        lines = []
        for deed in deeds:
            passage = PASSAGE.format(thing, deed.lower() + "ed")
            lines.append(f'def {deed.lower()}_{thing}(value):\n    """{deed} the elements of a {thing}.\n\n    {passage}\n    """\n')
        (root / f"{thing}.py").write_text("\n\n".join(lines), encoding="utf-8")
    return root


@pytest.fixture
def small_experiment(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Pairs, word vectors of them, an untrained encoder of them, and pairs that none of these depends on."""
    import torch

    threads = torch.get_num_threads()
    packages = {"one": write_package(tmp_path / "one", DEEDS[:5]), "held": write_package(tmp_path / "held", DEEDS[5:])}

    def pairs(roots: dict[str, Path]) -> dict[str, Any]:
        source = {"_target_": "data_modules.ccpairs.sources.python_docs.PythonDocs", "workers": 1, "show_progress": False}
        source["roots"] = {name: str(root) for name, root in roots.items()}
        return {"_target_": "lightning_e5.stages.build_pairs.build_pairs", "source": source, "held_out": ["held"]}

    other = {"one": write_package(tmp_path / "other", DEEDS[:2]), "held": packages["held"]}
    config = {"_target_": "lightning_e5.evaluation.baselines.word_vectors.WordVectorsConfig", "width": 8, "buckets": 16, "epochs": 1, "batch_size": 8}
    encoder = {"_target_": "lightning_e5.models.factory.EncoderSpec", "vocab_size": 300, "layers": 1, "hidden_size": 16, "heads": 2, "intermediate_size": 16}
    yield {
        "name": "small", "seed": 1, "threads": 1, "runs_dir": str(tmp_path / "runs"), "final_encoder": "vocabulary",
        "logger": {"mode": "disabled"},
        "stages": {
            "pairs": pairs(packages),
            "alone": pairs(other),
            "vectors": {"_target_": "lightning_e5.stages.word_vectors.word_vectors", "inputs": {"pairs": "pairs"}, "config": config},
            "vocabulary": {
                "_target_": "lightning_e5.stages.vocabulary.vocabulary", "inputs": {"pairs": "pairs"}, "encoder": encoder,
                "write_tokens": {"_target_": "data_modules.token_cache.write_token_cache", "_partial_": True},
            },
        },
    }  # fmt: skip
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
