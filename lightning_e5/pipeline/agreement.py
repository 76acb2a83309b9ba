"""What stages give each other, as far as their configuration tells: files, lengths, negatives, scores, rows.

Each stage says what is known of its result (`Facts`), and is held against what is known of its inputs. A stage of the
user's own, and a path, are unknown: they agree with everything.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_e5.config.annotations import arguments_of
from lightning_e5.config.experiment import Node, outside_path
from lightning_e5.config.known_encoders import KNOWN_ENCODERS
from lightning_e5.configurable import resolve_target
from lightning_e5.errors import UserError, suggestion
from lightning_e5.result_row import evaluated_encoders

#: Arguments by which stages take another's result, and what it has to be.
_WANTED = {"encoder": "encoder", "tokens": "tokens", "ranked": "ranked", "keep": "keep", "pairs": "pairs", "teacher": "cross encoder", "validation_collections": "collection"}


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a stage's result; None is not known.

    makes: place in its folder (empty: the folder) -> what lies there. rows: pairs or queries, at most. negatives: of every
    query, at least. scores, retriever_scores: whether a teacher's, or the retriever's, stand beside them. max_length,
    positions, width: of the encoder.
    """

    makes: Mapping[str, str] | None = None
    rows: int | None = None
    negatives: int | None = None
    scores: bool | None = None
    retriever_scores: bool | None = None
    max_length: int | None = None
    positions: int | None = None
    width: int | None = None


@dataclass(frozen=True, slots=True)
class _Stage:
    """A stage's node, the defaults of its arguments, and what is known of the stages before it."""

    key: str
    node: Node
    before: Mapping[str, Facts]
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def value(self, name: str) -> Any:
        return self.node.get(name, self.defaults.get(name))

    def inputs(self, name: str) -> list[Facts]:
        """Of all stages that an input names."""
        return [self.of(reference) for reference in _references((self.node.get("inputs") or {}).get(name))]

    def input(self, name: str) -> Facts:
        found = self.inputs(name)
        return found[0] if len(found) == 1 else Facts()

    def of(self, reference: str) -> Facts:
        return Facts() if outside_path(reference) is not None else self.before.get(reference.partition("/")[0], Facts())

    def refuse(self, argument: str, rule: str) -> UserError:
        return UserError(f"{self.key}.{argument}: {rule}")


def check_agreement(experiment: Node) -> None:
    """UserError where a stage is given what it cannot use, or wants what the stages before it do not make.

    The stages' own arguments have been checked before.
    """
    before: dict[str, Facts] = {}
    for name, node in experiment["stages"].items():
        target = resolve_target(node["_target_"], f"stages.{name}", "stage")
        stage = _Stage(f"stages.{name}", node, before, _defaults(target))
        for argument, wanted in _WANTED.items():
            for reference in _references((node.get("inputs") or {}).get(argument)):
                _check_place(stage, argument, reference, wanted)
        known = _STAGES.get(f"{target.__module__}.{target.__qualname__}")
        before[name] = known(stage) if known is not None else Facts()


def _defaults(target: Callable[..., Any]) -> dict[str, Any]:
    return {name: p.default for name, p in arguments_of(target)[0].items() if p.default is not inspect.Parameter.empty}


def _references(inputs: Any) -> list[str]:
    if isinstance(inputs, dict):
        return [reference for value in inputs.values() for reference in _references(value)]
    return [inputs] if isinstance(inputs, str) else []


def _check_place(stage: _Stage, argument: str, reference: str, wanted: str) -> None:
    makes = stage.of(reference).makes
    place = reference.partition("/")[2]
    if makes is None or (found := makes.get(place)) == wanted:
        return
    right = [f"{reference.partition('/')[0]}/{p}".rstrip("/") for p, what in makes.items() if what == wanted]
    hint = f"; it is {right[0]!r}" if right else suggestion(place, [p for p in makes if p])
    what = f"is {'a ' if found[0] not in 'aeiou' else 'an '}{found}" if found else "is nothing that this stage makes"
    raise stage.refuse(f"inputs.{argument}", f"{reference!r} {what}, where {argument} has to be of the kind {wanted!r}{hint}")


