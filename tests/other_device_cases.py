"""What runs on an accelerator, each a function of the device alone that gives tensors or numbers: the same ones on every device."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_e5.curation.engines.inference import EmbedBy, ScoreBy
from lightning_e5.evaluation.validation_tasks import _TokenisedOnce
from lightning_e5.losses.distillation import distillation_loss, listwise_loss, positive_first, score_spread
from lightning_e5.losses.false_negatives import DuplicateQueries, FalseNegativeMask, OwnColumnMask
from lightning_e5.losses.info_nce import InfoNCE
from lightning_e5.losses.matryoshka import Matryoshka
from lightning_e5.models.cross_encoder import CrossEncoder, join_pairs
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.head import Dense, EmbeddingHead, HeadSettings, UnitLength
from lightning_e5.models.packed.layout import length_runs
from lightning_e5.models.pooling import POOLING_MODES
from lightning_e5.modules.cross_encoder import CrossEncoderModule
from lightning_e5.modules.validation import set_weights, weights_of
from lightning_e5.modules.watch import repeated_share
from lightning_e5.training.chunks import concatenate, sorted_chunks
from lightning_e5.training.interpolation import interpolated
from lightning_e5.training.momentum import momentum_copy, momentum_update
from lightning_e5.training.negative_queue import NegativeQueue
from lightning_e5.training.optimizer import AdamWConfig, clip_gradients
from lightning_e5.training.step_values import NonFiniteError, not_finite
from lightning_e5.training.token_dropout import drop_inner_tokens
from lightning_e5.types import LossOutput, PairBatch, TokenBatch
from tests.lightning_e5.models.packed.small_models import NAMES, small_model
from tests.lightning_e5.modules import scheme_run
from tests.lightning_e5.modules.loss_of_step import loss_of_step
from tests.other_device_inputs import LENGTHS, drawn, on, tokens, unit
from tests.other_device_ranking import filtered, nearest, ranked

Case = Callable[[torch.device], Any]
#: One of each kind.
SCHEMES = ("in_batch-0", "pre_batch-1", "moco-1", "everything-3", "distilled-3", "dimensions-1", "dimensions_moco-1")


class _Pair:
    """What a cross-encoder asks of its tokenizer's backend: the special tokens."""

    ids = (2, 3)

    def encode(self, text: str) -> _Pair:
        return self


class Words(scheme_run.Words):
    """Also begins and ends a text with a special token."""

    backend, max_length = _Pair(), 24

    def encode(self, texts: Any, kind: str) -> tuple[Any, Any]:
        ids = [[2, *(10 + ord(c) % 75 for c in f"{kind[0]}: {text}"), 3] for text in texts]
        return np.array([i for one in ids for i in one]), np.array([len(one) for one in ids])


@cache
def _model(name: str) -> Any:
    return small_model(name).eval()


def bi_encoder(name: str, device: torch.device, **settings: Any) -> TextEncoder:
    import copy

    return TextEncoder(copy.deepcopy(_model(name)), Words(), **settings).eval().to(device)  # type: ignore[arg-type]


def cross_encoder(name: str, device: torch.device) -> CrossEncoder:
    backbone = bi_encoder(name, torch.device("cpu")).backbone
    torch.manual_seed(2)  # behind the backbone, which draws where it is made for the first time
    made = CrossEncoder(backbone, Words())  # type: ignore[arg-type]
    torch.nn.init.normal_(made.head.outer.weight)
    return made.eval().to(device)


def encoded(name: str) -> Case:
    def case(device: torch.device) -> Any:
        encoder = bi_encoder(name, device)
        there = encoder.embed_tokens(on(device, tokens()), chunk_tokens=20)
        assert there.device == device
        return there, encoder.embed_tokens(tokens()), encoder.embed(["one", "another text"], "query"), encoder(on(device, tokens()).ids_T, LENGTHS)

    return case


def all_poolings(device: torch.device) -> Any:
    found = []
    for modes, prompt in ((POOLING_MODES, 0), (POOLING_MODES, 4), (("mean",), 0)):
        settings = HeadSettings(tuple(modes), include_prompt=not prompt, truncate_dim=5, similarity="dot")
        torch.manual_seed(1)
        head = EmbeddingHead(8, settings, [Dense(8 * len(modes), 6, residual=True), UnitLength()]).to(device)
        found.append(head(drawn(sum(LENGTHS), 8).to(device), length_runs(LENGTHS), prompt))
    return tuple(found)


