"""The stages that are measured, family after family: each family has a file of its functions beside this one."""

from __future__ import annotations

from benchmarks.memory.stage import Stage

_ENCODER = "pretraining:encoder"
_RANKS = "pretraining:ranks"
_TOKENS = "pretraining:token_cache"

_PRETRAINING = (
    Stage("vocabulary", "pretraining:vocabulary", "texts of the WordPiece sample, a block of texts"),
    Stage("tokens", "pretraining:tokens", "a block of texts and its tokens", needs=(_ENCODER,), parallel=True),
    Stage("filter", "pretraining:consistency_filter", "the pool (2,000 passages), texts and embeddings of a part (8,192 pairs)", needs=(_ENCODER,), parallel=True),
    Stage("draw_pairs", "pretraining:draw_pairs", "a block of decisions", needs=(_RANKS,)),
    Stage("order", "pretraining:order", "a batch of 1,024 pairs; the kept rows are memory-mapped", needs=(_ENCODER, _TOKENS, _RANKS)),
)

#: Name -> stage. A family more: a tuple of its stages, added here.
STAGES: dict[str, Stage] = {stage.name: stage for family in (_PRETRAINING,) for stage in family}
