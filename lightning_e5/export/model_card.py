"""``README.md`` of an exported model: what it is, how it is used, what it was made from and how it was evaluated.

The head is the Hub's metadata, checked by its own classes. Every text that comes from a run is escaped.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lightning_e5.errors import UserError
from lightning_e5.export.model_card_facts import CardFacts, CardResult, card_facts, fenced
from lightning_e5.export.model_card_usage import usage
from lightning_e5.files.storage import read_json, write_text
from lightning_e5.models.folder import stored_settings
from lightning_e5.models.training_record import read_record
from lightning_e5.report.tables.escaping import markdown
from lightning_e5.results.run import RunData
from lightning_e5.text import E5_PREFIXES

CARD = "README.md"
#: A row's task -> the Hub's name of it.
TASKS = {
    "retrieval": "Retrieval", "sts": "STS", "classification": "Classification", "zero-shot": "Classification",
    "clustering": "Clustering", "pair classification": "PairClassification", "re-ranking": "Reranking",
}  # fmt: skip

#: What makes an embedding of a text's token states, in words.
_POOLING = {"mean": "average pooling", "cls": "the state of the first token (CLS) as its embedding", "lasttoken": "the state of the last token as its embedding"}
#: As the Hub writes licenses (SPDX's identifiers in small letters, ``other``) and languages (ISO 639, with a script or region).
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
_LANGUAGE = re.compile(r"(?:[a-z]{2,3}|multilingual|code)(?:-[A-Za-z0-9]{2,8}){0,3}")


def check_metadata(language: str, license: str | None) -> None:
    """UserError for a language or license that the Hub has no such form of."""
    if not _LANGUAGE.fullmatch(language):
        raise UserError(f"--language: {language[:80]!r} is no code of a language, such as en, de or zh-Hans")
    if license is not None and not _LICENSE.fullmatch(license):
        raise UserError(f"--license: {license[:80]!r} is no license as the Hub writes them, such as mit, apache-2.0 or other")


def write_model_card(run: Path, directory: Path, *, language: str = "en", license: str | None = None) -> Path:
    """Write the card of an exported folder, atomically.

    Args:
        run: the run directory that was exported; of a plain model folder the card says how it is used and no more.
        directory: the exported folder.
        language: of the texts, as the Hub writes it (``en``).
        license: as the Hub writes it (``mit``); none is named where it is not given.

    Raises:
        UserError: a damaged run, or metadata that the Hub would not take.
    """
    facts = card_facts(RunData(run)) if (run / "config.yaml").is_file() else None
    text = card_text(directory, facts, language=language, license=license)
    write_text(directory / CARD, text)
    return directory / CARD


def card_text(directory: Path, facts: CardFacts | None, *, language: str = "en", license: str | None = None) -> str:
    """The card as text; arguments as `write_model_card`."""
    check_metadata(language, license)
    name = facts.name if facts is not None else directory.resolve().name
    stored = stored_settings(directory)
    head = _head(name, facts, language, license, truncated=stored.truncate_dim is not None)
    config = read_json(directory / "config.json")
    length, width = stored.max_length or 512, int(config.get("hidden_size") or config.get("dim") or config.get("d_model") or 0)
    unit = "unit vectors" if stored.head.normalize else f"vectors that are compared by {stored.head.similarity}"
    values = stored.build_head(width).width
    size = f"{values} values" if stored.truncate_dim is None else f"{stored.truncate_dim} values (the first of {values})"
    described = f"\n{markdown(facts.description)}\n" if facts is not None and facts.description else ""
    body = [
        f"# {markdown(name)}\n{described}",
        f"A text embedding model of the E5 kind ([arXiv 2212.03533](https://arxiv.org/abs/2212.03533)): one encoder for queries and "
        f"passages, {_POOLING.get(stored.pooling or '', 'its own pooling')}, {unit} of {size}, at most {length} tokens per text.\n",
        *_dimensions(directory, stored.truncate_dim or values),
        usage(directory, stored.prefixes or E5_PREFIXES, length, pooling=stored.pooling, truncate_dim=stored.truncate_dim),
    ]
    if facts is not None:
        body += [_results(facts, stored.truncate_dim), _data(facts), _recipe(facts)]
    body += [_limits(facts, length), *([_origin(facts)] if facts is not None else [])]
    text = f"---\n{head}---\n\n" + "\n".join(body)
    _check(directory, text)
    return text


def _dimensions(directory: Path, values: int) -> list[str]:
    """That the beginnings of its embeddings were trained as embeddings of their own, and how they are used; empty where they were not."""
    record = read_record(directory)
    trained = sorted({d for d in (record.dimensions if record is not None else None) or () if d < values}, reverse=True)
    if not trained:
        return []
    listed = " or ".join(map(str, trained))
    return [
        f"The first {listed} values alone are embeddings, too, once they are of unit length again: its loss was summed over these dimensions "
        f"(Matryoshka, [arXiv 2205.13147](https://arxiv.org/abs/2205.13147)). `SentenceTransformer(..., truncate_dim={trained[-1]})` gives them.\n"
    ]


def _dataset(one: CardResult, truncated: bool) -> dict[str, Any]:
    """The set of a result as the Hub has it; a configuration of it for the dimensions, where what was exported or evaluated is truncated."""
    config = None if one.dimensions is None and not truncated else f"{'all' if one.dimensions is None else one.dimensions} dimensions"
    return {"dataset_type": one.set, "dataset_name": one.set if config is None else f"{one.set} ({config})", "dataset_config": config}


def _head(name: str, facts: CardFacts | None, language: str, license: str | None, *, truncated: bool) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type=TASKS.get(one.task, one.task), **_dataset(one, truncated), dataset_split=one.split,
            metric_type=one.metric.replace("@", "_at_"), metric_name=one.metric, metric_value=one.value,
            metric_args=None if one.low is None else {"interval_95": [one.low, one.high]},
        )
        for one in (facts.results if facts is not None else [])
    ]  # fmt: skip
    data = ModelCardData(
        language=language, license=license, library_name="sentence-transformers", pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "feature-extraction", "text-embeddings", "e5"],
        base_model=facts.base_model if facts is not None else None, model_name=name, eval_results=results or None,
    )  # fmt: skip
    return data.to_yaml().strip() + "\n"


def _check(directory: Path, text: str) -> None:
    """The Hub's own reader takes the card; UserError else."""
    from huggingface_hub import ModelCard

    try:
        ModelCard(text)
    except ValueError as error:
        raise UserError(f"{directory / CARD}: the Hub does not take the card's head ({str(error).splitlines()[0]})") from None


