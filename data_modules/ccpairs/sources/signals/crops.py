"""Two random crops of one document, each disturbed a little: Contriever's self-supervised pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from data_modules.ccpairs.sources.pair_text import some_of
from data_modules.ccpairs.sources.signals.signal import Signal, check_share
from data_modules.ccpairs.sources.signals.texts import TextFiles
from lightning_e5.configurable import configurable
from lightning_e5.errors import UserError
from lightning_e5.ranges import Count, PositiveShare, Seed, Share

AUGMENTATIONS = ("delete", "replace", "reorder", "insert")


@configurable("pair source")
class RandomCrops(Signal):
    """Two crops of a document, drawn independently, so that they may overlap; every word may be disturbed.

    Crops are runs of words here, of tokens in the paper. Words that replace others or are inserted are drawn from the
    document; the paper's replacements are drawn from the vocabulary, and it has no insertions.

    Args:
        texts: the documents; each is cut into chunks of ``chunk_words``, and each chunk gives one pair.
        name: the pairs' source.
        min_ratio: shortest crop, as a share of its chunk.
        max_ratio: longest crop.
        chunk_words: words of a chunk; the rest of a document is a shorter one.
        min_words: of a chunk.
        min_crop_words: of a crop, where its share would be shorter.
        augment: ``delete`` a word, ``replace`` it by another, ``reorder`` words among each other, ``insert`` another
            word behind it; several are applied in this order.
        probability: that a word is concerned, of each augmentation and for each of the two crops.
        seed: of the draws.

    Raises:
        UserError: a number is out of range, or an augmentation is not known.

    Source: Izacard et al. 2022, section 3.1 and appendix A (chunks of 256 tokens, spans of 5% to 50%, deletion of 10%);
    insertion: Wei & Zou 2019 (10% of the words).
    """

    def __init__(
        self,
        texts: TextFiles,
        *,
        name: str = "crops",
        min_ratio: PositiveShare = 0.1,
        max_ratio: PositiveShare = 0.5,
        chunk_words: Count = 256,
        min_words: Count = 20,
        min_crop_words: Count = 2,
        augment: Sequence[str] = ("delete",),
        probability: Share = 0.1,
        seed: Seed = 0,
    ) -> None:
        chosen = some_of("augment", augment, AUGMENTATIONS) if augment else ()
        super().__init__(
            texts, name, seed, min_ratio=min_ratio, max_ratio=max_ratio, chunk_words=chunk_words, min_words=min_words,
            min_crop_words=min_crop_words, augment=list(chosen), probability=probability,
        )  # fmt: skip
        check_share("min_ratio", min_ratio)
        check_share("max_ratio", max_ratio, low=min_ratio)
        check_share("probability", probability)
        if min_crop_words > min_words:
            raise UserError(f"min_crop_words: {min_crop_words} is more than min_words={min_words}")
        self.min_ratio, self.max_ratio, self.chunk_words, self.min_words = min_ratio, max_ratio, chunk_words, min_words
        self.min_crop_words, self.augment, self.probability = min_crop_words, chosen, probability

    def pairs(self, text: str, draw: np.random.Generator) -> Iterator[tuple[str, str]]:
        """One pair per chunk that is long enough."""
        words = text.split()
        for first in range(0, len(words), self.chunk_words):
            chunk = words[first : first + self.chunk_words]
            if len(chunk) >= self.min_words:
                query, passage = (self._disturbed(self.crop(chunk, draw), chunk, draw) for _ in range(2))
                yield " ".join(query), " ".join(passage)

    def crop(self, words: Sequence[str], draw: np.random.Generator) -> list[str]:
        """A run of the words; its share and then its start are drawn uniformly."""
        share = draw.uniform(self.min_ratio, self.max_ratio)
        length = min(len(words), max(self.min_crop_words, int(len(words) * share)))
        start = int(draw.integers(0, len(words) - length + 1))
        return list(words[start : start + length])

    def _disturbed(self, crop: list[str], chunk: Sequence[str], draw: np.random.Generator) -> list[str]:
        for name in self.augment:
            crop = augmented(crop, name, self.probability, chunk, draw)
        return crop


def augmented(
    words: Sequence[str], name: str, probability: float, others: Sequence[str], draw: np.random.Generator
) -> list[str]:
    """The words after one augmentation; never empty.

    Args:
        words: at least one.
        name: of `AUGMENTATIONS`.
        probability: that a word is concerned.
        others: where new words are drawn from.
        draw: randomness.
    """
    concerned = draw.random(len(words)) < probability
    drawn = [others[row] for row in draw.integers(0, len(others), size=len(words)).tolist()]
    if name == "delete":
        left = [word for word, gone in zip(words, concerned, strict=True) if not gone]
        return left or list(words[:1])
    if name == "replace":
        return [new if changed else word for word, changed, new in zip(words, concerned, drawn, strict=True)]
    if name == "insert":
        return [w for word, more, new in zip(words, concerned, drawn, strict=True) for w in ([word, new] if more else [word])]
    result = list(words)
    places = np.flatnonzero(concerned)
    for place, origin in zip(places.tolist(), draw.permutation(places).tolist(), strict=True):
        result[place] = words[origin]
    return result
