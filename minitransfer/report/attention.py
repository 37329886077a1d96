"""Who looks at whom: tokens that show where they look when they are hovered, tapped or focused."""
from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np

from .html import Html, beside, element, paragraph


def options(values: Sequence[tuple[str, str]], chosen: str) -> list[Html]:
    return [element("option", name, value=value, **({"selected": "selected"} if value == chosen else {})) for value, name in values]


def attention(tokens: Sequence[str], probabilities: np.ndarray, special: Sequence[bool]) -> Html:
    """The view of one text. It begins with the last layer, the mean of its heads, and the first token that is no special one.

    Args: probabilities: (L, H, T, T), how much the token of the third place looks at that of the last; written as bytes, 1 / 255 being the step.
    """
    layers, heads = probabilities.shape[:2]
    packed = base64.b64encode(np.rint(255 * probabilities.clip(0, 1)).astype(np.uint8).tobytes()).decode()
    first = next((i for i, one in enumerate(special) if not one), 0)
    shown = [element("span", token, class_="token special" if one else "token", tabindex=0) for token, one in zip(tokens, special, strict=True)]
    layer = element("label", "layer", element("select", *options([(str(i), str(i)) for i in range(layers)], str(layers - 1))))
    head = element("label", "head", element("select", *options([("mean", "mean of all"), *((str(h), str(h)) for h in range(heads))], "mean")))
    return element("div", paragraph(layer, head), element("div", *shown, class_="tokens"), paragraph("Hover, tap or focus a token.", class_="said", aria_live="polite"),
                   element("script", beside("attention.js")), class_="attention", data_weights=packed, data_heads=heads, data_from=first)
