"""The training modules under a plain ``lightning.Trainer``, with the callbacks and loggers of Lightning as they are."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_e5.errors import UserError
from lightning_e5.losses import distillation
from lightning_e5.models.cross_encoder import CrossEncoder
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.modules import distilled
from lightning_e5.modules.base import TrainingModule
from lightning_e5.modules.cross_encoder import CrossEncoderModule
from lightning_e5.modules.distilled import DistilledModule
from lightning_e5.modules.fit import fit
from lightning_e5.modules.in_batch import InBatchModule
from lightning_e5.modules.moco import MoCoModule
from lightning_e5.modules.pre_batch import PreBatchModule
from lightning_e5.modules.symmetric import SymmetricModule
from lightning_e5.training.grad_cache import GradCache
from lightning_e5.training.optimizer import AdamWConfig
from lightning_e5.types import LossOutput, PairBatch
from tests.lightning_e5.modules.scheme_run import RandomPairs

STEPS = 4
SEPARATOR = 3  # [SEP] of the fixture's tokenizer
SCHEMES: dict[type[TrainingModule], dict[str, Any]] = {
    InBatchModule: {}, PreBatchModule: {"queue_size": 40}, MoCoModule: {"queue_size": 48}, SymmetricModule: {}, DistilledModule: {},
}  # fmt: skip


class Pairs(RandomPairs):
    """Random pairs with a hard negative each, and three batches that are not trained on."""

    def __init__(self, steps: int = STEPS) -> None:
        super().__init__(1)
        self.max_steps = steps

    def batch(self, step: int, rank: int, world_size: int) -> PairBatch:
        made = super().batch(step, rank, world_size)
        for texts in (made.queries, made.passages):
            texts.ids_T[texts.lengths_B.cumsum(0) - 1] = SEPARATOR  # by which a cross-encoder tells the two apart
        return made

    def val_dataloader(self) -> DataLoader[PairBatch]:
        return DataLoader([self.batch(step, 0, 1) for step in (100, 101, 102)], batch_size=None)  # type: ignore[arg-type]

    test_dataloader = val_dataloader


def trainer(folder: Path, **settings: Any) -> L.Trainer:
    """Lightning's own, with what a test gives; quiet, and with nothing left beside ``folder``."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "logger": False}
    return L.Trainer(default_root_dir=folder, accelerator="cpu", devices=1, **{"max_steps": STEPS, **quiet, **settings})


def module(scheme: Any, encoder: Any, *, max_steps: int = STEPS, **options: Any) -> Any:
    """A training scheme with a learning rate that 4 steps show, which encodes its batches in several chunks."""
    optimizer = options.pop("optimizer", AdamWConfig(learning_rate=1e-2, warmup_steps=1))
    temperature = {} if scheme is CrossEncoderModule else {"temperature": 0.05}
    made = scheme(encoder, optimizer=optimizer, max_steps=max_steps, seed=3, **temperature, **options)
    made.grad_cache = GradCache(chunk_tokens=64, graph_tokens=100)
    return made


@pytest.fixture
def folder(tmp_path: Path, small_bert: Any, small_tokenizer: Any) -> Path:
    """An encoder's folder whose config.json says a dropout of 0.1."""
    TextEncoder(small_bert, small_tokenizer).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def load(folder: Path, **options: Any) -> TextEncoder:
    return TextEncoder.from_pretrained(folder, **{"dropout": 0.0, **options})


def unequal(one: torch.nn.Module, other: torch.nn.Module) -> list[str]:
    theirs: dict[str, Any] = other.state_dict()
    return [name for name, value in one.state_dict().items() if not torch.equal(value, theirs[name])]


