"""Probe accuracies are those of scikit-learn on the hidden states of transformers; code lengths, controls and intervals are counted by hand."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import minitransfer as mt
from minitransfer.study import Sentence, probe, read_treebank
from minitransfer.study.probe import code_length, default_classifier, rows_from

NAMES = mt.samples.path("tagged.conll")
S0 = [Sentence(tuple(words.split()), tuple(tags.split())) for words, tags in [
    ("dogs run quickly home", "NOUN VERB ADV NOUN"), ("cats sleep quietly", "NOUN VERB ADV"), ("birds sing loudly", "NOUN VERB ADV"),
    ("children quickly eat apples", "NOUN ADV VERB NOUN")]]


def states_of(theirs, sentences) -> np.ndarray:
    """(L + 1, N, D): of each word the mean over its pieces, by the reference's own account of which these are."""
    (model, tok), found = theirs, []
    model = model.base_model
    for one in sentences:
        batch = tok(list(one.words), is_split_into_words=True, return_tensors="pt")
        owner = batch.word_ids(0)
        with torch.no_grad():
            hidden = torch.stack(model(**batch, output_hidden_states=True).hidden_states)[:, 0]
        found += [hidden[:, [i for i, word in enumerate(owner) if word == number]].mean(1).numpy() for number in range(len(one.words))]
    return np.stack(found, 1)


def to_the_end(**settings):
    """A looser solver leaves words near a border to the last digit of a state."""
    return make_pipeline(StandardScaler(), LogisticRegression(tol=1e-8, max_iter=20_000, **settings))


def check_parity(found, states: np.ndarray, C: float) -> None:
    for layer, x in enumerate(states.astype(float)):
        for fold in range(3):
            test = found.fold == fold
            plain = to_the_end(C=C).fit(x[~test], found.y[~test])
            assert abs(plain.score(x[test], found.y[test]) - found.by_fold[layer, fold]) <= 1e-6, (layer, fold)
        assert abs(found.rows[layer].score.value - found.scores["task"][layer].mean()) <= 1e-12


