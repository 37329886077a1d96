"""Tasks by their names, and the columns they read."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from ..config_parts import meant
from ..text.readers import column
from .base import Task
from .multilabel import MultiLabelTask
from .regression import RegressionTask
from .sequence import SequenceTask
from .similarity import SimilarityTask
from .span import SpanTask
from .token import TokenTask

TASKS: dict[str, type[Any]] = {one.name: one for one in (SequenceTask, MultiLabelTask, RegressionTask, SimilarityTask, TokenTask, SpanTask)}


def named_task(name: str, columns: Mapping[str, str | None], **settings: Any) -> Task:
    """A task by its name.

    Args:   columns: "text", "pair" and "label" -> columns to read in the place of the task's own, of which the first is the text (words, question), the last the
            label (tags, answers), and one between them the pair (context). settings: fields of the task.
    Raises: ValueError for a name that does not exist, with the nearest one that does; or a column or setting that the task does not have.
    """
    if name not in TASKS:
        raise ValueError(f"task={name!r}{meant(name, TASKS)}; there are {', '.join(map(repr, TASKS))}: choose one, or pass a task object")
    kind = TASKS[name]
    own, known = list(kind().columns), {one.name for one in fields(kind)}
    places = dict(zip(("text", "pair", "label") if len(own) == 3 else ("text", "label"), own, strict=True))
    if strangers := [one for one in {**columns, **settings} if one not in {*places, *known}]:
        raise ValueError(f"{', '.join(strangers)} for task {name!r}; it has {', '.join(sorted({*places, *known - set(places.values())}))}: leave out what it has not")
    made: Task = kind(**{places[place]: column for place, column in columns.items()}, **settings)
    return made


def task_of(task: str | Task, columns: dict[str, str | None]) -> Task:
    """A task by its name with these columns, or as it is. Raises: ValueError for what is neither, or columns beside an object, which has its own."""
    given = {place: column for place, column in columns.items() if column is not None}
    if isinstance(task, str):
        return named_task(task, given)
    if not isinstance(task, Task) or isinstance(task, type):
        raise ValueError(f"task={task!r}; it is a name ({', '.join(map(repr, TASKS))}) or a task object such as TokenTask(): give one of these")
    if given:
        settings = ", ".join(f"{one}=..." for one in task.columns)
        raise ValueError(f"{', '.join(given)} beside a task object; it has columns of its own: set them there, {type(task).__name__}({settings})")
    return task


def texts_of(task: Task, rows: Sequence[dict]) -> list[str]:
    """The texts of rows, each once; words are joined."""
    found = (value if isinstance(value, str) else " ".join(value) for name in task.asks for value in column(rows, name))
    return list(dict.fromkeys(text for text in found if text.strip()))


def check_columns(task: Task, splits: dict[str, Sequence[dict]]) -> None:
    """Raises: KeyError for a column that a row of one of the splits does not have."""
    for split, rows in splits.items():
        for name in task.columns.values():
            if name is not None:
                column(rows, name, split)