# The encoder is in training mode.


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("scheme", [InBatchModule, MoCoModule, CrossEncoderModule])
def test_every_step_is_one_of_training_mode(tmp_path: Path, folder: Path, scheme: Any, plain: bool) -> None:
    encoder = load(folder, dropout=None)
    model = CrossEncoder.from_start(folder) if scheme is CrossEncoderModule else encoder
    made = module(scheme, model, **SCHEMES.get(scheme, {}))
    assert not made.model.training  # as it is loaded
    modes, step = [], made.training_step

    def noted(batch: PairBatch, batch_idx: int) -> None:
        momentum = getattr(made, "momentum_encoder", None)
        modes.append((made.model.training, made.model.packed.training, momentum is not None and momentum.training))
        step(batch, batch_idx)

    made.training_step = noted
    if plain:
        trainer(tmp_path).fit(made, Pairs())
    else:
        fit(made, Pairs(), checkpoints=tmp_path / "checkpoints", title="x", accelerator="cpu", devices=1)
    assert modes == [(True, True, False)] * STEPS


class InEvaluationMode(InBatchModule):
    """As trainings were before the encoder was put into training mode."""

    def on_fit_start(self) -> None:
        self.eval()


def test_without_dropout_the_weights_are_those_of_evaluation_mode(tmp_path: Path, folder: Path) -> None:
    def trained(scheme: Any, dropout: float | None) -> Any:
        made = module(scheme, load(folder, dropout=dropout))
        made.grad_cache = GradCache(chunk_tokens=64, graph_tokens=10_000)  # without gradients, evaluation has a kernel of its own
        trainer(tmp_path).fit(made, Pairs())
        return made

    before = trained(InEvaluationMode, None)
    assert unequal(before, trained(InBatchModule, 0.0)) == []
    assert unequal(before, trained(InBatchModule, None))  # the control: config.json says 0.1


def test_a_validation_between_the_steps_leaves_the_mode_and_the_weights(tmp_path: Path, folder: Path) -> None:
    plain, validated = (module(InBatchModule, load(folder, dropout=None)) for _ in range(2))
    modes, step, validate = [], validated.training_step, validated.validation_step

    def noted(name: str, call: Any) -> Any:
        def call_and_note(batch: PairBatch, batch_idx: int) -> None:
            modes.append((name, validated.encoder.training))
            call(batch, batch_idx)

        return call_and_note

    validated.training_step, validated.validation_step = noted("train", step), noted("validate", validate)
    trainer(tmp_path, limit_val_batches=0).fit(plain, Pairs())
    trainer(tmp_path, val_check_interval=1).fit(validated, Pairs())
    assert set(modes) == {("train", True), ("validate", False)}
    assert unequal(plain, validated) == []


# What callbacks and loggers see.


def test_callback_metrics_hold_the_steps_row(tmp_path: Path, folder: Path) -> None:
    made, plain = module(InBatchModule, load(folder)), trainer(tmp_path)
    plain.fit(made, Pairs())
    found = {name: float(value) for name, value in plain.callback_metrics.items() if name.startswith("train/")}
    assert found == pytest.approx({f"train/{name}": value for name, value in made.last_metrics.items()}, rel=1e-6)
    assert {"train/loss", "train/accuracy", "train/gradient_norm", "train/pairs"} <= set(found) and found["train/pairs"] == 8 * STEPS
    assert set(plain.progress_bar_metrics) == {"train/loss"}


class Rows:
    """A log of every step."""

    def __init__(self) -> None:
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))


def test_a_log_of_fit_gets_each_row_as_it_was_computed(tmp_path: Path, folder: Path) -> None:
    log, made = Rows(), module(InBatchModule, load(folder))
    losses, step = [], made.cached_step

    def noted(*args: Any, **options: Any) -> Any:
        done = step(*args, **options)
        losses.append(float(done.loss.loss))
        return done

    made.cached_step = noted
    fit(made, Pairs(), checkpoints=tmp_path / "checkpoints", title="x", logs=[log], accelerator="cpu", devices=1)
    assert [step for step, _ in log.rows] == [1, 2, 3, 4] and [row["loss"] for _, row in log.rows] == losses
    assert all(type(value) in (int, float) and "/" not in name for _, row in log.rows for name, value in row.items())
    assert list(log.rows[0][1])[:3] == ["loss", "accuracy", "masked_fraction"] and log.rows[-1][1] == made.last_metrics


