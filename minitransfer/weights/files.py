"""Files that are whole or absent: written aside, flushed to the disk, then renamed. Nothing half-written is ever seen by a later run."""
from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NEW, READY = ".new", ".ready"   # folders inside one whose files are replaced: still being written; complete, and on their way to their places
STALE = ".stale.json"           # beside the files that are ready: names to remove once these are in their places


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict:
    """Raises: ValueError for a file that is missing, is not JSON, or does not hold an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"no {path.name} in {path.parent}; it describes the other files there: give a folder that has one") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as e:
        raise ValueError(f"{path} is not JSON ({e}); it may be cut off or another kind of file: fetch or write it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}; a JSON object {{...}} is needed: fetch or write it again")
    return value


def keep_on_disk(path: Path) -> None:
    """Ask the disk to keep a file, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        if path.is_file():
            path.chmod(path.parent.stat().st_mode & 0o666)      # safetensors leaves files that only their owner may read
        keep_on_disk(path)


def aside(folder: Path, kind: str) -> Path:
    return folder.parent / f".{folder.name}.{kind}"


def recover(folder: Path) -> Path:
    """End what a kill cut off: a folder that was moved away comes back, files that were complete but not all in their places go there."""
    real = folder.resolve()
    if not real.exists() and aside(real, "old").exists():
        aside(real, "old").rename(real)
    if (real / READY).exists():
        move_in(real)
    return folder


def move_in(folder: Path) -> None:
    """Put the files that are ready in their places, then remove the stale ones listed with them. Done again from the start, it ends the same."""
    ready = folder / READY
    for path in sorted(ready.iterdir()):
        if path.name == STALE:
            continue
        if (folder / path.name).is_dir():
            shutil.rmtree(folder / path.name)
        os.replace(path, folder / path.name)
    for name in json.loads((ready / STALE).read_text()) if (ready / STALE).exists() else ():
        (folder / name).unlink(missing_ok=True)
    keep_on_disk(folder)
    shutil.rmtree(ready)


def check_writable(folder: Path) -> Path:
    """Raises: OSError for a name that is a file's, or a folder we may not write in: said before work is done, not after."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, a folder is needed")
    if folder.exists() and not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} may not be written")
    return folder


@contextmanager
def write_aside(folder: str | Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `folder`, as a whole, if the block ends well; on any error `folder` is as it was.

    For folders that are ours alone: what was in `folder` is gone afterwards. A kill between the two renames is undone by `recover`.
    """
    folder = check_writable(recover(Path(folder).resolve()))        # behind a link: the link stays, what it points to is swapped
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
    keep_on_disk(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def replace_files(folder: str | Path, stale: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yield an empty folder whose files then replace those of the same name in `folder`; other files there stay.

    Files of `folder` that match a pattern of `stale` and were not written again are removed last. On any error `folder` is as it was.
    The files are moved one by one, so a kill among the moves leaves new beside old: `recover` moves the rest.
    """
    folder = check_writable(recover(Path(folder).resolve()))
    new, remains = folder / NEW, folder.exists()        # inside, not beside: `folder` may be the root of a disk
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        gone = {path.name for pattern in stale for path in folder.glob(pattern)} - {path.name for path in new.iterdir()}
        (new / STALE).write_text(json.dumps(sorted(gone)))
        flush(new)
        new.rename(folder / READY)                  # from here on the new files are the ones that count
    except BaseException:
        shutil.rmtree(new if remains else folder, ignore_errors=True)
        raise
    move_in(folder)
