"""What the results of this room share: numbers with their intervals, and axes to draw on."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..tasks.intervals import Bootstrap


class Interval(NamedTuple):
    """A value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def rounded(self) -> list[float]:
        """For JSON."""
        return [round(one, 6) for one in self]

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interval(sums: Bootstrap, metric: Callable[[np.ndarray], np.ndarray]) -> Interval:
    """A metric of the sums, with its interval."""
    return Interval(float(metric(sums.total)), *sums.interval(metric))


def new_axes(width: float, height: float, rows: int = 1, columns: int = 1) -> np.ndarray:
    """(rows, columns) of matplotlib's axes, on a figure of so many inches.

    Raises: ImportError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ImportError('a figure is drawn with matplotlib, which is not installed; print(...) needs nothing: pip install "minitransfer[study]" to draw it') from e
    return Figure(figsize=(width, height), layout="constrained").subplots(rows, columns, squeeze=False)


def draw_line(axes: Any, x: np.ndarray, intervals: list[Interval], label: str, **style: Any) -> None:
    """A line through the values, and a band between the ends of their intervals."""
    value, low, high = np.array(intervals).T
    line, = axes.plot(x, value, label=label, marker=".", **style)
    axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
