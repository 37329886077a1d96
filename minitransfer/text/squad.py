"""Rows in one JSON document: SQuAD's nested questions, or a plain list."""
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .lines import lines

SHAPE = '{"data": [{"paragraphs": [{"context": "...", "qas": [{"id": "...", "question": "...", "answers": [{"text": "...", "answer_start": 0}]}]}]}]}'


def read_squad(path: Path) -> Iterator[dict[str, Any]]:
    """{"id", "title", "context", "question", "answers": {"text": [...], "answer_start": [...]}} for each question of a version 1.1 or 2.0 file.

    A question that version 2.0 marks as impossible has no answers; its "plausible" ones are left out. A list of objects is taken as it is.

    Raises: ValueError for a file that is not JSON, or not of this shape (with the place).
    """
    try:
        told = json.loads("".join(lines(path)))
    except json.JSONDecodeError as why:
        raise ValueError(f"{path}: not JSON ({why}); a .json file of rows is in the format of SQuAD, {SHAPE}: mend it, or write one object a line (.jsonl)") from why
    if isinstance(told, list) and told and all(isinstance(row, dict) for row in told):
        yield from told
        return
    place = "data"
    try:
        for a, article in enumerate(told["data"]):
            for p, paragraph in enumerate(article["paragraphs"]):
                for q, one in enumerate(paragraph["qas"]):
                    place = f"data[{a}].paragraphs[{p}].qas[{q}]"
                    answers = [] if one.get("is_impossible") else one["answers"]
                    yield {"id": one.get("id", str(q)), "title": article.get("title", ""), "context": paragraph["context"], "question": one["question"],
                           "answers": {name: [answer[name] for answer in answers] for name in ("text", "answer_start")}}
    except (KeyError, TypeError, AttributeError) as why:
        raise ValueError(f"{path}, at or after {place}: {type(why).__name__} {why}; a .json file of rows is in the format of SQuAD, {SHAPE}: mend it, or write one "
                         "object a line (.jsonl)") from why
