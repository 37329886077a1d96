"""How a page is read: as XML, which forgives nothing."""
from __future__ import annotations

import re
from xml.etree import ElementTree

from minitransfer.report.html import beside


def tree(html: str) -> ElementTree.Element:
    """Every element is closed, every & and < is escaped."""
    assert html.startswith("<!DOCTYPE html>")
    return ElementTree.fromstring(html)


def part(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<div>{html}</div>")


def words(node: ElementTree.Element) -> str:
    return "".join(node.itertext())


def table_of(node: ElementTree.Element) -> list[list[str]]:
    return [[words(cell) for cell in row] for row in node.iter("tr")]


def self_contained(html: str) -> None:
    """Nothing is asked for from elsewhere, and what runs is the page's own."""
    for node in tree(html).iter():
        assert node.tag not in ("link", "iframe", "object", "embed", "base", "form") and not [name for name in node.keys() if name.startswith("on")]
        assert all(node.get(name, "data:").startswith("data:") for name in ("src", "href", "srcset", "action", "poster"))
        if node.tag == "script":
            assert node.text == beside("attention.js")
        if node.tag == "style" or node.get("style"):
            assert not re.search(r"url\(|@import|expression", f"{node.text} {node.get('style')}")
