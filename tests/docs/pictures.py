"""What a page looks like, small enough to be kept: where each of its parts stands, and the part as a few blocks of grey.

Parts are compared one by one, each stretched to the same blocks: where a line wraps depends on a machine's fonts, and moves everything below it.
"""
from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np

from .browser import Browser

ROWS, COLUMNS = 4, 6        # blocks of a part
PARTS = """[...document.querySelectorAll("h1, h2, p, .wide, figure, .key, .case, .tokens, details, dl")]
  .filter(node => !node.parentElement.closest(".wide, figure, .case, details") && node.getClientRects().length).map(node => {
    const box = node.getBoundingClientRect();
    return [[node.localName, ...node.classList].join("."), ...[box.left, box.top, box.width, box.height].map(Math.round)];
  })"""


def picture(window: Browser, page: Path, width: int, dark: bool) -> dict[str, Any]:
    """The grey of the paper in 255ths, and of each part [name, left, width, height, how much lighter than the paper each of its blocks is]."""
    window.open(page, width, dark)
    window.call("Emulation.setDeviceMetricsOverride", width=width, height=window.ask("document.documentElement.scrollHeight"), deviceScaleFactor=1, mobile=width < 600)
    grey = 255 * matplotlib.image.imread(io.BytesIO(window.screenshot()), "png")[..., :3].mean(-1)         # (height, width)
    paper = float(np.median(grey))

    def blocks(x: int, y: int, w: int, h: int) -> list[int]:
        return [round(float(cell.mean() - paper)) for row in np.array_split(grey[y : y + h, x : x + w], ROWS) for cell in np.array_split(row, COLUMNS, 1)]
    return {"paper": round(paper), "parts": [[name, x, w, h, *blocks(x, y, w, h)] for name, x, y, w, h in window.ask(PARTS)]}


def differences(seen: dict[str, Any], kept: dict[str, Any], width: int) -> list[str]:
    """Which parts do not look as they did. Two parts are sum |a - b| / sum (|a| + |b|) apart (Bray & Curtis 1957): 0 the same, 1 nothing in common.

    Other fonts put parts 0.12 apart, and headings and paragraphs, whose lines wrap, 0.27; what is missing puts them 0.9 apart.
    """
    if (names := [[part[0] for part in one["parts"]] for one in (seen, kept)])[0] != names[1]:
        return [f"parts {', '.join(names[0])}"]
    told = [f"paper {seen['paper']}"] if abs(seen["paper"] - kept["paper"]) > 2 else []
    for i, ((name, x, w, h, *a), (_, x0, w0, h0, *b)) in enumerate(zip(seen["parts"], kept["parts"], strict=True)):
        apart, flows = np.abs(np.subtract(a, b)).sum() / (np.abs(a).sum() + np.abs(b).sum() + 1), name[0] in "hp"
        told += [f"{i} {name}: {apart:.2f}"] if apart > (0.4 if flows else 0.2) else []
        told += [f"{i} {name}: {w} x {h} at {x}"] if max(abs(x - x0), abs(w - w0)) > 0.08 * width or not (flows or 0.7 < h / h0 < 1.4) else []
    return told
