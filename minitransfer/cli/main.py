"""Words in, an exit code out: 0 done, 1 a mistake of the user's (one line says which), 2 not a command, 130 interrupted, 141 nobody reads the output any more."""
from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

import torch

from .files import CONVERT, DEMO, INSPECT
from .keys import nearest
from .learn import ADAPT, FINETUNE, PRETRAIN
from .use import EMBED, FILL, GENERATE, PREDICT
from .verb import UsageError, Verb

VERBS: dict[str, Verb] = {verb.name: verb for verb in (DEMO, PRETRAIN, ADAPT, FINETUNE, PREDICT, GENERATE, FILL, EMBED, CONVERT, INSPECT)}
MISTAKES = (ValueError, KeyError, OSError, torch.OutOfMemoryError)       # what the engine raises for a user; its messages say what to do


def package_version() -> str:
    try:
        return version("minitransfer")
    except PackageNotFoundError:        # run from a copy of the sources
        return "unknown"


def overview() -> str:
    width = max(map(len, VERBS))
    lines = "\n".join(f"  {name:<{width}}  {verb.summary.splitlines()[0]}" for name, verb in VERBS.items())
    return ("usage: minitransfer <verb> ...\n\nTransfer learning in NLP you can read, run and check.\n\n" + lines + "\n\n"
            "  minitransfer <verb> --help explains one of them, with examples that work.\n"
            "  minitransfer --version prints the version.\n  --traceback after a verb shows where in the code an error came from.\n\n"
            "Results go to the standard output, progress and errors to the standard error.\nExit codes: 0 done, 1 a mistake in what was given, 2 not a command, 130 interrupted.")


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings as one line of ours, without the line of code that Python adds."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, category, filename, lineno, file=None, line=None: print(f"minitransfer: warning: {message}", file=sys.stderr)
        yield


def dispatch(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"minitransfer {package_version()}")
        return 0
    if words[0] not in VERBS:
        raise UsageError(f"no verb {words[0]!r}{nearest(words[0], VERBS)}; there are {', '.join(VERBS)} (minitransfer --help explains them)")
    verb = VERBS[words[0]]
    return run(verb, verb.parser(), [word for word in words[1:] if word != "--traceback"])


def run(verb: Verb, parser: argparse.ArgumentParser, words: list[str]) -> int:
    try:
        args = parser.parse_intermixed_args(words)
    except SystemExit as e:             # --help
        return int(e.code or 0)
    return verb.run(args)


def guarded(call: Callable[[], int], traceback: bool) -> int:
    """Run `call`; what the user did wrong becomes a line on the standard error and an exit code."""
    try:
        code = call()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # the reader went away (`| head`): Python would complain once more when it closes the stream, unless that leads nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("minitransfer: interrupted", file=sys.stderr)
        return 130
    except UsageError as e:
        print(f"minitransfer: {e}", file=sys.stderr)
        return 2
    except MISTAKES as e:
        if traceback:
            raise
        message = e.args[0] if isinstance(e, KeyError) and e.args else e
        print(f"minitransfer: {message}", file=sys.stderr)
        return 1


def main(words: Sequence[str] | None = None) -> int:
    """Run one command. Returns: its exit code."""
    words = sys.argv[1:] if words is None else words
    with plain_warnings():
        return guarded(lambda: dispatch(words), "--traceback" in words)
