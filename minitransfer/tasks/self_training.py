"""Self-training: the model labels text itself, and learns from those labels that it is sure of.

    round 0    tune the pretrained model on the labelled rows
    round r    label the unlabelled texts with the model of round r - 1, keep those with p >= threshold, tune the pretrained model again on both

Every round starts from the pretrained weights, so that a mistake of one round can be unlearned in the next.
Source: Yarowsky 1995, "Unsupervised Word Sense Disambiguation Rivaling Supervised Methods"; Lee 2013, "Pseudo-Label".
"""
from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..nn.model import Model
from ..text import Tokenizer, read_rows
from ..text.readers import column
from ..training.evaluate import refuse_test_split
from .finetune import FinetuneResult, finetune
from .predict import predict
from .sequence import Prediction, SequenceTask
from .split import check_held_out


@dataclass(frozen=True, repr=False)
class Round:
    """One round; prints as a line."""

    number: int
    labels: dict[str, int]          # how many unlabelled texts were kept for each label
    unlabelled: int
    noise: float | None             # the share of wrong labels among those kept; None without gold labels
    result: FinetuneResult | None   # None if nothing was kept, so that nothing was trained

    @property
    def kept(self) -> int:
        return sum(self.labels.values())

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {n}" for name, n in self.labels.items())
        wrong = "" if self.noise is None else f", {100 * self.noise:.1f} % of them wrong"
        kept = f"{self.kept} of {self.unlabelled} texts kept ({counts}{wrong})" if self.kept else f"none of {self.unlabelled} texts was sure enough: stopped"
        return f"round {self.number}: " + "; ".join([*([kept] if self.number else ["labelled rows alone"]), *([str(self.result)] if self.result else [])])

    __repr__ = __str__


@dataclass(frozen=True, repr=False)
class SelfTrained:
    """What came out; prints as a line for each round. `model`: of the last round that trained."""

    model: Model
    rounds: list[Round]

    def __str__(self) -> str:
        return "\n".join(map(str, self.rounds))

    __repr__ = __str__


def sure(found: Sequence[Prediction], threshold: float, balanced: bool) -> list[int]:
    """The numbers of the predictions with a probability of at least `threshold`; balanced: as many of each label as of the rarest, the surest first."""
    order = [i for i in sorted(range(len(found)), key=lambda i: -found[i].probability) if found[i].probability >= threshold]
    if balanced:
        by_label: dict[str, list[int]] = {name: [i for i in order if found[i].label == name] for name in (found[0].probabilities if found else ())}
        n = min(map(len, by_label.values()), default=0)
        order = [i for numbers in by_label.values() for i in numbers[:n]]
    return sorted(order)


def self_train(model: Model, tok: Tokenizer, *, train: Any, unlabelled: Any, validation: Any = None, threshold: float = 0.9, rounds: int = 3, balanced: bool = False,
               gold: str | None = None, text: str = "text", pair: str | None = None, label: str = "label", max_length: int | None = None,
               out: str | Path | None = None, **arguments: Any) -> SelfTrained:
    """Tune on labelled rows, and `rounds` times more on these and on the texts whose label the model is sure of. The model given is left as it is.

    Args:    unlabelled: rows with the text's columns, anything `read_rows` reads; a label in them is not looked at.
             threshold: the least probability of a label that is learned from.
             balanced: keep as many texts of each label as of the rarest one; without it a preference for one label grows from round to round.
             gold: the column of `unlabelled` with the true labels, if they are known: for the report alone.
             out: round r is kept in out/round-r. arguments: of `finetune`, with which each round is trained.
    Returns: the model of the last round, and of each round how many texts were kept, their labels, how many of these were wrong, and the metrics.
    Raises:  ValueError for a threshold that is no probability, no round, or a run to resume; and what `finetune` raises.
    Warns:   if no text is sure enough; nothing more is trained then.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold}; it is the probability a label needs to be learned from: give a number above 0, at most 1 (0.9 is usual)")
    if rounds < 1 or arguments.get("resume"):
        raise ValueError(f"rounds={rounds}, resume={arguments.get('resume', False)}; self-training is one call of at least one round after the labelled rows: "
                         "give rounds=1 or more, and leave resume out")
    known, texts = read_rows(train), read_rows(unlabelled)
    asked = SequenceTask(text, pair, label)
    first, second = column(texts, text), None if pair is None else column(texts, pair)
    truth = None if gold is None else [str(value) for value in column(texts, gold)]
    refuse_test_split(validation, arguments.get("best", asked.best))
    if validation is not None:
        check_held_out(texts, validation := read_rows(validation), asked.asks)

    def tuned(number: int, rows: list[dict]) -> FinetuneResult:
        folder = None if out is None else Path(out) / f"round-{number}"
        return finetune(copy.deepcopy(model), tok, asked, train=rows, validation=validation, max_length=max_length, out=folder, **arguments)

    last = tuned(0, known)
    found = [Round(0, {}, len(texts), None, last)]
    for number in range(1, rounds + 1):
        guesses = predict(last.model, tok, first, second, max_length=max_length, task=asked)
        kept = sure(guesses, threshold, balanced)
        counts = Counter(guesses[i].label for i in kept)
        labels = {name: counts[name] for name in last.model.labels or ()}
        if not kept:
            warnings.warn(f"round {number}: none of {len(texts)} texts has a label with a probability of {threshold} "
                          + ("for each of the labels" if balanced else "or more") + "; self-training stops here: lower the threshold to go on", UserWarning, stacklevel=2)
            return SelfTrained(last.model, [*found, Round(number, labels, len(texts), None, None)])
        noise = None if truth is None else sum(guesses[i].label != truth[i] for i in kept) / len(kept)
        last = tuned(number, known + [{name: texts[i][name] for name in asked.asks} | {label: guesses[i].label} for i in kept])
        found.append(Round(number, labels, len(texts), noise, last))
    return SelfTrained(last.model, found)
