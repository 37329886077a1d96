"""Markup, and the page it ends on: one file, one stylesheet, nothing fetched.

Every piece is built by a function that escapes what it is given and returns `Html`; only `Html` is taken over as it is.
"""
from __future__ import annotations

import os
from functools import cache
from html import escape
from pathlib import Path


class Html(str):
    """Markup that is right as it is; any other string is escaped where it enters the page."""


class Display:
    """Something to look at: markup in a notebook and on a page, a line of words at a prompt."""

    def __init__(self, html: Html, words: str):
        self.html, self.words = html, words

    def _repr_html_(self) -> str:
        return fragment(self.html)

    def __repr__(self) -> str:
        return self.words


@cache
def beside(name: str) -> Html:
    """A file of this folder."""
    return Html((Path(__file__).parent / name).read_text(encoding="utf-8"))


def text(value: object) -> Html:
    """`value` as markup: control characters, which no page may hold, become spaces, and half characters question marks."""
    if isinstance(value, Html):
        return value
    return Html(escape("".join(c if c >= " " or c in "\n\t" else " " for c in str(value)).encode("utf-8", "replace").decode()))


def element(name: str, *children: object, **attributes: object) -> Html:
    """`<name attribute="...">children</name>`; `class_` is written `class`, `_` in other names is written `-`."""
    marks = "".join(f' {key.rstrip("_").replace("_", "-")}="{text(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{marks}>{''.join(map(text, children))}</{name}>")


def paragraph(*children: object, **attributes: object) -> Html:
    return element("p", *children, **attributes)


def section(title: str, *parts: object) -> Html:
    return element("section", element("h2", title), *parts)


def fold(title: object, *parts: object) -> Html:
    """Parts that are seen when their title is clicked."""
    return element("details", element("summary", title), *parts)


def fragment(*parts: object) -> Html:
    """Parts with their stylesheet, for a notebook's cell."""
    return element("div", element("style", beside("style.css")), *parts, class_="mt")


def page(title: str, *parts: object) -> Html:
    """The whole page. It refers to nothing outside itself."""
    marks = Html('<meta charset="utf-8" /><meta name="viewport" content="width=device-width, initial-scale=1" />')
    head = element("head", marks, element("title", title), element("style", beside("style.css"), Html("body{margin:0}")))
    body = element("body", element("main", element("h1", title), *parts, class_="page"), class_="mt")
    return Html("<!DOCTYPE html>\n" + element("html", head, body, lang="en") + "\n")


def write_page(path: str | Path, html: Html) -> Path:
    """Write the page aside and rename it: a reader meets the old page or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(html, encoding="utf-8")
    os.replace(aside, path)
    return path
