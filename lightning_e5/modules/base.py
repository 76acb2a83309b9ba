"""What every training scheme shares: the optimizer step, its schedule and guards, and what is logged."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from lightning_e5.distributed import any_rank, average_gradients
from lightning_e5.rng import derive_seed
from lightning_e5.training.grad_cache import GradCache, StepReport
from lightning_e5.training.parameters import clip_gradients, freeze_position_embeddings, parameter_groups
from lightning_e5.training.schedules import Schedule, learning_rate_factor
from lightning_e5.types import PairBatch


class NonFiniteError(RuntimeError):
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
        graph_tokens: tokens whose graphs are kept; the rest of a batch is encoded twice.
        seed: of dropout.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        learning_rate: float,
        max_steps: int,
        warmup_steps: int = 0,
        weight_decay: float = 0.01,
        schedule: Schedule = "linear",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        max_grad_norm: float | None = 1.0,
        learning_rate_factors: Mapping[str, float] | None = None,
        freeze_positions: bool = True,
        chunk_tokens: int = 8192,
        graph_tokens: int = 65536,
        seed: int = 0,
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
        self.trained_pairs = 0
        self.trained_tokens = 0
        self.last_metrics: dict[str, float] = {}
        learning_rate_factor(0, warmup_steps=warmup_steps, max_steps=max_steps, schedule=schedule)
        if freeze_positions:
            freeze_position_embeddings(model)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = parameter_groups(
            self.model,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            factors=self.learning_rate_factors,
        )
        return torch.optim.AdamW(groups, betas=self.betas, eps=self.eps)  # type: ignore[arg-type]

    def step_seed(self) -> int:
        """The seed of this step's randomness on this rank: a function of (seed, step, rank) alone."""
        return derive_seed(self.seed, "step", self.global_step, self.global_rank)

    def optimizer_step_with_guards(self, batch: PairBatch, loss: Tensor) -> dict[str, float]:
        """Average over ranks, refuse non-finite values, clip, set the learning rate, step, clear the gradients."""
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        average_gradients(parameters)
        norm = clip_gradients(parameters, self.max_grad_norm)
        finite = bool(torch.isfinite(loss)) and bool(torch.isfinite(norm))
        if any_rank(not finite, loss.device):
            self._refuse(batch, loss, norm)
        factor = learning_rate_factor(
            self.global_step, warmup_steps=self.warmup_steps, max_steps=self.max_steps, schedule=self.schedule
        )
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"learning_rate": self.learning_rate * factor, "gradient_norm": float(norm)}

    def _refuse(self, batch: PairBatch, loss: Tensor, norm: Tensor) -> None:
        rows = batch.rows_B.tolist()
        shown = ", ".join(map(str, rows[:16])) + (" ..." if len(rows) > 16 else "")
        raise NonFiniteError(
            f"step {self.global_step}: loss {float(loss)} or gradient norm {float(norm)} is not finite on some rank; "
            f"no optimizer step was made and the last checkpoint is good; rows of this rank's batch: {shown}"
        )

    def log_step(self, metrics: Mapping[str, float | Tensor], report: StepReport, pairs: int, started: float) -> None:
        """Write one row per optimizer step to every logger; rates are of this rank."""
        seconds = time.perf_counter() - started
        self.trained_pairs += pairs * self.trainer.world_size
        self.trained_tokens += report.tokens * self.trainer.world_size
        row = {name: float(value) for name, value in metrics.items()}
        row |= {
            "pairs": self.trained_pairs,
            "tokens": self.trained_tokens,
            "replayed_share": report.replayed_tokens / max(1, report.tokens),
            "seconds": seconds,
            "pairs_per_second": pairs / seconds,
            "tokens_per_second": report.tokens / seconds,
        }
        self.last_metrics = row
        for logger in self.loggers:
            logger.log_metrics(row, step=self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["seen"] = {"pairs": self.trained_pairs, "tokens": self.trained_tokens}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.trained_pairs, self.trained_tokens = checkpoint["seen"]["pairs"], checkpoint["seen"]["tokens"]


def spread(embeddings_ND: Tensor) -> Tensor:
    """Standard deviation of unit vectors over a batch, averaged over dimensions and times sqrt(D): 0 = collapsed, 1 = uniform."""
    if len(embeddings_ND) < 2:
        return embeddings_ND.new_zeros(())
    return embeddings_ND.detach().std(0).mean() * embeddings_ND.shape[1] ** 0.5
