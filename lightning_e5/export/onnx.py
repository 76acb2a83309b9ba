"""A model folder's backbone as ``onnx/model.onnx``, and the proof that it computes what the model computes.

The layout is that of sentence-transformers' and optimum's ONNX backends and of transformers.js: inputs ``input_ids``,
``attention_mask`` and, where the model has segments, ``token_type_ids``, all int64 ``[batch, sequence]``; output
``last_hidden_state``, float32 ``[batch, sequence, D]``. Pooling and normalisation are left to the reader of the folder.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_e5.errors import UserError
from lightning_e5.files.storage import atomic_path, naming_the_file, read_json, write_json
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.packed.layout import length_runs
from lightning_e5.types import Kind

#: Where readers look for the model, below its folder.
MODEL = "onnx/model.onnx"
#: Largest difference from torch that is accepted, of a hidden state and of a unit embedding.
TOLERANCE = 1e-4
#: Opset of the file: the newest that onnxruntime-web of transformers.js has had for long.
OPSET = 18
PACKAGES = ("onnx", "onnxscript", "onnxruntime")

#: What both are compared on, from a word to more than a model's length limit.
_SENTENCES = (
    "Trees",
    "how do I read a file line by line",
    "The file is opened and its lines are read one after the other, until there is none left.",
    "Ein Satz, den ein englisches Wörterbuch in viele kleine Stücke zerlegt: 1,234.5 € – 東京.",
    "A queue holds what is still to be done. Who takes something from it does it and comes back for more; where the queue is empty, "
    "the worker waits until something new is put in, or until it is told that nothing will come any more and it may go home.",
)


@dataclass(frozen=True, slots=True)
class OnnxCheck:
    """How far onnxruntime's values are from torch's: ``hidden`` (states of real tokens) and ``embedding`` (unit vectors),
    over ``texts`` texts of ``shortest`` to ``longest`` tokens, one by one and padded together."""

    hidden: float
    embedding: float
    texts: int
    shortest: int
    longest: int

    def text(self) -> str:
        """In words."""
        return (
            f"largest difference from torch {self.hidden:.1e} in hidden states and {self.embedding:.1e} in embeddings, "
            f"over {self.texts} texts of {self.shortest} to {self.longest} tokens"
        )


class _Backbone(nn.Module):
    """The backbone with plain tensors in and out."""

    def __init__(self, backbone: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.backbone, self.names = backbone, names

    def forward(self, *inputs: Tensor) -> Tensor:
        states: Tensor = self.backbone(**dict(zip(self.names, inputs, strict=True))).last_hidden_state
        return states


def require_onnx() -> None:
    """UserError for the packages of the export that are not installed."""
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        raise UserError(f"--onnx: needs the package {' and '.join(absent)}, which is not installed (pip install {' '.join(absent)})")


def export_onnx(directory: Path | str) -> OnnxCheck:
    """Write ``onnx/model.onnx`` into a model folder and compare it with the folder's own weights.

    Args:
        directory: as `TextEncoder.save_pretrained` writes it.

    Raises:
        UserError: a package is missing, the model is too large for one file, or the outputs differ by more than
            `TOLERANCE` (the file is then not written).
    """
    require_onnx()
    encoder = TextEncoder.from_pretrained(directory).cpu()
    backbone = encoder.backbone
    if sum(p.numel() * p.element_size() for p in backbone.parameters()) >= 2**31 - 2**24:
        raise UserError(f"{directory}: an ONNX file holds at most 2 GiB, and the weights are more")
    if hasattr(backbone, "set_attn_implementation"):
        backbone.set_attn_implementation("eager")  # its attention mask is plain arithmetic, for every batch and length
    names = input_names(backbone)
    path = Path(directory) / MODEL
    with naming_the_file(path), atomic_path(path) as temporary:
        _write(_Backbone(backbone, names).eval(), names, temporary)
        found = check_onnx(temporary, encoder)
        if not max(found.hidden, found.embedding) <= TOLERANCE:  # NaN is refused too
            raise UserError(f"{path}: onnxruntime does not give torch's values: {found.text()}; the rule is {TOLERANCE:.0e}")
    settings = Path(directory) / "tokenizer_config.json"
    if settings.is_file():  # the folder's tokenizer gives what the file takes
        write_json(settings, {**read_json(settings), "model_input_names": names})
    return found


def input_names(backbone: Any) -> list[str]:
    """The inputs of the model's file."""
    segments = int(getattr(backbone.config, "type_vocab_size", 0) or 0) > 1
    return ["input_ids", "attention_mask", *(["token_type_ids"] if segments else [])]


