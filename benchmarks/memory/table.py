"""The stages that are measured, family after family: each family has a file of its functions beside this one."""

from __future__ import annotations

from benchmarks.memory.stage import Stage

_ENCODER = "pretraining:encoder"
_RANKS = "pretraining:ranks"
_TOKENS = "pretraining:token_cache"

_PRETRAINING = (
    Stage("vocabulary", "pretraining:vocabulary", "a count for each word of at most 1,000,000 pairs, then as tokens"),
    Stage("tokens", "pretraining:tokens", "three blocks of 8,192 texts, 32 bytes for each text of a shard", needs=(_ENCODER,)),
    Stage("filter", "pretraining:consistency_filter", "the pool (2,000 passages), texts and embeddings of a part (8,192 pairs)", needs=(_ENCODER,), parallel=True),
    Stage("draw_pairs", "pretraining:draw_pairs", "a block of decisions", needs=(_RANKS,)),
    Stage("order", "pretraining:order", "a batch of 1,024 pairs; the kept rows are memory-mapped", needs=(_ENCODER, _TOKENS, _RANKS)),
)

_KEPT, _GROUPS = "curation:all_kept", "curation:groups"
_COLLECTION, _TEACHER = "curation:collection", "curation:cross_encoder"

_CURATION = (
    Stage("build", "curation:build", "16,384 pairs of a part in each worker, 262,144 records of the duplicates' buckets, a shard's block of 65,536 pairs", parallel=True),
    Stage("mine_pairs", "curation:mine_pairs", "texts and embeddings of a part (32,768), 4,096 queries with their candidates", needs=(_ENCODER, _KEPT)),
    Stage("mine_collection", "curation:mine_collection", "as mine_pairs; a corpus of less than 64 MiB as a whole", needs=(_ENCODER, _COLLECTION)),
    Stage("mine_ivf", "curation:mine_ivf", "as mine_pairs; the index: a byte per value of each passage", needs=(_ENCODER, _KEPT), streams=False),
    Stage("teacher_scores", "curation:teacher_scores", "2,048 groups", needs=(_TEACHER, _GROUPS)),
    Stage("evaluate_corpus", "curation:evaluate_corpus", "texts and embeddings of a shard (65,536); a corpus of less than 64 MiB as a whole", needs=(_ENCODER, _COLLECTION)),
    Stage("evaluate_bm25", "curation:evaluate_bm25", "bm25s's matrix: some 24 bytes per different word of a passage", needs=(_COLLECTION,), streams=False),
    Stage("contamination", "curation:contamination", "8,192 pairs"),
)

#: Name -> stage. A family more: a tuple of its stages, added here.
STAGES: dict[str, Stage] = {stage.name: stage for family in (_PRETRAINING, _CURATION) for stage in family}
