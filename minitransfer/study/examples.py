"""What a probe reads: the hidden states of words at every layer, computed once and kept on disk."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from ..nn.model import Model
from ..tasks.token import pieces_of
from ..text import Tokenizer
from ..transfer.features import Reading, features_of, rows_of
from .treebank import Labels, Sentence, labels_of


@dataclass(frozen=True)
class Examples:
    """Words with a vector in each layer, a label, and the number of their sentence."""

    states: Float[np.ndarray, "N L D"]      # float32; layer 0: the embeddings
    y: Int[np.ndarray, "N"]
    names: tuple[str, ...]                  # of the labels
    words: tuple[str, ...]
    sentence: Int[np.ndarray, "N"]


def random_twin(model: Model, seed: int) -> Model:
    """The same architecture without any pretraining."""
    return type(model)(model.config, seed=seed).to(model.device)


def word_states(model: Model, tok: Tokenizer, sentences: Sequence[Sentence], cache: str | Path | None = None) -> list[dict[int, Float[np.ndarray, "L D"]]]:
    """Of each sentence: number of a word -> its state in every layer, the mean over its pieces. Words that were cut off, or have no piece, are not there.

    Words are joined by spaces. cache: as in `extract_features`.
    """
    layers = model.config.n_layers + 1
    encodings = tok.encodings([" ".join(one.words) for one in sentences], max_length=model.longest)
    singles = [tok.collate([encoding.ids], [encoding.type_ids]) for encoding in encodings]
    features = features_of(model, singles, Reading(tuple(range(layers)), "each"), cache)
    found = []
    for one, encoding, single in zip(sentences, encodings, singles, strict=True):
        (key, _, _), = rows_of(single)
        states = features[key].reshape(len(encoding), layers, -1)                # (T, L, D)
        found.append({i: states[pieces].mean(0) for i, pieces in enumerate(pieces_of(one.words, encoding.offsets)) if pieces})
    return found


def examples(model: Model, tok: Tokenizer, sentences: Sequence[Sentence], task: str | Labels, cache: str | Path | None = None) -> Examples:
    """The words that the task asks for. Raises: ValueError for a task that these sentences have no labels for."""
    labels = labels_of(sentences, task)
    found = [(states[i], label, one.words[i], number)
             for number, (one, row, states) in enumerate(zip(sentences, labels, word_states(model, tok, sentences, cache), strict=True))
             for i, label in enumerate(row) if label is not None and i in states]
    states, given, words, sentence = zip(*found, strict=True)
    names, y = np.unique(given, return_inverse=True)
    return Examples(np.stack(states), y, tuple(map(str, names)), words, np.array(sentence))
