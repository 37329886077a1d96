"""Separation, anisotropy, planes and neighbours are what NumPy gives on the hidden states of transformers."""
from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

import minitransfer as mt
from minitransfer.study import neighbours, separation_ratio
from minitransfer.study.separation import between_by_within, distances, find_word

BANK = {"money": ["The bank refused him a loan because he had no steady income.", "Two clerks at the bank counted the coins from the charity box.",
                  "She put all her savings in the bank, and forgot them."],
        "river": ["An otter slid down the muddy bank and vanished under the water.", "He pulled the canoe up onto the bank before the rapids.",
                  "Willows had been planted along the Bank."]}
SPOON = {"metal": ["He polished the spoonbillish spoon.", "A spoonbillish fork lay there, of silver."], "bird": ["The spoonbillish heron flew.", "Look, a spoonbillish!"]}


def hidden(theirs, text: str) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """(L + 1, T, D) of transformers, and where its tokens stand."""
    model, tok = theirs
    batch = tok(text, return_tensors="pt", return_offsets_mapping=True)
    offsets = batch.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        return torch.stack(model(**batch, output_hidden_states=True).hidden_states)[:, 0].numpy(), offsets


def plain(theirs, senses: dict[str, list[str]], word: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The formula as it stands in a course: pairs in loops. Returns: vectors, ratio, standardised ratio, anisotropy."""
    vectors, group, tokens = [], [], []
    for sense, texts in senses.items():
        for text in texts:
            states, offsets = hidden(theirs, text)
            start = text.lower().index(word)
            vectors.append(states[:, [i for i, (a, b) in enumerate(offsets) if a < start + len(word) and b > start]].mean(1))
            group.append(sense)
            tokens.append(states[:, 1:-1])                                       # without [CLS] and [SEP]

    def ratio(x: list[np.ndarray]) -> float:
        pairs = list(itertools.combinations(range(len(x)), 2))
        between = [np.linalg.norm(x[i] - x[j]) for i, j in pairs if group[i] != group[j]]
        within = [np.linalg.norm(x[i] - x[j]) for i, j in pairs if group[i] == group[j]]
        return np.mean(between) / (np.mean(within) + 1e-8)

    def anisotropy(layer: int) -> float:
        return np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for one, other in itertools.combinations(tokens, 2) for a in one[layer] for b in other[layer]])
    layers = range(len(vectors[0]))
    spread = [np.concatenate([t[layer] for t in tokens]).astype(float).std(0) for layer in layers]
    spread = [np.where(one > 1e-6 * one.mean(), one, np.inf) for one in spread]  # one dimension of minilm never changes
    return (np.stack(vectors, 1), np.array([ratio([v[layer] for v in vectors]) for layer in layers]),
            np.array([ratio([v[layer] / spread[layer] for v in vectors]) for layer in layers]), np.array([anisotropy(layer) for layer in layers]))


@pytest.mark.parametrize("name, senses, word", [("mini-bert", BANK, "bank"), ("minilm", BANK, "bank"), ("mini-bert", SPOON, "spoonbillish")])
def test_equal_to_numpy_on_the_hidden_states_of_transformers(ours, theirs, name, senses, word):
    found = separation_ratio(*ours(name), senses, word)
    vectors, ratio, standardised, anisotropy = plain(theirs(name), senses, word)
    assert len(found.ratio) == ours(name)[0].config.n_layers + 1 and found.sense == tuple(s for s, texts in senses.items() for _ in texts)
    np.testing.assert_allclose(found.vectors, vectors, atol=1e-5)
    np.testing.assert_allclose([one.value for one in found.ratio], ratio, atol=1e-6)
    np.testing.assert_allclose([one.value for one in found.corrected], standardised, atol=1e-6)
    np.testing.assert_allclose(found.anisotropy, anisotropy, atol=1e-6)


def test_planes_are_those_of_scikit_learn(ours):
    found = separation_ratio(*ours("mini-bert"), BANK, "bank")
    for layer in (1, 4):
        theirs, mine = PCA(2).fit_transform(found.vectors[layer]), found.pca(layer)
        np.testing.assert_allclose(np.abs(mine), np.abs(theirs), atol=1e-6)
        assert all(np.allclose(mine[:, i], sign * theirs[:, i], atol=1e-6) for i in (0, 1) for sign in [np.sign(mine[0, i] * theirs[0, i])])


def test_intervals_leave_out_a_sentence_beside_itself():
    """By hand: two draws of two senses of two and three sentences."""
    x, sense = np.array([[0.0], [1.0], [10.0], [13.0], [15.0]]), np.array(["a", "a", "b", "b", "b"])
    times = np.array([[1, 1, 1, 1, 1], [2, 0, 1, 0, 2], [2, 0, 3, 0, 0]])
    found = between_by_within(distances(x), sense, times)
    between = np.mean([10, 13, 15, 9, 12, 14])
    assert found[0] == pytest.approx(between / (np.mean([1, 3, 5, 2]) + 1e-8), rel=1e-12)
    assert found[1] == pytest.approx((2 * 10 + 4 * 15) / 6 / (5 + 1e-8), rel=1e-12)
    assert np.isnan(found[2])                                                    # no pair within a sense


def test_intervals_hold_the_value_and_come_from_the_seed(ours):
    first, again = (separation_ratio(*ours("mini-bert"), BANK, "bank", seed=3) for _ in range(2))
    assert first.ratio == again.ratio and all(one.low < one.value < one.high for one in (*first.ratio, *first.corrected))


def test_neighbours_are_cosines_of_centred_states(ours, theirs):
    texts = [*BANK["river"], *BANK["money"][1:]]
    found = neighbours(*ours("mini-bert"), BANK["money"][0], "bank", texts, k=7)
    words, vectors = [], []
    for number, text in enumerate(texts):
        states, offsets = hidden(theirs("mini-bert"), text)
        end = 0
        for word in "".join(c if c.isalnum() else " " for c in text).split():
            start = text.index(word, end)
            end = start + len(word)
            words.append((word, number))
            vectors.append(states[:, [i for i, (a, b) in enumerate(offsets) if a < end and b > start]].mean(1))
    states, offsets = hidden(theirs("mini-bert"), BANK["money"][0])
    here, every = states[:, 2], np.stack(vectors, 1)
    for layer, row in enumerate(found.rows):
        a, b = every[layer] - every[layer].mean(0), here[layer] - every[layer].mean(0)
        cosine = a @ b / np.linalg.norm(a, axis=1) / np.linalg.norm(b)
        order = np.argsort(-cosine)[:7]
        np.testing.assert_allclose([c for _, _, c in row], cosine[order], atol=1e-5)
        assert {one[:2] for one in row} == {words[i] for i in order}


def test_tables_and_figures(ours):
    found = separation_ratio(*ours("mini-bert"), BANK, "bank")
    lines = str(found).splitlines()
    assert lines[0].split("  ")[0] == "layer" and len(lines) == 6 and str(found.ratio[3]) in lines[4] and "<table>" in found._repr_html_()
    plain_line, standardised, one = found.draw().get_lines()
    assert plain_line.get_ydata().tolist() == [r.value for r in found.ratio] and standardised.get_ydata().tolist() == [r.value for r in found.corrected]
    assert set(one.get_ydata()) == {1.0} and one.get_linestyle() == "--"
    grid = found.draw_pca([0, 2, 3, 4])
    assert grid.shape == (2, 3) and [axes.axison for axes in grid.flat] == [True] * 4 + [False] * 2 and len(grid[0, 0].collections) == 2
    near = neighbours(*ours("mini-bert"), BANK["money"][0], "bank", BANK["river"], k=3)
    assert near.rows[2][0][0] in str(near) and {text.get_text() for text in near.draw().texts} == {f"{word} ({number})" for row in near.rows for word, number, _ in row}


@pytest.mark.parametrize("text, word, times", [("The banker left.", "bank", 0), ("A bank beside a bank.", "bank", 2), ("", "bank", 0), ("e-bank_x", "bank", 0)])
def test_the_word_has_to_stand_there_once(text, word, times):
    with pytest.raises(ValueError, match=f"the word 'bank' in {text!r}, which has it {times} times"):
        find_word(text, word)
    assert find_word("Snowbank? A BANK.", word) == (12, 16)


def test_mistakes(ours):
    model, tok = ours("mini-bert")
    with pytest.raises(ValueError, match="senses with 2 sentences of 'a', 1 sentences of 'b'; pairs within and between"):
        separation_ratio(model, tok, {"a": ["bank"] * 2, "b": ["bank"]}, "bank")
    with pytest.raises(ValueError, match="a sense whose sentences all give the same vectors of 'bank'"):
        separation_ratio(model, tok, {"a": ["the bank"] * 2, "b": ["a bank", "one bank"]}, "bank")
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.embed.tokens.weight[:] = math.nan
    with pytest.raises(ValueError, match="vectors of 'bank' that are not finite"):
        separation_ratio(broken, tok, BANK, "bank")
    with pytest.raises(ValueError, match=r"layer 5 of a model with 4 blocks; .* give 0 to 4"):
        separation_ratio(model, tok, BANK, "bank").pca(5)
    with pytest.raises(ValueError, match="stands behind what this model reads of 'so so"), pytest.warns(mt.text.TruncationWarning):
        separation_ratio(model, tok, {"a": ["so " * 200 + "bank", "bank"], "b": ["bank"] * 2}, "bank")
    with pytest.raises(ValueError, match="6 words to look for the 7 nearest among"):
        neighbours(model, tok, "a bank", "bank", ["one two three", "four five six"], k=7)
