"""Averaged word vectors, trained contrastively in seconds: what a text encoder adds has to be more than this.

The same loss and the same pairs as the encoder's pre-training, without order, context or depth: a text is the weighted
sum of its words' vectors. The weights begin as inverse document frequencies and are trained along.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

import lightning_e5.vector_math  # noqa: F401 - made ready before any thread computes
from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError
from lightning_e5.files.storage import (
    atomic_path,
    empty_directory,
    read_json,
    verify_manifest,
    write_json,
    write_manifest,
)
from lightning_e5.progress import progress as show_progress
from lightning_e5.ranges import BatchSize, Count, CountOrZero, LearningRate, Range, Seed, Size, Temperature
from lightning_e5.text import check_texts
from lightning_e5.types import Kind

_KIND = "word_vectors"
_TENSORS, _CONFIG, _WORDS = "word_vectors.safetensors", "config.json", "vocabulary.json"
_WORD = re.compile(r"\w+")
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|\d+")


def tokenize(text: str) -> list[str]:
    """Lower-cased words, each identifier followed by its parts: ``read_csvFile`` gives itself, read, csv and file."""
    tokens = []
    for word in _WORD.findall(text):
        tokens.append(word.lower())
        if len(parts := _PART.findall(word)) > 1:
            tokens.extend(part.lower() for part in parts)
    return tokens


@configurable("settings", constructs=True)
@dataclass(frozen=True, slots=True)
class WordVectorsConfig:
    """How the vectors are made.

    Args:
        width: ``D``, of the vectors.
        min_count: texts that a word must occur in.
        max_words: words with a vector of their own at most, the most frequent ones.
        buckets: vectors that all other words share, by a hash, so that a name never seen before still matches itself.
        max_distinct: distinct words read of one text, in the order of their first occurrence.
        temperature: of InfoNCE.
        token_dropout: share of a text's words left out in training.
        batch_size: pairs per step; the other pairs' passages are the negatives.
        epochs: passes over the pairs.
        learning_rate: peak, of Adam on the vectors; falls linearly to 0.
        weight_learning_rate: the same for the logarithms of the words' weights.
        seed: of initialisation, order and dropout.
    """

    width: Size = 512
    min_count: Count = 2
    max_words: Count = 40_000
    buckets: CountOrZero = 16_384
    max_distinct: Count = 256
    temperature: Temperature = 0.1
    token_dropout: Annotated[float, Range(0, 0.99)] = 0.2
    batch_size: BatchSize = 512
    epochs: Annotated[int, Range(1, 10000)] = 4
    learning_rate: LearningRate = 2e-3
    weight_learning_rate: LearningRate = 1e-2
    seed: Seed = 0

    def __post_init__(self) -> None:
        for name in ("width", "min_count", "max_words", "max_distinct", "batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.buckets < 0 or self.temperature <= 0 or not 0 <= self.token_dropout < 1:
            raise UserError(
                f"word vectors need buckets >= 0, temperature > 0 and token_dropout in [0, 1), not {self.buckets}, {self.temperature} and {self.token_dropout}"
            )


class _Bags(NamedTuple):
    """Texts as bags of words, one after the other: ``ids`` and ``counts`` ``[T]``, ``starts`` ``[N + 1]``."""

    ids: NDArray[np.int64]
    counts: NDArray[np.float32]
    starts: NDArray[np.int64]

    def take(self, texts: NDArray[np.int64]) -> _Bags:
        """The bags of some texts, in the order given."""
        starts = np.concatenate([[0], np.cumsum(lengths := self.starts[texts + 1] - self.starts[texts])])
        positions = np.arange(starts[-1]) + np.repeat(self.starts[texts] - starts[:-1], lengths)
        return _Bags(self.ids[positions], self.counts[positions], starts)


class WordVectors:
    """An `Embedder` of averaged word vectors; `fit` it, or `load` one.

    The same numbers come out for the same pairs, seed and number of torch threads. One thread is often fastest: the
    steps are small.
    """

    def __init__(self, config: WordVectorsConfig | None = None) -> None:
        self.config = config or WordVectorsConfig()
        self._vocabulary: dict[str, int] = {}
        self._vectors_VD = torch.zeros(0, self.config.width)
        self._log_weights_V = torch.zeros(0)

    def fit(self, pairs: Sequence[tuple[str, str]], *, progress: bool = True) -> WordVectors:
        """Learn vocabulary, vectors and weights from (query, passage) pairs.

        Args:
            pairs: at least two; the texts are read once and kept as bags of words.
            progress: show a bar with the time left, on stderr.

        Returns:
            itself.

        Raises:
            UserError: fewer than two pairs, or no word frequent enough.

        Source: the loss is equation 1 of the paper, in both directions.
        """
        config = self.config
        if len(pairs) < 2:
            raise UserError(f"word vectors need at least 2 pairs to train on, not {len(pairs)}")
        self._learn_vocabulary(pairs)
        queries, passages = self._bags([q for q, _ in pairs]), self._bags([p for _, p in pairs])
        rng = np.random.default_rng(config.seed)
        generator = torch.Generator().manual_seed(config.seed)
        shape = (len(self._vocabulary) + config.buckets, config.width)
        # unit vectors on average: before any training, a random projection of the bag of words
        self._vectors_VD = torch.randn(shape, generator=generator) / math.sqrt(config.width)
        optimizers = [
            (self._vectors_VD, _LazyAdam(self._vectors_VD), config.learning_rate),
            (self._log_weights_V, _LazyAdam(self._log_weights_V), config.weight_learning_rate),
        ]
        size = min(config.batch_size, len(pairs))
        per_epoch = len(pairs) // size
        steps = config.epochs * per_epoch
        with show_progress(steps, "word vectors", "step") if progress else nullcontext(lambda _: None) as bar:
            for step in range(steps):
                if step % per_epoch == 0:
                    order = rng.permutation(len(pairs))
                rows = order[step % per_epoch * size :][:size]
                bags = _joined(_drop(texts.take(rows), config.token_dropout, rng) for texts in (queries, passages))
                words, local = np.unique(bags.ids, return_inverse=True)
                words_U = torch.from_numpy(words)
                tables = [table[words_U].requires_grad_() for table, _, _ in optimizers]
                vectors_ND = F.normalize(_sum_words(bags._replace(ids=local), tables[0], tables[1]))
                logits_BB = vectors_ND[:size] @ vectors_ND[size:].T / config.temperature
                target_B = torch.arange(size)
                loss = (F.cross_entropy(logits_BB, target_B) + F.cross_entropy(logits_BB.T, target_B)) / 2
                gradients = torch.autograd.grad(loss, tables)
                for (table, optimizer, rate), gradient in zip(optimizers, gradients, strict=True):
                    optimizer.step(table, words_U, gradient, rate * (1 - step / steps))
                bar(1)
        return self

    def embed(self, texts: Sequence[str], kind: Kind, *, normalize: bool = True) -> Tensor:
        """Embed texts; both kinds alike, without a prefix, which would only add one constant word.

        Args:
            texts, kind: ``N`` texts, all ``query`` or all ``passage``.
            normalize: unit length, but for texts without a known word, which are zero.

        Returns:
            float32 ``[N, D]``.

        Raises:
            UserError: not fitted yet, or another ``kind``.
        """
        check_texts(texts)
        if kind not in ("query", "passage"):
            raise UserError(f"kind must be 'query' or 'passage', not {kind!r}")
        if not self._vocabulary:
            raise UserError("the word vectors are not trained: call fit or load first")
        with torch.no_grad():
            parts = [_sum_words(self._bags(texts[i : i + 4096]), self._vectors_VD, self._log_weights_V) for i in range(0, len(texts), 4096)]
            vectors_ND = torch.cat(parts) if parts else torch.zeros(0, self.config.width)
            return F.normalize(vectors_ND) if normalize else vectors_ND

    def save(self, directory: Path | str) -> None:
        """Write everything to ``directory``, emptied first; the manifest comes last."""
        directory = empty_directory(Path(directory))
        with atomic_path(directory / _TENSORS) as temporary:
            save_file({"vectors": self._vectors_VD, "log_weights": self._log_weights_V}, temporary)
        write_json(directory / _CONFIG, asdict(self.config))
        write_json(directory / _WORDS, list(self._vocabulary))
        write_manifest(directory, kind=_KIND, files=[_TENSORS, _CONFIG, _WORDS])

    @classmethod
    def load(cls, directory: Path | str) -> WordVectors:
        """Read what `save` wrote; UserError where a file is missing, changed or does not fit the others."""
        directory = Path(directory)
        verify_manifest(directory, _KIND)
        try:
            vectors = cls(WordVectorsConfig(**read_json(directory / _CONFIG)))
            vectors._vocabulary = {word: row for row, word in enumerate(read_json(directory / _WORDS))}
            tensors = load_file(directory / _TENSORS)
            vectors._vectors_VD, vectors._log_weights_V = tensors["vectors"], tensors["log_weights"]
        except (TypeError, KeyError, SafetensorError) as error:
            raise UserError(f"{directory}: not word vectors of this version ({error})") from None
        return vectors

    def _learn_vocabulary(self, pairs: Sequence[tuple[str, str]]) -> None:
        config = self.config
        found: Counter[str] = Counter()
        for pair in pairs:
            for text in pair:
                found.update(set(tokenize(text)))
        # by falling frequency, then by word: Counter.most_common would leave ties to the hash seed
        words = sorted((word for word, n in found.items() if n >= config.min_count), key=lambda w: (-found[w], w))
        words = words[: config.max_words]
        if not words:
            raise UserError(f"no word occurs in min_count={config.min_count} texts or more")
        self._vocabulary = {word: row for row, word in enumerate(words)}
        frequency = torch.tensor([found[word] for word in words], dtype=torch.float64) / (2 * len(pairs))
        frequency = torch.cat([frequency, torch.full((config.buckets,), 0.5 / len(pairs), dtype=torch.float64)])
        self._log_weights_V = torch.log(torch.log(1 + 1 / frequency)).float()

    def _row(self, word: str) -> int | None:
        """The word's row of the tables: its own, or that of its bucket."""
        row = self._vocabulary.get(word)
        if row is None and self.config.buckets:
            row = len(self._vocabulary) + zlib.crc32(word.encode("utf-8", "surrogatepass")) % self.config.buckets
        return row

    def _bags(self, texts: Sequence[str]) -> _Bags:
        ids: list[int] = []
        counts: list[int] = []
        starts = [0]
        for text in texts:
            bag: dict[int, int] = {}
            for token in tokenize(text):
                row = self._row(token)
                if row is not None and (row in bag or len(bag) < self.config.max_distinct):
                    bag[row] = bag.get(row, 0) + 1
            ids.extend(bag)
            counts.extend(bag.values())
            starts.append(len(ids))
        damped = 1 + np.log(np.maximum(np.array(counts, dtype=np.float32), 1))  # the fifth occurrence says little
        return _Bags(np.array(ids, dtype=np.int64), damped, np.array(starts, dtype=np.int64))


