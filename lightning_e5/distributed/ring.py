"""Tensors that travel from rank to rank in a ring, so that no rank ever holds those of all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from lightning_e5.distributed.collectives import rank, world_size

#: Tags, by which gloo tells what travels from what goes home; NCCL goes by the order, which is the same on all ranks.
_TRAVELLING, _HOME = 0, 100


class Ring:
    """The ranks in a ring: each sends to the next and receives from the one before, while it works on what it has.

    All ranks call its methods at the same time, with tensors of equal shapes. A rank holds two blocks on their way beside its
    own, however many ranks there are, and each block makes as many hops as there are other ranks.

    Example:
        >>> [block.tolist() for (block,) in Ring().travelling(torch.ones(2))]  # a single rank
        [[1.0, 1.0]]

    Source: the order of sending of Luo et al. 2024, "Inf-CL" (arXiv 2410.17243).
    """

    @property
    def ranks(self) -> int:
        """Number of processes; 1 without a process group."""
        return world_size()

    def travelling(self, *own: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """This rank's tensors, then those of every rank before it, nearest first; no gradient.

        A block is overwritten once the next but one is asked for; the next is on its way while one works on this.
        """
        block = tuple(tensor.detach().contiguous() for tensor in own)
        spare = [tuple(map(torch.empty_like, block)) for _ in range(min(2, self.ranks - 1))]
        for hop in range(self.ranks):
            last = hop + 1 == self.ranks
            transfers = [] if last else _hand_on(block, spare[hop % 2], _TRAVELLING)
            yield block
            if not last:
                _finish(transfers)
                block = spare[hop % 2]

    def home(self, contributions: Iterable[Tensor]) -> Tensor:
        """What all ranks contribute to this rank's block, summed.

        Args:
            contributions: of this rank to each of the blocks in the order of `travelling`, each computed when it is asked for: what
                the ranks before contributed to the same block is on its way meanwhile. They are changed in place.
        """
        transfers: list[Any] = []
        arriving: Tensor | None = None
        for contribution in contributions:
            if arriving is not None:
                _finish(transfers)
                contribution += arriving
            elif self.ranks > 1:
                arriving = torch.empty_like(contribution)
            if arriving is None:
                return contribution
            # Sent until the next one is there; after the last hop the next rank is the block's owner.
            transfers = _hand_on((contribution,), (arriving,), _HOME)
        assert arriving is not None
        _finish(transfers)
        return arriving


def _hand_on(sent: Sequence[Tensor], arriving: Sequence[Tensor], tag: int) -> list[Any]:
    """Begin to send tensors to the next rank and to receive those of the one before."""
    following, before = (rank() + 1) % world_size(), (rank() - 1) % world_size()
    operations = [dist.P2POp(dist.isend, tensor, following, tag=tag + number) for number, tensor in enumerate(sent)]
    operations += [dist.P2POp(dist.irecv, tensor, before, tag=tag + number) for number, tensor in enumerate(arriving)]
    return list(dist.batch_isend_irecv(operations))


def _finish(transfers: Sequence[Any]) -> None:
    for transfer in transfers:
        transfer.wait()
