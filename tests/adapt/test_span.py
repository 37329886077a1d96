"""Answers cut from a text: metrics by hand and against the reference's, windows against the reference's tokenizer, and from files to a saved model."""
import gzip
import json
import random

import numpy as np
import pytest
import torch
import transformers

from minitransfer.config import ModelConfig
from minitransfer.nn.heads import IGNORE
from minitransfer.nn.model import Model
from minitransfer.tasks import SpanTask, finetune, predict
from minitransfer.tasks.span import SpanBatches
from minitransfer.tasks.squad import SpanScores, plain, scores
from minitransfer.tasks.windows import Window, best_spans, merge, spread, windows
from minitransfer.text import Tokenizer, TruncationWarning, read_rows

QUICK = {"progress": False, "precision": "fp32", "log_every": 1}
NAMES = ["Ada", "Bo", "Cleo", "Dan", "Eve", "Finn"]
TOWNS = ["Lund", "Oslo", "Bern", "Riga", "Nice", "Cork"]
FILLER = "it was a long day and the rain fell on all of the old roads by the sea".split()


def made(n: int, seed: int, impossible: bool = False, longest: int = 9) -> list[dict]:
    """Where does a person live: the town stands after the name."""
    draw, rows = random.Random(seed), []
    for i in range(n):
        people, towns = draw.sample(NAMES, 3), draw.sample(TOWNS, 2)
        before, after = (" ".join(draw.choices(FILLER, k=draw.randint(0, longest))) for _ in range(2))
        parts = [f"{who} lives in {where}." for who, where in zip(people, towns, strict=False)]
        context = f"{before} {parts[0]}  {parts[1]} {after}"
        missing = impossible and i % 3 == 0
        start = context.index(towns[i % 2])
        answers = {"text": [], "answer_start": []} if missing else {"text": [towns[i % 2]], "answer_start": [start]}
        rows.append({"id": str(i), "question": f"Where does {people[2] if missing else people[i % 2]} live?", "context": context, "answers": answers})
    return rows


TRAIN, HELD_OUT = made(120, 1), made(31, 2)


def tokenizer(kind: str = "wordpiece") -> Tokenizer:
    return Tokenizer.train([row["context"] + row["question"] for row in made(200, 3)], kind=kind, vocab_size=290, max_len=61, min_count=1, lowercase=False)


@pytest.fixture(scope="module", params=["wordpiece", "byte_bpe"])
def tok(request) -> Tokenizer:
    return tokenizer(request.param)


@pytest.fixture(scope="module")
def piece_tok() -> Tokenizer:
    return tokenizer()


