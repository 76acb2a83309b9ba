"""Stage: text pairs from raw sources, at any scale: rules, evaluation texts, duplicates, caps, shards.

In a folder ``work/`` lies what tasks have finished, so that a killed build goes on where it was; it is removed at the end.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from data_modules.pair_store import SHARD_FOLDER, SHARDS, shard_name, stated_filter
from lightning_e5.configurable import configurable
from lightning_e5.curation.building.merge import Decisions, decide, merge_key, pieces_by_source, save_decisions
from lightning_e5.curation.building.parts import (
    EVALUATION_TEXT,
    NGRAMS,
    OF_CORPORA,
    OVERLAP,
    RECORD,
    RawPart,
    part_key,
    read_part,
    write_evaluation,
)
from lightning_e5.curation.building.shards import Shard, shard_bounds, write_shard
from lightning_e5.curation.cleaning.duplicates import NearDuplicates
from lightning_e5.curation.cleaning.evaluation_files import EvaluationFiles
from lightning_e5.curation.cleaning.overlap import EvaluationNgrams, OverlapReport
from lightning_e5.curation.engines.engine import Engine, make_engine
from lightning_e5.curation.engines.run_parts import Part, run_parts
from lightning_e5.errors import UserError
from lightning_e5.files.storage import read_json, remove_temporaries, safe_component, sha256_file, write_json
from lightning_e5.pipeline.fingerprint import result_version
from lightning_e5.ranges import Count, Range, Share
from lightning_e5.rng import derive_seed
from lightning_e5.tracking.run_directory import warn
from lightning_e5.types import PairFiles, PairHeuristic, ReadReport

WORK = "work"
#: The key of what was built, and what it took; no result, since it differs from one build to the next.
TIMES = "timing_table.json"
OVERLAP_REPORT = "overlap.json"


@configurable("stage")
@result_version(3)  # the cap of a source of more than 262,144 candidates draws otherwise
def build_ccpairs(
    out: Path,
    *,
    sources: Sequence[PairFiles],
    heuristics: Sequence[PairHeuristic] = (),
    near_duplicates: NearDuplicates | None = None,
    decontaminate: EvaluationFiles | Sequence[str] = (),
    drop_corpus: bool = False,
    ngram_report: Annotated[int, Range(1, 1000)] | None = None,
    shard_rows: Count = 1_000_000,
    max_pairs_per_source: Count | None = None,
    planted_mismatches: Share = 0.0,
    engine: Engine | Literal["local", "ray"] = "local",
    seed: int,
) -> dict[str, float]:
    """Write ``shards/<source>/part-*.parquet`` and ``pairs.json`` (see `PairStore`), the same bytes from every engine.

    A task reads one part of one source: rules in their order, then evaluation texts. One pass over all parts drops
    exact and near duplicates and what is above the cap; tasks then write the shards, with injected label noise.

    Args:
        out: the stage's folder; on a cluster all nodes see it under this path.
        sources: raw sources, each with a name of its own.
        heuristics: rules on single pairs, in the order in which they are asked.
        near_duplicates: how near copies are found; None leaves them in.
        decontaminate: evaluation collections; a pair with one of their queries (or of a file's texts) on either side is dropped. Given as
            `EvaluationFiles`, a changed file of theirs makes a run build anew; given as paths, the paths alone count.
        drop_corpus: also drop pairs with a document of the collections' corpora (BEIR folders), as the paper does with public data. By
            default they are counted and stay: who trains for a corpus of their own trains on the very passages that are searched.
        ngram_report: also report (``overlap.json``) how many pairs share so many words in a row with an evaluation
            text; drops nothing. GPT-3's is 13.
        shard_rows: rows of a shard.
        max_pairs_per_source: a random part of larger sources; None for all.
        planted_mismatches: share of the pairs of each source with injected label noise (another pair's passage, column ``planted``); 0 for none.
        engine: where tasks run: ``local``, ``ray``, or an engine with settings.
        seed: of the caps and the label noise.

    Returns:
        Counts, ``<source>/pairs`` and ``<source>/dropped: <rule>`` among them.

    Raises:
        UserError: two sources have one name, a number is out of range, no pair is left, or a file cannot be read.

    Source: paper section 3.1; evaluation texts: its appendix A, with ``drop_corpus``.
    """
    _check(sources, heuristics, shard_rows, max_pairs_per_source, planted_mismatches, ngram_report)
    began = time.perf_counter()
    runner, work = make_engine(engine), out / WORK
    work.mkdir(parents=True, exist_ok=True)
    remove_temporaries(work)
    for half_read in (work / "parts").glob(".*.tmp"):
        shutil.rmtree(half_read, ignore_errors=True)
    evaluation, identity = _evaluation(decontaminate, ngram_report, work, drop_corpus)
    parts: list[Part] = []
    for number, source in enumerate(sources):
        for index, part in enumerate(source.parts()):
            folder = work / "parts" / f"{number:02d}-{safe_component(source.name)}-{index:05d}"
            raw = RawPart(source, part, tuple(heuristics), near_duplicates, evaluation, folder)
            own_key = part_key(source, part, heuristics, near_duplicates, identity)
            parts.append(Part(f"{source.name}: {part}", folder / RECORD, raw, key=own_key, folder=folder))
    settings = {
        "shard_rows": shard_rows, "most": max_pairs_per_source, "planted": planted_mismatches, "seed": seed,
        "sources": [source.name for source in sources],
    }  # fmt: skip
    key = merge_key([part.key for part in parts], **settings)
    if (finished := _finished(out, key)) is None:
        records = list(run_parts(read_part, parts, title="read sources", engine=runner))
        read_seconds = time.perf_counter() - began
        pieces = pieces_by_source([(part.folder, record) for part, record in zip(parts, records, strict=True)])
        seeds = {name: derive_seed(seed, "cap", name) for name in pieces}
        decisions = decide(pieces, near_duplicates, max_pairs_per_source, seeds, work / "decide")
        if not decisions.keep_N.any():
            raise UserError("sources: no pair is left of them" + _most_frequent_drop(sources, records, decisions, drop_corpus))
        shards = _write_shards(out, pieces, decisions, settings, key, runner)
        finished = _facts(sources, records, decisions, shards)
        if evaluation is not None and ngram_report is not None:
            _write_overlap(out, evaluation, [part.folder for part in parts])
        seconds = {"read": read_seconds, "in_all": time.perf_counter() - began}
        times = _times(records, [r for rs in shards.values() for r in rs], seconds)
        write_json(out / TIMES, {"key": key, **times})
        write_json(out / SHARDS, finished)
    shutil.rmtree(work, ignore_errors=True)
    for sentence in (sentence for reader in finished["read"] for sentence in reader["warnings"]):
        warn(sentence)
    if kept := sum(source.get(OF_CORPORA, 0) for source in finished["sources"]):
        warn(f"decontaminate: {kept:,} pairs, before duplicates and caps, hold a passage of an evaluation corpus and stay (drop_corpus: true drops them)")
    return _metrics(finished)


def _check(
    sources: Sequence[PairFiles], heuristics: Sequence[PairHeuristic], shard_rows: int, most: int | None, planted: float, ngram: int | None
) -> None:
    if not sources:
        raise UserError("sources: there is none to read")
    for what, names in (("sources", [s.name for s in sources]), ("heuristics", [h.name for h in heuristics])):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise UserError(f"{what}: two have the name {twice[0]!r}; give one of them another 'name'")
    for key, value in (("shard_rows", shard_rows), ("max_pairs_per_source", most), ("ngram_report", ngram)):
        if value is not None and value < 1:
            raise UserError(f"{key}: {value} is not >= 1")
    if not 0 <= planted <= 1:
        raise UserError(f"planted_mismatches: {planted} is not between 0 and 1")


def _evaluation(given: EvaluationFiles | Sequence[str], ngram: int | None, work: Path, drop_corpus: bool) -> tuple[Path | None, str | None]:
    """The folder of the evaluation texts for the workers, and an identity of them."""
    files = given if isinstance(given, EvaluationFiles) else EvaluationFiles(given)
    paths = files.paths()
    if not paths:
        if ngram is not None:
            raise UserError(f"ngram_report: {ngram} needs evaluation texts; name them under decontaminate")
        return None, None
    folder = work / "evaluation"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder, write_evaluation(folder, paths, ngram, drop_corpus=drop_corpus)


def _write_shards(
    out: Path, pieces: Mapping[str, Any], decisions: Decisions, settings: Mapping[str, Any], key: str, runner: Engine
) -> dict[str, list[dict[str, Any]]]:
    """Write the final shards; source -> their records. Files of an earlier, other build are removed."""
    keep = out / WORK / "keep.npy"
    save_decisions(keep, decisions.keep_N)
    parts: list[Part] = []
    for name, of_source in pieces.items():
        span = slice(of_source[0].first, of_source[-1].first + of_source[-1].rows) if of_source else slice(0, 0)
        for number, (first, stop) in enumerate(shard_bounds(decisions.keep_N, span, settings["shard_rows"])):
            inside = [p for p in of_source if p.first < stop and p.first + p.rows > first]
            file = shard_name(name, number)
            noise_seed = derive_seed(settings["seed"], "planted", name, number)
            shard = Shard(out, file, name, inside, first, stop, keep, settings["planted"] or None, noise_seed)
            parts.append(Part(file, out / WORK / "shards" / f"{len(parts):06d}.json", shard, key=f"{key} {file}", folder=out))
    wanted = {out / part.name for part in parts}
    for path in (out / SHARD_FOLDER).rglob("*"):
        if path.is_file() and path not in wanted:
            path.unlink()
    shards: dict[str, list[dict[str, Any]]] = {name: [] for name in pieces}
    for part, record in zip(parts, run_parts(write_shard, parts, title="write shards", engine=runner), strict=True):
        shards[part.work.source].append(record)
    return shards


def _finished(out: Path, key: str) -> dict[str, Any] | None:
    """The facts of a finished build with this key, all its shards as they were written; None otherwise."""
    if not (out / SHARDS).is_file() or not (out / TIMES).is_file():
        return None
    if read_json(out / TIMES).get("key") == key:
        facts: dict[str, Any] = read_json(out / SHARDS)
        shards = [(out / s["file"], s["sha256"]) for source in facts["sources"] for s in source["shards"]]
        if all(path.is_file() and sha256_file(path) == digest for path, digest in shards):
            return facts
    (out / SHARDS).unlink()
    return None


def _facts(
    sources: Sequence[PairFiles], records: Sequence[Mapping[str, Any]], decisions: Decisions, shards: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """``pairs.json``: per source of pairs what came, what was dropped by which rule and what is left; per reader its counts."""
    candidates: Counter[str] = Counter()
    dropped: dict[str, Counter[str]] = {name: Counter() for name in shards}
    of_corpora: Counter[str] = Counter()
    for record in records:
        for source in record["sources"]:
            candidates[source["name"]] += source["candidates"]
            dropped[source["name"]].update(source["dropped"])
            of_corpora[source["name"]] += source.get(OF_CORPORA, 0)
    made = [
        {
            "name": name,
            "candidates": candidates[name],
            "dropped": dict(dropped[name] + decisions.dropped[name]),
            "pairs": sum(r["rows"] for r in of_source),
            "planted": sum(r["planted"] for r in of_source),
            "shards": [{k: r[k] for k in ("file", "rows", "sha256")} for r in of_source],
        }
        | ({OF_CORPORA: of_corpora[name]} if of_corpora[name] else {})
        for name, of_source in shards.items()
    ]
    return {"kind": "pairs", "sources": made, "read": [_read_by(source.name, records) | stated_filter(source) for source in sources]}


def _read_by(source: str, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What one reader counted in all its parts, and what a user should know of it."""
    report, own = ReadReport(), [record for record in records if record["source"] == source]
    for record in own:
        report.add(ReadReport.of_json(record["read"]))
    given = sum(of_source["candidates"] for record in own for of_source in record["sources"])
    return {"name": source, "parts": len(own), **report.as_json(), "candidates": given, "warnings": report.warnings(source, given)}


def _metrics(facts: Mapping[str, Any]) -> dict[str, float]:
    metrics: dict[str, float] = {
        name: float(sum(source[name] for source in facts["sources"])) for name in ("candidates", "pairs", "planted")
    }
    metrics["bad_records"] = float(sum(n for r in facts["read"] for rule, n in r["counts"].items() if rule.startswith("bad: ")))
    metrics["sources"] = float(len(facts["sources"]))
    for source in facts["sources"]:
        metrics[f"{source['name']}/pairs"] = float(source["pairs"])
        for rule, count in sorted(source["dropped"].items()):
            metrics[f"{source['name']}/dropped: {rule}"] = float(count)
        if OF_CORPORA in source:
            metrics[f"{source['name']}/{OF_CORPORA}"] = float(source[OF_CORPORA])
    for reader in facts["read"]:  # one that gave no pair is there too
        if not reader["candidates"]:
            metrics[f"{reader['name']}/pairs"] = 0.0
        metrics[f"{reader['name']}/records"] = float(reader["counts"].get("records", 0))
        for name, count in sorted(reader["counts"].items()):
            if name.startswith(("bad: ", "skipped: ")):
                metrics[f"{reader['name']}/{name}"] = float(count)
    return metrics


def _most_frequent_drop(sources: Sequence[PairFiles], records: Sequence[Mapping[str, Any]], decisions: Decisions, drop_corpus: bool) -> str:
    drops = sum((Counter(s["dropped"]) for r in records for s in r["sources"]), sum(decisions.dropped.values(), Counter()))
    if drops:
        rule = drops.most_common(1)[0][0]
        hint = " (drop_corpus: false keeps passages of the evaluation's corpora)" if drop_corpus and rule.startswith(EVALUATION_TEXT) else ""
        return f"; most were dropped by {rule!r}{hint}"
    return ", they gave no candidate: " + "; ".join(w for source in sources for w in _read_by(source.name, records)["warnings"])


def _write_overlap(out: Path, evaluation: Path, parts: Sequence[Path]) -> None:
    report = OverlapReport()
    for folder in parts:
        report.add(OverlapReport.of_state(read_json(folder / OVERLAP)))
    write_json(out / OVERLAP_REPORT, report.as_json(EvaluationNgrams.load(evaluation / NGRAMS)))


def _times(parts: Sequence[Mapping[str, Any]], shards: Sequence[Mapping[str, Any]], seconds: Mapping[str, float]) -> dict[str, Any]:
    by_source: Counter[str] = Counter()
    for record in parts:
        by_source[record["source"]] += record["seconds"]
    peak = max([r["peak_memory_gb"] for r in (*parts, *shards)], default=0.0)
    return {"seconds": dict(seconds), "reader_seconds": dict(by_source), "worker_peak_memory_gb": peak, "code": _commit()}


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
