"""Marks around two spans of a text, so that a classifier of texts can say how they are related."""
from __future__ import annotations

MARKS = ("@", "#")      # of the first span and the second one


def mark_spans(text: str, first: tuple[int, int], second: tuple[int, int], marks: tuple[str, str] = MARKS) -> str:
    """The text with a mark before and after each of two spans: "Ada worked for Babbage" -> "@ Ada @ worked for # Babbage #".

    Relation extraction is then a sequence task: {"text": mark_spans(text, head, tail), "label": relation}. The marks are ordinary characters that a pretrained model
    knows, so no vocabulary grows.

    Args:   first, second: start and end in characters; which one stands first in the text does not matter, the mark says who is who.
    Source: Zhou & Chen 2022, "An Improved Baseline for Sentence-level Relation Extraction" (entity marker with punctuation; deviation: the head reads the
            whole text's vector, not those of the marks).
    Raises: ValueError for a span outside the text or an empty one, or spans that overlap.
    """
    spans = sorted([(*first, marks[0]), (*second, marks[1])])
    (a, b, _), (c, d, _) = spans
    if not 0 <= a < b <= c < d <= len(text):
        raise ValueError(f"spans {first} and {second} in a text of {len(text)} characters; both are (start, end) inside it, not empty, and apart: correct the offsets")
    for start, end, mark in reversed(spans):
        text = f"{text[:start]}{mark} {text[start:end]} {mark}{text[end:]}"
    return text
