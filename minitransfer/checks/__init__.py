"""What a user can ask about a checkpoint, a model or data before trusting it."""
from .doctor import Diagnosis, doctor
from .inspect import Inspection, inspect
from .recommend import Recommendation, recommend
from .verify import Certificate, verify
from .why import Why, why

__all__ = ["Certificate", "Diagnosis", "Inspection", "Recommendation", "Why", "doctor", "inspect", "recommend", "verify", "why"]
