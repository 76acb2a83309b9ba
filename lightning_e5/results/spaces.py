"""A run's embedding spaces as data: its encoders loaded, measures of each space, neighbours, and a flat map of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_modules.pair_rows import source_codes, take_rows
from data_modules.pair_store import SHARDS, PairStore
from data_modules.pair_store import TABLE as PAIR_TABLE
from lightning_e5.config.experiment import Node
from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.data import RetrievalData, load_beir
from lightning_e5.evaluation.embedding_space import Spread, alignment, spread, uniformity
from lightning_e5.evaluation.loaded_models import ModelSpec, given_prefixes
from lightning_e5.results.run import TABLE, RunData
from lightning_e5.rng import derive_seed, generator
from lightning_e5.types import Embedder, Kind, compares_by_cosine

#: Pairs measured, passages searched for neighbours, texts of one kind on the map, and kinds on it.
MEASURED, SEARCHED, OF_A_KIND, KINDS = 500, 2000, 50, 9
_ENCODER_SETTINGS = ("precision", "prefixes", "max_length", "prefix_ablation")


@dataclass(frozen=True, slots=True)
class SpaceMeasures:
    """One encoder on judged (query, passage) pairs of one collection; see `lightning_e5.evaluation.embedding_space`.

    ``uniformity`` and ``spread``: of the passages; ``query_uniformity``: of the queries; ``pairs``: how many.
    """

    model: str
    collection: str
    pairs: int
    alignment: float
    uniformity: float
    query_uniformity: float
    spread: Spread


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A passage near to a text."""

    cosine: float
    passage: str


@dataclass(frozen=True)
class FlatMap:
    """Texts as points of the plane: ``xy_N2``, the kind of each (index into ``kinds``), which kinds are test passages."""

    xy_N2: NDArray[np.float64]
    kind_N: NDArray[np.int64]
    kinds: tuple[str, ...]
    is_test: tuple[bool, ...]
    variance: float


def encoder_folders(run: RunData) -> dict[str, tuple[Path, Node]]:
    """Model -> its folder and the settings that it was judged with; those whose folder is not there any more are left out."""
    found: dict[str, tuple[Path, Node]] = {}
    for stage in run.stages_with(TABLE):
        node = run.config["stages"][stage]
        settings = {key: node[key] for key in _ENCODER_SETTINGS if key in node}
        for model, reference in ((node.get("inputs") or {}).get("encoders") or {}).items():
            folder = run.input_path(reference)
            if folder.is_dir():
                found[model] = (folder, settings)
    return found


def load_encoder(run: RunData, model: str) -> Embedder:
    """One of `encoder_folders`, as its evaluation loaded it; UserError where it is not there."""
    folders = encoder_folders(run)
    if model not in folders:
        raise UserError(f"{run.path}: has no encoder {model!r} (has: {', '.join(folders) or 'none'})")
    folder, settings = folders[model]
    own = {**settings, "prefixes": given_prefixes(settings.get("prefixes"))}
    loaded: Embedder = ModelSpec(model, folder, **own).load().model
    return loaded


def load_collection(run: RunData, collection: str) -> RetrievalData:
    """A collection's texts and judgements, of the split that was judged."""
    splits = [r.row.get("split") for r in run.results() if r.collection == collection]
    return load_beir(run.collection_folder(collection), next((s for s in splits if s), None) or "test", collection)


def measures(embedder: Embedder, model: str, data: RetrievalData, most: int = MEASURED) -> SpaceMeasures | None:
    """Alignment, uniformity and spread over up to ``most`` judged pairs, one per query; None with fewer than two pairs.

    The same pairs for every encoder, so that encoders can be compared.
    """
    judged = {q: next((d for d, grade in grades.items() if grade > 0 and d in data.corpus), None) for q, grades in data.qrels.items()}
    pairs = [(q, d) for q, d in judged.items() if d is not None]
    order = generator(0, "embedding space", data.name).permutation(len(pairs))
    chosen: list[tuple[str, str]] = []
    seen: set[str] = set()
    for number in order:  # every passage once: a text and itself have the cosine 1
        if pairs[number][1] not in seen and len(chosen) < most:
            seen.add(pairs[number][1])
            chosen.append(pairs[number])
    if len(chosen) < 2:
        return None
    queries_ND = embedder.embed([data.queries[q] for q, _ in chosen], "query")
    passages_ND = embedder.embed([data.corpus[d] for _, d in chosen], "passage")
    return SpaceMeasures(
        model, data.name, len(chosen), alignment(queries_ND, passages_ND), uniformity(passages_ND), uniformity(queries_ND),
        spread(passages_ND),
    )  # fmt: skip


