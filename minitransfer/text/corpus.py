"""Corpora as documents: one item, one document.

    .txt             `documents` says what one document is:
                     "blank_line"  text between blank lines (the convention of BERT's pretraining files; the default)
                     "line"        each line, blank ones skipped
                     "file"        the whole file: a book, a play, anything whose parts belong together
    .jsonl           one JSON object a line, its `field` is a document
    a folder         its files of these kinds, in the order of their names; or a dataset saved with `save_to_disk`
    a list of str    each a document
    datasets object  its column `field`
    "pydoc"          the docstrings of the running Python's standard library; a document is a module (pydoc_corpus.py)
    "name[:split]"   a data set of the hub, through `datasets`; split "train" unless given

Any file may be compressed (.gz). A list may also hold several paths (`pathlib.Path` objects, to tell them from texts).
"""
from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .lines import json_lines, kind_of, lines, missing, not_there
from .pydoc_corpus import pydoc_documents, pydoc_files

DOCUMENTS = ("blank_line", "line", "file")
BLOCK = 1 << 16         # characters: a longer document is passed on in parts, so that none has to fit in memory
KINDS = (".txt", ".jsonl")
PYDOC = "pydoc"
# A space after a word: no standard tokenizer joins what stands on its two sides, or looks across. (A line break is part of a word for ▁ pieces.)
EDGE = re.compile(r"(?<=\S)(?= )")


def read_texts(source: Any, field: str = "text", documents: str = "blank_line") -> Iterator[str]:
    """The documents of `source`, in order; empty ones are skipped.

    Args:    source: see the head of this file.
             field: the field of a JSON object, or the column of a data set, that holds the text.
             documents: what one document of a .txt file is: "blank_line", "line" or "file".
    Raises:  ValueError for a missing file, a source without text, a binary file, or a broken line; KeyError for a field that is not there.
    """
    parts: list[str] = []
    for part, ends in read_parts(source, field, documents):
        parts.append(part)
        if ends:
            yield "".join(parts)
            parts = []


def read_parts(source: Any, field: str = "text", documents: str = "blank_line") -> Iterator[tuple[str, bool]]:
    """(part, whether its document ends here): documents in parts of about BLOCK characters, cut before a space: the tokens are those of the whole."""
    if documents not in DOCUMENTS:
        raise ValueError(f"documents={documents!r}; it is one of {', '.join(map(repr, DOCUMENTS))}")
    found = False
    for item in resolve(source):
        for part, ends in _parts(item, field, documents):
            found = True
            yield part, ends
    if not found:
        raise ValueError(f"{describe(source)} holds no text: check that the file is the one you mean and that it is not empty")


def describe(source: Any) -> str:
    return str(source) if isinstance(source, (str, Path)) else f"the {type(source).__name__}"


def resolve(source: Any) -> list[Any]:
    """Items that are each the Path of a file, a list of texts, a datasets object, or PYDOC."""
    if isinstance(source, Path) or (isinstance(source, str) and source):
        return _named(source)
    if hasattr(source, "column_names") and hasattr(source, "features"):
        return [source]
    if isinstance(source, Sequence) and not isinstance(source, (str, bytes)):
        if source and all(isinstance(item, Path) for item in source):
            return [file for item in source for file in _named(item)]
        for i, item in enumerate(source):
            if not isinstance(item, str):
                raise ValueError(f"item {i} of the corpus is {item!r} ({type(item).__name__}); a list holds texts (str) or files (pathlib.Path), "
                                 "not both: convert it")
        return [source]
    raise ValueError(f"a corpus cannot be read from a {type(source).__name__}; it is a file, a folder, a list of str, a datasets object, 'pydoc', or "
                     "the name of a hub data set: convert it (an iterator can be read only once: make a list of it, or write it to a .jsonl file)")


def content_hash(source: Any, field: str, documents: str) -> str:
    """blake2b of everything the documents depend on: file contents or texts, never names or dates."""
    digest = hashlib.blake2b(f"{field}\0{documents}".encode(), digest_size=32)
    for item in resolve(source):
        if isinstance(item, Path) or item == PYDOC:
            for path in pydoc_files() if item == PYDOC else [item]:
                with path.open("rb") as file:
                    digest.update(kind_of(path).encode() + hashlib.file_digest(file, "blake2b").digest())
        else:
            for text, ends in _parts(item, field, documents):
                one = text.encode("utf-8", "surrogatepass")
                digest.update(len(one).to_bytes(8, "little") + bytes([ends]) + one)
    return digest.hexdigest()


