"""Head accuracy is counted word by word from the attentions of transformers; the mix finds the layer that knows."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import t as student

import minitransfer as mt
from minitransfer.study import Sentence, centre_of_gravity, head_accuracy, heads, mix, read_treebank
from minitransfer.study.mix import learned_shares


def tree(text: str, parents: list[int], relations: str) -> Sentence:
    return Sentence(tuple(text.split()), ("X",) * len(parents), tuple(parents), tuple(relations.split()), ({},) * len(parents))


TREES = [tree("The old spoonbillish man slept .", [4, 4, 4, 5, 0, 5], "det amod amod nsubj root punct"), tree("A dog ran home", [2, 3, 0, 3], "det nsubj root obl"),
         tree("She saw the river", [2, 0, 4, 2], "nsubj root det obj"), tree("The man ran", [2, 3, 0], "det nsubj root"),
         tree("The quiet river froze", [3, 3, 4, 0], "det amod nsubj root"), tree("Stop", [0], "root")]


def by_hand(theirs, sentences) -> dict[tuple[int, int, str], list[list[bool]]]:
    """(block, head, way) -> for each sentence, whether each word that has a head and is no punctuation is found."""
    model, tok = theirs
    found: dict = {}
    for one in sentences:
        batch = tok(list(one.words), is_split_into_words=True, return_tensors="pt")
        owner = batch.word_ids(0)
        with torch.no_grad():
            attentions = model(**batch, output_attentions=True).attentions
        n = len(one.words)
        for block, layer in enumerate(attentions):
            for head, probs in enumerate(layer[0].tolist()):
                of = [[i for i, word in enumerate(owner) if word == k] for k in range(n)]
                looked = [[sum(probs[i][j] for i in of[a] for j in of[b]) / len(of[a]) if a != b else -1 for b in range(n)] for a in range(n)]
                asked = [a for a in range(n) if one.heads[a] and one.relations[a] != "punct"]
                found.setdefault((block, head, "to"), []).append([looked[a].index(max(looked[a])) == one.heads[a] - 1 for a in asked])
                to = [[looked[b][a] for b in range(n)] for a in range(n)]
                found.setdefault((block, head, "from"), []).append([to[a].index(max(to[a])) == one.heads[a] - 1 for a in asked])
    return found


def test_heads_by_hand_on_the_attentions_of_transformers(ours, theirs, monkeypatch):
    monkeypatch.setattr(heads, "RARE", 2)
    found, plain = head_accuracy(*ours("mini-bert"), TREES), by_hand(theirs("mini-bert"), TREES)
    share = {key: np.mean([right for one in each for right in one]) for key, each in plain.items()}
    np.testing.assert_allclose(found.accuracy, [[max(share[block, head, "to"], share[block, head, "from"]) for head in range(4)] for block in range(4)], atol=1e-12)
    names = [[r for r, head in zip(one.relations, one.heads, strict=True) if head and r != "punct"] for one in TREES]
    assert [(row.relation, row.words) for row in found.rows] == [("det", 2), ("nsubj", 2)]                # of the second, fourth and sixth sentence
    for row in found.rows:
        def right(key: tuple, half: int, relation: str = row.relation) -> list[bool]:
            return [ok for i, (each, kinds) in enumerate(zip(plain[key], names, strict=True)) if i % 2 == half for ok, kind in zip(each, kinds, strict=True) if kind == relation]
        assert sum(right((row.block, row.head, row.way), 0)) == max(sum(right(key, 0)) for key in plain)   # chosen on one half
        assert row.accuracy.value == np.mean(right((row.block, row.head, row.way), 1))                     # counted on the other
    assert [(row.offset, row.offset_accuracy.value) for row in found.rows] == [(1, 1.0), (1, 1.0)]         # in "The man ran" the next word is the head


def test_a_head_that_looks_one_word_ahead_finds_what_the_next_word_finds(monkeypatch):
    """Planted: attention of head 1 of block 0 goes to the next position, whatever the words."""
    monkeypatch.setattr(heads, "RARE", 1)
    tok = mt.Tokenizer.from_pretrained("mini-bert")
    model = mt.Model.from_pretrained("mini-bert")
    forward = model.blocks[0].attn.forward

    def ahead(*given, **named):
        out, probs, scores = forward(*given, **named)
        probs = probs.clone()
        probs[:, 1] = torch.diag(torch.ones(probs.shape[-1] - 1), 1)
        return out, probs, scores
    monkeypatch.setattr(model.blocks[0].attn, "forward", ahead)
    some = [one for one in TREES if "spoonbillish" not in one.words]
    det = next(row for row in head_accuracy(model, tok, some).rows if row.relation == "det")
    assert (det.block, det.head, det.way, det.accuracy.value, det.offset, det.offset_accuracy.value) == (0, 1, "to", 0.5, 1, 0.5)


def test_the_mix_finds_the_layer_that_knows():
    draw = torch.Generator().manual_seed(0)
    states, y = torch.randn(300, 4, 5, generator=draw), torch.randint(0, 3, (300,), generator=draw)
    states[:, 2, :3] += 2 * torch.nn.functional.one_hot(y, 3)
    shares = learned_shares(states, y, 3)
    assert shares.argmax() == 2 and shares[2] > 0.95 and shares.sum() == pytest.approx(1)
    np.testing.assert_allclose(mix.T_95, [student.ppf(0.975, n) for n in range(1, 10)], atol=5e-4)


def test_the_centre_is_the_mean_depth_of_the_mix(ours, tmp_path):
    found = centre_of_gravity(*ours("mini-bert"), read_treebank(mt.samples.path("tagged.conll"), 24), "ner", folds=3, cache=tmp_path)
    centres = found.shares @ np.arange(5)
    assert found.shares.shape == (3, 5) and found.centre.value == pytest.approx(centres.mean())
    assert found.centre.high - found.centre.value == pytest.approx(4.303 * centres.std(ddof=1) / 3**0.5)
    assert str(found).splitlines()[-1].split()[1] == f"{centres.mean():.3f}" and found.draw().get_title().endswith(f"{centres.mean():.2f}")
    with pytest.raises(ValueError, match="folds=11; the interval over folds is known for 2 to 10"):
        centre_of_gravity(*ours("mini-bert"), mt.samples.path("tagged.conll"), "ner", folds=11, cache=tmp_path)


def test_table_figure_and_mistakes(ours, monkeypatch):
    monkeypatch.setattr(heads, "RARE", 2)
    model, tok = ours("mini-bert")
    found = head_accuracy(model, tok, TREES)
    assert [line.split()[0] for line in str(found).splitlines()] == ["relation", "det", "nsubj"]
    assert sorted(float(one.get_text()) for one in found.draw().texts) == sorted(round(float(x), 2) for x in found.accuracy.flat)
    with pytest.raises(ValueError, match=r"0 sentences with heads; .* give a .conllu file"):
        head_accuracy(model, tok, mt.samples.path("tagged.conll"))
    with pytest.raises(ValueError, match="attention heads of a RecurrentModel"):
        head_accuracy(mt.RecurrentModel(mt.RecurrentConfig(vocab_size=11, d_model=6, n_layers=1, d_hidden=5)), tok, TREES)
