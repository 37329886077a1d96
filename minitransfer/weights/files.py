"""Files that are whole or absent: written aside, flushed to the disk, then renamed. Nothing half-written is ever seen by a later run."""
from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict:
    """Raises: ValueError for a file that is missing, is not JSON, or does not hold an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"no {path.name} in {path.parent}; it describes the other files there: give a folder that has one") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as e:
        raise ValueError(f"{path} is not JSON ({e}); it may be cut off or another kind of file: fetch or write it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}; a JSON object {{...}} is needed: fetch or write it again")
    return value


def flush(folder: Path) -> None:
    """Ask the disk to keep every file of `folder`, and the folder's own list of names."""
    for path in (*folder.rglob("*"), folder):
        if path.is_file() or path.is_dir():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def aside(folder: Path, kind: str) -> Path:
    return folder.parent / f".{folder.name}.{kind}"


def recover(folder: Path) -> Path:
    """Undo a swap that was cut off between its two renames: the previous folder comes back."""
    if not folder.exists() and aside(folder, "old").exists():
        aside(folder, "old").rename(folder)
    return folder


@contextmanager
def write_aside(folder: str | Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `folder`, as a whole, if the block ends well; on any error `folder` is as it was.

    For folders that are ours alone: what was in `folder` is gone afterwards. A kill between the two renames is undone by `recover`.
    """
    folder = recover(Path(folder).absolute())
    new, old = aside(folder, "new"), aside(folder, "old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        flush(new)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def replace_files(folder: str | Path, stale: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yield an empty folder whose files then replace those of the same name in `folder`, one rename each; other files there stay.

    Files of `folder` that match a pattern of `stale` and were not written again are removed last.
    """
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    new = aside(folder, "new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        flush(new)
        written = {path.name for path in new.iterdir()}
        for name in sorted(written):
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            os.replace(new / name, folder / name)
        for path in {path for pattern in stale for path in folder.glob(pattern)}:
            if path.name not in written:
                path.unlink()
        flush(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
