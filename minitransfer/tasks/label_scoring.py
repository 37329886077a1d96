"""Labels without training: ask a pretrained model which label it would rather read. One interface for three kinds of model.

    causal head       score(label) = mean over the label's tokens t of log p(t | everything before)         the text goes on with the label
    masked head       score(label) = mean over the label's tokens t of log p(t | the text, all of them masked)     a cloze
    embedding head    score(label) = cos(vector of the text, vector of the label's words) / 0.05             no template

The mean makes labels of one and of three tokens comparable. Probabilities p are the softmax of the scores over the labels; calibrated ones are
p / p0, scaled to sum 1, where p0 are the mean probabilities for texts without content: what the prompt and the words of a label say by themselves.
Source: Brown et al. 2020, section 2.4 (likelihood, length-normalised); Schick & Schütze 2021, section 3 (cloze and verbaliser);
Zhao et al. 2021, "Calibrate Before Use" (calibration; deviation: the quotients are scaled, where the paper takes a softmax of them: the same order).
"""
from __future__ import annotations

import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from tokenizers import Encoding
from torch import Tensor

from ..generate import embed
from ..nn.evaluating import evaluating
from ..nn.heads import EmbeddingHead, VocabularyHead
from ..nn.model import Model
from ..text import Tokenizer, sample_rows
from ..text.batches import by_length
from ..transfer.named import check_not_by_row
from .sequence import Prediction, label_set

CONTENT_FREE = ("N/A", "[MASK]", "")
SHARPNESS = 0.05        # a cosine is at most 1: without this the softmax of the scores would be nearly flat


@dataclass(frozen=True)
class Prompt:
    """How a text and a label are written down.

    Args: template: holds {text} and {label}; examples: rows shown before, with their labels; between: what stands after each.
    """

    template: str = "{text} It was {label}."
    examples: Sequence[dict] = ()
    between: str = "\n\n"
    text: str = "text"
    label: str = "label"

    def write(self, text: str, words: str, labels: Mapping[str, str]) -> tuple[str, int, int]:
        """The whole prompt, and where in it the text ends and the label's words begin, in characters."""
        shown = "".join(self.template.format(text=row[self.text], label=labels[str(row[self.label])]) + self.between for row in self.examples)
        before, after = self.template.split("{label}")
        head = shown + before.format(text=text)
        return head + words + after.format(text=text), len(shown) + before.index("{text}") + len(text) if "{text}" in before else len(head), len(head)


def label_scores(model: Model, tok: Tokenizer, texts: str | Sequence[str], labels: Mapping[str, str] | Sequence[str], prompt: Prompt | None = None,
                 batch_size: int = 32, calibrate: bool = False) -> list[Prediction]:
    """Which label fits each text best.

    Args:    texts: a list, or one text. labels: label -> the words that stand for it, or the labels themselves. prompt: of a causal or masked model (default: `Prompt()`).
             calibrate: take out what the model answers to texts without content, which are "N/A", "[MASK]" and "" as in the paper.
    Returns: in the order of the texts.
    Raises:  ValueError for a head that cannot be asked, fewer than two labels, a label without a token that can be scored, an example with another label, a template
             without {text} and {label}, or a prompt without room.
    Warns:   how many texts were shortened to fit; the label and the examples stay.
    """
    texts = [texts] if isinstance(texts, str) else texts
    words = label_words(labels)
    scores = scores_of(model, tok, texts, words, prompt or Prompt(), batch_size)
    if calibrate:
        scores = scores - scores_of(model, tok, CONTENT_FREE, words, prompt or Prompt(), batch_size).softmax(-1).mean(0).log()
    return predictions(scores, list(words))


