"""What tuning gives on real labelled sets, beside the same rows and settings through transformers, peft and sentence-transformers."""
from .measure import run
from .sets import SETS, Set

__all__ = ["SETS", "Set", "run"]