def read_csv(directory: Path) -> list[dict[str, str]]:
    with (directory / "metrics.csv").open(encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_csv_logger_gets_every_nth_row(tmp_path: Path, folder: Path) -> None:
    logger, made = CSVLogger(tmp_path, name="", version="csv"), module(InBatchModule, load(folder))
    rows: dict[int, float] = {}
    made.on_train_batch_end = lambda *args: rows.update({made.global_step: made.last_metrics["loss"]})
    trainer(tmp_path, logger=logger, log_every_n_steps=2).fit(made, Pairs())
    found = {int(row["step"]) + 1: float(row["train/loss"]) for row in read_csv(tmp_path / "csv") if row["train/loss"]}  # Lightning counts from 0
    assert found == pytest.approx({step: rows[step] for step in (2, 4)}, rel=1e-6)


def test_wandb_logger(tmp_path: Path, folder: Path) -> None:
    pytest.importorskip("wandb")
    logger = WandbLogger(save_dir=tmp_path, offline=True, project="plain")
    plain = trainer(tmp_path, logger=logger, log_every_n_steps=1)
    plain.fit(module(InBatchModule, load(folder)), Pairs())
    found = {name: logger.experiment.summary[name] for name in ("train/loss", "val/loss", "trainer/global_step")}
    logger.experiment.finish()
    expected = {name: float(plain.callback_metrics[name]) for name in ("train/loss", "val/loss")}
    assert found == pytest.approx({**expected, "trainer/global_step": STEPS - 1}, rel=1e-6)  # Lightning counts from 0


def test_tensorboard_logger(tmp_path: Path, folder: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is no requirement of this project")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="", version="events")
    plain = trainer(tmp_path, logger=logger, log_every_n_steps=1)
    plain.fit(module(InBatchModule, load(folder)), Pairs())
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert len(events.Scalars("train/loss")) == STEPS
    assert events.Scalars("train/loss")[-1].value == pytest.approx(float(plain.callback_metrics["train/loss"]))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_learning_rate_monitor_sees_the_rate_of_the_step(tmp_path: Path, folder: Path, schedule: Any) -> None:
    optimizer = AdamWConfig(learning_rate=1e-2, warmup_steps=2, schedule=schedule, learning_rate_factors={"word_embeddings": 3.0})
    made, monitor = module(InBatchModule, load(folder), optimizer=optimizer), LearningRateMonitor("step")
    rates: list[float] = []
    made.on_train_batch_end = lambda *args: rates.append(made.last_metrics["learning_rate"])
    trainer(tmp_path, logger=CSVLogger(tmp_path, version="csv"), log_every_n_steps=1, callbacks=[monitor]).fit(made, Pairs())
    assert rates == [1e-2 * optimizer.schedule_factor(step, STEPS) for step in range(STEPS)]
    # The first group's and the word embeddings'.
    peaks = [group["initial_lr"] for group in made.optimizers().param_groups]
    assert sorted(set(peaks)) == pytest.approx([1e-2, 3e-2])
    assert [seen for _, seen in sorted(monitor.lrs.items())] == [pytest.approx([peak * rate / 1e-2 for rate in rates]) for peak in peaks]


def test_rich_progress_bar(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    plain = trainer(tmp_path, enable_progress_bar=True, callbacks=[RichProgressBar(refresh_rate=1)])
    plain.fit(module(InBatchModule, load(folder)), Pairs())
    shown = capsys.readouterr().out
    assert f"{STEPS}/{STEPS}" in shown and f"train/loss: {float(plain.callback_metrics['train/loss']):.3f}" in shown


# Stopping early, and the best checkpoint.


class Foretold(InBatchModule):
    """``val/loss`` after every second step as it is said here."""

    values = (9.0, 5.0, 3.0, 4.0, 4.5, 2.0, 1.0)

    def held_out_values(self, batch: PairBatch) -> dict[str, float | Tensor]:
        return {"loss": self.values[self.global_step // 2]}

    def held_out_pool_values(self) -> dict[str, float]:
        return {}


def test_early_stopping(tmp_path: Path, folder: Path) -> None:
    plain = trainer(tmp_path, max_steps=12, val_check_interval=2, callbacks=[EarlyStopping(monitor="val/loss", patience=2)])
    plain.fit(module(Foretold, load(folder), max_steps=12), Pairs(12))
    assert plain.global_step == 8
    # A metric of training is looked at in the end of an epoch.
    stop = EarlyStopping(monitor="train/loss", patience=1, check_on_train_epoch_end=True)
    made = module(InBatchModule, load(folder))
    trainer(tmp_path, callbacks=[stop]).fit(made, Pairs())
    assert float(stop.best_score) == pytest.approx(made.last_metrics["loss"], rel=1e-6)


def test_model_checkpoint_keeps_the_best_and_a_training_loads_from_it(tmp_path: Path, folder: Path) -> None:
    keep = ModelCheckpoint(tmp_path / "best", monitor="val/loss", save_top_k=3, filename="{step}", save_last=True)
    made = module(Foretold, load(folder), max_steps=12)
    weights: dict[int, Any] = {}
    made.on_train_batch_end = lambda *args: weights.update({made.global_step: {k: v.clone() for k, v in made.state_dict().items()}})
    trainer(tmp_path, max_steps=12, val_check_interval=2, enable_checkpointing=True, callbacks=[keep]).fit(made, Pairs(12))
    kept = {Path(path).name: float(value) for path, value in keep.best_k_models.items()}
    assert kept == {"step=4.ckpt": 3.0, "step=10.ckpt": 2.0, "step=12.ckpt": 1.0}
    arguments: dict[str, Any] = {"optimizer": AdamWConfig(learning_rate=1e-2), "max_steps": 12}
    for path in keep.best_k_models:
        loaded = InBatchModule.load_from_checkpoint(path, encoder=load(folder), **arguments)
        step = int(Path(path).stem.removeprefix("step="))
        assert all(torch.equal(value, weights[step][name]) for name, value in loaded.state_dict().items())
        assert loaded.trained_pairs == 8 * step and loaded.trained_tokens > 0
    assert unequal(loaded, InBatchModule.load_from_checkpoint(keep.last_model_path, encoder=load(folder), **arguments)) == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_checkpoint_of_weights_alone(tmp_path: Path, folder: Path, scheme: Any) -> None:
    keep = ModelCheckpoint(tmp_path / "weights", save_weights_only=True)
    made = module(scheme, load(folder), **SCHEMES[scheme])
    trainer(tmp_path, enable_checkpointing=True, callbacks=[keep]).fit(made, Pairs())
    arguments: dict[str, Any] = {"optimizer": AdamWConfig(learning_rate=1e-2), "max_steps": STEPS, **SCHEMES[scheme]}
    loaded = scheme.load_from_checkpoint(keep.best_model_path, encoder=load(folder), **arguments)
    assert unequal(made, loaded) == [] and loaded.trained_pairs == made.trained_pairs
    assert unequal(made, module(scheme, load(folder), **SCHEMES[scheme]))  # the control: training moved them


def test_a_training_goes_on_from_a_model_checkpoint(tmp_path: Path, folder: Path) -> None:
    keep = ModelCheckpoint(tmp_path / "every", every_n_train_steps=2, save_top_k=-1, filename="{step}")
    whole = module(InBatchModule, load(folder, dropout=None))
    trainer(tmp_path, enable_checkpointing=True, callbacks=[keep]).fit(whole, Pairs())
    again = module(InBatchModule, load(folder, dropout=None))
    trainer(tmp_path).fit(again, Pairs(), ckpt_path=str(tmp_path / "every" / "step=2.ckpt"))
    assert unequal(whole, again) == [] and again.trained_pairs == whole.trained_pairs


# The other entry points and arguments of the Trainer.


def test_validate_and_test(tmp_path: Path, folder: Path) -> None:
    made = module(InBatchModule, load(folder))
    losses = []
    for batch in Pairs().val_dataloader():
        embedded = [made.embed_chunk(texts.ids_T, texts.lengths_B.tolist()) for texts in (batch.queries, batch.passages)]
        losses.append(made.batch_loss(batch, torch.cat(embedded)).loss)
    for prefix, entry in (("val", "validate"), ("test", "test")):
        (found,) = getattr(trainer(tmp_path), entry)(made, Pairs(), verbose=False)
        assert set(found) == {f"{prefix}/{name}" for name in ("loss", "accuracy", "mrr@10", "std_query", "std_passage")}
        assert found[f"{prefix}/loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


def test_limit_val_batches_and_fast_dev_run(tmp_path: Path, folder: Path) -> None:
    made, validated = module(InBatchModule, load(folder)), []
    made.on_validation_batch_end = lambda outputs, batch, batch_idx: validated.append(batch_idx)
    trainer(tmp_path, limit_val_batches=2, num_sanity_val_steps=0).fit(made, Pairs())
    assert validated == [0, 1]
    validated.clear()
    callbacks = [EarlyStopping("val/loss"), ModelCheckpoint(tmp_path / "none", monitor="val/loss")]
    quick = trainer(tmp_path, fast_dev_run=True, enable_checkpointing=True, callbacks=callbacks)
    quick.fit(module(InBatchModule, load(folder)), Pairs())
    assert quick.global_step == 1 and {"train/loss", "val/loss"} <= set(quick.callback_metrics) and not (tmp_path / "none").exists()


def test_a_longer_training_keeps_the_last_learning_rate_and_says_so_once(tmp_path: Path, folder: Path) -> None:
    made = module(InBatchModule, load(folder), max_steps=3)
    rates: list[float] = []
    made.on_train_batch_end = lambda *args: rates.append(made.last_metrics["learning_rate"])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer(tmp_path, max_steps=6).fit(made, Pairs(6))
    expected = "max_steps: the Trainer makes 6 steps, and the schedule of this module ends with step 3; after it the learning rate stays at 0.005"
    assert [str(w.message) for w in said if "schedule of this module" in str(w.message)] == [expected]
    assert rates == pytest.approx([0.005, 0.01, 0.005, 0.005, 0.005, 0.005])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*schedule of this module")
        trainer(tmp_path, max_steps=3).fit(module(InBatchModule, load(folder), max_steps=3), Pairs(6))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gradient_clip_val": 0.5}, r"gradient_clip_val=0\.5\): the training clips gradients itself.*optimizer: \{max_grad_norm: 0\.5\}"),
        ({"accumulate_grad_batches": 4}, r"accumulate_grad_batches=4\): negatives are those of one batch.*4 times the batch_size"),
        ({"precision": "bf16-true"}, r"precision='bf16-true'\): the rule is 32-true, bf16-mixed"),
        ({"precision": "16-true"}, r"precision='16-true'\): the rule is 32-true, bf16-mixed"),
    ],
)
def test_what_the_step_does_itself_is_refused(tmp_path: Path, folder: Path, settings: dict[str, Any], message: str) -> None:
    made = module(InBatchModule, load(folder))
    with pytest.raises(UserError, match=message):
        trainer(tmp_path, **settings).fit(made, Pairs())
    assert made.global_step == 0
    if "precision" not in settings:
        trainer(tmp_path, **settings).validate(made, Pairs(), verbose=False)  # where they mean nothing


def test_a_scaled_loss_is_refused(tmp_path: Path, folder: Path) -> None:
    made, plain = module(InBatchModule, load(folder)), trainer(tmp_path)
    plain.strategy.precision_plugin.precision = "16-mixed"  # which Lightning gives on GPUs alone
    with pytest.raises(UserError, match=r"precision='16-mixed'.*float16 needs a loss that is scaled"):
        plain.fit(made, Pairs())


def test_several_devices_need_a_strategy_that_leaves_gradients_to_the_step(folder: Path) -> None:
    from lightning.pytorch.trainer.states import TrainerFn

    from lightning_e5.modules.strategy import ShardedStrategy, UnwrappedDDPStrategy

    def check(**settings: Any) -> None:
        made: Any = module(InBatchModule, load(folder))
        made.trainer = L.Trainer(accelerator="cpu", devices=2, logger=False, enable_checkpointing=False, **settings)
        made.trainer.state.fn = TrainerFn.FITTING
        made.configure_callbacks()

    with pytest.raises(UserError, match=r"strategy=\.\.\.\): DDPStrategy reduces gradients within a backward pass"):
        check(strategy="ddp", use_distributed_sampler=False)
    for strategy in (UnwrappedDDPStrategy, ShardedStrategy):
        check(strategy=strategy(), use_distributed_sampler=False)
        with pytest.raises(UserError, match="use_distributed_sampler=True"):
            check(strategy=strategy())


# Precision.


@pytest.mark.parametrize("scheme", [InBatchModule, MoCoModule, DistilledModule, CrossEncoderModule])
def test_bf16_mixed_is_the_encoder_in_bfloat16(tmp_path: Path, folder: Path, scheme: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes: set[tuple[torch.dtype, bool]] = set()
    divergence = distillation.distillation_loss

    def noted(queries_BD: Tensor, *args: Any, **options: Any) -> Tensor:
        dtypes.add((queries_BD.dtype, torch.is_autocast_enabled("cpu")))
        return divergence(queries_BD, *args, **options)

    monkeypatch.setattr(distilled, "distillation_loss", noted)

    def trained(of_trainer: Any, of_encoder: Any) -> tuple[Any, float]:
        torch.manual_seed(0)  # of a cross-encoder's head
        options = {**SCHEMES.get(scheme, {}), **({} if scheme is CrossEncoderModule else {"token_dropout": 0.2})}
        model = CrossEncoder.from_start(folder, precision=of_encoder) if scheme is CrossEncoderModule else load(folder, dropout=None, precision=of_encoder)
        made, losses = module(scheme, model, **options), []
        step = made.cached_step

        def stepped(batch: Any, texts: Any, encode: Any, loss: Any, **more: Any) -> Any:
            def looked_at(embeddings_ND: Tensor) -> LossOutput:
                output: LossOutput = loss(embeddings_ND)
                dtypes.update({(embeddings_ND.dtype, torch.is_autocast_enabled("cpu")), (output.loss.dtype, False)})
                losses.append(float(output.loss.detach()))
                return output

            return step(batch, texts, encode, looked_at, **more)

        made.cached_step = stepped
        trainer(tmp_path, precision=of_trainer, max_steps=2).fit(made, Pairs())
        return made, losses[0]

    mixed, first = trained("bf16-mixed", "fp32")
    own, same = trained("32-true", "bf16")
    single, near = trained("32-true", "fp32")
    assert unequal(mixed, own) == [] and first == same
    assert unequal(mixed, single) and first != near and first == pytest.approx(near, rel=0.05)
    assert dtypes == {(torch.float32, False)}


def test_double_precision(tmp_path: Path, folder: Path) -> None:
    made = module(InBatchModule, load(folder))
    plain = trainer(tmp_path, precision="64-true")
    plain.fit(made, Pairs())
    assert {p.dtype for p in made.parameters()} == {torch.float64} and float(plain.callback_metrics["train/loss"]) > 0


def test_lightning_itself_refuses_a_monitor_without_a_logger(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(MisconfigurationException, match="LearningRateMonitor"):
        trainer(tmp_path, callbacks=[LearningRateMonitor()]).fit(module(InBatchModule, load(folder)), Pairs())
