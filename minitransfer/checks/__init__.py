"""What a user can ask about a checkpoint, a model or data before trusting it."""
from .cards import CARDS, Card
from .doctor import Diagnosis, doctor
from .inspect import Inspection, inspect
from .plan import StepPlan, plan
from .recommend import Recommendation, recommend
from .verify import Certificate, verify
from .why import Why, why

__all__ = ["CARDS", "Card", "Certificate", "Diagnosis", "Inspection", "Recommendation", "StepPlan", "Why", "doctor", "inspect", "plan", "recommend", "verify", "why"]
