"""Text to ids and back.

The pipelines are those of the `tokenizers` library (see pipelines.py); what is ours is the batch: padding that is always masked, truncation that says
what it cut, and files that `transformers` reads.
"""
from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Encoding
from tokenizers import Tokenizer as Backend
from torch import Tensor

from ..weights.sources import resolve
from . import tokenizer_files
from .pipelines import Format
from .tokenizer_train import train

PATTERNS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt", "sentence_bert_config.json")
CHUNK = 1024                        # texts tokenised at a time where their encodings are not kept
Texts = Sequence[Any]               # of str; checked here, since they often come from a file with empty cells
Row = Sequence[int] | np.ndarray
LONE = re.compile(r"[\ud800-\udfff]")


class TruncationWarning(UserWarning):
    """Texts were longer than allowed and lost their ends."""


@dataclass
class Cut:
    """What truncation to `limit` tokens took away."""

    limit: int | None
    texts: int = 0
    tokens: int = 0         # before truncation
    long: int = 0           # texts
    lost: int = 0           # tokens
    longest: int = 0        # tokens

    def warn(self) -> None:
        if self.lost:
            warnings.warn(f"{self.long} of {self.texts} texts are longer than {self.limit} tokens (the longest has {self.longest}): {self.lost} of "
                          f"{self.tokens} tokens ({self.lost / self.tokens:.1%}) were cut from their ends; use a larger max_length if the model "
                          "allows it, or split the texts", TruncationWarning, stacklevel=4)


