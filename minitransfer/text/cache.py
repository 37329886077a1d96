"""A corpus as token ids on disk: made once, memory-mapped ever after.

A cache is a folder named after the hash of the documents and of the tokenizer, so a changed file or another vocabulary gives another folder and
nothing has to be invalidated:

    tokens.bin      ids of all documents one after the other, without special tokens; uint16 if the vocabulary fits, else uint32
    offsets.bin     int64, document i is tokens[offsets[i]:offsets[i + 1]]
    meta.json       sizes and dtype; written last

It is written in a folder aside that is renamed when complete: a reader never meets half a cache. Memory does not grow with the corpus.
"""
from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .corpus import content_hash, describe, read_parts
from .tokenizer import Tokenizer

FORMAT = 1              # of the files; part of the key
BATCH = 1 << 21         # characters tokenised at a time


@dataclass(frozen=True)
class TokenCache:
    """Documents as ids. `ids` (N,) and `offsets` (n_documents + 1,) are memory-mapped: indexing reads only what it needs."""

    folder: Path
    ids: np.ndarray
    offsets: np.ndarray
    content: str            # hash of the documents, for a manifest
    fingerprint: str        # of the tokenizer

    @property
    def n_tokens(self) -> int:
        return len(self.ids)

    @property
    def n_documents(self) -> int:
        return len(self.offsets) - 1

    def document(self, i: int) -> np.ndarray:
        """The ids of document i."""
        return self.ids[int(self.offsets[i]):int(self.offsets[i + 1])]


def tokenize_corpus(tok: Tokenizer, source: Any, field: str = "text", cache: str | Path | None = None, documents: str = "blank_line") -> TokenCache:
    """The ids of a corpus, without special tokens; tokenised at the first call, opened at the next ones.

    Args:    source, field, documents: see `read_texts`.
             cache: the folder of all caches; default $XDG_CACHE_HOME/minitransfer/tokens, or ~/.cache/minitransfer/tokens.
    Raises:  what `read_texts` raises; ValueError if no document gives a token.
    """
    content = content_hash(source, field, documents)
    key = hashlib.sha256(f"{FORMAT} {content} {tok.fingerprint}".encode()).hexdigest()[:32]
    root = Path(cache) if cache is not None else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minitransfer" / "tokens"
    found = open_cache(root / key)
    if found is not None:
        return found
    root.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=root))
    try:
        n_tokens = _write(tok, read_parts(source, field, documents), aside, content)
        if not n_tokens:
            raise ValueError(f"{describe(source)} gives no token: check that it holds text and that the tokenizer is made for it")
        _replace(aside, root / key)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    made = open_cache(root / key)
    assert made is not None
    return made


def open_cache(folder: Path) -> TokenCache | None:
    """The cache in `folder`, or None if there is none or its files are not as long as they should be."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        dtype = np.dtype(meta["dtype"])
        sizes = {"tokens.bin": meta["n_tokens"] * dtype.itemsize, "offsets.bin": (meta["n_documents"] + 1) * 8}
        if any((folder / name).stat().st_size != size for name, size in sizes.items()):
            return None
    except (OSError, ValueError, KeyError):
        return None
    ids = np.memmap(folder / "tokens.bin", dtype=dtype, mode="r")
    return TokenCache(folder, ids, np.memmap(folder / "offsets.bin", dtype=np.int64, mode="r"), meta["content"], meta["fingerprint"])


def _write(tok: Tokenizer, parts: Iterator[tuple[str, bool]], folder: Path, content: str) -> int:
    dtype = np.dtype("<u2" if tok.vocab_size <= 1 << 16 else "<u4")
    n_tokens, n_documents, begun = 0, 0, 0
    with (folder / "tokens.bin").open("wb") as tokens, (folder / "offsets.bin").open("wb") as offsets:
        offsets.write(np.zeros(1, np.int64).tobytes())
        for batch in _batches(parts):
            for ids, (_, ends) in zip(tok.encode_batch([text for text, _ in batch]), batch, strict=True):
                tokens.write(np.asarray(ids, dtype=dtype).tobytes())
                n_tokens += len(ids)
                if ends and n_tokens > begun:        # a document without a token is none
                    offsets.write(np.array([n_tokens], np.int64).tobytes())
                    n_documents, begun = n_documents + 1, n_tokens
        _sync(tokens)
        _sync(offsets)
    meta = {"dtype": dtype.str, "n_tokens": n_tokens, "n_documents": n_documents, "content": content, "fingerprint": tok.fingerprint}
    with (folder / "meta.json").open("wb") as file:
        file.write(json.dumps(meta, indent=2).encode())
        _sync(file)
    return n_tokens


def _batches(parts: Iterator[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    batch: list[tuple[str, bool]] = []
    size = 0
    for part in parts:
        batch.append(part)
        size += len(part[0])
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _replace(aside: Path, target: Path) -> None:
    """Rename; if another process was faster its cache is as good as ours, and a damaged one makes way."""
    try:
        aside.rename(target)
    except OSError:
        if open_cache(target) is None:
            shutil.rmtree(target, ignore_errors=True)
            aside.rename(target)