def scored(name: str) -> Case:
    def case(device: torch.device) -> Any:
        model = cross_encoder(name, device)
        queries, passages = tokens((4, 6)), tokens((5, 8, 3, 5))
        joined = join_pairs(on(device, queries), on(device, passages))
        mixed = join_pairs(*(TokenBatch(one.ids_T.to(device), one.lengths_B) for one in (queries, passages)))
        logits = model.score_tokens(joined)
        assert logits.device == device == mixed.ids_T.device and mixed.lengths_B.device.type == "cpu"
        texts = model.score(["a", "longer query"], ["passage", "another"])
        return joined, mixed, logits, model.score_tokens(join_pairs(queries, passages)), texts, ScoreBy(model)((["a", "b"], [["c", "dd"], ["eee"]]), lambda n: None)["scores"]

    return case


def cut(device: torch.device) -> Any:
    batch = on(device, concatenate([tokens(), tokens((9, 2))]))
    dropped = drop_inner_tokens(on(device, tokens((9, 20, 15))), 0.4, seed=3, keep_first=2)
    there = TokenBatch(batch.ids_T, batch.lengths_B.cpu())  # lengths that stay where they are read
    return tuple((chunk.ids_T, chunk.lengths, chunk.rows_B) for one in (batch, there) for chunk in sorted_chunks(one, 16)), dropped


def losses(device: torch.device) -> Any:
    queries, passages, queue = (unit(n, 8, seed=n).to(device) for n in (6, 12, 9))
    target_Q = (torch.arange(6) * 2).to(device)
    text_Q, text_P, text_K = (torch.tensor(t).to(device) for t in ([1, 2, 2, 3, 4, 5], [7, 8, 9, 7, 9, 6, 5, 4, 3, 2, 1, 0], [7, 1, 2, 3, 9, 9, 8, 5, 6]))
    duplicates = DuplicateQueries(text_Q, text_Q, text_P[::2])
    mask = FalseNegativeMask(torch.cat([text_P, text_K]), text_P[::2], target_Q, duplicates=duplicates, own_text_Q=text_Q)
    learned = InfoNCE(0.05, learned=True).to(device)
    found = [
        learned(queries, passages, target_Q, mask, queue), InfoNCE(0.05, block_logits=40)(queries, passages, target_Q, OwnColumnMask(target_Q + 1)),
        Matryoshka(lambda rows: InfoNCE(0.05)(rows[:6], rows[6:], target_Q), [8, 3])(torch.cat([queries, passages])),
    ]  # fmt: skip
    teacher = drawn(6, 2).to(device)
    teacher[1] = float("nan")
    logits = drawn(6, 3, seed=9).to(device)
    others = distillation_loss(queries, passages.view(6, 2, 8), teacher), listwise_loss(logits), positive_first(logits), score_spread(teacher)
    return *((one.loss, one.accuracy, one.masked_fraction, dict(one.logs)) for one in found), others, repeated_share(text_Q, text_P[::2]), learned.temperature


def queued(device: torch.device) -> Any:
    queue = NegativeQueue(7, 4).to(device)
    places = [queue.push(drawn(3, 4, seed=i).to(device), torch.tensor([i, i + 1, i + 2]).to(device)) for i in range(3)]
    with queue.pushing(drawn(2, 4).to(device), torch.tensor([8, 9]).to(device)) as pushed:
        pass
    try:
        with queue.pushing(drawn(2, 4).to(device), torch.tensor([8, 9]).to(device)):
            raise KeyError
    except KeyError:
        pass
    return places, pushed, queue.entries(), queue.filled


def averaged(device: torch.device) -> Any:
    encoder = bi_encoder("bert", device)
    average = momentum_copy(encoder)
    start = weights_of(encoder)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(1.5)
    momentum_update(average, encoder, 0.9)
    mixed = interpolated(start, {name: p.detach() for name, p in encoder.named_parameters()}, 0.3)
    set_weights(encoder, mixed)
    return list(average.parameters()), mixed, list(encoder.parameters())


def scheme(name: str) -> Case:
    """The loss of a scheme's step, and its values in validation, of a batch on the device."""

    def case(device: torch.device) -> Any:
        module, batch = made_scheme(name, device)
        queries = "moco" in name
        rows = len(batch.rows_B) + (0 if queries else len(batch.passage_text_P))
        if hasattr(module, "queue"):
            module.queue.push(unit(20, 16, seed=5).double().to(device), torch.arange(20).to(device))
        output = loss_of_step(module, batch, unit(rows, 16, seed=6).double().to(device))
        module.on_validation_epoch_start()
        held_out = [dict(module.held_out_values(batch)) for _ in range(2)]
        return output.loss, output.accuracy, output.masked_fraction, dict(output.logs), held_out, module.held_out_pool_values()

    return case


