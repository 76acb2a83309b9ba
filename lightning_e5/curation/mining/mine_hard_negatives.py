"""Hard negatives for lists of texts in memory; the stage `lightning_e5.stages.hard_negatives` does the same for folders."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lightning_e5.curation.engines.inference import EmbedBy
from lightning_e5.curation.mining.candidates import dense_candidates, false_negatives, lexical_candidates
from lightning_e5.curation.mining.collections import of_pairs
from lightning_e5.curation.mining.hard_negatives import MiningReport, NegativeRules, mine
from lightning_e5.errors import UserError
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.progress import say
from lightning_e5.retrieval.bm25 import BM25
from lightning_e5.text import check_texts
from lightning_e5.types import Kind, PairScorer, TrainingGroup


def mine_hard_negatives(
    retriever: TextEncoder | BM25,
    queries: Sequence[str],
    positives: Sequence[str],
    corpus: Sequence[str] = (),
    *,
    count: int = 7,
    first_rank: int = 1,
    last_rank: int = 200,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    denoise: PairScorer | None = None,
    denoise_margin: float = 0.0,
    max_score: float | None = None,
    passage_kind: Kind = "passage",
    seed: int = 0,
) -> list[TrainingGroup]:
    """The passages that a retriever ranks high for each query and that are not known to answer it.

    Args:
        retriever: an encoder, on the device that it is to embed on, or BM25.
        queries: texts; a query with several positives stands here once for each.
        positives: of each query. All positives of a query's text are known answers, and never its negatives.
        corpus: further passages to mine among; the positives are always among them.
        count, first_rank, last_rank, absolute_margin, relative_margin: see `NegativeRules`.
        denoise: a cross-encoder; a candidate that it scores at least ``positive - denoise_margin``, or above ``max_score``, is no
            negative.
        passage_kind: decides the passages' prefix; ``query`` for texts of one kind.
        seed: of the draws; those of the stage with this seed.

    Returns:
        A group per query, in order, with the retriever's scores; where too few passages were allowed, some of its negatives
        are drawn at random, which a message says.

    Raises:
        UserError: no query, not one positive for each, what is no text, or a corpus that is too small.

    Source: paper section 4.2.
    """
    for texts in (queries, positives, corpus):
        check_texts(texts)
    if not queries or len(queries) != len(positives):
        raise UserError(f"negatives: {len(queries)} queries and {len(positives)} positives; the rule is one positive for each query")
    if denoise is None and (denoise_margin != 0.0 or max_score is not None):
        raise UserError("negatives: denoise_margin and max_score need denoise, a cross-encoder")
    rules = NegativeRules(count, first_rank, last_rank, absolute_margin, relative_margin)
    data = of_pairs(queries, positives, [""] * len(queries), more_passages=corpus, max_queries=None, seed=seed)
    with tempfile.TemporaryDirectory(prefix="lightning_e5-negatives-") as folder:
        parts = Path(folder)
        if isinstance(retriever, BM25):
            candidates = lexical_candidates(data, retriever, last_rank, parts).whole()
        else:
            candidates = dense_candidates(data, EmbedBy(retriever), last_rank, parts, passage_kind=passage_kind).whole()
        vetoed_QK = None
        if denoise is not None:
            window = slice(first_rank - 1, last_rank)
            vetoed_QK = false_negatives(data, candidates, window, denoise, parts, margin=denoise_margin, max_score=max_score)
    negatives_QN, scores_QN, report = mine(*candidates, data.known, data.corpus_text_P, rules, seed=seed, false_negatives_QK=vetoed_QK)
    if report.filled_at_random:
        say(_filled(report, negatives_QN.size))
    scores = np.column_stack([candidates.positive_scores_Q, scores_QN]).tolist()
    return [
        TrainingGroup(query, positive, tuple(data.corpus[n] for n in rows), passage_kind=passage_kind, retriever_scores=tuple(own))
        for query, positive, rows, own in zip(queries, positives, negatives_QN, scores, strict=True)
    ]


def _filled(report: MiningReport, negatives: int) -> str:
    against = f", {report.filled_against_rules:,} of them against the rules" if report.filled_against_rules else ""
    return f"negatives: {report.filled_at_random:,} of {negatives:,} were not retrieved but drawn at random{against}, as too few passages were allowed"
