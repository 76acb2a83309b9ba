"""Several processes with Lightning's launchers, without its gradient reducer: the gradient-cached step averages itself."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch import nn

from lightning_e5.distributed.launch import STARTER
from lightning_e5.distributed.ranks import ranks
from lightning_e5.models.packed.encoder import PACKED_FORWARD, PackedEncoder
from lightning_e5.models.padded import layers_of
from lightning_e5.modules.base import TrainingModule
from lightning_e5.training.sharding.layers import LayerShards
from lightning_e5.training.sharding.whole_model import ParameterShards

#: Parameter groups of an optimizer.
Groups = Sequence[Mapping[str, Any]]


class _Launcher(_SubprocessScriptLauncher):
    """Starts this machine's other ranks, and ends this one where one of them dies.

    Lightning's own kills all of them without a word then, and changes threads for the rest of the process.
    """

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            os.environ[STARTER] = str(os.getpid())
            self._call_children_scripts()
            threading.Thread(target=_watch, args=(self.procs,), daemon=True, name="children").start()
        return function(*args, **kwargs)


def _watch(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Notice ranks that end before they are connected with the first (`lightning_e5.distributed.ranks`)."""
    own = ranks()
    while own is not None and not own.stop:
        codes = [child.poll() for child in children]
        failed = next((number for number, code in enumerate(codes, start=1) if code), None)
        if failed is not None:
            own.lose(f"rank {failed} ended with exit code {codes[failed - 1]}")
        if failed is not None or all(code == 0 for code in codes):
            return
        time.sleep(1.0)


class UnwrappedDDPStrategy(DDPStrategy):
    """DDP's processes, environments (its own, torchrun's, SLURM's) and process group; the module stays unwrapped.

    ``DistributedDataParallel`` reduces gradients inside the backward pass and copies buffers from rank 0 before every
    forward; a step that runs many backward passes and owns its queue wants neither.

    Args:
        backend: ``nccl`` or ``gloo``; by default the one of the device.
        timeout_minutes: after which a rank that waits for another gives up.
    """

    #: It leaves the gradients to the step; see `lightning_e5.modules.trainer_arguments.check_trainer`.
    step_averages_gradients = True

    def __init__(self, backend: str | None = None, timeout_minutes: float = 30.0, **ddp: Any) -> None:
        super().__init__(process_group_backend=backend, timeout=timedelta(minutes=timeout_minutes), **ddp)

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = _Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    def _setup_model(self, model: nn.Module) -> Any:
        return model

    def _register_ddp_hooks(self) -> None:
        pass

    def configure_ddp(self) -> None:
        pass


class ShardedStrategy(UnwrappedDDPStrategy):
    """Fully sharded data parallel: each rank keeps its part of parameters, gradients and AdamW's state.

    What is sharded when, and why not with torch's own FSDP: `lightning_e5.training.sharding.whole_model`. A checkpoint holds the
    whole tensors, gathered by all ranks and written by the first; it is the checkpoint that `UnwrappedDDPStrategy` or one
    device would write, so a training may continue from it with another strategy or another number of ranks.

    Args: those of `UnwrappedDDPStrategy`; the module must be a `TrainingModule`.
    """

    @property
    def _training(self) -> TrainingModule:
        assert isinstance(self.lightning_module, TrainingModule)
        return self.lightning_module

    def setup_optimizers(self, trainer: Any) -> None:
        # After the weights of a checkpoint were loaded, before its optimizer state is.
        self._training.make_shards = self.shards_of
        super().setup_optimizers(trainer)

    def shards_of(self, groups: Groups) -> ParameterShards | LayerShards:
        """The model cut into shards, see `TrainingModule.make_shards`."""
        return ParameterShards(groups, self._training.model)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        # The tensors of the state dict outlive the gathering: they hold on to the memory that was gathered into.
        with self._training.whole_parameters():
            return super().lightning_module_state_dict() if self.is_global_zero else {}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        shards = self._training.shards
        assert shards is not None
        return shards.whole_optimizer_state(optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        shards = self._training.shards
        assert shards is not None
        own = [shards.own_optimizer_state(state) for state in checkpoint["optimizer_states"]]
        super().load_optimizer_state_dict({"optimizer_states": own})


class LayerShardedStrategy(ShardedStrategy):
    """Fully sharded data parallel by torch's FSDP2, layer by layer: `lightning_e5.training.sharding.layers`, which says what it costs.

    Checkpoints are those of `ShardedStrategy`. It stands beside Lightning's ``ModelParallelStrategy``, which starts ranks that
    end without a word where one dies, and writes optimizer states that no other strategy reads.

    Args: those of `ShardedStrategy`.
    """

    def shards_of(self, groups: Groups) -> LayerShards:
        """The model cut into shards, see `TrainingModule.make_shards`."""
        model = self._training.model
        packed = [m for m in model.modules() if isinstance(m, PackedEncoder)]
        for encoder in packed:
            encoder.scatter_word_gradient = False  # it writes past FSDP2
        layers = [layer for encoder in packed for layer in encoder.methods_of_layers()]
        return LayerShards(groups, model, layers, forward_method=PACKED_FORWARD) if packed else LayerShards(groups, model, layers_of(model))

    def lightning_module_state_dict(self) -> dict[str, Any]:
        shards = self._training.shards
        assert isinstance(shards, LayerShards)
        return shards.whole_state(self._training.state_dict())
