"""One label for every word: entities, parts of speech. A word's label stands at its first piece; its other pieces are no targets, unless asked for.

Tags such as B-PER, I-PER and O mark entities: they are counted as entities too, and predictions give them with their places in the text.
"""
from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..config import choose
from ..nn.heads import IGNORE
from ..nn.model import Model
from ..text import LabelledBatches, Tokenizer, TruncationWarning, label_name
from ..text.readers import column
from ..training.evaluate import Evaluation
from ..training.ranks import each
from .base import in_batches, logits_of
from .entities import EntityCounts, are_iob, breaks, repaired, spans
from .metrics import Confusion
from .sequence import check_unseen, label_set, no_label
from .split import check_several


@dataclass(frozen=True)
class WordPrediction:
    """A word, its likeliest label and the label's probability. A word that was cut off, or has no piece in this vocabulary, has none."""

    word: str
    label: str | None
    probability: float
    start: int = 0          # in characters of the text
    end: int = 0


@dataclass(frozen=True)
class Entity:
    """Words that are one name: text[start:end]. The probability is that of its least certain word."""

    label: str
    text: str
    start: int
    end: int
    probability: float


class Tagged(list[WordPrediction]):
    """The words of one text with their labels."""

    def __init__(self, text: str, words: Iterable[WordPrediction]):
        super().__init__(words)
        self.text = text

    @property
    def entities(self) -> list[Entity]:
        """Of labels such as B-PER, I-PER and O; an I- that goes on with nothing begins an entity. Other labels mark none."""
        tags = [one.label or "O" for one in self]
        found = spans(tags) if are_iob(tags) else []
        return [Entity(kind, self.text[self[first].start : self[last - 1].end], self[first].start, self[last - 1].end,
                       min(one.probability for one in self[first:last])) for kind, first, last in found]


def tagged(text: str | Sequence[str], answers: Iterable[tuple[str | None, float]]) -> Tagged:
    """The label and probability of each word at its place in the text, a string cut at spaces or words to be joined by them."""
    whole, words = (text, text.split()) if isinstance(text, str) else (" ".join(text), text)
    found, end = Tagged(whole, []), 0
    for word, (label, probability) in zip(words, answers, strict=True):
        start = whole.index(word, end)
        end = start + len(word)
        found.append(WordPrediction(word, label, probability, start, end))
    return found


