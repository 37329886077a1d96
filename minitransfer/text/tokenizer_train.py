"""A new vocabulary from texts."""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from . import pipelines
from .pipelines import FORMATS, KINDS, Format

# The trainer counts words of one item at a time, and items in parallel: a whole book as one item keeps all but one core idle.
ITEM = 10_000   # characters


def train(texts: Iterable[str], kind: str, vocab_size: int, lowercase: bool, max_len: int | None, min_count: int) -> tuple[Tokenizer, Format]:
    """The trained pipeline and its format; see `Tokenizer.train`."""
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}; it is one of {', '.join(map(repr, KINDS))}")
    if isinstance(texts, str):
        raise ValueError("texts is one string; Tokenizer.train needs many texts: pass a list, or read_texts(path) for a file")
    format = replace(FORMATS[kind], max_len=max_len)
    specials = list(dict.fromkeys(format.tokens.values()))
    smallest = len(specials) + (256 if kind == "byte_bpe" else 1)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size={vocab_size} has no room for the {smallest} symbols that kind={kind!r} always needs: choose a larger one")
    watched = _Watched(texts)
    backend = _fit(watched, kind, vocab_size, lowercase, specials, min_count)
    if not watched.seen:
        raise ValueError("texts holds no character; a tokenizer is trained on text: check the corpus, or the `field` it is read from")
    pipelines.mark_specials(backend, format)
    pipelines.wrap(backend, format)
    return backend, format


def _fit(texts: Iterable[str], kind: str, size: int, lowercase: bool, specials: list[str], min_count: int) -> Tokenizer:
    shared: dict = {"special_tokens": specials, "show_progress": False}
    if kind == "character":
        found = sorted({c for text in texts for c in (text.lower() if lowercase else text)})
        vocab = {token: i for i, token in enumerate((specials + found)[:size])}
        return pipelines.characters(models.WordLevel(vocab, unk_token="<unk>"), lowercase)
    trainer: Any
    if kind == "wordpiece":
        backend = pipelines.bert(models.WordPiece(unk_token="[UNK]"), lowercase)
        trainer = trainers.WordPieceTrainer(vocab_size=size, min_frequency=min_count, continuing_subword_prefix="##", **shared)
    elif kind == "byte_bpe":
        backend = pipelines.byte_level(models.BPE(), lowercase)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=size, min_frequency=min_count, initial_alphabet=sorted(alphabet), **shared)
    elif kind == "bpe":
        backend = pipelines.pieces(models.BPE(unk_token="<unk>"), lowercase)
        trainer = trainers.BpeTrainer(vocab_size=size, min_frequency=min_count, **shared)
    else:
        backend = pipelines.pieces(models.Unigram(), lowercase)
        trainer = trainers.UnigramTrainer(vocab_size=size, unk_token="<unk>", **shared)
    backend.train_from_iterator(texts, trainer)
    return backend


class _Watched:
    """The texts in items of bounded length, cut before a space; remembers whether there was anything."""

    def __init__(self, texts: Iterable[str]):
        self.texts, self.seen = texts, False

    def __iter__(self) -> Iterator[str]:
        for text in self.texts:
            if not isinstance(text, str):
                raise ValueError(f"texts holds a {type(text).__name__}; each item is one str")
            self.seen = self.seen or bool(text)
            start = 0
            while len(text) - start > ITEM:
                space = text.find(" ", start + ITEM)
                if space < 0:
                    break
                yield text[start:space]
                start = space
            yield text[start:]
