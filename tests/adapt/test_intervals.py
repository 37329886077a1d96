"""Bootstrap intervals against plain resampling by index, and what held-out rows may not be."""
import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics

from minitransfer.tasks import RegressionTask, SequenceTask, SpanTask, TokenTask
from minitransfer.tasks.intervals import Bootstrap, resampled
from minitransfer.tasks.metrics import Confusion, Numbers, wilson
from minitransfer.tasks.split import check_held_out


def plain(metric, *columns: np.ndarray, replicates: int = 4000) -> np.ndarray:
    """Efron's bootstrap as written: rows drawn with replacement, one resample after the other."""
    draw, n = np.random.default_rng(11), len(columns[0])
    return np.percentile([metric(*(one[rows] for one in columns)) for rows in (draw.integers(0, n, n) for _ in range(replicates))], (2.5, 97.5))


def test_streamed_sums_equal_plain_resampling():
    """The Poisson weights give the interval of a ratio as drawing n of n does, in parts of any size."""
    draw = np.random.default_rng(0)
    there = draw.integers(1, 9, 307)
    rows = np.stack([draw.binomial(there, 0.7), there], 1).astype(float)
    sums = Bootstrap(2, seed=5, replicates=4000)
    for part in (rows[:1], rows[1:200], rows[200:]):
        sums.add(part)
    sums.add(rows[:0])
    found = sums.interval(lambda s: s[:, 0] / s[:, 1])
    want = plain(lambda r: r[:, 0].sum() / r[:, 1].sum(), rows)
    assert sums.total.tolist() == rows.sum(0).tolist()
    assert found == pytest.approx(want, abs=0.1 * (want[1] - want[0]))


@pytest.mark.parametrize("n_labels", [2, 5])
def test_intervals_of_a_confusion_equal_plain_resampling(n_labels):
    truth = torch.randint(0, n_labels, (211,))
    answer = torch.where(torch.rand(211) < 0.6, truth, torch.randint(0, n_labels, (211,)))
    confusion = Confusion(n_labels)
    confusion.add(truth, answer)
    found = confusion.metrics()
    for name, metric in (("matthews", metrics.matthews_corrcoef), ("f1", lambda a, b: metrics.f1_score(a, b, average="macro"))):
        low, high = plain(metric, truth.numpy(), answer.numpy(), replicates=200)
        assert (found[f"{name}_low"], found[f"{name}_high"]) == pytest.approx((low, high), abs=0.2 * (high - low)), name
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]
    assert (found["accuracy_low"], found["accuracy_high"]) == wilson(int((truth == answer).sum()), 211)


def test_intervals_of_numbers_equal_plain_resampling():
    draw, numbers = np.random.default_rng(0), Numbers()
    a = draw.normal(size=97)
    b = a + draw.exponential(size=97)
    numbers.add(torch.from_numpy(a), torch.from_numpy(b))
    found = numbers.metrics()
    for name, metric in (("mse", metrics.mean_squared_error), ("mae", metrics.mean_absolute_error), ("pearson", lambda x, y: np.corrcoef(x, y)[0, 1]),
                         ("spearman", lambda x, y: stats.spearmanr(x, y).statistic)):
        low, high = plain(metric, a, b, replicates=500)
        assert (found[f"{name}_low"], found[f"{name}_high"]) == pytest.approx((low, high), abs=0.2 * (high - low)), name


def test_each_metric_has_its_own_interval():
    sums = Bootstrap(2)
    sums.add(np.arange(34.0).reshape(17, 2) ** 2)
    first, second = (lambda s: s[..., 0]), (lambda s: s[..., 1])
    found = sums.metrics({"first": first, "second": second})
    for name, metric in (("first", first), ("second", second)):
        assert (found[f"{name}_low"], found[name], found[f"{name}_high"]) == (sums.interval(metric)[0], metric(sums.total), sums.interval(metric)[1])
    assert found["first_high"] != found["second_high"]


def test_the_seed_decides():
    counts, rows = np.array([3.0, 5.0, 13.0]), np.arange(34.0).reshape(17, 2)
    assert np.array_equal(resampled(counts, 3), resampled(counts, 3)) and not np.array_equal(resampled(counts, 3), resampled(counts, 4))
    assert (resampled(counts, 3).sum(1) == 21).all()
    one, two, other = (Bootstrap(2, seed) for seed in (1, 1, 2))
    for sums in (one, two, other):
        sums.add(rows)
    assert np.array_equal(one.sums, two.sums) and not np.array_equal(one.sums, other.sums)


def texts(*names: str) -> list[dict]:
    return [{"text": name, "label": "x"} for name in names]


def test_held_out_rows_are_other_rows():
    known = texts(*(f"known {i}" for i in range(40)))
    fresh = texts(*(f"fresh {i}" for i in range(39)))
    check_held_out(known, fresh, ["text"])
    check_held_out(known, [], ["text"])
    with pytest.warns(UserWarning, match=r"2 of 40 validation rows are also training rows \(the same text, first validation row 38\)"):
        check_held_out(known, [*fresh[:38], *known[:2]], ["text"])
    with pytest.raises(ValueError, match=r"3 of 6 validation rows are also training rows .* split the rows"):
        check_held_out(known, [*fresh[:3], *known[:3]], ["text"])
    pairs = [{"text": "a", "other": str(i), "label": "x"} for i in range(9)]
    check_held_out(pairs[:5], pairs[5:], ["text", "other"])                    # the same first text is no duplicate
    with pytest.raises(ValueError, match="the same text and other"):
        check_held_out(pairs[:5], [row | {"label": "y"} for row in pairs[:5]], ["text", "other"])


def test_what_each_task_asks():
    assert SequenceTask().asks == ["text"] and SequenceTask(pair="b").asks == ["text", "b"] and RegressionTask(pair="b").asks == ["text", "b"]
    assert TokenTask().asks == ["words"] and SpanTask().asks == ["question", "context"]
    known = [{"words": ["a", "b"], "tags": ["O", "X"]}]
    with pytest.raises(ValueError, match="1 of 1 validation rows are also training rows"):
        check_held_out(known, [{"words": ["a", "b"], "tags": ["O", "O"]}], TokenTask().asks)


def test_one_label_measures_nothing():
    train = [{"text": str(i), "label": "ab"[i % 2]} for i in range(20)]
    with pytest.raises(ValueError, match="all 10 validation rows have the label 'a'; nothing can be measured with one label"):
        SequenceTask().labels(train, train[::2])
    assert SequenceTask().labels(train, train[:18:2]) == ["a", "b"]               # nine may be chance
    with pytest.raises(ValueError, match="all 10 training rows have the label 'b'"):
        SequenceTask().labels(train[1::2], train)
