"""What a config is made of: the parts that several numbers describe together, and the checks of every field."""
from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

ACTIVATION_NAMES = ("gelu", "gelu_tanh", "relu", "silu", "tanh", "quick_gelu")
SCALINGS = ("none", "linear", "llama3")


@dataclass(frozen=True)
class Rotary:
    """Positions told by turning queries and keys (RoPE). The formulas are in nn/positions.py.

    Raises: ValueError naming the field, its value and what it may be.
    """

    theta: int | float = 10_000.0       # base of the wave lengths
    local_theta: int | float | None = None      # the base in blocks that see a window only; None: as theta
    share: int | float = 1.0            # how much of each head turns, from its start; the rest stays
    scaling: str = "none"               # for texts longer than those trained on: "none" | "linear" | "llama3"
    factor: int | float = 1.0           # how much longer
    low: int | float = 1.0              # of "llama3": waves longer than original_len / low are stretched by factor
    high: int | float = 4.0             # of "llama3": waves shorter than original_len / high are left as they are
    original_len: int = 8192            # of "llama3": the length trained on, in tokens

    def __post_init__(self) -> None:
        for name in ("theta", "local_theta", "factor", "low", "high"):
            if (value := getattr(self, name)) is not None and not (is_number(value) and value > 0):
                raise ValueError(f"rotary.{name}={value!r}; it is a number above 0: give the one the architecture has")
        if not is_number(self.share) or not 0 < self.share <= 1:
            raise ValueError(f"rotary.share={self.share!r}; it is in (0, 1]: give the share of each head that turns")
        if self.high <= self.low:
            raise ValueError(f"rotary.high={self.high}, rotary.low={self.low}; waves between the two are blended: high is the larger one")
        whole_number("rotary.original_len", self.original_len, 1)
        choose("rotary.scaling", self.scaling, SCALINGS)


@dataclass(frozen=True)
class Disentangled:
    """Contents and distances meet in the scores, each with vectors of its own. The formulas are in nn/disentangled.py.

    Raises: ValueError naming the field, its value and what it may be.
    """

    furthest: int                       # distances from here on share a vector
    buckets: int = 0                    # vectors for the distances each way, wider and wider from the half on; 0: one for each distance below `furthest`
    c2p: bool = True                    # content to position: a query and the vector of the distance
    p2c: bool = True                    # position to content: a key and the vector of the distance
    shared_keys: bool = True            # vectors of distances go through q_proj and k_proj; False: through projections of their own
    norm: bool = False                  # norm on the vectors of distances

    def __post_init__(self) -> None:
        whole_number("disentangled.furthest", self.furthest, 1)
        whole_number("disentangled.buckets", self.buckets, 0)
        if self.buckets and not 1 <= self.buckets // 2 < self.furthest - 1:
            raise ValueError(f"disentangled.buckets={self.buckets}, disentangled.furthest={self.furthest}; half of the buckets hold one distance each, the others what is "
                             "between these and the furthest: give 2 buckets or more, and fewer than twice the furthest distance")
        if not (self.c2p or self.p2c):
            raise ValueError("disentangled.c2p=False, disentangled.p2c=False; without either no distance is seen: choose one, or leave disentangled out")

    @property
    def span(self) -> int:
        """Vectors each way."""
        return self.buckets or self.furthest

    @property
    def terms(self) -> int:
        """Products that a score is the sum of."""
        return 1 + self.c2p + self.p2c


@dataclass(frozen=True)
class Convolution:
    """What neighbours say, added once. The formula is in nn/convolution.py.

    Raises: ValueError naming the field, its value and what it may be.
    """

    width: int = 3                      # tokens it reads, the token itself in the middle
    groups: int = 1                     # parts of a vector that are kept apart
    activation: str = "tanh"

    def __post_init__(self) -> None:
        for name in ("width", "groups"):
            whole_number(f"convolution.{name}", getattr(self, name), 1)
        if self.width % 2 == 0:
            raise ValueError(f"convolution.width={self.width}; a token stands in the middle of what it reads: give an odd number")
        choose("convolution.activation", self.activation, ACTIVATION_NAMES)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def whole_number(field: str, value, least: int) -> None:
    """Refuse a value that is not an integer >= `least`, with a ValueError."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{field}={value!r}; it is an int, {least} or more: give the number the architecture has")


def choose(field: str, value, options: tuple) -> None:
    """Refuse a value that is not one of `options`, with a ValueError that lists them."""
    if value not in options:
        raise ValueError(f"{field}={value!r}; it is one of {', '.join(map(repr, options))}: choose one of these")


def meant(name: str, known: Iterable[str]) -> str:
    """" (did you mean 'x'?)" for the nearest of the known names, "" where none is near."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {near[0]!r}?)" if near else ""
