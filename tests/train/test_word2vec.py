"""word2vec: loss, gradients and draws against what the papers' formulas say; what training finds in a language that was made for it."""
import math
import random

import numpy as np
import pytest
import torch

import minitransfer as mt
from minitransfer.nn.static import StaticVectors
from minitransfer.objectives.word2vec import NegativeSampling, kept_share, negative_sampling_loss, noise_distribution
from minitransfer.tasks import baseline
from minitransfer.text import read_texts, read_vectors, write_vectors
from minitransfer.text.windows import WindowBatches, WordIds, count_words

QUIET = {"progress": False}


def by_hand(h, u, target, noise):
    """Loss and gradients of one pair, in Python's own fp64 numbers."""
    dot = [sum(a * b for a, b in zip(h, row, strict=True)) for row in u]
    s = [1 / (1 + math.exp(-x)) for x in dot]
    drawn = [k for k in noise if k != target]
    loss = -math.log(s[target]) - sum(math.log(1 - s[k]) for k in drawn)
    du = np.zeros((len(u), len(h)))
    for word, error in [(target, s[target] - 1), *((k, s[k]) for k in drawn)]:
        du[word] += error * np.array(h)
    dh = (s[target] - 1) * np.array(u[target]) + sum((s[k] * np.array(u[k]) for k in drawn), np.zeros(len(h)))
    return loss, dh, du


def test_loss_and_gradients_are_those_of_a_hand_calculation():
    h = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    u = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    target, noise = torch.tensor([2, 0, 6]), torch.tensor([[1, 2, 1, 5], [3, 3, 0, 0], [5, 4, 3, 2]])        # the target among them, a word twice
    loss = negative_sampling_loss(h, u, target, noise)
    loss.backward()
    found = [by_hand(h[i].tolist(), u.tolist(), int(target[i]), noise[i].tolist()) for i in range(3)]
    assert abs(float(loss.detach()) - sum(one[0] for one in found)) < 1e-12
    assert np.allclose(h.grad.numpy(), [one[1] for one in found], atol=1e-12) and np.allclose(u.grad.numpy(), sum(one[2] for one in found), atol=1e-12)


@pytest.mark.parametrize("cbow", [False, True])
def test_what_predicts_what(cbow):
    """One batch of two words, its pairs written out by hand."""
    model = StaticVectors(7, 3).double()
    with torch.no_grad():
        model.context.weight.normal_()
    objective = NegativeSampling([9, 8, 7, 6, 5, 4, 3], negatives=2, cbow=cbow)
    batch = {"input_ids": torch.tensor([[4], [0]]), "contexts": torch.tensor([[1, -1, 2, 3], [-1, -1, 6, -1]])}
    loss, n = objective(model, batch, torch.Generator().manual_seed(5))
    v, u = model.embed.tokens.weight.tolist(), model.context.weight.tolist()
    mean = np.mean([v[1], v[2], v[3]], 0).tolist()
    pairs = [(mean, 4), (v[6], 0)] if cbow else [(v[4], 1), (v[4], 2), (v[4], 3), (v[0], 6)]
    noise = objective.draw((len(pairs), 2), torch.Generator().manual_seed(5)).tolist()
    assert n == len(pairs) and abs(float(loss.detach()) - sum(by_hand(h, u, o, k)[0] for (h, o), k in zip(pairs, noise, strict=True))) < 1e-12


def test_noise_is_drawn_as_the_formula_says():
    counts = [1000, 300, 100, 17, 1]
    p = np.array([n**0.75 for n in counts]) / sum(n**0.75 for n in counts)
    assert np.allclose(noise_distribution(counts), p)
    n = 200_000
    drawn = np.bincount(NegativeSampling(counts).draw((n,), torch.Generator().manual_seed(1)).numpy(), minlength=5) / n
    assert (abs(drawn - p) < 5 * np.sqrt(p * (1 - p) / n)).all() and (abs(p - np.array(counts) / 1418) > 5 * np.sqrt(p / n)).any()


def test_words_are_left_out_as_the_formula_says():
    """Word 0 has a frequency of 0.9, word 1 of 0.1: sqrt(t / f) with t = 0.2 is 0.471 and above 1."""
    ids = (np.random.default_rng(77).random(40_000) < 0.1).astype(np.int32)
    words = WordIds(["a", "b"], np.array([36_000, 4_000]), ids, np.zeros(40_000, np.int32))
    share = kept_share(words.counts, 0.2)
    assert np.allclose(share, [math.sqrt(0.2 / 0.9), 1.0])
    kept = WindowBatches(words, share, 3, 40_000)[0]["input_ids"][:, 0]
    zeros, ones = int((kept == 0).sum()), int((kept == 1).sum())
    assert ones == int((ids == 1).sum()) and abs(zeros / int((ids == 0).sum()) - math.sqrt(0.2 / 0.9)) < 0.015


