"""Slices against a published example and a model whose faults were planted."""
from importlib import import_module

import pytest

from minitransfer.study import slices
from minitransfer.study.slices import BINS, difference, length_bins
from minitransfer.tasks import Prediction
from minitransfer.tasks.metrics import Z95
from tests.adapt.small import HELD_OUT, bert, rows, tokenizer

MANY = rows(200, 9)


@pytest.fixture(scope="module")
def tok():
    return tokenizer()


@pytest.fixture
def faulty(monkeypatch):
    """Every answer is right, but of texts with "not", where it is right once in five times."""
    def answers(model, tok, texts, pairs, **named):
        truth = {row["text"]: row["label"] for row in MANY}
        found = []
        for i, text in enumerate(texts):
            wrong = "not" in text.split() and i % 5
            found.append(Prediction({"neg": "pos", "pos": "neg"}[truth[text]] if wrong else truth[text], 0.75, {}))
        return found
    monkeypatch.setattr(import_module("minitransfer.study.slices"), "predict", answers)        # the name in the package is the function


def test_the_interval_of_a_difference_is_the_published_one():
    assert difference((56, 70), (48, 80), Z95) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)          # Newcombe 1998, table II, method 10
    assert difference((29, 29), (11, 11), Z95)[0] == 0


def test_a_planted_fault_is_found_and_the_rest_is_better(tok, faulty):
    found = slices(bert(tok), tok, MANY, by=lambda row: "with not" if "not" in row["text"].split() else "without")
    one, other = found.rows
    n = sum("not" in row["text"].split() for row in MANY)
    assert (one.name, one.rows, one.verdict) == ("with not", n, "worse") and (other.accuracy.value, other.verdict) == (1.0, "better")
    assert one.against_rest.value == pytest.approx(one.accuracy.value - 1) and one.confidence == 0.75
    assert found.overall.value == pytest.approx((one.accuracy.value * n + 200 - n) / 200)
    assert str(found).splitlines()[1].split()[-1] == "worse" and found.draw().get_title() == "by slice"


def test_what_chance_makes_is_not_called_worse(tok, faulty):
    found = slices(bert(tok), tok, MANY, by=lambda row: len(row["text"]) % 7)
    assert len(found.rows) == 7 and {row.verdict for row in found.rows} == {""}


def test_lengths_and_labels(tok, faulty):
    by_length, by_label = (slices(bert(tok), tok, MANY, by=by) for by in ("length", "label"))
    assert sum(row.rows for row in by_length.rows) == 200 and 2 <= len(by_length.rows) <= BINS
    assert [int(row.name.split()[0]) for row in by_length.rows] == sorted(int(row.name.split()[0]) for row in by_length.rows)
    assert [row.name for row in by_label.rows] == ["neg", "pos"] and [row.rows for row in by_label.rows] == [100, 100]
    assert length_bins([1, 2, 3, 4, 5, 6, 7, 8]) == [f"{low} to {low + 1} tokens" for low in (1, 3, 5, 7) for _ in range(2)]
    assert length_bins([3, 3, 3, 9]) == ["3 to 8 tokens"] * 3 + ["9 to 9 tokens"]


def test_refused(tok):
    with pytest.raises(ValueError, match="puts all 20 rows into one slice, 'same'"):
        slices(bert(tok), tok, HELD_OUT, by=lambda row: "same")
    with pytest.raises(KeyError, match="genre"):
        slices(bert(tok), tok, HELD_OUT, by="genre")
    with pytest.raises(ValueError, match="task 'regression'; a slice counts the rows"):
        slices(bert(tok), tok, HELD_OUT, task="regression")