class Tokenizer:
    """A vocabulary, the rules that cut a text into its tokens, and the roles of the special tokens.

    `pad_id mask_id cls_id sep_id bos_id eos_id unk_id` are the ids of the roles, None where the format has no such token. GPT-2 has no padding token:
    its batches are padded with any id, since padding is told by `attention_mask` and never by an id (a model that took `eos` for padding would never
    learn to stop).
    """

    def __init__(self, backend: Backend, format: Format):
        self.backend, self.format = backend, format
        for role in ("pad", "mask", "cls", "sep", "bos", "eos", "unk"):
            token = getattr(format, role)
            setattr(self, f"{role}_id", None if token is None else backend.token_to_id(token))
        self.vocab = backend.get_vocab()

    pad_id: int | None
    mask_id: int | None
    cls_id: int | None
    sep_id: int | None
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None

    @classmethod
    def from_pretrained(cls, source: str | Path, revision: str | None = None) -> Tokenizer:
        """Load a tokenizer.

        Args:    source: a folder with tokenizer.json, or vocab.txt (BERT), or vocab.json and merges.txt (GPT-2); a name under checkpoints/; or a hub
                 id. A vocab.txt is read with lower-casing as tokenizer_config.json says (BERT's default: on); without any configuration it is on when
                 no piece of the vocabulary has an upper-case letter.
        Raises:  ValueError if there is no tokenizer at `source`, or its files are broken.
        """
        return cls(*tokenizer_files.read(resolve(source, revision=revision, patterns=PATTERNS)))

    @classmethod
    def train(cls, texts: Iterable[str], kind: str = "wordpiece", vocab_size: int = 8192, lowercase: bool | None = None, max_len: int | None = None,
              min_count: int = 2) -> Tokenizer:
        """A new vocabulary. The same texts give the same one, except for the scores of "unigram", whose last digits vary.

        Args:    texts: any iterable of texts, for example `read_texts(path)`; it does not have to fit in memory.
                 kind: "wordpiece" (BERT's format), "byte_bpe" (GPT-2's), "bpe" or "unigram" (`<s> text </s>`), "character".
                 vocab_size: tokens, special tokens included; small texts may give fewer. The single characters of "wordpiece" and "bpe" are the
                 most frequent ones, together 99.99 % of the texts; rarer ones are unknown. "byte_bpe" knows every text.
                 lowercase: None: on for "wordpiece", off for the others.
                 max_len: the longest input of the model it is meant for, in tokens.
                 min_count: a pair that occurs less often is not merged (not used by "unigram" and "character").
        Raises:  ValueError for an unknown kind, a vocab_size without room for single characters, or texts without a character.
        """
        return cls(*train(texts, kind, vocab_size, kind == "wordpiece" if lowercase is None else lowercase, max_len, min_count))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json; `transformers.AutoTokenizer.from_pretrained(folder)` gives the same ids."""
        tokenizer_files.write(self.backend, replace(self.format, hf_class=tokenizer_files.hf_class(self.backend)), Path(folder))

    @property
    def max_len(self) -> int | None:
        """The longest input of the model this tokenizer was made for, in tokens with specials; None: not known."""
        return self.format.max_len

    @property
    def vocab_size(self) -> int:
        """Rows that an embedding needs: the largest id plus one."""
        return max(self.vocab.values()) + 1

    @cached_property
    def special_ids(self) -> frozenset[int]:
        marked = {i for i, token in self.backend.get_added_tokens_decoder().items() if token.special}
        return frozenset(marked | {self.vocab[token] for token in self.format.tokens.values()})

    @cached_property
    def opening(self) -> list[int]:
        """The special tokens that stand before every text: [CLS] of BERT, <s> of LLaMA, none of GPT-2."""
        found = self.backend.encode("a")
        return [i for i, _ in takewhile(lambda both: both[1], zip(found.ids, found.special_tokens_mask, strict=True))]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the pipeline in a fixed form: the same for the same rules, however their file is formatted."""
        # the scores of a unigram vocabulary come back from a file changed in their last digit
        spec = json.loads(self.backend.to_str(), parse_float=lambda digits: f"{float(digits):.9g}")
        return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()

    def encode(self, text: str, specials: bool = True) -> list[int]:
        """The ids of one text, in full length."""
        return self.backend.encode(text, add_special_tokens=specials).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many texts without special tokens, in full length; the fastest way to tokenise a corpus."""
        return [e.ids for e in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Row | Tensor, skip_specials: bool = True) -> str:
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_specials)

    def tokens(self, ids: Iterable[int] | Tensor) -> list[str]:
        """The pieces themselves, as the vocabulary writes them."""
        return [self._token(int(i)) for i in ids]

    def _token(self, i: int) -> str:
        token = self.backend.id_to_token(i)
        if token is None:
            raise ValueError(f"id {i} is not in this vocabulary; ids are below {self.vocab_size}: use the tokenizer they were made with")
        return token

    def encodings(self, texts: Texts, pairs: Texts | None = None, max_length: int | None = None) -> list[Encoding]:
        """One `tokenizers.Encoding` per text or pair, with specials: `.ids .tokens .offsets .word_ids .sequence_ids .type_ids`.

        `offsets` are character positions (start, end) in the text the token came from; `word_ids` number its words, None at special tokens.
        A text longer than `max_length` (default: `max_len`) loses its end (its beginning, where the files say so); of a pair the longer text loses tokens first, one at a time. One
        `TruncationWarning` per call says how much was lost.

        Raises:  ValueError for something that is not a text, pairs of another number, or a max_length without room for a token of text.
        """
        _check(texts, pairs)
        cut = Cut(self.max_len if max_length is None else max_length)
        found = self._encode(list(texts) if pairs is None else list(zip(texts, pairs, strict=True)), cut)
        cut.warn()
        return found

    def encode_rows(self, texts: Texts, pairs: Texts | None = None,
                    max_length: int | None = None) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Ids and token type ids of many texts, as `encodings` gives them but without offsets: small enough to keep a whole data set."""
        _check(texts, pairs)
        cut = Cut(self.max_len if max_length is None else max_length)
        ids, types = [], []
        inputs = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        for start in range(0, len(inputs), CHUNK):
            for e in self._encode(inputs[start:start + CHUNK], cut):
                ids.append(np.array(e.ids, np.int32))
                types.append(np.array(e.type_ids, np.int8))
        cut.warn()
        return ids, types

    def _encode(self, inputs: list, cut: Cut) -> list[Encoding]:
        found = self.backend.encode_batch(inputs)
        if cut.limit is None or not inputs:
            return found
        extra = self.backend.num_special_tokens_to_add(isinstance(inputs[0], tuple))
        if cut.limit <= extra:
            raise ValueError(f"max_length={cut.limit} leaves no room for text: this format adds {extra} special tokens; use {extra + 1} or more")
        long = [i for i, e in enumerate(found) if len(e) > cut.limit]
        cut.texts, cut.tokens, cut.long = cut.texts + len(found), cut.tokens + sum(map(len, found)), cut.long + len(long)
        if long:
            self.backend.enable_truncation(cut.limit, strategy="longest_first", direction=self.format.truncation_side)
            try:
                shorter = self.backend.encode_batch([inputs[i] for i in long])
            finally:
                self.backend.no_truncation()
            cut.longest = max(cut.longest, *(len(found[i]) for i in long))
            for i, e in zip(long, shorter, strict=True):
                cut.lost += len(found[i]) - len(e)
                found[i] = e
        return found

    def __call__(self, texts: str | Texts, pairs: str | Texts | None = None, max_length: int | None = None,
                 padding_side: str = "right") -> dict[str, Tensor]:
        """A batch for a model.

        Args:    texts, pairs, max_length: as in `encodings`; one string is a batch of one.
                 padding_side: "right", or "left" for generation, where every row must end at the same column.
        Returns: input_ids (B, T) int64, attention_mask (B, T) bool, True at tokens, and token_type_ids (B, T) int64 when the format has them.
        """
        found = self.encodings([texts] if isinstance(texts, str) else texts, [pairs] if isinstance(pairs, str) else pairs, max_length)
        return self.collate([e.ids for e in found], [e.type_ids for e in found], padding_side)

    def collate(self, ids: Sequence[Row], type_ids: Sequence[Row] | None = None, padding_side: str = "right") -> dict[str, Tensor]:
        """Rows of ids, padded to the longest: the same dict as `__call__`."""
        if padding_side not in ("right", "left"):
            raise ValueError(f"padding_side={padding_side!r}; it is 'right' or 'left'")
        width = max(1, *map(len, ids)) if len(ids) else 1
        batch = {"input_ids": torch.full((len(ids), width), self.filler), "attention_mask": torch.zeros(len(ids), width, dtype=torch.bool)}   # (B, T)
        if self.format.token_types:
            batch["token_type_ids"] = torch.zeros(len(ids), width, dtype=torch.long)
        for row, one in enumerate(ids):
            where = slice(0, len(one)) if padding_side == "right" else slice(width - len(one), width)
            batch["input_ids"][row, where] = torch.from_numpy(np.asarray(one, dtype=np.int64))
            batch["attention_mask"][row, where] = True
            if self.format.token_types and type_ids is not None:
                batch["token_type_ids"][row, where] = torch.from_numpy(np.asarray(type_ids[row], dtype=np.int64))
        return batch

    @property
    def filler(self) -> int:
        """The id written where there is no token; which one does not matter, the mask says so."""
        return next((i for i in (self.pad_id, self.eos_id) if i is not None), 0)


