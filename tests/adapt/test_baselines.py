"""Baselines against scikit-learn's own and counts by hand."""
import pytest
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from sklearn.svm import LinearSVC

from minitransfer.samples import path
from minitransfer.tasks.baselines import WORD, baseline
from minitransfer.text import read_rows


@pytest.fixture(scope="module")
def parts():
    return tuple(read_rows(path(f"reviews.{part}.tsv")) for part in ("train", "validation"))


def test_majority():
    rows = [{"text": t, "label": y} for t, y in (("a b", "x"), ("c", "y"), ("d", "y"))]
    found = baseline("majority", rows, [{"text": "e", "label": "x"}, {"text": "f", "label": "y"}, {"text": "g", "label": "y"}])
    assert found.metrics["accuracy"] == pytest.approx(2 / 3) and found.classify(["anything"]) == ["y"] and found.parameters == 1


def test_keywords_by_hand():
    """x has the words good, good, day (a text counts a word once); y has bad, day, long."""
    rows = [{"text": "Good good day", "label": "x"}, {"text": "good", "label": "x"}, {"text": "bad long day", "label": "y"}]
    found = baseline("keywords", rows, [{"text": "bad long", "label": "y"}, {"text": "good!", "label": "x"}])
    x, y = 2 / 3 * (1 / 7) * (1 / 7), 1 / 3 * (2 / 7) * (2 / 7)                              # of "bad long"; of "day": 2/3 2/7 against 1/3 2/7
    assert x < y and found.classify(["bad long", "good unseen", "day", ""]) == ["y", "x", "x", "x"]
    assert found.metrics["accuracy"] == 1.0 and found.parameters == 2 * 4 + 2


@pytest.mark.parametrize("name", ["keywords", "logistic", "svm"])
def test_real_reviews_are_answered_as_scikit_learn_answers(parts, name):
    train, validation = parts
    x, y, asked = [r["text"] for r in train], [r["label"] for r in train], [r["text"] for r in validation]
    if name == "keywords":
        count = CountVectorizer(binary=True, tokenizer=WORD.findall, token_pattern=None)
        expected = MultinomialNB().fit(count.fit_transform(x), y).predict(count.transform(asked))
    else:
        count = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        last = LogisticRegression(C=10.0, max_iter=1000) if name == "logistic" else LinearSVC()
        expected = last.fit(count.fit_transform(x), y).predict(count.transform(asked))
    found = baseline(name, train, validation)
    assert found.classify(asked) == list(expected)
    assert found.metrics["accuracy"] == pytest.approx(sum(a == r["label"] for a, r in zip(expected, validation, strict=True)) / len(validation))
    assert 0.5 < found.metrics["accuracy"] < 0.9 and str(found).startswith(f"{name}: accuracy 0.")


def test_refused(parts):
    with pytest.raises(ValueError, match="no baseline of a sequence task is called 'bayes'; there are majority, keywords, logistic, svm, vectors, bilstm"):
        baseline("bayes", *parts)
