"""Every kind of fault by its formula, and in real trainings: a sound one says nothing, a planted fault is told once."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from data_modules.base import StepDataModule
from lightning_e5.losses.distillation import score_spread
from lightning_e5.losses.false_negatives import DuplicateQueries, FalseNegativeMask
from lightning_e5.losses.info_nce import InfoNCE
from lightning_e5.models.cross_encoder import CrossEncoder
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.modules.base import TrainingModule
from lightning_e5.modules.bi_encoder import BiEncoderModule
from lightning_e5.modules.cross_encoder import CrossEncoderModule
from lightning_e5.modules.distilled import DistilledModule
from lightning_e5.modules.fit import fit
from lightning_e5.modules.in_batch import InBatchModule
from lightning_e5.modules.moco import MoCoModule
from lightning_e5.modules.pre_batch import PreBatchModule
from lightning_e5.modules.symmetric import SymmetricModule
from lightning_e5.modules.watch import TrainingWatch, guess_of, is_low, is_stuck, repeated_share, spike
from lightning_e5.training.checkpointing import checkpoint_path, load_checkpoint
from lightning_e5.training.optimizer import AdamWConfig
from lightning_e5.types import PairBatch, TokenBatch

BATCH = 8


class SmallPairs(StepDataModule):
    """The beginning and the rest of real texts as pairs; ``rows`` says which texts a step has, ``teacher`` its scores."""

    def __init__(
        self, texts: list[str], tokenizer: Any, steps: int, *, negatives: int = 0, rows: Callable[[Tensor], Tensor] = lambda rows_B: rows_B,
        teacher: Callable[[Tensor], Tensor] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(batch_size=BATCH, max_steps=steps, seed=0)
        self.texts, self.tokenizer, self.negatives, self.rows, self.teacher = texts, tokenizer.cut_at(12), negatives, rows, teacher

    def batch(self, step: int, rank: int, world_size: int) -> PairBatch:
        draw = torch.Generator().manual_seed(step)
        rows_B = self.rows(torch.randperm(len(self.texts), generator=draw)[:BATCH])
        others_BN = torch.randint(0, len(self.texts), (BATCH, self.negatives), generator=draw)
        rows_P = torch.cat([rows_B[:, None], others_BN], 1).flatten()
        scores_BG = torch.randn(BATCH, 1 + self.negatives, generator=draw)
        queries, passages = [self.texts[i][:20] for i in rows_B], [self.texts[i][10:] for i in rows_P]
        return PairBatch(
            self._tokens(queries, "query"), self._tokens(passages, "passage"), rows_B, rows_P, rows_B,
            teacher_BG=None if self.teacher is None else self.teacher(scores_BG),
        )  # fmt: skip

    def _tokens(self, texts: list[str], kind: Any) -> TokenBatch:
        ids_T, lengths_N = self.tokenizer.encode(texts, kind)
        return TokenBatch(torch.from_numpy(ids_T).long(), torch.from_numpy(lengths_N))


class Trainings:
    """Trainings of a small BERT with dropout that begin with the same weights."""

    def __init__(self, folder: Path, bert: Any, tokenizer: Any, texts: list[str]) -> None:
        self.folder, self.bert, self.tokenizer = folder, bert, tokenizer
        self.texts = [text for text in texts if len(text) > 40]
        self.start = {name: p.detach().clone() for name, p in bert.named_parameters()}

    def data(self, steps: int, **options: Any) -> SmallPairs:
        return SmallPairs(self.texts, self.tokenizer, steps, **options)

    def module(self, scheme: type[TrainingModule] = InBatchModule, *, steps: int, learning_rate: float = 2e-3, **options: Any) -> Any:
        self.bert.load_state_dict(self.start, strict=False)
        torch.manual_seed(0)
        optimizer = AdamWConfig(learning_rate=learning_rate, warmup_steps=4)
        model: nn.Module = CrossEncoder(self.bert, self.tokenizer) if scheme is CrossEncoderModule else TextEncoder(self.bert, self.tokenizer).train()
        options |= {"temperature": 0.05} if scheme is not CrossEncoderModule else {}
        return scheme(model, optimizer=optimizer, max_steps=steps, **options)

    def warnings(self, module: TrainingModule, data: SmallPairs, name: str = "run", **options: Any) -> list[str]:
        """What is said while `fit` trains."""
        said: list[str] = []
        fit(module, data, checkpoints=self.folder / name, title=name, warn=said.append, accelerator="cpu", devices=1, graph_tokens=10_000, **options)
        return said


class AfterEveryStep(L.Callback):
    """Calls a function with the module after every step."""

    def __init__(self, call: Callable[[Any], object]) -> None:
        self.call = call

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self.call(pl_module)


def plain_trainer(steps: int, *callbacks: L.Callback) -> L.Trainer:
    """Lightning's own trainer."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return L.Trainer(max_steps=steps, accelerator="cpu", devices=1, callbacks=list(callbacks), **quiet)


