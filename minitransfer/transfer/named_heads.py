"""Several tasks on one body: each has a head and, by name, an adapter of its own; one of them answers at a time.

    heads = NamedHeads(model)
    finetune(model, tok, "sequence", train=reviews, strategy=lora(name="mood"))
    heads.keep("mood")
    finetune(model, tok, "token", train=news, strategy=lora(name="names"))
    heads.keep("names")
    heads.use("mood"); heads.use("names"); heads.use(None)          # None: the base and its own head, bit for bit

The heads of the other tasks wait outside the model; the base gives copies of its own head and pooler, which may then be trained. A task is saved as
`finetune(..., out=)` or `save_adapter` saves it, with its head in the adapter's folder; `tasks.load_several` puts such folders on one body.
"""
from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import nn

from ..nn.model import Model
from .fingerprint import differs, fingerprint
from .named import chosen_adapter, set_adapter
from .peft_files import carried


@dataclass(frozen=True)
class Answer:
    """What a task has of its own."""

    head: nn.Module | None
    pooler: nn.Module | None
    head_name: str
    labels: list[str] | None
    adapter: str | None


class NamedHeads:
    """The tasks of a model by name; what is in the model now is put back by `use`."""

    def __init__(self, model: Model):
        self.model, self.body = model, fingerprint(model)
        self.base = Answer(model.head, model.pooler, model.head_name, model.labels, None)
        self.tasks: dict[str, Answer] = {}
        self.use(None)

    def __repr__(self) -> str:
        return f"<NamedHeads: {', '.join(f'{name} ({one.head_name})' for name, one in self.tasks.items()) or 'no task kept yet'}>"

    def keep(self, name: str) -> None:
        """Remember the head and the chosen adapter as the task `name`; the model is then the base again, ready for another one.

        Raises: ValueError for a name that is taken, a body that was trained itself, or a change of it that has no name, such as a prefix.
        """
        if name in self.tasks:
            raise ValueError(f"a task named {name!r} is kept already; there are {', '.join(self.tasks)}: give another name")
        if unnamed := [kind.called for kind in carried(self.model).values() if not kind.named]:
            raise ValueError(f"the model carries a {' and a '.join(unnamed)}, which would answer in every task; tasks share one body: use strategy lora, adapter or head")
        if difference := differs(self.model, self.body):
            raise ValueError(f"the body is not the one of the other tasks any more ({difference}); they share it untrained: use strategy lora, adapter or head")
        m = self.model
        self.tasks[name] = Answer(m.head, m.pooler, m.head_name, m.labels, chosen_adapter(m))
        self.use(None)

    def use(self, name: str | None) -> None:
        """Let this task answer, and train; None: the base with its own head.

        Raises: ValueError for a name that no task has.
        """
        if name is not None and name not in self.tasks:
            raise ValueError(f"no task is called {name!r}; there are {', '.join(self.tasks) or 'none'}: use one of these, or keep it first")
        m, one = self.model, self.base if name is None else self.tasks[name]
        m.head, m.pooler = (one.head, one.pooler) if name else copy.deepcopy((one.head, one.pooler), {id(m.embed.tokens): m.embed.tokens})
        m.head_name, m.labels = one.head_name, one.labels
        for module in (m.head, m.pooler):
            if module is not None:
                module.to(m.device).train(m.training)
        set_adapter(m, one.adapter)
