"""A loss at several dimensions: of the first values of every embedding, each beginning an embedding of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_e5.errors import UserError
from lightning_e5.types import LossOutput


def first_values(embeddings_ND: Tensor, dimensions: int) -> Tensor:
    """The first values of unit rows, of unit length again: ``[N, D] -> [N, dimensions]``; the rows themselves where that is all of D.

    Example:
        >>> first_values(torch.tensor([[0.6, 0.0, 0.8]]), 2).tolist()
        [[1.0, 0.0]]
    """
    if dimensions == embeddings_ND.shape[1]:
        return embeddings_ND
    return functional.normalize(embeddings_ND[:, :dimensions], dim=1)


class Matryoshka:
    """``sum_d w_d * loss(first d values, of unit length again)``, of any loss of unit embeddings, such as InfoNCE.

    Each dimension is a call of the loss: what it holds for the backward pass is as wide as the dimension, so all of them hold
    ``sum(d) / D`` times as much as the loss of whole embeddings, and nothing of the size of queries times passages.

    Args:
        loss: from the embeddings ``[N, D]``, at whatever D it is given; further tensors, such as a queue, it takes by `first_values`.
        dimensions: d, in any order.
        weights: w, one per dimension; 1 each by default.

    Example:
        >>> from lightning_e5.losses.info_nce import InfoNCE
        >>> pairs = functional.normalize(torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]), dim=1)  # alike in their last value only
        >>> loss = Matryoshka(lambda rows: InfoNCE(temperature=1.0)(rows, rows, torch.arange(2)), [3, 2])
        >>> {name: round(float(value), 4) for name, value in loss(pairs).logs.items() if name.startswith("loss")}
        {'loss@3': 0.4741, 'loss@2': 0.3133}

    Source: Kusupati et al. 2022 (arXiv 2205.13147), equation 1.
    """

    def __init__(self, loss: Callable[[Tensor], LossOutput], dimensions: Sequence[int], weights: Sequence[float] | None = None) -> None:
        self.loss, self.dimensions = loss, tuple(dimensions)
        self.weights = tuple(weights) if weights is not None else (1.0,) * len(self.dimensions)

    def __call__(self, embeddings_ND: Tensor) -> LossOutput:
        """The weighted sum, with ``loss@d`` and ``accuracy@d`` of each dimension; all other values are those of the largest."""
        found = {d: self.loss(first_values(embeddings_ND, d)) for d in self.dimensions}
        of_largest = found[max(found)]
        total = torch.stack([weight * found[d].loss for d, weight in zip(self.dimensions, self.weights, strict=True)]).sum()
        logs: dict[str, float | Tensor] = dict(of_largest.logs)
        logs |= {f"loss@{d}": one.loss.detach() for d, one in found.items()}
        logs |= {f"accuracy@{d}": one.accuracy for d, one in found.items()}
        return of_largest._replace(loss=total, logs=logs)


def check_dimensions(arguments: Mapping[str, Any], width: int | None = None) -> None:
    """UserError for ``dimensions`` and ``dimension_weights`` that do not go together, or not with a model of ``width``.

    Args:
        arguments: those of a training scheme, by name.
        width: D of its encoder's embeddings; None where that is not known yet.
    """
    dimensions, weights = arguments.get("dimensions"), arguments.get("dimension_weights")
    if dimensions is None:
        if weights is not None:
            raise UserError("dimension_weights: belong to dimensions, and there are none")
        return
    if not dimensions:
        raise UserError("dimensions: is an empty list; name at least one, or leave it out")
    twice = next((d for d in dimensions if list(dimensions).count(d) > 1), None)
    if twice is not None:
        raise UserError(f"dimensions: {twice} is named twice")
    if min(dimensions) < 1:
        raise UserError(f"dimensions: {min(dimensions)} is not >= 1")
    if width is not None and max(dimensions) > width:
        raise UserError(f"dimensions: {max(dimensions)} is above the {width} values of the encoder's embeddings")
    if weights is not None and len(weights) != len(dimensions):
        raise UserError(f"dimension_weights: {len(weights)} weights for {len(dimensions)} dimensions; the rule is one for each")
    if weights is not None and not min(weights) > 0:
        raise UserError(f"dimension_weights: {min(weights)} is not above 0; leave out a dimension that does not count")
