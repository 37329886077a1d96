"""Build the notebooks: the percent-format source NN_topic.py becomes NN_topic.ipynb beside it, executed, with its outputs.

    python notebooks/build.py                  every notebook
    python notebooks/build.py 01_first_run     one of them
    python notebooks/build.py --check          execute in a temporary folder, write nothing; fail on an error, or if an .ipynb is not
                                               its source, or a cell with the tag "compare" says something else than in it

What depends on the machine and the moment is left out of the file: widget state, execution times, versions, and the paths of this machine.
"""
from __future__ import annotations

import argparse
import os
import re
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
SOURCE_NAME = re.compile(r"\d\d_\w+\.py")
TIMEOUT = 1000                                      # seconds for one cell
KEPT_METADATA = ("jupyter", "tags")                 # of a cell: whether it is folded
WIDGET = "application/vnd.jupyter.widget-view+json"
ABSOLUTE_PATH = re.compile(r"(?<![\w.<])(?:/(?:home|root|Users|tmp|var|work|opt|usr|mnt|content)/|[A-Z]:\\\w)[^\s\"'<>)]*")


def sources(names: list[str]) -> list[Path]:
    """The sources called `names` (with or without .py), or all of them in order.

    Raises: ValueError for a name that is no notebook.
    """
    known = {path.stem: path for path in sorted(HERE.glob("*.py")) if SOURCE_NAME.fullmatch(path.name)}
    wanted = [Path(name).stem for name in names] or list(known)
    for name in wanted:
        if name not in known:
            raise ValueError(f"no notebook is called {name!r}; there are {', '.join(known)}: give one of these, or none for all")
    return [known[name] for name in wanted]


def read_source(path: Path) -> NotebookNode:
    """The source as a notebook without outputs; cells are numbered, so that building twice gives the same ids."""
    notebook = jupytext.read(path, fmt="py:percent")
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {name: cell.metadata[name] for name in KEPT_METADATA if name in cell.metadata}
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}, "language_info": {"name": "python"}}
    return notebook


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Run every cell in a fresh kernel of this Python, with `folder` as its working directory."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")    # the notebooks need no network
    os.environ.setdefault("OMP_NUM_THREADS", "1")   # sums in one order whatever the number of cores; and on a busy machine two threads wait for each other
    NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3", resources={"metadata": {"path": str(folder)}}, record_timing=False,
                   coalesce_streams=True).execute()


def without_paths(text: str, folder: Path) -> str:
    """`text` with the places of this machine written as what they are."""
    places = {str(folder): ".", str(folder.resolve()): ".", str(HERE.parent): "minitransfer", sysconfig.get_paths()["purelib"]: "site-packages",
              sys.prefix: "python", sys.base_prefix: "python", tempfile.gettempdir(): "tmp", str(Path.home()): "~"}
    for place in sorted(places, key=len, reverse=True):
        text = text.replace(place, places[place]) if len(place) > 3 else text        # a home of "/" would match every slash
    return text


def clean(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Leave out what another machine, or another minute, would write differently."""
    for key in set(notebook.metadata) - {"kernelspec", "language_info"}:
        del notebook.metadata[key]
    notebook.metadata.language_info = NotebookNode(name="python")
    for cell in notebook.cells:
        for key in set(cell.metadata) - set(KEPT_METADATA):
            del cell.metadata[key]
        for output in cell.get("outputs", ()):
            if "text" in output:
                output.text = without_paths(output.text, folder)
            data = output.get("data", {})
            data.pop(WIDGET, None)
            for kind in data:
                if kind.startswith("text/"):
                    data[kind] = without_paths(data[kind], folder)
    return notebook


def texts(notebook: NotebookNode) -> Iterator[str]:
    """Everything in a notebook that is read as text: sources and outputs."""
    for cell in notebook.cells:
        yield cell.source
        for output in cell.get("outputs", ()):
            yield output.get("text", "")
            yield from (value for kind, value in output.get("data", {}).items() if kind.startswith("text/"))


def built(source: Path) -> NotebookNode:
    """The executed, cleaned notebook of `source`; nothing is written beside it.

    Raises: CellExecutionError if a cell fails; ValueError if a path of this machine is left.
    """
    notebook = read_source(source)
    with tempfile.TemporaryDirectory() as folder:
        execute(notebook, Path(folder))
        clean(notebook, Path(folder))
    if left := {found[0] for text in texts(notebook) if (found := ABSOLUTE_PATH.search(text))}:
        raise ValueError(f"paths of this machine are in the notebook ({', '.join(sorted(left))}); it is read on others: "
                         "print names relative to the working directory")
    return notebook


def cells(notebook: NotebookNode) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def stale(source: Path) -> str | None:
    """In what the .ipynb beside `source` differs from it; None if it does not."""
    file = source.with_suffix(".ipynb")
    if not file.exists():
        return f"{file.name} does not exist"
    theirs, ours = cells(nbformat.read(file, as_version=4)), cells(read_source(source))
    for number, (a, b) in enumerate(zip(theirs, ours, strict=False)):
        if a != b:
            return f"{file.name}: cell {number} is not the one of {source.name}"
    return None if len(theirs) == len(ours) else f"{file.name} has {len(theirs)} cells, {source.name} has {len(ours)}"


def changed(source: Path, notebook: NotebookNode) -> str | None:
    """Which cell with the tag "compare" says something else than in the .ipynb; None if all say the same."""
    file = source.with_suffix(".ipynb")
    for number, (before, now) in enumerate(zip(nbformat.read(file, as_version=4).cells, notebook.cells, strict=False)):
        if "compare" in now.metadata.get("tags", ()) and list(texts(NotebookNode(cells=[before]))) != (said := list(texts(NotebookNode(cells=[now])))):
            return f"{file.name}: cell {number} is marked to be compared, and says now\n" + "\n".join(said[1:])
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    failed = 0
    try:
        wanted = sources(arguments.names)
    except ValueError as error:
        parser.error(str(error))
    for source in wanted:
        began = time.perf_counter()
        if arguments.check and (difference := stale(source)):
            print(f"{difference}: run python notebooks/build.py {source.stem}", file=sys.stderr)
            failed = 1
        try:
            notebook = built(source)
        except (CellExecutionError, ValueError) as error:
            print(f"{source.name}: {error}", file=sys.stderr)
            failed = 1
            continue
        if arguments.check and source.with_suffix(".ipynb").exists() and (difference := changed(source, notebook)):
            print(difference, file=sys.stderr)
            failed = 1
        if not arguments.check:
            nbformat.write(notebook, source.with_suffix(".ipynb"))
        print(f"{source.stem}: {time.perf_counter() - began:.0f} s")
    return failed


if __name__ == "__main__":
    sys.exit(main())
