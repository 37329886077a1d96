"""Sentences with what is known of their words, from CoNLL-U and CoNLL files, and the labels that a probe is asked for."""
from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..text.lines import kind_of
from ..text.readers import conll_sentences

FARTHEST, DEEPEST = 5, 7        # distances and depths from here on are one class


@dataclass(frozen=True)
class Sentence:
    """Words and their labels; of a .conll file words and tags only."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    heads: tuple[int, ...] = ()                     # the number of each word's head, counted from 1; 0: it has none
    relations: tuple[str, ...] = ()                 # to the head, without subtypes
    features: tuple[dict[str, str], ...] = ()       # morphology: {"Number": "Sing", ...}


Treebank = str | Path | Sequence[Sentence]


def read_treebank(source: Treebank, n: int | None = None, seed: int = 0) -> list[Sentence]:
    """The sentences of a .conllu or .conll file (or .gz).

    A multi-word token (1-2 zum) is read as its words (zu dem), which are what has labels.

    Args:   n: draw so many of them, in their old order; None, or more than there are: all.
    Warns:  how many multi-word tokens are not written as their words.
    Raises: ValueError for another kind of file, a line that is broken, or heads that form no tree.
    """
    if not isinstance(source, str | Path):
        return drawn(list(source), n, seed)
    path, kind = Path(source), kind_of(Path(source))
    if kind not in (".conllu", ".conll"):
        raise ValueError(f"{path} in the place of a treebank; words with labels come from .conllu or .conll files (or these with .gz): give one")
    if kind == ".conll":
        return [Sentence(tuple(fields[0] for fields in lines), tuple(fields[-1] for fields in lines)) for lines in drawn(list(conll_sentences(path, 2)), n, seed)]
    found, joined = [], []
    for lines in drawn([lines for lines in conll_sentences(path, 8) if any(fields[0].isdigit() for fields in lines)], n, seed):
        words = [fields for fields in lines if fields[0].isdigit()]
        found.append(_sentence(words, path))
        for number, form, *_ in lines:
            first, dash, last = number.partition("-")
            if dash and "".join(one[1] for one in words[int(first) - 1 : int(last)]) != form:
                joined.append((form, " ".join(one[1] for one in words[int(first) - 1 : int(last)])))
    if joined:
        warnings.warn(f"{path.name} has {len(joined)} multi-word tokens in these {len(found)} sentences that are not written as their words, such as {joined[0][0]!r}: labels "
                      f"belong to the words, so the model reads {joined[0][1]!r} in its place", UserWarning, stacklevel=3)
    return found


def drawn(sentences: list[Any], n: int | None, seed: int) -> list[Any]:
    """So many of them, in their old order."""
    if n is None or n >= len(sentences):
        return sentences
    return [sentences[i] for i in sorted(np.random.default_rng(seed).permutation(len(sentences))[:max(n, 0)])]


def _sentence(words: list[list[str]], path: Path) -> Sentence:
    heads = tuple(int(fields[6]) if fields[6].isdigit() else -1 for fields in words)
    if not all(0 <= head <= len(words) for head in heads) or None in map(depth_in(heads), range(len(words))):
        raise ValueError(f"{path}: the heads of {' '.join(fields[1] for fields in words)!r:.80} are {', '.join(fields[6] for fields in words)}, which is no tree; "
                         "following heads has to end at 0: mend the seventh column")
    features = tuple(dict(one.split("=", 1) for one in fields[5].split("|") if "=" in one) for fields in words)
    return Sentence(tuple(fields[1] for fields in words), tuple(fields[3] for fields in words), heads, tuple(fields[7].partition(":")[0] for fields in words), features)


def depth_in(heads: Sequence[int]) -> Callable[[int], int | None]:
    """Steps from a word, counted from 0, to the root of its sentence; None: they go in a circle."""
    def depth(word: int) -> int | None:
        for steps in range(len(heads)):
            if heads[word] == 0:
                return steps
            word = heads[word] - 1
        return None
    return depth


# ---- labels -------------------------------------------------------------------------------------------------------------------------------------------

Labels = Callable[[Sentence], Sequence[str | None]]        # one for each word; None: this word is not asked for


def distances(sentence: Sentence) -> list[str]:
    """How far to the right (+) or left (-) the head stands."""
    return ["root" if head == 0 else f"{max(-FARTHEST, min(FARTHEST, head - i)):+d}" for i, head in enumerate(sentence.heads, 1)]


def depths(sentence: Sentence) -> list[str]:
    return [str(min(DEEPEST, depth or 0)) for depth in map(depth_in(sentence.heads), range(len(sentence.heads)))]


def entities(sentence: Sentence) -> Sequence[str | None]:
    """Raises: ValueError for tags that are those of parts of speech."""
    if strange := next((tag for tag in sentence.tags if not (tag == "O" or tag[:2] in ("B-", "I-", "E-", "S-"))), None):
        raise ValueError(f"task='ner' on words tagged {strange!r}; entities are tagged B-..., I-... and O: give a .conll file of entities, or task=\"pos\"")
    return sentence.tags


TASKS: dict[str, Labels] = {"pos": lambda s: s.tags, "ner": entities, "relation": lambda s: s.relations, "distance": distances, "depth": depths}


def labels_of(sentences: Sequence[Sentence], task: str | Labels) -> list[Sequence[str | None]]:
    """A label for each word of each sentence.

    Args:   task: one of TASKS; the name of a feature, such as "Number", for the words that have it; or a function of a sentence.
    Raises: ValueError for a task that there is not, or that these sentences have no labels for.
    """
    if not sentences:
        raise ValueError("no sentences; a probe learns from some: give a treebank that is not empty, and ask for one sentence or more")
    ask = task if callable(task) else TASKS.get(task, lambda s: [one.get(str(task)) for one in s.features])
    found = [ask(sentence) for sentence in sentences]
    kinds = {label for row in found for label in row} - {None}
    if len(kinds) < 2:
        there = sorted({name for sentence in sentences for one in sentence.features for name in one})
        raise ValueError(f"task={task!r}, for which these {len(sentences)} sentences have {len(kinds)} labels; a probe chooses from two or more. There are {', '.join(TASKS)}"
                         + (f", and the features {', '.join(there)}" if there else " (relation, distance and depth from .conllu files only)") + ": choose one of them")
    if wrong := [i for i, (row, sentence) in enumerate(zip(found, sentences, strict=True)) if len(row) != len(sentence.words)]:
        raise ValueError(f"{len(found[wrong[0]])} labels for the {len(sentences[wrong[0]].words)} words of sentence {wrong[0]}; each word has one, or None: correct the function")
    return found


def control_labels(words: Sequence[str], y: np.ndarray, seed: int = 0) -> np.ndarray:
    """A control task, (N,): each kind of word gets one label at random, drawn as the labels of the task are distributed, wherever the word stands.

    It can only be learned by heart, so what a probe reaches here is what the probe can do by itself.

    Source: Hewitt & Liang 2019, section 2.1.
    """
    kinds, which = np.unique(words, return_inverse=True)
    return np.random.default_rng(seed).choice(y, len(kinds))[which]
