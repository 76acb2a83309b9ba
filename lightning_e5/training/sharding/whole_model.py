"""Fully sharded data parallel for gradient-cached steps: parameters, gradients and AdamW's state, 1/R of them per rank.

Between two steps a rank holds a flat shard of the parameters and of AdamW's two moments. A step

1. gathers the whole parameters once (all-gather), before its first chunk;
2. encodes and differentiates its chunks without any collective, gradients adding up in ``.grad`` as ever;
3. averages the gradients over the ranks, each rank receiving its shard only (reduce-scatter), and frees the rest;
4. moves its shard by AdamW, which works value by value, so that a flat shard moves as the parameters would.

For each float32 value a rank holds 12 / R bytes between steps (replicas: 12) and 8 + 12 / R at a step's peak (replicas:
16), and some buckets of `ParameterShards`: the weights are gathered as a whole, not layer by layer, and their gradients
add up over all chunks. Measured with two ranks of gloo and 67 M values in buckets of 4 M: 7.3 and 15.6 bytes.

Beside it `lightning_e5.training.sharding.layers` (torch's FSDP2) has one layer whole at a time, for models of which not even the weights
and gradients fit on a device. Here no collective is within a step: ranks may encode different numbers of chunks, keep activations, and
do a step again where one of them runs out of memory.

Source: Rajbhandari et al. 2020, "ZeRO" (its stage 3, with the whole model as one unit); Zhao et al. 2023, "PyTorch FSDP".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_e5.distributed.collectives import (
    BUCKET_VALUES,
    broadcast_from_first,
    gather_flat,
    mean_of_own_shard,
    rank,
    world_size,
)


class _Bucket:
    """Neighbouring parameters of one parameter group as one flat vector, padded to a multiple of the ranks."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.shapes = [p.shape for p in parameters]
        self.sizes = [p.numel() for p in parameters]
        self.padding = -sum(self.sizes) % world_size()
        self.shard = nn.Parameter(self.own_part([p.detach() for p in parameters]))

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([*(t.flatten() for t in tensors), tensors[0].new_zeros(self.padding)])

    def split(self, whole: Tensor) -> list[Tensor]:
        parts = whole.split([*self.sizes, self.padding])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=False)]

    def own_part(self, tensors: Sequence[Tensor]) -> Tensor:
        """This rank's shard of whole tensors, in memory of its own."""
        return self.flatten(tensors).chunk(world_size())[rank()].clone()