def _least(values: Iterable[int | None]) -> int | None:
    return min((v for v in values if v is not None), default=None)


def _check_length(stage: _Stage, argument: str, most: int | None, of: str) -> None:
    length = stage.value(argument)
    if length is not None and most is not None and length > most:
        raise stage.refuse(argument, f"{length} tokens are more than the {most} {of}")


def _build_pairs(stage: _Stage) -> Facts:
    return Facts({"": "pairs", "pairs.parquet": "pairs", "test": "collection"}, rows=stage.value("max_pairs"))


def _own_pairs(stage: _Stage) -> Facts:
    return replace(_build_pairs(stage), makes={"": "pairs", "test": "collection", "validation": "collection", "ranked.parquet": "ranked"})


def _new_encoder(stage: _Stage, spec: Any) -> Facts:
    """Of an encoder that a node (or none) specifies."""
    if not isinstance(spec, dict) or "_target_" not in spec:
        return Facts()
    values = {**_defaults(resolve_target(spec["_target_"], stage.key)), **spec}
    sizes = KNOWN_ENCODERS.get(values["pretrained"]) if values.get("pretrained") else (0, values.get("hidden_size"), 0, 0, values.get("max_positions"))
    width, positions = (None, None) if sizes is None else (sizes[1], sizes[4])
    length = values.get("max_length")
    if length is not None and positions is not None and length > positions:
        raise stage.refuse("encoder" if "encoder" in stage.node else "spec", f"max_length: {length} tokens are more than the {positions} positions")
    return Facts(max_length=length, positions=positions, width=width)


def _vocabulary(stage: _Stage) -> Facts:
    made = _new_encoder(stage, stage.value("encoder"))
    _check_length(stage, "train_length", made.max_length, "that the encoder reads (max_length)")
    return replace(made, makes={"encoder": "encoder", "tokens": "tokens"}, rows=stage.input("pairs").rows)


def _tokens(stage: _Stage) -> Facts:
    made = _new_encoder(stage, stage.value("spec"))
    return replace(made, makes={"tokens": "tokens"} | ({"encoder": "encoder"} if stage.value("spec") else {}), rows=stage.input("pairs").rows)


def _consistency_filter(stage: _Stage) -> Facts:
    _check_length(stage, "max_length", stage.input("encoder").positions, "positions of the encoder")
    if stage.value("k") > stage.value("pool_size"):
        raise stage.refuse("k", f"{stage.value('k')} is more than the {stage.value('pool_size')} passages of the pool (pool_size)")
    return Facts({"ranks.parquet": "keep"}, rows=stage.input("pairs").rows)


def _draw_pairs(stage: _Stage) -> Facts:
    count, rows = stage.value("count"), _least([stage.input("pairs").rows, stage.input("keep").rows])
    if count is not None and rows is not None and count > rows:
        raise stage.refuse("count", f"{count:,} pairs are more than the {rows:,} that there can be")
    return Facts({"keep.parquet": "keep"}, rows=_least([count, rows]))


def _pretrain(stage: _Stage) -> Facts:
    rows = _least([stage.input("tokens").rows, stage.input("keep").rows])
    _check_training(stage, rows, "pairs")
    return replace(stage.input("encoder"), makes={"encoder": "encoder"}, rows=rows)


