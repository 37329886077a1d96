"""Rows with labels, from the usual files.

    .csv              first line names the columns; fields may be quoted, and then hold line breaks
    .tsv              first line names the columns; no quoting: a quotation mark is a character like any other (as in GLUE)
    .jsonl            one JSON object a line
    .json             SQuAD's nested questions: {"question": ..., "context": ..., "answers": {"text": [...], "answer_start": [...]}, "id", "title"};
                      or one list of objects
    .conll, .conllu   one word a line, sentences between blank lines: {"words": [...], "tags": [...]}; tabs separate columns, or spaces where there is no tab
    a list of dicts, or a datasets object, streamed or not (class numbers become their names)
    "pydoc"           the docstrings of Python's standard library: {"text": ..., "label": module, "name": ...}

Any file may be compressed (.gz).
"""
from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .lines import json_lines, kind_of, lines, missing
from .pydoc_corpus import read_pydoc
from .squad import read_squad

KINDS = (".csv", ".tsv", ".jsonl", ".json", ".conll", ".conllu")
TEST = re.compile(r"(?<![a-z])test(?![a-z])")
COME_FROM = f"they come from a file ({', '.join(KINDS)}, or one with .gz), a list of dicts, or a datasets object"


def read_rows(source: Any, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The rows of `source`, in order.

    Args:    source: see the head of this file.
             columns: names for a .csv or .tsv without a first line of names.
    Raises:  ValueError for a missing, empty or broken file (with the line), or a source of another kind.
    """
    if isinstance(source, str) and source == "pydoc" and not Path(source).exists():
        return list(read_pydoc())
    if isinstance(source, (str, Path)):
        return _read_file(Path(source), columns)
    if isinstance(source, dict) and all(isinstance(one, list) for one in source.values()):
        raise ValueError(f"a dict of columns ({', '.join(map(str, source))}); rows are a list with a dict for each: turn it into one, for example with "
                         "datasets.Dataset.from_dict")
    if isinstance(source, dict):
        raise ValueError(f"a data set with several splits ({', '.join(source)}); rows come from one of them: pass its [{next(iter(source), '')!r}]")
    if hasattr(source, "column_names") and hasattr(source, "features"):
        names = class_names(source.features or {})                  # a stream may not know its columns before it is read
        rows = [{c: named(v, names[c]) if c in names else v for c, v in row.items()} for row in source]
    elif isinstance(source, Sequence):
        rows = list(source)
    else:
        raise ValueError(f"rows cannot be read from a {type(source).__name__}; {COME_FROM}: convert it")
    if wrong := [i for i, row in enumerate(rows) if not isinstance(row, dict)]:
        raise ValueError(f"rows cannot be read from a {type(source).__name__} whose item {wrong[0]} is {rows[wrong[0]]!r:.60}; {COME_FROM}: convert it")
    if not rows:
        raise ValueError("no rows: the source is empty; at least one row is needed: check where it comes from")
    return rows


def is_test_split(source: Any) -> bool:
    """Whether a file or a datasets object is called a test split: reviews.test.tsv, test/rows.jsonl, split "test"."""
    if isinstance(source, (str, Path)):
        path = Path(source)
        return path.parent.name.lower() == "test" or TEST.search(path.name.lower()) is not None
    return TEST.search(str(getattr(source, "split", "")).lower()) is not None


def class_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of the classes in each column of class numbers, or of lists of them."""
    inner = {column: getattr(feature, "feature", feature) for column, feature in features.items()}
    return {column: feature.names for column, feature in inner.items() if type(feature).__name__ == "ClassLabel"}


def named(value: Any, names: Sequence[str]) -> Any:
    """A class number, or a list of them, as names; what is no class (None, -1) stays as it is."""
    if isinstance(value, list):
        return [named(one, names) for one in value]
    return value if value is None or value < 0 else names[value]


def column(rows: Sequence[dict], name: str, split: str = "") -> list[Any]:
    """One column of rows. Args: split: what these rows are called, for the message.

    Raises:  KeyError naming the nearest column if a row does not have it.
    """
    for i, row in enumerate(rows):
        if name not in row:
            raise missing(name, list(row), f"{split} row {i}".strip(), " (in a .csv or .tsv the first line names the columns)")
    return [row[name] for row in rows]


def sample_rows(rows: Sequence[dict], n: int, seed: int = 0, by: str | None = None) -> list[dict]:
    """`n` rows drawn without replacement, in their old order; a slice from the top of a file sorted by label would hold one label only.

    Args:    by: a column whose shares are kept, each to within one row; None: a plain draw.
    Raises:  ValueError if there are not n rows.
    """
    if not 0 < n <= len(rows):
        raise ValueError(f"n={n} of {len(rows)} rows; it is between 1 and the number of rows: choose a smaller n")
    order = np.random.default_rng(seed).permutation(len(rows))
    if by is not None:
        # the k-th of m rows of a group stands at (k + 1/2) / m; the first n in this order have every group's share
        values = [str(v) for v in column(rows, by)]
        _, group, counts = np.unique([values[i] for i in order], return_inverse=True, return_counts=True)
        rank = np.empty(len(rows))
        for g in range(len(counts)):
            rank[group == g] = (np.arange(counts[g]) + 0.5) / counts[g]
        order = order[np.argsort(rank, kind="stable")]
    return [rows[i] for i in sorted(order[:n])]


def _read_file(path: Path, columns: Sequence[str] | None) -> list[dict[str, Any]]:
    kind = kind_of(path)
    if kind not in KINDS:
        raise ValueError(f"{path} is of no known kind ({path.suffix or 'no suffix'}); rows come from {', '.join(KINDS)} (or one of them with .gz): "
                         "rename or convert it")
    if kind == ".jsonl":
        rows = [row for _, row in json_lines(path)]
    elif kind == ".json":
        rows = list(read_squad(path))
    elif kind in (".conll", ".conllu"):
        rows = list(_conll(path))
    else:
        rows = list(_table(path, _csv(path) if kind == ".csv" else _tsv(path), columns))
    if not rows:
        raise ValueError(f"{path} holds no rows; at least one is needed: check that it is the file you mean")
    return rows


def _table(path: Path, records: Iterable[tuple[int, list[str]]], columns: Sequence[str] | None) -> Iterator[dict[str, str]]:
    for number, record in records:
        if columns is None:
            columns = record
            if len(set(columns)) != len(columns):
                raise ValueError(f"{path}, line {number}: two columns have one name ({', '.join(columns)}); all names differ: mend the first line, "
                                 "or pass columns=[...] if it is not a line of names")
            if len(columns) == 1 and (others := [c for c in ",;\t|" if c in columns[0]]):
                raise ValueError(f"{path}, line {number}: one column, named {columns[0]!r}; a .csv has commas between its columns and a .tsv has tabs, here it "
                                 f"looks like {others[0]!r}: save it with those, or rename it if only the ending is wrong")
        elif len(record) != len(columns):
            raise ValueError(f"{path}, line {number}: {len(record)} fields where {len(columns)} are needed ({', '.join(columns)}): mend the line "
                             "(a .csv quotes fields that hold commas, a .tsv has no tabs inside a field)")
        else:
            yield dict(zip(columns, record, strict=True))


def _tsv(path: Path) -> Iterator[tuple[int, list[str]]]:
    return ((number, line.rstrip("\n").split("\t")) for number, line in enumerate(lines(path), 1) if line.strip())


def _csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    before = csv.field_size_limit(sys.maxsize)          # 131,072 characters unless told; a long article is longer
    try:
        reader = csv.reader(lines(path), strict=True)
        for record in reader:
            if len(record) > 1 or any(field.strip() for field in record):           # what is blank is no row
                yield reader.line_num, record
    except csv.Error as why:
        raise ValueError(f"{path}, line {reader.line_num}: not CSV ({why}); a field that holds a quotation mark is quoted, with the mark doubled: "
                         "mend it, or name the file .tsv if it is separated by tabs") from why
    finally:
        csv.field_size_limit(before)


def _conll(path: Path) -> Iterator[dict[str, list[str]]]:
    universal = kind_of(path) == ".conllu"
    for sentence in conll_sentences(path, 4 if universal else 2):
        words = [fields for fields in sentence if not universal or fields[0].isdigit()]     # no joined forms 1-2, no empty nodes 1.1
        if words:
            yield {"words": [fields[1 if universal else 0] for fields in words], "tags": [fields[3 if universal else -1] for fields in words]}


def conll_sentences(path: Path, least: int) -> Iterator[list[list[str]]]:
    """The columns of every line of each sentence, without comments.

    Raises: ValueError for a line with fewer columns than `least`.
    """
    universal, sentence = kind_of(path) == ".conllu", list[list[str]]()
    for number, line in enumerate(lines(path), 1):
        fields = line.rstrip("\n").split("\t") if universal else line.strip(" \t\n").split("\t") if "\t" in line else line.split()
        if not line.strip():
            if sentence:
                yield sentence
            sentence = []
        elif line.startswith("-DOCSTART-") or (universal and line.startswith("#")):
            continue
        elif len(fields) < least:
            needed = "a word and its tag are" if least <= 4 else f"{least} (of CoNLL-U: id, word, lemma, part of speech, its own tag, features, head, relation) are"
            raise ValueError(f"{path}, line {number}: {line.strip()!r} has {len(fields)} columns; {needed} needed: mend the line")
        else:
            sentence.append(fields)
    if sentence:
        yield sentence
