"""One training from its data module to its last step, resumed from the newest whole checkpoint."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning as L

from lightning_e5.distributed.collectives import close_process_group
from lightning_e5.distributed.devices import shared_threads, visible_gpus
from lightning_e5.distributed.ranks import join
from lightning_e5.errors import UserError
from lightning_e5.models.packed.encoder import compile_layers
from lightning_e5.modules.base import TrainingModule
from lightning_e5.modules.callbacks import (
    PeriodicCheckpoint,
    ProgressLine,
    StepLog,
    StepRecords,
    StopOnSignal,
    VerifiedCheckpointIO,
)
from lightning_e5.modules.strategy import LayerShardedStrategy, ShardedStrategy, UnwrappedDDPStrategy
from lightning_e5.modules.watch import TrainingWatch
from lightning_e5.ranges import ArgumentsOf, Count, CountOrZero, Seconds, Workers
from lightning_e5.training.checkpointing import latest_checkpoint
from lightning_e5.training.grad_cache import GradCache, StepGivenUp

#: How several ranks share the work, by the name that a YAML gives.
STRATEGIES: dict[str, type[UnwrappedDDPStrategy]] = {"ddp": UnwrappedDDPStrategy, "fsdp": ShardedStrategy, "fsdp2": LayerShardedStrategy}

#: How many devices of a node train.
Devices = Annotated[Workers | Literal["auto", -1], "a count; which ones is said by CUDA_VISIBLE_DEVICES"]


def fit(
    module: TrainingModule,
    data: L.LightningDataModule,
    *,
    checkpoints: Path,
    title: str,
    logs: Sequence[StepLog] = (),
    validation: L.Callback | None = None,
    resumed: Callable[[int], object] = lambda step: None,
    warn: Callable[[str], None] = lambda message: None,
    checkpoint_seconds: Seconds | None = None,
    checkpoint_steps: Count | None = None,
    background_checkpoints: bool | None = None,
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto",
    devices: Devices = "auto",
    num_nodes: Workers = 1,
    backend: Literal["gloo", "nccl"] | None = None,
    strategy: Literal["ddp", "fsdp", "fsdp2"] = "ddp",
    chunk_tokens: Count = 8192,
    graph_tokens: CountOrZero | None = None,
    gradient_checkpointing: bool = False,
    compile: bool = False,
    tf32: bool = True,
    read_behind: CountOrZero | None = None,
) -> None:
    """Train ``module`` for its ``max_steps`` with Lightning.

    Args:
        module: the training scheme.
        data: its batches.
        checkpoints: directory of the checkpoints; the newest whole one is continued from.
        title: of the progress line.
        logs: get the row of every step.
        validation: the callback that validates (`lightning_e5.modules.validation.ValidationCallback`); None never does.
        resumed: called with the step that training continues after, before it does.
        warn: called with messages for the user (a refused checkpoint, a training that goes wrong: see `TrainingWatch`).
        checkpoint_seconds: save at least this often; None: 600 on a GPU, 60 elsewhere.
        checkpoint_steps: and after every so many steps.
        background_checkpoints: a step waits only until its state is copied to host memory, and a thread writes it meanwhile; None: on
            a GPU (see `PeriodicCheckpoint`). The last checkpoint of a training that ends or is stopped is waited for.
        accelerator, devices, num_nodes: as for ``lightning.Trainer``; several devices or nodes run as ranks.
        backend: of the process group.
        strategy: of several ranks: ``ddp`` (each holds the whole model), ``fsdp`` (parameters, gradients and AdamW's
            state sharded over the ranks, whole within a step) or ``fsdp2`` (one layer whole at a time: for the largest models, at
            the most traffic); on one device the same. Checkpoints are of one form, so it may change on resume.
        chunk_tokens: tokens encoded at once.
        graph_tokens: tokens whose activations are kept; the rest of a batch is encoded twice; None: as memory allows; none with ``fsdp2``.
        gradient_checkpointing: recompute each layer in the backward pass (less memory per chunk, a third more time).
        compile: let ``torch.compile`` make one operation of several in each layer, for chunks that are filled up to few sizes.
        tf32: on a GPU, let layers that stay float32 multiply in TF32; losses never do.
        read_behind: steps that the host reads a step's values behind it, so as not to wait for the device; None: 1 on a GPU with
            the fused optimizer, else 0.

    Raises:
        UserError: another ``strategy``, nothing to validate on, or a model that cannot be compiled.
        SystemExit: 143, after a checkpoint, where SIGTERM or SIGUSR1 asked a rank to stop.
        KeyboardInterrupt: likewise, where SIGINT did.
    """
    if strategy not in STRATEGIES:
        raise UserError(f"strategy: {strategy!r} is not one of {', '.join(STRATEGIES)}")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    module.grad_cache = GradCache(chunk_tokens=chunk_tokens, graph_tokens=graph_tokens)
    if gradient_checkpointing:
        module.checkpoint_activations()
    if compile:
        compile_layers(module.model, chunk_tokens)
        module.grad_cache.shrunk = partial(compile_layers, module.model)
    module.tf32, module.read_behind = tf32, read_behind
    several = several_ranks(accelerator, devices, num_nodes)
    if several:
        join(checkpoints)
    start = latest_checkpoint(checkpoints, warn)
    stop = StopOnSignal(checkpoints)
    resumed(start.step if start else 0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        trainer: Any = L.Trainer(
            max_steps=module.max_steps,
            max_epochs=1,
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=STRATEGIES[strategy](backend) if several else "auto",
            logger=False,
            callbacks=[
                StepRecords(logs),  # before the checkpoint of the same step, which a resume goes on from behind its row
                *([validation] if validation is not None else []),  # before the checkpoint of the same step, which holds what it found ...
                TrainingWatch(warn),  # ... and what was said
                PeriodicCheckpoint(
                    checkpoints, every_seconds=checkpoint_seconds, every_steps=checkpoint_steps, background=background_checkpoints
                ),
                stop,
                ProgressLine(title),
            ],
            plugins=[VerifiedCheckpointIO()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,  # but while the callback validates
        )
        # Lightning's handlers run a collective wherever the signal finds a rank.
        trainer._signal_connector.register_signal_handlers = lambda: None
        with stop.listening(), shared_threads(trainer.num_devices if several else 1), suppress(StepGivenUp):
            trainer.fit(module, datamodule=data, ckpt_path=str(start.path) if start else None, weights_only=True)
            stop.agree(trainer.strategy.root_device)  # the module is on the CPU again, where NCCL has no collectives
    close_process_group()
    if stop.signal == signal.SIGINT:
        raise KeyboardInterrupt
    if stop.stopped or stop.signal is not None:
        raise SystemExit(143)


#: What a YAML's ``trainer`` may hold: how a training runs on this machine.
Trainer = Annotated[
    dict[str, Any],
    ArgumentsOf(
        fit,
        (
            "checkpoint_seconds", "checkpoint_steps", "background_checkpoints", "accelerator", "devices", "num_nodes", "backend", "strategy",
            "chunk_tokens", "graph_tokens", "gradient_checkpointing", "compile", "tf32", "read_behind",
        ),
    ),
]  # fmt: skip


def several_ranks(accelerator: str, devices: int | str, num_nodes: int = 1) -> bool:
    """Whether a training with these values runs as more than one process."""
    gpus = 0 if accelerator == "cpu" else visible_gpus()
    count = gpus if devices in ("auto", "-1", -1) else int(devices)
    return count > 1 or num_nodes > 1