def body(tok: Tokenizer, head: str = "none", scale: float = 0.0) -> Model:
    model = Model(ModelConfig(vocab_size=tok.vocab_size, d_model=36, n_layers=2, n_heads=3, d_ff=59, max_len=61, n_token_types=2, dropout=0.0), head=head, seed=1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return model


# (answer, true answers, version 2.0?, exact, f1), worked out by hand from the published definitions
CASES = [
    ("The Norse leader, Rollo!", ["norse leader rollo"], False, 1, 1),
    ("in the 10th century", ["10th and 11th centuries", "the 10th century"], False, 0, 2 * (2 / 3) * 1 / (2 / 3 + 1)),
    ("a cat a cat cat", ["cat cat dog"], False, 0, 2 / 3),                             # cat twice of cat cat cat, and of cat cat dog
    ("U.S.", ["us"], False, 1, 1),                                                     # punctuation goes, without a space
    ("anthem", ["an them"], False, 0, 0),                                              # an article is a word of its own
    ("semi-final", ["semi final"], False, 0, 0),
    ("blue", ["red", "green"], False, 0, 0),
    ("the", ["a"], False, 1, 0),                                                       # nothing is left of either: version 1.1 has no overlap
    ("the", ["a"], True, 1, 1),                                                        # and version 2.0 drops such a true answer
    ("", [], True, 1, 1),
    ("something", [], True, 0, 0),
    ("", ["something"], True, 0, 0),
    ("«Rollo»", ["Rollo"], False, 0, 0),                                               # only ASCII punctuation
]


@pytest.mark.parametrize("answer,truths,no_answer,exact,f1", CASES)
def test_scores_by_hand(answer, truths, no_answer, exact, f1):
    assert scores(answer, truths, no_answer) == (exact, pytest.approx(f1, abs=1e-12))


def test_plain():
    assert plain("  The  cat's  an A. ") == "cats"


def test_means_over_questions_by_hand():
    """Three questions with an answer, two without; version 1.1 does not tell them apart."""
    sums = SpanScores(True)
    for answer, truths in (("Rollo", ["Rollo", "Duke Rollo"]), ("Duke of Rouen", ["Rollo of Rouen"]), ("", ["Rouen"]), ("", []), ("Rouen", [])):
        sums.add(answer, truths)
    found = sums.metrics()
    assert found["exact"] == pytest.approx(2 / 5) and found["f1"] == pytest.approx((1 + 2 / 3 + 0 + 1 + 0) / 5)
    assert found["exact_answerable"] == pytest.approx(1 / 3) and found["f1_answerable"] == pytest.approx((1 + 2 / 3) / 3)
    assert found["accuracy_unanswerable"] == 0.5 and (found["n"], found["unanswerable"]) == (5, 2)
    assert 0 <= found["f1_low"] < found["f1"] < found["f1_high"] <= 1
    plainly = SpanScores(False)
    plainly.add("Rollo", ["Rollo"])
    assert set(plainly.metrics()) == {"exact", "exact_low", "exact_high", "f1", "f1_low", "f1_high", "n"}


def test_windows_cover_and_overlap():
    assert list(spread(10, 4, 1)) == [(0, 4), (3, 7), (6, 10)] and list(spread(3, 4, 1)) == [(0, 3)] and list(spread(4, 4, 3)) == [(0, 4)]
    assert list(spread(5, 1, 128)) == [(i, i + 1) for i in range(5)] and list(spread(7, 5, 128)) == [(0, 5), (3, 7)]


def test_windows_of_the_reference(piece_tok, tmp_path):
    """The same ids, types and offsets as its tokenizer gives for long pairs."""
    piece_tok.save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    rows = made(11, 5, longest=90)
    questions, contexts = [r["question"] for r in rows], [r["context"] for r in rows]
    ours = windows(questions, contexts, piece_tok, 31, 7, 64)
    batch = theirs(questions, contexts, max_length=31, stride=7, truncation="only_second", return_overflowing_tokens=True, return_offsets_mapping=True)
    assert len(ours) == len(batch["input_ids"]) > 40
    for one, ids, types, offsets, row in zip(ours, *(batch[k] for k in ("input_ids", "token_type_ids", "offset_mapping", "overflow_to_sample_mapping")), strict=True):
        assert one.ids.tolist() == ids and one.type_ids.tolist() == types and one.row == row
        assert [tuple(o) for o in one.offsets.tolist()] == offsets[one.first : one.first + len(one.offsets)]


def test_the_answer_is_at_its_place(tok):
    """Decoding the labelled positions gives the answer back, from every window that holds it; others have none."""
    rows = made(37, 6, longest=60)
    batches = SpanBatches(SpanTask(stride=11), rows, tok, 5, None, 37, 0)
    held = dict.fromkeys(range(37), 0)
    for window, (start, end) in zip(batches.windows, batches.plain.targets.tolist(), strict=True):
        row = rows[window.row]
        text, at = row["answers"]["text"][0], row["answers"]["answer_start"][0]
        shown = row["context"][window.offsets[0, 0] : window.offsets[-1, 1]]
        if (start, end) == (0, 0):
            assert text not in shown or window.offsets[0, 0] > at or window.offsets[-1, 1] < at + len(text)
            continue
        first, last = window.offsets[start - window.first], window.offsets[end - window.first]
        assert row["context"][first[0] : last[1]].strip() in (text, f"{text}.") and first[0] <= at < first[1]
        assert tok.decode(window.ids[start : end + 1]).strip().startswith(text)
        held[window.row] += 1
    assert min(held.values()) >= 1 and max(held.values()) > 1


def brute_force(logits, window: Window, context: str, max_answer: int):
    """Every span, one after the other."""
    n, found = len(window.offsets), []
    for i in range(n):
        for j in range(i, min(n, i + max_answer)):
            score = float(logits[window.first + i, 0].double() + logits[window.first + j, 1].double())
            found.append((score, context[window.offsets[i, 0] : window.offsets[j, 1]].strip()))
    return sorted(found, reverse=True)


def test_best_spans_are_the_best(tok):
    (window,) = windows(["Who?"], ["Ada lives in Oslo.  Bo is old"], tok, 61, 7, 64)
    logits = torch.randn(len(window.ids), 2)
    logits[: window.first] = 50.0                                                  # the question is no answer, however sure the model is
    for max_answer, n_best in ((1, 3), (4, 7), (100, 500)):
        null, found = best_spans(logits, window, "Ada lives in Oslo.  Bo is old", n_best, max_answer)
        want = brute_force(logits, window, "Ada lives in Oslo.  Bo is old", max_answer)[:n_best]
        assert [value for value, _, _ in found] == pytest.approx([score for score, _ in want])
        assert ["Ada lives in Oslo.  Bo is old"[s:e] for _, s, e in found] == [text for _, text in want] and null == 100


def test_windows_are_merged():
    null, found = merge([(3.0, [(1.0, 0, 4), (0.5, 2, 2)]), (-2.0, [(4.0, 5, 9), (2.0, 0, 4)])], 5)
    assert null == -2.0 and found == [(4.0, 5, 9), (2.0, 0, 4)]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["full", "lora"])
