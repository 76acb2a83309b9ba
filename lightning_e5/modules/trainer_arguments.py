"""What a plain ``lightning.Trainer`` may not be given where a training module does it itself."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from lightning_e5.errors import UserError

#: Lightning's names of the precisions that a training runs in.
PRECISIONS = ("32-true", "bf16-mixed", "64-true")


def check_trainer(trainer: L.Trainer) -> None:
    """Refuse arguments that would do twice, or wrongly, what the gradient-cached step does.

    Raises:
        UserError: gradient clipping or accumulation by Lightning, a precision other than `PRECISIONS`, or several devices
            by a strategy that reduces gradients in the backward pass, or a sampler that deals out steps instead of rows.
    """
    if trainer.precision not in PRECISIONS:
        raise UserError(
            f"Trainer(precision={trainer.precision!r}): the rule is {', '.join(PRECISIONS)} (bf16-mixed: the encoder in bfloat16, "
            "the loss in float32); float16 needs a loss that is scaled, and weights in half precision lose AdamW's small steps"
        )
    if trainer.state.fn != TrainerFn.FITTING:
        return
    if clip := trainer.gradient_clip_val:
        raise UserError(
            f"Trainer(gradient_clip_val={clip}): the training clips gradients itself, over all chunks and ranks; "
            f"leave it out of the Trainer, and give optimizer: {{max_grad_norm: {clip}}}"
        )
    if (batches := trainer.accumulate_grad_batches) != 1:
        raise UserError(
            f"Trainer(accumulate_grad_batches={batches}): negatives are those of one batch, which is encoded in chunks, so memory does not "
            f"limit it; leave it out of the Trainer, and give the data module {batches} times the batch_size"
        )
    if trainer.world_size > 1 and not getattr(trainer.strategy, "step_averages_gradients", False):
        raise UserError(
            f"Trainer(strategy=...): {type(trainer.strategy).__name__} reduces gradients within a backward pass, and a step has many; "
            "give strategy=lightning_e5.modules.strategy.UnwrappedDDPStrategy(), or train by lightning_e5.modules.fit.fit"
        )
    if trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
        raise UserError("Trainer(use_distributed_sampler=True): it would give each rank other steps, not its rows of each; give False")
