"""Tasks: labelled rows in, a tuned model, metrics and predictions out."""
from .base import Task
from .baselines import Baseline, baseline
from .finetune import FinetuneResult, finetune
from .image_labels import classify_images
from .label_scoring import Prompt, label_scores, order_spread, shots
from .multilabel import LabelsPrediction, MultiLabelTask
from .predict import load_tuned, predict
from .regression import NumberPrediction, RegressionTask
from .seeds import Paired, Seeds, compare_seeds, finetune_seeds
from .self_training import SelfTrained, self_train
from .sequence import Prediction, SequenceTask
from .several import load_several
from .similarity import SimilarityTask, search
from .span import AnswerPrediction, SpanTask
from .token import Entity, TokenTask, WordPrediction

__all__ = ["AnswerPrediction", "Baseline", "Entity", "FinetuneResult", "LabelsPrediction", "MultiLabelTask", "NumberPrediction", "Paired", "Prediction", "Prompt",
           "RegressionTask", "Seeds", "SelfTrained", "SequenceTask", "SimilarityTask", "SpanTask", "Task", "TokenTask", "WordPrediction", "baseline", "classify_images",
           "compare_seeds", "finetune", "finetune_seeds", "label_scores", "load_several", "load_tuned", "order_spread", "predict", "search", "self_train", "shots"]
