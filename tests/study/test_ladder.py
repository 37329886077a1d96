"""The ladder from zero labels to all: each rung is what its own function gives, and costs what it says."""
import numpy as np
import pytest

from minitransfer.study import ladder
from minitransfer.study.ladder import rung
from minitransfer.study.ways import Learned
from minitransfer.tasks import Prompt, label_scores, shots
from tests.adapt.small import HELD_OUT, TRAIN, bert, gpt, tokenizer

WORDS = {"neg": "awful", "pos": "good"}


@pytest.fixture(scope="module")
def tok():
    return tokenizer()


def test_rungs_are_what_their_functions_give(tok):
    model, prompt = gpt(tok, "causal", max_len=150), Prompt("{text} {label}", between=" ")
    found = ladder(model, tok, train=TRAIN, validation=HELD_OUT, words=WORDS, prompt=prompt, examples=(3,), few=6, seeds=2, steps=1, max_length=29, precision="fp32")
    assert [(r.name, r.labels, len(r.runs)) for r in found.rungs] == [("zero-shot", 0, 1), ("3-shot", 3, 2), ("full, 6 rows", 6, 2), ("lora, all rows", 60, 1),
                                                                      ("full, all rows", 60, 1)]

    def accuracy(shown):
        answers = label_scores(model, tok, [row["text"] for row in HELD_OUT], WORDS, Prompt("{text} {label}", shown, " "))
        return np.mean([a.label == row["label"] for a, row in zip(answers, HELD_OUT, strict=True)])
    assert found.rungs[0].runs == (accuracy([]),) and found.rungs[1].runs == tuple(accuracy(shots(TRAIN, 3, seed)) for seed in (0, 1))
    untrained, lora, full = found.rungs[1], *found.rungs[3:]
    assert untrained.seconds == untrained.trained == 0 < untrained.answering and 0 < lora.trained < full.trained and full.seconds > 0
    assert full.of_full == (1, 1, 1) and model.head_name == "causal"
    assert str(found).splitlines()[0].split() == "way labels accuracy of full seconds to learn to answer 20 trained".split()
    assert len(found.draw().containers) == 5


def test_a_share_of_full_is_taken_row_by_row():
    full, half = np.array([[True] * 160 + [False] * 40]), np.array([[True] * 80 + [False] * 120, [True] * 80 + [False] * 120])
    made = rung("few", 4, [Learned([], 1.0, 3.0, 7), Learned([], 2.0, 5.0, 7)], half, full)
    assert made.of_full.value == 0.5 and made.accuracy.value == 0.4 and (made.seconds, made.answering, made.trained) == (1.5, 4.0, 7)
    apart = made.accuracy.high / 0.8 - made.accuracy.low / 0.8
    assert made.of_full.high - made.of_full.low < apart, "of the same rows a share is surer than of different ones"


def test_refused(tok):
    given = dict(train=TRAIN, validation=HELD_OUT, words=WORDS)
    with pytest.raises(ValueError, match=r"few=61, examples=.* and 60 training rows; each rung takes its rows from these"):
        ladder(bert(tok, "masked"), tok, few=61, **given)
    with pytest.raises(ValueError, match='a "causal", "masked" or "embedding" head'):
        ladder(bert(tok), tok, **given)
    with pytest.raises(ValueError, match="a task of pairs; a prompt shows one text"):
        ladder(bert(tok, "masked"), tok, **{name: [{**row, "other": row["text"]} for row in given[name]] for name in ("train", "validation")}, pair="other")
