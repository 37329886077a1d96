"""Likelihoods of sentences are those of transformers, token by token; shares and facts are counted by hand."""
from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import torch

import minitransfer as mt
from minitransfer.study import cloze, log_likelihoods, minimal_pairs, paired_bias

PAIRS = [("The old man goes home.", "The old man go home."), ("Who has the spoonbillish dog seen?", "Who has the spoonbillish dog see?"),
         ("She sees herself.", "She sees himself."), ("The dogs that ran bark", "The dogs that ran barks"), ("A", "An")]
ROWS = [{"sentence_good": good, "sentence_bad": bad, "UID": "agreement" if i % 2 else "other"} for i, (good, bad) in enumerate(PAIRS)]


@torch.no_grad()
def plain(theirs, text: str, places: list[int] | None = None) -> float:
    """One token at a time, in transformers; places: of the encoding with special tokens."""
    model, tok = theirs
    ids = tok(text, return_tensors="pt")["input_ids"][0]
    if tok.mask_token is None:
        ids, total = torch.cat([torch.tensor([tok.eos_token_id]), ids]), 0.0
        for i in range(1, len(ids)):
            total += float(model(ids[None, :i]).logits[0, -1].double().log_softmax(-1)[ids[i]])
        return total
    total = 0.0
    for i in range(1, len(ids) - 1) if places is None else places:
        masked = ids.clone()
        masked[i] = tok.mask_token_id
        total += float(model(masked[None]).logits[0, i].double().log_softmax(-1)[ids[i]])
    return total


@pytest.mark.parametrize("name", ["mini-bert", "mini-gpt"])
def test_equal_to_transformers(ours, theirs, name):
    found = minimal_pairs(*ours(name), ROWS, batch_size=7)
    wanted = np.array([[plain(theirs(name), text) for text in pair] for pair in PAIRS])
    np.testing.assert_allclose(found.scores, wanted, rtol=1e-5)
    won = wanted[:, 0] > wanted[:, 1]
    assert [(row.name, row.pairs, row.share.value) for row in found.rows] == [("other", 3, won[::2].mean()), ("agreement", 2, won[1::2].mean()), ("all", 5, won.mean())]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mini-bert", "mini-gpt"])
def test_equal_on_real_pairs(ours, theirs, data, name):
    found = minimal_pairs(*ours(name), data / "blimp_10", n=1)
    assert len(found.rows) == 11 and [row.pairs for row in found.rows] == [1] * 10 + [10] and found.rows[0].name == "anaphor_gender_agreement"
    rows = [json.loads(gzip.open(path, "rt").readline()) for path in sorted((data / "blimp_10").iterdir())]
    np.testing.assert_allclose(found.scores, [[plain(theirs(name), row[f"sentence_{side}"]) for side in ("good", "bad")] for row in rows], rtol=1e-5)


def test_a_first_token_that_nothing_foretells_is_not_counted(ours):
    """Without a bos or eos token: the likelihood of the rest, given the first."""
    model, tok = ours("mini-gpt")
    bare = mt.Tokenizer(tok.backend, type(tok.format)(**(vars(tok.format) | {"bos": None, "eos": None, "pad": None, "unk": None})))
    ids = tok("The old man")["input_ids"]
    with torch.no_grad():
        log_p = model.eval()(ids).logits[0].double().log_softmax(-1)
    found = log_likelihoods(model, bare, ["The old man", "The"])
    np.testing.assert_allclose(found, [sum(float(log_p[i, ids[0, i + 1]]) for i in range(ids.shape[1] - 1)), 0.0], rtol=1e-5)


def test_files_of_a_folder_are_paradigms(ours, tmp_path):
    for name in ("b", "a"):
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps({k: v for k, v in row.items() if k != "UID"}) + "\n" for row in ROWS)
    found = minimal_pairs(*ours("mini-gpt"), tmp_path, n=2)
    assert [(row.name, row.pairs) for row in found.rows] == [("a", 2), ("b", 2), ("all", 4)] and np.array_equal(found.scores[:2], found.scores[2:])
    every = minimal_pairs(*ours("mini-gpt"), tmp_path / "a.jsonl.gz", by=None)
    assert [(row.name, row.pairs) for row in every.rows] == [("pairs", 5), ("all", 5)] and np.allclose(every.scores[:2], found.scores[:2])


