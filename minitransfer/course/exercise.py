"""What an exercise is, and how answers are graded."""
from __future__ import annotations

import ast
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config_parts import meant

Grade = Callable[[Callable[..., Any]], str]
EXERCISES: dict[str, dict[str, Exercise]] = {}      # number of the notebook -> name of the answer -> exercise
WITHIN = 1e-5                                       # of max(1, the largest value), as everywhere in the project


class Wrong(Exception):
    """An answer that is not right, and what was seen."""


@dataclass(frozen=True)
class Exercise:
    """asks: the signature and what has to come back; grade: answer -> what was compared. It raises Wrong."""

    number: str
    name: str
    asks: str
    grade: Grade


def exercise(number: str, asks: str) -> Callable[[Grade], Grade]:
    """Register a grader under the name of the answer that it grades."""
    def register(grade: Grade) -> Grade:
        EXERCISES.setdefault(number, {})[grade.__name__] = Exercise(number, grade.__name__, asks, grade)
        return grade
    return register


@dataclass(frozen=True)
class Verdict:
    """word: "right", "wrong" or "not solved yet"; seen: what was compared, or what was seen instead."""

    name: str
    word: str
    seen: str

    def __str__(self) -> str:
        return f"{self.name}: {self.word}" + (f" ({self.seen})" if self.seen else "")


class Verdicts(tuple[Verdict, ...]):
    """Of all answers that were given, in the order of the notebook."""

    @property
    def right(self) -> bool:
        return all(one.word == "right" for one in self)

    def __str__(self) -> str:
        return "\n".join(map(str, self))

    __repr__ = __str__


def check(number: str | int, *answers: Callable[..., Any], file: str | Path | None = None) -> Verdicts:
    """Grade answers to the exercises of a notebook.

    Args:    number: of the notebook, "03" or 3; answers: functions, each called as its exercise is; file: a Python file that defines them, which is run.
    Raises:  KeyError for a notebook without exercises, or a function that none of them asks for; ValueError for neither functions nor a file that has some.
    """
    known = exercises(number)
    given = dict(from_file(file, known)) if file is not None else {answer.__name__: answer for answer in answers}
    for name in given:
        if name not in known:
            raise KeyError(f"{name!r} answers no exercise of {number}{meant(name, known)}; they are {', '.join(known)}: name the function like one of them")
    if not given:
        raise ValueError(f"nothing to grade for notebook {number}; its exercises are {', '.join(known)}: write a function with one of these names")
    return Verdicts(graded(known[name], given[name]) for name in known if name in given)


def exercises(number: str | int) -> dict[str, Exercise]:
    """Of one notebook. Raises: KeyError if there are none."""
    for page in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{page.name}")
    if (key := f"{int(number):02d}" if str(number).isdigit() else str(number)) not in EXERCISES:
        raise KeyError(f"no exercises for notebook {number!r}; there are some for {', '.join(sorted(EXERCISES))}: give one of these numbers")
    return EXERCISES[key]


def from_file(file: str | Path, known: Mapping[str, Exercise]) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The answers that a Python file (or a notebook's source) defines. Raises: ValueError for a file that does not run."""
    path, names = Path(file), {"__name__": "answers"}
    try:
        exec(compile(ast.parse(path.read_text(encoding="utf-8"), str(path)), str(path), "exec"), names)
    except OSError:
        raise
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path} stopped with {type(error).__name__}: {error}; a file with answers has to run on its own: mend it, or leave out what is no answer") from error
    return ((name, value) for name, value in names.items() if name in known and callable(value))


def graded(one: Exercise, answer: Callable[..., Any]) -> Verdict:
    """Whatever goes wrong inside an answer is a verdict and no traceback."""
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():           # a notebook may have switched gradients off
            torch.manual_seed(0)
            return Verdict(one.name, "right", one.grade(answer))
    except NotImplementedError:
        return Verdict(one.name, "not solved yet", one.asks)
    except Wrong as error:
        return Verdict(one.name, "wrong", str(error))
    except (Exception, SystemExit) as error:                                     # an answer that ends the process would pass as nothing wrong
        return Verdict(one.name, "wrong", f"it stopped with {type(error).__name__}: {error}")


# ---- what graders are made of ---------------------------------------------------------------------------------------------------------------------

def demand(holds: Any, seen: str) -> None:
    """Raises: Wrong with what was seen unless something holds."""
    if not holds:
        raise Wrong(seen)


def gap(what: str, answer: Any, truth: Tensor, within: float = WITHIN) -> float:
    """max |answer - truth| / max(1, max |truth|). Raises: Wrong if it is more than `within`, for another shape, or for no tensor."""
    demand(isinstance(answer, Tensor), f"{what} is a {type(answer).__name__}, a tensor is needed")
    demand(answer.shape == truth.shape, f"{what} has the shape {tuple(answer.shape)}, it should be {tuple(truth.shape)}")
    demand(not answer.isnan().any(), f"{what} has a NaN")
    found = float(((answer.detach().double() - truth.detach().double()).abs().max() / truth.detach().double().abs().max().clamp(min=1)) if truth.numel() else 0.0)
    demand(found <= within, f"{what}: a difference of {found:.1e}, more than {within:.0e}")
    return found


@contextmanager
def in_engine(place: str, answer: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Inside, every part of the engine that uses the function `place` ("nn.attention:attend", "transfer.lora:LowRank.change") calls the answer. Yields: the engine's own."""
    module, path = place.split(":")
    *outer, name = path.split(".")
    owner: Any = importlib.import_module(f"minitransfer.{module}")
    for part in outer:
        owner = getattr(owner, part)
    own = getattr(owner, name)
    users = [owner] if outer else [m for key, m in list(sys.modules.items()) if key.startswith("minitransfer.") and getattr(m, name, None) is own]
    try:
        for user in users:
            setattr(user, name, answer)
        yield own
    finally:
        for user in users:
            setattr(user, name, own)


def same_in_engine(place: str, answer: Callable[..., Any], run: Callable[[], Mapping[str, Tensor]]) -> float:
    """Run something with the engine's own function and with the answer in its place, from the same seed, and compare all that it gives. Returns: the largest gap."""
    def seeded() -> Mapping[str, Tensor]:
        torch.manual_seed(0)
        return run()
    truth, calls = seeded(), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(place)
        return answer(*args, **kwargs)
    with in_engine(place, counted):
        found = seeded()
    if not calls:
        raise RuntimeError(f"{place} is not called by what this exercise runs; nothing was compared")
    lacking = next((name for name in truth if name not in found), None)
    demand(lacking is None, f"in the engine, there is no {lacking}")
    return max(gap(f"in the engine, {name}", found[name], one) for name, one in truth.items())
