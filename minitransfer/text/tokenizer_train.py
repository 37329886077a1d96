"""A new vocabulary from texts."""
from __future__ import annotations

import bisect
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import IO, Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from . import pipelines
from .pipelines import FORMATS, KINDS, Format

# The trainer counts the words of one item at a time, and items in parallel: a whole book as one item keeps all cores but one idle.
ITEM = 10_000       # characters
# The share of all characters that the single characters of a vocabulary cover; rarer ones are unknown. At 1, the few foreign names of an
# encyclopaedia take a quarter of 8,192 places.
COVERAGE = 0.9999


def train(texts: Iterable[str], kind: str, vocab_size: int, lowercase: bool, max_len: int | None, min_count: int) -> tuple[Tokenizer, Format]:
    """The trained pipeline and its format; see `Tokenizer.train`."""
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}; it is one of {', '.join(map(repr, KINDS))}: choose one")
    if isinstance(texts, str):
        raise ValueError("texts is one string; Tokenizer.train needs many texts: pass a list, or read_texts(path) for a file")
    format = replace(FORMATS[kind], max_len=max_len)
    specials = list(dict.fromkeys(format.tokens.values()))
    if kind == "byte_bpe" and vocab_size < len(specials) + 256:
        raise ValueError(f"vocab_size={vocab_size}; kind='byte_bpe' needs a place for each of 256 bytes and {len(specials)} special token: "
                         "choose a larger one")
    items = _Items(texts)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        backend = _fit(items, kind, vocab_size, lowercase, specials, min_count, file)
    if not items.seen:
        raise ValueError("texts holds no character; a tokenizer is trained on text: check the corpus, or the field it is read from")
    pipelines.mark_specials(backend, format)
    pipelines.wrap(backend, format)
    return backend, format


def _fit(items: _Items, kind: str, size: int, lowercase: bool, specials: list[str], min_count: int, file: IO[str]) -> Tokenizer:
    trainer: Any
    if kind == "byte_bpe":
        backend = pipelines.byte_level(models.BPE(), lowercase)
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(vocab_size=size, min_frequency=min_count, initial_alphabet=alphabet, special_tokens=specials,
                                      show_progress=False)
    elif kind == "unigram":
        backend = pipelines.pieces(models.Unigram(), lowercase)
        trainer = trainers.UnigramTrainer(vocab_size=size, unk_token="<unk>", special_tokens=specials, show_progress=False)
    elif kind == "character":
        backend = pipelines.characters(models.WordLevel({"<unk>": 0}, unk_token="<unk>"), lowercase)
        symbols = _alphabet(items, backend, file, 1.0, size - len(specials))
        backend.model = models.WordLevel({token: i for i, token in enumerate([*specials, *symbols])}, unk_token="<unk>")
        return backend
    elif kind == "bpe":
        backend = pipelines.pieces(models.BPE(unk_token="<unk>"), lowercase)
        symbols = _alphabet(items, backend, file, COVERAGE, size - len(specials))
        trainer = trainers.BpeTrainer(vocab_size=size, min_frequency=min_count, initial_alphabet=symbols, limit_alphabet=len(symbols),
                                      special_tokens=specials, show_progress=False)
    else:
        return _fit_wordpiece(items, size, lowercase, specials, min_count, file)
    backend.train_from_iterator(items, trainer)
    return backend


def _fit_wordpiece(items: _Items, size: int, lowercase: bool, specials: list[str], min_count: int, file: IO[str]) -> Tokenizer:
    """WordPiece, the same in every run.

    The trainer numbers `##a`, `##b` as it meets them, in an order that changes from run to run, and breaks ties by number: two runs would give two
    vocabularies. Named as special tokens in advance they keep their numbers; the vocabulary is then taken over without the mark.
    """
    backend = pipelines.bert(models.WordPiece(unk_token="[UNK]"), lowercase)
    symbols = _alphabet(items, backend, file, COVERAGE, size - len(specials))
    inside = ["##" + c for c in symbols if len(backend.pre_tokenizer.pre_tokenize_str(f"a{c}a")) == 1]
    if (needed := len(specials) + len(symbols) + len(inside)) > size:
        raise ValueError(f"vocab_size={size}; the special tokens and the single characters of these texts need {needed} places: choose a larger one")
    trainer = trainers.WordPieceTrainer(vocab_size=size, min_frequency=min_count, continuing_subword_prefix="##", initial_alphabet=symbols,
                                        limit_alphabet=len(symbols), special_tokens=specials + inside, show_progress=False)
    backend.train_from_iterator(items, trainer)
    return pipelines.bert(models.WordPiece(backend.get_vocab(), unk_token="[UNK]"), lowercase)


def _alphabet(items: _Items, backend: Tokenizer, file: IO[str], coverage: float, room: int) -> list[str]:
    """As many of the most frequent characters as cover this share of the texts, as the model will see them, in the order of their code points."""
    counts = items.count(backend, file)
    if items.seen and room < 1:
        raise ValueError(f"vocab_size leaves {room} places beside the special tokens; single characters need some: choose a larger one")
    order = sorted(counts, key=lambda c: (-counts[c], c))
    covered = list(itertools.accumulate(counts[c] for c in order))
    enough = bisect.bisect_left(covered, coverage * covered[-1]) + 1 if covered else 0
    return sorted(order[:min(enough, room)])


class _Items:
    """Texts in items of bounded length, cut before a space. A stream that can be read only once is kept in a file for the second pass."""

    def __init__(self, texts: Iterable[str]):
        self.texts, self.seen = texts, False

    def count(self, backend: Tokenizer, file: IO[str]) -> Counter[str]:
        """How often each character occurs after normalising; ▁ stands for the spaces of pipelines that write them so."""
        counts: Counter[str] = Counter()
        spaces = isinstance(backend.pre_tokenizer, pre_tokenizers.Split)
        once = iter(self.texts) is self.texts
        for text in self:
            counts.update(text if backend.normalizer is None else backend.normalizer.normalize_str(text))
            if once:
                file.write(json.dumps(text) + "\n")
        if once:
            self.texts = _lines(file)
        if not spaces:
            counts = Counter({c: n for c, n in counts.items() if not c.isspace()})
        if counts and isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):
            counts["▁"] += sum(counts.values())
        return counts

    def __iter__(self) -> Iterator[str]:
        for text in self.texts:
            if not isinstance(text, str):
                raise ValueError(f"texts holds a {type(text).__name__}; each item is one str: convert it, or drop it")
            self.seen = self.seen or bool(text)
            start = 0
            while len(text) - start > ITEM:
                space = text.find(" ", start + ITEM)
                if space < 0:
                    break
                yield text[start:space]
                start = space
            yield text[start:]


def _lines(file: IO[str]) -> Iterator[str]:
    file.seek(0)
    return map(json.loads, file)
