"""Self-training: what is kept, what each round reports, and that it is its rounds of finetune and predict."""
import copy
import json

import pytest
import torch

from minitransfer.tasks import Prediction, finetune, predict, self_train
from minitransfer.tasks.self_training import sure
from tests.adapt import small

ARGUMENTS = {"lr": 3e-3, "schedule": "constant", "epochs": 8, "batch_size": 10, **small.QUICK}
LABELLED = small.rows(30, 3)
UNLABELLED = [row | {"label": "?", "truth": "pos" if i % 5 == 0 else row["label"]} for i, row in enumerate(small.rows(26, 4))]     # 3 of 26 differ from what is learned


@pytest.fixture(scope="module")
def tok():
    return small.tokenizer()


def same(a, b) -> bool:
    return all(torch.equal(t, b.state_dict()[name]) for name, t in a.state_dict().items())


@pytest.mark.slow
def test_rounds_by_hand(tok):
    """Two rounds are three calls of finetune, each from the same model, with the predictions of the one before between them."""
    model = small.bert(tok, n_layers=1)
    before = copy.deepcopy(model)
    found = self_train(model, tok, train=LABELLED, unlabelled=UNLABELLED, validation=small.HELD_OUT, threshold=0.7, rounds=2, gold="truth", seed=5, **ARGUMENTS)
    assert same(model, before) and [one.number for one in found.rounds] == [0, 1, 2]
    rows = LABELLED
    for one in found.rounds:
        by_hand = finetune(copy.deepcopy(before), tok, train=rows, validation=small.HELD_OUT, seed=5, **ARGUMENTS)
        assert one.result.metrics == by_hand.metrics
        guesses = predict(by_hand.model, tok, [row["text"] for row in UNLABELLED])
        kept = [(guess, row) for guess, row in zip(guesses, UNLABELLED, strict=True) if guess.probability >= 0.7]
        rows = LABELLED + [{"text": row["text"], "label": guess.label} for guess, row in kept]
        if one.number < 2:
            told = found.rounds[one.number + 1]
            assert told.labels == {name: sum(guess.label == name for guess, _ in kept) for name in ("neg", "pos")}
            assert 0 < told.kept == len(kept) and told.unlabelled == 26 and (one.number or told.kept < 26)
            assert told.noise == pytest.approx(sum(guess.label != row["truth"] for guess, row in kept) / len(kept))
    assert same(found.model, by_hand.model) and not same(found.model, found.rounds[0].result.model)
    line = str(found).splitlines()[1]
    assert line.startswith(f"round 1: {found.rounds[1].kept} of 26 texts kept (neg {found.rounds[1].labels['neg']}, pos ") and "% of them wrong)" in line
    assert f"accuracy {found.rounds[1].result.metrics['accuracy']:.4f}" in line


def test_what_is_sure():
    found = [Prediction(name, p, {"neg": 0.0, "pos": 0.0}) for name, p in (("neg", 0.91), ("pos", 0.7), ("neg", 0.99), ("pos", 0.95), ("neg", 0.9), ("pos", 0.89))]
    assert sure(found, 0.9, balanced=False) == [0, 2, 3, 4]
    assert sure(found, 0.9, balanced=True) == [2, 3]
    assert sure(found, 0.8, balanced=True) == [0, 2, 3, 5]
    assert sure(found[::2], 0.8, balanced=True) == [] == sure([], 0.5, balanced=True)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits(tok, tmp_path):
    settings = {"train": LABELLED, "unlabelled": UNLABELLED, "threshold": 0.5, "rounds": 1, "balanced": True, **ARGUMENTS}
    one, two, other = (self_train(small.bert(tok, n_layers=1, dropout=0.1), tok, seed=seed, out=folder, **settings) for seed, folder in ((1, tmp_path), (1, None), (2, None)))
    assert same(one.model, two.model) and not same(one.model, other.model)
    assert one.rounds[1].labels["neg"] == one.rounds[1].labels["pos"] > 0 and one.rounds[1].noise is None
    assert predict(tmp_path / "round-1", texts=["a good film"]) == predict(one.model, tok, ["a good film"])


def test_it_stops_when_nothing_is_sure(tok):
    with pytest.warns(UserWarning, match=r"round 1: none of 26 texts has a label with a probability of 1.0 or more; self-training stops here: lower the threshold"):
        found = self_train(small.bert(tok, n_layers=1), tok, train=LABELLED, unlabelled=UNLABELLED, threshold=1.0, **ARGUMENTS)
    assert len(found.rounds) == 2 and found.rounds[1].kept == 0 and found.rounds[1].result is None
    assert str(found).splitlines()[1] == "round 1: none of 26 texts was sure enough: stopped"
    assert same(found.model, finetune(small.bert(tok, n_layers=1), tok, train=LABELLED, **ARGUMENTS).model)


def test_refused(tok, tmp_path):
    rows = {"train": LABELLED, "unlabelled": UNLABELLED}
    with pytest.raises(ValueError, match=r"threshold=1.01; it is the probability a label needs to be learned from: give a number above 0, at most 1"):
        self_train(small.bert(tok, n_layers=1), tok, threshold=1.01, **rows)
    with pytest.raises(ValueError, match="rounds=0, resume=False; self-training is one call"):
        self_train(small.bert(tok, n_layers=1), tok, rounds=0, **rows)
    with pytest.raises(ValueError, match="resume=True"):
        self_train(small.bert(tok, n_layers=1), tok, resume=True, **rows)
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, small.HELD_OUT)))
    with pytest.raises(ValueError, match=r"test\.jsonl is a test split by its name, and best='accuracy higher'"):
        self_train(small.bert(tok, n_layers=1), tok, validation=tmp_path / "test.jsonl", **rows)
    with pytest.raises(ValueError, match="are also training rows"):
        self_train(small.bert(tok, n_layers=1), tok, validation=UNLABELLED, **rows)
