"""Texts in, rows out: what the verbs that use a model share."""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch

from .. import samples
from ..nn.model import Model
from ..tasks.predict import tuned_folder
from ..text import Tokenizer
from ..text.lines import kind_of
from ..text.lines import lines as lines_of
from ..text.readers import KINDS, column, read_rows
from .verb import UsageError

T = TypeVar("T")


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a folder (of a run, or of a model), a bundled name such as mini-bert, or a hub id")


def add_texts(parser: argparse.ArgumentParser, what: str = "text") -> None:
    parser.add_argument("texts", nargs="*", metavar=what,
                        help=f"{what}s in quotation marks; without any, they are read from --file, or line by line from the standard input")
    parser.add_argument("--file", metavar="FILE", help=f"a file with one {what} a line, or .tsv, .csv, .jsonl, .conll (also .gz) with columns; "
                                                       "samples/NAME is one that comes with the package")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of tab-separated values")
    add_machine(parser)


def add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="texts computed together [32]")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: a GPU if there is one [auto]")


def positive(word: str) -> int:
    if (number := int(word)) < 1:
        raise argparse.ArgumentTypeError(f"{word} is not 1 or more")
    return number


def model_source(source: str) -> str:
    """The folder of a run stands for the model in it; a name stays a name, so that an adapter says by name what it belongs to."""
    return str(tuned_folder(source)) if Path(source).expanduser().is_dir() else source


def bundled_sample(path: str) -> str:
    """`samples/NAME` is the file of that name which comes with the package, unless there is such a file here."""
    if Path(path).parent.as_posix() == "samples" and not Path(path).exists():
        return str(samples.path(Path(path).name))
    return path


def device_of(name: str) -> torch.device:
    """Raises: ValueError for a device that PyTorch does not know or this machine does not have."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f"device {name!r} cannot be used ({str(e).splitlines()[0]}); needed is cpu, cuda or cuda:1: choose one, or auto") from None


def load(args: argparse.Namespace, head: str = "auto") -> tuple[Model, Tokenizer]:
    """The model and the tokenizer that a verb was pointed to, on its device."""
    source = model_source(args.model)
    return Model.from_pretrained(source, head=head).to(device_of(args.device)), Tokenizer.from_pretrained(source)


def rows(args: argparse.Namespace, columns: tuple[str, ...] = ("text",)) -> Iterator[tuple]:
    """The texts a verb was given, one tuple each. With two columns, words and lines hold them with a tab between.

    Raises: UsageError for texts from two places; ValueError for a line without the tab; what `read_rows` raises.
    """
    if args.texts and args.file:
        raise UsageError("texts as words and from --file; one of the two is meant: remove the other")
    path = bundled_sample(args.file) if args.file else None
    if path is not None and kind_of(Path(path)) in KINDS:
        found = read_rows(path, args.columns.split(",") if getattr(args, "columns", None) else None)
        yield from zip(*(column(found, name) for name in columns), strict=True)
        return
    for number, line in enumerate(args.texts or lines(path), 1):
        parts = tuple(line.split("\t", len(columns) - 1)) if len(columns) > 1 else (line,)
        if len(parts) < len(columns):
            raise ValueError(f"text {number} is {line!r}; two texts with a tab between are needed ({', '.join(columns)}): add the second one")
        yield parts


def lines(path: str | None) -> Iterator[str]:
    """Lines without their ends, of a file or of the standard input."""
    if path is None:
        if sys.stdin.isatty():
            print("minitransfer: one text a line; Ctrl-D ends", file=sys.stderr)
        for line in sys.stdin:
            yield line.rstrip("\n")
        return
    for line in lines_of(Path(path)):
        yield line.rstrip("\n")


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of up to `size` items: what was read is answered before more is read."""
    items = iter(items)
    while part := list(islice(items, size)):
        yield part


def print_tabbed(*cells: Any) -> None:
    """One line of tab-separated values; tabs and line breaks inside a value become spaces."""
    print("\t".join(" ".join(str(value).split()) if isinstance(value, str) else str(value) for value in cells), flush=True)


def rounded(value: Any) -> Any:
    """Floats with seven digits: what a float32 holds."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def print_json(value: dict) -> None:
    """One JSON object on one line."""
    print(json.dumps(rounded(value), ensure_ascii=False), flush=True)


def tell(as_json: bool, value: dict, text: object) -> None:
    """Print a result: as JSON, or as text."""
    if as_json:
        print_json(value)
    else:
        print(text, flush=True)
