"""What the results of this room share: numbers with their intervals, and axes to draw on."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..tasks.intervals import Bootstrap
from ..tasks.metrics import Z95


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


def signed(one: Interval, digits: int = 3) -> str:
    """A difference, with its sign."""
    return "{:+.{d}f} [{:+.{d}f}, {:+.{d}f}]".format(*one, d=digits)


def jackknife(value: float, left_out: Sequence[float], least: float = -np.inf, most: float = np.inf) -> Interval:
    """A value with its 95 % interval, from the values without each of k parts of the data: +- 1.96 sqrt((k - 1) / k sum (v_i - mean v)^2), cut to what can be.

    For what a bootstrap would bias, since a resample repeats rows. Source: Tukey 1958; parts of several rows: Wolter 2007, section 4.2.
    """
    v, k = np.asarray(left_out, float), len(left_out)
    half = Z95 * float(np.sqrt((k - 1) / k * ((v - v.mean()) ** 2).sum()))
    return Interval(value, max(least, value - half), min(most, value + half))


def new_axes(width: int | float, height: int | float, rows: int = 1, columns: int = 1) -> np.ndarray:
    """(rows, columns) of matplotlib's axes, on a figure of so many inches.

    Raises: ImportError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise ImportError('a figure is drawn with matplotlib, which is not installed; print(...) needs nothing: pip install "minitransfer[study]" to draw it') from e
    return Figure(figsize=(width, height), layout="constrained").subplots(rows, columns, squeeze=False)


def draw_squares(axes: Any, values: np.ndarray, words: Sequence[Sequence[str]], most: float = 1.0) -> None:
    """A square for each of (R, C) values, darker up to `most`, with a word in it."""
    axes.imshow(values, aspect="auto", origin="lower", cmap="Blues", vmin=0, vmax=most)
    for (row, column), value in np.ndenumerate(values):
        axes.text(column, row, words[row][column], ha="center", va="center", fontsize="small", parse_math=False, color="white" if value > 0.6 * most else "black")


def draw_line(axes: Any, x: np.ndarray, intervals: list[Interval], label: str, **style: Any) -> None:
    """A line through the values, and a band between the ends of their intervals."""
    value, low, high = np.array(intervals).T
    line, = axes.plot(x, value, label=label, marker=".", **style)
    axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
