"""Stage: self-supervised pairs, constructed from the passages of other pairs (crops, neighbours, a text with itself)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from lightning_e5.configurable import configurable
from lightning_e5.ranges import Given
from lightning_e5.stages.build_ccpairs import build_ccpairs
from lightning_e5.types import PairFiles


@configurable("stage")
def signal_pairs(
    out: Path, *, pairs: Path, texts: Annotated[Callable[..., object], Given(positional=1)], signal: Annotated[Callable[..., PairFiles], Given(("texts", "seed"))], seed: int
) -> dict[str, float]:
    """Write the constructed pairs as `build_ccpairs` does, exact copies dropped.

    Args:
        out: the stage's folder.
        pairs: folder of pairs; their passages are the texts.
        texts: partial reader of that folder (`data_modules.ccpairs.sources.signals.texts.StoredPassages`).
        signal: partial source of pairs (a class of `data_modules.ccpairs.sources.signals`); takes texts and seed.
        seed: of every draw.

    Returns:
        The build's counts.
    """
    return build_ccpairs(out, sources=[signal(texts=texts(pairs), seed=seed)], seed=seed)
