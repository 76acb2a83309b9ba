"""The gradient-cached step equals one big batch: dropout on, ragged chunks, hard negatives, accumulation."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from lightning_e5.losses.info_nce import InfoNCE
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.rng import seed_torch
from lightning_e5.training.chunks import concatenate, sorted_chunks
from lightning_e5.training.grad_cache import GradCache
from lightning_e5.types import TokenBatch


def batch(tokenizer, texts: list[str], kind: str) -> TokenBatch:  # type: ignore[no-untyped-def]
    ids, lengths = tokenizer.encode(texts, kind)
    return TokenBatch(torch.from_numpy(ids).long(), torch.from_numpy(lengths))


def step(encoder, tokens, queries: int, group: int, cache: GradCache, seed: int = 3):  # type: ignore[no-untyped-def]
    target = torch.arange(queries) * group

    def loss(embeddings):  # type: ignore[no-untyped-def]
        return InfoNCE(0.05)(embeddings[:queries], embeddings[queries:], target)

    return cache.step(tokens, lambda ids, lengths: functional.normalize(encoder(ids, lengths), dim=1), loss, seed=seed)


def gradients(encoder):  # type: ignore[no-untyped-def]
    found = {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}
    encoder.zero_grad()
    return found


def relative_difference(found, expected) -> float:  # type: ignore[no-untyped-def]
    """Norm of the difference of the whole gradients over the norm of the expected one."""
    difference = sum(float((found[n].double() - expected[n].double()).square().sum()) for n in expected)
    return (difference / sum(float(g.double().square().sum()) for g in expected.values())) ** 0.5


def one_graph(encoder, tokens, queries: int, group: int, chunk_tokens: int, seed: int = 3):  # type: ignore[no-untyped-def]
    """The plain way: every chunk in one graph, one backward pass through all of it."""
    embeddings = torch.empty(len(tokens.lengths_B), encoder.width, dtype=next(encoder.parameters()).dtype)
    for index, chunk in enumerate(sorted_chunks(tokens, chunk_tokens)):
        seed_torch(seed, "chunk", index)
        embeddings = embeddings.index_copy(0, chunk.rows_B, functional.normalize(encoder(chunk.ids_T, chunk.lengths), dim=1))
    logits = embeddings[:queries] @ embeddings[queries:].T / 0.05
    loss = functional.cross_entropy(logits, torch.arange(queries) * group)
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("chunk_tokens", [1, 50, 97, 1000])
@pytest.mark.parametrize("graph_tokens", [0, 150, 10**6])
def test_gradient_cached_equals_one_graph(small_bert, small_tokenizer, texts, dtype, bound, group, chunk_tokens, graph_tokens) -> None:  # type: ignore[no-untyped-def]
    encoder = TextEncoder(small_bert, small_tokenizer).to(dtype).train()
    assert small_bert.config.hidden_dropout_prob == 0.1
    queries = 9
    tokens = concatenate([
        batch(small_tokenizer, texts[:queries], "query"),
        batch(small_tokenizer, texts[queries : queries + queries * group], "passage"),
    ])  # fmt: skip
    loss = one_graph(encoder, tokens, queries, group, chunk_tokens)
    expected = gradients(encoder)
    output, report = step(encoder, tokens, queries, group, GradCache(chunk_tokens=chunk_tokens, graph_tokens=graph_tokens))
    found = gradients(encoder)
    assert float(output.loss) == pytest.approx(float(loss), rel=bound)
    assert found.keys() == expected.keys()
    assert relative_difference(found, expected) <= bound
    assert report.tokens == len(tokens.ids_T)
    assert (report.replayed_tokens == 0) == (graph_tokens == 10**6)


def test_without_the_replay_of_dropout_the_gradient_is_wrong(small_bert, small_tokenizer, texts) -> None:  # type: ignore[no-untyped-def]
    """The negative control: the tests above would notice."""
    encoder = TextEncoder(small_bert, small_tokenizer).double().train()
    tokens = concatenate([batch(small_tokenizer, texts[:6], "query"), batch(small_tokenizer, texts[6:12], "passage")])
    one_graph(encoder, tokens, 6, 1, 64)
    expected = gradients(encoder)
    step(encoder, tokens, 6, 1, GradCache(chunk_tokens=64, graph_tokens=0, replay_dropout=False))
    found = gradients(encoder)
    assert relative_difference(found, expected) > 1e-3


def test_steps_accumulate(small_bert, small_tokenizer, texts) -> None:  # type: ignore[no-untyped-def]
    encoder = TextEncoder(small_bert, small_tokenizer).double().eval()
    halves = [
        concatenate([batch(small_tokenizer, texts[a : a + 5], "query"), batch(small_tokenizer, texts[a + 5 : a + 10], "passage")])
        for a in (0, 10)
    ]
    for half in halves:
        one_graph(encoder, half, 5, 1, 64)
    expected = gradients(encoder)
    for half in halves:
        step(encoder, half, 5, 1, GradCache(chunk_tokens=64, graph_tokens=0))
    found = gradients(encoder)
    assert relative_difference(found, expected) <= 1e-12


def test_chunks_hold_every_text_once(small_tokenizer, texts) -> None:  # type: ignore[no-untyped-def]
    tokens = batch(small_tokenizer, texts[:40], "passage")
    pieces = torch.split(tokens.ids_T, tokens.lengths_B.tolist())
    for budget in (1, 30, 100, 10**6):
        chunks = sorted_chunks(tokens, budget)
        rows = torch.cat([c.rows_B for c in chunks])
        assert sorted(rows.tolist()) == list(range(40))
        for chunk in chunks:
            assert len(chunk.ids_T) <= budget or len(chunk.lengths) == 1
            for row, piece in zip(chunk.rows_B.tolist(), torch.split(chunk.ids_T, chunk.lengths), strict=True):
                assert torch.equal(piece, pieces[row])
        lengths = [n for c in chunks for n in c.lengths]
        assert lengths == sorted(lengths)
