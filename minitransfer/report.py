"""One self-contained HTML page: text, tables and charts drawn as inline SVG. No scripts, nothing fetched; readable on a phone and in the dark.

Every piece is built by a function that escapes what it is given and returns `Html`; only `Html` is taken over as it is.
"""
from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

Number = int | float
Points = Sequence[tuple[Number, Number]]

STYLE = """
:root{--paper:#fff;--ink:#1b1f24;--soft:#5b6570;--line:#d9dee4;--band:#f5f7f9;--good:#1a7f45;--bad:#b3261e;
--c0:#5b6570;--c1:#b4500f;--c2:#1a7f45;--c3:#8a3ab0;--c4:#2459c4;--c5:#a1174d}
@media (prefers-color-scheme:dark){:root{--paper:#14171b;--ink:#e6e9ed;--soft:#9aa5b1;--line:#343b44;--band:#1c2127;--good:#62c98a;--bad:#ff8a80;
--c0:#9aa5b1;--c1:#ffab6b;--c2:#62c98a;--c3:#d49bf0;--c4:#7aa5ff;--c5:#ff8fb8}}
*{box-sizing:border-box}
html{color-scheme:light dark;-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:54rem;padding:1.5rem 1.25rem 4rem;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.7rem;line-height:1.2;margin:.5rem 0 .6rem}
h2{font-size:1.15rem;margin:2.4rem 0 .6rem;padding-bottom:.3rem;border-bottom:1px solid var(--line)}
p{margin:.5rem 0}
.soft,figcaption,dt{color:var(--soft)}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.45rem .6rem;text-align:right;border-bottom:1px solid var(--line);vertical-align:baseline}
th{font-weight:600;color:var(--soft);font-size:.85rem}
th:first-child,td:first-child{text-align:left;padding-left:0}
td:first-child{font-weight:600}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(20rem,100%),1fr));gap:1.25rem}
figure{margin:.75rem 0;max-width:34rem}
figcaption{font-size:.9rem;margin-bottom:.25rem}
svg{display:block;width:100%;height:auto;font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--ink)}
svg .axis{stroke:var(--line);stroke-width:1}
svg .tick{fill:var(--soft)}
svg .curve{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.key{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;margin:.5rem 0;font-size:.9rem}
.key svg{display:inline-block;width:26px;height:10px;margin-right:.4rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.25rem 1.2rem;margin:.5rem 0}
dd{margin:0;overflow-wrap:anywhere}
code,pre{font:.9em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere;white-space:pre-wrap}
pre{background:var(--band);padding:.6rem .8rem;border-radius:6px;margin:.5rem 0}
.case{background:var(--band);border-left:4px solid var(--line);border-radius:4px;padding:.6rem .9rem;margin:.6rem 0}
.case.good{border-color:var(--good)}.case.bad{border-color:var(--bad)}
.case p{margin:0;overflow-wrap:anywhere}.case .soft{font-size:.9rem;margin-top:.2rem}
.good b{color:var(--good)}.bad b{color:var(--bad)}
@media (max-width:40rem){body{padding:1rem 1rem 3rem}h1{font-size:1.4rem}
thead{position:absolute;left:-9999px}table,tbody,tr,td{display:block}
tr{padding:.6rem 0;border-bottom:1px solid var(--line)}
td,td:first-child{border:0;padding:.1rem 0;text-align:right;display:flex;justify-content:space-between;gap:1rem}td span{white-space:nowrap}
td::before{content:attr(data-of);color:var(--soft);font-weight:400;font-size:.9rem;text-align:left}td:first-child::before{content:none}
dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.5rem}}
"""
DASHES = ("1 4", "6 4", "2 4", "10 3 2 3", "", "5 2")          # a second mark beside the colour, for those who see colours alike
FEW = 25        # a series of so few points shows each of them


class Html(str):
    """Markup that is right as it is; any other string is escaped where it enters the page."""


def text(value: object) -> Html:
    """`value` as markup: control characters, which no page may hold, become spaces."""
    if isinstance(value, Html):
        return value
    return Html(escape("".join(c if c >= " " or c in "\n\t" else " " for c in str(value))))


def element(name: str, *children: object, **attributes: object) -> Html:
    """`<name attribute="...">children</name>`; `class_` is written `class`, `_` in other names is written `-`."""
    marks = "".join(f' {key.rstrip("_").replace("_", "-")}="{text(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{marks}>{''.join(map(text, children))}</{name}>")


def paragraph(*children: object, **attributes: object) -> Html:
    return element("p", *children, **attributes)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Html:
    """A table whose first column names the row; on a narrow screen each row becomes a list of labelled values."""
    head = element("thead", element("tr", *(element("th", name, scope="col") for name in columns)))
    body = [element("tr", *(element("td", element("span", cell), data_of=name) for name, cell in zip(columns, row, strict=True))) for row in rows]
    return element("table", head, element("tbody", *body))


def facts(values: Mapping[str, object]) -> Html:
    """Names and values, one pair a line."""
    return element("dl", *(element(tag, one) for name, value in values.items() for tag, one in (("dt", name), ("dd", value))))


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

    def __init__(self, x: tuple[Number, Number], y: tuple[Number, Number], width: int = 400, height: int = 260, left: int = 44):
        self.x, self.y, self.left, self.right, self.top, self.bottom = x, y, left, width - 10, 10, height - 36
        self.width, self.height = width, height

    def across(self, value: Number) -> Number:
        return round(self.left + (value - self.x[0]) / (self.x[1] - self.x[0]) * (self.right - self.left), 1)

    def down(self, value: Number) -> Number:
        return round(self.bottom - (value - self.y[0]) / (self.y[1] - self.y[0]) * (self.bottom - self.top), 1)

    def label(self, x: Number, y: Number, words: object, anchor: str = "middle") -> Html:
        return element("text", words, class_="tick", x=x, y=y, text_anchor=anchor)

    def line(self, x1: Number, y1: Number, x2: Number, y2: Number) -> Html:
        return element("line", class_="axis", x1=x1, y1=y1, x2=x2, y2=y2)

    def columns(self, x_label: str) -> list[Html]:
        """Vertical lines at round numbers of x, their numbers below them, and what x is."""
        marks = [self.line(self.across(v), self.top, self.across(v), self.bottom) for v in ticks(*self.x)]
        numbers = [self.label(self.across(v), self.bottom + 15, f"{v:g}") for v in ticks(*self.x)]
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
    return element("figure", element("figcaption", title), plane.drawing(title, *plane.rows(), *plane.columns(x_label), *curves, *marks))


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


def prediction_case(words: str, truth: str, answer: str, probability: Number) -> Html:
    """A text, what it is and what a model says it is."""
    right = truth == answer
    verdict = " is right" if right else f" is wrong: the label is {truth}"
    said = paragraph(element("b", f"{answer}, {probability:.0%}"), verdict, class_="soft")
    return element("div", paragraph(words), said, class_="case good" if right else "case bad")


def section(title: str, *parts: object) -> Html:
    return element("section", element("h2", title), *parts)


def page(title: str, *parts: object) -> Html:
    """The whole page. It refers to nothing outside itself."""
    marks = Html('<meta charset="utf-8" /><meta name="viewport" content="width=device-width, initial-scale=1" />')
    head = element("head", marks, element("title", title), element("style", Html(STYLE)))
    return Html("<!DOCTYPE html>\n" + element("html", head, element("body", element("h1", title), *parts), lang="en") + "\n")


def write_page(path: str | Path, html: Html) -> Path:
    """Write the page aside and rename it: a reader meets the old page or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(html, encoding="utf-8")
    os.replace(aside, path)
    return path