def test_windows():
    """Every word keeps its place: contexts are what stands there, within a drawn reach, in the same document."""
    n, window = 9_000, 3
    ids = np.arange(n, dtype=np.int32)
    batch = WindowBatches(WordIds([], np.ones(n), ids, ids // 4_500), np.ones(n), window, n)[0]
    centers, contexts = batch["input_ids"].numpy(), batch["contexts"].numpy()
    distance = np.where(contexts >= 0, contexts - centers, 0)
    assert (abs(distance).max(0) == [3, 2, 1, 1, 2, 3]).all() and ((contexts < 0) | (contexts // 4_500 == centers // 4_500)).all()
    share = (contexts >= 0).mean(0)                                              # a distance d is in reach with probability (window + 1 - d) / window
    assert np.allclose(share, [1 / 3, 2 / 3, 1, 1, 2 / 3, 1 / 3], atol=0.03)
    batches = WindowBatches(WordIds([], np.ones(n), ids, ids // 4_500), np.ones(n), window, 1_000)
    assert len(batches) == 9 and sorted(int(i) for k in range(9) for i in batches[k]["input_ids"]) == ids.tolist()
    assert all(torch.equal(batches[20][name], batches[20][name]) for name in batch) and not torch.equal(batches[0]["input_ids"], batches[9]["input_ids"])


def test_counting():
    words = count_words([["b", "a", "b", "rare"], ["a", "b"]], min_count=2)
    assert words.words == ["b", "a"] and words.counts.tolist() == [3, 2] and words.ids.tolist() == [0, 1, 0, 1, 0] and words.documents.tolist() == [0, 0, 0, 1, 1]
    with pytest.raises(ValueError, match=r"0 of 3 words occur 9 times or more; .*: give more text"):
        count_words([["b", "a", "b", "rare"]], min_count=9)


def planted(seed: int, twins: int = 8, n: int = 600) -> list[str]:
    """Sentences around one of two words that never meet, but are met by the same four."""
    draw = random.Random(seed)
    def sentence() -> str:
        i = draw.randrange(twins)
        return " ".join([f"c{i}x{draw.randrange(4)}", draw.choice(["the", "of"]), f"{draw.choice('ab')}{i}", draw.choice(["the", "of"]), f"c{i}x{draw.randrange(4)}"])
    return [sentence() for _ in range(n)]


def twins_found(vectors: dict) -> float:
    """How often the nearest of the other planted words is the twin; 1 in 15 by chance."""
    words = [word for word in vectors if word[0] in "ab"]
    rows = np.stack([vectors[word] / np.linalg.norm(vectors[word]) for word in words])
    near = rows @ rows.T - 9 * np.eye(len(words))
    return float(np.mean([words[j][1:] == words[i][1:] for i, j in enumerate(near.argmax(1))]))


@pytest.mark.parametrize("method", ["skipgram", "cbow"])
def test_words_with_the_same_company_get_like_vectors(method):
    sentences = planted(0)
    untrained = mt.train_vectors(sentences, method, d=20, batch_size=500, steps=1, lr=1e-6, **QUIET)
    vectors = mt.train_vectors(sentences, method, d=20, batch_size=500, epochs=8, lr=5e-2, sample=1.0, **QUIET)
    assert twins_found(untrained) < 0.3 and twins_found(vectors) > 0.9
    assert next(iter(vectors)) in ("the", "of") and all(one.shape == (20,) and one.dtype == np.float32 for one in vectors.values())


def test_files_and_baselines(tmp_path):
    vectors = mt.train_vectors(planted(1), d=13, batch_size=500, steps=30, lr=3e-2, **QUIET)
    for name in ("v.txt", "v.vec.gz", "v.bin", "v.bin.gz"):
        write_vectors(vectors, tmp_path / name)
        again = read_vectors(tmp_path / name)
        assert list(again) == list(vectors) and all(np.array_equal(again[word], vectors[word]) for word in vectors)
    for wrong, message in (({}, "0 vectors"), ({"a": np.ones(2), "b": np.ones(3)}, "2 vectors of the shapes"), ({"a b": np.ones(2)}, "the word 'a b' cannot stand")):
        with pytest.raises(ValueError, match=message):
            write_vectors(wrong, tmp_path / "w.bin")
    rows = [{"text": f"b{i} c{i}x1 {j}", "label": "low" if i < 4 else "high"} for i in range(8) for j in range(2)]
    held = [{"text": f"a{i} the", "label": "low" if i < 4 else "high"} for i in range(8)]
    found = [baseline("vectors", rows, held, vectors=one).metrics for one in (vectors, tmp_path / "v.bin")]
    assert found[0] == found[1]
    with pytest.raises(ValueError, match="this dictionary has a vector for none of the"):
        baseline("vectors", rows, held, vectors={"elsewhere": np.ones(3, np.float32)})


def test_the_same_seed_gives_the_same_bits_and_wrong_settings_are_named():
    a, b, c = (mt.train_vectors(planted(2), d=7, steps=5, batch_size=300, seed=s, **QUIET) for s in (3, 3, 4))
    assert all(np.array_equal(a[word], b[word]) for word in a) and not all(np.array_equal(a[word], c[word]) for word in a)
    for wrong, message in (({"method": "glove"}, "method='glove'; it is one of 'skipgram', 'cbow'"), ({"sample": 0.0}, "sample=0.0"), ({"window": 0}, "window=0"),
                           ({"min_count": 5000}, "0 of .* words occur 5000 times or more")):
        with pytest.raises(ValueError, match=message):
            mt.train_vectors(planted(2), **{"d": 7, "steps": 5, **wrong}, **QUIET)


@pytest.mark.slow
def test_real_text(data):
    """Of 7 months and 7 numbers in a small part of an encyclopaedia, most have one of their own kind as the nearest of the fourteen."""
    kinds = ["january february march april june july september".split(), "two three four five six seven eight".split()]
    text = [document for document, _ in zip(read_texts(data / "wikitext2" / "train.txt.gz", documents="line"), range(6000), strict=False)]
    vectors = mt.train_vectors(text, "skipgram", d=50, epochs=1, lr=2e-2, **QUIET)
    words = [word for kind in kinds for word in kind]
    rows = np.stack([vectors[word] / np.linalg.norm(vectors[word]) for word in words])
    near = (rows @ rows.T - 9 * np.eye(14)).argmax(1)
    assert np.mean((near < 7) == (np.arange(14) < 7)) >= 0.85
