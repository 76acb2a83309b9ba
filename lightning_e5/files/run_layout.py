"""The names of the files in a run's directory and in an ablation's: what one room writes and another reads."""

from __future__ import annotations

#: Of a run, and of each of its stages.
CONFIG, METRICS, LOG, TIMING, ENVIRONMENT = "config.yaml", "metrics.json", "metrics.jsonl", "timing.json", "environment.json"
#: Of a training stage that is validated: a row per validation.
VALIDATION = "validation.jsonl"
#: What the names of a validation's values begin with.
VALIDATED = "val/"
#: Of a stage that read own texts: what they were taken for and how they were split, what was left out, and ten pairs.
OWN_TEXTS, DROPPED, EXAMPLES = "own_texts.json", "dropped.json", "examples.json"
#: Of an evaluation: the rows of retrieval, and those of all other tasks and of averages.
TABLE, TASKS = "table.json", "tasks.json"
#: Of an evaluation on NanoBEIR: a folder per set, in BEIR's layout, of what was evaluated.
NANO_BEIR_SETS = "nano_beir"
#: Of an ablation.
ABLATION, STATUS = "ablation.json", "status.json"
