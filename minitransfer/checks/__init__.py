"""What a user can ask about a checkpoint, a model or data before trusting it."""
from .doctor import Diagnosis, doctor
from .inspect import Inspection, inspect
from .verify import Certificate, verify

__all__ = ["Certificate", "Diagnosis", "Inspection", "doctor", "inspect", "verify"]
