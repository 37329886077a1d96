"""Baselines of every task: the metrics of `finetune`, answers counted by hand or by scikit-learn, and what is refused."""
from dataclasses import asdict, is_dataclass

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler

from minitransfer.tasks import MultiLabelTask, SimilarityTask, SpanTask, baseline, finetune
from minitransfer.tasks.baselines import KINDS, bilstm
from minitransfer.tasks.baselines.base import WordVectors, mean_vectors, shape

from .small import HELD_OUT, QUICK, TRAIN, bert
from .small import rows as texts

TOPICS = [row | {"topics": [name for name in ("good", "lovely", "awful", "dull") if name in row["text"]][:1] + (["long"] if "long" in row["text"] else []),
                 "stars": float(len(row["text"].split())), "pair": TRAIN[i]["text"] if i % 3 else row["text"], "near": 0.1 if i % 3 else 1.0}
          for i, row in enumerate([*TRAIN, *HELD_OUT][:60])]
TAGGED = [{"words": [*row["text"].split()[-5:], "Rome", "West", "Bank"], "tags": ["O"] * len(row["text"].split()[-5:]) + ["B-LOC", "B-LOC", "I-LOC"]} for row in texts(60, 3)]
ASKED = [{"question": f"Who wrote {book}?", "context": f"There was {author} who wrote {book} in 1901. It rained.", "answers": {"text": [author], "answer_start": [10]}}
         for book, author in [(f"Book{i}", f"Anna Smith{chr(97 + i % 26)}") for i in range(60)]]
TASKS = {"sequence": ("sequence", TRAIN), "multilabel": (MultiLabelTask(label="topics"), TOPICS), "regression": ("regression", [{**row, "label": row["stars"]} for row in TOPICS]),
         "token": ("token", TAGGED), "span": ("span", ASKED), "similarity": (SimilarityTask(label="near"), TOPICS)}


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """A file for the words of the rows but "good", with a random vector of 7 numbers each."""
    draw, path = np.random.default_rng(0), tmp_path_factory.mktemp("vectors") / "some.txt"
    known = [*sorted({word for row in TRAIN for word in row["text"].split()} - {"good"}), "Rome", "west", "bank"]
    path.write_text("".join(f"{word} {' '.join(map(str, draw.normal(size=7).round(3)))}\n" for word in known))
    return path


@pytest.fixture(autouse=True)
def small_and_short(monkeypatch):
    monkeypatch.setattr(bilstm, "EPOCHS", 2)
    monkeypatch.setattr(bilstm, "WIDTH", 23)


