"""What a user can ask about a checkpoint, a model or data before trusting it."""
from .inspect import Inspection, inspect

__all__ = ["Inspection", "inspect"]