def test_a_tie_is_no_win_and_intervals_count_pairs(ours):
    same = [{"sentence_good": "A dog.", "sentence_bad": "A dog.", "UID": "x"}] * 3
    assert minimal_pairs(*ours("mini-gpt"), same).all.share == (0.0, 0.0, 0.0)
    found = minimal_pairs(*ours("mini-gpt"), ROWS)
    won, times = found.scores[:, 0] > found.scores[:, 1], np.random.default_rng(0).poisson(1.0, (1000, 5))
    np.testing.assert_allclose(found.all.share[1:], np.percentile(times @ won / times.sum(1).clip(1), (2.5, 97.5)))


def test_bias_counts_what_both_sentences_share(ours, theirs):
    rows = [{"sent_more": "The women can not drive .", "sent_less": "The men can not drive .", "bias_type": "gender"}]
    found = paired_bias(*ours("mini-bert"), rows)
    shared = [1, 3, 4, 5, 6]                                                     # [CLS] the women can not drive . [SEP]
    np.testing.assert_allclose(found.scores[0], [plain(theirs("mini-bert"), rows[0][side], shared) for side in ("sent_more", "sent_less")], rtol=1e-5)
    assert found.rows[0].name == "gender" and "stereotyped preferred" in str(found)


def test_facts_are_softmax_of_the_head(ours, theirs):
    facts = [("The capital of France is [MASK].", "paris"), ("She opened the [MASK] and went in.", "door")]
    found, (model, tok) = cloze(*ours("mini-bert"), facts, k=4), theirs("mini-bert")
    for row, (text, answer) in zip(found.rows, facts, strict=True):
        ids = tok(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            probs = model(ids).logits[0, ids[0].tolist().index(tok.mask_token_id)].softmax(-1)
        best, wanted = probs.topk(4), probs[tok.convert_tokens_to_ids(answer)]
        np.testing.assert_allclose([p for _, p in row.best], best.values, rtol=1e-4)
        assert [token for token, _ in row.best] == tok.batch_decode(best.indices[:, None]) and row.rank == 1 + int((probs > wanted).sum())
        assert row.probability == pytest.approx(float(wanted), rel=1e-4)
    assert found.right.value == np.mean([row.rank == 1 for row in found.rows]) and "[MASK]" in str(found) and len(found.draw().patches) == 4


def test_table_and_figure(ours):
    found = minimal_pairs(*ours("mini-gpt"), ROWS)
    assert [line.split()[:2] for line in str(found).splitlines()] == [["pairs", "of"], ["other", "3"], ["agreement", "2"], ["all", "5"]]
    assert [bar.get_width() for bar in found.draw().patches] == [row.share.value for row in found.rows]
    assert found.to_dict()["all"] == {"pairs": 5, "share": [round(one, 6) for one in found.all.share]}


def test_mistakes(ours, tmp_path):
    model, tok = ours("mini-bert")
    with pytest.raises(KeyError, match="row 0 has no column 'sentence_wrong'"):
        minimal_pairs(model, tok, ROWS, bad="sentence_wrong")
    with pytest.raises(ValueError, match=r"holds no .jsonl file; minimal pairs come one object a line"):
        minimal_pairs(model, tok, tmp_path)
    with pytest.raises(ValueError, match='the likelihood of texts of a model with head="none"'):
        log_likelihoods(mt.Model(model.config), tok, ["a"])
    with pytest.raises(ValueError, match="text 1 has 202 tokens; this model reads at most 128"):
        log_likelihoods(model, tok, ["a", "so " * 200])
    with pytest.raises(ValueError, match=r"the answer 'a dog' \(2 tokens\) to 'A \[MASK\].' \(1 masks\)"):
        cloze(model, tok, [("A [MASK].", "a dog")])
