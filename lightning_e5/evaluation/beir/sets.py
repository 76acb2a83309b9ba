"""BEIR's public sets: where they are, what proves a download, and the rules of each that decide a score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_e5.errors import UserError, suggestion
from lightning_e5.types import Kind

#: Where BEIR's authors publish the archives.
BEIR_ADDRESS = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets"
_FORUMS = ("android", "english", "gaming", "gis", "mathematica", "physics",
           "programmers", "stats", "tex", "unix", "webmasters", "wordpress")  # fmt: skip


@dataclass(frozen=True, slots=True)
class BeirSet:
    """One set.

    name: of the archive and of the folder in it. md5: of the archive, as BEIR's authors publish it. queries: judged ones
    of ``split``, as they publish it. split: that the benchmark is scored on. forums: folders that are searched one by
    one and count as one set by the mean of their scores. passage_kind: prefix of the documents. text_only: titles are
    left out. queries_are_documents: the queries lie in the corpus under their own ids, and each is left out of its own
    results; of the other sets, whose ids may be equal by chance, only where the texts are (BEIR's package goes by ids alone).
    """

    name: str
    md5: str
    queries: int
    split: str = "test"
    forums: tuple[str, ...] = ()
    passage_kind: Kind = "passage"
    text_only: bool = False
    queries_are_documents: bool = False

    @property
    def address(self) -> str:
        """Of the archive."""
        return f"{BEIR_ADDRESS}/{self.name}.zip"


#: Name -> facts of the 15 public sets. Sources: BEIR's list of data sets (checksums, queries); E5 paper section 4.2 and its
#: published evaluation (Quora's questions are all queries; MS MARCO on dev).
BEIR_SETS = {
    beir_set.name: beir_set
    for beir_set in (
        BeirSet("msmarco", "444067daf65d982533ea17ebd59501e4", 6980, split="dev"),
        BeirSet("trec-covid", "ce62140cb23feb9becf6270d0d1fe6d1", 50),
        BeirSet("nfcorpus", "a89dba18a62ef92f7d323ec890a0d38d", 323),
        BeirSet("nq", "d4d3d2e48787a744b6f6e691ff534307", 3452),
        BeirSet("hotpotqa", "f412724f78b0d91183a0e86805e16114", 7405),
        BeirSet("fiqa", "17918ed23cd04fb15047f73e6c3bd9d9", 648),
        BeirSet("arguana", "8ad3e3c2a5867cdced806d6503f29b99", 1406, queries_are_documents=True),
        BeirSet("webis-touche2020", "46f650ba5a527fc69e0a6521c5a23563", 49),
        BeirSet("cqadupstack", "4e41456d7df8ee7760a7f866133bda78", 13145, forums=_FORUMS),
        BeirSet("quora", "18fb154900ba42a600f84b839c173167", 10000, passage_kind="query", text_only=True, queries_are_documents=True),
        BeirSet("dbpedia-entity", "c2a39eb420a3164af735795df012ac2c", 400),
        BeirSet("scidocs", "38121350fc3a4d2f48850f6aff52e4a9", 1000),
        BeirSet("fever", "5a818580227bfb4b35bb6fa46d9b6c03", 6666),
        BeirSet("climate-fever", "8b66f0a9126c521bae2bde127b4dc99d", 1535),
        BeirSet("scifact", "5f7d1de60b170fc8027bb7898e2efca1", 300),
    )
}

#: NanoBEIR's 13 sets: name -> what its files call it. Each is a sample of the BEIR set that the name ends with: 50 queries (of Touché
#: 49) and 2,210 to 6,045 documents. Source: NanoBEIR (Zeta Alpha, 2024); the names are those of ir_datasets with a hyphen.
NANO_SETS = {
    "nano-climate-fever": "NanoClimateFEVER",
    "nano-dbpedia-entity": "NanoDBPedia",
    "nano-fever": "NanoFEVER",
    "nano-fiqa": "NanoFiQA2018",
    "nano-hotpotqa": "NanoHotpotQA",
    "nano-msmarco": "NanoMSMARCO",
    "nano-nfcorpus": "NanoNFCorpus",
    "nano-nq": "NanoNQ",
    "nano-quora": "NanoQuoraRetrieval",
    "nano-scidocs": "NanoSCIDOCS",
    "nano-arguana": "NanoArguAna",
    "nano-scifact": "NanoSciFact",
    "nano-webis-touche2020": "NanoTouche2020",
}


def beir_set(name: str) -> BeirSet:
    """The facts of a set; UserError for a name that is not one of the 15."""
    if name not in BEIR_SETS:
        raise UserError(f"{name!r} is not one of BEIR's public sets{suggestion(name, BEIR_SETS)}")
    return BEIR_SETS[name]


def mean_of_forums(metrics: Sequence[dict[str, float]]) -> dict[str, float]:
    """A set's metrics: the mean over its collections, each counting the same however many queries it has.

    Source: BEIR (Thakur et al., 2021), where CQADupStack is scored so.
    """
    if not metrics:
        raise UserError("no collection to take the mean of")
    return {name: math.fsum(m[name] for m in metrics) / len(metrics) for name in metrics[0]}
