"""What publishers say of their data sets: splits, columns, sizes. ONE table per publisher, from which readers and `check` take all.

Sizes and columns are those of the data sets' cards on the Hub (``https://huggingface.co/datasets/<name>``, read in 2024 and 2025);
sentence-transformers lists its sets in https://sbert.net/docs/sentence_transformer/dataset_overview.html. A reader refuses files
that lack a column, so that an entry which has grown old cannot go unnoticed.
"""

from __future__ import annotations

from typing import NamedTuple

NOMIC_PAIRS, NOMIC_TRIPLES = "nomic-ai/nomic-embed-unsupervised-data", "nomic-ai/nomic-embed-supervised-data"
#: Split -> rows: 238,998,494 together (the card's ``num_examples``).
NOMIC_PAIR_SPLITS = {
    "reddit_title_body": 66_204_599, "paq": 53_874_545, "amazon_reviews": 39_357_860, "s2orc_title_abstract": 36_051_582,
    "wikianswers": 10_087_503, "s2orc_citation_titles": 7_722_225, "s2orc_abstract_citation": 7_639_890, "s2orc_abstract_body": 6_550_431,
    "wikipedia": 6_198_049, "gooaq": 1_281_138, "codesearch": 864_023, "agnews": 420_288, "npr": 365_075, "ccnews": 353_670, "cnn": 293_521,
    "yahoo_title_answer": 276_726, "amazonqa": 226_137, "yahoo_title_question": 213_320, "sentence_compression": 173_604,
    "yahoo_qa": 143_477, "altlex": 110_708, "eli5": 106_781, "simplewiki": 97_717, "wikihow": 96_029, "stackexchange_title_body": 80_695,
    "stackexchange_duplicate_questions": 73_210, "stackexchange_body_body": 65_689, "quora": 44_885, "squad": 25_117,
}  # fmt: skip
#: What nomic says of how it chose these pairs (scripts/text/README.md of https://github.com/nomic-ai/contrastors).
NOMIC_FILTER = "gte-base, which kept a pair where its document is among the 2 nearest to its query, of up to 1,000,000 pairs of its source"
#: Split -> (rows, whether its passages are texts of the queries' kind, of which nomic gives both sides one prefix:
#: src/contrastors/configs/data/finetune_triplets.yaml there); 1,695,819 rows together.
NOMIC_TRIPLE_SPLITS = {
    "msmarco_distillation_simlm_rescored_reranked_min15": (485_721, False), "nli_simcse_50negs_fixed": (275_595, True),
    "reddit_triples": (200_000, True), "medi_supernli_sampled": (177_639, True), "hotpotqa_hn_mine_shuffled": (170_000, False),
    "fever_hn_mine": (140_085, False), "medi_sts_stackexchange_dupe": (100_591, True), "nq_cocondensor_hn_mine_reranked_min15": (70_002, False),
    "medi_sts_flickr_sampled": (51_186, True), "medi_sts_wiki_rephrasal": (25_000, True),
}  # fmt: skip


class PublishedSet(NamedTuple):
    """A subset of a data set: its columns, and its rows where they are known.

    negatives: columns with a text each; none in sets of pairs. alike: both sides are texts of one kind.
    """

    query: str
    passage: str
    negatives: tuple[str, ...] = ()
    alike: bool = False
    rows: int | None = None


def _triplet(query: str, *, alike: bool = False, rows: int | None = None, negatives: int = 1) -> PublishedSet:
    names = ("negative",) if negatives == 1 else tuple(f"negative_{number}" for number in range(1, negatives + 1))
    return PublishedSet(query, "positive", names, alike, rows)


