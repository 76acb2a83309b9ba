"""The options of the contrastive module against losses written out as whole matrices."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from lightning_e5.config.instantiate import check_node
from lightning_e5.errors import UserError
from lightning_e5.losses.info_nce import InfoNCE
from lightning_e5.modules.bi_encoder import BiEncoderModule
from lightning_e5.modules.in_batch import InBatchModule
from lightning_e5.modules.moco import MoCoModule
from lightning_e5.modules.pre_batch import PreBatchModule
from lightning_e5.modules.symmetric import SymmetricModule
from lightning_e5.training.grad_cache import GradCache
from lightning_e5.training.optimizer import AdamWConfig
from lightning_e5.types import LossOutput, PairBatch, TokenBatch
from tests.lightning_e5.modules.loss_of_step import loss_of_step

EMPTY = TokenBatch(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
BATCH, WIDTH, T = 7, 32, 0.05
QUERY_TEXTS = torch.tensor([1, 2, 3, 1, 5, 6, 7])
PASSAGE_TEXTS = torch.tensor([10, 11, 12, 13, 11, 15, 16])


def unit(count: int, seed: int) -> torch.Tensor:
    return functional.normalize(torch.randn(count, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=1)


def make(scheme: type[BiEncoderModule], small_bert: Any, **options: Any) -> BiEncoderModule:
    from lightning_e5.models.encoder import TextEncoder

    tokenizer: Any = SimpleNamespace(max_length=32)
    encoder = TextEncoder(small_bert, tokenizer)
    return scheme(encoder, temperature=T, optimizer=AdamWConfig(learning_rate=1e-3), max_steps=10, **options)


def loss_of(
    module: BiEncoderModule, queries: torch.Tensor, passages: torch.Tensor, group: int = 1, texts: torch.Tensor | None = None
) -> LossOutput:
    texts = texts if texts is not None else PASSAGE_TEXTS if group == 1 else torch.arange(BATCH * group) + 100
    batch = PairBatch(EMPTY, EMPTY, QUERY_TEXTS, texts, torch.arange(BATCH))
    return loss_of_step(module, batch, torch.cat([queries, passages]))


def masked(logits: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the diagonal, without the other entries of ``same``."""
    diagonal = torch.arange(len(logits))
    same = same.clone()
    same[diagonal, diagonal] = False
    return functional.cross_entropy(logits.masked_fill(same, -torch.inf), diagonal)


def equal_rows(texts: torch.Tensor) -> torch.Tensor:
    return texts[:, None] == texts[None]


