"""Metrics against scikit-learn, and Wilson's interval against its defining equation."""
import pytest
import torch

from minitransfer.tasks.metrics import Z95, Confusion, wilson


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
