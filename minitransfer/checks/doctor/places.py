"""Where labels stand, and what the end of a text loses."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

from ...nn.heads import IGNORE
from ...tasks.span import answers_of
from ...tasks.token import pieces_of
from ...tasks.windows import NULL
from ...text.readers import column
from .finding import Finding, Tried
from .patient import MOST, Patient
from .rows import normal

CUT_TOKENS, CUT_TEXTS = 0.05, 0.2       # shares from which it is wrong
MISPLACED = 0.01
SOME = 64                               # rows whose labels are looked up


def truncation(p: Patient) -> Iterator[Finding]:
    """What max_length takes away. (A long context of a question is read through several windows and loses nothing.)"""
    if p.task is None or not p.training or p.task.name == "span":
        return
    rows = list(p.training[:MOST])
    first, *second = ([value if isinstance(value, str) else " ".join(value) for value in column(rows, one)] for one in p.task.asks)
    alone = not second or p.task.name == "similarity"                            # there two texts are each read for themselves
    every = p.tok.encode_rows(sum(second, first), None, 10**9)[0] if alone else p.tok.encode_rows(first, second[0], 10**9)[0]
    lengths = torch.tensor([len(ids) for ids in every])
    lost = (lengths - p.limit).clamp(min=0)
    cut, share = int((lost > 0).sum()), float(lost.sum() / lengths.sum().clamp(min=1))
    say = Tried("truncation", f"the tokens of {len(every):,} texts against max_length={p.limit}")
    seen = f"{cut:,} of {len(every):,} texts are longer than {p.limit} tokens (the longest has {int(lengths.max())}), and {share:.1%} of all tokens are lost"
    do = "raise max_length if the model allows it, or split the texts; what is cut off cannot be learned from"
    yield say.ok(f"the longest text has {int(lengths.max())} tokens") if not cut else (
        say.wrong if share >= CUT_TOKENS or cut >= CUT_TEXTS * len(every) else say.note)(seen, do)


def alignment(p: Patient) -> Iterator[Finding]:
    """Labels of words and of answers, looked up in the batch as the model gets it."""
    if p.task is None or p.batch is None or p.task.name not in ("token", "span"):
        return
    yield from (words if p.task.name == "token" else spans)(p, p.task)


def words(p: Patient, task: Any) -> Iterator[Finding]:
    """At the first piece of every word stands its label, at special tokens and padding none; the text's own offsets say where that is."""
    rows = p.sample(SOME)
    sentences = [list(row[task.words]) for row in rows]
    found = p.tok.encodings([" ".join(one) for one in sentences], max_length=p.limit)
    whole = p.tok.encodings([" ".join(one) for one in sentences], max_length=10**9)
    times = Counter(tuple(one.ids) for one in found)
    by_ids = {tuple(one.ids): i for i, one in enumerate(found) if times[tuple(one.ids)] == 1}     # of copies the batch does not tell which is which
    batches = task.batches(rows, p.tok, p.labels, SOME, None, p.limit, p.seed)
    n = wrong = 0
    for k in range(len(batches)):
        batch = batches[k]
        for ids, keep, given in zip(batch["input_ids"], batch["attention_mask"], batch["labels"].tolist(), strict=True):
            if (i := by_ids.get(tuple(ids[keep].tolist()))) is None:
                continue
            firsts = {pieces[0]: str(tag) for pieces, tag in zip(pieces_of(sentences[i], found[i].offsets), rows[i][task.tags], strict=True) if pieces}
            n += len(firsts)
            wrong += sum(given[at] == IGNORE or not alike(p.labels[given[at]], tag) for at, tag in firsts.items())
            wrong += sum(label != IGNORE and (at >= len(found[i]) or found[i].special_tokens_mask[at] == 1) for at, label in enumerate(given))
    say = Tried("label alignment", f"{n} words of {len(rows)} rows at the places of their first pieces in the batch")
    if wrong:
        yield say.wrong(f"{wrong} labels do not stand at the first piece of their word", "place labels by the offsets of the pieces, counting special tokens, and -100 elsewhere")
        return
    silent = sum(not pieces for one, e in zip(sentences, whole, strict=True) for pieces in pieces_of(one, e.offsets))
    yield say.of_share(silent, sum(map(len, sentences)), f"{silent} words have no piece in this vocabulary, and their labels are lost" if silent
                       else "every label stands at its word", "drop or mend words that the tokenizer takes for nothing, such as spaces and control characters", MISPLACED)


def alike(label: str, tag: str) -> bool:
    """Whether a label is the tag; an I- that begins an entity is read as B-."""
    return label == tag or (tag.startswith("I-") and label == f"B-{tag[2:]}")


def spans(p: Patient, task: Any) -> Iterator[Finding]:
    """The tokens between the labels, as text, against the answers of the rows."""
    rows = p.sample(SOME)
    answers = {normal(text) for row in rows for text, _ in answers_of(row, task.answers, "a row")[:1]}
    batches = task.batches(rows, p.tok, [], SOME, None, p.limit, p.seed)
    n = 0
    wrong = []
    for k in range(len(batches)):
        batch = batches[k]
        for ids, (start, end) in zip(batch["input_ids"], batch["labels"].tolist(), strict=True):
            if (start, end) in ((NULL, NULL), (IGNORE, IGNORE)):
                continue
            n += 1
            if normal(read := p.tok.decode(ids[start:end + 1])) not in answers:
                wrong.append(read)
    say = Tried("label alignment", f"{n} answers of {len(rows)} rows, read back from the tokens they are labelled with")
    yield say.of_share(len(wrong), max(n, 1), f"{len(wrong)} of {n} read otherwise, such as {wrong[0]!r}" if wrong else "every answer reads as it is given",
                       "let answer_start count characters from 0 in the context as it is; an answer that ends inside a word is labelled to the end of the piece", 0.1)
