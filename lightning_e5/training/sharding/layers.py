"""Fully sharded data parallel layer by layer, by ``torch.distributed.fsdp.fully_shard`` (FSDP2): for models that do not fit as a whole.

`lightning_e5.training.sharding.whole_model` has the whole model on every rank within a step. Here a layer's weights are gathered when it is
called, and freed behind it; in the backward pass they are gathered once more, and its gradient is averaged over the ranks at once,
each rank keeping its shard. For each float32 value a rank holds ``12 / R`` bytes between steps (counted: half of one rank's on two) and
``16 / R`` in a step, with the weights of two layers, one layer's gradient, and the embeddings of words beside them: that is FSDP2's
design, and its peak has not been measured here.

What it costs: every chunk gathers all layers three times (embedding it, encoding it again, differentiating it) and averages their
gradients; so all ranks encode equally many chunks, those with fewer one of them again without effect; no activations are kept; and
a rank that runs out of memory, or is told to stop, cannot leave within a step: the first ends the job, the second waits for its end.

Source: Zhao et al. 2023, "PyTorch FSDP"; Rajbhandari et al. 2020, "ZeRO" (its stage 3).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from lightning_e5.distributed.collectives import broadcast_from_first, rank, world_size


class LayerShards:
    """This rank's shards of a model's parameters, those of each layer apart; it has what `ParameterShards` has.

    Made by all ranks at the same time, as are all calls of its methods. The model's parameters are others from then on, each a
    ``DTensor`` of which a rank has some rows; `restore` makes them plain ones again.

    Args:
        groups: parameter groups of the optimizer; of parameters outside of the model (a learned temperature) each rank keeps the whole.
        model: whose parameters are sharded; its ``forward`` is called for each chunk.
        layers: of the model, each called as a module or by its method ``forward_method``.
        forward_method: by which layers are called that have it.
    """

    #: All ranks do the same collectives within a step, chunk by chunk.
    in_step = True

    def __init__(self, groups: Sequence[Mapping[str, Any]], model: nn.Module, layers: Sequence[nn.Module], *, forward_method: str = "forward") -> None:
        self._model, self._layers, self._method = model, list(layers), forward_method
        names = {id(p): name for name, p in model.named_parameters()}
        broadcast_from_first([p.detach() for p in model.parameters()])
        device = next(model.parameters()).device
        self._mesh: Any = init_device_mesh(device.type, (world_size(),))
        for layer in self._layers:
            fully_shard(layer, mesh=self._mesh)
            if forward_method != "forward":
                register_fsdp_forward_method(layer, forward_method)
        fully_shard(model, mesh=self._mesh)
        for module in self._modules():
            if dist.get_backend() == "gloo" and hasattr(module, "set_force_sum_reduction_for_comms"):
                module.set_force_sum_reduction_for_comms(True)  # gloo has no mean
            module.unshard()  # from here on a shard stays where it is in memory
            module.reshard()
        sharded: dict[str, Any] = dict(model.named_parameters())
        #: This rank's rows of each sharded parameter, which the optimizer moves; plain, as a step over DTensors costs Python time for each.
        self._rows: dict[nn.Parameter, Any] = {}
        #: For AdamW: the groups with this rank's rows for the parameters of the model.
        self.optimizer_groups: list[dict[str, Any]] = []
        for group in groups:
            parameters = [self._add_rows(sharded[names[id(p)]]) if id(p) in names else p for p in group["params"]]
            self.optimizer_groups.append({**group, "params": parameters})

    def _add_rows(self, sharded: Any) -> nn.Parameter:
        rows = nn.Parameter(sharded.to_local().detach())
        self._rows[rows] = sharded
        return rows

    @property
    def local(self) -> list[nn.Parameter]:
        """This rank's rows of each parameter, which the optimizer moves."""
        return list(self._rows)

    def stepping(self) -> AbstractContextManager[None]:
        """Around a step: nothing, layers are gathered as they are called."""
        return nullcontext()

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """The parameters are whole inside, and the model may be called there by any rank alone."""
        modules = self._modules()
        for module in modules:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield
        finally:
            for module in modules:
                module.reshard()
                module.set_reshard_after_forward(module is not self._model, recurse=False)

    def reduce_gradients(self) -> None:
        """Hand the gradients, which each chunk's backward pass has averaged already, to `local`; missing ones count as 0."""
        for rows, sharded in self._rows.items():
            rows.grad = torch.zeros_like(rows) if sharded.grad is None else sharded.grad.to_local()
            sharded.grad = None

    @torch.no_grad()
    def restore(self) -> None:
        """Make the model what it was before, with whole parameters that are its own."""
        whole = {name: (p.requires_grad, _whole(p)) for name, p in self._model.named_parameters()}
        for module in self._modules():
            _take_out(module)
        for layer in self._layers:
            if self._method != "forward":
                delattr(layer, self._method)
        for name, (trained, value) in whole.items():
            owner, _, leaf = name.rpartition(".")
            setattr(self._model.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=trained))
        # What holds on to the process group keeps its address taken, at which the next training of this process meets.
        getattr(self._mesh, "_pg_registry", {}).clear()
        self._rows, self._mesh, self.optimizer_groups = {}, None, []
        gc.collect()

    def whole(self, shards: Sequence[Tensor]) -> dict[nn.Parameter, Tensor]:
        """From a tensor beside each of `local`, gradients for instance, the whole ones; on the CPU of the first rank, nothing on the others."""
        found = {sharded: _on_first(self._beside(rows, shard)) for (rows, sharded), shard in zip(self._rows.items(), shards, strict=True)}
        return found if rank() == 0 else {}

    def whole_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """A state dict with whole tensors: the first rank's; empty on the others."""
        found = {name: _on_first(value) if isinstance(value, DTensor) else value for name, value in state.items()}
        return found if rank() == 0 else {}

    def whole_optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The optimizer's state dict as it were without sharding: the first rank's; empty on the others."""
        own, parameters = optimizer.state_dict(), self._parameters()
        state = {
            number: self.whole_state({key: self._beside(parameters[number], value) for key, value in values.items()})
            for number, values in own["state"].items()
        }
        return {**own, "state": state} if rank() == 0 else {}

    def own_optimizer_state(self, whole: Mapping[str, Any]) -> dict[str, Any]:
        """This rank's part of a state dict without sharding, written by any number of ranks."""
        parameters = self._parameters()
        state = {number: {key: self._own(parameters[number], value) for key, value in values.items()} for number, values in whole["state"].items()}
        return {**whole, "state": state}

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer_groups for p in group["params"]]

    def _beside(self, rows: nn.Parameter, value: Any) -> Any:
        """A tensor beside this rank's rows as one of all ranks; others as they are."""
        sharded = self._rows.get(rows)
        if sharded is None or value.shape != rows.shape:
            return value
        return DTensor.from_local(value.detach(), self._mesh, sharded.placements, run_check=False, shape=sharded.shape, stride=sharded.stride())

    def _own(self, rows: nn.Parameter, value: Tensor) -> Tensor:
        """This rank's part of a whole tensor beside a parameter; others as they are."""
        sharded = self._rows.get(rows)
        if sharded is None or value.shape != sharded.shape:
            return value
        own: Any = distribute_tensor(value.to(rows.device), self._mesh, sharded.placements, src_data_rank=None)
        return own.to_local().clone()

    def _modules(self) -> list[Any]:
        return [m for m in self._model.modules() if isinstance(m, FSDPModule)]


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def _on_first(tensor: Tensor) -> Tensor:
    """A whole tensor on the CPU of the first rank; the others take part."""
    whole = _whole(tensor.detach())
    return whole.cpu() if rank() == 0 else whole[:0]


def _take_out(module: Any) -> None:
    """Undo ``fully_shard``, for which torch has no function: the hooks, the class and the state that it gave the module."""
    state = module._get_fsdp_state()
    state._pre_forward_hook_handle.remove()
    state._post_forward_hook_handle.remove()
    several = hasattr(state, "_fsdp_param_groups")  # as newer versions of torch name them
    for group in state._fsdp_param_groups if several else filter(None, [state._fsdp_param_group]):
        for handles in (group._module_to_pre_save_state_dict_hook_handle, group._module_to_pre_load_state_dict_hook_handle):
            for handle in handles.values():
                handle.remove()
        for parameter in group.fsdp_params:
            parameter._post_load_hook_handle.remove()
    if several:
        state._fsdp_param_groups = []
    else:
        state._fsdp_param_group = None
    state._state_ctx = state._comm_ctx = None
    classes = type(module).__mro__
    module.__class__ = classes[classes.index(FSDPModule) + 1]