def _finetune(stage: _Stage) -> Facts:
    encoder, ranked = stage.input("encoder"), stage.inputs("ranked")
    _check_length(stage, "max_length", encoder.positions, "positions of the encoder")
    length = stage.value("max_length") or encoder.max_length
    _check_length(stage, "train_length", length, "that the encoder reads afterwards (max_length)")
    from lightning_e5.modules.distilled import DistilledModule

    module = resolve_target(stage.node["module"]["_target_"], stage.key)
    _check_groups(stage, ranked, least=int(issubclass(module, DistilledModule)))  # type: ignore[arg-type]
    alone = ranked and all(r.scores is False for r in ranked) and not stage.node["module"].get("without_teacher")
    if alone and issubclass(module, DistilledModule):  # type: ignore[arg-type]
        rule = f"{module.__name__} distils a teacher's scores, and no stage of inputs.ranked gives any"
        raise stage.refuse("module", f"{rule} (a teacher_scores stage does; where that is meant: without_teacher: true)")
    return Facts({"encoder": "encoder"}, max_length=length, positions=encoder.positions, width=encoder.width)


def _teacher(stage: _Stage) -> Facts:
    encoder = stage.input("encoder")
    length = stage.value("max_length") or encoder.max_length
    if length is not None and encoder.positions is not None and 2 * length - 1 > encoder.positions:
        rule = f"two texts of {length} tokens do not fit the {encoder.positions} positions of the encoder; the most is {(encoder.positions + 1) // 2}"
        raise stage.refuse("max_length", rule)
    _check_groups(stage, stage.inputs("ranked"), least=1)
    return Facts({"": "cross encoder", "cross_encoder": "cross encoder"}, max_length=length, positions=encoder.positions)


def _teacher_scores(stage: _Stage) -> Facts:
    ranked = stage.input("ranked")
    if stage.value("retriever_scale") and ranked.retriever_scores is False:
        raise stage.refuse("retriever_scale", "the stage of inputs.ranked keeps no scores by which its passages were retrieved (hard_negatives does)")
    return replace(ranked, makes=_RANKED, scores=True)


_RANKED = {"": "ranked", "ranked.parquet": "ranked"}


def _hard_negatives(stage: _Stage) -> Facts:
    from lightning_e5.curation.mining.hard_negatives import NegativeRules

    _check_length(stage, "max_length", stage.input("encoder").positions, "positions of the encoder")
    try:
        NegativeRules(*(stage.value(name) for name in ("count", "first_rank", "last_rank", "absolute_margin", "relative_margin")))
    except UserError as error:
        raise UserError(f"{stage.key}: {error}") from None
    rows = _least([stage.value("max_queries"), stage.input("pairs").rows, stage.input("keep").rows])
    return Facts(_RANKED, rows=rows, negatives=stage.value("count"), scores=False, retriever_scores=True)


def _ranked_data(stage: _Stage) -> Facts:
    source = stage.value("source")
    target = resolve_target(source["_target_"], stage.key)
    scores = {**_defaults(target), **source}.get("teacher_scores", False) if target.__module__.startswith("data_modules.") else None
    return Facts({**_RANKED, "collection": "collection"}, negatives=stage.value("negatives"), scores=scores, retriever_scores=False)


def _check_groups(stage: _Stage, ranked: list[Facts], *, least: int) -> None:
    """The groups of a training on ranked passages: enough negatives and rows in all files."""
    data = stage.node["data"]
    wanted = {**_defaults(resolve_target(data["_target_"], stage.key)), **data}.get("negatives")
    given = _least(r.negatives for r in ranked)
    if wanted is not None and wanted < least:
        raise stage.refuse("data.negatives", f"{wanted} leaves nothing to rank the positive above; the rule is >= {least}")
    if wanted is not None and given is not None and given < wanted:
        raise stage.refuse("data.negatives", f"{wanted} negatives of each query are wanted, and the stage of inputs.ranked gives {given}")
    rows = [r.rows for r in ranked]
    _check_training(stage, None if not rows or None in rows else sum(rows), "queries")  # type: ignore[arg-type]