def test_equal_to_scikit_learn_on_the_hidden_states_of_transformers(ours, theirs, tmp_path):
    sentences = read_treebank(NAMES, 9)
    assert default_classifier()[-1].C == 0.1
    exact = default_classifier().set_params(logisticregression__C=0.02, logisticregression__tol=1e-8, logisticregression__max_iter=20_000)
    found = probe(*ours("mini-bert"), sentences, "ner", classifier=exact, cache=tmp_path)
    assert found.names == ("B-LOC", "B-ORG", "B-PER", "I-LOC", "I-ORG", "I-PER", "O")[: len(found.names)] and len(found.words) == sum(len(one.words) for one in sentences)
    assert [len(set(found.fold[found.sentence == i])) for i in range(9)] == [1] * 9 and np.bincount(found.fold).min() > 0      # a sentence is in one fold
    check_parity(found, states_of(theirs("mini-bert"), sentences), C=0.02)
    probe(*ours("mini-bert"), sentences, "ner", classifier=DummyClassifier(), cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2                                    # the body and its twin, read from the disk


@pytest.mark.slow
def test_equal_on_a_real_treebank(ours, theirs, data, tmp_path):
    sentences = read_treebank(data / "ud/en_ewt/validation.conllu.gz", 6)
    found = probe(*ours("minilm"), sentences, "relation", classifier=to_the_end(C=0.01), cache=tmp_path)
    check_parity(found, states_of(theirs("minilm"), sentences), C=0.01)


def test_the_protocol_of_fourteen_words(ours, theirs, tmp_path):
    """Three folds of single words, a plain logistic regression: what cross_val_score gives, and beside it what that is worth."""
    found = probe(*ours("mini-bert"), S0, "pos", by="word", classifier=to_the_end()[-1], cache=tmp_path)
    states = states_of(theirs("mini-bert"), S0)
    for layer, x in enumerate(states):
        np.testing.assert_allclose(found.by_fold[layer], cross_val_score(to_the_end()[-1], x.astype(float), found.y, cv=3), atol=1e-6)
    assert all(row.selectivity.high - row.selectivity.low > 0.2 for row in found.rows)          # fourteen words say little


def test_an_online_code_by_hand():
    """A classifier that knows how common labels are, 230 words in another order, 5 labels of which one comes late."""
    draw = np.random.default_rng(0)
    y, order, x = draw.integers(0, 4, 230), draw.permutation(230), draw.normal(size=(230, 3))
    y[order[200:]] = 4
    found = code_length(DummyClassifier(strategy="prior"), order, 5)(x, y)
    told, bits = y[order], []
    edges = [1, 2, 4, 7, 14, 29, 58, 115, 230]                                   # 0.4, 0.8, ... 115, 230 words, rounded to even
    for i, label in enumerate(told):
        t = max([edge for edge in edges if edge <= i], default=0)
        p = np.mean(told[:t] == label) if t else 0.0
        bits.append(-np.log2((t * p + 1) / (t + 5)) if t else np.log2(5))
    np.testing.assert_allclose(found[order], bits, rtol=1e-12)


def test_mdl_orders_layers_and_pays_for_the_control_task(ours, tmp_path):
    sentences = read_treebank(NAMES, 25)
    found = probe(*ours("mini-bert"), sentences, lambda s: ["upper" if word[0].isupper() else "lower" for word in s.words], kind="mdl", cache=tmp_path)
    assert found.task == "<lambda>" and found.title == "bits a word" and sorted(found.fold) == list(range(len(found.words)))
    share = np.mean(found.y)
    assert found.baseline == pytest.approx(-share * np.log2(share) - (1 - share) * np.log2(1 - share))
    assert all(row.selectivity.value == pytest.approx(row.control.value - row.score.value) for row in found.rows) and found.rows[2].score.value < found.baseline
    ordered = found.sentence[found.fold]
    assert len(np.flatnonzero(np.diff(ordered))) == 24 and list(ordered) != sorted(ordered)    # whole sentences, in a drawn order


def test_intervals_are_those_of_resampled_sentences():
    draw = np.random.default_rng(1)
    sentence = np.sort(draw.integers(0, 13, 150))
    scores = {name: draw.integers(0, 2, (2, 150)).astype(float) for name in ("task", "control", "twin")}
    rows = rows_from(scores, sentence, "linear")
    times = np.random.default_rng(0).poisson(1.0, (1000, 13))[:, sentence]       # (R, N): each word as often as its sentence
    means = {name: (times @ each.T) / times.sum(1, keepdims=True) for name, each in scores.items()}
    for i, row in enumerate(rows):
        for shown, resampled, value in ((row.score, means["task"][:, i], scores["task"][i].mean()), (row.twin, means["twin"][:, i], scores["twin"][i].mean()),
                                        (row.selectivity, means["task"][:, i] - means["control"][:, i], scores["task"][i].mean() - scores["control"][i].mean()),
                                        (row.over_embeddings, means["task"][:, i] - means["task"][:, 0], scores["task"][i].mean() - scores["task"][0].mean())):
            np.testing.assert_allclose(shown, [value, *np.percentile(resampled, (2.5, 97.5))], atol=1e-12)
    bits = rows_from(scores, sentence, "mdl")[1]
    np.testing.assert_allclose(bits.over_embeddings.value, -rows[1].over_embeddings.value)
    assert str(rows[0].over_embeddings) == "0.000 [0.000, 0.000]"


def test_table_figure_and_json(ours, tmp_path):
    found = probe(*ours("mini-bert"), S0, "pos", folds=2, classifier=DummyClassifier(), cache=tmp_path)
    lines = str(found).splitlines()
    assert lines[0].split()[:3] == ["layer", "accuracy", "control"] and lines[1].startswith("embed")
    assert str(found.rows[3].twin) in lines[4] and lines[-1].split() == ["none", "0.429"]
    curves = {line.get_label(): list(line.get_ydata()) for line in found.draw().get_lines()}
    assert curves["pos"] == [row.score.value for row in found.rows] and curves["control task"] == [row.control.value for row in found.rows]
    assert curves["no vector"] == [6 / 14] * 2 and found.to_dict()["layers"][2]["score"] == [round(one, 6) for one in found.rows[2].score]


@pytest.mark.parametrize("changes, message", [
    ({"folds": 5}, "folds=5 of 4 sentences; each fold is tested once and needs one: give between 2 and 4 folds, or more sentences"),
    ({"folds": 9, "by": "word"}, "folds=9 of 6 words with one label; each fold is tested once"), ({"folds": 1}, "folds=1 of 4 sentences"),
    ({"kind": "mlp"}, "kind='mlp'; it is one of 'linear', 'mdl'"), ({"by": "text"}, "by='text'; it is one of 'sentence', 'word'"),
    ({"task": "Tense"}, "task='Tense', for which these 4 sentences have 0 labels"), ({"sentences": 0}, "no sentences; a probe learns from some"),
    ({"task": "ner"}, "task='ner' on words tagged '[A-Z]+'; entities are tagged B-"),
])
def test_mistakes(ours, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        probe(*ours("mini-bert"), S0, **({"task": "pos", "cache": tmp_path} | changes))


def test_a_folder_that_takes_no_cache(ours, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        probe(*ours("mini-bert"), S0, cache=tmp_path / "file" / "cache")


@pytest.mark.parametrize("module, call, message", [
    ("sklearn.linear_model", lambda found: mt.study.probe(None, None, S0), r'a probe is a classifier of scikit-learn, .*: pip install "minitransfer\[study\]"'),
    ("matplotlib.figure", lambda found: found.draw(), r'a figure is drawn with matplotlib, .*: pip install "minitransfer\[study\]"')])
def test_without_the_extra(ours, tmp_path, monkeypatch, module, call, message):
    found = probe(*ours("mini-bert"), S0, folds=2, classifier=DummyClassifier(), cache=tmp_path)
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ImportError, match=message):
        call(found)
