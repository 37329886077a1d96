"""The demo and its page: numbers that were measured, texts that are escaped, a page that needs nothing else."""
from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
import torch

from minitransfer import demo, samples
from minitransfer.cli import main
from minitransfer.demo import Outcome, five_cases
from minitransfer.report import (
    Html,
    Plane,
    bounds,
    element,
    interval_chart,
    key,
    line_chart,
    page,
    paragraph,
    prediction_case,
    section,
    table,
    text,
    ticks,
    write_page,
)
from minitransfer.tasks import Prediction
from minitransfer.text import read_rows

EVIL = "<script>alert('&')</script> \"quoted\" \x00\x1b end"


def tree(html: Html) -> ElementTree.Element:
    """The page read as XML, which forgives nothing: every element is closed, every & and < is escaped."""
    assert html.startswith("<!DOCTYPE html>")
    return ElementTree.fromstring(html)


def words(node: ElementTree.Element) -> str:
    return "".join(node.itertext())


def self_contained(html: str) -> None:
    assert not re.search(r"https?:|//|\bsrc=|\bhref=|<script|<link|@import|url\(", html)


# ---- the page ----------------------------------------------------------------------------------------------------------------------------------

def test_everything_given_as_text_is_escaped():
    html = page(EVIL, paragraph(EVIL), table([EVIL, "n"], [[EVIL, 3]]), section(EVIL, prediction_case(EVIL, EVIL, "no", 0.5)),
                line_chart(EVIL, {EVIL: [(0, 1)]}, EVIL), interval_chart(EVIL, [(EVIL, 1.0, 0.5, 2.0)], EVIL), element("p", "x", title=EVIL))
    root = tree(html)
    assert not list(root.iter("script")) and "<script" not in html
    shown = "<script>alert('&')</script> \"quoted\"    end"
    assert root.find("head/title").text == shown and words(root.find("body/p")) == shown
    assert root.find("body/table/tbody/tr/td").get("data-of") == shown
    self_contained(html)


def test_only_html_is_taken_over():
    assert text("<b>") == "&lt;b&gt;" and text(Html("<b>")) == "<b>"
    assert element("p", "a < b", Html("<br />"), class_="soft", data_of='"') == '<p class="soft" data-of="&quot;">a &lt; b<br /></p>'


@pytest.mark.parametrize("low, high, expected", [
    (0, 10, [0, 2, 4, 6, 8, 10]), (0.93, 4.11, [1, 2, 3, 4]), (-1, 1, [-1, -0.5, 0, 0.5, 1]), (38.3, 57.8, [40, 45, 50, 55]),
    (0, 3e-5, [0, 1e-5, 2e-5, 3e-5]), (2, 2, [2])])
def test_ticks_are_round_and_inside(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_ticks_are_never_too_many():
    for low in (0.0, 0.137, -3.3, 99.0):
        for span in (1e-6, 0.013, 0.7, 1, 3.1, 9.99, 47, 12345.6):
            found = ticks(low, low + span)
            assert 2 <= len(found) <= 6 and all(low - 1e-9 * span <= t <= low + span * (1 + 1e-9) for t in found)


def test_points_are_drawn_where_they_belong():
    plane = Plane((0, 8), (50, 100), width=400, height=260)
    assert (plane.across(0), plane.across(8), plane.across(2)) == (44, 390, 44 + 346 / 4)
    assert (plane.down(50), plane.down(100), plane.down(60)) == (224, 10, 224 - 214 / 5)          # up is more
    series = {"empty": [], "rising": [(0, 1.0), (4, 2.0), (8, 3.0)], "flat": [(0, 2.0), (8, 2.0)]}
    root = ElementTree.fromstring(line_chart("loss", series, "epoch"))
    rising, flat = ([tuple(map(float, pair.split(","))) for pair in line.get("points").split()] for line in root.iter("polyline"))
    assert [x for x, _ in rising] == [44, 217, 390] and rising[0][1] > rising[1][1] > rising[2][1]
    assert flat[0][1] == flat[1][1] == rising[1][1]
    assert [line.get("style") for line in root.iter("polyline")] == ["stroke:var(--c1)", "stroke:var(--c2)"]     # the empty one keeps its colour
    assert words(ElementTree.fromstring(key(series))) == "risingflat"
    assert "nothing was recorded" in line_chart("loss", {"a": []}, "epoch")


def test_one_point_and_equal_numbers_can_be_drawn():
    for points in ([(3, 0.5)], [(1, 7), (2, 7)], [(0, 0)]):
        for place in re.findall(r' c?[xy][12]?="([^"]+)"', line_chart("t", {"a": points}, "x")):
            assert math.isfinite(float(place))
    assert bounds([0.0]) == (-1.0, 1.0)


def test_intervals_lie_around_their_dots():
    root = ElementTree.fromstring(interval_chart("accuracy", [("a", 60.0, 50.0, 70.0), ("b", 80.0, 75.0, 84.0)], "%"))
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter("circle")]
    bars = [(float(c.get("x1")), float(c.get("x2")), float(c.get("y1"))) for c in root.iter("line") if c.get("class") == "curve"]
    assert all(x1 < cx < x2 and cy == y for (cx, cy), (x1, x2, y) in zip(dots, bars, strict=True))
    assert dots[0][0] < dots[1][0] and dots[0][1] < dots[1][1]                     # more is to the right; rows from the top
    assert (dots[0][0] - bars[0][0]) == pytest.approx(bars[0][1] - dots[0][0], abs=0.2)


def test_a_page_is_written_whole(tmp_path):
    write_page(tmp_path / "new/report.html", page("one"))
    assert write_page(tmp_path / "new/report.html", page("two", "ünï")).read_text(encoding="utf-8") == page("two", "ünï")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]


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
    cells = [[words(td) for td in tr.iter("td")] for tr in root.find("body").iter("tr")][1:]
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
