"""Labels for new texts, from a model or from a saved folder alone."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..nn.model import Model
from ..text import Tokenizer
from ..transfer.peft_files import CONFIG, load_adapter
from ..weights.files import read_json, recover
from ..weights.sources import resolve
from .base import Task, longest
from .named import TASKS
from .similarity import SimilarityTask


def tuned_folder(source: str | Path) -> Path:
    """The folder of the tuned model; the folder of a run stands for the model in it."""
    inside = Path(source).expanduser() / "model"
    return recover(inside) if inside.is_dir() and not (inside.parent / "config.json").is_file() else resolve(source)


def saved_adapter(folder: Path) -> tuple[str, dict[str, Any]]:
    """The base of an adapter that `finetune` wrote, and what its task.json tells.

    Raises: ValueError for a folder without an adapter, or an adapter without a task.json or a base.
    """
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} holds no adapter ({CONFIG}); one is needed beside its base: tune with strategy lora or adapter, or load a whole model with load_tuned")
    base = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not (folder / "task.json").is_file() or not base:
        missing = "a task.json, which has the labels" if base else "the name of its base"
        raise ValueError(f"{folder} holds an adapter without {missing}; both are needed: "
                         f"load the base ({base or 'the one it was made for'}) with head= and labels=, then call load_adapter")
    return base, read_json(folder / "task.json")


def put_saved_head(model: Model, told: dict[str, Any]) -> None:
    """The head that a task.json tells of, still without its weights."""
    task, made = task_from(told), dict(told.get("head", {}))
    if made.pop("projections", 0):
        model.head.pooling, model.head.normalise = made["pooling"], made["normalise"]
    else:
        model.set_head(task.head, told["labels"], **made)
    if task.problem is not None:
        model.head.use(task.problem)


def load_tuned(source: str | Path) -> tuple[Model, Tokenizer]:
    """The model and the tokenizer of a folder that `finetune` wrote: a whole model, or an adapter together with the base that it names.

    Raises: ValueError for an adapter without a task.json or whose base cannot be found; and what the loaders raise.
    """
    folder = tuned_folder(source)
    if not (folder / CONFIG).is_file():
        return Model.from_pretrained(folder), Tokenizer.from_pretrained(folder)
    base, told = saved_adapter(folder)
    try:
        model = Model.from_pretrained(base, head="embedding" if told.get("head", {}).get("projections") else "none")
        put_saved_head(model, told)
    except ValueError as e:
        raise ValueError(f"{folder} is an adapter for {base}, and needs it; it could not be loaded ({e}): put the base back, or write where it is now into {folder / CONFIG}, "
                         "base_model_name_or_path") from e
    load_adapter(model, folder)
    return model.eval(), Tokenizer.from_pretrained(folder)


def saved_task(source: str | Path) -> tuple[Task | None, int | None]:
    """The task a model was tuned for, and the max_length."""
    path = tuned_folder(source) / "task.json"
    if not path.is_file():
        return None, None
    told = read_json(path)
    return task_from(told), told.get("max_length")


def task_from(told: dict) -> Task:
    """The task that a task.json describes."""
    made: Task = TASKS[told["task"]](**told["columns"], **told.get("settings", {}))
    return made


def task_for(model: Model) -> Task:
    """The task that a model's head answers. Raises: ValueError if there is none."""
    for task in (*(kind() for kind in TASKS.values()), SimilarityTask(label=None)):
        if task.head == model.head_name and task.problem == getattr(model.head, "problem", None):
            return task
    raise ValueError(f"a model with head={model.head_name!r} gives no labels; it needs the head of a task ({', '.join(TASKS)}): "
                     "tune it with finetune, or load a tuned folder")


def predict(model: Model | str | Path, tok: Tokenizer | None = None, texts: str | Sequence[Any] = (), pairs: str | Sequence[str] | None = None,
            batch_size: int = 32, max_length: int | None = None, task: Task | None = None) -> list:
    """Label texts.

    Args:    model: a model with a task's head, or the folder of a tuned one (of the run, of the model, or of the adapter), which needs no `tok`.
             texts, pairs: lists, or one text. For a token task a text may be a list of words; for a span task
             texts are questions and pairs their contexts. batch_size: texts computed together.
             max_length: texts are cut after so many tokens; default: as in tuning, else what the model can read.
             task: with settings of its own; default: the one the model was tuned for, else the one of its head.
    Returns: in the order of the texts: a `Prediction` each; of a multilabel task a `LabelsPrediction`, of a regression a `NumberPrediction`, of a token
             task a list of `WordPrediction`, which knows its `.entities`; of a span task an `AnswerPrediction`.
    Raises:  ValueError for a model without a task's head, a missing tokenizer, or a text without a token.
    """
    if not isinstance(model, Model):
        (saved, length), (model, own) = saved_task(model), load_tuned(model)
        task, tok, max_length = task or saved, tok or own, max_length or length
    if tok is None:
        raise ValueError("predict with a model object and no tokenizer; it makes the ids: pass tok=, or give the saved folder instead of the model")
    task = task or task_for(model)
    texts = [texts] if isinstance(texts, str) else list(texts)
    pairs = [pairs] if isinstance(pairs, str) else pairs
    return task.predict(model, tok, texts, pairs, batch_size, longest(model, tok, max_length)) if texts else []
