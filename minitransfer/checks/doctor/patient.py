"""What is examined: a copy of the model, the tokenizer, the rows of every split, and the texts and batches made of them."""
from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ... import samples
from ...nn.encoder_decoder import READS_TWICE, EncoderDecoder
from ...nn.model import Model
from ...objectives import Causal, Masked, Objective
from ...objectives.base import INPUTS, tokens_of
from ...tasks.base import Task, longest, supervised
from ...tasks.finetune import put_head
from ...tasks.named import texts_of
from ...text import Tokenizer, read_texts
from ...transfer.base import Strategy

MOST = 2000         # rows whose texts are tokenised
CHARACTERS = 10_000 # of a line of raw text
ROWS = 8            # rows of the batch that is trained on
LENGTH, SHORTEST = 64, 4        # tokens of a text that is read in several ways

Inputs = dict[str, Tensor]


@dataclass
class Patient:
    """Checks may do with `model` what they want: it is a copy. `own` is the user's, which is only looked at."""

    own: Model
    tok: Tokenizer
    task: Task | None
    splits: Mapping[str, Sequence[dict]]        # "training" first; of a task
    corpus: Any = None                          # of no task: what `read_texts` reads
    strategy: Strategy | None = None
    objective: Objective | None = None
    groups: list[dict] | None = None
    max_length: int | None = None
    seed: int = 0
    model: Model = field(init=False)
    fault: str = ""
    unread: dict[str, list[int]] = field(default_factory=dict)      # rows without a text, which no other check sees

    def __post_init__(self) -> None:
        self.unread = {split: [i for i, row in enumerate(rows) if not has_texts(row, self.task)] for split, rows in self.splits.items()}
        self.splits = {split: [row for row in rows if has_texts(row, self.task)] for split, rows in self.splits.items()}
        made: dict[int, Any] = {}                                                # an objective that holds the model, or another one, holds the copy
        self.model, self.objective = copy.deepcopy(self.own, made).eval(), copy.deepcopy(self.objective, made)
        if any(p.dtype in (torch.float16, torch.bfloat16) for p in self.model.parameters()):
            self.model.float()                                                   # what is compared is the model, not its rounding

    @property
    def training(self) -> Sequence[dict]:
        return self.splits.get("training", ())

    @cached_property
    def limit(self) -> int:
        """Tokens after which texts are cut. Raises: ValueError for a length or a tokenizer that does not fit the model."""
        return longest(self.own, self.tok, self.max_length, 0 if self.strategy is None else self.strategy.ahead)

    @cached_property
    def texts(self) -> list[str]:
        """Some texts of the data, of raw text its lines; of a call without data, some that come with the package."""
        if self.task is not None and self.training:
            return texts_of(self.task, self.training[:MOST])
        documents = read_texts(samples.path("general.txt") if self.corpus is None else self.corpus)
        return list(islice((line[:CHARACTERS] for document in documents for line in document.splitlines() if line.strip()), MOST))

    @cached_property
    def labels(self) -> list[str]:
        """The classes of the training rows. Raises: as the task's own."""
        assert self.task is not None
        return self.task.labels(self.training, [])

    @cached_property
    def probe(self) -> list[Inputs]:
        """Texts of different lengths, each as a batch of one without padding."""
        most, rows = max(SHORTEST, min(LENGTH, self.own.longest // 2)), self.own.config.vocab_size     # two of them fit into a row
        ids, types = self.tok.encode_rows(spread(self.texts, 4, len), None, most)
        made = [self.tok.collate([one], [kind]) for one, kind in zip(ids, types, strict=True) if len(one)]
        reads = {name for name in INPUTS if name != "token_type_ids" or self.own.config.n_token_types}
        return [{name: (t % rows if name == "input_ids" else t).to(self.own.device) for name, t in one.items() if name in reads} for one in made]

    def read(self, inputs: Inputs) -> tuple[list[Tensor], Tensor | None]:
        """The states of each row's tokens, (T_i, D), and what the head answers of whole rows, (B, n)."""
        model: Any = self.model
        if isinstance(model, EncoderDecoder) and model.head_name not in READS_TWICE:
            model = model.encoder
        with torch.no_grad():
            out = model(**inputs)
        whole = out.logits if model.head_name in ("sequence", "choice") else out.embeddings
        return [state[keep].float() for state, keep in zip(out.last_hidden_state, tokens_of(inputs), strict=True)], whole

    @cached_property
    def batch(self) -> Inputs | None:
        """A batch that can be learned from; None if this model learns from nothing here, or, as `fault` says, its rows cannot be read."""
        try:
            found = self.make_batch()
        except (ValueError, KeyError) as e:
            self.fault = str(e.args[0])
            return None
        return None if found is None else {name: t.to(self.own.device) for name, t in found.items()}

    def make_batch(self) -> Inputs | None:
        if self.task is not None and self.training:
            put_head(self.model, self.task, self.labels, self.seed)
            self.model.eval()
            return self.task.batches(self.sample(ROWS), self.tok, self.model.labels or self.labels, ROWS, None, self.limit, self.seed)[0]
        return None if self.learns is None else self.tok(spread(self.texts, ROWS, len), max_length=min(LENGTH, self.limit))

    def sample(self, n: int) -> list[dict]:
        """Rows of many lengths."""
        names = [] if self.task is None else self.task.asks
        return spread(list(self.training[:MOST]), n, lambda row: sum(len(row[name]) for name in names))

    @cached_property
    def learns(self) -> Objective | None:
        """The objective that this model is trained with here."""
        if self.objective is not None or self.task is not None:
            return self.objective or supervised
        if self.own.head_name.startswith("masked") and self.tok.mask_id is not None:
            return Masked(self.tok)
        return Causal() if self.own.head_name == "causal" else None


def has_texts(row: dict, task: Task | None) -> bool:
    """Whether what the row asks is texts, or lists of words."""
    asked = [row[name] for name in (task.asks if task is not None else [])]
    return all(isinstance(value, str) or (hasattr(value, "__len__") and all(isinstance(word, str) for word in value)) for value in asked)


def spread(rows: list, n: int, size: Any) -> list:
    """n of them, from the shortest to the longest."""
    ordered = sorted(rows, key=size)
    return [ordered[i * (len(ordered) - 1) // max(1, n - 1)] for i in range(min(n, len(ordered)))]