@pytest.fixture
def trainings(tmp_path: Path, small_bert: Any, small_tokenizer: Any, texts: list[str]) -> Trainings:
    return Trainings(tmp_path, small_bert, small_tokenizer, texts)


# --- formulas


def test_repeated_rows_are_those_that_the_mask_leaves_a_positive_out_for() -> None:
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        query_Q, positive_Q = torch.randint(0, 9, (12,), generator=draw), torch.randint(0, 14, (12,), generator=draw)
        own_Q = torch.arange(12)
        mask = FalseNegativeMask(positive_Q, positive_Q, own_Q, duplicates=DuplicateQueries(query_Q, query_Q, positive_Q))
        by_mask = len(mask.block(0, 12)[0].unique()) / 12
        again = [any(j != i and (query_Q[i] == query_Q[j] or positive_Q[i] == positive_Q[j]) for j in range(12)) for i in range(12)]
        assert repeated_share(query_Q, positive_Q) == pytest.approx(fmean(again))
        # The mask leaves out texts, so two equal pairs count in both; a duplicate query with the same positive is among them.
        assert by_mask == pytest.approx(fmean(again))
    assert repeated_share(torch.arange(5), torch.arange(5)) == 0.0


def test_a_mean_is_low_once_twenty_steps_are_known() -> None:
    assert not is_low([0.0] * 19, 0.1) and is_low([0.0] * 20, 0.1)
    assert not is_low([0.05] * 10 + [0.15] * 10, 0.1) and is_low([0.05] * 10 + [0.149] * 10, 0.1)


def test_a_spike_is_told_from_the_median_of_the_steps_before() -> None:
    draw = random.Random(0)
    for _ in range(20):
        earlier = [draw.uniform(0.1, 5.0) for _ in range(draw.randint(20, 100))]
        ordered = sorted(earlier)
        middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
        assert spike(9.99 * middle, earlier) == 0.0
        assert spike(12.0 * middle, earlier) == pytest.approx(12.0)
    assert spike(1e9, [1.0] * 19) == 0.0 and spike(1.0, [0.0] * 50) == 0.0


def test_a_loss_is_stuck_at_or_above_guessing_where_it_does_not_fall() -> None:
    guess = [math.log(32)] * 100
    assert is_stuck(guess, guess) and not is_stuck(guess[1:], guess[1:])
    assert is_stuck([g * 0.985 for g in guess], guess) and not is_stuck([g * 0.975 for g in guess], guess)
    assert is_stuck([20.0] * 100, guess)  # worse than guessing, and it stays so
    assert not is_stuck([6.0 - 0.03 * s for s in range(100)], guess)  # passes through log 32 = 3.47 in step 84
    assert not is_stuck([*guess[:50], *[g * 0.9 for g in guess[50:]]], guess)  # has begun to learn
    growing = [math.log(8 + 8 * s) for s in range(100)]  # a queue that fills
    assert is_stuck(growing, growing)


