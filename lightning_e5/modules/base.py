"""What every training scheme shares: the optimizer step, its schedule and guards, and what is logged."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_e5.distributed.collectives import (
    any_rank,
    average_gradients,
    broadcast_from_first,
    gather,
    rank_means,
    world_size,
)
from lightning_e5.distributed.devices import runs_in_bf16, without_autocast
from lightning_e5.errors import TrainingStopped
from lightning_e5.memory import used_bytes
from lightning_e5.models.packed.encoder import PackedEncoder
from lightning_e5.models.padded import checkpoint_layers
from lightning_e5.modules.trainer_arguments import check_trainer
from lightning_e5.modules.validated import ValidatedModule
from lightning_e5.ranges import Count, Seed
from lightning_e5.rng import derive_seed
from lightning_e5.training.grad_cache import CachedStep, EmbeddingLoss, EncodeChunk, GradCache
from lightning_e5.training.optimizer import AdamWConfig, clip_gradients, freeze_position_embeddings, set_learning_rates
from lightning_e5.training.sharding import ParameterShards
from lightning_e5.training.throughput import encoder_flops, gemm_peak
from lightning_e5.types import PairBatch, TokenBatch

#: Row numbers that a message names at most, per rank.
_ROWS_NAMED = 16


class NonFiniteError(TrainingStopped):
    """A loss or gradient that is not finite: training stops before the optimizer step."""


class TrainingModule(ValidatedModule):
    """A model and its gradient-cached optimizer steps; each scheme writes out its own ``training_step``.

    It trains by `lightning_e5.modules.fit.fit`, or by a plain ``lightning.Trainer``, whose callbacks and loggers get each step's
    row as ``train/loss``, ``train/accuracy`` and so on.

    Args:
        model: what is trained, in training mode: with the dropout that its configuration says (see `EncoderSpec`).
        optimizer: AdamW, its schedule, and which parameters it moves.
        max_steps: optimizer steps of the training; the schedule ends with the last, and a longer training keeps its learning rate.
        seed: of dropout.
    """

    def __init__(self, model: nn.Module, *, optimizer: AdamWConfig, max_steps: Count, seed: Seed = 0) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model, self.adamw, self.max_steps, self.seed = model, optimizer, max_steps, seed
        #: How a batch is cut into chunks; `lightning_e5.modules.fit.fit` sets what fits this machine.
        self.grad_cache = GradCache()
        for packed in self._packed:
            packed.scatter_word_gradient = True
        #: Whether `configure_optimizers` cuts the model into shards, one per rank (set by the strategy).
        self.sharded = False
        self.shards: ParameterShards | None = None
        self.trained_pairs = 0
        self.trained_tokens = 0
        self.last_metrics: dict[str, float] = {}
        self._started = time.perf_counter()
        optimizer.schedule_factor(0, max_steps)  # refuses a warm-up longer than the training
        if optimizer.freeze_positions:
            freeze_position_embeddings(model)

    def checkpoint_activations(self) -> None:
        """Recompute each layer in the backward pass (less memory per chunk, a third more time)."""
        for packed in self._packed:
            packed.gradient_checkpointing = True
        if not self._packed:
            checkpoint_layers(self.model)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = self.adamw.parameter_groups(self)
        if self.sharded:
            self.shards = ParameterShards(groups, self.model)
            groups = self.shards.optimizer_groups
        beta_1, beta_2 = self.adamw.betas  # a list in a YAML
        optimizer = torch.optim.AdamW(groups, betas=(beta_1, beta_2), eps=self.adamw.eps)
        set_learning_rates(optimizer, self.adamw.schedule_factor(self.global_step, self.max_steps))
        return optimizer

    def setup(self, stage: str) -> None:
        # Lightning leaves the modes as they are, and a model that was loaded is in evaluation mode: without its dropout.
        if stage == "fit":
            self.train()

    def configure_callbacks(self) -> list[L.Callback]:
        check_trainer(self.trainer)  # the first hook of a training, before Lightning's own checks
        return []

    def step_seed(self) -> int:
        """The seed of this step's randomness on this rank: a function of (seed, step, rank) alone."""
        return derive_seed(self.seed, "step", self.global_step, self.global_rank)

    def on_train_start(self) -> None:
        if (planned := self.trainer.estimated_stepping_batches) > self.max_steps:
            last = self.adamw.learning_rate * self.adamw.schedule_factor(self.max_steps, self.max_steps)
            rank_zero_warn(
                f"max_steps: the Trainer makes {planned:,.0f} steps, and the schedule of this module ends with step {self.max_steps:,}; "
                f"after it the learning rate stays at {last:.3g}"
            )
        # Sharded parameters are empty now; they were broadcast before they were cut into shards.
        broadcast_from_first([t for t in (*self.parameters(), *self.buffers()) if t.numel()])

    def on_train_batch_start(self, batch: PairBatch, batch_idx: int) -> None:
        self._started = time.perf_counter()

    def on_train_end(self) -> None:
        if self.shards is not None:
            self.shards.restore()
            self.shards = None

    def cached_step(
        self, batch: PairBatch, texts: TokenBatch, encode: EncodeChunk, loss: EmbeddingLoss, *, without_gradient: TokenBatch | None = None
    ) -> CachedStep:
        """One optimizer step on this rank's texts: embed, loss and backward by chunks, then AdamW, guarded and logged.

        Args:
            batch: the rows of the step.
            texts: what is embedded with a gradient.
            encode: embeds one chunk of them.
            loss: from all their embeddings; called again where memory runs out.
            without_gradient: texts that were encoded beside them, for the record.
        """
        of_model = [p for p in self.model.parameters() if p.requires_grad]
        encode = partial(_under_autocast, encode) if torch.is_autocast_enabled(self.device.type) else encode
        with self.whole_parameters(), without_autocast(self.device):  # backward passes, too
            step = self.grad_cache.step(
                texts, encode, loss, seed=self.step_seed(), parameters=of_model, loss_parameters=self.loss_parameters()
            )
            if self.shards is not None:
                self.shards.reduce_gradients()
        update = self._update(batch, step)
        flops, tokens = 3.0 * self._forward_flops(texts), step.tokens
        if without_gradient is not None:
            flops, tokens = flops + self._forward_flops(without_gradient), tokens + len(without_gradient.ids_T)
        seconds = time.perf_counter() - self._started
        row: dict[str, float | Tensor] = {
            "loss": step.loss.loss,
            "accuracy": step.loss.accuracy,
            "masked_fraction": step.loss.masked_fraction,
            **step.loss.logs,
            **update,
            "replayed_share": step.recomputed_tokens / max(1, step.tokens),
            "padding_share": 0.0 if self._packed else 1.0 - step.tokens / max(1, step.padded_tokens),
            "seconds": seconds,
            "mfu": flops / seconds / self._peak(),
            "memory_gb": used_bytes(self.device) / 2**30,
        }
        self._log_step(row, len(batch.rows_B), tokens)
        return step

    def trained_parameters(self) -> list[nn.Parameter]:
        """Everything that is trained: the model's parameters and those of the loss."""
        return [p for p in self.parameters() if p.requires_grad]

    def loss_parameters(self) -> list[nn.Parameter]:
        """Those of the loss alone; never sharded."""
        of_model = {id(p) for p in self.model.parameters()}
        return [p for p in self.trained_parameters() if id(p) not in of_model]

    def whole_parameters(self) -> AbstractContextManager[None]:
        """The model's parameters are whole inside; with sharding a collective call."""
        return self.shards.gathered() if self.shards is not None else nullcontext()

    def _update(self, batch: PairBatch, step: CachedStep) -> dict[str, float]:
        """Average over ranks, refuse non-finite values, clip, set the learning rate, step, clear the gradients."""
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        # With shards the model's gradients are averaged already.
        whole = self.trained_parameters() if self.shards is None else self.loss_parameters()
        average_gradients(whole)
        norm = clip_gradients(whole, self.adamw.max_grad_norm, shards=[] if self.shards is None else self.shards.local)
        loss = step.loss.loss
        finite = bool(torch.isfinite(loss)) and bool(torch.isfinite(norm))
        if any_rank(not finite, loss.device):
            self._refuse(batch, loss, norm, step.embeddings_ND)
        factor = self.adamw.schedule_factor(self.global_step, self.max_steps)
        set_learning_rates(optimizer, factor)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        set_learning_rates(optimizer, self.adamw.schedule_factor(self.global_step, self.max_steps))  # as callbacks see it before a step
        return {"learning_rate": self.adamw.learning_rate * factor, "gradient_norm": float(norm)}

    def text_places(self, texts: int, rows: int) -> Tensor:
        """int64 ``[texts]``: which of this rank's rows each text of a step belongs to; here row after row."""
        return torch.arange(texts, device=self.device) // (texts // rows)

    def _refuse(self, batch: PairBatch, loss: Tensor, norm: Tensor, embeddings_ND: Tensor) -> None:
        """Stop on all ranks, each with the rows of every rank whose texts were embedded as values that are not finite."""
        bad_N = ~torch.isfinite(embeddings_ND).all(1)
        places = self.text_places(len(bad_N), len(batch.rows_B))[bad_N].unique()[:_ROWS_NAMED]
        named = batch.rows_B.new_full((_ROWS_NAMED,), -1)
        named[: len(places)] = batch.rows_B[places]
        found = [row for row in gather(named).tolist() if row >= 0]
        culprits = ", ".join(map(str, found)) or "none, it is the loss or the backward pass"
        rows = batch.rows_B.tolist()
        shown = ", ".join(map(str, rows[:_ROWS_NAMED])) + (" ..." if len(rows) > _ROWS_NAMED else "")
        raise NonFiniteError(
            f"step {self.global_step}: loss {float(loss)} or gradient norm {float(norm)} is not finite on some rank; "
            f"no optimizer step was made and the last checkpoint is good; "
            f"rows whose embeddings are not finite: {culprits}; rows of this rank's batch: {shown}"
        )

    def _log_step(self, logs: Mapping[str, float | Tensor], pairs: int, tokens: float) -> None:
        """Log one row per optimizer step: means over the ranks, rates of all ranks together."""
        *means, tokens = rank_means([*map(float, logs.values()), float(tokens)], self.device)
        row = dict(zip(logs, means, strict=True))
        ranks = world_size()
        self.trained_pairs += pairs * ranks
        self.trained_tokens += round(tokens * ranks)
        row |= {
            "pairs": self.trained_pairs,
            "tokens": self.trained_tokens,
            "pairs_per_second": pairs * ranks / row["seconds"],
            "tokens_per_second": tokens * ranks / row["seconds"],
        }
        self.last_metrics = row
        # To callbacks and Lightning's loggers; no mean over ranks, as these are.
        for name, value in row.items():
            self.log(f"train/{name}", value, prog_bar=name == "loss", on_step=True, on_epoch=False, batch_size=pairs)

    @cached_property
    def _packed(self) -> list[PackedEncoder]:
        """The encoders in the model that run without padding; none where it pads."""
        return [m for m in self.model.modules() if isinstance(m, PackedEncoder)]

    @cached_property
    def _encoder_config(self) -> Any:
        """The configuration of the encoder inside the model, by which its arithmetic is counted; None without one."""
        configs = (m.config for m in self.model.modules() if hasattr(getattr(m, "config", None), "num_hidden_layers"))
        return next(configs, None)

    def _forward_flops(self, texts: TokenBatch) -> float:
        config = self._encoder_config
        return 0.0 if config is None else encoder_flops(config, texts.lengths_B.tolist())

    def _peak(self) -> float:
        """The measured peak of this device at the model's precision, FLOP/s."""
        half = runs_in_bf16(getattr(self.model, "precision", "fp32"), self.device) or torch.is_autocast_enabled(self.device.type)
        return gemm_peak(self.device, torch.bfloat16 if half else torch.float32)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["seen"] = {"pairs": self.trained_pairs, "tokens": self.trained_tokens}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        seen = checkpoint.get("seen", {})  # not in one of weights alone
        self.trained_pairs, self.trained_tokens = seen.get("pairs", 0), seen.get("tokens", 0)


def _under_autocast(encode: EncodeChunk, ids_T: Tensor, lengths: list[int]) -> Tensor:
    """A chunk as ``Trainer(precision="bf16-mixed")`` has it encoded."""
    with torch.autocast(ids_T.device.type, dtype=torch.bfloat16):
        return encode(ids_T, lengths)
