"""Training at several dimensions: every scheme's loss is the sum of its losses of truncated embeddings, and the gradient cache changes nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from lightning_e5.config.instantiate import check_node
from lightning_e5.errors import UserError
from lightning_e5.losses.info_nce import InfoNCE
from lightning_e5.losses.matryoshka import Matryoshka
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.modules.bi_encoder import BiEncoderModule
from lightning_e5.modules.distilled import DistilledModule
from lightning_e5.modules.in_batch import InBatchModule
from lightning_e5.modules.moco import MoCoModule
from lightning_e5.modules.pre_batch import PreBatchModule
from lightning_e5.modules.symmetric import SymmetricModule
from lightning_e5.modules.validation import lower_is_better
from lightning_e5.modules.watch import guess_of
from lightning_e5.rng import seed_torch
from lightning_e5.training.chunks import concatenate, sorted_chunks
from lightning_e5.training.grad_cache import GradCache
from lightning_e5.training.optimizer import AdamWConfig
from lightning_e5.types import LossOutput, PairBatch, TokenBatch
from tests.lightning_e5.modules.loss_of_step import loss_of_step
from tests.lightning_e5.training.test_grad_cache import batch, gradients, relative_difference

EMPTY = TokenBatch(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
COUNT, GROUP, WIDTH = 6, 2, 32
DIMENSIONS, WEIGHTS = [32, 12, 5], [1.0, 0.5, 2.0]
SCHEMES: dict[type[BiEncoderModule], dict[str, Any]] = {
    InBatchModule: {}, PreBatchModule: {"queue_size": 9}, MoCoModule: {"queue_size": 20}, DistilledModule: {"alpha": 0.3},
    SymmetricModule: {"query_negatives": True},
}  # fmt: skip


def unit(count: int, seed: int) -> torch.Tensor:
    return functional.normalize(torch.randn(count, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=1)


def cut(rows: torch.Tensor, width: int) -> torch.Tensor:
    return rows if width == WIDTH else rows[:, :width] / rows[:, :width].square().sum(1, keepdim=True).sqrt()


def make(scheme: type[BiEncoderModule], small_bert: Any, **options: Any) -> Any:
    tokenizer: Any = SimpleNamespace(max_length=32)
    encoder = TextEncoder(small_bert, tokenizer)
    return scheme(encoder, temperature=0.05, optimizer=AdamWConfig(learning_rate=1e-3), max_steps=10, **SCHEMES[scheme], **options).double()


def loss_at(module: Any, width: int, embeddings: torch.Tensor) -> LossOutput:
    """The step's loss of these embeddings, its queue and keys of this width."""
    if isinstance(module, MoCoModule | PreBatchModule):
        module.queue.embeddings_KD = torch.zeros(module.queue.size, width, dtype=torch.float64)
        module.queue.pushed.zero_()
        module.queue.push(cut(unit(7, 3), width), torch.arange(300, 307))
    if isinstance(module, MoCoModule):
        module.grad_cache.embed = lambda passages, encode: cut(unit(COUNT * GROUP, 1), width)  # type: ignore[method-assign]
    teacher = torch.randn(COUNT, GROUP, generator=torch.Generator().manual_seed(2)) if isinstance(module, DistilledModule) else None
    texts = torch.tensor([100, 101, 102, 103, 100, 105, 106, 107, 108, 109, 110, 111])
    rows = PairBatch(EMPTY, EMPTY, torch.tensor([1, 2, 3, 1, 5, 6]), texts, torch.arange(COUNT), teacher)
    return loss_of_step(module, rows, embeddings)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_sums_its_loss_of_truncated_embeddings(small_bert: Any, scheme: type[BiEncoderModule]) -> None:
    texts = COUNT if scheme is MoCoModule else COUNT + COUNT * GROUP
    embeddings = torch.cat([unit(COUNT, 0), unit(COUNT * GROUP, 1)])[:texts].requires_grad_()
    output = loss_at(make(scheme, small_bert, dimensions=DIMENSIONS, dimension_weights=WEIGHTS), WIDTH, embeddings)
    plain = make(scheme, small_bert)
    alone = {d: loss_at(plain, d, cut(embeddings, d)) for d in DIMENSIONS}
    expected = sum(weight * alone[d].loss for d, weight in zip(DIMENSIONS, WEIGHTS, strict=True))
    assert float(output.loss) == pytest.approx(float(expected), rel=1e-12)
    ours, theirs = (torch.autograd.grad(loss, embeddings)[0] for loss in (output.loss, expected))
    assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max()
    for d in DIMENSIONS:
        assert float(output.logs[f"loss@{d}"]) == pytest.approx(float(alone[d].loss), rel=1e-12)
    assert output.accuracy == alone[32].accuracy and set(alone[32].logs) < set(output.logs)
    assert abs(float(output.loss) - float(alone[32].loss)) > 0.1  # the control: it is another loss
    assert loss_at(make(scheme, small_bert, dimensions=[32]), WIDTH, embeddings).loss == alone[32].loss