def neighbours(
    embedder: Embedder, texts: Sequence[str], passages: Sequence[str], *, kind: Kind = "query", count: int = 3
) -> list[list[Neighbour]]:
    """The ``count`` passages nearest to each text, the nearest first."""
    by_cosine = compares_by_cosine(embedder)
    passages_ND = embedder.embed(list(passages), "passage", normalize=by_cosine)
    scores_BN = embedder.embed(list(texts), kind, normalize=by_cosine) @ passages_ND.T
    best = scores_BN.topk(min(count, len(passages)), dim=1)
    return [
        [Neighbour(float(s), passages[int(i)]) for s, i in zip(row, ids, strict=True)] for row, ids in zip(best.values, best.indices, strict=True)
    ]


def some_passages(data: RetrievalData, most: int = SEARCHED) -> list[str]:
    """Up to ``most`` passages that hold a text, at random, always the same."""
    texts = [text for text in data.corpus.values() if text.strip()]
    order = generator(0, "passages", data.name).permutation(len(texts))[:most]
    return [texts[i] for i in sorted(order.tolist())]


def texts_by_kind(run: RunData, collections: Mapping[str, RetrievalData], of_a_kind: int = OF_A_KIND) -> dict[str, list[str]]:
    """Passages to map: of the largest sources of the training pairs, and of each collection (``test: NAME``).

    Planted mismatches are left out. No more than 9 kinds, the collections among them.
    """
    tests = {f"test: {name}": some_passages(data, of_a_kind) for name, data in list(collections.items())[:3]}
    kinds: dict[str, list[str]] = {}
    store = _training_pairs(run)
    if store is not None:
        names, code_N = source_codes(store)
        planted_N = np.zeros(store.rows, bool)
        if "planted" in store.columns:
            planted_N = store.read(["planted"])["planted"].to_numpy(zero_copy_only=False)
        counts = np.bincount(code_N, minlength=len(names))
        for code in np.argsort(-counts, kind="stable")[: KINDS - len(tests)].tolist():
            rows = np.flatnonzero((code_N == code) & ~planted_N)
            chosen = np.sort(generator(0, "map", names[code]).permutation(rows)[:of_a_kind])
            if len(chosen):
                kinds[names[code]] = take_rows(store, chosen, ["passage"])["passage"].to_pylist()
    return kinds | {name: texts for name, texts in tests.items() if texts}


def flat_map(embedder: Embedder, kinds: Mapping[str, Sequence[str]]) -> FlatMap | None:
    """The passages' embeddings by PCA to 50 dimensions and t-SNE to 2 (scikit-learn); None for fewer than 10 texts.

    Distances between far groups mean nothing in such a map; which points are near one another does.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    texts = [text for own in kinds.values() for text in own]
    if len(texts) < 10:
        return None
    kind_N = np.repeat(np.arange(len(kinds)), [len(own) for own in kinds.values()])
    vectors_ND = embedder.embed(texts, "passage").numpy().astype(np.float64)
    seed = derive_seed(0, "flat map") % 2**31
    pca = PCA(n_components=min(50, *vectors_ND.shape), random_state=seed)
    reduced = pca.fit_transform(vectors_ND)
    perplexity = min(30.0, (len(texts) - 1) / 3)
    tsne: Any = TSNE(n_components=2, perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed)
    names = tuple(kinds)
    return FlatMap(
        tsne.fit_transform(reduced), kind_N, names, tuple(n.startswith("test: ") for n in names), float(pca.explained_variance_ratio_.sum())
    )


def neighbours_of_own_kind(embedder: Embedder, kinds: Mapping[str, Sequence[str]]) -> float:
    """The share of the passages whose nearest other passage (in the whole space) is of their own kind; of several equally near
    ones the share that is, so that a collapsed encoder scores at chance."""
    texts = [text for own in kinds.values() for text in own]
    kind_N = torch.repeat_interleave(torch.arange(len(kinds)), torch.tensor([len(own) for own in kinds.values()]))
    vectors_ND = embedder.embed(texts, "passage")
    cosines = vectors_ND @ vectors_ND.T
    cosines.fill_diagonal_(-2)
    nearest = cosines == cosines.amax(1, keepdim=True)
    return float(((nearest & (kind_N[:, None] == kind_N)).sum(1).double() / nearest.sum(1)).mean())


def _training_pairs(run: RunData) -> PairStore | None:
    """The pairs of the first stage that holds some, or that a filter read."""
    for stage in run.config["stages"]:
        if any((run.stage(stage) / name).is_file() for name in (SHARDS, PAIR_TABLE)):
            return PairStore(run.stage(stage))
    return None


def measure_table(found: Sequence[SpaceMeasures]) -> tuple[list[str], list[list[str]]]:
    """Header and cells, one row per model and collection."""
    header = ["model", "collection", "pairs", "alignment", "uniformity of passages", "of queries", "mean direction", "mean cosine", "dimensions"]
    rows = [
        [m.model, m.collection, f"{m.pairs:,}", f"{m.alignment:.3f}", f"{m.uniformity:.3f}", f"{m.query_uniformity:.3f}",
         f"{m.spread.mean_direction:.3f}", f"{m.spread.mean_cosine:+.3f}", f"{m.spread.dimensions:.0f}"]
        for m in found
    ]  # fmt: skip
    return header, rows
