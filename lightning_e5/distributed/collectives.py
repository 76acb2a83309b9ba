"""Several processes, one batch: rank, world size, and gathering with gradient.

No loss here is multiplied by the world size: every rank computes the mean over its own queries against the passages of
all ranks, gradients of the gathered passages flow back to the rank that embedded them, and the ranks' parameter
gradients are averaged. That is the gradient of the mean over the global batch.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch import distributed as dist


def world_size() -> int:
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather(tensor: Tensor) -> Tensor:
    """The ranks' tensors of equal shape, concatenated along the first dimension; no gradient."""
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    """all_gather whose backward sums the ranks' gradients and returns this rank's part."""

    @staticmethod
    def forward(ctx: object, tensor: Tensor) -> Tensor:
        return gather(tensor)

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)  # autograd's own, others may read it after us
        dist.all_reduce(total)
        share = total.shape[0] // world_size()
        return total[rank() * share : (rank() + 1) * share]


def gather_with_grad(tensor: Tensor) -> Tensor:
    """`gather` through which gradients flow back to the rank that owns the rows."""
    return tensor if world_size() == 1 else _Gather.apply(tensor)


#: Gradients are averaged in flat buffers of about this many values.
BUCKET_VALUES = 2**26


@torch.no_grad()
def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Average the ranks' gradients in place, in flat buffers per dtype and device; missing gradients count as 0."""
    if world_size() == 1:
        return
    buckets: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket = buckets.setdefault((parameter.grad.dtype, parameter.grad.device), [])
        if bucket and sum(g.numel() for g in bucket) + parameter.grad.numel() > BUCKET_VALUES:
            _average(bucket)
            bucket.clear()
        bucket.append(parameter.grad)
    for bucket in buckets.values():
        _average(bucket)


def _average(gradients: list[Tensor]) -> None:
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


@torch.no_grad()
def gather_flat(shard_S: Tensor) -> Tensor:
    """The ranks' shards ``[S]`` one behind the other, ``[ranks * S]``; a collective call."""
    whole = shard_S.new_empty(world_size() * len(shard_S))
    # torch 2.13 renamed the collectives on flat tensors, and warns of the names that torch 2.11 has.
    collective = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    collective(whole, shard_S)
    return whole


@torch.no_grad()
def mean_of_own_shard(whole: Tensor) -> Tensor:
    """This rank's shard ``[S]`` of the mean of the ranks' ``[ranks * S]``; a collective call."""
    shard_S = whole.new_empty(len(whole) // world_size())
    collective = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    collective(shard_S, whole)
    return shard_S.div_(world_size())


@torch.no_grad()
def broadcast_from_first(tensors: Iterable[Tensor]) -> None:
    """Copy rank 0's values to all ranks, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def sum_over_ranks(tensor: Tensor) -> None:
    """Replace a tensor by its sum over the ranks, in place; a collective call."""
    if world_size() > 1:
        dist.all_reduce(tensor)


def rank_means(values: list[float], device: torch.device | str = "cpu") -> list[float]:
    """The means of some numbers over the ranks, in float64; a collective call."""
    if world_size() == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return [float(v) for v in tensor / world_size()]


def highest_of_ranks(value: int, device: torch.device | str = "cpu") -> int:
    """The highest of the ranks' values; a collective call."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(float(value), device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor.item())


def any_rank(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Whether the flag is set on any rank; a collective call."""
    return highest_of_ranks(int(flag), device) > 0


def close_process_group() -> None:
    """End the process group, once all ranks are here: what the first process does next, it does alone."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
