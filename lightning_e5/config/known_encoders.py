"""What is known of public encoders without reading them, so that an experiment is checked offline."""

from __future__ import annotations

from typing import NamedTuple


class EncoderSizes(NamedTuple):
    """Layers, width, feed-forward width, vocabulary and positions of an encoder.

    gated: its feed-forward has a gate (GeGLU: three matrices for two), no biases, and no table of positions (ModernBERT).
    """

    layers: int
    width: int
    inner: int
    vocabulary: int
    positions: int
    gated: bool = False


#: Sizes of the checkpoints that our experiments start from.
KNOWN_ENCODERS = {
    "microsoft/MiniLM-L12-H384-uncased": EncoderSizes(12, 384, 1536, 30522, 512),
    "google-bert/bert-base-uncased": EncoderSizes(12, 768, 3072, 30522, 512),
    "google-bert/bert-large-uncased-whole-word-masking": EncoderSizes(24, 1024, 4096, 30522, 512),
    "answerdotai/ModernBERT-base": EncoderSizes(22, 768, 1152, 50368, 8192, gated=True),
}
