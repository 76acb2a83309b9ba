"""The gradient-cached step equals one big batch: dropout on, ragged chunks, hard negatives, accumulation."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from lightning_e5.losses.info_nce import InfoNCE
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.rng import seed_torch
from lightning_e5.training import grad_cache
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
    done = step(encoder, tokens, queries, group, GradCache(chunk_tokens=chunk_tokens, graph_tokens=graph_tokens))
    found = gradients(encoder)
    assert float(done.loss.loss) == pytest.approx(float(loss), rel=bound)
    assert found.keys() == expected.keys()
    assert relative_difference(found, expected) <= bound
    assert done.tokens == len(tokens.ids_T) and done.embeddings_ND.shape == (len(tokens.lengths_B), encoder.width)
    assert (done.recomputed_tokens == 0) == (graph_tokens == 10**6)


def test_with_other_dropout_in_the_recomputation_the_gradient_is_wrong(small_bert, small_tokenizer, texts, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """The negative control: the tests above would notice."""
    seen: set[object] = set()

    def other_the_second_time(*parts: object) -> None:
        seed_torch(*parts, *(["again"] if parts in seen else []))  # type: ignore[arg-type]
        seen.add(parts)

    monkeypatch.setattr(grad_cache, "seed_torch", other_the_second_time)
    encoder = TextEncoder(small_bert, small_tokenizer).double().train()
    tokens = concatenate([batch(small_tokenizer, texts[:6], "query"), batch(small_tokenizer, texts[6:12], "passage")])
    one_graph(encoder, tokens, 6, 1, 64)
    expected = gradients(encoder)
    step(encoder, tokens, 6, 1, GradCache(chunk_tokens=64, graph_tokens=0))
    assert seen
    found = gradients(encoder)
    assert relative_difference(found, expected) > 1e-3


def test_gradients_accumulate_over_steps(small_bert, small_tokenizer, texts) -> None:  # type: ignore[no-untyped-def]
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


def test_gradient_cached_equals_hugging_faces_padded_big_batch(small_bert, small_tokenizer, texts) -> None:  # type: ignore[no-untyped-def]
    """Evaluation mode, hard negatives: one padded forward and backward of all texts, with none of this project's code."""
    encoder = TextEncoder(small_bert, small_tokenizer).double().eval()
    tokens = concatenate([batch(small_tokenizer, texts[:8], "query"), batch(small_tokenizer, texts[8:32], "passage")])
    pieces = list(torch.split(tokens.ids_T, tokens.lengths_B.tolist()))
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(p) for p in pieces], batch_first=True)
    states = small_bert(input_ids=torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True), attention_mask=mask).last_hidden_state
    embeddings = functional.normalize((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=1)
    loss = functional.cross_entropy(embeddings[:8] @ embeddings[8:].T / 0.05, torch.arange(8) * 3)
    loss.backward()
    expected = gradients(encoder)
    done = step(encoder, tokens, 8, 3, GradCache(chunk_tokens=70, graph_tokens=150))
    assert float(done.loss.loss) == pytest.approx(float(loss.detach()), rel=1e-12)
    assert relative_difference(gradients(encoder), expected) <= 1e-12


@pytest.mark.parametrize("graph_tokens", [0, 150])
def test_gradient_of_a_learned_temperature(small_bert, small_tokenizer, texts, graph_tokens: int) -> None:  # type: ignore[no-untyped-def]
    encoder = TextEncoder(small_bert, small_tokenizer).double().train()
    tokens = concatenate([batch(small_tokenizer, texts[:9], "query"), batch(small_tokenizer, texts[9:18], "passage")])
    learned, target = InfoNCE(0.05, learned=True).double(), torch.arange(9)

    def run(chunk_tokens: int, graphs: int):  # type: ignore[no-untyped-def]
        GradCache(chunk_tokens=chunk_tokens, graph_tokens=graphs).step(
            tokens, lambda ids, lengths: functional.normalize(encoder(ids, lengths), dim=1),
            lambda e: learned(e[:9], e[9:], target), seed=3, loss_parameters=[learned.log_scale],
        )  # fmt: skip
        found, learned.log_scale.grad = learned.log_scale.grad, None
        return gradients(encoder), found

    embeddings = torch.empty(18, encoder.width, dtype=torch.float64)
    for index, chunk in enumerate(sorted_chunks(tokens, 64)):
        seed_torch(3, "chunk", index)
        embeddings = embeddings.index_copy(0, chunk.rows_B, functional.normalize(encoder(chunk.ids_T, chunk.lengths), dim=1))
    functional.cross_entropy(embeddings[:9] @ embeddings[9:].T * learned.log_scale.exp(), target).backward()
    expected, of_scale = gradients(encoder), learned.log_scale.grad
    learned.log_scale.grad = None
    found, scale = run(64, graph_tokens)
    assert relative_difference(found, expected) <= 1e-12
    assert of_scale is not None and float(of_scale) != 0.0
    assert float(scale) == pytest.approx(float(of_scale), rel=1e-12)


@pytest.mark.parametrize("graph_tokens", [400, 0])
def test_out_of_memory_halves_the_budget_and_keeps_the_gradient(small_bert, small_tokenizer, texts, caplog, graph_tokens: int) -> None:  # type: ignore[no-untyped-def]
    encoder = TextEncoder(small_bert, small_tokenizer).double().eval()
    tokens = concatenate([batch(small_tokenizer, texts[:12], "query"), batch(small_tokenizer, texts[12:24], "passage")])
    parameters = [p for p in encoder.parameters() if p.requires_grad]
    held, sizes = [0], []

    def run(cache: GradCache, limit: float):  # type: ignore[no-untyped-def]
        def encode(ids, lengths):  # type: ignore[no-untyped-def]
            held[0] += len(ids) if torch.is_grad_enabled() else 0
            if len(ids) > 60 or held[0] > limit:
                held[0] = 0
                raise torch.OutOfMemoryError("planted")
            return functional.normalize(encoder(ids, lengths), dim=1)

        def loss(embeddings):  # type: ignore[no-untyped-def]
            held[0] = -(10**6)  # the second half of the step frees graphs as it goes
            sizes.append(len(embeddings))
            return InfoNCE(0.05)(embeddings[:12], embeddings[12:], torch.arange(12))

        before = torch.ones_like(parameters[0])
        parameters[0].grad = before.clone()  # of an earlier step that is accumulated on
        held[0] = 0
        done = cache.step(tokens, encode, loss, seed=1, parameters=parameters)
        parameters[0].grad -= before
        return done.loss.loss, gradients(encoder)

    expected_loss, expected = run(GradCache(chunk_tokens=50, graph_tokens=0), 10**9)
    cache = GradCache(chunk_tokens=100, graph_tokens=graph_tokens)
    loss, found = run(cache, 150)
    assert (cache.chunk_tokens, cache.graph_tokens) == (50, 0) and "out of memory" in caplog.text
    assert set(sizes) == {24}, "every try sees all texts, so all negatives"
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-12)
    assert relative_difference(found, expected) <= 1e-12
    with pytest.raises(torch.OutOfMemoryError, match="planted"):  # nothing to set back: an error
        GradCache(chunk_tokens=100, graph_tokens=0).step(
            tokens, lambda ids, lengths: (_ for _ in ()).throw(torch.OutOfMemoryError("planted")),
            lambda e: InfoNCE()(e, e, torch.arange(24)), seed=1,
        )  # fmt: skip


