"""Rows of cells, the first row the title: written in columns, and as markup. A column is of numbers if one of its cells below the title begins with a digit."""
from __future__ import annotations

from collections.abc import Sequence

from .html import Html, element, paragraph

SHORT = 18      # characters
Cells = Sequence[Sequence[object]]


def of_numbers(cells: Cells) -> list[bool]:
    """Which columns are of numbers; the first one names the rows."""
    return [i > 0 and any(str(cell).lstrip("-+")[:1].isdigit() for cell in below) for i, (_, *below) in enumerate(zip(*cells, strict=True))]


def in_columns(cells: Cells) -> str:
    """One line a row, numbers to the right."""
    right = of_numbers(cells)
    width = [max(len(str(cell)) for cell in column) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(f"{cell!s:{'>' if r else '<'}{w}}" for cell, w, r in zip(row, width, right, strict=True)) for row in cells)


def naming(names: Sequence[object]) -> dict[str, object]:
    """What a table is marked with whose first column has names too long for one line of a phone."""
    return {"class_": "long"} if max(len(str(name)) for name in names) > SHORT else {}


def table(cells: Cells) -> Html:
    """The same as markup."""
    sides: list[dict[str, object]] = [{} if right else {"class_": "text"} for right in of_numbers(cells)]
    title, *rows = cells
    head = element("thead", element("tr", *(element("th", cell, scope="col", **side) for cell, side in zip(title, sides, strict=True))))
    return element("table", head, element("tbody", *(element("tr", *(element("td", cell, **side) for cell, side in zip(row, sides, strict=True))) for row in rows)),
                   **naming([row[0] for row in cells]))


def wide(markup: Html) -> Html:
    """In a box of its own, which scrolls where the screen is narrower."""
    return element("div", markup, class_="wide", tabindex=0)


class Table:
    """What has cells: prints in columns, and as a table in a notebook. `note`: a sentence below it."""

    note: str = ""

    def cells(self) -> Cells:
        raise NotImplementedError

    def __str__(self) -> str:
        return in_columns(self.cells())

    def __repr__(self) -> str:
        return str(self)

    def html(self) -> Html:
        return Html(table(self.cells()) + (paragraph(self.note) if self.note else ""))

    def _repr_html_(self) -> str:
        return self.html()