class ParameterShards:
    """This rank's shards of a model's trained parameters.

    Made by all ranks at the same time, as are all calls of its methods. The parameters stay the same objects; between
    steps they are empty, so that reading one by mistake is an error of shape and not an old value.

    Args:
        groups: parameter groups of the optimizer (see `lightning_e5.training.optimizer.AdamWConfig.parameter_groups`).
        model: whose parameters are sharded; others in the groups (a learned temperature) stay whole on every rank.
        bucket_values: values that are gathered or reduced at once, more where one parameter has more.
    """

    #: Collectives are before and behind a step, none within.
    in_step = False

    def __init__(self, groups: Sequence[Mapping[str, Any]], model: nn.Module, *, bucket_values: int = BUCKET_VALUES) -> None:
        of_model = {id(p) for p in model.parameters()}
        broadcast_from_first([p for group in groups for p in group["params"] if id(p) in of_model])
        self._groups = [list(group["params"]) for group in groups]
        self._buckets: list[_Bucket] = []
        #: For AdamW: the groups with a shard for the parameters of each bucket.
        self.optimizer_groups: list[dict[str, Any]] = []
        for group in groups:
            buckets = [_Bucket(ps) for ps in _runs([p for p in group["params"] if id(p) in of_model], bucket_values)]
            whole = [p for p in group["params"] if id(p) not in of_model]
            self._buckets += buckets
            self.optimizer_groups.append({**group, "params": [*(b.shard for b in buckets), *whole]})
        self._release()

    @property
    def local(self) -> list[nn.Parameter]:
        """This rank's flat shards, which the optimizer moves."""
        return [bucket.shard for bucket in self._buckets]

    def stepping(self) -> AbstractContextManager[None]:
        """Around a step: `gathered`."""
        return self.gathered()

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """The parameters are whole inside; what is written to them there is lost."""
        for bucket in self._buckets:
            for parameter, value in zip(bucket.parameters, bucket.split(gather_flat(bucket.shard.data)), strict=True):
                parameter.data = value
        try:
            yield
        finally:
            self._release()

    @torch.no_grad()
    def reduce_gradients(self) -> None:
        """Average the gradients of the gathered parameters over the ranks into the shards', and free them.

        Missing gradients count as 0.
        """
        for bucket in self._buckets:
            whole = bucket.flatten([torch.zeros_like(p) if p.grad is None else p.grad for p in bucket.parameters])
            for parameter in bucket.parameters:
                parameter.grad = None
            bucket.shard.grad = mean_of_own_shard(whole)

    def restore(self) -> None:
        """Make the parameters whole for good, each in memory of its own; the shards are of no use afterwards."""
        for bucket in self._buckets:
            for parameter, value in zip(bucket.parameters, bucket.split(gather_flat(bucket.shard.data)), strict=True):
                parameter.data = value.clone()

    @torch.no_grad()
    def whole(self, shards: Sequence[Tensor]) -> dict[nn.Parameter, Tensor]:
        """From a tensor beside each of `local`, gradients for instance, those beside the parameters.

        On the CPU of the first rank; nothing on the others, which need no copy.
        """
        found: dict[nn.Parameter, Tensor] = {}
        for bucket, shard in zip(self._buckets, shards, strict=True):
            values = gather_flat(shard)
            if rank() == 0:
                found.update(zip(bucket.parameters, bucket.split(values.cpu()), strict=True))
        return found

    def whole_optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The optimizer's state dict as it were without sharding: the first rank's; empty on the others."""
        state: dict[nn.Parameter, dict[str, Any]] = {p: {} for group in self._groups for p in group}
        state |= {p: dict(optimizer.state[p]) for p in state if p in optimizer.state}
        for key in sorted({key for shard in self.local for key in optimizer.state.get(shard, {})}):
            values = [optimizer.state[shard][key] for shard in self.local]
            if key == "step":
                whole = {p: v.clone() for bucket, v in zip(self._buckets, values, strict=True) for p in bucket.parameters}
            else:
                whole = self.whole(values)
            for parameter, value in whole.items():
                state[parameter][key] = value
        if rank() != 0:
            return {}
        numbers = {p: number for number, p in enumerate(state)}
        groups = [
            {**group, "params": [numbers[p] for p in parameters]}
            for group, parameters in zip(optimizer.state_dict()["param_groups"], self._groups, strict=True)
        ]
        return {"state": {numbers[p]: values for p, values in state.items() if values}, "param_groups": groups}

    def own_optimizer_state(self, whole: Mapping[str, Any]) -> dict[str, Any]:
        """This rank's part of a state dict without sharding, written by any number of ranks."""
        parameters = [p for group in self._groups for p in group]
        of_parameter = {p: whole["state"][number] for number, p in enumerate(parameters) if number in whole["state"]}
        of_shard = {id(bucket.shard): _own_state(bucket, of_parameter) for bucket in self._buckets}
        state, groups = {}, []
        number = 0
        for group, saved in zip(self.optimizer_groups, whole["param_groups"], strict=True):
            first = number
            for parameter in group["params"]:
                if values := of_shard.get(id(parameter), of_parameter.get(parameter)):
                    state[number] = values
                number += 1
            groups.append({**saved, "params": list(range(first, number))})
        return {"state": state, "param_groups": groups}

    def _release(self) -> None:
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                parameter.grad = None
                parameter.data = parameter.data.new_empty(0)


def _runs(parameters: Sequence[nn.Parameter], values: int) -> list[list[nn.Parameter]]:
    """Neighbours of one dtype and device, together of at most so many values where there are several."""
    runs: list[list[nn.Parameter]] = []
    for parameter in parameters:
        last = runs[-1] if runs else []
        fits = sum(p.numel() for p in last) + parameter.numel() <= values
        if last and fits and (last[0].dtype, last[0].device) == (parameter.dtype, parameter.device):
            last.append(parameter)
        else:
            runs.append([parameter])
    return runs


def _own_state(bucket: _Bucket, of_parameter: Mapping[nn.Parameter, Mapping[str, Any]]) -> dict[str, Any]:
    """AdamW's state of a bucket's shard; a parameter that was never moved counts as moved with zero gradients."""
    known = next((of_parameter[p] for p in bucket.parameters if p in of_parameter), None)
    if known is None:
        return {}
    state: dict[str, Any] = {}
    for key, example in known.items():
        if key == "step":
            state[key] = example
            continue
        zeros = [torch.zeros(shape, dtype=example.dtype, device="cpu") for shape in bucket.shapes]
        tensors = [of_parameter[p][key].cpu() if p in of_parameter else z for p, z in zip(bucket.parameters, zeros, strict=True)]
        state[key] = bucket.own_part(tensors)
    return state