def made_scheme(name: str, device: torch.device) -> tuple[Any, PairBatch]:
    kind, negatives, options = scheme_run.CASES[name]
    module: Any = kind(scheme_run.encoder(), temperature=0.05, optimizer=AdamWConfig(learning_rate=1e-3), max_steps=4, **options).double().to(device)
    return module, on(device, scheme_run.RandomPairs(negatives).batch(0, 0, 1))


def teacher(device: torch.device) -> Any:
    module = CrossEncoderModule(cross_encoder("bert", device), optimizer=AdamWConfig(learning_rate=1e-3), max_steps=4).to(device)
    batch = on(device, scheme_run.RandomPairs(3).batch(0, 0, 1))
    loss: list[LossOutput] = []
    planted: Any = module
    planted.cached_step = lambda batch, texts, encode, of: loss.append(of(torch.cat([encode(c.ids_T, c.lengths) for c in sorted_chunks(texts, 60)])))
    module.training_step(batch, 0)
    return loss[0].loss, loss[0].accuracy, loss[0].masked_fraction, dict(module.held_out_values(batch))


def refused(device: torch.device) -> Any:
    module, batch = made_scheme("in_batch-1", device)
    embeddings_ND = unit(8 + 16, 16).to(device)
    embeddings_ND[2] = embeddings_ND[8 + 9] = float("nan")
    try:
        module._refuse(7, batch.rows_B, not_finite(embeddings_ND), float("nan"), 1.0)
    except NonFiniteError as error:
        return str(error)
    raise AssertionError("was not refused")


def embedded(device: torch.device) -> Any:
    encoder = bi_encoder("bert", device)
    texts = ["first", "the second", "and a third one"]
    again = _TokenisedOnce(encoder, None)
    return EmbedBy(encoder)(("passage", texts), lambda n: None)["embeddings"], again.embed(texts, "query"), again.embed(texts, "query")


def clipped(device: torch.device) -> Any:
    parameters = [torch.nn.Parameter(drawn(3, 4, seed=i).to(device)) for i in range(3)]
    for number, parameter in enumerate(parameters):
        parameter.grad = drawn(3, 4, seed=10 + number).to(device)
    norm = clip_gradients(parameters, 0.5)
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    optimizer.step()
    optimizer.step()
    return norm, [p.grad for p in parameters], parameters


CASES: dict[str, Case] = {
    **{f"encoder {name}": encoded(name) for name in (*NAMES, "electra")},
    **{f"cross-encoder {name}": scored(name) for name in ("bert", "modernbert", "electra")},
    **{f"scheme {name}": scheme(name) for name in SCHEMES},
    "pooling and head": all_poolings, "chunks and token dropout": cut, "losses": losses, "queue": queued, "averages of weights": averaged, "teacher": teacher,
    "rows that are not finite": refused, "reciprocal ranks": ranked, "exact search": nearest, **{f"filter in {name}, {limit or 'all'} ranks": filtered(name, limit) for name in ("bf16", "fp32") for limit in (2, None)}, "embedding": embedded, "clipping and AdamW": clipped,
}  # fmt: skip


def differences(found: Any, expected: Any, bound: float, place: str = "") -> list[str]:
    """Where two outcomes differ by more than ``bound``, or in their form."""
    if isinstance(found, Tensor):
        found = found.detach().cpu().numpy()
    if isinstance(expected, Tensor):
        expected = expected.detach().cpu().numpy()
    if isinstance(expected, dict):
        if list(found) != list(expected):
            return [f"{place}: {list(found)} is not {list(expected)}"]
        return [line for key in expected for line in differences(found[key], expected[key], bound, f"{place}.{key}")]
    if isinstance(expected, tuple | list):
        if len(found) != len(expected):
            return [f"{place}: {len(found)} is not {len(expected)}"]
        return [line for i, (one, other) in enumerate(zip(found, expected, strict=True)) for line in differences(one, other, bound, f"{place}[{i}]")]
    if isinstance(expected, str):
        return [] if found == expected else [f"{place}: {found!r} is not {expected!r}"]
    one, other = np.asarray(found), np.asarray(expected)
    if one.shape != other.shape or one.dtype != other.dtype:
        return [f"{place}: {one.dtype}{one.shape} is not {other.dtype}{other.shape}"]
    exact = not np.issubdtype(other.dtype, np.floating)
    same = np.array_equal(one, other) if exact else np.allclose(one, other, rtol=bound, atol=bound, equal_nan=True)
    return [] if same else [f"{place}: differs by {np.nanmax(np.abs(one.astype(np.float64) - other)):.3g}"]
