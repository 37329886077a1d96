"""One body for the folders of several tuned tasks."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..nn.model import Model
from ..text import Tokenizer
from ..transfer.named_heads import NamedHeads
from ..transfer.peft_files import CONFIG, load_adapter
from ..weights.files import read_json
from .predict import put_saved_head, saved_adapter, tuned_folder


def load_several(folders: Mapping[str, str | Path]) -> tuple[NamedHeads, Tokenizer]:
    """Load the base once, and the adapter and the head of each task.

    Args:    folders: name of a task -> a folder that `finetune` wrote with strategy lora or adapter; all on one base.
    Returns: the tasks, none of them in use, with `.model`; and the tokenizer. `heads.use(name)`, then `predict(heads.model, tok, texts)`.
    Raises:  ValueError for no folder, folders without names, one that holds no adapter of a task, adapters of two kinds, or an adapter for another base.
    """
    if not isinstance(folders, Mapping):
        raise ValueError(f"folders={folders!r}; each task is called by a name, which heads.use takes: give {{name: folder}}")
    places = {name: tuned_folder(folder) for name, folder in folders.items()}
    if not places:
        raise ValueError("load_several without a folder; it takes one or more tuned tasks: give {name: folder}")
    told = {name: saved_adapter(place) for name, place in places.items()}
    if len(kinds := {str(read_json(place / CONFIG).get("peft_type")) for place in places.values()}) > 1:
        raise ValueError(f"load_several of {' and '.join(sorted(kinds))}; one body carries several adapters of one kind: tune all tasks with lora, or all with adapter")
    heads = NamedHeads(Model.from_pretrained(next(iter(told.values()))[0], head="none").eval())
    for name, place in places.items():
        put_saved_head(heads.model, told[name][1])
        load_adapter(heads.model, place, name=name)
        heads.keep(name)
    return heads, Tokenizer.from_pretrained(next(iter(places.values())))