@pytest.mark.parametrize(
    ("scheme", "options", "negatives", "queue"),
    [
        (InBatchModule, {}, 2, 0),
        (InBatchModule, {"mask_duplicates": False}, 0, 0),
        (PreBatchModule, {"queue_size": 40}, 1, 40),
        (MoCoModule, {"queue_size": 40}, 0, 40),
        (SymmetricModule, {}, 0, 0),
        (SymmetricModule, {"symmetric": False, "query_negatives": True}, 1, 0),
        (SymmetricModule, {"symmetric": True, "query_negatives": True}, 2, 0),
        (DistilledModule, {"alpha": 0.2}, 2, 0),
    ],
)  # fmt: skip
def test_guessing_is_the_schemes_own_loss_of_embeddings_that_are_all_alike(
    trainings: Trainings, scheme: type[BiEncoderModule], options: dict[str, Any], negatives: int, queue: int
) -> None:
    """In the steps of a training whose encoder gives one vector for all texts."""
    module, data = trainings.module(scheme, steps=8, **options), trainings.data(8, negatives=negatives)
    words_VD = module.encoder.backbone.embeddings.word_embeddings.weight

    def alike(ids_T: Tensor, lengths: list[int]) -> Tensor:
        return nn.functional.normalize(1 + words_VD[:1].expand(len(lengths), -1), dim=1)

    module.embed_chunk = module.key_chunk = alike
    rows: list[dict[str, float]] = []
    plain_trainer(8, AfterEveryStep(lambda module: rows.append(module.last_metrics))).fit(module, data)
    guesses = [guess_of(module, data.batch(step, 0, 1), row) for step, row in enumerate(rows)]
    assert len(guesses) == 8 and rows[-1].get("queue", 0) == queue
    for guess in guesses:
        assert guess is not None and guess.loss == pytest.approx(guess.guess, rel=1e-3)
    in_batch = BATCH * (1 + negatives)
    expected = {MoCoModule: queue, PreBatchModule: in_batch + queue}.get(scheme, in_batch + (BATCH - 1) * options.get("query_negatives", 0))
    assert guess is not None and abs(guess.candidates - expected) <= 1  # less what is masked, since drawn twice


def test_guessing_of_a_distilled_step_is_that_of_the_contrastive_part(trainings: Trainings) -> None:
    alike_ND = nn.functional.normalize(torch.ones(12, 4), dim=1)
    contrastive = float(InfoNCE()(alike_ND[:4], alike_ND, torch.arange(4) * 3).loss)
    module, batch = trainings.module(DistilledModule, steps=9, alpha=0.2), pair_batch(4, 3)
    for row in ({"loss": 0.7 + 0.2 * contrastive, "contrastive": contrastive}, {"loss": 0.2 * contrastive}):
        guess = guess_of(module, batch, row)
        assert guess is not None and guess.candidates == 12
        assert guess.loss == pytest.approx(guess.guess) == pytest.approx(math.log(12))
    assert guess_of(trainings.module(DistilledModule, steps=9, alpha=0.0), batch, {"loss": 0.7}) is None
    assert guess_of(L.LightningModule(), batch, {"loss": 0.7}) is None
    teacher = guess_of(trainings.module(CrossEncoderModule, steps=9), batch, {"loss": 1.0})
    assert teacher is not None and teacher.candidates == 3 and teacher.guess == math.log(3)


