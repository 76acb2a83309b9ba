"""A small BERT that starts as an average of word vectors, weighted by inverse document frequency.

From random weights and tens of thousands of pairs a BERT learns slowly what every retriever knows first: rare words
matter. Its LayerNorms make it worse, for they give every token a state of equal length. So the width is divided: in the
first part, *content*, a token's vector has a length proportional to its weight; in the rest, *sink*, it has whatever
makes the whole of equal length, in a random direction of its own. The LayerNorms then change nothing, and the last one
gives the sink dimensions a gain of 0. Residual branches start near 0. So before training, average pooling gives exactly
the weighted average of random word vectors, and attention and feed-forward layers learn what that lacks.

This start is ours; E5 starts from MiniLM or BERT.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import lightning_e5.vector_math  # noqa: F401 - made ready before any thread computes

#: Share of the width that carries content.
CONTENT_SHARE = 0.95
#: Weight of the most frequent tokens, of 1.
LEAST_WEIGHT = 0.02


def idf_weights(document_frequency: NDArray[np.int64], documents: int) -> NDArray[np.float64]:
    """``[V]`` weights in [LEAST_WEIGHT, 1]: inverse document frequency over that of a token seen once."""
    idf = np.log((documents + 1) / (document_frequency + 1))
    return np.clip(idf / np.log((documents + 1) / 2), LEAST_WEIGHT, 1.0)


@torch.no_grad()
def weighted_average_start(bert: Any, document_frequency: NDArray[np.int64], documents: int) -> None:
    """Set a ``BertModel``'s weights so that it starts as described above.

    Args:
        bert: the model; its random parts are drawn from torch's current state.
        document_frequency: int64 ``[V]``, texts that hold each token.
        documents: texts counted.
    """
    width = bert.config.hidden_size
    content = int(width * CONTENT_SHARE)
    weights_V = torch.from_numpy(idf_weights(document_frequency, documents)).float()
    table = bert.embeddings.word_embeddings.weight
    inside = torch.nn.functional.normalize(_centred(torch.randn(len(table), content, device="cpu")), dim=1)
    outside = torch.nn.functional.normalize(_centred(torch.randn(len(table), width - content, device="cpu")), dim=1)
    unit = torch.cat([inside * weights_V[:, None], outside * (1 - weights_V**2).sqrt()[:, None]], 1)
    table.copy_(unit * width**0.5)  # of variance 1: LayerNorm leaves it as it is
    bert.embeddings.position_embeddings.weight.zero_()
    bert.embeddings.token_type_embeddings.weight.zero_()
    for layer in bert.encoder.layer:
        layer.attention.output.dense.weight.mul_(0.1)
        layer.output.dense.weight.mul_(0.1)
    last = bert.encoder.layer[-1].output.LayerNorm
    last.weight[content:] = 0.0


def _centred(rows: torch.Tensor) -> torch.Tensor:
    return rows - rows.mean(1, keepdim=True)