def near(a, b):
    """Whether two predictions are the same, with numbers to 1e-5."""
    if is_dataclass(a):
        a, b = asdict(a), asdict(b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(near(a[name], b[name]) for name in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(near, a, b))
    return a == pytest.approx(b, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_every_baseline_measures_what_finetune_measures(name, word_tok, vectors):
    task, rows = TASKS[name]
    train, held_out = rows[:40], rows[40:]
    head = {"multilabel": "sequence", "regression": "sequence", "similarity": "embedding"}.get(name, name)
    tuned = finetune(bert(word_tok, "none"), word_tok, task, train=train, validation=held_out, steps=1, **QUICK)
    assert tuned.model.head_name == head
    for way in KINDS[name].learn:
        found = baseline(way, train, held_out, task, vectors=vectors)
        assert found.metrics.keys() == tuned.metrics.keys() - {"loss"}, way
        asks = found.task.asks
        sides = [[row[column] for row in held_out] for column in asks]
        again = found.predict(*sides)
        assert len(again) == len(held_out) and {type(one) for one in again} == {type(found.answer(held_out[:1])[0])}
        assert near(found.predict(*(side[:1] for side in sides)), again[:1]), way            # an answer does not depend on the rows beside it
        assert str(found).startswith(f"{way}: ")


def test_averaged_vectors_are_means_of_the_words_that_have_one(vectors):
    known = WordVectors(vectors, ["film", "West"])
    found = mean_vectors(["Film WEST good", "good unheard", "a"], known)
    by_hand = {line.split()[0]: np.array(line.split()[1:], float) for line in vectors.read_text().splitlines()}
    assert np.allclose(found, [(by_hand["film"] + by_hand["west"]) / 2, np.zeros(7), by_hand["a"]], atol=1e-6)
    with pytest.raises(ValueError, match="has a vector for none of the 2 words"):
        WordVectors(vectors, ["Unheard"])


def test_one_label_several_labels_and_numbers_are_those_of_scikit_learn(vectors):
    train, held_out = TOPICS[:40], TOPICS[40:]
    x, asked = ([row["text"] for row in part] for part in (train, held_out))
    count, known = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(x), WordVectors(vectors, ["a"])
    scale = StandardScaler().fit(mean_vectors(x, known))
    found = baseline("logistic", train, held_out, MultiLabelTask(label="topics")).predict(asked)
    names = list(found[0].probabilities)
    theirs = OneVsRestClassifier(LogisticRegression(C=10.0, max_iter=1000)).fit(count.transform(x), [[int(name in row["topics"]) for name in names] for row in train])
    assert np.allclose([list(one.probabilities.values()) for one in found], theirs.predict_proba(count.transform(asked)), atol=1e-6)
    assert all(one.labels == [name for name, p in one.probabilities.items() if p > 0.5] for one in found)
    stars = baseline("ridge", train, held_out, "regression", label="stars").predict(asked)
    assert np.allclose([one.value for one in stars], Ridge().fit(count.transform(x), [row["stars"] for row in train]).predict(count.transform(asked)), atol=1e-4)
    labels = baseline("vectors", train, held_out, vectors=vectors).predict(asked)
    last = LogisticRegression(max_iter=1000).fit(scale.transform(mean_vectors(x, known)), [row["label"] for row in train])
    assert np.allclose([one.probabilities["pos"] for one in labels], last.predict_proba(scale.transform(mean_vectors(asked, known)))[:, 1], atol=1e-5)


def test_words_have_their_commonest_tag():
    train = [{"words": ["in", "Rome", "Rome"], "tags": ["O", "B-LOC", "B-ORG"]}, {"words": ["Rome", "wins", "again"], "tags": ["B-ORG", "O", "O"]}]
    found = baseline("majority", train, [{"words": ["Rome", "Paris"], "tags": ["B-LOC", "O"]}], "token")
    (answer,) = found.predict(["Rome  sees Paris"])
    assert [(one.label, one.start, one.end) for one in answer] == [("B-ORG", 0, 4), ("O", 6, 10), ("O", 11, 16)] and answer[0].probability == pytest.approx(2 / 3)
    assert [entity.label for entity in answer.entities] == ["ORG"] and found.metrics["accuracy"] == 0.5 and found.metrics["entity_f1"] == 0.0
    assert [shape(word) for word in ("Rome", "USA", "19-year", "3.5", "")] == ["Xx", "X", "d-x", "d.d", ""]


def test_pairs_by_hand():
    train = [{"text": "a cat", "pair": "the dog", "label": 0.0}, {"text": "a cat sat", "pair": "a cat sat down", "label": 5.0}]
    held_out = [{"text": "A cat", "pair": "a dog here", "label": 1.0}, {"text": "down", "pair": "Down!", "label": 5.0}, {"text": "x", "pair": "y", "label": 0.0}]
    found = baseline("overlap", train, held_out, SimilarityTask(highest=5.0))
    assert [one.value for one in found.predict(["A cat", "down", "?"], ["a dog here", "Down!", "!"])] == [pytest.approx(5 / 4), 5.0, 0.0]
    assert found.metrics["mse"] == pytest.approx(((0.25 - 0.2) ** 2) / 3, abs=1e-6)
    cosine = baseline("tf_idf", train, held_out, SimilarityTask(highest=5.0)).predict(["cat sat"], ["sat cat sat"])[0].value / 5
    a, b = TfidfVectorizer(sublinear_tf=True).fit([row[side] for row in train for side in ("text", "pair")]).transform(["cat sat", "sat cat sat"]).toarray()
    assert cosine == pytest.approx(float(a @ b))


def test_an_answer_is_cut_from_the_context():
    found = baseline("overlap", ASKED[:40], ASKED[40:], SpanTask(no_answer=False))
    (answer,) = found.predict(["When was Book3 written?"], ["Rain fell. Book3 was written by Eva in May 1901 at home. Snow fell in 1777."])
    assert "1901" in answer.text and answer.text == "Rain fell. Book3 was written by Eva in May 1901 at home. Snow fell in 1777."[answer.start:answer.end]
    assert sum(one.probability for one in answer.others) == pytest.approx(1) and found.metrics["f1"] > 0.5
    assert found.predict(["Why?"], ["Nothing here."])[0].text == ""


@pytest.mark.slow
@pytest.mark.parametrize("with_vectors", [False, True])
def test_a_bilstm_learns_and_its_seed_decides(monkeypatch, vectors, with_vectors):
    monkeypatch.setattr(bilstm, "EPOCHS", 20)
    state = torch.get_rng_state()
    one, same, other = (baseline("bilstm", TRAIN, HELD_OUT, vectors=vectors if with_vectors else None, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    asked = [row["text"] for row in HELD_OUT]
    assert one.predict(asked) == same.predict(asked) != other.predict(asked)
    assert one.metrics["accuracy"] > 0.7
    assert near([one.predict([text])[0] for text in asked], one.predict(asked))                         # padding changes nothing
    assert one.predict(["", "unheard of"])[0].label in ("neg", "pos")


def test_word_vectors_stay_as_they_are(vectors):
    """Of a file no number is learned: 4 gates x 2 directions of the LSTM, and the output."""
    found, h = baseline("bilstm", TRAIN, HELD_OUT, vectors=vectors), bilstm.WIDTH
    assert found.parameters == 2 * 4 * (h * 7 + h * h + 2 * h) + 2 * h * 2 + 2


def test_refused(vectors, tmp_path):
    with pytest.raises(ValueError, match="no baseline of a span task is called 'logistic'; there are overlap: choose one"):
        baseline("logistic", ASKED[:40], ASKED[40:], "span")
    with pytest.raises(ValueError, match=r'"vectors" without a file of vectors; .*: give vectors='):
        baseline("vectors", TRAIN, HELD_OUT)
    with pytest.raises(ValueError, match="a baseline of pairs without a score"):
        baseline("overlap", TOPICS[:40], TOPICS[40:], SimilarityTask(label=None))
    with pytest.raises(ValueError, match="20 of 20 validation rows are also training rows"):
        baseline("majority", TRAIN, TRAIN[:20])
    found = baseline("majority", TRAIN, HELD_OUT)
    with pytest.raises(ValueError, match="1 texts and 1 pairs for a task that reads text; it reads one text a row: leave pairs out"):
        found.predict(["a"], ["b"])
    with pytest.raises(ValueError, match="no file"):
        baseline("vectors", TRAIN, HELD_OUT, vectors=tmp_path / "none.txt")
