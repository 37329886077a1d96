"""Metrics against scikit-learn and counts by hand, and Wilson's interval against its defining equation."""
import numpy as np
import pytest
import torch

from minitransfer.tasks.auc import Auc
from minitransfer.tasks.metrics import Z95, Confusion, YesNo, mcnemar, wilson


@pytest.mark.parametrize("n_labels", [2, 3, 7])
def test_equal_to_scikit_learn(n_labels):
    metrics = pytest.importorskip("sklearn.metrics")
    truth, confusion = torch.randint(0, n_labels, (211,)), Confusion(n_labels)
    answer = torch.where(torch.rand(211) < 0.6, truth, torch.randint(0, n_labels, (211,)))
    for part in range(0, 211, 50):
        confusion.add(truth[part : part + 50], answer[part : part + 50])
    found = confusion.metrics()
    assert confusion.counts.tolist() == metrics.confusion_matrix(truth, answer).tolist()
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, answer), abs=1e-12)
    assert found["f1"] == pytest.approx(metrics.f1_score(truth, answer, average="macro"), abs=1e-12)
    assert found["matthews"] == pytest.approx(metrics.matthews_corrcoef(truth, answer), abs=1e-12)
    assert found["n"] == 211


@pytest.mark.parametrize("k,n", [(0, 7), (7, 7), (3, 11), (698, 872)])
def test_wilson_solves_its_equation(k, n):
    """The bounds are the rates p at which |k/n - p| = z sqrt(p (1 - p) / n)."""
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1 and low < high
    for p in (low, high):
        assert abs(k / n - p) == pytest.approx(Z95 * (p * (1 - p) / n) ** 0.5, abs=1e-9)


def test_wilson_published_value():
    assert wilson(81, 263) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))       # Newcombe 1998, table I, method 3
    assert wilson(0, 0) == (0.0, 1.0)


def test_degenerate_answers():
    constant = Confusion(3)
    constant.add(torch.tensor([0, 1, 1, 0]), torch.tensor([1, 1, 1, 1]))
    assert constant.matthews() == 0 and constant.accuracy() == 0.5
    assert constant.f1() == pytest.approx((0 + 2 / 3) / 2)                 # the third label occurs nowhere and counts for nothing
    assert Confusion(2).metrics()["accuracy"] == 0 and Confusion(2).f1() == 0


@pytest.mark.parametrize("scale", [0.3, 3e4])
def test_auc_equals_scikit_learn_in_parts(scale):
    """On scores with ties, of both signs, near 0 and beyond half precision's largest; rounded scores exactly, unrounded ones to the pairs that tie."""
    metrics = pytest.importorskip("sklearn.metrics")
    truth, counted = (torch.rand(503) < 0.3).long(), Auc()
    score = (torch.randn(503) + truth) * scale
    score[::7] = score[0]
    score[1], score[2] = 0.0, -0.0
    for part in range(0, 503, 101):
        counted.add(truth[part : part + 101], score[part : part + 101])
    found, rounded = counted.metrics(), score.half().float().clamp(-1e6, 1e6)
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(truth, rounded), abs=1e-12)
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(truth, score), abs=1e-3)
    draw = np.random.default_rng(3)
    plain = [metrics.roc_auc_score(truth[rows], rounded[rows]) for rows in (torch.from_numpy(draw.integers(0, 503, 503)) for _ in range(400))]
    low, high = np.percentile(plain, (2.5, 97.5))
    assert (found["auc_low"], found["auc_high"]) == pytest.approx((low, high), abs=0.2 * (high - low))


def test_auc_by_hand():
    """Of the 6 pairs the second label wins 3 and ties 1; with one label alone there is nothing to order."""
    counted = Auc()
    counted.add(torch.tensor([0, 0, 1, 1, 1]), torch.tensor([-1.0, 2.0, 3.0, 2.0, -7.0]))
    assert counted.metrics()["auc"] == pytest.approx(3.5 / 6)
    alone = Auc()
    alone.add(torch.ones(3, dtype=torch.long), torch.randn(3))
    assert alone.metrics() == {"auc": 0.5, "auc_low": 0.0, "auc_high": 1.0}


def test_a_yes_or_no_for_each_label_equals_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    truth, counts = torch.rand(211, 5) < 0.4, YesNo(5)
    answer = truth ^ (torch.rand(211, 5) < 0.2)
    for part in range(0, 211, 50):
        counts.add(truth[part : part + 50], answer[part : part + 50])
    found, draw = counts.metrics(), np.random.default_rng(3)
    draws = [torch.from_numpy(draw.integers(0, 211, 211)) for _ in range(400)]
    for name, average in (("f1_micro", "micro"), ("f1", "macro")):
        assert found[name] == pytest.approx(metrics.f1_score(truth, answer, average=average), abs=1e-12)
        low, high = np.percentile([metrics.f1_score(truth[rows], answer[rows], average=average) for rows in draws], (2.5, 97.5))
        assert (found[f"{name}_low"], found[f"{name}_high"]) == pytest.approx((low, high), abs=0.2 * (high - low))
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, answer), abs=1e-12)


@pytest.mark.parametrize("only_a, only_b, both, p", [(0, 0, 9, 1.0), (5, 5, 3, 1.0), (1, 7, 4, 0.0703125), (10, 0, 0, 2 / 2**10)])
def test_mcnemar_is_the_exact_binomial_test(only_a, only_b, both, p):
    a, b = ([True] * only_a + [False] * only_b + [True] * both + [False] * 2, [False] * only_a + [True] * only_b + [True] * both + [False] * 2)
    assert mcnemar(a, b) == mcnemar(b, a) == pytest.approx(p, abs=1e-12)
