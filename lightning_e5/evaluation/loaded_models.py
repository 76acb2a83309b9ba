"""The models of an evaluation, with what must be known to read their figures: prefixes, length limit, precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_e5.curation.engines.encoder import EncoderOnEngine, TasksOn
from lightning_e5.curation.engines.inference import EmbedTexts
from lightning_e5.distributed.devices import Precision, runs_in_bf16
from lightning_e5.errors import UserError, suggestion
from lightning_e5.evaluation.baselines.fusion import FusedModels, all_trainings
from lightning_e5.evaluation.baselines.word_vectors import WordVectors
from lightning_e5.evaluation.beir.retrieval import Searcher
from lightning_e5.evaluation.truncated import TruncatedEncoder, WholeEmbeddings
from lightning_e5.files.storage import check_component
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.models.folder import stored_settings
from lightning_e5.models.reference import model_folder
from lightning_e5.models.training_record import TrainingRecord, read_record, record_of
from lightning_e5.result_row import TextsRead
from lightning_e5.text import Prefixes, TextTokenizer
from lightning_e5.types import Embedder, Kind, compares_by_cosine

#: Folder of averaged word vectors inside their stage's.
_WORD_VECTORS = "word_vectors"


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to be evaluated.

    ``model``: has ``embed`` or ``retrieve``; ``training``: what its weights were trained on, None where that is not known;
    ``prefix_ablation``: whether other prefixes are put before the texts than the model's own.
    """

    model: Any
    training: TrainingRecord | None = None
    prefix_ablation: bool = False

    @property
    def embeds(self) -> bool:
        """Whether it can be evaluated on tasks beside retrieval."""
        return hasattr(self.model, "embed")

    def texts_read(self, texts: Mapping[Kind, Sequence[str]]) -> TextsRead:
        """How it reads the texts that are embedded as queries and as passages."""
        if not isinstance(self.model, TextEncoder):
            return TextsRead(precision="fp32" if self.embeds else None)
        tokenizer = self.model.tokenizer
        longer = sum(_longer(tokenizer, part, kind) for kind, part in texts.items())
        total = sum(len(part) for part in texts.values())
        bf16 = runs_in_bf16(self.model.precision, next(self.model.parameters()).device)
        return TextsRead(
            {kind: tokenizer.prefixes.of(kind) for kind in texts}, tokenizer.max_length, longer / total if total else 0.0,
            "bf16" if bf16 else "fp32", "cosine" if compares_by_cosine(self.model) else "dot", self.prefix_ablation, self.model.head.settings.truncate_dim,
        )  # fmt: skip


@dataclass(frozen=True)
class ModelSpec:
    """A model to evaluate.

    Args:
        name: under which its results are kept and shown.
        model: a model folder or one that holds such a folder as ``encoder``, a stage's folder of word vectors, or an object with
            ``embed`` or ``retrieve`` (BM25).
        precision: of an encoder's backbone.
        prefixes: put before an encoder's texts; those that its folder stores by default.
        max_length: tokens per text of an encoder; what its folder stores by default.
        prefix_ablation: allow prefixes other than a folder's own.
        truncate_dim: the first values of an encoder's embeddings that are compared; what its folder stores by default.
        tasks_on: where an encoder embeds many texts; None for here.
    """

    name: str
    model: Path | Searcher | Embedder
    precision: Precision = "bf16-gpu"
    prefixes: Prefixes | None = None
    max_length: int | None = None
    prefix_ablation: bool = False
    truncate_dim: int | None = None
    tasks_on: TasksOn | None = None

    def load(self) -> LoadedModel:
        """The model; UserError for a folder that holds none, or prefixes other than those stored."""
        if not isinstance(self.model, Path):
            return LoadedModel(self.model, record_of(self.model))
        if (words := self.model / _WORD_VECTORS).is_dir():
            if self.truncate_dim is not None:
                raise UserError(f"{words}: truncate_dim: averaged word vectors have no dimensions that can be left out; name encoders")
            return LoadedModel(WordVectors.load(words), read_record(words))
        directory = encoder_directory(self.model)
        if not directory.is_dir():
            raise UserError(f"{directory}: no such model folder")
        own, given = stored_settings(directory).prefixes, self.prefixes
        differs = given is not None and own is not None and given != own
        if differs and not self.prefix_ablation:
            assert given is not None and own is not None
            raise UserError(
                f"{directory}: the model stores the prefixes {own.query!r} and {own.passage!r}, not {given.query!r} and "
                f"{given.passage!r}; its figures would not be its own (prefix_ablation allows it and labels the rows)"
            )
        by = EmbedTexts(directory, self.max_length, self.precision, prefixes=given, truncate_dim=self.truncate_dim)
        encoder = by.model if self.tasks_on is None else EncoderOnEngine.of(by, self.tasks_on)
        return LoadedModel(encoder, read_record(directory), differs)


