"""Tasks: labelled rows in, a tuned model, metrics and predictions out."""
from .base import Task
from .finetune import FinetuneResult, finetune
from .predict import load_tuned, predict
from .sequence import Prediction, SequenceTask
from .token import TokenTask, WordPrediction

__all__ = ["FinetuneResult", "Prediction", "SequenceTask", "Task", "TokenTask", "WordPrediction", "finetune", "load_tuned", "predict"]
