"""What the benchmarks share: real text, encoders of given shapes, alternating timing, tables and JSON."""

from __future__ import annotations

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from data_modules.ccpairs.sources.python_docs import PythonDocs
from lightning_e5.memory import keep_freed_memory
from lightning_e5.models.encoder import TextEncoder
from lightning_e5.stages.vocabulary import train_wordpiece
from lightning_e5.text import E5_PREFIXES, TextTokenizer
from lightning_e5.types import TokenBatch

#: name -> layers, width, heads, feed-forward width.
SHAPES = {
    "4x256": (4, 256, 4, 1024),
    "MiniLM-L6": (6, 384, 12, 1536),
    "2x128": (2, 128, 2, 512),
    "MiniLM-L12": (12, 384, 12, 1536),
    "bert-base": (12, 768, 12, 3072),
    "bert-large": (24, 1024, 16, 4096),
}
#: Those that run without padding.
FAMILIES = ("bert", "roberta", "xlm-roberta", "mpnet", "distilbert", "modernbert")
#: BERT's vocabulary: the size of the word-embedding table, whatever the tokenizer uses of it.
VOCABULARY = 30522
TEXT_PACKAGES = ("stdlib", "torch", "transformers", "lightning", "numpy", "networkx", "sympy")


class Pairs(NamedTuple):
    """Tokens of real (query, passage) pairs."""

    tokenizer: TextTokenizer
    query_texts: list[str]
    passage_texts: list[str]
    query_ids: list[np.ndarray]
    passage_ids: list[np.ndarray]

    def batch(self, size: int, step: int = 0) -> tuple[TokenBatch, TokenBatch]:
        """``size`` pairs in random order; pairs repeat where there are fewer."""
        rows = np.random.default_rng(step).permutation(max(size, len(self.query_ids)))[:size] % len(self.query_ids)
        return _packed([self.query_ids[r] for r in rows]), _packed([self.passage_ids[r] for r in rows])


def _packed(texts: list[np.ndarray]) -> TokenBatch:
    lengths = torch.tensor([len(t) for t in texts])
    return TokenBatch(torch.from_numpy(np.concatenate(texts)).long(), lengths)


@cache
def real_pairs(max_length: int = 256, packages: tuple[str, ...] = TEXT_PACKAGES) -> Pairs:
    """The documentation of Python and of packages that every environment here has, tokenised with E5's prefixes."""
    pairs = list(PythonDocs(list(packages), show_progress=False))
    queries, passages = [p.query for p in pairs], [p.passage for p in pairs]
    tokenizer = TextTokenizer(train_wordpiece(queries[::4], passages[::4], 16000), E5_PREFIXES, max_length)
    ids = []
    for texts, kind in ((queries, "query"), (passages, "passage")):
        flat, lengths = tokenizer.encode(texts, kind)  # type: ignore[arg-type]
        ids.append(np.split(flat, np.cumsum(lengths)[:-1]))
    return Pairs(tokenizer, queries, passages, ids[0], ids[1])


