# The names that `import lightning_e5` offers, each with its module: type checkers read them here, and `__init__.py` loads from here.
from data_modules.ccpairs.datamodule import CCPairsDataModule as CCPairsDataModule
from data_modules.finetune.datamodule import RankedDataModule as RankedDataModule
from lightning_e5.curation.consistency_filter.filter_pairs import filter_pairs as filter_pairs
from lightning_e5.curation.mining.mine_hard_negatives import mine_hard_negatives as mine_hard_negatives
from lightning_e5.curation.mining.teacher_scores import score_groups as score_groups
from lightning_e5.errors import UserError as UserError
from lightning_e5.evaluation.evaluate import evaluate as evaluate
from lightning_e5.evaluation.tasks.retrieval import CollectionTask as CollectionTask
from lightning_e5.evaluation.validation_tasks import EvaluateOn as EvaluateOn
from lightning_e5.evaluation.validation_tasks import NanoBEIR as NanoBEIR
from lightning_e5.models.cross_encoder import CrossEncoder as CrossEncoder
from lightning_e5.models.encoder import TextEncoder as TextEncoder
from lightning_e5.modules.cross_encoder import CrossEncoderModule as CrossEncoderModule
from lightning_e5.modules.distilled import DistilledModule as DistilledModule
from lightning_e5.modules.in_batch import InBatchModule as InBatchModule
from lightning_e5.modules.moco import MoCoModule as MoCoModule
from lightning_e5.modules.pre_batch import PreBatchModule as PreBatchModule
from lightning_e5.modules.symmetric import SymmetricModule as SymmetricModule
from lightning_e5.modules.watch import TrainingWatch as TrainingWatch
from lightning_e5.retrieval.bm25 import BM25 as BM25
from lightning_e5.retrieval.index import Index as Index
from lightning_e5.rng import seed_torch as seed_torch
from lightning_e5.rng import stage_seed as stage_seed
from lightning_e5.training.optimizer import AdamWConfig as AdamWConfig
from lightning_e5.types import TextPair as TextPair
from lightning_e5.types import TrainingGroup as TrainingGroup

__version__: str
