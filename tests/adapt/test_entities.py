"""Entities from tags against seqeval, and where they stand in the text."""
import random
import warnings

import pytest
import torch
from seqeval import metrics
from seqeval.scheme import IOB2

from minitransfer import samples
from minitransfer.config import ModelConfig
from minitransfer.nn.heads import IGNORE
from minitransfer.nn.model import Model
from minitransfer.tasks import TokenTask, predict
from minitransfer.tasks.entities import EntityCounts, are_iob, breaks, repaired, spans
from minitransfer.tasks.token import TokenBatches, further
from minitransfer.text import Tokenizer, TruncationWarning, read_rows

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-A-B", "I-A-B"]


def drawn(n: int, seed: int, lengths: tuple[int, int] = (1, 11)) -> list[list[str]]:
    draw = random.Random(seed)
    return [draw.choices(TAGS, weights=[3, 2, 2, 1, 1, 1, 1], k=draw.randint(*lengths)) for _ in range(n)]


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return read_rows(samples.path("tagged.conll"))


@pytest.fixture(scope="module", params=["wordpiece", "byte_bpe"])
def tok(request, rows) -> Tokenizer:
    return Tokenizer.train([" ".join(row["words"]) for row in rows], kind=request.param, vocab_size=310, max_len=97)


def tagger(tok: Tokenizer, labels: list[str]) -> Model:
    """Its answers differ from word to word: every parameter was moved."""
    model = Model(ModelConfig(vocab_size=tok.vocab_size, d_model=36, n_layers=2, n_heads=3, d_ff=59, max_len=97, n_token_types=2, dropout=0.0), head="token",
                  labels=labels, seed=1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.mark.parametrize("agree", [0.0, 0.8])
def test_equal_to_seqeval(agree):
    """On tags in any order, so that every way of breaking IOB2 is among them."""
    draw = random.Random(3)
    truth, other = drawn(211, 1), drawn(211, 2, (11, 11))
    answer = [[t if draw.random() < agree else a for t, a in zip(ts, row, strict=False)] for ts, row in zip(truth, other, strict=True)]
    counts = EntityCounts()
    for one, two in zip(truth, answer, strict=True):
        counts.add(one, two)
    found = counts.metrics()
    strict = {"mode": "strict", "scheme": IOB2}
    assert found["entity_precision"] == pytest.approx(metrics.precision_score(truth, answer, **strict), abs=1e-12)
    assert found["entity_recall"] == pytest.approx(metrics.recall_score(truth, answer, **strict), abs=1e-12)
    assert found["entity_f1"] == pytest.approx(metrics.f1_score(truth, answer, **strict), abs=1e-12)
    assert found["entity_f1_lenient"] == pytest.approx(metrics.f1_score(truth, answer), abs=1e-12)
    assert found["entity_f1"] != found["entity_f1_lenient"]
    assert found["entity_f1_low"] < found["entity_f1"] < found["entity_f1_high"]


def test_by_hand():
    tags = ["I-PER", "I-PER", "O", "B-LOC", "I-PER", "B-PER", "B-PER", "I-PER"]
    assert spans(tags, strict=True) == [("LOC", 3, 4), ("PER", 5, 6), ("PER", 6, 8)]
    assert spans(tags) == [("PER", 0, 2), ("LOC", 3, 4), ("PER", 4, 5), ("PER", 5, 6), ("PER", 6, 8)]
    assert breaks(tags) == [0, 4]
    assert repaired(tags) == ["B-PER", "I-PER", "O", "B-LOC", "B-PER", "B-PER", "B-PER", "I-PER"]
    assert are_iob(TAGS) and not are_iob(["O"]) and not are_iob(["NOUN", "O"]) and not are_iob(["B-X", "S-X"]) and not are_iob(["B-"])
    assert EntityCounts().metrics()["entity_f1"] == 0


def test_repairing_keeps_the_entities():
    for tags in drawn(97, 5):
        assert spans(repaired(tags), strict=True) == spans(tags) and not breaks(repaired(tags))


def test_broken_tags_are_said_once_or_refused():
    train = [{"words": ["a", "b"], "tags": ["O", "I-X"]}, {"words": ["a"], "tags": ["I-X"]}, {"words": ["a"], "tags": ["O"]}]
    held_out = [{"words": ["b", "c"], "tags": ["B-X", "I-X"]}, {"words": ["b"], "tags": ["I-X"]}]
    with pytest.warns(UserWarning, match=r"3 of 5 rows have tags that break IOB2, first training row 0: its word 1 has 'I-X' after 'O'") as said:
        labels = TokenTask().labels(train, [held_out[1], {"words": ["a"], "tags": ["O"]}])
    assert len(said) == 1 and labels == ["B-X", "O"]
    with pytest.raises(ValueError, match=r"tags that break IOB2, first training row 0.*at the start; an entity begins with B-"):
        TokenTask(broken="refuse").labels(train[1:], [])
    with pytest.raises(ValueError, match="broken='ignore'"):
        TokenTask(broken="ignore")
    with pytest.raises(ValueError, match="pieces='last'"):
        TokenTask(pieces="last")
    with pytest.raises(ValueError, match="all words of the 1 training rows have the tag 'O'"):
        TokenTask().labels(train[2:], [])


def test_every_piece_may_learn_its_word(tok, rows):
    labels = sorted({tag for row in rows for tag in row["tags"]})
    sentences, tags = [r["words"] for r in rows], [r["tags"] for r in rows]
    first, every = (TokenBatches(sentences, tags, tok, labels, 5, None, 97, 3, pieces) for pieces in ("first", "all"))
    more = 0
    for k in range(len(first)):
        one, two = first[k], every[k]
        special = torch.tensor([[int(i) in tok.special_ids for i in row] for row in one["input_ids"]]) | ~one["attention_mask"]
        assert torch.equal(two["labels"] == IGNORE, special)                        # all subwords, and nothing else
        placed = one["labels"] != IGNORE
        assert torch.equal(one["labels"][placed], two["labels"][placed])
        last = IGNORE
        for there, wanted in zip(placed.flatten().tolist(), two["labels"].flatten().tolist(), strict=True):
            if there:
                last = wanted
            elif wanted != IGNORE:
                more += 1
                assert labels[wanted] == further(labels[last], labels)
    assert more > 50
    assert further("B-PER", ["B-PER", "I-PER"]) == "I-PER" and further("B-X", ["B-X", "O"]) == "B-X" and further("NOUN", ["NOUN"]) == "NOUN"


def test_evaluation_counts_whole_sentences(tok, rows):
    """A word that was cut off is answered with O. seqeval on what `predict` says gives the same."""
    labels = sorted({tag for row in rows for tag in row["tags"]})
    model, task = tagger(tok, labels), TokenTask(pieces="all")
    with pytest.warns(TruncationWarning), torch.no_grad():
        found = task.evaluation(task.batches(rows, tok, labels, 7, None, 13, 0))(model)
    with pytest.warns(TruncationWarning):
        answers = predict(model, tok, [row["words"] for row in rows], max_length=13)
    tags = [[one.label or "O" for one in words] for words in answers]
    truth = [row["tags"] for row in rows]
    assert any(one.label is None for words in answers for one in words)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found["entity_f1"] == pytest.approx(metrics.f1_score(truth, tags, mode="strict", scheme=IOB2), abs=1e-12)
        assert found["entity_f1_lenient"] == pytest.approx(metrics.f1_score(truth, tags), abs=1e-12)
    assert found["entities"] == sum(tag.startswith("B-") for row in truth for tag in row) and found["entity_f1_lenient"] > 0
    asked = [(a.label, t) for words, row in zip(answers, truth, strict=True) for a, t in zip(words, row, strict=True) if a.label is not None]
    assert found["n"] == len(asked) and found["accuracy"] == sum(a == t for a, t in asked) / len(asked)


def test_entities_stand_where_they_say(tok, rows):
    labels = ["B-PER", "I-PER", "O", "B-LOC"]
    model = tagger(tok, labels)
    strange = "  The  Zürich\tof \u200b Émile,\u00a0O'Hara\u2028ran  "
    texts = [strange, *[" ".join(row["words"]) for row in rows[:23]]]
    seen = 0
    for text, words in zip(texts, predict(model, tok, texts), strict=True):
        assert [text[one.start : one.end] for one in words] == [one.word for one in words] == text.split()
        for entity in words.entities:
            seen += 1
            inside = [one for one in words if entity.start <= one.start < entity.end]
            assert entity.text == text[entity.start : entity.end] and entity.text.split() == [one.word for one in inside]
            assert {one.label[2:] for one in inside} == {entity.label} and entity.probability == min(one.probability for one in inside)
    assert seen > 20
    (listed,) = predict(model, tok, [["Ann", "Ann", "A B", "\u200b"]])
    assert listed.text == "Ann Ann A B \u200b" and [(one.start, one.end) for one in listed] == [(0, 3), (4, 7), (8, 11), (12, 13)]
    assert (listed[3].label is None) == (tok.format.token_types)                    # only a byte-level vocabulary has pieces for it
    assert predict(tagger(tok, ["NOUN", "VERB"]), tok, ["a text"])[0].entities == []


def test_real_files(data):
    """Counted independently: in IOB2 each entity has one B-."""
    for name in ("wikigold/train.conll", "ncbi_disease/validation.conll", "wnut17/validation.conll"):
        rows = read_rows(data / name)
        tags = [line.split()[-1] for line in (data / name).read_text(encoding="utf-8").splitlines() if line.strip()]
        assert sum(len(spans(row["tags"], strict=True)) for row in rows) == sum(tag.startswith("B-") for tag in tags) > 400
        assert not any(breaks(row["tags"]) for row in rows)
    words = read_rows(data / "ud/hi_pud/validation.conllu.gz")
    assert len(words) == 100 and not are_iob(tag for row in words for tag in row["tags"]) and "NOUN" in words[0]["tags"]
