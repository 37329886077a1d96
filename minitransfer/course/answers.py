"""15, without training."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..nn.heads import IGNORE
from ..objectives import Preference
from ..objectives.preference import log_likelihood
from ..tasks import Prompt, label_scores
from ..text import InstructionBatches, PreferenceBatches, Tokenizer
from .exercise import demand, exercise, gap, in_engine
from .models import moved

TEXTS = ["We waited an hour.", "Good.", "Nobody could say why, though everybody had been asked."]
LABELS = {"negative": "a disappointment", "positive": "good"}
ROWS = [{"prompt": text, "chosen": " yes, it was", "rejected": " no"} for text in TEXTS]


@exercise("15", "label_score(logits, ids, first) -> the mean log-probability of the tokens from `first` on")
def label_score(answer: Callable) -> str:
    logits, ids = torch.randn(9, 31), torch.randint(31, (9,))
    for first in (1, 4, 8):
        gap(f"the score with first={first}", torch.as_tensor(answer(logits, ids, first)), -cross_entropy(logits[first - 1:-1], ids[first:]))
    model, tok = moved("mini-gpt"), Tokenizer.from_pretrained("mini-gpt")
    for text, found in zip(TEXTS, label_scores(model, tok, TEXTS, LABELS, Prompt("{text} It was {label}")), strict=True):
        scores = []
        for label in LABELS.values():
            first, row = len(tok.encode(f"{text} It was")), torch.tensor(tok.encode(f"{text} It was {label}"))
            scores.append(torch.as_tensor(answer(model(input_ids=row[None]).logits[0], row, first)))
        gap("the probability of the label", torch.stack(scores).softmax(0).max(), torch.tensor(found.probability))
    return "as label_scores of mini-gpt, labels of one and of several tokens"


@exercise("15", "calibrated(scores, empty) -> probabilities (N, n) without what the model says to nothing")
def calibrated(answer: Callable) -> str:
    scores, empty = torch.randn(5, 3) * 4, torch.randn(2, 3) * 4
    quotient = scores.softmax(-1) / empty.softmax(-1).mean(0)
    gap("the probabilities", answer(scores, empty), quotient / quotient.sum(-1, keepdim=True))
    return "three labels, two texts without content"


@exercise("15", "response_labels(ids, keep, prompt_lengths) -> labels, -100 at prompts and padding")
def response_labels(answer: Callable) -> str:
    tok = Tokenizer.from_pretrained("mini-gpt")
    batches = InstructionBatches(ROWS, tok, response="chosen", batch_size=3)
    truth = batches.rows([0, 1, 2])
    lengths = torch.tensor([len(tok.encode(row["prompt"] + "\n")) for row in ROWS])
    found = answer(truth["input_ids"], truth["attention_mask"], lengths)
    gap("the labels", torch.as_tensor(found).float(), truth["labels"].float(), within=0.0)

    def as_rows(self: InstructionBatches, indices: object) -> dict[str, Tensor]:
        return truth | {"labels": answer(truth["input_ids"], truth["attention_mask"], lengths)}
    with in_engine("text.instructions:InstructionBatches.rows", as_rows):
        shown = InstructionBatches.show(batches, batches.rows([0, 1, 2]))
    demand(all(one.count(">>>") == 1 and one.endswith("<|endoftext|><<<") for one in shown), f"the batch shows {shown[0]!r}")
    return "as instruction batches have them, the end is learned"


@exercise("15", "preference_loss(chosen, rejected, chosen_before, rejected_before, beta) -> the sum of the losses")
def preference_loss(answer: Callable) -> str:
    model, reference, tok = moved("mini-gpt"), moved("mini-gpt"), Tokenizer.from_pretrained("mini-gpt")
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.01)
    batch = PreferenceBatches(ROWS, tok, batch_size=3).rows([0, 1, 2])
    truth, n = Preference(reference, beta=0.3)(model, batch, torch.Generator())
    after, before = log_likelihood(model, batch).chunk(2), log_likelihood(reference, batch).chunk(2)
    worst = gap("the loss of three pairs", torch.as_tensor(answer(*after, *before, 0.3)), truth)
    far, zero = torch.tensor([1e4]), torch.zeros(1)
    gap("the loss of a pair far on the wrong side", torch.as_tensor(answer(-far, zero, zero, zero, 0.1)), torch.tensor(1e3))
    demand(int((batch["labels"] != IGNORE).sum()) > 0 and int(n) == 3, "the batch holds no pairs")
    return f"as the engine's objective on mini-gpt, within {worst:.0e}"