def test_it_answers_and_reads_itself_back(piece_tok, tmp_path, strategy):
    base = tmp_path / "base"
    body(piece_tok).save_pretrained(base)
    more = {"lr": 4e-3, "epochs": 3} if strategy == "full" else {"lr": 4e-3, "epochs": 1}
    result = finetune(Model.from_pretrained(base), piece_tok, "span", train=TRAIN, validation=HELD_OUT, strategy=strategy, out=tmp_path / "run", batch_size=8, **more,
                      **QUICK)
    questions, contexts = [r["question"] for r in HELD_OUT], [r["context"] for r in HELD_OUT]
    answers = predict(tmp_path / "run", texts=questions, pairs=contexts, batch_size=7)
    assert all(one.text == context[one.start : one.end] for one, context in zip(answers, contexts, strict=True))
    both = [scores(one.text, row["answers"]["text"], False) for one, row in zip(answers, HELD_OUT, strict=True)]
    assert result.metrics["exact"] == pytest.approx(np.mean([e for e, _ in both])) and result.metrics["f1"] == pytest.approx(np.mean([f for _, f in both]))
    assert result.metrics["f1"] >= (0.4 if strategy == "full" else 0.0) and "exact" in str(result)
    for one, context in zip(answers, contexts, strict=True):
        assert sum(other.probability for other in one.others) == pytest.approx(1) and one.probability == max(other.probability for other in one.others)
        assert all(other.text == context[other.start : other.end] == other.text.strip() for other in one.others) and len(one.others) <= 20
    if strategy == "full":
        reference = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "run" / "model").eval()
        batch = piece_tok(questions[:5], contexts[:5])
        with torch.no_grad():
            theirs, ours = reference(**batch), result.model(**batch).logits
        keep = batch["attention_mask"]
        torch.testing.assert_close(ours[..., 0][keep], theirs.start_logits[keep], atol=1e-5, rtol=0)
        torch.testing.assert_close(ours[..., 1][keep], theirs.end_logits[keep], atol=1e-5, rtol=0)


def test_an_answer_does_not_depend_on_the_batch(tok):
    model, rows = body(tok, "span", 0.3), made(11, 8, longest=60)
    questions, contexts = [r["question"] for r in rows], [r["context"] for r in rows]
    together = predict(model, tok, questions, contexts, batch_size=5, max_length=37)
    alone = [predict(model, tok, q, c, max_length=37)[0] for q, c in zip(questions, contexts, strict=True)]
    assert [(a.start, a.end) for a in together] == [(a.start, a.end) for a in alone]
    assert [a.probability for a in together] == pytest.approx([a.probability for a in alone], abs=1e-5)
    assert len({a.text for a in together}) > 3


def test_no_answer(piece_tok, tmp_path):
    """A threshold beyond all scores decides for or against an answer; it is saved with the model."""
    train, held_out = made(30, 1, impossible=True), made(31, 2, impossible=True)
    empty = sum(not row["answers"]["text"] for row in held_out)
    for threshold, right in ((-1e6, empty / 31), (1e6, None)):
        task = SpanTask(no_answer=True, threshold=threshold)
        result = finetune(body(piece_tok), piece_tok, task, train=train, validation=held_out, out=tmp_path / str(threshold), steps=1, **QUICK)
        answers = predict(tmp_path / str(threshold), texts=[r["question"] for r in held_out], pairs=[r["context"] for r in held_out])
        assert all((one.text == "") == (right is not None) for one in answers) and all(any(other.text == "" for other in one.others) for one in answers)
        assert result.metrics["accuracy_unanswerable"] == (0.0 if right is None else 1.0) and result.metrics["unanswerable"] == empty
        if right is not None:
            assert result.metrics["exact"] == pytest.approx(right) and result.metrics["f1_answerable"] == 0
    targets = SpanBatches(SpanTask(no_answer=True), train, piece_tok, 4, None, 61, 0).plain.targets.tolist()
    assert [pair == [0, 0] for pair in targets] == [not row["answers"]["text"] for row in train]


