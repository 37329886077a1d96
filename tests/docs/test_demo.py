"""The demo and its page: numbers that were measured, texts that are escaped, a page that needs nothing else."""
from __future__ import annotations

import re
from xml.etree import ElementTree

import torch

from minitransfer import demo, samples
from minitransfer.cli import main
from minitransfer.demo import Outcome, five_cases
from minitransfer.report import Html
from minitransfer.tasks import Prediction
from minitransfer.text import read_rows

from .pages import self_contained, table_of, tree, words

# ---- the demo ----------------------------------------------------------------------------------------------------------------------------------

def test_five_cases_show_right_and_wrong_ones():
    rows = [{"text": f"text {i}", "label": "good" if i % 2 else "bad"} for i in range(8)]
    answers = [Prediction("good", p, {}) for p in (0.6, 0.7, 0.9, 0.8, 0.55, 0.95, 0.51, 0.65)]
    shown = [words(ElementTree.fromstring(case)) for case in five_cases(rows, answers)]
    assert shown == ["text 5good, 95% is right", "text 3good, 80% is right", "text 7good, 65% is right",
                     "text 2good, 90% is wrong: the label is bad", "text 0good, 60% is wrong: the label is bad"]
    assert len(five_cases(rows[1::2], answers[1::2])) == 3 and len(five_cases(rows[:1], answers[:1])) == 1


def test_cells_are_arithmetic_on_what_was_measured():
    one = Outcome("head", 1_250, 50_000, 3.14159, 12_600_000, 150, 200)
    # Wilson's interval for 150 of 200, computed by hand: (0.75 + z2/400 +- z sqrt(0.75 * 0.25 / 200 + z2 / 160000)) / (1 + z2 / 200), z = 1.96
    assert one.cells() == ("head", "1,250", "2.5 %", "3.1 s", "13 MB", "75.0 % (68.6 to 80.5)")
    assert Outcome("x", 1, 1, 0.0, None, 1, 1).cells()[4] == "?"


def test_the_demo_in_small(capsys, place, monkeypatch):
    """24 reviews, one epoch: the table on the page is the printed one, every accuracy is that of the predictions, and the texts are escaped."""
    train = samples.path("reviews.train.tsv").read_text(encoding="utf-8")
    (place / "texts").mkdir()
    for name in ("train", "validation", "test"):
        lines = samples.path(f"reviews.{name}.tsv").read_text(encoding="utf-8").splitlines()[: 500 if name == "train" else 31]
        lines += ["Nice <script>alert('x')</script> & more.\tpositive"] if name == "test" else []
        (place / f"texts/reviews.{name}.tsv").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(samples, "path", lambda name: place / "texts" / name)
    monkeypatch.setattr(demo, "five_cases", lambda test, predictions: five_cases(test[-1:], predictions[-1:]))
    seen = {}
    real = demo.demo_page
    monkeypatch.setattr(demo, "demo_page", lambda result, split: seen.update(result=result, split=split) or real(result, split))
    assert main(["demo", "--dry-run", "--out", "d"]) == 0
    printed, html = capsys.readouterr().out, (place / "d/report.html").read_text(encoding="utf-8")
    self_contained(html)
    root, result, split = tree(Html(html)), seen["result"], seen["split"]
    names = ["TF-IDF + logistic", "random start, full", "head only", "LoRA", "full"]
    assert [one.name for one in result.outcomes] == names and len(split.train) == 24 and len(split.test) == 31
    cells = table_of(next(root.iter("table")))[1:]
    assert cells == [list(one.cells()) for one in result.outcomes]
    for row in cells:
        assert re.search(r" +".join(re.escape(cell) for cell in row) + r"$", printed, re.MULTILINE)
    truth = [row["label"] for row in read_rows(place / "texts/reviews.test.tsv")]
    for one in result.outcomes[1:]:
        assert one.correct == sum(answer.label == label for answer, label in zip(one.predictions, truth, strict=True))
        assert 0 < one.trainable <= one.total and one.seconds > 0 and [x for x, _ in one.validation] == [1.0]
    trainable = {one.name: one.trainable for one in result.outcomes}
    assert trainable["head only"] < trainable["LoRA"] < trainable["full"] == trainable["random start, full"]
    assert "Nice <script>alert('x')</script> & more." in words(root) and train.splitlines()[1] not in html
    assert len(result.filled) == len(result.generated) == 3 and all(a in printed and a in words(root) for a, _ in (*result.filled, *result.generated))
    assert "report: d/report.html" in printed and "seed" in words(root)
    assert demo.conclusion(result.outcomes) in printed and demo.conclusion(result.outcomes) in words(root)
    assert demo.took(place / "d", {}) == "a few minutes of CPU, less on a GPU"
    assert re.match(r"about \d+ s, as the last time", demo.took(place / "d", {"model": "mini-bert", "reviews": 24, "epochs": 1, "device": result_device()}))


def result_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def test_the_conclusion_is_that_of_the_same_rows():
    def way(name, right):
        return Outcome(name, 1, 1, 0.0, None, sum(right), len(right), right=right)

    half, most = [True, False] * 20, [True] * 39 + [False]
    outcomes = [way("TF-IDF + logistic", half), way("random start, full", most), way("LoRA", most), way("full", half)]
    # 19 rows where one alone is right, all of one of them: 2 / 2^19
    assert demo.conclusion(outcomes) == ("On the same 40 test reviews LoRA is better than TF-IDF + logistic (p = 3.8e-06); full is worse than random start, full (p = 3.8e-06); "
                                         "all other differences between tuned and not pretrained may be chance (McNemar's exact test, 4 comparisons).")
    assert "nothing is certain: no way is shown to be better (the smallest p is 1)" in demo.conclusion([outcomes[0], outcomes[3]])


def test_the_demo_without_its_checkpoint_says_so(capsys, place):
    assert main(["demo", "--model", "mini-bart", "--out", "d"]) == 1
    assert re.match(r"minitransfer: 'mini-bart' is no folder and no bundled checkpoint \(mini-bert, mini-gpt\)", capsys.readouterr().err)
    assert not (place / "d").exists()
