"""The shapes in the signatures are checked in every test, at a price that does not grow with the number of steps a test trains."""
import inspect
from collections.abc import Callable
from typing import Any

from beartype import beartype

made: dict[tuple[str, str, str], Callable] = {}


class checked:
    """What `--jaxtyping-packages` names: beartype, when a function is first called, and once for all functions that are defined in the same place.

    (It is given stand-ins that have the signature and no body, and new ones each time an inner function is defined.)
    """

    def __init__(self, function: Callable):
        self.function = function
        self.check: Callable | None = None

    def __call__(self, *given: Any, **named: Any) -> Any:
        if self.check is None:
            key = self.function.__module__, self.function.__qualname__, str(inspect.signature(self.function))
            self.check = made.get(key) or made.setdefault(key, beartype(self.function))
        return self.check(*given, **named)


class Enough:
    """Stands for `jaxtyping_disable`: no for the first 400 calls of a test and for one in 23 of the others; a long training is the same calls again and again."""

    calls = 0

    def __bool__(self) -> bool:
        self.calls += 1
        return self.calls > 400 and self.calls % 23 > 0
