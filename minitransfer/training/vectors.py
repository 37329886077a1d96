"""Static word vectors from raw text: word2vec."""
from __future__ import annotations

from typing import Any

import numpy as np

from ..config import choose, whole_number
from ..nn.static import StaticVectors
from ..objectives.word2vec import NegativeSampling, kept_share
from ..text import read_texts
from ..text.vectors import WORD
from ..text.windows import WindowBatches, count_words
from .loop import train
from .settings import TrainSettings, epochs_or

METHODS = ("skipgram", "cbow")


def train_vectors(corpus: Any, method: str = "skipgram", d: int = 100, window: int = 5, negatives: int = 5, sample: float = 1e-3, min_count: int = 5,
                  lowercase: bool = True, batch_size: int = 2048, seed: int = 0, **settings: Any) -> dict[str, np.ndarray]:
    """Word -> its vector, (D,) float32, the most frequent word first: what `read_vectors` gives for a file, and `write_vectors` puts into one.

        vectors = mt.train_vectors("corpus.txt")
        baseline("vectors", train, validation, vectors=vectors)

    Args:    corpus: anything `read_texts` reads; words are runs of letters and digits.
             method: "skipgram", or "cbow", which is several times as fast and does less for rare words.
             window: words to each side at most; negatives: words drawn against each right one; sample: t of `kept_share`, 1 leaves nothing out;
             min_count: rarer words get no vector; batch_size: words of the corpus in a step.
             settings: of TrainSettings. Defaults here: 5 epochs, lr=1e-2 falling to 0.
    Raises:  ValueError for a method, sizes or a corpus that do not fit.
    Source:  Mikolov et al. 2013a and 2013b. Deviation: Adam on batches in the place of SGD pair by pair.
    """
    choose("method", method, METHODS)
    for name, value, least in (("d", d, 1), ("window", window, 1), ("negatives", negatives, 1), ("min_count", min_count, 1), ("batch_size", batch_size, 2)):
        whole_number(name, value, least)
    if not 0 < sample <= 1:
        raise ValueError(f"sample={sample}; it is the frequency above which words are left out now and then, in (0, 1]: 1e-3 to 1e-5 are usual")
    usual = {"lr": 1e-2, "warmup": 0, "weight_decay": 0.0, "max_grad_norm": None, "precision": "fp32", "seed": seed, **epochs_or(settings, 5)}
    chosen = TrainSettings.from_dict({**usual, **settings})
    words = count_words((WORD.findall(text.lower() if lowercase else text) for text in read_texts(corpus)), min_count)
    model = StaticVectors(len(words.words), d, seed)
    batches = WindowBatches(words, kept_share(words.counts, sample), window, batch_size, seed)
    train(model, batches, NegativeSampling(words.counts, negatives, method == "cbow"), chosen)
    return dict(zip(words.words, model.embed.tokens.weight.detach().numpy(), strict=True))