class _LazyAdam:
    """Adam that updates only the rows of a table with a gradient: a batch of 512 pairs has 1 word in 6."""

    def __init__(self, table: Tensor, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8) -> None:
        self.betas, self.epsilon = betas, epsilon
        self.first, self.second = torch.zeros_like(table), torch.zeros_like(table)
        self.steps = 0

    @torch.no_grad()
    def step(self, table: Tensor, rows: Tensor, gradient: Tensor, rate: float) -> None:
        """Update ``table[rows]``, in place."""
        self.steps += 1
        first = self.first[rows].lerp_(gradient, 1 - self.betas[0])
        second = self.second[rows].lerp_(gradient.square(), 1 - self.betas[1])
        self.first[rows], self.second[rows] = first, second
        scale = rate / (1 - self.betas[0] ** self.steps)
        table[rows] -= scale * first / ((second / (1 - self.betas[1] ** self.steps)).sqrt_() + self.epsilon)


def _joined(parts: Iterable[_Bags]) -> _Bags:
    """Bags one after the other, as one batch."""
    ids, counts, starts = zip(*parts, strict=True)
    ends = np.concatenate([[0], *(np.diff(one) for one in starts)])
    return _Bags(np.concatenate(ids), np.concatenate(counts), np.cumsum(ends))


def _drop(bags: _Bags, share: float, rng: np.random.Generator) -> _Bags:
    kept = rng.random(len(bags.counts), dtype=np.float32) >= share
    return bags._replace(counts=bags.counts * kept)


def _sum_words(bags: _Bags, vectors_VD: Tensor, log_weights_V: Tensor) -> Tensor:
    ids_T = torch.from_numpy(bags.ids)
    weights_T = log_weights_V[ids_T].exp() * torch.from_numpy(bags.counts)
    return F.embedding_bag(ids_T, vectors_VD, torch.from_numpy(bags.starts[:-1]), mode="sum", per_sample_weights=weights_T)