def _results(facts: CardFacts, truncate_dim: int | None) -> str:
    if not facts.results:
        return "## Results\n\nThe run evaluated this model on nothing.\n"
    note = (
        "95% intervals by bootstrap over the test queries (or pairs, texts); they say nothing of the variance between training seeds. "
        "BM25: same queries, same passages, same judgements."
    )
    if truncate_dim is not None and (others := [one for one in facts.results if one.dimensions != truncate_dim]):
        note += f" {len(others)} of the figures are not those of the {truncate_dim} values that this folder gives, but of more or fewer."
    parts = ["## Results\n", facts.results_table().markdown(), f"\n{note}\n", "### How the figures were made\n", facts.validity.markdown()]
    parts += ["\nTruncated: share of the texts with more tokens than the limit. Missing: judged queries without a result, counted as 0. "
              "Qrels of missing documents: judgements of passages outside the collection.\n"]  # fmt: skip
    parts += [f"- {markdown(line)}" for line in facts.remarks] + ([""] if facts.remarks else [])
    return "\n".join(parts)


def _data(facts: CardFacts) -> str:
    parts = ["## Training data\n"]
    if facts.sources.rows:
        parts += [facts.sources.markdown(), ""]
    parts += [f"{markdown(line)}\n" for line in facts.data_notes]
    return "\n".join(parts) if len(parts) > 1 else "## Training data\n\nThe run does not record its sources.\n"


def _recipe(facts: CardFacts) -> str:
    if not facts.recipe.rows:
        return "## Training\n\nThe weights were not trained by this run.\n"
    note = "What is not named has the default of the commit below."
    return "\n".join(["## Training\n", facts.recipe.markdown(), f"\n{note}\n"])


def _limits(facts: CardFacts | None, length: int) -> str:
    lines = [
        f"Texts are cut after {length} tokens, prefix included; what comes later has no influence.",
        "Without the prefix that belongs to a text the vectors are worse: queries and passages each have their own.",
        "Cosines tell which of several passages is nearer; their absolute values are no probabilities, and those of other models are on "
        "another scale.",
    ]
    if facts is not None:
        sets = sorted({one.set for one in facts.results})
        lines.append(f"Evaluated on {', '.join(sets)} only; on other kinds of text it is untested." if sets else "Evaluated on nothing.")
        lines.append(f"One training run with seed {facts.seed}: how much another seed would differ is not part of the figures.")
    else:
        lines.append("Exported from a model folder without a run: its training and its quality are not known here.")
    return "## Limits\n\n" + "\n".join(f"- {markdown(line)}" for line in lines) + "\n"


def _origin(facts: CardFacts) -> str:
    made = facts.environment.markdown()
    return f"## Where it comes from\n\nMade by lightning_e5, a PyTorch Lightning project on E5.\n\n{made}\n\n" + (
        f"The run's configuration, resolved:\n\n{fenced(facts.configuration, 'yaml')}\n"
    )