#: ``NAME/SUBSET`` of https://huggingface.co/sentence-transformers -> its columns. A subset is a folder of the repository.
SENTENCE_TRANSFORMERS: dict[str, PublishedSet] = {
    "agnews/pair": PublishedSet("title", "description", rows=1_157_745),
    "all-nli/pair": PublishedSet("anchor", "positive", alike=True, rows=314_315),
    "all-nli/triplet": _triplet("anchor", alike=True, rows=557_850),
    "altlex/pair": PublishedSet("simplified", "text", alike=True),
    "amazon-qa/pair": PublishedSet("query", "answer"),
    "amazon-reviews/pair": PublishedSet("title", "review", rows=87_877_725),
    "ccnews/pair": PublishedSet("title", "article", rows=614_664),
    "codesearchnet/pair": PublishedSet("comment", "code"),
    "eli5/pair": PublishedSet("question", "answer", rows=325_475),
    "gooaq/pair": PublishedSet("question", "answer", rows=3_012_496),
    "hotpotqa/triplet": _triplet("anchor"),
    "hotpotqa/triplet-all": _triplet("anchor"),
    "mr-tydi/en-triplet": _triplet("anchor"),
    "msmarco-bm25/triplet": _triplet("query", rows=502_931),
    "msmarco-bm25/triplet-50": _triplet("query", negatives=50),
    "msmarco-distilbert-margin-mse-cls-dot-v2/triplet": _triplet("query", rows=502_939),
    "msmarco-distilbert-margin-mse-cls-dot-v2/triplet-50": _triplet("query", negatives=50),
    "msmarco-distilbert-margin-mse-sym-mnrl-mean-v2/triplet": _triplet("query", rows=502_939),
    "msmarco-distilbert-margin-mse-sym-mnrl-mean-v2/triplet-50": _triplet("query", negatives=50),
    "msmarco-msmarco-distilbert-base-tas-b/triplet": _triplet("query", rows=502_939),
    "msmarco-msmarco-distilbert-base-tas-b/triplet-50": _triplet("query", negatives=50),
    "natural-questions/pair": PublishedSet("query", "answer", rows=100_231),
    "nli-for-simcse/triplet": _triplet("anchor", alike=True),
    "npr/pair": PublishedSet("title", "body", rows=594_384),
    "paq/pair": PublishedSet("query", "answer", rows=64_371_441),
    "quora-duplicates/pair": PublishedSet("anchor", "positive", alike=True, rows=149_263),
    "quora-duplicates/triplet": _triplet("anchor", alike=True, rows=101_762),
    "quora-duplicates/triplet-all": _triplet("anchor", alike=True, rows=2_792_280),
    "s2orc/abstract-citation-pair": PublishedSet("abstract", "citation"),
    "s2orc/title-abstract-pair": PublishedSet("title", "abstract"),
    "s2orc/title-citation-pair": PublishedSet("title", "citation"),
    "sentence-compression/pair": PublishedSet("simplified", "text", alike=True, rows=180_000),
    "simple-wiki/pair": PublishedSet("simplified", "text", alike=True, rows=102_225),
    "specter/triplet": _triplet("anchor", alike=True),
    "squad/pair": PublishedSet("question", "answer", rows=87_599),
    "stackexchange-duplicates/body-body-pair": PublishedSet("body1", "body2", alike=True, rows=250_519),
    "stackexchange-duplicates/post-post-pair": PublishedSet("post1", "post2", alike=True, rows=250_460),
    "stackexchange-duplicates/title-title-pair": PublishedSet("title1", "title2", alike=True, rows=304_525),
    "trivia-qa/pair": PublishedSet("query", "answer", rows=73_346),
    "trivia-qa-triplet/triplet": _triplet("anchor"),
    "trivia-qa-triplet/triplet-all": _triplet("anchor"),
    "yahoo-answers/question-answer-pair": PublishedSet("question", "answer"),
    "yahoo-answers/title-answer-pair": PublishedSet("title", "answer"),
    "yahoo-answers/title-question-pair": PublishedSet("title", "question"),
}
#: The lists of ``sentence-transformers/embedding-training-data``.
TRAINING_LISTS = "sentence-transformers/embedding-training-data"