def _hold_out(stage: _Stage) -> int:
    own, validation = stage.node["data"].get("hold_out", 0), stage.node.get("validation") or {}
    of_validation = (validation.get("pairs") or {}).get("hold_out", 0)
    if own and of_validation:
        raise stage.refuse("validation.pairs.hold_out", "data.hold_out holds rows out, too; give one of them")
    if not validation and (stage.node.get("inputs") or {}).get("validation_collections"):
        raise stage.refuse("inputs.validation_collections", "needs validation, too: when is validated, such as every_n_steps: 500")
    return int(own or of_validation)


def _check_training(stage: _Stage, rows: int | None, what: str) -> None:
    """Steps, warm-up and batch of a training on at most ``rows``, of which some may be held out."""
    data, optimizer = stage.node["data"], stage.node["optimizer"]
    width, most = stage.input("encoder").width, max(stage.node["module"].get("dimensions") or [0])
    if width is not None and most > width:
        raise stage.refuse("module.dimensions", f"{most} is above the {width} values of the encoder's embeddings")
    batch, steps, epochs = data.get("batch_size"), data.get("max_steps"), data.get("epochs")
    hold_out = _hold_out(stage)
    rows = None if rows is None else rows - hold_out
    if rows is not None and batch is not None and rows < batch:
        raise stage.refuse("data.batch_size", f"{batch:,} {what} are more than the {max(0, rows):,} that there can be{f' ({hold_out} are held out)' if hold_out else ''}")
    if steps is None and None not in (epochs, batch, rows):
        steps = max(1, math.ceil(epochs * rows / batch))
    warmup = optimizer.get("warmup_steps", 0)
    if steps is not None and warmup > steps:
        raise stage.refuse("optimizer.warmup_steps", f"{warmup:,} steps of warm-up are more than the {steps:,} of the training")


def _evaluate(stage: _Stage) -> Facts:
    from lightning_e5.evaluation.beir.metrics import parse_metric

    inputs = stage.node.get("inputs") or {}
    models = [*evaluated_encoders(stage.node), *(stage.value("baselines") or {}), *(stage.value("fusions") or {}), *(["word-vectors"] if "word_vectors" in inputs else [])]
    if not models:
        raise UserError(f"{stage.key}: names no model to evaluate (encoders, word_vectors or baselines)")
    named = [("reference", name) for name in [stage.value("reference")] if name is not None]
    for model, others in (stage.value("previous") or {}).items():
        named += [("previous", name) for name in (model, *([others] if isinstance(others, str) else others))]
    for argument, name in named:
        if name not in models:
            raise stage.refuse(argument, f"{name!r} is not one of the models{suggestion(name, models)}")
    for name in stage.value("metrics"):
        try:
            cut = parse_metric(name)[1]
        except UserError as error:
            raise stage.refuse("metrics", str(error)) from None
        if cut > stage.value("k"):
            raise stage.refuse("k", f"{stage.value('k')} passages per query cannot be evaluated by {name}")
    _check_length(stage, "max_length", _least(f.positions for f in stage.inputs("encoders")), "positions of an encoder")
    return Facts()


_STAGES: dict[str, Callable[[_Stage], Facts]] = {
    f"lightning_e5.stages.{place}": known
    for place, known in {
        "build_pairs.build_pairs": _build_pairs, "own_pairs.own_pairs": _own_pairs, **dict.fromkeys(("build_ccpairs.build_ccpairs", "signal_pairs.signal_pairs"), lambda stage: Facts({"": "pairs"})),
        "vocabulary.vocabulary": _vocabulary, "vocabulary.tokens": _tokens, "consistency_filter.consistency_filter": _consistency_filter,
        "draw_pairs.draw_pairs": _draw_pairs, "draw_pairs.draw_collection": lambda stage: Facts({"": "collection"}), "pretrain.pretrain": _pretrain, "finetune.finetune": _finetune, "teacher.teacher": _teacher,
        "teacher.teacher_scores": _teacher_scores, "hard_negatives.hard_negatives": _hard_negatives, "ranked_data.ranked_data": _ranked_data,
        "evaluate.evaluate": _evaluate,
    }.items()
}  # fmt: skip
