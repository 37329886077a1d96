"""The docstrings of the running Python's standard library: English technical prose that is on every machine.

Source files are parsed, never imported, so nothing of them runs. The text differs a little from one version of Python to the next.
"""
from __future__ import annotations

import ast
import inspect
import os
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

# tests and demos repeat themselves; the packages folder is not part of the library
LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "turtledemo", "__pycache__", "lib2to3", "_bundled", "_vendor"})


def pydoc_files() -> list[Path]:
    """The source files, in the order of their paths."""
    found = []
    for folder, inside, files in os.walk(sysconfig.get_paths()["stdlib"]):
        inside[:] = [name for name in inside if name not in LEFT_OUT]         # walk no further there: installed packages are many
        found += [Path(folder, name) for name in files if name.endswith(".py")]
    return sorted(found, key=lambda path: path.as_posix())


def read_pydoc(modules: Sequence[str] | None = None, shortest: int = 40) -> list[dict[str, str]]:
    """One row per docstring, in the order of the files: text, label (the module, such as "asyncio"), name ("asyncio.queues.Queue.get").

    Args:    modules: only these labels; None: all.
             shortest: in characters; shorter docstrings are left out.
    Raises:  ValueError if a module of the list has no docstring.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    rows = []
    for path in pydoc_files():
        parts = path.relative_to(root).with_suffix("").parts
        if modules is None or parts[0] in modules:
            dotted = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
            rows += [{"text": text, "label": parts[0], "name": name} for name, text in _docstrings(path, dotted) if len(text) >= shortest]
    lacking = sorted(set(modules or ()) - {row["label"] for row in rows})
    if lacking:
        raise ValueError(f"no docstrings of {', '.join(map(repr, lacking))} in this Python's library; modules written in Python are needed: "
                         "name some such as 'argparse' or 'email'")
    return rows


def pydoc_documents() -> Iterator[str]:
    """One document per module: its docstrings with blank lines between them."""
    parts: list[str] = []
    last = None
    for row in read_pydoc():
        if row["label"] != last and parts:
            yield "\n\n".join(parts)
            parts = []
        parts.append(row["text"])
        last = row["label"]
    yield "\n\n".join(parts)


def _docstrings(path: Path, dotted: str) -> Iterator[tuple[str, str]]:
    try:
        with tokenize.open(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")         # some files of the library have escapes that newer versions dislike
            tree = ast.parse(file.read())
    except (SyntaxError, UnicodeDecodeError):       # a few files are broken on purpose
        return
    waiting: list[tuple[ast.AST, str]] = [(tree, dotted)]
    while waiting:
        node, name = waiting.pop(0)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if text := ast.get_docstring(node, clean=False):
                yield name, inspect.cleandoc(text).strip()
            inside = [child for child in node.body if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))]
            waiting = [(child, f"{name}.{child.name}") for child in inside] + waiting
