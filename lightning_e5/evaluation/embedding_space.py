"""What an embedding space looks like: alignment of pairs, uniformity, how far the vectors share one direction, and which
texts are near one another, as neighbours and on a flat map."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_e5.errors import UserError
from lightning_e5.evaluation.beir.data import RetrievalData
from lightning_e5.rng import derive_seed, generator
from lightning_e5.types import Embedder, Kind, compares_by_cosine

#: Pairs measured, and passages searched for neighbours, where no other number is given.
MEASURED, SEARCHED = 500, 2000

_BLOCK = 1024  # rows compared with all others at a time: memory of 1024 x N float64
_UNIT = 1e-3  # how far from 1 the length of a unit row may be


@dataclass(frozen=True, slots=True)
class Isotropy:
    """How unit vectors are spread over the sphere.

    ``mean_direction``: length of the mean vector, 0 (balanced) to 1 (all the same); ``mean_cosine``: of two different
    rows, near 0 in an isotropic space; ``dimensions``: how many directions carry the variance, the participation ratio
    of its eigenvalues, 1 to D.
    """

    mean_direction: float
    mean_cosine: float
    dimensions: float


@dataclass(frozen=True, slots=True)
class SpaceMeasures:
    """One encoder on judged (query, passage) pairs of one collection.

    ``uniformity`` and ``isotropy``: of the passages; ``query_uniformity``: of the queries; ``pairs``: how many.
    """

    model: str
    collection: str
    pairs: int
    alignment: float
    uniformity: float
    query_uniformity: float
    isotropy: Isotropy


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


def alignment(a_ND: Tensor, b_ND: Tensor, alpha: float = 2.0) -> float:
    """The mean of ``|a - b| ** alpha`` over positive pairs of unit vectors; 0 is best.

    Args:
        a_ND: ``[N, D]`` unit rows.
        b_ND: ``[N, D]`` unit rows, of each row of ``a_ND`` the positive.
        alpha: above 0.

    Raises:
        UserError: shapes that differ, no row, rows that are not of length 1, or ``alpha`` out of range.

    Source: Wang and Isola, ICML 2020 (arXiv 2005.10242), equation 2.
    """
    if a_ND.shape != b_ND.shape:
        raise UserError(f"alignment: a pair has two vectors, but the shapes are {list(a_ND.shape)} and {list(b_ND.shape)}")
    if alpha <= 0:
        raise UserError(f"alignment: alpha = {alpha} is not above 0")
    a, b = _unit(a_ND, "alignment", 1), _unit(b_ND, "alignment", 1)
    return float((a - b).norm(dim=1).pow(alpha).mean())


def uniformity(x_ND: Tensor, t: float = 2.0) -> float:
    """The logarithm of the mean of ``exp(-t |x - y|^2)`` over different rows; lower is more uniform, 0 is all in one point.

    Args:
        x_ND: ``[N, D]`` unit rows, N >= 2; memory grows with N, time with its square.
        t: above 0.

    Raises:
        UserError: fewer than two rows, rows that are not of length 1, or ``t`` out of range.

    Source: Wang and Isola, ICML 2020 (arXiv 2005.10242), equation 3.
    """
    if t <= 0:
        raise UserError(f"uniformity: t = {t} is not above 0")
    x = _unit(x_ND, "uniformity", 2)
    total = 0.0
    for first in range(0, len(x), _BLOCK):
        cosines = x[first : first + _BLOCK] @ x.T
        exponents = -2 * t * (1 - cosines)  # |x - y|^2 = 2 - 2 cos
        exponents[torch.arange(len(cosines)), torch.arange(len(cosines)) + first] = -math.inf  # a row and itself
        total += float(exponents.exp().sum())
    return math.log(total / (len(x) * (len(x) - 1))) if total else -math.inf


def isotropy(x_ND: Tensor) -> Isotropy:
    """How the rows are spread.

    Args:
        x_ND: ``[N, D]`` unit rows, N >= 2.

    Raises:
        UserError: fewer than two rows, or rows that are not of length 1.

    Source: mean cosine of random texts as anisotropy: Ethayarajh, EMNLP 2019 (arXiv 1909.00512), section 3.3.
    """
    x = _unit(x_ND, "isotropy", 2)
    mean = x.mean(dim=0)
    length = float(mean.norm())
    rows = len(x)
    cosine = (rows * length**2 - 1) / (rows - 1)  # |sum|^2 = N + the cosines of all ordered pairs
    variances = torch.linalg.svdvals(x - mean) ** 2
    total = float(variances.sum())
    dimensions = total**2 / float((variances**2).sum()) if total > 1e-12 * rows else 1.0
    return Isotropy(length, cosine, dimensions)


def measures(embedder: Embedder, model: str, data: RetrievalData, most: int = MEASURED) -> SpaceMeasures | None:
    """Alignment, uniformity and isotropy over up to ``most`` judged pairs, one per query; None with fewer than two pairs.

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
        isotropy(passages_ND),
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
    count = sum(bool(text.strip()) for text in data.corpus.values())
    chosen = set(generator(0, "passages", data.name).permutation(count)[:most].tolist())
    with_text = (text for text in data.corpus.values() if text.strip())
    return [text for number, text in enumerate(with_text) if number in chosen]


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


def _unit(x_ND: Tensor, what: str, least: int) -> Tensor:
    if x_ND.ndim != 2 or len(x_ND) < least:
        raise UserError(f"{what}: needs a matrix of at least {least} vectors, not the shape {list(x_ND.shape)}")
    x = x_ND.double()
    lengths = x.norm(dim=1)
    wrong = ~((lengths - 1).abs() <= _UNIT)  # also what is not a number
    if wrong.any():
        row = int(wrong.double().argmax())
        raise UserError(f"{what}: row {row} has the length {float(lengths[row]):.4g}, not 1; normalise the vectors")
    return x
