"""The exercises of the notebooks. An answer takes the place of the engine's own function, and the project's comparisons run on it.

One page per notebook: each function below `@exercise` grades one answer, and raises `Wrong` with what it saw.
"""
from .exercise import EXERCISES, Verdict, Verdicts, Wrong, check, exercises

__all__ = ["EXERCISES", "Verdict", "Verdicts", "Wrong", "check", "exercises"]
