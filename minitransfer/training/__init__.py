"""One loop for every objective and every strategy, and what surrounds it."""
from .batches import Batches, RandomWindows
from .diagnose import NonFiniteError
from .evaluate import held_out_loss
from .loop import train
from .optim import param_groups
from .pretrain import adapt, pretrain
from .run import TrainResult
from .schedule import lr_at
from .settings import TrainSettings
from .vectors import train_vectors

__all__ = [
    "Batches", "NonFiniteError", "RandomWindows", "TrainResult", "TrainSettings",
    "adapt", "held_out_loss", "lr_at", "param_groups", "pretrain", "train", "train_vectors",
]
