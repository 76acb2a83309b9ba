"""Every curation stage on an engine, one after the other, on small data; ``python -m ... DATA OUT ADDRESS [build]`` runs them on a Ray cluster."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from lightning_e5.curation.cleaning.duplicates import NearDuplicates
from lightning_e5.curation.engines.engine import Engine, RayEngine
from lightning_e5.stages.build_ccpairs import build_ccpairs
from tests.lightning_e5.stages.pair_files import SlowFiles

if TYPE_CHECKING:
    from lightning_e5.models.encoder import TextEncoder

#: Parts of a source.
PARTS = 6
#: Texts, queries or rows of a part, small so that a stage has many parts.
SMALL = 16


def prepare(data: Path, texts: list[str], encoder: TextEncoder) -> None:
    """Write raw pairs, an encoder, a cross-encoder and a test collection of real sentences."""
    from lightning_e5.models.cross_encoder import CrossEncoder

    (data / "raw").mkdir(parents=True)
    lines = [" ".join(text.split()) for text in dict.fromkeys(texts) if len(text) > 60]
    size = min(len(lines), 30 * PARTS) // PARTS
    for part in range(PARTS):
        own = lines[part * size : (part + 1) * size]
        (data / "raw" / f"part-{part}.txt").write_text("".join(f"{' '.join(line.split()[:6])} {part}\t{line}\n" for line in own), encoding="utf-8")
    encoder.save_pretrained(data / "encoder")
    CrossEncoder.from_encoder(encoder).save_pretrained(data / "teacher" / "cross_encoder")
    collection = data / "collection"
    (collection / "qrels").mkdir(parents=True)
    (collection / "corpus.jsonl").write_text("".join(json.dumps({"_id": f"d{i}", "title": "", "text": t}) + "\n" for i, t in enumerate(lines[:70])))
    (collection / "queries.jsonl").write_text("".join(json.dumps({"_id": f"q{i}", "text": lines[i][:40]}) + "\n" for i in range(20)))
    (collection / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td{i}\t1\n" for i in range(20)))


def build(data: Path, out: Path, engine: Engine | None, seconds: float = 0.0) -> None:
    """The pool of pairs alone: texts of the collection's queries are kept out."""
    source = SlowFiles("docs", data / "raw", seconds=seconds)
    build_ccpairs(
        out, sources=[source], near_duplicates=NearDuplicates(), planted_mismatches=0.2, shard_rows=50, decontaminate=[str(data / "collection")],
        engine=engine or "local", seed=1,
    )  # fmt: skip


def run_stages(data: Path, out: Path, engine: Engine | None) -> None:
    """All stages; None computes in this process what can be."""
    import torch

    from lightning_e5.curation.engines import tokens as tokens_of_pairs
    from lightning_e5.curation.mining import candidates
    from lightning_e5.curation.mining import teacher_scores as scoring
    from lightning_e5.models import encoder as encoders
    from lightning_e5.retrieval.stored_embeddings import store_embeddings
    from lightning_e5.stages.consistency_filter import consistency_filter
    from lightning_e5.stages.evaluate import evaluate
    from lightning_e5.stages.hard_negatives import hard_negatives
    from lightning_e5.stages.teacher import teacher_scores
    from lightning_e5.stages.vocabulary import tokens

    torch.set_num_threads(1)  # as the workers of every engine compute
    small = [(candidates, "TEXTS"), (candidates, "SEARCHES"), (candidates, "RESCORED"), (scoring, "GROUPS"), (encoders, "TEXTS_AT_ONCE"), (tokens_of_pairs, "SHARD_ROWS")]
    patches = [mock.patch.object(module, name, SMALL) for module, name in small]
    for patch in patches:
        patch.start()
    try:
        build(data, out / "pairs", engine)
        encoder, keep = data / "encoder", out / "filter" / "ranks.parquet"
        tokens(out / "tokens", pairs=out / "pairs", encoder=encoder, engine=engine, seed=1)
        consistency_filter(out / "filter", pairs=out / "pairs", encoder=encoder, pool_size=50, k=20, rows_per_part=SMALL, engine=engine, seed=1)
        hard_negatives(
            out / "negatives", pairs=out / "pairs", keep=keep, encoder=encoder, count=3, last_rank=20, denoise=data / "teacher", denoise_margin=-0.01, engine=engine, seed=1
        )  # fmt: skip
        teacher_scores(out / "scores", teacher=data / "teacher", ranked=out / "negatives", engine=engine)
        places = {"collections": {"docs": data / "collection"}, "encoders": {"e5": encoder}}
        evaluate(out / "evaluate", **places, engine=engine, seed=1)
        with mock.patch.object(store_embeddings, "__kwdefaults__", store_embeddings.__kwdefaults__ | {"shard_rows": 2 * SMALL}):
            evaluate(out / "stored", **places, cache_dir=out / "cache", engine=engine, seed=1)
    finally:
        for patch in patches:
            patch.stop()


def digests(out: Path) -> dict[str, str]:
    """Of every file but the records of time."""
    files = [path for path in out.rglob("*") if path.is_file() and path.name != "timing_table.json"]
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


if __name__ == "__main__":
    place, target, address, *only = sys.argv[1:]
    if only:
        build(Path(place), Path(target), RayEngine(address=address), seconds=float(only[0]))
    else:
        run_stages(Path(place), Path(target), RayEngine(address=address))
