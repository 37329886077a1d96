"""What a verb is, and the words that every verb understands alike."""
from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field

from .keys import Key, describe


class UsageError(Exception):
    """Words that do not form a command: exit code 2."""


@dataclass(frozen=True)
class Verb:
    """`run` gets the parsed words and returns the exit code; `keys` are the settings it takes as key=value and from --config."""

    name: str
    summary: str
    example: str                                            # commands, one a line
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    keys: dict[str, dict[str, Key]] = field(default_factory=dict)       # title -> name -> key

    def parser(self) -> argparse.ArgumentParser:
        parser = Parser(prog=f"minitransfer {self.name}", description=self.summary, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False,
                        epilog="\n\n".join([*(describe(title, keys) for title, keys in self.keys.items()), "examples:\n" + "\n".join(f"  {line}" for line in self.example.splitlines())]))
        self.arguments(parser)
        if self.keys:
            parser.add_argument("--config", metavar="FILE", help="a YAML file with any of the settings below; what stands on the command line counts more")
        parser.add_argument("-h", "--help", action="help", help="show this text and exit")
        return parser


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:      # type: ignore[override]
        raise UsageError(f"{message} ({self.prog} --help says more)")
