"""Labelled rows: copies, rows of one split in another, and labels that teach or test nothing."""
from __future__ import annotations

import itertools
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ...tasks.base import Task
from ...tasks.sequence import no_label
from ...tasks.split import NOTED
from ...text import TruncationWarning, label_name
from .finding import WRONG, Finding, Tried
from .patient import Patient

REPEATED, CONTRADICTED = 0.1, 0.02          # shares of rows from which it is wrong; of leaked ones it is that from which `finetune` warns
ALMOST_ALL = 0.95
NUMBERS = ("regression", "similarity")
CLASSES = ("sequence", "multilabel", "token")


class Plain(dict[int, str]):
    """Character -> what stands for it: nothing for an accent, a space for punctuation, signs, spaces and controls. Each is looked up once."""

    def __missing__(self, code: int) -> str:
        self[code] = "" if 0x300 <= code <= 0x36F else " " if unicodedata.category(chr(code))[0] in "PSZC" else chr(code)
        return self[code]


PLAIN = Plain()


def normal(text: str) -> str:
    """Letters and digits in one case, without accents, and single spaces: what copies have in common that were typed or cleaned anew."""
    return " ".join(unicodedata.normalize("NFKD", text.casefold()).translate(PLAIN).split())


def spaced(text: str) -> str:
    """One case, and single spaces."""
    return " ".join(text.casefold().split())


def question(row: dict, task: Task, form: Callable[[str], str] = normal) -> tuple[str, ...]:
    """What a row asks, in this form; a text of which it leaves nothing stays as it is."""
    asked = (value if isinstance(value := row[name], str) else " ".join(value) for name in task.asks)
    return tuple(form(text) or text for text in asked)


def texts(p: Patient) -> Iterator[Finding]:
    for split, bad in p.unread.items():
        if bad:
            yield Tried("texts", f"the columns of the {split} rows that hold the question").wrong(
                f"{len(bad):,} of {len(bad) + len(p.splits[split]):,} {split} rows have none (first row {bad[0]})", "fill the cells, or drop these rows: finetune refuses them")


def copies(p: Patient) -> Iterator[Finding]:
    """Rows that are the same but for case, accents, punctuation and spaces."""
    if p.task is None:
        return
    asked = {split: [question(row, p.task) for row in rows] for split, rows in p.splits.items()}
    for split, rows in asked.items():
        say, n = Tried("duplicates", f"{len(rows):,} {split} rows without case, accents, punctuation and spaces"), len(rows) - len(set(rows))
        yield say.of_share(n, len(rows), f"{n:,} of {len(rows):,} {split} rows repeat another" if n else f"no {split} row repeats another",
                           "drop them: what is repeated counts several times, and what is held out of copies was seen", REPEATED)
    for (first, known), (split, rows) in itertools.combinations(asked.items(), 2):
        say = Tried("leak", f"{len(rows):,} {split} rows among the {first} rows, without case, accents, punctuation and spaces")
        before = set(known)
        seen = [i for i, one in enumerate(rows) if one in before]
        yield say.of_share(len(seen), len(rows), f"{len(seen):,} of {len(rows):,} {split} rows are also {first} rows (first {split} row {seen[0]})" if seen
                           else f"no {split} row is a {first} row", "drop them from one of the two: the metrics are better than on new texts", NOTED)
    if p.task.name in CLASSES:
        yield from contradictions(p, p.task)


def contradictions(p: Patient, task: Task) -> Iterator[Finding]:
    """Here punctuation counts: ":)" and ":(" may be the whole difference."""
    told: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for row, names in zip(p.training, classes(task, p.training), strict=True):
        told.setdefault(question(row, task, spaced), set()).add(tuple(names))
    n, say = sum(len(answers) > 1 for answers in told.values()), Tried("contradictions", f"the labels of {len(told):,} different training texts")
    yield say.of_share(n, len(told), f"{n:,} texts have several rows with different labels" if n else "no text has two different labels",
                       "decide for one label, or drop these rows", CONTRADICTED)


def classes(task: Task, rows: Sequence[dict]) -> list[list[str]]:
    """The decisions in each row: its label, its labels, or its tags. What is no label counts for nothing; other checks name it."""
    found = (row[list(task.columns.values())[-1]] for row in rows)
    values = (value.tolist() if hasattr(value, "tolist") else value for value in found)
    return [[label_name(one) for one in (value if isinstance(value, list | tuple | set) else [value]) if not no_label(one)] for value in values]


