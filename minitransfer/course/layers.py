"""08, what each layer knows."""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..study import log_likelihoods, separation_ratio
from ..study.separation import find_word, pieces_at
from ..text import Tokenizer
from .exercise import demand, exercise, gap, in_engine
from .models import moved

SENSES = {"money": ["The bank refused a loan.", "Two clerks at the bank counted coins."],
          "river": ["A banker sat on the bank.", "Mud covered the bank of the stream.", "The bank."]}


@exercise("08", "separation(x, senses) -> mean distance between senses / (mean distance within + 1e-8), each pair once")
def separation(answer: Callable) -> str:
    found = separation_ratio(moved("mini-bert"), Tokenizer.from_pretrained("mini-bert"), SENSES, "bank")
    worst = 0.0
    for layer, truth in enumerate(found.ratio):
        ratio = torch.as_tensor(float(answer(found.vectors[layer], list(found.sense))))
        worst = max(worst, gap(f"the ratio of layer {layer}", ratio.double(), torch.tensor(truth.value, dtype=torch.double), 1e-6))
    return f"as separation_ratio, every layer of mini-bert, within {worst:.0e}"


@exercise("08", "places_of_word(text, word, offsets) -> the positions of the tokens of a whole word")
def places_of_word(answer: Callable) -> str:
    model, tok = moved("mini-bert"), Tokenizer.from_pretrained("mini-bert")
    for text in [*SENSES["money"], *SENSES["river"], "An unbelievable bank, unbelievably so."]:
        for word in ("bank", "unbelievable") if "unbelievable" in text else ("bank",):
            encoding = tok.encodings([text])[0]
            places, wanted = list(answer(text, word, encoding.offsets)), pieces_at(encoding, *find_word(text, word))
            demand(places == wanted, f"{word!r} in {text!r} is at {places}, it is at {wanted}: {encoding.tokens}")
    truth = separation_ratio(model, tok, SENSES, "bank")

    def as_word_vector(encoding: Any, states: np.ndarray, text: str, word: str) -> np.ndarray:
        return states[:, list(answer(text, word, encoding.offsets))].mean(1)
    with in_engine("study.separation:word_vector", as_word_vector):
        found = separation_ratio(model, tok, SENSES, "bank")
    demand(np.array_equal(found.vectors, truth.vectors), "in the engine a separation has other vectors")
    return "six texts, and the vectors of a separation in the engine"


@exercise("08", "control_task(words, n, seed) -> a random label for each word, the same for equal words")
def control_task(answer: Callable) -> str:
    words = [f"w{i % 997}" for i in range(5000)]
    labels = list(answer(words, 4, 3))
    demand(len(labels) == len(words) and set(labels) <= set(range(4)), f"{len(labels)} labels, {sorted(set(labels))}; 5,000 of 0 to 3 are needed")
    first = dict(zip(reversed(words), reversed(labels), strict=True))
    demand(all(first[word] == label for word, label in zip(words, labels, strict=True)), "a word has two labels")
    counts = np.bincount(list(first.values()), minlength=4)
    demand(all(abs(count - 997 / 4) < 5 * math.sqrt(997 * 3 / 16) for count in counts), f"of 997 words {counts.tolist()} have each label: the chances are not equal")
    demand(list(answer(words, 4, 3)) == labels and list(answer(words, 4, 4)) != labels, "the seed decides, and nothing else")
    return "5,000 words of 997 kinds"


@exercise("08", "pseudo_likelihood(ids, special, mask_id, logits_of) -> the sum of log p(token | the rest), one token hidden at a time")
def pseudo_likelihood(answer: Callable) -> str:
    model, tok = moved("mini-bert"), Tokenizer.from_pretrained("mini-bert")
    texts = ["The dogs near the house are hungry.", "Nobody came.", "Unbelievable!"]
    worst = 0.0
    for text, truth in zip(texts, log_likelihoods(model, tok, texts), strict=True):
        ids = tok(text)["input_ids"][0]
        given = ids.clone()
        with torch.no_grad():
            found = answer(ids, torch.isin(ids, torch.tensor(sorted(tok.special_ids))), tok.mask_id, lambda batch: model(input_ids=batch).logits)
        demand(torch.equal(ids, given), "the ids that were given have changed; make new tensors")
        worst = max(worst, gap(f"of {text!r}", torch.as_tensor(float(found)), torch.tensor(float(truth))))
    return f"as log_likelihoods of mini-bert, within {worst:.0e}"
