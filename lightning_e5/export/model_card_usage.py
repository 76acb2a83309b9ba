"""The model card's code: programs that run in the exported folder as they stand."""

from __future__ import annotations

from pathlib import Path

from lightning_e5.export.model_card_facts import fenced
from lightning_e5.export.onnx import MODEL
from lightning_e5.text import Prefixes

_QUERY = "how do I read a file?"
_PASSAGES = ("Open the file and go through its lines.", "A graph has nodes and edges.")

_SENTENCE_TRANSFORMERS = """from sentence_transformers import SentenceTransformer

model = SentenceTransformer({place!r}){remark}
queries = model.encode([{query!r}], prompt_name="query")
passages = model.encode({passages!r}, prompt_name="passage")
print(model.similarity(queries, passages))"""

_TRANSFORMERS = """import torch
from transformers import AutoModel, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained({place!r}{side}), AutoModel.from_pretrained({place!r})
texts = {texts!r}
inputs = tokenizer(texts, max_length={length}, padding=True, truncation=True, return_tensors="pt")
with torch.no_grad():
    states = model(**inputs).last_hidden_state
{pooled}
embeddings = torch.nn.functional.normalize(embeddings{first}, dim=1)
print(embeddings[:1] @ embeddings[1:].T)"""

_LANGCHAIN = """from langchain_huggingface import HuggingFaceEmbeddings

embeddings = HuggingFaceEmbeddings(
    model_name={place!r}, query_encode_kwargs={{"prompt_name": "query"}}, encode_kwargs={{"prompt_name": "passage"}}
)
print(len(embeddings.embed_query({query!r})), len(embeddings.embed_documents({passages!r})))"""

_ONNX = """import numpy as np
import onnxruntime
from transformers import AutoTokenizer

tokenizer, session = AutoTokenizer.from_pretrained("."{side}), onnxruntime.InferenceSession({model!r})
texts = {texts!r}
tokens = tokenizer(texts, max_length={length}, padding=True, truncation=True, return_tensors="np")
(states,) = session.run(None, {{one.name: tokens[one.name].astype(np.int64) for one in session.get_inputs()}})
{pooled}{cut}
embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
print(embeddings[:1] @ embeddings[1:].T)"""


#: Pooling -> its line in a program of torch, and in one of numpy.
_POOLED = {
    "mean": (
        'mask = inputs["attention_mask"].unsqueeze(-1)\nembeddings = (states * mask).sum(1) / mask.sum(1)',
        'mask = tokens["attention_mask"][..., None]\nembeddings = (states * mask).sum(1) / mask.sum(1)',
    ),
    "cls": ("embeddings = states[:, 0]", "embeddings = states[:, 0]"),
    "lasttoken": (
        'embeddings = states[torch.arange(len(texts)), inputs["attention_mask"].sum(1) - 1]',
        'embeddings = states[np.arange(len(texts)), tokens["attention_mask"].sum(1) - 1]',
    ),
}


def usage(directory: Path, prefixes: Prefixes, length: int, *, pooling: str | None = "mean", truncate_dim: int | None = None) -> str:
    """The card's section on use.

    Args:
        directory: the exported folder; its ONNX file is shown where it is there.
        prefixes: of queries and passages.
        length: tokens per text at most.
        pooling: ``mean``, ``cls`` or ``lasttoken``; the programs that pool by hand are shown of a model that does nothing else.
        truncate_dim: the first values of an embedding that the folder says are used, None for all.
    """
    texts = [prefixes.query + _QUERY, *(prefixes.passage + passage for passage in _PASSAGES)]
    parts = ["## Use\n"]
    if prefixes.query or prefixes.passage:
        parts.append(f"Queries begin with {_code(prefixes.query)}, passages with {_code(prefixes.passage)}. Texts that are compared with "
                     f"texts of their own kind (similarity, clustering, classification) all begin with {_code(prefixes.query)}.\n")  # fmt: skip
    own = programs(".", prefixes, length, pooling=pooling, truncate_dim=truncate_dim, remark="  # this folder, or the model's name on the Hub")
    titles = {"sentence-transformers": "With sentence-transformers, which puts the prefixes there itself:", "transformers": "With transformers:"}
    shown = {title: own[name] for name, title in titles.items() if name in own}
    if pooling is not None and (directory / MODEL).is_file():
        program = _ONNX.format(
            model=MODEL, texts=texts, length=length, pooled=_POOLED[pooling][1], side=_side(pooling),
            cut="" if truncate_dim is None else f"\nembeddings = embeddings[:, :{truncate_dim}]",
        )  # fmt: skip
        shown["With onnxruntime alone (sentence-transformers: `backend=\"onnx\"`):"] = program
    for title, program in shown.items():
        parts.append(f"{title}\n\n{fenced(program, 'python')}\n")
    return "\n".join(parts)


def programs(
    place: str, prefixes: Prefixes, length: int, *, pooling: str | None = "mean", truncate_dim: int | None = None, remark: str = ""
) -> dict[str, str]:
    """Library -> a program that embeds a query and passages with it: sentence-transformers, LangChain, and transformers alone.

    Args:
        place: the model's folder as the programs name it.
        prefixes, length, pooling, truncate_dim: as `usage`.
        remark: a comment behind the place.
    """
    texts = [prefixes.query + _QUERY, *(prefixes.passage + passage for passage in _PASSAGES)]
    given = {"place": place, "query": _QUERY, "passages": list(_PASSAGES), "texts": texts, "length": length, "remark": remark}
    templates = {"sentence-transformers": _SENTENCE_TRANSFORMERS, "LangChain": _LANGCHAIN}
    if pooling is not None:
        templates["transformers"] = _TRANSFORMERS
        given |= {"pooled": _POOLED[pooling][0], "side": _side(pooling), "first": "" if truncate_dim is None else f"[:, :{truncate_dim}]"}
    return {library: template.format(**given) for library, template in templates.items()}


def _side(pooling: str) -> str:
    """Where tokens are taken by their place, they have to begin the row."""
    return "" if pooling == "mean" else ', padding_side="right"'


def _code(text: str) -> str:
    """A prefix as inline code, readable whatever is in it."""
    shown = repr(text)
    longest = max((len(run) for run in "".join(c if c == "`" else " " for c in shown).split()), default=0)
    ticks = "`" * (longest + 1)
    return f"{ticks}{shown}{ticks}" if longest == 0 else f"{ticks} {shown} {ticks}"
