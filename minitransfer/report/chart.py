"""Numbers as lines, points and intervals, drawn as inline SVG."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from .html import Html, element

Number = int | float
Points = Sequence[tuple[Number, Number]]

DASHES = ("", "6 4", "2 4", "10 3 2 3", "1 4", "5 2")          # a second mark beside the colour, for those who see colours alike
FEW = 25        # a series of so few points shows each of them


def ticks(low: Number, high: Number, most: int = 6) -> list[Number]:
    """At most `most` round numbers (1, 2 or 5 times a power of ten apart) inside [low, high]."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (power * factor) <= most - 1)
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def bounds(values: Sequence[Number]) -> tuple[Number, Number]:
    """The range of an axis that shows all of `values`, a little wider than they are."""
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or abs(high) * 0.05 or 1.0
    return low - margin, high + margin


class Plane:
    """Numbers to places on a drawing of `width` x `height`, with axes left and below."""

    def __init__(self, x: tuple[Number, Number], y: tuple[Number, Number], width: int = 340, height: int = 230, left: int | None = None):
        numbers = max(len(f"{v:g}") for v in ticks(*y))
        self.x, self.y, self.left, self.right, self.top, self.bottom = x, y, 16 + 7 * numbers if left is None else left, width - 10, 10, height - 36
        self.width, self.height = width, height

    def across(self, value: Number) -> Number:
        return round(self.left + (value - self.x[0]) / (self.x[1] - self.x[0]) * (self.right - self.left), 1)

    def down(self, value: Number) -> Number:
        return round(self.bottom - (value - self.y[0]) / (self.y[1] - self.y[0]) * (self.bottom - self.top), 1)

    def label(self, x: Number, y: Number, words: object, anchor: str = "middle") -> Html:
        return element("text", words, class_="tick", x=x, y=y, text_anchor=anchor)

    def line(self, x1: Number, y1: Number, x2: Number, y2: Number) -> Html:
        return element("line", class_="axis", x1=x1, y1=y1, x2=x2, y2=y2)

    def columns(self, x_label: str, whole: bool = False) -> list[Html]:
        """Vertical lines at round numbers of x, their numbers below them, and what x is. whole: of steps and the like there are no halves."""
        at = [v for v in ticks(*self.x) if not whole or v == int(v)]
        marks = [self.line(self.across(v), self.top, self.across(v), self.bottom) for v in at]
        numbers = [self.label(self.across(v), self.bottom + 15, f"{v:g}") for v in at]
        return [*marks, *numbers, self.label((self.left + self.right) / 2, self.bottom + 31, x_label)]

    def rows(self) -> list[Html]:
        marks = [self.line(self.left, self.down(v), self.right, self.down(v)) for v in ticks(*self.y)]
        return [*marks, *(self.label(self.left - 6, self.down(v) + 4, f"{v:g}", "end") for v in ticks(*self.y))]

    def drawing(self, name: str, *marks: Html) -> Html:
        return element("svg", *marks, viewBox=f"0 0 {self.width} {self.height}", role="img", aria_label=name)


def stroke(number: int) -> dict[str, object]:
    return {"style": f"stroke:var(--c{number % 6})", "stroke_dasharray": DASHES[number % 6] or "none"}


def key(series: Mapping[str, Points]) -> Html:
    """Which line is whose; series without points have none."""
    def sample(i: int) -> Html:
        return element("svg", element("line", class_="curve", x1=1, y1=5, x2=25, y2=5, **stroke(i)), viewBox="0 0 26 10", aria_hidden="true")

    return element("div", *(element("span", sample(i), name) for i, (name, points) in enumerate(series.items()) if points), class_="key")


def line_chart(title: str, series: Mapping[str, Points], x_label: str) -> Html:
    """One line per name, in the colours and dashes of `key(series)`; a series may be empty, and still counts in the order of colours."""
    points = [point for one in series.values() for point in one]
    if not points:
        return element("figure", element("figcaption", f"{title}: nothing was recorded"))
    xs, ys = [x for x, _ in points], [y for _, y in points]
    plane = Plane((min(xs), max(xs)) if max(xs) > min(xs) else bounds(xs), bounds(ys))
    marks = [element("circle", cx=plane.across(x), cy=plane.down(y), r=2.5, style=f"fill:var(--c{i % 6})")
             for i, one in enumerate(series.values()) if len(one) <= FEW for x, y in one]
    paths = [" ".join(f"{plane.across(x)},{plane.down(y)}" for x, y in one) for one in series.values()]
    curves = [element("polyline", class_="curve", points=path, **stroke(i)) for i, path in enumerate(paths) if path]
    return element("figure", element("figcaption", title), plane.drawing(title, *plane.rows(), *plane.columns(x_label, all(isinstance(x, int) for x in xs)), *curves, *marks))


def interval_chart(title: str, rows: Sequence[tuple[str, Number, Number, Number]], x_label: str) -> Html:
    """One row per (name, value, low, high): a dot with its interval. Intervals that overlap are results that may be equal."""
    low, high = bounds([number for _, *numbers in rows for number in numbers])
    plane = Plane((low, high), (0, len(rows)), width=400, height=46 + 30 * len(rows), left=118)
    marks: list[Html] = []
    for i, (name, value, lowest, highest) in enumerate(rows):
        y, colour = plane.down(len(rows) - i - 0.5), f"fill:var(--c{i % 6})"
        marks += [element("text", name, x=plane.left - 8, y=y + 4, text_anchor="end"),
                  element("line", class_="curve", x1=plane.across(lowest), y1=y, x2=plane.across(highest), y2=y, style=f"stroke:var(--c{i % 6})"),
                  element("circle", cx=plane.across(value), cy=y, r=4.5, style=colour)]
    return element("figure", element("figcaption", title), plane.drawing(title, *plane.columns(x_label), *marks))


def scatter(title: str, points: Points, x_label: str, y_label: str) -> Html:
    """A dot per (x, y), and the line on which both are equal."""
    both = bounds([value for point in points for value in point])
    plane = Plane(both, both)
    same = element("line", class_="curve", x1=plane.across(both[0]), y1=plane.down(both[0]), x2=plane.across(both[1]), y2=plane.down(both[1]), **stroke(0))
    dots = [element("circle", cx=plane.across(x), cy=plane.down(y), r=3, style="fill:var(--c0)", fill_opacity=0.6) for x, y in points]
    return element("figure", element("figcaption", title), plane.drawing(title, *plane.rows(), *plane.columns(x_label), same, *dots),
                   element("figcaption", f"across: {x_label}; up: {y_label}"))
