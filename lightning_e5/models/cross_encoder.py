"""The cross-encoder: query and passage in one sequence, one relevance logit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_e5.distributed.devices import Precision, backbone_autocast, own_attention, sent, without_autocast
from lightning_e5.errors import UserError
from lightning_e5.files.storage import atomic_path, reading
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.packed.encoder import inference
from lightning_e5.models.packed.families import packed_encoder
from lightning_e5.models.padded import padded_states, usable_positions
from lightning_e5.progress import say
from lightning_e5.text import E5_PREFIXES, TextTokenizer, check_texts
from lightning_e5.training.chunks import Chunk, chunk_outputs, gather_tokens, inference_tokens
from lightning_e5.types import TokenBatch

HEAD = "scoring_head.pt"


class InteractionHead(nn.Module):
    """From the mean states of the query's and the passage's tokens to a logit.

    ``s * sum_d w_d q_d p_d + MLP([q, p])`` with unit q and p, w = 1 and the MLP 0 at the start: a cross-encoder that takes
    over a bi-encoder's weights begins with about the bi-encoder's scores, and learns what attention between the two
    texts adds. From a head without that start, minutes of training teach a small cross-encoder next to nothing (measured).

    Args:
        width: D.
        scale: s at the start.
    """

    def __init__(self, width: int, scale: float = 20.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.weight = nn.Parameter(torch.ones(width))
        self.inner = nn.Linear(2 * width, width)
        self.outer = nn.Linear(width, 1)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, queries_BD: Tensor, passages_BD: Tensor) -> Tensor:
        """Logits ``[B, 1]``."""
        queries_BD, passages_BD = functional.normalize(queries_BD, dim=1), functional.normalize(passages_BD, dim=1)
        product_B1 = (queries_BD * passages_BD * self.weight).sum(1, keepdim=True)
        return self.scale * product_B1 + self.outer(torch.tanh(self.inner(torch.cat([queries_BD, passages_BD], 1))))


def segment_means(states_TD: Tensor, segment_T: Tensor, segments: int, *, in_order: bool | None = None) -> Tensor:
    """Mean state of each segment: ``[T, D] -> [segments, D]``; 0 for an empty one.

    Args:
        segment_T: the segment of each token, rising.
        in_order: each sum by one thread in order; by default on a GPU, whose other sums have another order each time.
    """
    counts = segment_T.new_zeros(segments).index_add(0, segment_T, torch.ones_like(segment_T))
    if in_order if in_order is not None else states_TD.is_cuda:
        sums = torch.segment_reduce(states_TD, "sum", lengths=counts, unsafe=True)
    else:
        sums = states_TD.new_zeros(segments, states_TD.shape[1]).index_add(0, segment_T, states_TD)
    return sums / counts.clamp(min=1)[:, None]


class CrossEncoder(nn.Module):
    """Relevance logits of (query, passage) token pairs.

    Args:
        backbone: a Hugging Face encoder, with token type 1 from the passage on where it has token types; it runs
            without padding where `lightning_e5.models.packed.families` has its family, else padded.
        tokenizer: with prefixes and the length limit of each side; begins and ends a text with one special token each.
        precision: of the backbone.

    Raises:
        UserError: two texts do not fit the positions, or the tokenizer has other special tokens.

    Source: paper section 3.3 (the teacher of distillation).
    """

    def __init__(self, backbone: Any, tokenizer: TextTokenizer, *, precision: Precision = "bf16-gpu") -> None:
        super().__init__()
        self.backbone, self.tokenizer, self.precision = backbone, tokenizer, precision
        self.packed = packed_encoder(backbone)
        self.head = InteractionHead(int(backbone.config.hidden_size))
        special = tokenizer.backend.encode("").ids
        if len(special) != 2:
            raise UserError(f"teacher: a tokenizer that puts {len(special)} special tokens around a text cannot join two; the rule is 2")
        self.separator = int(special[1])
        positions = usable_positions(backbone)
        if positions is not None and 2 * tokenizer.max_length - 1 > positions:
            raise UserError(f"max_length: two texts of {tokenizer.max_length} tokens do not fit {positions} positions")

    @classmethod
    def from_encoder(cls, encoder: TextEncoder) -> CrossEncoder:
        """A cross-encoder that starts from a bi-encoder's weights, with a new head."""
        return cls(encoder.backbone, encoder.tokenizer, precision=encoder.precision)

    @classmethod
    def from_start(cls, directory: Path | str, *, max_length: int | None = None, precision: Precision = "bf16-gpu") -> CrossEncoder:
        """A cross-encoder to train from a bi-encoder's folder, or from any encoder's: of what the folder says, the length limit,
        the letter case and the prefixes (E5's where it stores none) are used; the head is our own, so its pooling is not."""
        from lightning_e5.models.pretrained import load_pretrained, stored_length

        loaded = load_pretrained(str(directory))
        prefixes = loaded.stored.prefixes
        if prefixes is None:
            say(f"{directory}: stores no prompts for queries and passages; E5's prefixes are put before texts")
        length = max_length or stored_length(loaded)
        tokenizer = TextTokenizer(
            loaded.backend, E5_PREFIXES if prefixes is None else prefixes, length, settings=loaded.tokenizer, lower_case=loaded.stored.lower_case
        )  # fmt: skip
        return cls(loaded.backbone, tokenizer, precision=precision).eval()

    @classmethod
    def from_pretrained(cls, directory: Path, *, max_length: int | None = None, precision: Precision = "bf16-gpu") -> CrossEncoder:
        """Load what `save_pretrained` wrote."""
        encoder = TextEncoder.from_pretrained(directory, max_length=max_length, precision=precision)
        if not (directory / HEAD).is_file():
            raise UserError(f"{directory}: no cross-encoder (has no {HEAD})")
        model = cls.from_encoder(encoder)
        with reading(directory / HEAD):
            model.head.load_state_dict(torch.load(directory / HEAD, map_location="cpu", weights_only=True))
        return model.eval()

    def save_pretrained(self, directory: Path) -> None:
        """Write the backbone's folder and the head beside it."""
        from lightning_e5.models.pretrained import save_pretrained

        save_pretrained(directory, self.backbone, self.tokenizer)
        # Given a path, torch names the archive inside after the file, here a temporary one with this process's number in it.
        with atomic_path(directory / HEAD) as temporary, temporary.open("wb") as handle:
            torch.save(self.head.state_dict(), handle)

    def forward(self, ids_T: Tensor, lengths: Sequence[int]) -> Tensor:
        """Logits ``[B, 1]`` (float32; float64 for a float64 model) of joined pairs."""
        lengths_B = sent(torch.tensor(lengths, device="cpu"), ids_T.device)
        text_T = torch.repeat_interleave(torch.arange(len(lengths), device=ids_T.device), lengths_B, output_size=len(ids_T))
        with backbone_autocast(self.precision, ids_T.device), own_attention(ids_T.device):
            segments_T = self._segments(ids_T, lengths_B, text_T)
            if self.packed is not None:
                states_TD = self.packed(ids_T, lengths, segments_T)
            else:
                states_TD = padded_states(self.backbone, ids_T, lengths, segments_T)
        precise = states_TD if states_TD.dtype == torch.float64 else states_TD.float()
        with without_autocast(ids_T.device):
            sides = segment_means(precise, 2 * text_T + segments_T, 2 * len(lengths)).view(len(lengths), 2, -1)
            logits_B1: Tensor = self.head(sides[:, 0], sides[:, 1])
        return logits_B1

    def _segments(self, ids_T: Tensor, lengths_B: Tensor, text_T: Tensor) -> Tensor:
        """0 up to and with the first separator of each pair, 1 after it; ``text_T``: the pair that each token belongs to."""
        separator_T = torch.eq(ids_T, self.separator).long()
        before_T = torch.cumsum(separator_T, 0) - separator_T
        starts_B = torch.cumsum(lengths_B, 0) - lengths_B
        return (before_T - before_T.index_select(0, starts_B).index_select(0, text_T)).clamp(max=1)

    @torch.inference_mode()
    def score(
        self,
        queries: Sequence[str],
        passages: Sequence[str],
        *,
        chunk_tokens: int | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Tensor:
        """float32 ``[N]`` logits of (query, passage) texts; ``chunk_tokens`` as `TextEncoder.embed` has it."""
        check_texts(queries)
        check_texts(passages)
        if len(queries) != len(passages):
            raise UserError(f"{len(queries)} queries for {len(passages)} passages")
        logits_N = torch.empty(len(queries), device="cpu")
        for first in range(0, len(queries), 16384):
            block = slice(first, first + 16384)
            batch = join_pairs(self._tokens(queries[block], "query"), self._tokens(passages[block], "passage"))
            logits_N[block] = self.score_tokens(batch, chunk_tokens=chunk_tokens, progress=progress)
        return logits_N

    @torch.no_grad()
    def score_tokens(self, pairs: TokenBatch, *, chunk_tokens: int | None = None, progress: Callable[[int], object] | None = None) -> Tensor:
        """float32 ``[N]`` logits of joined pairs (see `join_pairs`), on the device where their tokens are."""
        if not len(pairs.lengths_B):
            return torch.empty(0, dtype=torch.float32, device=pairs.ids_T.device)
        device = next(self.parameters()).device

        def compute(chunk: Chunk) -> Tensor:
            return self(chunk.ids_T, chunk.lengths).float().squeeze(1)  # type: ignore[no-any-return]

        with inference(self):
            tokens = chunk_tokens or inference_tokens(self.precision, device)
            return chunk_outputs(pairs, compute, device, chunk_tokens=tokens, progress=progress).to(pairs.ids_T.device)

    def _tokens(self, texts: Sequence[str], kind: Any) -> TokenBatch:
        ids, lengths = self.tokenizer.encode(texts, kind)
        return TokenBatch(torch.from_numpy(ids).long(), torch.from_numpy(lengths))


def join_pairs(queries: TokenBatch, passages: TokenBatch) -> TokenBatch:
    """``[CLS] query [SEP] passage [SEP]`` for each query with its G passages (P = B * G, a query's G in a row).

    Tokens and lengths each stay on the device where they are, which need not be the same one.
    """
    count = len(passages.lengths_B)
    group = count // max(1, len(queries.lengths_B))
    lengths_q = queries.lengths_B.repeat_interleave(group)
    starts_q = (torch.cumsum(queries.lengths_B, 0) - queries.lengths_B).repeat_interleave(group)
    lengths_p = passages.lengths_B - 1  # without its [CLS]
    starts_p = torch.cumsum(passages.lengths_B, 0) - passages.lengths_B + 1
    tokens = torch.cat([queries.ids_T, passages.ids_T])
    starts = torch.stack([starts_q, starts_p + len(queries.ids_T)], 1).flatten()
    lengths = torch.stack([lengths_q, lengths_p], 1).flatten()
    total = group * len(queries.ids_T) + len(passages.ids_T) - count
    return TokenBatch(gather_tokens(tokens, starts, lengths, total), lengths_q + lengths_p)