def no_negatives() -> torch.Tensor:
    """Query x passage: the passage's text is that of a positive of an equal query."""
    partners = equal_rows(QUERY_TEXTS)
    same = torch.zeros(BATCH, BATCH, dtype=torch.bool)
    for i in range(BATCH):
        positives = {int(t) for t, p in zip(PASSAGE_TEXTS, partners[i], strict=True) if p}
        same[i] = torch.tensor([int(t) in positives for t in PASSAGE_TEXTS])
    return same


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("query_negatives", [False, True])
def test_options_equal_whole_matrices(small_bert, symmetric: bool, query_negatives: bool) -> None:  # type: ignore[no-untyped-def]
    module = make(SymmetricModule, small_bert, symmetric=symmetric, query_negatives=query_negatives)
    queries, passages = unit(BATCH, 0).requires_grad_(), unit(BATCH, 1).requires_grad_()
    output = loss_of(module, queries, passages)
    logits, same = queries @ passages.T / T, no_negatives()
    if query_negatives:
        # The queries' texts are also compared with the positives': here no query has a passage's text.
        logits = torch.cat([logits, queries @ queries.T / T], 1)
        same = torch.cat([same, equal_rows(QUERY_TEXTS)], 1)
    expected = masked(logits, same)
    if symmetric:
        # Passage x query: the query's text is that of a query of an equal passage, which is the same relation turned round.
        back = torch.zeros(BATCH, BATCH, dtype=torch.bool)
        for i in range(BATCH):
            askers = {int(t) for t, p in zip(QUERY_TEXTS, equal_rows(PASSAGE_TEXTS)[i], strict=True) if p}
            back[i] = torch.tensor([int(t) in askers for t in QUERY_TEXTS])
        expected = (expected + masked(passages @ queries.T / T, back)) / 2
    assert float(output.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    for ours, theirs in zip(torch.autograd.grad(output.loss, (queries, passages)), torch.autograd.grad(expected, (queries, passages)), strict=True):
        assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max()


@pytest.mark.parametrize("query_negatives", [False, True])
def test_without_masking_a_query_alone_is_left_out_of_its_own_negatives(small_bert, query_negatives: bool) -> None:  # type: ignore[no-untyped-def]
    """Copies of the positive (rows 1 and 4) and of the query (rows 0 and 3) stay."""
    queries, passages = unit(BATCH, 0), unit(BATCH, 1)
    output = loss_of(make(SymmetricModule, small_bert, symmetric=False, mask_duplicates=False, query_negatives=query_negatives), queries, passages)
    logits, same = queries @ passages.T / T, torch.zeros(BATCH, BATCH, dtype=torch.bool)
    if query_negatives:
        logits, same = torch.cat([logits, queries @ queries.T / T], 1), torch.cat([same, torch.eye(BATCH, dtype=torch.bool)], 1)
    assert float(output.loss) == pytest.approx(float(masked(logits, same)), rel=1e-12)
    assert float(output.masked_fraction) == pytest.approx(float(same.float().mean()))
    duplicates_out = loss_of(make(SymmetricModule, small_bert, symmetric=False, query_negatives=query_negatives), queries, passages)
    assert float(duplicates_out.loss) < float(output.loss)


@pytest.mark.parametrize("scheme", [InBatchModule, PreBatchModule])
def test_a_batch_of_one_text_has_loss_0_and_a_finite_gradient(small_bert, scheme: type[BiEncoderModule]) -> None:  # type: ignore[no-untyped-def]
    """Every negative is a copy of the positive; the positive itself is never left out."""
    module = make(scheme, small_bert, **({"queue_size": 9} if scheme is PreBatchModule else {})).double()
    if scheme is PreBatchModule:
        module.queue.push(unit(9, 8), torch.full((9,), 10))  # type: ignore[operator, union-attr]
    queries, passages = unit(BATCH, 0).requires_grad_(), unit(BATCH, 1).requires_grad_()
    output = loss_of(module, queries, passages, texts=torch.full((BATCH,), 10))
    assert float(output.loss.detach()) == pytest.approx(0.0, abs=1e-12) and float(output.accuracy) == 1.0
    assert float(output.masked_fraction) == pytest.approx(1 - 1 / (BATCH + (9 if scheme is PreBatchModule else 0)))
    for gradient in torch.autograd.grad(output.loss, (queries, passages)):
        assert torch.isfinite(gradient).all() and float(gradient.abs().max()) < 1e-12


def test_options_are_off_by_default(small_bert) -> None:  # type: ignore[no-untyped-def]
    module = make(InBatchModule, small_bert)
    assert not (module.token_dropout or module.info_nce.log_scale is not None)
    assert module.mask_duplicates and InfoNCE().temperature == 0.01


def test_moco_leaves_out_positives_of_equal_queries(small_bert) -> None:  # type: ignore[no-untyped-def]
    module: Any = make(MoCoModule, small_bert, queue_size=12)
    keys, old, queries = unit(BATCH, 1).float(), unit(5, 2).float(), unit(BATCH, 0).float()
    old_texts = torch.tensor([13, 40, 41, 10, 42])
    module.queue.push(old, old_texts)
    module.grad_cache.embed = lambda passages, encode: keys
    output = loss_of_step(module, PairBatch(EMPTY, EMPTY, QUERY_TEXTS, PASSAGE_TEXTS, torch.arange(BATCH)), queries)
    positives = [{int(t) for t, p in zip(PASSAGE_TEXTS, equal_rows(QUERY_TEXTS)[i], strict=True) if p} for i in range(BATCH)]
    queued = torch.tensor([[int(t) in positives[i] for t in old_texts] for i in range(BATCH)])
    expected = masked(torch.cat([queries @ keys.T, queries @ old.T], 1) / T, torch.cat([no_negatives(), queued], 1))
    assert float(output.loss) == pytest.approx(float(expected), rel=1e-5)
    plain = masked(torch.cat([queries @ keys.T, queries @ old.T], 1) / T, torch.zeros(BATCH, BATCH + 5, dtype=torch.bool))
    assert abs(float(plain) - float(expected)) > 1e-3


def test_a_learned_temperature_has_the_gradient_of_autograd() -> None:
    queries, passages, target = unit(5, 2), unit(9, 3), torch.tensor([0, 3, 1, 8, 4])
    loss = InfoNCE(0.07, learned=True).double()
    output = loss(queries.requires_grad_(), passages, target, queue_KD=unit(4, 4))
    log_scale = loss.log_scale.detach().clone().requires_grad_()
    plain = functional.cross_entropy(queries @ torch.cat([passages, unit(4, 4)]).T * log_scale.exp(), target)
    assert float(output.loss.detach()) == pytest.approx(float(plain.detach()), rel=1e-9)
    found = torch.autograd.grad(output.loss, (loss.log_scale, queries))
    expected = torch.autograd.grad(plain, (log_scale, queries))
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-9)
    assert torch.allclose(found[1], expected[1], rtol=1e-9)


