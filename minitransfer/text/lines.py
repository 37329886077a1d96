"""Lines of text files, decoded strictly: a file that is not text is refused with its name and the line, never half read."""
from __future__ import annotations

import difflib
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path


def kind_of(path: Path) -> str:
    """The suffix that tells the format: ".jsonl" for both rows.jsonl and rows.jsonl.gz."""
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def not_there(path: Path | str) -> ValueError:
    if Path(path).is_dir():
        return ValueError(f"{path} is a folder; a file is needed: name one inside it")
    return ValueError(f"no file {path}; a path of an existing file is needed: check it (the current folder is {Path.cwd()})")


def lines(path: Path) -> Iterator[str]:
    """Lines with their ends ("\\n"), of a file or its .gz.

    Raises:  ValueError for a missing file, one that is cut off, binary, or not UTF-8.
    """
    if not path.is_file():
        raise not_there(path)
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for number, raw in enumerate(file, 1):
                yield _decode(raw, number, path)
        except (EOFError, gzip.BadGzipFile, zlib.error) as why:
            raise ValueError(f"{path} is not a whole .gz file ({why}); fetch it again, or rename it if it is not compressed") from why


def json_lines(path: Path) -> Iterator[tuple[int, dict]]:
    """(line number, object) of a file with one JSON object a line; blank lines are skipped."""
    for number, line in enumerate(lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as why:
            raise ValueError(f"{path}, line {number}: not JSON ({why}); a .jsonl file has one whole object on each line: mend the line, or write "
                             "the file that way") from why
        if not isinstance(row, dict):
            raise ValueError(f'{path}, line {number}: a {type(row).__name__}; each line is an object such as {{"text": "..."}}: mend the line')
        yield number, row


def missing(column: str, there: Sequence[str], where: str, more: str = "") -> KeyError:
    """The error for a column that is not there, with the one that was probably meant, or else `more`."""
    names = [str(name) for name in there]
    near = difflib.get_close_matches(str(column).lower(), [name.lower() for name in names], 1, cutoff=0.5)
    hint = f"did you mean {next(name for name in names if name.lower() == near[0])!r}?" if near else f"name one of them{more}"
    return KeyError(f"{where} has no column {column!r}; it has {', '.join(map(repr, there)) or 'none'}: {hint}")


def _decode(raw: bytes, number: int, path: Path) -> str:
    if b"\0" in raw:
        raise ValueError(f"{path}, line {number}: binary data; a text file in UTF-8 is needed: give another file, or convert this one")
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as why:
        raise ValueError(f"{path}, line {number}: not UTF-8 ({why.reason} at byte {why.start} of the line); a text file in UTF-8 is needed: "
                         "convert it, for example with `iconv -f latin1 -t utf-8`") from why
    return text[:-2] + "\n" if text.endswith("\r\n") else text
