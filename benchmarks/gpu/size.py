"""How large every part is: on a GPU as the paper trains, on a CPU only so large that each part runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lightning_e5.distributed.devices import inference_device

#: The paper's models -> their shapes in `benchmarks.common.SHAPES`.
MODELS = {"E5-small": "MiniLM-L12", "E5-base": "bert-base", "E5-large": "bert-large"}
#: Optimizer steps of the paper's pre-training, its batch, and its pairs.
PAPER_STEPS, PAPER_BATCH, PAPER_PAIRS = 20_000, 32_768, 270_000_000


@dataclass(frozen=True)
class Size:
    """Numbers of one size.

    Args:
        models: name -> shape of encoders whose step is timed.
        batches: pairs of a step.
        peer_batches: model -> the most pairs of the peer's step; its time for a larger batch is scaled up, which its cached loss, linear
            in pairs, allows.
        chunk_tokens: shape -> tokens encoded at once.
        length: tokens of every text of a step.
        texts: texts that are embedded.
        pool, queries: of the filter.
        packages: whose documentation is the real text.
        real_batch, real_steps: of the run through the data module.
        precision: of the encoders.
    """

    name: str
    models: dict[str, str]
    batches: tuple[int, ...]
    peer_batches: dict[str, int]
    peer_mini_batches: tuple[int, ...]
    chunk_tokens: dict[str, int]
    length: int
    texts: int
    encode_batches: tuple[int, ...]
    pool: int
    queries: int
    width: int
    packages: tuple[str, ...]
    real_batch: int
    real_steps: int
    precision: str

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return inference_device("auto" if self.name == "card" else "cpu")


CARD = Size(
    name="card", models=MODELS, batches=(2_048, 32_768), peer_batches={"E5-small": 4_096, "E5-base": 4_096, "E5-large": 2_048}, peer_mini_batches=(128, 512),
    chunk_tokens={"MiniLM-L12": 65_536, "bert-base": 32_768, "bert-large": 16_384}, length=128, texts=20_000, encode_batches=(128, 512),
    pool=1_000_000, queries=100_000, width=384, packages=("stdlib", "torch"), real_batch=2_048, real_steps=12, precision="bf16",
)  # fmt: skip
TOY = Size(
    name="toy", models={"2 layers x 128": "2x128"}, batches=(16, 64), peer_batches={"2 layers x 128": 32}, peer_mini_batches=(16,),
    chunk_tokens={"2x128": 2_048}, length=32, texts=100, encode_batches=(32,), pool=2_000, queries=100, width=64, packages=("omegaconf", "networkx"),
    real_batch=16, real_steps=4, precision="fp32",
)  # fmt: skip
SIZES = {"card": CARD, "toy": TOY}