def check_texts(texts: Any, name: str = "texts") -> None:
    """Raises: ValueError for what is no list of str, or a str with half a character (a lone surrogate, as JSON's escapes can make it)."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise ValueError(f"{name} is a {type(texts).__name__}; a list of str is needed: wrap it in a list")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{name}[{i}] is {text!r} ({type(text).__name__}); each item is one str: drop or fill empty cells first")
        if not text.isascii() and (lone := LONE.search(text)):
            raise ValueError(f"{name}[{i}] has {lone[0]!r} at character {lone.start()}, half of a character; text has whole ones: "
                             "drop it, or decode its source anew")


def check_tokens(ids: Sequence[Row], name: str = "text") -> None:
    """Raises: ValueError for a text without a token."""
    if empty := [i for i, one in enumerate(ids) if len(one) == 0]:
        raise ValueError(f"{name} {empty[0]} has no token; this tokenizer puts nothing around a text, so a text needs a character: leave empty texts out")


def _check(texts: Texts, pairs: Texts | None) -> None:
    check_texts(texts)
    if pairs is not None:
        check_texts(pairs, "pairs")
    if pairs is not None and len(pairs) != len(texts):
        raise ValueError(f"{len(texts)} texts and {len(pairs)} pairs; each text needs one: pass lists of the same length")