def test_gradient_cached_equals_one_graph(small_bert: Any, small_tokenizer: Any, texts: list[str]) -> None:
    """Dropout on, ragged chunks; the control is a graph that leaves out the smallest dimension."""
    encoder = TextEncoder(small_bert, small_tokenizer).double().train()
    tokens = concatenate([batch(small_tokenizer, texts[:8], "query"), batch(small_tokenizer, texts[8:24], "passage")])
    target = torch.arange(8) * 2

    def one_graph(dimensions: list[int]) -> dict[str, torch.Tensor]:
        rows = torch.empty(24, WIDTH, dtype=torch.float64)
        for index, chunk in enumerate(sorted_chunks(tokens, 70)):
            seed_torch(3, "chunk", index)
            rows = rows.index_copy(0, chunk.rows_B, functional.normalize(encoder(chunk.ids_T, chunk.lengths), dim=1))
        weights = dict(zip(DIMENSIONS, WEIGHTS, strict=True))
        cuts = {d: cut(rows, d) for d in dimensions}
        loss = sum(weights[d] * functional.cross_entropy(c[:8] @ c[8:].T / 0.05, target) for d, c in cuts.items())
        loss.backward()  # type: ignore[union-attr]
        return gradients(encoder)

    expected, other = one_graph(DIMENSIONS), one_graph(DIMENSIONS[:2])
    loss = Matryoshka(lambda rows: InfoNCE(0.05)(rows[:8], rows[8:], target), DIMENSIONS, WEIGHTS)
    for graph_tokens in (0, 150):
        GradCache(chunk_tokens=70, graph_tokens=graph_tokens).step(
            tokens, lambda ids, lengths: functional.normalize(encoder(ids, lengths), dim=1), loss, seed=3
        )  # fmt: skip
        found = gradients(encoder)
        assert relative_difference(found, expected) <= 1e-12 and relative_difference(found, other) > 1e-2


def test_what_the_modules_refuse_and_say(small_bert: Any, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="dimensions: 33 is above the 32 values"):
        make(InBatchModule, small_bert, dimensions=[33, 8])
    make(InBatchModule, small_bert, dimensions=[16, 8])
    assert "behind the first 16 of 32 are in no loss" in capfd.readouterr().err
    for wrong, message in (
        ({"dimensions": [8, 8]}, "module: dimensions: 8 is named twice"), ({"dimensions": [0]}, r"module\.dimensions: \[0\] is not a list of integers"),
        ({"dimensions": [8], "dimension_weights": [0.0]}, r"module\.dimension_weights: \[0\.0\] is not"), ({"dimension_weights": [1.0]}, "belong to dimensions"),
        ({"dimensions": 8}, r"module\.dimensions: 8 is not a list"),
    ):  # fmt: skip
        for scheme in SCHEMES:
            node = {"_target_": f"{scheme.__module__}.{scheme.__qualname__}", "_partial_": True, **wrong}
            with pytest.raises(UserError, match=message):
                check_node(node, "module")


def test_watch_and_validation_know_the_values(small_bert: Any) -> None:
    module = make(InBatchModule, small_bert, dimensions=[32, 8])
    rows = PairBatch(EMPTY, EMPTY, torch.arange(COUNT), torch.arange(COUNT * GROUP), torch.arange(COUNT))
    guess = guess_of(module, rows, {"loss": 9.0, "loss@32": 2.0, "loss@8": 7.0})
    assert guess is not None and guess.loss == 2.0
    assert lower_is_better("val/loss@8") and lower_is_better("val/loss") and not lower_is_better("val/accuracy@8") and not lower_is_better("val/mrr@10")