def label_words(labels: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    """Each label with the words that stand for it. Raises: ValueError for fewer than two labels, or one without words."""
    words = dict(labels) if isinstance(labels, Mapping) else {name: name for name in labels}
    if len(words) < 2:
        raise ValueError(f"labels={list(words)}; there must be something to choose from: give two or more")
    if blank := [name for name, one in words.items() if not one.strip()]:
        raise ValueError(f"the label {blank[0]!r} has no words; what is scored are its words: give labels={{label: its words}}")
    return words


def scores_of(model: Model, tok: Tokenizer, texts: Sequence[str], words: Mapping[str, str], prompt: Prompt, batch_size: int) -> Float[Tensor, "N n"]:
    """How well each label fits each text, as the head has it."""
    if isinstance(model.head, EmbeddingHead):
        vectors, names = (torch.nn.functional.normalize(embed(model, tok, list(many), batch_size), dim=-1) for many in (texts, words.values()))
        return vectors @ names.T / SHARPNESS
    check_not_by_row(model, "label_scores")
    if not isinstance(model.head, VocabularyHead):
        raise ValueError(f'a model with head "{model.head_name}"; labels are scored by a "causal", "masked" or "embedding" head: load it with one')
    if prompt.template.count("{text}") != 1 or prompt.template.count("{label}") != 1:
        raise ValueError(f"template={prompt.template!r}; it says where the text and the label stand: write {{text}} and {{label}} in it, once each")
    if strangers := sorted({str(row[prompt.label]) for row in prompt.examples} - set(words)):
        raise ValueError(f"examples with the label {strangers[0]!r}; an example shows one of the labels that are chosen from, {', '.join(words)}: "
                         "correct it, or give labels={label: its words}")
    first = opening(model, tok, prompt)
    rows = [fitted(tok, prompt, text, one, words, model.longest - len(first)) for text in texts for one in words.values()]
    if unread := [name for (_, places, _), name in zip(rows, words, strict=False) if not set(places) - ({0} if model.head.shift and not first else set())]:
        raise ValueError(f"the label {unread[0]!r} has no token that this model could score; nothing stands before its one token, and the tokenizer has no token "
                         "that begins texts: put {label} behind {text}")
    if short := sum(cut for _, _, cut in rows):
        warnings.warn(f"{short // len(words)} of {len(texts)} texts were shortened to fit into {model.longest} tokens with their label", UserWarning, stacklevel=3)
    scores = torch.empty(len(rows))
    with evaluating(model), torch.no_grad():
        for part in by_length([encoding for encoding, _, _ in rows], batch_size):
            scores[part] = likelihood(model, tok, [rows[i][0] for i in part], [rows[i][1] for i in part], first)
    return scores.view(len(texts), len(words))


def opening(model: Model, tok: Tokenizer, prompt: Prompt) -> list[int]:
    """What a causal model reads before a prompt that begins with the label, which nothing would foretell: the token that begins texts, or else ends them."""
    bare = model.head.shift and not tok.opening and not prompt.examples and prompt.template.startswith("{label}")
    return [i for i in (tok.bos_id, tok.eos_id) if i is not None][:1] if bare else []


def fitted(tok: Tokenizer, prompt: Prompt, text: str, words: str, labels: Mapping[str, str], limit: int) -> tuple[Encoding, list[int], bool]:
    """The prompt as tokens, which of them are the label's, and whether the text had to lose its end."""
    whole = text
    while True:
        written, end, start = prompt.write(text, words, labels)
        found = tok.encodings([written], max_length=10**9)[0]
        if len(found) <= limit:
            return found, [i for i, (a, b) in enumerate(found.offsets) if a < start + len(words) and b > start], text != whole
        inside = [i for i, (a, b) in enumerate(found.offsets) if b > a and end - len(text) <= a < end]
        spare = len(inside) - (len(found) - limit)
        if spare < 1:
            raise ValueError(f"a prompt of {len(found)} tokens; this model reads at most {limit} and no text would be left: use fewer or shorter examples")
        text = text[:found.offsets[inside[spare]][0] - (end - len(text))].rstrip()


def likelihood(model: Model, tok: Tokenizer, rows: Sequence[Encoding], places: Sequence[list[int]], first: list[int]) -> Float[Tensor, "B"]:
    """The mean log-probability of the label's tokens in each row, which begins with the tokens `first`."""
    found = tok.collate([first + e.ids for e in rows], [[0] * len(first) + e.type_ids for e in rows])
    batch: dict[str, Any] = {name: t.to(model.device) for name, t in found.items()}
    ids = batch["input_ids"]
    wanted = torch.zeros_like(ids, dtype=torch.bool)
    for row, here in zip(wanted, places, strict=True):
        row[[i + len(first) for i in here]] = True
    asked = wanted
    if model.head.shift:
        wanted[:, 0] = False                                                     # nothing stands before the first token
        asked = wanted.roll(-1, 1)                                               # position t answers for token t + 1
    else:
        assert tok.mask_id is not None
        batch["input_ids"] = ids.masked_fill(wanted, tok.mask_id)
    x = model.body(**batch).x[asked]
    log_p = model.head.logits(x).float().log_softmax(-1).gather(1, ids[wanted][:, None])[:, 0]   # both masks go through the rows in order
    total = torch.zeros(len(ids), device=ids.device).index_add_(0, wanted.nonzero()[:, 0], log_p)
    return (total / wanted.sum(1)).cpu()


def predictions(scores: Float[Tensor, "N n"], names: list[str]) -> list[Prediction]:
    probs = scores.softmax(-1)
    return [Prediction(names[int(row.argmax())], float(row.max()), dict(zip(names, row.tolist(), strict=True))) for row in probs]


def shots(rows: Sequence[dict], n: int, seed: int = 0, label: str = "label") -> list[dict]:
    """n rows to show, equally many of each label (to within one), in an order drawn from the seed.

    Raises: ValueError for a label with too few rows.
    """
    names, found = label_set([str(row[label]) for row in rows]), []
    for i, name in enumerate(names):
        found += sample_rows([row for row in rows if str(row[label]) == name], n // len(names) + (i < n % len(names)), seed)
    random.Random(seed).shuffle(found)
    return found


def order_spread(model: Model, tok: Tokenizer, rows: Sequence[dict], labels: Mapping[str, str] | Sequence[str], prompt: Prompt, orders: int = 5,
                 calibrate: bool = False) -> list[float]:
    """The accuracy on `rows` for the same examples in several orders: how much of a few-shot figure is luck.

    Source: Lu et al. 2022, "Fantastically Ordered Prompts and Where to Find Them".
    """
    found = []
    for seed in range(orders):
        shown = list(prompt.examples)
        random.Random(seed).shuffle(shown)
        asked = Prompt(prompt.template, shown, prompt.between, prompt.text, prompt.label)
        answers = label_scores(model, tok, [row[prompt.text] for row in rows], labels, asked, calibrate=calibrate)
        found.append(sum(a.label == str(row[prompt.label]) for a, row in zip(answers, rows, strict=True)) / len(rows))
    return found