def test_out_of_memory_in_the_loss_frees_graphs_and_keeps_the_gradient(small_bert, small_tokenizer, texts) -> None:  # type: ignore[no-untyped-def]
    encoder = TextEncoder(small_bert, small_tokenizer).double().eval()
    tokens = concatenate([batch(small_tokenizer, texts[:12], "query"), batch(small_tokenizer, texts[12:24], "passage")])
    parameters = [p for p in encoder.parameters() if p.requires_grad]
    failures = [0]

    def run(graph_tokens: int, failing: int):  # type: ignore[no-untyped-def]
        failures[0] = failing
        cache = GradCache(chunk_tokens=50, graph_tokens=graph_tokens)

        def loss(embeddings):  # type: ignore[no-untyped-def]
            failures[0] -= 1
            if failures[0] >= 0:
                raise torch.OutOfMemoryError("planted")
            return InfoNCE(0.05)(embeddings[:12], embeddings[12:], torch.arange(12))

        cache.step(tokens, lambda ids, lengths: functional.normalize(encoder(ids, lengths), dim=1), loss, seed=1, parameters=parameters)
        return cache, gradients(encoder)

    _, expected = run(0, 0)
    cache, found = run(400, 2)
    assert cache.graph_tokens == 100 and relative_difference(found, expected) <= 1e-12
    with pytest.raises(torch.OutOfMemoryError, match="planted"):  # no graph is held that could be freed
        run(0, 1)
