"""The rows of a batch as tokens: what each is, what it is to become, and where documents begin."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .html import Html, element, paragraph


@dataclass(frozen=True)
class Token:
    text: str
    kind: str = ""                  # "special", "hidden" (to be guessed) or "padding"; "second": of the second text of a pair
    label: str | None = None        # what it is labelled with
    document: int = 0               # of a packed row


def row_of(number: int, tokens: Sequence[Token], label: str | None) -> Html:
    found: list[Html] = []
    documents = len({one.document for one in tokens if one.kind != "padding"})
    before = None
    for one in tokens:
        if documents > 1 and one.kind != "padding" and one.document != before:
            found.append(element("span", f"document {one.document}", class_="border"))
            before = one.document
        below = [] if one.label is None else [element("small", one.label)]
        found.append(element("span", one.text, *below, class_=f"token {one.kind}".strip()))
    return element("div", paragraph(f"row {number}", "" if label is None else f", label: {label}", class_="soft"), element("div", *found, class_="tokens"))


def token_rows(rows: Sequence[Sequence[Token]], labels: Sequence[str | None]) -> Html:
    """Every row in a block of its own, under it what it is labelled with."""
    return Html("".join(row_of(i, row, label) for i, (row, label) in enumerate(zip(rows, labels, strict=True))))
