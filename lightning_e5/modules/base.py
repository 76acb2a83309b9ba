"""What every training scheme shares: the optimizer step, its schedule and guards, and what is logged."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Annotated, Any

import lightning as L
import torch
from torch import Tensor, nn

from lightning_e5.distributed.collectives import (
    any_rank,
    average_gradients,
    broadcast_from_first,
    gather,
    rank_means,
    world_size,
)
from lightning_e5.distributed.devices import runs_in_bf16
from lightning_e5.errors import TrainingStopped
from lightning_e5.memory import used_bytes
from lightning_e5.models.packed_bert import PackedBert
from lightning_e5.models.padded import checkpoint_layers
from lightning_e5.ranges import Count, CountOrZero, LearningRate, Range, Seed
from lightning_e5.rng import derive_seed
from lightning_e5.training.grad_cache import EmbeddingLoss, EncodeChunk, GradCache
from lightning_e5.training.parameters import clip_gradients, freeze_position_embeddings, parameter_groups
from lightning_e5.training.schedules import Schedule, learning_rate_factor
from lightning_e5.training.sharding import ParameterShards
from lightning_e5.training.throughput import encoder_flops, gemm_peak
from lightning_e5.types import LossOutput, PairBatch, TokenBatch

#: Row numbers that a message names at most, per rank.
_ROWS_NAMED = 16


class NonFiniteError(TrainingStopped):
    """A loss or gradient that is not finite: training stops before the optimizer step."""


class TrainingModule(L.LightningModule):
    """A model, AdamW with warm-up and decay, and gradient-cached steps.

    Args:
        model: what is trained.
        learning_rate: peak.
        max_steps: optimizer steps of the training.
        warmup_steps: steps of linear warm-up.
        weight_decay: of matrices; biases and LayerNorms have none.
        schedule: shape of the decay after warm-up.
        betas, eps: of AdamW.
        max_grad_norm: clip the global gradient norm; None for no clipping.
        learning_rate_factors: part of a parameter name -> factor on its learning rate.
        freeze_positions: keep the position embeddings as they are (paper, App. B).
        chunk_tokens: tokens encoded at once.
        graph_tokens: tokens whose graphs are kept; the rest of a batch is encoded twice; None: as memory allows.
        gradient_checkpointing: recompute each layer in the backward pass (less memory per chunk, a third more time).
        seed: of dropout.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        learning_rate: LearningRate,
        max_steps: Count,
        warmup_steps: CountOrZero = 0,
        weight_decay: Annotated[float, Range(0, 10)] = 0.01,
        schedule: Schedule = "linear",
        betas: tuple[Annotated[float, Range(0, 0.999999)], Annotated[float, Range(0, 0.999999)]] = (0.9, 0.999),
        eps: Annotated[float, Range(0, 1, above=True)] = 1e-8,
        max_grad_norm: Annotated[float, Range(0, 1e6, above=True)] | None = 1.0,
        learning_rate_factors: Mapping[str, Annotated[float, Range(0, 1e4)]] | None = None,
        freeze_positions: bool = True,
        chunk_tokens: Count = 8192,
        graph_tokens: CountOrZero | None = None,
        gradient_checkpointing: bool = False,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.max_steps, self.warmup_steps, self.schedule = max_steps, warmup_steps, schedule
        self.betas, self.eps, self.max_grad_norm = tuple(betas), eps, max_grad_norm
        self.learning_rate_factors = dict(learning_rate_factors or {})
        self.grad_cache = GradCache(chunk_tokens=chunk_tokens, graph_tokens=graph_tokens)
        self.seed = seed
        #: Further values of the step, set while the loss is computed.
        self.measures: dict[str, float | Tensor] = {}
        for packed in (m for m in model.modules() if isinstance(m, PackedBert)):
            packed.gradient_checkpointing, packed.scatter_word_gradient = gradient_checkpointing, True
        if gradient_checkpointing and not self.packs:
            checkpoint_layers(model)
        #: Whether `configure_optimizers` cuts the model into shards, one per rank (set by the strategy).
        self.sharded = False
        self.shards: ParameterShards | None = None
        self.trained_pairs = 0
        self.trained_tokens = 0
        self.last_metrics: dict[str, float] = {}
        learning_rate_factor(0, warmup_steps=warmup_steps, max_steps=max_steps, schedule=schedule)
        if freeze_positions:
            freeze_position_embeddings(model)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = parameter_groups(
            self,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            factors=self.learning_rate_factors,
        )
        if self.sharded:
            self.shards = ParameterShards(groups, self.model)
            groups = self.shards.optimizer_groups
        return torch.optim.AdamW(groups, betas=self.betas, eps=self.eps)  # type: ignore[arg-type]

    def step_seed(self) -> int:
        """The seed of this step's randomness on this rank: a function of (seed, step, rank) alone."""
        return derive_seed(self.seed, "step", self.global_step, self.global_rank)

    def on_train_start(self) -> None:
        # Sharded parameters are empty now; they were broadcast before they were cut into shards.
        broadcast_from_first([t for t in (*self.parameters(), *self.buffers()) if t.numel()])

    def on_train_end(self) -> None:
        if self.shards is not None:
            self.shards.restore()
            self.shards = None

    def cached_step(
        self,
        batch: PairBatch,
        texts: TokenBatch,
        encode: EncodeChunk,
        loss: EmbeddingLoss,
        *,
        without_gradient: TokenBatch | None = None,
        started: float | None = None,
    ) -> LossOutput:
        """One gradient-cached optimizer step on this rank's texts, guarded and logged; returns the loss.

        ``without_gradient``: texts that were encoded beside them, and ``started``: when that began, for the record.
        """
        started = time.perf_counter() if started is None else started
        self.measures = {}
        of_model = [p for p in self.model.parameters() if p.requires_grad]
        embedded: list[Tensor] = []

        def watched(embeddings_ND: Tensor) -> LossOutput:
            embedded[:] = [embeddings_ND.detach()]
            return loss(embeddings_ND)

        with self.whole_parameters():
            output, report = self.grad_cache.step(
                texts, encode, watched, seed=self.step_seed(), parameters=of_model, loss_parameters=self.loss_parameters()
            )
            if self.shards is not None:
                self.shards.reduce_gradients()
        update = self._optimizer_step(batch, output.loss, embedded.pop())
        measures: dict[str, float | Tensor] = {
            "loss": output.loss, "accuracy": output.accuracy, "masked_fraction": output.masked_fraction, **self.measures,
        }  # fmt: skip
        flops, tokens = 3.0 * self._forward_flops(texts), report.tokens
        if without_gradient is not None:
            flops, tokens = flops + self._forward_flops(without_gradient), tokens + len(without_gradient.ids_T)
        seconds = time.perf_counter() - started
        measures |= {
            **update,
            "replayed_share": report.replayed_tokens / max(1, report.tokens),
            "padding_share": 0.0 if self.packs else 1.0 - report.tokens / max(1, report.padded_tokens),
            "seconds": seconds,
            "mfu": flops / seconds / self._peak(),
            "memory_gb": used_bytes(self.device) / 2**30,
        }
        self._log_step(measures, len(batch.rows_B), tokens)
        return output

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

    def _optimizer_step(self, batch: PairBatch, loss: Tensor, embeddings_ND: Tensor) -> dict[str, float]:
        """Average over ranks, refuse non-finite values, clip, set the learning rate, step, clear the gradients."""
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        # With shards the model's gradients are averaged already.
        whole = self.trained_parameters() if self.shards is None else self.loss_parameters()
        average_gradients(whole)
        norm = clip_gradients(whole, self.max_grad_norm, shards=[] if self.shards is None else self.shards.local)
        finite = bool(torch.isfinite(loss)) and bool(torch.isfinite(norm))
        if any_rank(not finite, loss.device):
            self._refuse(batch, loss, norm, embeddings_ND)
        factor = learning_rate_factor(
            self.global_step, warmup_steps=self.warmup_steps, max_steps=self.max_steps, schedule=self.schedule
        )
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"learning_rate": self.learning_rate * factor, "gradient_norm": float(norm)}

    def text_places(self, texts: int, rows: int) -> Tensor:
        """int64 ``[texts]``: which of this rank's rows each text of a step belongs to; here row after row."""
        return torch.arange(texts) // (texts // rows)

    def _refuse(self, batch: PairBatch, loss: Tensor, norm: Tensor, embeddings_ND: Tensor) -> None:
        """Stop on all ranks, each with the rows of every rank whose texts were embedded as values that are not finite."""
        bad_N = ~torch.isfinite(embeddings_ND).all(1)
        places = self.text_places(len(bad_N), len(batch.rows_B)).to(bad_N.device)[bad_N].unique()[:_ROWS_NAMED]
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

    def _log_step(self, measures: Mapping[str, float | Tensor], pairs: int, tokens: float) -> None:
        """Write one row per optimizer step to every logger: means over the ranks, rates of all ranks together."""
        *means, tokens = rank_means([*map(float, measures.values()), float(tokens)], self.device)
        row = dict(zip(measures, means, strict=True))
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
        for logger in self.loggers:
            logger.log_metrics(row, step=self.global_step)

    @cached_property
    def packs(self) -> bool:
        """Whether the model runs without padding."""
        return any(isinstance(m, PackedBert) for m in self.model.modules())

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
        half = runs_in_bf16(getattr(self.model, "precision", "fp32"), self.device)
        return gemm_peak(self.device, torch.bfloat16 if half else torch.float32)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["seen"] = {"pairs": self.trained_pairs, "tokens": self.trained_tokens}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.trained_pairs, self.trained_tokens = checkpoint["seen"]["pairs"], checkpoint["seen"]["tokens"]


def spread(embeddings_ND: Tensor) -> Tensor:
    """Standard deviation of unit vectors over a batch, averaged over dimensions and times sqrt(D): 0 = collapsed, 1 = uniform."""
    if len(embeddings_ND) < 2:
        return embeddings_ND.new_zeros(())
    return embeddings_ND.detach().std(0).mean() * embeddings_ND.shape[1] ** 0.5