def test_an_answer_elsewhere_is_refused_or_skipped(piece_tok):
    rows = made(5, 1)
    rows[3] = rows[3] | {"answers": {"text": ["Paris"], "answer_start": [4]}}
    with pytest.raises(ValueError, match=r"1 of 5 training rows have an answer that is not in the context where it says, first row 3: 'Paris' at 4.*SpanTask\(missing="):
        SpanTask().labels(rows, [])
    skipping = SpanTask(missing="skip")
    with pytest.warns(UserWarning, match="first row 3.*these rows were skipped") as said:
        skipping.labels(rows, [])
    assert len(said) == 1
    targets = SpanBatches(skipping, rows, piece_tok, 2, None, 61, 0).plain.targets.tolist()
    assert [pair == [IGNORE, IGNORE] for pair in targets] == [False, False, False, True, False]
    with pytest.raises(ValueError, match="1 of 1 training rows"):
        skipping.labels(rows[3:4], [])


GOOD = {"question": "q", "context": "a b", "answers": {"text": ["a"], "answer_start": [0]}}
NONE = {"text": [], "answer_start": []}


@pytest.mark.parametrize("rows,error,message", [
    ([GOOD, GOOD | {"answers": NONE}], ValueError, r"1 of 2 training rows have no answer, first row 1; .*SpanTask\(no_answer=True\)"),
    ([GOOD | {"answers": "a"}], ValueError, "training row 0: 'answers' is 'a'; needed is"),
    ([GOOD | {"answers": {"text": ["a"], "answer_start": []}}], ValueError, "training row 0: 'answers' is"),
    ([{"question": "q", "context": "c"}], KeyError, "no column 'answers'"),
])
def test_bad_rows(rows, error, message):
    with pytest.raises(error, match=message):
        SpanTask().labels(rows, [])


def test_other_errors(piece_tok):
    model = body(piece_tok, "span")
    with pytest.raises(ValueError, match="none of the 1 training rows has an answer"):
        SpanTask(no_answer=True).labels([GOOD | {"answers": NONE}], [])
    assert SpanTask().labels([GOOD | {"answers": [{"text": "b", "answer_start": 2}]}], []) == []
    with pytest.raises(ValueError, match="2 questions and no contexts"):
        predict(model, piece_tok, ["a", "b"])
    with pytest.raises(ValueError, match="row 0 has a context without a token"):
        predict(model, piece_tok, ["a"], [" "])
    with pytest.raises(ValueError, match="max_length=6 with a question of 3 tokens and 3 special ones leaves no room"):
        windows(["Ada Bo Ada"], ["Bo"], piece_tok, 6, 1, 3)
    with pytest.warns(TruncationWarning, match="1 of 2 questions are longer than 5 tokens"):
        windows(["Ada " * 9, "Bo"], ["Bo", "Bo"], piece_tok, 61, 1, 5)
    with pytest.raises(ValueError, match="missing='drop'"):
        SpanTask(missing="drop")
    with pytest.raises(ValueError, match="max_answer=0"):
        SpanTask(max_answer=0)


def test_files(tmp_path, data):
    rows = read_rows(data / "squad_subset/validation_v2.json.gz")
    told = json.load(gzip.open(data / "squad_subset/validation_v2.json.gz", "rt", encoding="utf-8"))
    flat = [q for article in told["data"] for p in article["paragraphs"] for q in p["qas"]]
    assert [row["id"] for row in rows] == [q["id"] for q in flat] and len(rows) == 1388
    assert [len(row["answers"]["text"]) for row in rows] == [len(q["answers"]) * (not q["is_impossible"]) for q in flat]
    assert SpanTask(no_answer=True).labels(rows, []) == []
    old = read_rows(data / "squad_subset/validation.jsonl.gz")
    there = {row["id"]: row for row in rows}
    assert len(old) == 672 and all(row["answers"] == there[row["id"]]["answers"] for row in old)
    for text, message in (("[1", "not JSON"), ('{"data": [{"paragraphs": [{"context": "c", "qas": [{"id": "x"}]}]}]}', r"at or after data\[0\].paragraphs\[0\].qas\[0\]"),
                          ("[]", "at or after data: TypeError")):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_rows(tmp_path / "a.json")
