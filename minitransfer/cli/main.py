"""Words in, an exit code out: 0 done, 1 a mistake in what was given (a line says which), 2 not a command, 130 interrupted, 141 the reader left."""
from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

import torch

from .. import __version__
from ..config_parts import meant
from ..training import ranks
from .claims import CLAIMS
from .examine import DOCTOR, RECOMMEND, WHY
from .files import BENCH, CHECK, CONVERT, DEMO, INSPECT, PLAN, VERIFY
from .learn import ADAPT, FINETUNE, PRETRAIN
from .study import PROBE
from .use import EMBED, FILL, GENERATE, PREDICT
from .verb import UsageError, Verb

VERBS: dict[str, Verb] = {verb.name: verb for verb in (DEMO, PRETRAIN, ADAPT, FINETUNE, PREDICT, GENERATE, FILL, EMBED, CONVERT, INSPECT, PLAN, VERIFY, DOCTOR, WHY,
                                                           RECOMMEND, PROBE, CLAIMS, CHECK, BENCH)}
MISTAKES = (ValueError, KeyError, OSError, ImportError, torch.OutOfMemoryError)       # what the engine raises for a user; its messages say what to do


def overview() -> str:
    width = max(map(len, VERBS))
    below = "\n" + " " * (width + 4)
    lines = "\n".join(f"  {name:<{width}}  {verb.summary.replace(chr(10), below)}" for name, verb in VERBS.items())
    return ("usage: minitransfer <verb> ...\n\nTransfer learning in NLP you can read, run and check.\n\n" + lines + "\n\n"
            "minitransfer <verb> --help explains one of them, with examples; minitransfer --version prints the version.\n"
            "Results go to the standard output, progress and errors to the standard error.\n"
            "Exit codes: 0 done, 1 a mistake in what was given, 2 not a command, 130 interrupted.")


def show_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None,
                 line: str | None = None) -> None:
    print(f"minitransfer: warning: {message}", file=sys.stderr)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings as one line of ours, without the line of code that Python adds."""
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        yield


def dispatch(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"minitransfer {__version__}")
        return 0
    if words[0] not in VERBS:
        raise UsageError(f"no verb {words[0]!r}{meant(words[0], VERBS)}; there are {', '.join(VERBS)} (minitransfer --help explains them)")
    verb = VERBS[words[0]]
    try:
        args = verb.parser().parse_intermixed_args(words[1:])
    except SystemExit as e:             # --help
        return int(e.code or 0)
    return verb.run(args)


def joined(words: Sequence[str]) -> int:
    """Run a command as one of the processes of `torchrun`, or as the only one."""
    if words and VERBS.get(words[0]) in (PRETRAIN, ADAPT, FINETUNE):
        ranks.join()
    with ranks.one_voice():
        return dispatch(words)


def explained(error: BaseException) -> str:
    """What to tell the user; the system's own errors say what and where, and not what to do."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}; this file or folder has to be there and open to you: check its path and its rights"
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error).replace("resume=True", "--resume")


def say(what: str) -> None:
    """Why this ends; of several ranks, the first that fails says it."""
    if ranks.first_to_fail():
        print(f"minitransfer: {ranks.named()}{what}", file=sys.stderr)


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
        say("interrupted")
        return 130
    except UsageError as e:
        say(str(e))
        return 2
    except MISTAKES as e:
        if traceback:
            raise
        say(explained(e))
        return 1


def main(words: Sequence[str] | None = None) -> int:
    """Run one command. Returns: its exit code."""
    words = sys.argv[1:] if words is None else words
    with plain_warnings():
        return guarded(lambda: joined(words), "--traceback" in words)
