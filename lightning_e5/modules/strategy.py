"""Several processes with Lightning's launchers, without its gradient reducer: the gradient-cached step averages itself."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from lightning.pytorch.strategies import DDPStrategy
from torch import nn


class RanksStrategy(DDPStrategy):
    """DDP's processes, environments (its own, torchrun's, SLURM's) and process group; the module stays unwrapped.

    ``DistributedDataParallel`` reduces gradients inside the backward pass and copies buffers from rank 0 before every
    forward; a step that runs many backward passes and owns its queue wants neither.

    Args:
        backend: ``nccl`` or ``gloo``; by default the one of the device.
        timeout_minutes: after which a rank that waits for another gives up.
    """

    def __init__(self, backend: str | None = None, timeout_minutes: float = 30.0, **ddp: Any) -> None:
        super().__init__(process_group_backend=backend, timeout=timedelta(minutes=timeout_minutes), **ddp)

    def _setup_model(self, model: nn.Module) -> Any:
        return model

    def _register_ddp_hooks(self) -> None:
        pass

    def configure_ddp(self) -> None:
        pass
