"""Several seeds, and the paired test, against hand counts."""
import copy
import statistics

import pytest
import torch

from minitransfer.tasks import finetune, predict
from minitransfer.tasks.seeds import Seeds, compare_seeds, finetune_seeds
from tests.adapt.test_finetune import HELD_OUT, QUICK, TRAIN, body, tok  # noqa: F401


def seeds(*values: float, metric: str = "accuracy") -> Seeds:
    return Seeds(metric, list(range(len(values))), [{metric: v, "matthews": 2 * v - 1} for v in values])


def test_each_run_is_finetune_with_its_seed(tok):  # noqa: F811
    model = body(tok)
    before, seen = copy.deepcopy(model.state_dict()), []
    found = finetune_seeds(model, tok, seeds=(3, 5), train=TRAIN, validation=HELD_OUT, epochs=1, lr=3e-3, on_run=seen.append, **QUICK)
    for seed, run in zip((3, 5), found.runs, strict=True):
        assert run == finetune(copy.deepcopy(model), tok, train=TRAIN, validation=HELD_OUT, epochs=1, lr=3e-3, seed=seed, **QUICK).metrics
    assert found.values[0] != found.values[1] or found.runs[0]["loss"] != found.runs[1]["loss"]
    assert [result.metrics for result in seen] == found.runs
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_mean_deviation_and_degenerate_runs():
    found = seeds(0.5, 0.8, 0.9)
    assert found.mean == pytest.approx(2.2 / 3) and found.deviation == pytest.approx(statistics.stdev([0.5, 0.8, 0.9]))
    assert found.degenerate == [0] and seeds(0.7).deviation == 0.0
    assert str(found) == "accuracy 0.7333 +- 0.2082 over 3 seeds (0.5000, 0.8000, 0.9000); degenerate, nothing was learned: seed 0"


def test_runs_that_learned_nothing_in_every_task():
    for signals, flagged in [({"f1": 0.0, "matthews": 0.1}, False), ({"pearson": 0.0, "mse": 1.0}, True), ({"f1_micro": 0.0, "f1": 0.0, "accuracy": 0.4}, True),
                             ({"exact": 0.0, "f1": 0.0}, True), ({"exact": 0.0, "f1": 0.2}, False), ({"accuracy": 0.0}, False)]:
        assert Seeds("loss", [7], [{"loss": 1.0, **signals}]).degenerate == ([7] if flagged else []), signals


def test_the_folder_holds_every_run_and_the_numbers(tok, tmp_path):  # noqa: F811
    words = dict(seeds=2, train=TRAIN, validation=HELD_OUT, epochs=1, lr=3e-3, out=tmp_path / "two", **{**QUICK, "best": "accuracy higher"})
    found = finetune_seeds(body(tok), tok, **words)
    assert found.metric == "accuracy" and Seeds.of_folder(tmp_path / "two") == found
    assert [len(predict(tmp_path / f"two/seed-{n}", texts=["a film"])) for n in (0, 1)] == [1, 1]
    with pytest.raises(ValueError, match="already holds a run"):
        finetune_seeds(body(tok), tok, **words)
    assert finetune_seeds(body(tok), tok, resume=True, **words) == found
    with pytest.raises(ValueError, match=r"holds no seeds\.json; it is written when several seeds are run with out="):
        Seeds.of_folder(tmp_path)


@pytest.mark.parametrize(("a", "b", "p"), [
    ((0.7, 0.7, 0.7), (0.8, 0.8, 0.8), 2 / 8),              # only all plus and all minus are as large
    ((0.7, 0.7, 0.7), (0.8, 0.8, 0.6), 1.0),                # three equal sizes: |sum| is 0.1 or 0.3, never below what was found
    ((0.7, 0.7), (0.7, 0.7), 1.0),
    ((0.5, 0.6, 0.7, 0.8), (0.6, 0.8, 1.0, 0.7), 6 / 16)])      # 0.1 0.2 0.3 -0.1: none flipped or one 0.1, and their mirror images
def test_p_is_a_share_of_sign_choices(a, b, p):
    found = compare_seeds(seeds(*a), seeds(*b))
    assert found.p == pytest.approx(p) and found.mean == pytest.approx(statistics.mean(y - x for x, y in zip(a, b, strict=True)))


def test_it_says_what_so_few_seeds_can_show():
    assert str(compare_seeds(seeds(0.7, 0.7, 0.7), seeds(0.8, 0.8, 0.8))) == (
        "accuracy: +0.1000 on average over 3 seeds, p = 0.25 (paired sign-flip test; with so many seeds it cannot be below 0.25)")


def test_refused(tok):  # noqa: F811
    with pytest.raises(ValueError, match="runs are compared on held-out rows"):
        finetune_seeds(body(tok), tok, train=TRAIN)
    with pytest.raises(ValueError, match=r"seed=1 for several runs; each has a seed of its own: leave it out, or name the seeds, seeds=\[1\]"):
        finetune_seeds(body(tok), tok, train=TRAIN, validation=HELD_OUT, seed=1)
    with pytest.raises(ValueError, match="metric='bleu'; the task has accuracy"):
        finetune_seeds(body(tok), tok, seeds=1, metric="bleu", train=TRAIN, validation=HELD_OUT, epochs=1, **QUICK)
    with pytest.raises(ValueError, match="a paired test needs pairs"):
        compare_seeds(seeds(0.7), seeds(0.7, 0.8))
    with pytest.raises(ValueError, match="21 seeds; the exact test"):
        compare_seeds(seeds(*[0.5] * 21), seeds(*[0.6] * 21))