def test_the_queue_of_pre_batch_adds_negatives_without_gradient(small_bert) -> None:  # type: ignore[no-untyped-def]
    module = make(PreBatchModule, small_bert, queue_size=5).double()
    queries, passages, old = unit(BATCH, 5).requires_grad_(), unit(BATCH, 6).requires_grad_(), unit(5, 7)
    old_texts = torch.tensor([11, 40, 41, 10, 42])
    module.queue.push(old, old_texts)  # type: ignore[operator]
    output = loss_of(module, queries, passages)
    same = no_negatives()
    positives = [{int(t) for t, p in zip(PASSAGE_TEXTS, equal_rows(QUERY_TEXTS)[i], strict=True) if p} for i in range(BATCH)]
    queued = torch.tensor([[int(t) in positives[i] for t in old_texts] for i in range(BATCH)])
    expected = masked(torch.cat([queries @ passages.T, queries @ old.T], 1) / T, torch.cat([same, queued], 1))
    assert float(output.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    for ours, theirs in zip(torch.autograd.grad(output.loss, (queries, passages)), torch.autograd.grad(expected, (queries, passages)), strict=True):
        assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max()


def test_moco_makes_keys_in_smaller_chunks_where_memory_runs_out(small_bert) -> None:  # type: ignore[no-untyped-def]
    module: Any = make(MoCoModule, small_bert, queue_size=12).eval()
    module.grad_cache = GradCache(chunk_tokens=64)
    passages = TokenBatch(torch.randint(5, 90, (40,), generator=torch.Generator().manual_seed(0)), torch.tensor([10, 4, 9, 12, 5]))
    expected, sizes, encode = module.grad_cache.embed(passages, module.key_chunk), [], module.momentum_encoder.forward

    def limited(ids_T: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        sizes.append(len(ids_T))
        if len(ids_T) > 20:
            raise torch.OutOfMemoryError("planted")
        return encode(ids_T, lengths)

    module.momentum_encoder.forward = limited
    assert torch.allclose(module.grad_cache.embed(passages, module.key_chunk), expected, atol=1e-6) and max(sizes) > 20
    module.momentum_encoder.forward = lambda ids_T, lengths: (_ for _ in ()).throw(torch.OutOfMemoryError("planted"))
    with pytest.raises(MemoryError, match="a single text does not fit in memory"):
        module.grad_cache.embed(passages, module.key_chunk)


def test_moco_refuses_what_has_no_meaning(small_bert) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="symmetric"):
        check_node({"_target_": "lightning_e5.modules.moco.MoCoModule", "_partial_": True, "symmetric": True}, "module")
    with pytest.raises(UserError, match=r"momentum: 1\.5"):
        make(MoCoModule, small_bert, momentum=1.5)