def load_models(specs: Sequence[ModelSpec] | Mapping[str, str | Path | Searcher | Embedder]) -> dict[str, LoadedModel]:
    """The models by name, in their order; UserError for none, or as `ModelSpec.load` and `model_folder`."""
    if isinstance(specs, Mapping):
        specs = [ModelSpec(name, model_folder(model) if isinstance(model, str) else model) for name, model in specs.items()]
    models = _loaded(specs)
    if not models:
        raise UserError("evaluate: no model to evaluate (give encoders, word_vectors or baselines)")
    for name in models:
        if check_component(name, "evaluate: a model").endswith(".json"):
            raise UserError(f"evaluate: a model: {name!r} could be the name of a table; give it another")
    return models


def _loaded(specs: Sequence[ModelSpec]) -> dict[str, LoadedModel]:
    """Each by itself, but for those that differ in their dimensions alone: they share one encoder, and what it embeds."""
    encoders = [replace(spec, name="", truncate_dim=None) if isinstance(spec.model, Path) and spec.truncate_dim is not None else None for spec in specs]
    models: dict[str, LoadedModel] = {}
    shared: dict[ModelSpec, tuple[LoadedModel, WholeEmbeddings]] = {}
    for spec, encoder in zip(specs, encoders, strict=True):
        if encoder is None or encoders.count(encoder) == 1:
            models[spec.name] = spec.load()
            continue
        if encoder not in shared:
            loaded = spec.load()
            shared[encoder] = (loaded, WholeEmbeddings(loaded.model))
        loaded, whole = shared[encoder]
        try:
            models[spec.name] = replace(loaded, model=TruncatedEncoder(whole, spec.truncate_dim or 0))
        except UserError as error:
            raise UserError(f"{spec.model}: {error}") from None
    return models


def fused_models(fusions: Mapping[str, Sequence[str]], loaded: Mapping[str, LoadedModel]) -> dict[str, LoadedModel]:
    """The fusions by name; UserError for a name that is taken, fewer than two models, or one that is not evaluated."""
    found = {}
    for name, members in fusions.items():
        check_component(name, "evaluate.fusions: a fusion")
        if name in loaded:
            raise UserError(f"evaluate.fusions: two models are named {name!r}")
        if isinstance(members, str) or len({*members}) < 2:
            raise UserError(f"evaluate.fusions: {name!r} needs at least 2 models, not {members!r}")
        for member in members:
            if member not in loaded:
                raise UserError(f"evaluate.fusions: {name!r}: {member!r} is not one of the models{suggestion(member, loaded)}")
        found[name] = LoadedModel(FusedModels(members), all_trainings([loaded[member].training for member in members]))
    return found


def encoder_directory(folder: Path) -> Path:
    """The encoder's folder inside a stage's; ``folder`` itself where it holds none."""
    return folder / "encoder" if (folder / "encoder").is_dir() else folder


def given_prefixes(given: Mapping[str, str] | None, key: str = "prefixes") -> Prefixes | None:
    """Prefixes as a YAML has them; UserError, naming ``key``, for other keys than ``query`` and ``passage``."""
    if given is None:
        return None
    if set(given) != {"query", "passage"}:
        raise UserError(f"{key}: needs the keys query and passage, not {', '.join(map(str, given)) or 'none'}")
    return Prefixes(given["query"], given["passage"])


def _longer(tokenizer: TextTokenizer, texts: Sequence[str], kind: Kind) -> int:
    """How many texts have more tokens than the limit: those that fill one token more."""
    wider = tokenizer.cut_at(tokenizer.max_length + 1)
    step = 32768
    return sum(int((wider.encode(texts[i : i + step], kind)[1] > tokenizer.max_length).sum()) for i in range(0, len(texts), step))


def chosen_on(identity: str, name: str, models: Mapping[str, LoadedModel], allowed: bool) -> list[str]:
    """The models whose weights a validation on a set has chosen.

    Args:
        identity: of the set's items (see `lightning_e5.evaluation.tasks.task.items_identity`).
        name: of the set.
        models: by name.
        allowed: whether they may be evaluated on it.

    Raises:
        UserError: there is one, and it is not allowed.
    """
    found = [model for model, loaded in models.items() if loaded.training is not None and identity in loaded.training.selected_on]
    if found and not allowed:
        raise UserError(
            f"{name}: chose the step whose weights {found[0]} has, so its figure there says little of other texts; evaluate on another "
            "split or set, or say that it is meant (--selected-on-this, in a YAML selected_on_this: true): the row will say so"
        )
    return found
