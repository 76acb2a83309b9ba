"""What is known of public encoders without reading them, so that an experiment is checked offline."""

from __future__ import annotations

#: Sizes of the checkpoints that E5 starts from: layers, width, feed-forward width, vocabulary, positions.
KNOWN_ENCODERS = {
    "microsoft/MiniLM-L12-H384-uncased": (12, 384, 1536, 30522, 512),
    "google-bert/bert-base-uncased": (12, 768, 3072, 30522, 512),
    "google-bert/bert-large-uncased-whole-word-masking": (24, 1024, 4096, 30522, 512),
}