def _parts(item: Any, field: str, documents: str) -> Iterator[tuple[str, bool]]:
    if isinstance(item, Path):
        if kind_of(item) == ".txt":
            yield from _txt(item, documents)
            return
        texts: Iterator[tuple[str, Any]] = ((f"{item}, line {n}", _pick(row, field, f"{item}, line {n}")) for n, row in json_lines(item))
    elif item == PYDOC:
        texts = (("a docstring", text) for text in pydoc_documents())
    elif hasattr(item, "column_names"):
        if field not in item.column_names:
            raise missing(field, item.column_names, "the data set")
        texts = ((f"row {i} of the data set", row[field]) for i, row in enumerate(item.select_columns(field)))
    else:
        texts = ((f"item {i} of the corpus", text) for i, text in enumerate(item))
    for where, text in texts:
        if not isinstance(text, str):
            raise ValueError(f"{where}: {field!r} is {text!r} ({type(text).__name__}), not a text: drop the row or name another field")
        if text.strip():
            yield from _cut([text])


def _pick(row: dict, field: str, where: str) -> Any:
    if field not in row:
        raise missing(field, list(row), where)
    return row[field]


def _txt(path: Path, documents: str) -> Iterator[tuple[str, bool]]:
    if documents == "line":
        for line in lines(path):
            if line.strip():
                yield from _cut([line], drop="\n")
        return
    if documents == "file":
        yield from _cut(lines(path), drop="\n")
        return
    rest = lines(path)
    for line in rest:
        if line.strip():
            yield from _cut(_until_blank(line, rest), drop="\n")


def _until_blank(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    for line in rest:
        if not line.strip():
            return
        yield line


def _cut(texts: Iterable[str], drop: str = "") -> Iterator[tuple[str, bool]]:
    """One document, given in any pieces, as parts; nothing if it has only spaces. Characters of `drop` at its end are left out."""
    held, at, started = "", 0, False
    for text in texts:
        held, at = held[at:] + text, 0
        while len(held) - at > BLOCK and (edge := EDGE.search(held, at + BLOCK)):
            yield held[at:edge.start()], False
            at, started = edge.start(), True
    held = held[at:].rstrip(drop)
    if started or held.strip():
        yield held, True


def _named(source: str | Path) -> list[Any]:
    path = Path(source)
    if path.is_dir():
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return [_whole(_datasets().load_from_disk(str(path)), str(source))]
        files = sorted(p for p in path.rglob("*") if p.is_file() and _is_text(p) and not p.name.startswith("."))
        if not files:
            raise ValueError(f"{source} has no file of a known kind; a corpus folder holds .txt or .jsonl files (or either with .gz): convert yours")
        return list(files)
    if path.is_file():
        if not _is_text(path):
            raise ValueError(f"{source} is of no known kind ({path.suffix or 'no suffix'}); a corpus is .txt or .jsonl (or either with .gz): "
                             "rename or convert it")
        return [path]
    if isinstance(source, Path) or path.suffix == ".gz" or _is_text(path) or source.count("/") > 1:
        raise not_there(source)
    if source == PYDOC:
        return [PYDOC]
    name, _, split = source.partition(":")
    try:
        return [_datasets().load_dataset(name, split=split or "train")]
    except Exception as why:       # the library raises many kinds
        raise ValueError(f"{source!r} is no file or folder here, and the hub data set {name!r} could not be loaded ({type(why).__name__}: {why}): "
                         "check the spelling, the split after ':', and the network (HF_HUB_OFFLINE)") from why


def _is_text(path: Path) -> bool:
    return kind_of(path) in KINDS


def _whole(found: Any, source: str) -> Any:
    if isinstance(found, dict):
        raise ValueError(f"{source} holds several splits ({', '.join(found)}): name the folder of one of them")
    return found


def _datasets() -> Any:
    import datasets
    return datasets
