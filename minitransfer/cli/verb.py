"""What a verb is, and the words that every verb understands alike."""
from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from .keys import Key, describe


class UsageError(Exception):
    """Words that do not form a command: exit code 2."""


@dataclass(frozen=True)
class Verb:
    """`run` gets the parsed words and returns the exit code; `keys` are the settings it takes as key=value and from --config, by title."""

    name: str
    summary: str
    examples: tuple[str, ...]
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    keys: dict[str, dict[str, Key]] = field(default_factory=dict)

    def parser(self) -> argparse.ArgumentParser:
        after = [*(describe(title, keys) for title, keys in self.keys.items()), "\n  ".join(["examples:", *self.examples])]
        parser = Parser(prog=f"minitransfer {self.name}", description=self.summary, epilog="\n\n".join(after),
                        formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False)
        self.arguments(parser)
        if self.keys:
            parser.add_argument("--config", metavar="FILE", help="a YAML file with any of the settings below; what the command line says counts more")
        parser.add_argument("--traceback", action="store_true", help="show where in the code an error came from")
        parser.add_argument("-h", "--help", action="help", help="show this text and exit")
        return parser


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} ({self.prog} --help says more)")
