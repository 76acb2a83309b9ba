"""What every training scheme shares: the optimizer step, its schedule and guards, and what is logged."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_e5.distributed.collectives import (
    any_rank,
    average_gradients,
    broadcast_from_first,
    rank_means,
    world_size,
)
from lightning_e5.distributed.devices import fast_float32, own_attention, without_autocast
from lightning_e5.errors import UserError
from lightning_e5.memory import used_bytes
from lightning_e5.models.packed.encoder import PackedEncoder, held_weights
from lightning_e5.models.padded import checkpoint_layers
from lightning_e5.modules.trainer_arguments import check_trainer
from lightning_e5.modules.validated import ValidatedModule
from lightning_e5.ranges import Count, Seed
from lightning_e5.rng import derive_seed
from lightning_e5.training.grad_cache import CachedStep, EmbeddingLoss, EncodeChunk, GradCache, under_autocast
from lightning_e5.training.optimizer import AdamWConfig, clip_gradients, freeze_position_embeddings, set_learning_rates
from lightning_e5.training.sharding.layers import LayerShards
from lightning_e5.training.sharding.whole_model import ParameterShards
from lightning_e5.training.step_values import TOKENS, Mark, StepValues, UnreadSteps, not_finite, refuse_step
from lightning_e5.training.throughput import model_flops, model_peak
from lightning_e5.types import PairBatch, TokenBatch


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
        #: Cuts the model into shards, one per rank, from the optimizer's groups (set by the strategy); None: every rank has it whole.
        self.make_shards: Callable[[Sequence[Mapping[str, Any]]], ParameterShards | LayerShards] | None = None
        self.shards: ParameterShards | LayerShards | None = None
        self.trained_pairs = 0
        self.trained_tokens = 0
        self.last_metrics: dict[str, float] = {}
        #: Whether a step makes the weights of its products once, or each chunk anew (`lightning_e5.models.packed.step_weights`).
        self.holds_weights = True
        #: On a GPU, whether layers that stay float32 multiply in TF32; losses never do.
        self.tf32 = True
        #: How many steps a step's values are read behind it; None: 1 on a GPU, whose fused optimizer leaves out a step that is not
        #: finite without asking the host, else 0.
        self.read_behind: int | None = None
        self._unread = UnreadSteps()
        self._began = Mark(torch.device("cpu"))
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
        if self.make_shards is not None:
            self.shards = self.make_shards(groups)
            self.grad_cache.in_step = self.shards.in_step
            groups = self.shards.optimizer_groups
        optimizer = self.adamw.build(groups)
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
        self._unread = UnreadSteps()
        if (planned := self.trainer.estimated_stepping_batches) > self.max_steps:
            last = self.adamw.learning_rate * self.adamw.schedule_factor(self.max_steps, self.max_steps)
            rank_zero_warn(
                f"max_steps: the Trainer makes {planned:,.0f} steps, and the schedule of this module ends with step {self.max_steps:,}; "
                f"after it the learning rate stays at {last:.3g}"
            )
        # Sharded parameters are empty now; they were broadcast before they were cut into shards.
        broadcast_from_first([t for t in (*self.parameters(), *self.buffers()) if t.numel() and not isinstance(t, DTensor)])

    def on_train_batch_start(self, batch: PairBatch, batch_idx: int) -> None:
        self._began = Mark(self.device)

    def on_validation_start(self) -> None:
        self.read_steps()
        super().on_validation_start()

    def on_train_end(self) -> None:
        self.read_steps()
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
        encode = partial(under_autocast, encode) if torch.is_autocast_enabled(self.device.type) else encode
        fast: AbstractContextManager[None] = fast_float32(self.device) if self.tf32 else nullcontext()
        # Layer by layer a weight is whole only for moments.
        held = held_weights(self.model, once=self.holds_weights and not self.grad_cache.in_step)
        around = self.shards.stepping() if self.shards is not None else nullcontext()
        with around, held as shared, fast, own_attention(self.device), without_autocast(self.device):  # backward passes, too
            step = self.grad_cache.step(
                texts, encode, loss, seed=self.step_seed(), parameters=of_model, loss_parameters=self.loss_parameters(), shared=shared
            )
            if self.shards is not None:
                self.shards.reduce_gradients()
        norm = self._average_and_clip()
        flops, tokens = 3.0 * model_flops(self.model, texts.lengths_B.tolist()), float(step.tokens)
        if without_gradient is not None:
            flops, tokens = flops + model_flops(self.model, without_gradient.lengths_B.tolist()), tokens + len(without_gradient.ids_T)
        row: dict[str, float | Tensor] = {
            "loss": step.loss.loss,
            "accuracy": step.loss.accuracy,
            "masked_fraction": step.loss.masked_fraction,
            **step.loss.logs,
            "learning_rate": self.adamw.learning_rate * self.adamw.schedule_factor(self.global_step, self.max_steps),
            "gradient_norm": norm,
            "replayed_share": step.recomputed_tokens / max(1, step.tokens),
            "padding_share": 0.0 if self._packed else 1.0 - step.tokens / max(1, step.padded_tokens),
            "seconds": 0.0,
            "mfu": flops,
            "memory_gb": 0.0,
        }
        if (waited := getattr(self.trainer.datamodule, "data_seconds", None)) is not None:  # type: ignore[attr-defined]
            row["data_seconds"] = waited  # before ``seconds`` began
        if self._behind():
            self._step_unread(batch, step, row, tokens)
            return step
        finite = bool(torch.isfinite(step.loss.loss)) and bool(torch.isfinite(norm))
        if any_rank(not finite, norm.device):
            self._refuse(self.global_step, batch.rows_B, not_finite(step.embeddings_ND), float(step.loss.loss), float(norm))
        self._optimize()
        seconds = Mark(self.device).since(self._began)
        row |= {"seconds": seconds, "mfu": flops / seconds / model_peak(self.model, self.device, tf32=self.tf32), "memory_gb": used_bytes(self.device) / 2**30}
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

    def _average_and_clip(self) -> Tensor:
        """Average the gradients over the ranks and clip them; their norm before that, on the device."""
        # With shards the model's gradients are averaged already.
        whole = self.trained_parameters() if self.shards is None else self.loss_parameters()
        average_gradients(whole)
        return clip_gradients(whole, self.adamw.max_grad_norm, shards=[] if self.shards is None else self.shards.local)

    def _optimize(self) -> None:
        """Set the learning rate, step, clear the gradients."""
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        set_learning_rates(optimizer, self.adamw.schedule_factor(self.global_step, self.max_steps))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        set_learning_rates(optimizer, self.adamw.schedule_factor(self.global_step, self.max_steps))  # as callbacks see it before a step

    @property
    def reads_late(self) -> bool:
        """Whether a step's row is known only after later steps, see `read_steps`."""
        return self._trainer is not None and self._behind() > 0

    def _behind(self) -> int:
        """How many steps values are read behind now."""
        optimizer: Any = self.optimizers()
        fused = all(group.get("fused") for group in optimizer.param_groups)
        if self.read_behind and not fused:
            raise UserError(f"read_behind: {self.read_behind}, where only a fused optimizer leaves out a step that is not finite; give optimizer: {{fused: true}}, or 0")
        return int(self.device.type == "cuda" and fused) if self.read_behind is None else self.read_behind

    def _step_unread(self, batch: PairBatch, step: CachedStep, row: dict[str, float | Tensor], tokens: float) -> None:
        """The optimizer step, which the device leaves out where a value is not finite; the host reads the steps that are done by now."""
        optimizer: Any = self.optimizers()
        values = StepValues({**row, "memory_gb": used_bytes(self.device) / 2**30, TOKENS: tokens}, self.device)
        # As torch's gradient scalers tell it. Nor is any step made after such a one, until the host knows of it.
        optimizer.optimizer.grad_scale, optimizer.optimizer.found_inf = None, self._unread.leave_out(values)
        before = self.global_step
        self._optimize()
        self._unread.add(before, values, batch, not_finite(step.embeddings_ND), self._began)
        self.read_steps(leave=self._behind(), log=True)

    def read_steps(self, leave: int = 0, *, log: bool = False) -> None:
        """Read the values of all steps but the last ``leave``, and hand their rows on; a collective call.

        Callbacks with ``on_step_read(trainer, module, step, row, batch)`` get each; ``batch`` holds no tokens. ``log``: hand them to
        Lightning's loggers too, which it allows within a step only.
        """
        for unread in self._unread.read(leave):
            row = unread.row
            if not (math.isfinite(row["loss"]) and math.isfinite(row["gradient_norm"])):
                self._refuse(unread.step, unread.rows_B, unread.bad_N, row["loss"], row["gradient_norm"])
            row["mfu"] /= row["seconds"] * model_peak(self.model, self.device, tf32=self.tf32)
            self._known(row, len(unread.rows_B), row.pop(TOKENS), log=log)
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if (hook := getattr(callback, "on_step_read", None)) is not None:
                    hook(self.trainer, self, unread.step + 1, row, unread.batch)

    def text_places(self, texts: int, rows: int) -> Tensor:
        """int64 ``[texts]``: which of this rank's rows each text of a step belongs to; here row after row."""
        return torch.arange(texts, device=self.device) // (texts // rows)

    def _refuse(self, step: int, rows_B: Tensor, bad_N: Tensor, loss: float, norm: float) -> None:
        refuse_step(step, rows_B, bad_N, self.text_places(len(bad_N), len(rows_B)), loss=loss, norm=norm)

    def _log_step(self, logs: Mapping[str, float | Tensor], pairs: int, tokens: float) -> None:
        """Log one row per optimizer step: means over the ranks, rates of all ranks together."""
        *means, tokens = rank_means([*map(float, logs.values()), float(tokens)], self.device)
        self._known(dict(zip(logs, means, strict=True)), pairs, tokens, log=True)

    def _known(self, row: dict[str, float], pairs: int, tokens: float, *, log: bool) -> None:
        """A step's row is known: count what was seen, and hand it on."""
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
        for name, value in row.items() if log else ():
            # As a tensor of the CPU: Lightning would copy a number to the GPU, and wait for all that the GPU computes.
            self.log(f"train/{name}", value if self.device.type == "cpu" else torch.tensor(value, device="cpu"), prog_bar=name == "loss", on_step=True, on_epoch=False, batch_size=pairs)

    @cached_property
    def _packed(self) -> list[PackedEncoder]:
        """The encoders in the model that run without padding; none where it pads."""
        return [m for m in self.model.modules() if isinstance(m, PackedEncoder)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.read_steps()  # a step that is not finite shows itself before anything of it is kept
        checkpoint["seen"] = {"pairs": self.trained_pairs, "tokens": self.trained_tokens}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        seen = checkpoint.get("seen", {})  # not in one of weights alone
        self.trained_pairs, self.trained_tokens = seen.get("pairs", 0), seen.get("tokens", 0)
