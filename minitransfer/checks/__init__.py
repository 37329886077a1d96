"""What a user can ask about a checkpoint, a model or data before trusting it."""
from .cards import CARDS, Card
from .inspect import Inspection, inspect
from .plan import StepPlan, plan
from .verify import Certificate, verify

__all__ = ["CARDS", "Card", "Certificate", "Inspection", "StepPlan", "inspect", "plan", "verify"]
