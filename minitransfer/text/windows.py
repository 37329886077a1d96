"""Words and the words near them: what static vectors are trained on."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class WordIds:
    """A corpus as numbers of words, those of the vocabulary one after the other. Words are numbered from the most frequent on."""

    words: list[str]
    counts: np.ndarray          # (V,) int64
    ids: np.ndarray             # (N,) int32
    documents: np.ndarray       # (N,) int32: the number of the document of each


def count_words(documents: Iterable[Sequence[str]], min_count: int = 5) -> WordIds:
    """Number the words that occur `min_count` times or more; the others are left out, as if they were not there.

    Raises: ValueError if fewer than two words are left.
    """
    texts = [list(words) for words in documents]
    seen = Counter(word for words in texts for word in words)
    kept = [(word, n) for word, n in seen.most_common() if n >= min_count]
    if len(kept) < 2:
        raise ValueError(f"{len(kept)} of {len(seen)} words occur {min_count} times or more; a word is told from others, so two at least are needed: give more text, "
                         "or a smaller min_count")
    number = {word: i for i, (word, _) in enumerate(kept)}
    pieces = [np.array([number[word] for word in words if word in number], np.int32) for words in texts]
    return WordIds([word for word, _ in kept], np.array([n for _, n in kept]), np.concatenate(pieces), np.repeat(np.arange(len(pieces), dtype=np.int32), list(map(len, pieces))))


class WindowBatches:
    """An endless, indexable stream: each word of a piece of the corpus with those of its window.

    First, occurrence by occurrence, words are left out (w stays with probability share[w]), so that windows reach farther where frequent words were; then each
    word's window is drawn, 1 ... `window` words to each side with equal probability. Windows end where a document or the piece does.

    Args:    size: words of a piece, before any is left out. Batch k is a function of (corpus, settings, k) alone.
    Yields:  input_ids (n, 1), contexts (n, 2 window), -1 where none is, both int64; words without a context are not in it.
    Source:  Mikolov et al. 2013a, section 3.2 (the window); 2013b, section 2.3 (what is left out).
    """

    def __init__(self, corpus: WordIds, share: np.ndarray, window: int, size: int, seed: int = 0):
        self.corpus, self.share, self.size, self.seed = corpus, share, size, seed
        self.around = np.array([d for d in range(-window, window + 1) if d])     # (2 window,)

    def __len__(self) -> int:
        return -(-len(self.corpus.ids) // self.size)

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        epoch, i = divmod(k, len(self))
        piece = int(np.random.default_rng((self.seed, epoch)).permutation(len(self))[i])
        rng, whole = np.random.default_rng((self.seed, epoch, i + 1)), slice(piece * self.size, (piece + 1) * self.size)
        ids, documents = self.corpus.ids[whole], self.corpus.documents[whole]
        stays = rng.random(len(ids)) < self.share[ids]
        ids, documents = ids[stays], documents[stays]
        reach = rng.integers(1, self.around[-1] + 1, len(ids))
        place = np.arange(len(ids))[:, None] + self.around                       # (n, 2 window)
        inside = (place >= 0) & (place < len(ids)) & (abs(self.around) <= reach[:, None])
        place = place.clip(0, max(len(ids) - 1, 0))
        inside &= documents[place] == documents[:, None]
        contexts, some = np.where(inside, ids[place], -1), inside.any(1)
        return {"input_ids": torch.from_numpy(ids[some, None].astype(np.int64)), "contexts": torch.from_numpy(contexts[some].astype(np.int64))}