def make_encoder(shape: str, tokenizer: TextTokenizer, *, precision: str = "fp32", dropout: float = 0.1, family: str = "bert") -> TextEncoder:
    """An encoder of this shape and family with random weights, always the same; of every family with BERT's vocabulary."""
    import transformers

    layers, width, heads, inner = SHAPES[shape]
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": inner,
        "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout,
    }  # fmt: skip
    if family == "distilbert":
        own: dict[str, Any] = {"vocab_size": VOCABULARY, "dim": width, "n_layers": layers, "n_heads": heads, "hidden_dim": inner, "dropout": dropout, "attention_dropout": dropout}
        backbone: Any = transformers.DistilBertModel(transformers.DistilBertConfig(**own))
    elif family == "modernbert":  # feed-forward layers of 1.5 times the width, as in ModernBERT-base
        own = {**{k: v for k, v in sizes.items() if "prob" not in k}, "intermediate_size": 3 * width // 2, "pad_token_id": 0}
        own |= dict.fromkeys(["embedding_dropout", "attention_dropout", "mlp_dropout"], dropout)
        own |= dict.fromkeys(["bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"], None)  # its own are beyond this vocabulary
        backbone = transformers.ModernBertModel(transformers.ModernBertConfig(**own))
    else:
        config, model = {
            "bert": (transformers.BertConfig, transformers.BertModel), "roberta": (transformers.RobertaConfig, transformers.RobertaModel),
            "xlm-roberta": (transformers.XLMRobertaConfig, transformers.XLMRobertaModel), "mpnet": (transformers.MPNetConfig, transformers.MPNetModel),
        }[family]  # fmt: skip
        backbone = model(config(**sizes, pad_token_id=0), add_pooling_layer=False)
    return TextEncoder(backbone, tokenizer, precision=precision)  # type: ignore[arg-type]


def sentence_transformer(encoder: TextEncoder, folder: Path) -> Any:
    """The same weights as a sentence-transformers model."""
    from sentence_transformers import SentenceTransformer

    encoder.save_pretrained(folder)
    device = str(next(encoder.parameters()).device)
    model = SentenceTransformer(str(folder), device=device, trust_remote_code=False)
    model.max_seq_length = encoder.tokenizer.max_length
    return model


class Timing(NamedTuple):
    """Medians over the rounds, seconds; how many rounds."""

    wall: float
    cpu: float
    rounds: int


def alternate(
    contestants: dict[str, Callable[[], object]], rounds: int, warm_up: int = 1, minutes: float = float("inf")
) -> dict[str, Timing]:
    """Run all contestants in turn, ``rounds`` times, after ``warm_up`` rounds that do not count.

    No round begins that would end after ``minutes``, but one is always counted: where a round takes long, the warm-up is
    left out and there are fewer rounds.
    """
    started, longest = time.monotonic(), 0.0
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for number in range(1 - warm_up, rounds + 1):
        began = time.monotonic()
        if longest and began - started + longest > 60 * minutes:
            break
        for name, run in contestants.items():
            synchronize()
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            synchronize()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
            told(f"round {number}/{rounds}: {name} {time.perf_counter() - wall:.2f} s")
        longest = max(longest, time.monotonic() - began)
    counted = {name: taken[warm_up:] or taken[-1:] for name, taken in times.items()}
    return {n: Timing(statistics.median(w for w, _ in t), statistics.median(c for _, c in t), len(t)) for n, t in counted.items()}


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def told(text: str) -> None:
    """Progress, on stderr."""
    print(f"  {text}", file=sys.stderr, flush=True)


def arguments(description: str, **more: dict[str, Any]) -> argparse.Namespace:
    """The options of every benchmark, ``--threads``, ``--rounds``, ``--json``, and its own; threads are set."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads (default: all cores)")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds; medians are shown (default 5)")
    parser.add_argument("--json", metavar="FILE", help="write one object with machine and rows")
    for name, options in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **options)
    chosen = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(chosen.threads)
    torch.set_flush_denormal(True)
    return chosen


def machine() -> dict[str, Any]:
    """Hardware and versions."""
    from lightning_e5.tracking.run_directory import environment

    found = environment()
    found["packages"]["sentence-transformers"] = __import__("importlib.metadata").metadata.version("sentence-transformers")
    return found


def report(rows: Sequence[dict[str, Any]], file: str | None, **more: Any) -> None:
    """Print the rows as a table; with ``file``, write them with the machine as one JSON object."""
    if rows:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        cells = [columns, *([_shown(row.get(c)) for c in columns] for row in rows)]
        widths = [max(len(r[i]) for r in cells) for i in range(len(columns))]
        for row in cells:
            print("  ".join(v.rjust(w) if i else v.ljust(w) for i, (v, w) in enumerate(zip(row, widths, strict=True))))
    if file:
        Path(file).write_text(json.dumps({"machine": machine(), **more, "rows": list(rows)}, indent=1) + "\n")


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
