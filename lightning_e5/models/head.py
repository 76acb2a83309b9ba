"""What a model does with its token states: pooling, dense layers, unit length, and how two embeddings are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional

from lightning_e5.errors import UserError
from lightning_e5.models.packed.layout import LengthRun
from lightning_e5.models.pooling import POOLING_MODES, pool

Similarity = Literal["cosine", "dot"]


class Dense(nn.Module):
    """A linear layer with its activation, of a text's embedding: ``[B, D] -> [B, E]``.

    ``activation``: name of a module of ``torch.nn`` that is made without arguments; ``residual``: the input, where E is another
    width than D projected, is added to the output.

    Source: sentence-transformers' ``Dense``, whose weights have these names.
    """

    def __init__(self, width: int, out_width: int, *, bias: bool = True, activation: str = "Tanh", residual: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out_width, bias=bias)
        self.activation_function = _activation(activation)
        self.use_residual = residual
        if residual and width != out_width:
            self.residual = nn.Linear(width, out_width, bias=False)

    def forward(self, embeddings_BD: Tensor) -> Tensor:
        """``[B, E]``."""
        output_BE: Tensor = self.activation_function(self.linear(embeddings_BD))
        if not self.use_residual:
            return output_BE
        return output_BE + (self.residual(embeddings_BD) if hasattr(self, "residual") else embeddings_BD)

    @property
    def config(self) -> dict[str, Any]:
        """As sentence-transformers stores it."""
        kind = type(self.activation_function)
        config = {
            "in_features": self.linear.in_features, "out_features": self.linear.out_features, "bias": self.linear.bias is not None,
            "activation_function": f"{kind.__module__}.{kind.__name__}",
        }  # fmt: skip
        return config | ({"use_residual": True} if self.use_residual else {})


def _activation(name: str) -> nn.Module:
    kind = getattr(nn, name, None)
    try:
        made = kind() if isinstance(kind, type) and issubclass(kind, nn.Module) else None
    except TypeError:
        made = None
    if made is None or any(True for _ in made.parameters()):
        raise UserError(f"activation_function: {name!r} is no activation of torch.nn without arguments")
    return made


class UnitLength(nn.Module):
    """Unit rows: ``[B, D] -> [B, D]``."""

    def forward(self, embeddings_BD: Tensor) -> Tensor:
        """Each row over its length."""
        return functional.normalize(embeddings_BD, dim=1)


@dataclass(frozen=True, slots=True)
class HeadSettings:
    """``modes``: ways of pooling, of `POOLING_MODES`; ``include_prompt``: whether the prefix's tokens are pooled; ``normalize``:
    whether the model ends in unit vectors; ``similarity``: of two of its embeddings; ``truncate_dim``: the first values of an
    embedding that are it, None for all of them."""

    modes: tuple[str, ...] = ("mean",)
    include_prompt: bool = True
    normalize: bool = True
    similarity: Similarity = "cosine"
    truncate_dim: int | None = field(default=None, repr=False)


#: Those of E5.
E5_HEAD = HeadSettings()


class EmbeddingHead(nn.Module):
    """From token states to embeddings that are not yet normalised; E5's is the mean and has no weights.

    Args:
        width: D of the token states.
        settings: see `HeadSettings`.
        layers: `Dense` and `UnitLength` modules behind the pooling.
    """

    def __init__(self, width: int, settings: HeadSettings = E5_HEAD, layers: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.settings = settings
        self.layers = nn.ModuleList(layers)
        dense = [layer for layer in layers if isinstance(layer, Dense)]
        #: D before truncation.
        self.full_width = dense[-1].linear.out_features if dense else width * len(settings.modes)

    @property
    def width(self) -> int:
        """D of the embeddings."""
        return self.settings.truncate_dim or self.full_width

    def truncate(self, dimensions: int | None) -> None:
        """Embeddings are their first ``dimensions`` values from now on, or all of them for None; UserError for what cannot be."""
        if dimensions is not None and not 1 <= dimensions <= self.full_width:
            raise UserError(f"truncate_dim: {dimensions} of the {self.full_width} values of an embedding; the rule is from 1 to {self.full_width}")
        self.settings = replace(self.settings, truncate_dim=dimensions)

    @property
    def similarity(self) -> Similarity:
        """How embeddings are compared; the dot product of unit vectors is their cosine, but not that of a part of them."""
        whole = self.settings.truncate_dim is None
        return "cosine" if self.settings.normalize and whole else self.settings.similarity

    def describe(self) -> str:
        """All of it but the weights."""
        whole = repr((self.settings, [layer.config if isinstance(layer, Dense) else "unit" for layer in self.layers]))
        return whole + ("" if self.settings.truncate_dim is None else f" truncate_dim={self.settings.truncate_dim}")

    def forward(self, states_TD: Tensor, runs: Sequence[LengthRun], prompt: int = 0, lengths_B: Tensor | None = None) -> Tensor:
        """``[T, D] -> [B, width]``; ``prompt``: tokens of the prefix, which are left out where the settings say so; ``lengths_B``: see
        `lightning_e5.models.pooling.average_pool`."""
        embeddings_BD = pool(states_TD, runs, self.settings.modes, 0 if self.settings.include_prompt else prompt, lengths_B)
        for layer in self.layers:
            embeddings_BD = layer(embeddings_BD)
        return self.first_values(embeddings_BD)

    def first_values(self, embeddings_BD: Tensor) -> Tensor:
        """What is used of whole embeddings: ``[B, full_width] -> [B, width]``."""
        if self.settings.truncate_dim is None:
            return embeddings_BD
        # sentence-transformers truncates behind its last module, which only a dot product can tell from before it.
        if self.settings.normalize and self.settings.similarity == "dot":
            embeddings_BD = functional.normalize(embeddings_BD, dim=1)
        return embeddings_BD[:, : self.settings.truncate_dim]


def save_head(head: EmbeddingHead, directory: Path, width: int) -> dict[str, Any]:
    """Write the dense layers' weights; returns the other files of sentence-transformers' modules, by name.

    Args:
        head: of an encoder.
        directory: the model folder.
        width: D of the token states.
    """
    from safetensors.torch import save_file

    settings = head.settings
    kinds = ["Transformer", "Pooling", *("Dense" if isinstance(layer, Dense) else "Normalize" for layer in head.layers)]
    kinds += ["Normalize"] if settings.normalize else []
    paths = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds) if number)]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    pooling: dict[str, Any] = {
        "word_embedding_dimension": width,
        "pooling_mode_cls_token": "cls" in settings.modes,
        "pooling_mode_mean_tokens": "mean" in settings.modes,
        "pooling_mode_max_tokens": "max" in settings.modes,
        "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens" in settings.modes,
        "include_prompt": settings.include_prompt,
    }
    rare = {"weightedmean": "pooling_mode_weightedmean_tokens", "lasttoken": "pooling_mode_lasttoken"}
    pooling |= {key: True for mode, key in rare.items() if mode in settings.modes}
    if settings.modes != tuple(mode for mode in POOLING_MODES if mode in settings.modes):
        pooling["pooling_mode"] = list(settings.modes)  # in an order that the keys above cannot say
    files: dict[str, Any] = {"modules.json": modules, "1_Pooling/config.json": pooling}
    for path, layer in zip(paths[2:], [*head.layers, None], strict=False):
        files[f"{path}/config.json"] = layer.config if isinstance(layer, Dense) else {}
        if isinstance(layer, Dense):
            (directory / path).mkdir()
            save_file({name: tensor.contiguous() for name, tensor in layer.state_dict().items()}, directory / path / "model.safetensors")
    return files