def pair_batch(rows: int, group: int) -> PairBatch:
    empty = TokenBatch(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    return PairBatch(empty, empty, torch.arange(rows), torch.arange(rows * group), torch.arange(rows))


def test_the_spread_of_a_teachers_scores_by_loops() -> None:
    scores = [[1.0, 2.0, 4.0], [0.0, 0.0, 0.0], [1.0, float("nan"), 2.0], [1.0, float("-inf"), 2.0]]
    expected = [math.sqrt(fmean([(x - fmean(row)) ** 2 for x in row])) for row in scores[:2]]
    assert score_spread(torch.tensor(scores)) == pytest.approx(fmean(expected))
    assert score_spread(torch.tensor(scores[2:])) is None and score_spread(torch.tensor([[1.0]])) is None


# --- trainings


@pytest.mark.parametrize(("scheme", "negatives"), [(InBatchModule, 0), (CrossEncoderModule, 2)])
def test_a_sound_training_says_nothing(trainings: Trainings, scheme: type[TrainingModule], negatives: int) -> None:
    steps = 110
    module = trainings.module(scheme, steps=steps)
    first: list[float] = []
    record = AfterEveryStep(lambda module: first.append(module.last_metrics["loss"]))
    said = trainings.warnings(module, trainings.data(steps, negatives=negatives), validation=record)
    assert said == []
    assert fmean(first[-20:]) < fmean(first[:20])  # it learns


def test_collapsed_embeddings_are_told_once(trainings: Trainings) -> None:
    """A learning rate that puts all texts in one place; the loss of guessing follows from it and is not told beside it."""
    (said,) = trainings.warnings(trainings.module(steps=110, learning_rate=10.0), trainings.data(110))
    assert re.match(r"step 2\d: the embeddings have collapsed: standard deviation of the queries 0\.0", said) and "learning_rate (now " in said


@pytest.mark.parametrize(
    ("rows", "masked"),
    [
        (lambda rows_B: rows_B[: BATCH // 2].repeat(2), "12.50%"),  # each pair twice: one of 8 candidates
        (lambda rows_B: rows_B[:1].expand(BATCH), "87.50%"),  # one pair: its embeddings are alike, which is no collapse
    ],
)  # fmt: skip
def test_duplicates_are_told_once(trainings: Trainings, rows: Any, masked: str) -> None:
    (said,) = trainings.warnings(trainings.module(steps=40), trainings.data(40, rows=rows))
    assert said.startswith("step 20: many duplicates: 100% of a batch's rows") and f"{masked} of the logits are masked" in said
    (said,) = trainings.warnings(trainings.module(steps=25, mask_duplicates=False), trainings.data(25, rows=rows), "unmasked")
    assert "they count as negatives (mask_duplicates: false)" in said


def test_a_spike_of_the_gradient_norm_is_told_once(trainings: Trainings) -> None:
    module = trainings.module(steps=34)
    embed, factor = module.embed_chunk, [1.0]

    def steep(ids_T: Tensor, lengths: list[int]) -> Tensor:
        """Embeddings as they are, with 50 times their gradient in steps 30 and 32."""
        embedded = embed(ids_T, lengths)
        scale = 50.0 if module.global_step in (29, 31) else factor[0]
        return embedded.detach() + scale * (embedded - embedded.detach())

    module.embed_chunk = steep
    (said,) = trainings.warnings(module, trainings.data(34))
    assert said.startswith("step 30: the gradient norm ") and " times the median of the last 29 steps" in said


@pytest.mark.parametrize(
    ("scheme", "options", "negatives", "message"),
    [
        (InBatchModule, {"temperature": 1.0}, 0, r"step 10\d: the loss does not fall: mean 2\.0"),
        (CrossEncoderModule, {}, 3, r"step 10\d: the teacher learns nothing: mean loss 1\.386 "),
    ],
)  # fmt: skip
def test_a_loss_that_stays_is_told_once(
    trainings: Trainings, scheme: type[TrainingModule], options: dict[str, Any], negatives: int, message: str
) -> None:
    """An encoder that does not move, at a temperature where all texts are alike; a teacher that does not, to which all pairs are alike."""
    module = trainings.module(scheme, steps=108, learning_rate=1e-12)
    if options:
        module.info_nce = InfoNCE(**options)
    else:
        torch.nn.init.zeros_(module.model.head.scale)
    (said,) = trainings.warnings(module, trainings.data(108, negatives=negatives))
    assert re.match(message, said) and f"guessing among {4 if negatives else 8} candidates" in said


def test_a_teacher_whose_scores_are_all_alike_is_told_once(trainings: Trainings) -> None:
    flat = trainings.data(24, negatives=2, teacher=lambda scores_BG: scores_BG * 1e-6)
    (said,) = trainings.warnings(trainings.module(DistilledModule, steps=24), flat)
    assert said.startswith("step 20: the teacher has collapsed: its scores differ by ")
    assert trainings.warnings(trainings.module(DistilledModule, steps=24), trainings.data(24, negatives=2, teacher=lambda scores_BG: scores_BG), "sound") == []


def test_it_is_told_once_in_a_thousand_steps(trainings: Trainings) -> None:
    module, said = trainings.module(steps=10), []
    watch = TrainingWatch(said.append)
    trainer: Any = SimpleNamespace(global_step=0, is_global_zero=True)
    watch.on_train_start(trainer, module)
    for step in range(1, 2300):
        trainer.global_step = step
        module.last_metrics = {"loss": 0.1, "gradient_norm": 50.0 if step % 30 == 0 else 1.0, "std_query": 0.9, "std_passage": 0.01 if step > 700 else 0.9}
        watch.on_train_batch_end(trainer, module, None, pair_batch(4, 1), 0)
        if step == 1500:  # a resume
            state, watch = watch.state_dict(), TrainingWatch(said.append)
            watch.load_state_dict(state)
            watch.on_train_start(trainer, module)
    # A collapse begins when the mean of 20 steps is below 0.1; from then on no spike is told.
    assert [message.split(":")[0] for message in said] == ["step 30", "step 718", "step 1,718"]
    trainer.global_step = 0
    watch.on_train_start(trainer, module)
    assert watch.told == {}  # another training begins


def test_it_only_reads_and_goes_on_after_a_resume(trainings: Trainings, capsys: pytest.CaptureFixture[str]) -> None:
    steps, rate = 34, 10.0

    def trained(*callbacks: L.Callback) -> dict[str, Tensor]:
        module = trainings.module(steps=steps, learning_rate=rate)
        plain_trainer(steps, *callbacks).fit(module, trainings.data(steps))
        return {name: p.detach().clone() for name, p in module.named_parameters()}

    watch = TrainingWatch()
    alone, watched = trained(), trained(watch)
    assert all(torch.equal(alone[name], watched[name]) for name in alone)
    (step,) = re.findall(r"step (2\d): the embeddings have collapsed", capsys.readouterr().err)  # as it is by default: printed
    told = int(step)

    module = trainings.module(steps=steps, learning_rate=rate)
    training_step = module.training_step

    def killed(batch: Any, batch_idx: int) -> None:
        if module.global_step == 28:
            raise RuntimeError("killed")
        training_step(batch, batch_idx)

    module.training_step = killed
    said: list[str] = []
    place = {"checkpoints": trainings.folder / "run", "title": "run", "accelerator": "cpu", "devices": 1, "checkpoint_steps": 9, "graph_tokens": 10_000}
    with pytest.raises(RuntimeError):
        fit(module, trainings.data(steps), warn=said.append, **place)
    (state,) = [state for name, state in load_checkpoint(checkpoint_path(trainings.folder / "run", 27))["callbacks"].items() if "TrainingWatch" in name]
    assert state["told"] == {"collapse": told} and len(state["seen"]["norm"]) == 27
    resumed = trainings.module(steps=steps, learning_rate=rate)
    fit(resumed, trainings.data(steps), warn=said.append, **place)
    assert [message.split(":")[0] for message in said] == [f"step {told}"]
    assert all(torch.equal(alone[name], p) for name, p in resumed.named_parameters())
