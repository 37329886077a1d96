"""Static word vectors in files: one vector a word, whatever stands around it.

    .bin              word2vec's binary format: a line "N D", then N times a word, a space and D little-endian float32
    any other suffix  text, a word and its D numbers a line: word2vec and fastText (.vec) after a line "N D", GloVe without

Any file may be compressed (.gz). It is read as a stream: what is held in memory is the vectors that were asked for, however many the file has.
"""
from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .lines import kind_of, not_there

LONGEST_WORD, WIDEST, LONGEST_LINE = 10_000, 100_000, 1 << 22       # bytes, numbers, bytes: what is beyond them is no file of vectors
DO = "fetch the file again, or mend it"
WORD = re.compile(r"\w+(?:'\w+)?")


def read_vectors(path: str | Path, vocabulary: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Word -> its vector, (D,) float32, in the order of the file; of a word that stands there twice, the first.

    Words that are not UTF-8 are passed over: some published files have them.

    Args:   vocabulary: the words that are wanted, as they are written in the file; None: all. The numbers of other words are counted and not read.
    Raises: ValueError for a missing, truncated or malformed file, and for a wanted vector with a number that is not finite.
    """
    path = Path(path)
    found: dict[str, np.ndarray] = {}
    if not path.is_file():
        raise not_there(path)
    wanted = None if vocabulary is None else {word.encode(errors="replace") for word in vocabulary}
    read = _binary if kind_of(path) == ".bin" else _text
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for word, vector in read(file, path, wanted):
                if not np.isfinite(vector).all():
                    raise ValueError(f"{path}: the vector of {_shown(word)} has a number that is not finite; a word like this spoils every mean it is in: {DO}")
                try:
                    found.setdefault(word.decode(), vector)
                except UnicodeDecodeError:
                    continue
        except (EOFError, gzip.BadGzipFile, zlib.error) as why:
            raise ValueError(f"{path} is not a whole .gz file ({why}); fetch it again, or rename it if it is not compressed") from why
    return found


def write_vectors(vectors: Mapping[str, np.ndarray], path: str | Path) -> None:
    """Put word vectors into a file that `read_vectors` and the other programs of word2vec read; the suffix says which format, .gz compresses it.

    Text has as many digits as float32 needs to come back bit for bit.

    Raises: ValueError for no vectors, vectors of several widths, or a word with a character that would end it.
    """
    path = Path(path)
    rows = {word: np.asarray(vector, np.float32) for word, vector in vectors.items()}
    if len(shapes := {row.shape for row in rows.values()}) != 1:
        raise ValueError(f"{len(rows)} vectors of the shapes {sorted(shapes)}; a file holds some, all of one width: give vectors of one training")
    binary, (d,) = kind_of(path) == ".bin", next(iter(shapes))
    for word in rows:
        if not word or "\n" in word or (binary and " " in word):
            raise ValueError(f"the word {word!r} cannot stand in a file of vectors, where a space or a line break ends it: leave it out, or write it in another way")
    with gzip.open(path, "wb") if path.suffix == ".gz" else path.open("wb") as file:
        file.write(f"{len(rows)} {d}\n".encode())
        for word, row in rows.items():
            numbers = row.astype("<f4").tobytes() if binary else " ".join(map(str, row)).encode()
            file.write(word.encode() + b" " + numbers + b"\n")


def _text(file: Any, path: Path, wanted: set[bytes] | None) -> Iterator[tuple[bytes, np.ndarray]]:
    """The last D fields of a line are the numbers: a word may hold spaces, as some of GloVe's do. Without "N D" the first line gives D."""
    line, n, number, before = file.readline(LONGEST_LINE), None, 1, 0
    if head := _head(line):
        (n, d), line, number, before = head, file.readline(LONGEST_LINE), 2, 1
    else:
        d = len(line.rstrip(b" \r\n").split(b" ")) - 1
    if d < 1:
        raise ValueError(f"{path}, line 1: {_shown(line)} has no numbers; a line is a word and its numbers with a space before each: {DO}")
    while line:
        fields = line.rstrip(b" \r\n").rsplit(b" ", d)
        if len(fields) != d + 1:
            raise ValueError(f"{path}, line {number}: {_shown(line)} has {len(fields) - 1} numbers; a line is a word and {d} numbers with a space before each: {DO}")
        if wanted is None or fields[0] in wanted:
            try:
                with np.errstate(over="ignore"):                                    # what is too large becomes infinite, and is refused as such
                    vector = np.array([float(field) for field in fields[1:]]).astype(np.float32)
            except ValueError as why:
                raise ValueError(f"{path}, line {number}: {_shown(line)} ends with no {d} numbers ({why}); a line is a word and {d} numbers: {DO}") from why
            yield fields[0], vector
        line, number = file.readline(LONGEST_LINE), number + 1
    if n is not None and number - 1 - before != n:
        raise ValueError(f"{path}: {number - 1 - before} vectors where its first line says {n}; a whole file has them all: {DO}")


def _binary(file: Any, path: Path, wanted: set[bytes] | None) -> Iterator[tuple[bytes, np.ndarray]]:
    """Some writers end a vector with a line break and some do not: one before a word is no part of it."""
    line = file.readline(LONGEST_WORD)
    head = _head(line)
    if head is None or not 1 <= head[1] <= WIDEST:
        raise ValueError(f'{path} begins with {_shown(line)}; a .bin of word2vec begins with a line "N D": give such a file, or of a model of fastText '
                         "(also .bin) its .vec")
    n, d = head
    for k in range(n):
        word, vector = _word(file), file.read(4 * d)
        if word is None or len(vector) < 4 * d:
            raise ValueError(f"{path} ends, or has no word, in vector {k + 1} of the {n} of {d} numbers that its first line says; a whole file has them all: {DO}")
        if wanted is None or word in wanted:
            yield word, np.frombuffer(vector, "<f4").astype(np.float32)
    if file.read(LONGEST_WORD).strip():
        raise ValueError(f"{path} goes on after the {n} vectors of {d} numbers that its first line says; what follows would be lost: {DO}")


def _word(file: Any) -> bytes | None:
    """What stands before the next space; None if there is none near."""
    letters = bytearray()
    while len(letters) < LONGEST_WORD and (letter := file.read(1)):
        if letter == b" ":
            return bytes(letters.lstrip(b"\n"))
        letters += letter
    return None


def _head(line: bytes) -> tuple[int, int] | None:
    """N and D of a first line, or None if it is no such line."""
    fields = line.split()
    return (int(fields[0]), int(fields[1])) if len(fields) == 2 and all(field.isdigit() and len(field) < 16 for field in fields) else None


def _shown(line: bytes) -> str:
    return repr(line[:60].decode(errors="replace"))