def check_onnx(path: Path | str, encoder: TextEncoder) -> OnnxCheck:
    """Compare a file's outputs with the encoder's, text by text and in a padded batch.

    Raises:
        UserError: onnxruntime cannot read the file.
    """
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # the library's exceptions have no common class
        raise UserError(f"{path}: onnxruntime cannot read it ({str(error).splitlines()[0]})") from None
    long = " ".join(_SENTENCES)
    texts = [*_SENTENCES, long, " ".join([long] * (1 + encoder.tokenizer.max_length // 64))]
    hidden = embedding = 0.0
    counts: list[int] = []
    kinds: tuple[Kind, Kind] = ("query", "passage")
    for kind in kinds:
        ids, lengths = encoder.tokenizer.encode(texts, kind)
        rows = np.split(ids, np.cumsum(lengths)[:-1])
        expected_ND = encoder.embed(texts, kind).numpy()
        for batch in (*([number] for number in range(len(texts))), list(range(len(texts)))):
            inputs = _inputs([rows[number] for number in batch], encoder)
            (states_BLD,) = session.run(None, {one.name: inputs[one.name] for one in session.get_inputs()})
            mask_BL = inputs["attention_mask"]
            own_BLD = _states(encoder, inputs)
            hidden = max(hidden, float(np.abs(states_BLD - own_BLD)[mask_BL.astype(bool)].max()))
            unit_BD = _embeddings(encoder, states_BLD[mask_BL.astype(bool)], mask_BL.sum(1).tolist(), kind)
            embedding = max(embedding, float(np.abs(unit_BD - expected_ND[batch]).max()))
        counts += lengths.tolist()
    return OnnxCheck(hidden, embedding, 2 * len(texts), min(counts), max(counts))


@torch.inference_mode()
def _embeddings(encoder: TextEncoder, states_TD: np.ndarray, lengths: Sequence[int], kind: Kind) -> np.ndarray:
    """Unit rows of the encoder's own pooling and layers over these states."""
    pooled_BD = encoder.head(torch.from_numpy(states_TD), length_runs(lengths), encoder.tokenizer.prompt_length(kind))
    found: np.ndarray = nn.functional.normalize(pooled_BD, dim=1).numpy()
    return found


def _write(module: _Backbone, names: Sequence[str], path: Path) -> None:
    example = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in names)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # remarks of the exporter on its own parts
        shapes = tuple({0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=_positions(module.backbone))} for _ in names)
        torch.onnx.export(
            module, example, str(path), input_names=list(names), output_names=["last_hidden_state"], opset_version=OPSET,
            dynamo=True, dynamic_shapes=(shapes,), external_data=False, verbose=False,
        )  # fmt: skip


def _positions(backbone: Any) -> int:
    return int(getattr(backbone.config, "max_position_embeddings", 1 << 16))


def _inputs(rows: Sequence[np.ndarray], encoder: TextEncoder) -> dict[str, np.ndarray]:
    """int64 ``[B, L]`` each, padded at the end."""
    padding = int(getattr(encoder.backbone.config, "pad_token_id", 0) or 0)
    longest = max(len(row) for row in rows)
    ids_BL = np.full((len(rows), longest), padding, dtype=np.int64)
    mask_BL = np.zeros_like(ids_BL)
    for number, row in enumerate(rows):
        ids_BL[number, : len(row)] = row
        mask_BL[number, : len(row)] = 1
    return {"input_ids": ids_BL, "attention_mask": mask_BL, "token_type_ids": np.zeros_like(ids_BL)}


@torch.inference_mode()
def _states(encoder: TextEncoder, inputs: dict[str, np.ndarray]) -> np.ndarray:
    names = input_names(encoder.backbone)
    states: Tensor = encoder.backbone(**{name: torch.from_numpy(inputs[name]) for name in names}).last_hidden_state
    found: np.ndarray = states.float().numpy()
    return found
