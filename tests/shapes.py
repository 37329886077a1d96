"""The shapes in the signatures are checked in every test, at a price that does not grow with the number of steps a test trains."""
import inspect
from collections.abc import Callable

from beartype import beartype

checkers: dict[tuple[str, str, str], Callable] = {}


def checked(function: Callable) -> Callable:
    """What `--jaxtyping-packages` names: beartype, once for a signature. (It is given stand-ins without a body, and a new one each time an inner function is defined.)"""
    key = function.__module__, function.__qualname__, str(inspect.signature(function))
    if key not in checkers:
        checkers[key] = beartype(function)
    return checkers[key]


class Enough:
    """Stands for `jaxtyping_disable`: no for the first 500 calls of a test, and then for one call in 7; a long training is the same calls again and again."""

    calls = 0

    def __bool__(self) -> bool:
        self.calls += 1
        return self.calls > 500 and self.calls % 7 > 0
