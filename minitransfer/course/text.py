"""02, text to ids."""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from .. import samples
from ..nn.heads import IGNORE
from ..text import Tokenizer
from .exercise import demand, exercise, gap, in_engine
from .models import moved

TEXTS = ["Yes.", "The banker unbelievably sat by the bank.", "Nobody could say why, though everybody knew."]


@exercise("02", 'wordpiece(word, vocab) -> the pieces of a word, from the left always the longest, or ["[UNK]"]')
def wordpiece(answer: Callable) -> str:
    tok = Tokenizer.from_pretrained("mini-bert")
    words = sorted({word for word in samples.path("general.txt").read_text(encoding="utf-8").lower().split() if word.isalpha() and word.isascii()})
    for word in words:
        found, truth = list(answer(word, set(tok.vocab))), tok.tokens(tok.encode(word, specials=False))
        demand(found == truth, f"{word!r} became {found}, it is {truth}")
    small = {"a", "ab", "##b", "##bc", "##c"}
    for word, truth in (("abc", ["ab", "##c"]), ("abcd", ["[UNK]"]), ("ca", ["[UNK]"])):
        demand(list(answer(word, small)) == truth, f"with the vocabulary {sorted(small)}, {word!r} became {list(answer(word, small))}, it is {truth}")
    return f"{len(words)} words as the tokenizer of mini-bert cuts them"


@exercise("02", "merge(words) -> the most frequent pair of neighbours, and the words after merging it")
def merge(answer: Callable) -> str:
    words: dict[tuple[str, ...], int] = {tuple(word): count for word, count in (("low", 3), ("lower", 1), ("newest", 3), ("widest", 2), ("aaaa", 1))}
    for pair, after in ((("s", "t"), {("n", "e", "w", "e", "st"): 3}), (("e", "st"), {("n", "e", "w", "est"): 3, ("w", "i", "d", "est"): 2}), (("o", "w"), {("l", "ow"): 3})):
        found, words = answer(dict(words))
        demand(tuple(found) == pair, f"the pair is {tuple(found)}, it is {pair}")
        wrong = {pieces: count for pieces, count in after.items() if words.get(pieces) != count}
        demand(not wrong, f"after {pair} there is no {wrong}, there are {dict(words)}")
    pair, words = answer(Counter({("a", "a", "a"): 1}))
    demand(dict(words) == {("aa", "a"): 1}, f"('a', 'a', 'a') became {dict(words)}, it is {{('aa', 'a'): 1}}: pieces are merged from the left, each once")
    return "three merges, and a piece that is its own neighbour"


@exercise("02", "align(word_ids, labels) -> labels at the first piece of each word, -100 elsewhere")
def align(answer: Callable) -> str:
    tok = Tokenizer.from_pretrained("mini-bert")
    encodings = tok.encodings([*TEXTS, "unbelievable unbelievable"])
    model, batch = moved("mini-bert", head="token", labels=["A", "B", "C"]), tok.collate([e.ids for e in encodings])
    rows, truth = [], torch.full(batch["input_ids"].shape, IGNORE)
    for i, e in enumerate(encodings):
        labels = [w % 3 for w in range(1 + max(w for w in e.word_ids if w is not None))]
        rows.append(torch.tensor(list(answer(e.word_ids, labels))))
        for w, label in enumerate(labels):
            truth[i, e.word_ids.index(w)] = label
        gap(f"the labels of {e.tokens}", rows[-1].float(), truth[i, :len(e.ids)].float(), within=0.0)
    targets = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORE)
    seen = gap("the tagger's loss", model(**batch, labels=targets).loss, model(**batch, labels=truth).loss)
    return f"and the loss of a tagger within {seen:.0e}"


@exercise("02", "collate(rows, pad_id, padding_side) -> input_ids (B, T) int64 and attention_mask (B, T) bool")
def collate(answer: Callable) -> str:
    tok, model = Tokenizer.from_pretrained("mini-gpt"), moved("mini-gpt", head="none")
    worst = 0.0

    def as_collate(self: Tokenizer, ids: Any, type_ids: Any = None, padding_side: str = "right") -> dict[str, torch.Tensor]:
        input_ids, attention_mask = answer([list(map(int, row)) for row in ids], self.filler, padding_side)
        return {"input_ids": input_ids, "attention_mask": attention_mask}
    for side in ("right", "left"):
        truth = tok(TEXTS, padding_side=side)
        with in_engine("text.tokenizer:Tokenizer.collate", as_collate):
            found = tok(TEXTS, padding_side=side)
        demand(found["attention_mask"].dtype == torch.bool and found["input_ids"].dtype == torch.long,
               f"{found['input_ids'].dtype} and {found['attention_mask'].dtype}, torch.int64 and torch.bool are needed")
        gap(f"attention_mask, padded on the {side}", found["attention_mask"].float(), truth["attention_mask"].float(), within=0.0)
        keep = truth["attention_mask"]
        worst = max(worst, gap("the states of mini-gpt", model(**found).last_hidden_state[keep], model(**truth).last_hidden_state[keep]))
        demand(torch.equal(found["input_ids"], truth["input_ids"]), "padding is not filled with pad_id")
    return f"in the tokenizer, both sides; states of mini-gpt within {worst:.0e}"