def labels(p: Patient) -> Iterator[Finding]:
    """Labels that cannot be learned or measured; then what the task itself says of the rows."""
    if p.task is None or not p.training:
        return
    found = list(degenerate_numbers(p, p.task) if p.task.name in NUMBERS else degenerate_classes(p, p.task) if p.task.name in CLASSES else ())
    yield from found
    yield from strangers(p, p.task)
    say = Tried("labels", "the rows as the task reads them")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", TruncationWarning)                       # a check of its own says it
        try:
            p.task.labels(p.training, p.splits.get("validation", []))
            fault = p.fault if p.batch is None else ""
        except (ValueError, KeyError) as e:
            fault = str(e.args[0])
    if fault and all(one.result != WRONG for one in found):                       # what was named already needs no second name
        yield say.wrong(*parted(fault))
    for one in told:
        yield say.note(*parted(str(one.message)))
    if not fault and not told:
        yield say.ok("every row can be read")


def parted(message: str) -> tuple[str, str]:
    """What is wrong, and what to do, of a message in three parts."""
    seen, _, do = message.partition("; ")
    return (seen, do) if do else (message.rpartition(": ")[0] or message, message.rpartition(": ")[2])


def degenerate_classes(p: Patient, task: Task) -> Iterator[Finding]:
    counts = {split: Counter(name for names in classes(task, rows) for name in names) for split, rows in p.splits.items()}
    say = Tried("classes", f"the labels of {', '.join(f'{sum(count.values()):,} {split}' for split, count in counts.items())} decisions")
    problems = []
    for split, count in counts.items():
        if len(count) == 1 and sum(count.values()) > 1:
            problems.append(say.wrong(f"all {split} decisions have the label {next(iter(count))!r}", "the rows may be the top of a file sorted by label: draw them with "
                                      "sample_rows(rows, n, by=label)"))
        elif missing := sorted(set(count) - set(counts["training"])):
            problems.append(say.wrong(f"{split} has {', '.join(map(repr, missing[:5]))}, which no training row has", "nothing can be answered that was never shown: split "
                                      "the rows anew, by label, or drop these"))
        elif (most := max(count.values(), default=0)) >= ALMOST_ALL * sum(count.values()) and len(count) > 1 and task.name != "token":
            problems.append(say.note(f"{most / sum(count.values()):.1%} of the {split} decisions have one label", "read f1 or matthews and not accuracy, which always saying "
                                     "this label would reach"))
    if rare := sorted(name for name, n in counts["training"].items() if n == 1 and len(p.training) >= 10):
        problems.append(say.note(f"{len(rare)} labels have one training row: {', '.join(map(repr, rare[:5]))}", "join them, drop them, or label more rows"))
    yield from problems or [say.ok(f"{len(counts['training'])} labels, each in every split it is asked in")]


def degenerate_numbers(p: Patient, task: Task) -> Iterator[Finding]:
    name = list(task.columns.values())[-1]
    if name is None:
        return
    for split, rows in p.splits.items():
        numbers = np.array([number for row in rows if (number := as_number(row.get(name))) is not None])
        say = Tried("targets", f"{len(numbers):,} {split} numbers")
        if not len(numbers):
            continue
        value, times = Counter(numbers.tolist()).most_common(1)[0]
        if len(numbers) > 1 and (times >= ALMOST_ALL * len(numbers) or numbers.std() <= 1e-3 * abs(numbers.mean())):
            yield say.wrong(f"{times / len(numbers):.0%} of the {split} numbers are {value:g}, their deviation is {numbers.std():.2g}",
                            "a constant answers them as well as a model can: check the column, or subtract what they have in common")
        else:
            yield say.ok(f"the {split} numbers vary: deviation {numbers.std():.2g} around {numbers.mean():.2g}")


def as_number(value: object) -> float | None:
    try:
        number = float(value)       # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if abs(number) < float("inf") else None


def strangers(p: Patient, task: Task) -> Iterator[Finding]:
    """Labels that the head has no output for."""
    if p.own.labels is None or p.own.head_name != task.head or task.name not in CLASSES:
        return
    asked = {name for rows in p.splits.values() for names in classes(task, rows) for name in names}
    say, unknown = Tried("label set", f"the labels of the rows against the {len(p.own.labels)} of the head"), sorted(asked - set(p.own.labels))
    yield (say.wrong(f"the head has {', '.join(map(repr, p.own.labels[:5]))} and no {', '.join(map(repr, unknown[:5]))}",
                     "name the head's labels as the data does, or let finetune put a fresh head in its place") if unknown else say.ok("each has an output"))
