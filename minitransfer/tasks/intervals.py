"""Bootstrap: in which interval a metric lies, judged from what it would have been on other draws of as many rows."""
from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike

REPLICATES = 1000
CHUNK = 250_000         # random numbers held at a time


def ends(values: np.ndarray) -> tuple[float, float]:
    """Between these lie 95 % of the values."""
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


class Bootstrap:
    """Sums over rows, and the same sums over resamples of the rows, in memory that does not grow with the number of rows.

    Row i counts w_ri ~ Poisson(1) times in resample r. With the number of rows fixed this is Efron's draw of n out of n; left free, each row can be
    weighted when it passes.

    Args:   n_sums: numbers a row adds to; seed: of the weights.
    Source: Efron 1979; Poisson weights: Hanley & MacGibbon 2006.
    """

    def __init__(self, n_sums: int, seed: int = 0, replicates: int = REPLICATES):
        self.total, self.sums = np.zeros(n_sums), np.zeros((replicates, n_sums))     # (S,), (R, S)
        self.draw = np.random.default_rng(seed)

    def add(self, rows: ArrayLike) -> None:
        """rows: (N, S), or (S,) for one."""
        values = np.atleast_2d(np.asarray(rows, float))
        self.total += values.sum(0)
        for part in np.array_split(values, -(-len(values) * len(self.sums) // CHUNK)) if len(values) else []:
            self.sums += self.draw.poisson(1.0, (len(self.sums), len(part))) @ part

    def interval(self, metric: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
        """The ends of the 95 % interval of a metric of the sums, (..., S) -> (...)."""
        return ends(metric(self.sums))

    def metrics(self, of_sums: Mapping[str, Callable[[np.ndarray], np.ndarray]]) -> dict[str, float]:
        """Each metric of the sums by its name, with the ends of its interval."""
        found: dict[str, float] = {}
        for name, metric in of_sums.items():
            found |= with_interval(name, float(metric(self.total)), self.interval(metric))
        return found


def ratio(above: int, below: int) -> Callable[[np.ndarray], np.ndarray]:
    """A metric that is one sum divided by another, a count; 0 of nothing."""
    return lambda sums: sums[..., above] / sums[..., below].clip(1)


def with_interval(name: str, value: float, interval: tuple[float, float]) -> dict[str, float]:
    return {name: value, f"{name}_low": interval[0], f"{name}_high": interval[1]}


def resampled(counts: ArrayLike, seed: int = 0, replicates: int = REPLICATES) -> np.ndarray:
    """How often each kind of row is drawn in resamples of all rows, (C,) -> (R, C): n out of n with replacement, known from the counts alone."""
    n = np.asarray(counts, float)
    return np.random.default_rng(seed).multinomial(int(n.sum()), n / n.sum(), replicates).astype(float)


def redrawn(metric: Callable[[np.ndarray, np.ndarray], float], truth: np.ndarray, answer: np.ndarray) -> tuple[float, float]:
    """The interval of a metric that needs all rows at once, such as a correlation of ranks."""
    draw, n = np.random.default_rng(0), len(truth)
    draws = (draw.integers(0, n, n) for _ in range(REPLICATES))
    return ends(np.array([metric(truth[rows], answer[rows]) for rows in draws]))