def pieces_of(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[list[int]]:
    """For each word the positions of its pieces, in the text of these words joined by spaces; none if it was cut off or has none.

    Args: offsets: (start, end) in characters of each token, (0, 0) at special tokens. A piece belongs to the word its last character is in:
          a byte-level piece may begin with the space before the word.
    """
    owner = np.repeat(np.arange(len(words)), [len(word) + 1 for word in words])
    found: list[list[int]] = [[] for _ in words]
    for position, (start, end) in enumerate(offsets):
        if end > start:
            found[int(owner[end - 1])].append(position)
    return found


def first_pieces(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[int | None]:
    """The first of `pieces_of` each word, or None."""
    return [pieces[0] if pieces else None for pieces in pieces_of(words, offsets)]


def places_of(sentences: Sequence[Sequence[str]], tok: Tokenizer, max_length: int | None) -> list[list[list[int]]]:
    """`pieces_of` every sentence, after truncation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)      # the batches of the same texts say it
        found = tok.encodings([" ".join(words) for words in sentences], max_length=max_length)
    return [pieces_of(words, encoding.offsets) for words, encoding in zip(sentences, found, strict=True)]


def further(tag: str, labels: Sequence[str]) -> str:
    """The label of the further pieces of a word: a name that begins in a word goes on in it."""
    return f"I-{tag[2:]}" if tag.startswith("B-") and f"I-{tag[2:]}" in labels else tag


class TokenBatches:
    """`LabelledBatches` of the joined words, whose labels here are row numbers, with the words' own labels put at their pieces.

    Args: pieces: "first": the label stands at a word's first piece; "all": at each, with B-X becoming I-X after the first.
    """

    def __init__(self, sentences: Sequence[Sequence[str]], tags: Sequence[Sequence[str]], tok: Tokenizer, labels: Sequence[str],
                 batch_size: int | None, max_tokens: int | None, max_length: int | None, seed: int, pieces: str = "first"):
        rows = [{"text": " ".join(words), "label": i} for i, words in enumerate(sentences)]
        self.plain = LabelledBatches(rows, tok, [str(i) for i in range(len(rows))], batch_size=batch_size, max_tokens=max_tokens,
                                     max_length=max_length, seed=seed)
        number = {name: i for i, name in enumerate(labels)}
        self.tags, self.places = tags, places_of(sentences, tok, max_length)
        self.targets: list[list[tuple[int, int]]] = []
        for row, words in zip(tags, self.places, strict=True):
            firsts = [(places[0], number[tag]) for places, tag in zip(words, row, strict=True) if places]
            rest = [(place, number[further(tag, labels)]) for places, tag in zip(words, row, strict=True) for place in places[1:]]
            self.targets.append(firsts + (rest if pieces == "all" else []))

    def __len__(self) -> int:
        return len(self.plain)

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        batch = self.plain[k]
        labels = torch.full(batch["input_ids"].shape, IGNORE)                      # (B, T)
        for row, number in enumerate(batch["labels"].tolist()):
            for place, label in self.targets[number]:
                labels[row, place] = label
        return batch | {"labels": labels}

    def rows(self, k: int) -> list[int]:
        """The numbers of the rows of batch k."""
        return self.plain[k]["labels"].tolist()


def tagging(batches: TokenBatches) -> Evaluation:
    """One decision a word, at its first piece; with entity tags also whole entities, in which a word that was cut off counts as answered with O."""
    def evaluate(model: Model) -> dict[str, float]:
        def ask(k: int) -> tuple[float, int, list[int], list[list[int]]]:
            batch = batches[k]
            logits = logits_of(model, batch)                                         # (B, T, n)
            loss = cross_entropy(logits.flatten(0, 1), batch["labels"].to(logits.device).flatten(), ignore_index=IGNORE, reduction="sum")
            return float(loss), int((batch["labels"] != IGNORE).sum()), batches.rows(k), logits.argmax(-1).tolist()
        names = model.labels or []
        number = {name: i for i, name in enumerate(names)}
        confusion, entities, loss_sum, targets = Confusion(len(names)), EntityCounts() if are_iob(names) else None, 0.0, 0
        for loss, n, rows, answered in each(range(len(batches)), ask):
            loss_sum, targets = loss_sum + loss, targets + n
            for row, answers in zip(rows, answered, strict=True):
                truth = batches.tags[row]
                found = [answers[places[0]] if places else None for places in batches.places[row]]
                seen = [(number[tag], answer) for tag, answer in zip(truth, found, strict=True) if answer is not None]
                if seen:
                    confusion.add(*torch.tensor(seen).unbind(1))
                if entities is not None:
                    entities.add(truth, ["O" if answer is None else names[answer] for answer in found])
        return confusion.metrics() | (entities.metrics() if entities is not None else {}) | {"loss": loss_sum / max(targets, 1)}
    return evaluate


def sentences_of(rows: Sequence[dict], words: str, tags: str, split: str) -> tuple[list[list[str]], list[list[str]]]:
    """The words and the tags. Raises: ValueError for a row in which they are not lists of equal length, of texts and tags, with a word at least."""
    both = list(zip(column(rows, words, split), column(rows, tags, split), strict=True))
    for i, (one, labels) in enumerate(both):
        if not isinstance(one, list | tuple) or not isinstance(labels, list | tuple) or len(one) != len(labels) or not one:
            raise ValueError(f"{split} row {i}: {words!r} is {one!r} and {tags!r} is {labels!r}; lists of equal length with a word at least are "
                             "needed: give one tag for each word")
        check_words(one, f"{split} row {i}")
        if (bad := next((k for k, tag in enumerate(labels) if no_label(tag)), None)) is not None:
            raise ValueError(f"{split} row {i}: its word {bad}, {one[bad]!r}, has the tag {labels[bad]!r}; every word needs one: fill it in, or drop the row")
    return [list(one) for one, _ in both], [[label_name(tag) for tag in labels] for _, labels in both]


def check_words(words: Sequence[Any], where: str) -> None:
    """Raises: ValueError for a word that is no text."""
    for i, word in enumerate(words):
        if not isinstance(word, str):
            raise ValueError(f"{where}: its word {i} is {word!r} ({type(word).__name__}); words are texts: convert it, or drop the row")


@dataclass(frozen=True)
class TokenTask:
    """Rows of words with a tag each, as `read_rows` gives them from CoNLL files.

    Args: pieces: "first": a word's label stands at its first piece only; "all": its other pieces learn it too. Answers are read at the first.
          broken: what happens to tags that break IOB2, an I- that goes on with no entity of its type: "repair" it to B-, or "refuse" the row.
    """

    name: ClassVar[str] = "token"
    head: ClassVar[str] = "token"
    problem: ClassVar[str | None] = None
    best: ClassVar[str] = "accuracy higher"
    words: str = "words"
    tags: str = "tags"
    pieces: str = "first"
    broken: str = "repair"

    def __post_init__(self) -> None:
        choose("pieces", self.pieces, ("first", "all"))
        choose("broken", self.broken, ("repair", "refuse"))

    @property
    def columns(self) -> dict[str, Any]:
        return {"words": self.words, "tags": self.tags}

    @property
    def settings(self) -> dict[str, Any]:
        return {"pieces": self.pieces, "broken": self.broken}

    @property
    def asks(self) -> list[str]:
        return [self.words]

    def labels(self, train: Sequence[dict], validation: Sequence[dict]) -> list[str]:
        """Sorted, from the training rows alone.

        Raises: ValueError for tags that do not fit the words, that training lacks, that are all the same, or that break IOB2 if this is refused.
        Warns:  once, about tags that break IOB2 and were repaired; about tags of another scheme (BIOES).
        """
        given = {"training": sentences_of(train, self.words, self.tags, "training")[1],
                 "validation": sentences_of(validation, self.words, self.tags, "validation")[1] if validation else []}
        if are_iob(tag for tags in given["training"] for tag in tags):
            self.check_iob(given)
            given = {split: [repaired(tags) for tags in rows] for split, rows in given.items()}
        found = label_set([tag for tags in given["training"] for tag in tags])
        if not are_iob(found) and any(tag[:2] in ("B-", "I-") for tag in found):
            strangers = [tag for tag in found if tag != "O" and tag[:2] not in ("B-", "I-")]
            warnings.warn(f"the tags {', '.join(map(repr, strangers[:5]))} stand beside B-, I- and O and are none of them (IOB2): words are measured and entities are not; "
                          "convert the tags to have entity F1", UserWarning, stacklevel=4)
        for i, tags in enumerate(given["validation"]):
            check_unseen(tags, found, f"validation row {i}, word")
        if len(found) == 1:
            raise ValueError(f"all words of the {len(train)} training rows have the tag {found[0]!r}; there is nothing to tell apart: check the column "
                             f"{self.tags!r}, or give rows with other tags")
        check_several([tag for tags in given["validation"] for tag in tags], "validation", "words")
        return found

    def check_iob(self, given: dict[str, list[list[str]]]) -> None:
        wrong = [(split, i, tags, places[0]) for split, rows in given.items() for i, tags in enumerate(rows) if (places := breaks(tags))]
        if not wrong:
            return
        split, i, tags, word = wrong[0]
        what = (f"{len(wrong)} of {sum(map(len, given.values()))} rows have tags that break IOB2, first {split} row {i}: its word {word} has {tags[word]!r}"
                + (f" after {tags[word - 1]!r}" if word else " at the start"))
        if self.broken == "refuse":
            raise ValueError(f'{what}; an entity begins with B-: mend the tags, or use TokenTask(broken="repair")')
        warnings.warn(f"{what}; each such I- was read as B- (TokenTask(broken=\"refuse\") stops here instead)", UserWarning, stacklevel=5)

    def batches(self, rows: Sequence[dict], tok: Tokenizer, labels: Sequence[str], batch_size: int | None, max_tokens: int | None,
                max_length: int | None, seed: int) -> TokenBatches:
        sentences, tags = sentences_of(rows, self.words, self.tags, "a")
        if are_iob(labels):
            tags = [repaired(one) for one in tags]
        return TokenBatches(sentences, tags, tok, labels, batch_size, max_tokens, max_length, seed, self.pieces)

    def evaluation(self, batches: Any) -> Evaluation:
        return tagging(batches)

    def predict(self, model: Model, tok: Tokenizer, texts: Sequence[str | Sequence[str]], pairs: Sequence[str] | None, batch_size: int,
                max_length: int | None) -> list[Tagged]:
        """Texts are strings, which are cut at spaces, or lists of words, whose text is the words joined by spaces."""
        if pairs is not None:
            raise ValueError("pairs for a token task; it labels the words of one text: leave pairs out")
        for i, text in enumerate(texts):
            if not isinstance(text, str | list | tuple):
                raise ValueError(f"text {i} is {text!r} ({type(text).__name__}); each is a str, or a list of words: drop or fill empty cells first")
            check_words(text, f"text {i}")
        sentences = [text.split() if isinstance(text, str) else list(text) for text in texts]
        ids, type_ids = tok.encode_rows([" ".join(words) for words in sentences], None, max_length)
        found, names = in_batches(model, tok, ids, type_ids, batch_size), model.labels or []
        answers = []
        for i, places in enumerate(places_of(sentences, tok, max_length)):
            p, best = found[i].max(-1)                                             # (T,), (T,)
            answers.append(tagged(texts[i], [(names[int(best[pieces[0]])], float(p[pieces[0]])) if pieces else (None, 0.0) for pieces in places]))
        return answers
