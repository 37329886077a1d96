"""Reports and notebook displays: what they show is what was computed, whatever a user's text says; and a browser finds them readable."""
from __future__ import annotations

import base64
import importlib
import io
import json
import math
import random
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

import minitransfer as mt
from minitransfer import cli, demo
from minitransfer.nn.recurrent import RecurrentModel
from minitransfer.report import (
    Html,
    Table,
    Token,
    attention,
    confusion,
    curves,
    element,
    facts,
    fold,
    in_columns,
    interval_chart,
    key,
    line_chart,
    manifest,
    page,
    paragraph,
    prediction_case,
    section,
    study_page,
    table,
    token_rows,
    write_page,
)
from minitransfer.report.chart import Plane, bounds, ticks
from minitransfer.report.html import text
from minitransfer.report.parts import drawn
from minitransfer.study.tables import new_axes
from minitransfer.tasks import AnswerPrediction, LabelsPrediction, MultiLabelTask, Prediction, RegressionTask, SequenceTask, SpanTask, TokenTask, WordPrediction, finetune, predict
from minitransfer.tasks.page import cases_of, examples, judged, metric_table
from minitransfer.text import PackedBatches, Tokenizer, tokenize_corpus
from minitransfer.training.page import write_report
from minitransfer.training.run import SaveError, TrainResult
from minitransfer.transfer.groups import ReportRow, TrainableReport
from minitransfer.weights.files import write_json

from .browser import CHROMIUM, Browser, browser
from .pages import part, self_contained, table_of, tree, words
from .pictures import differences, picture

pretraining, tuning = importlib.import_module("minitransfer.training.pretrain"), importlib.import_module("minitransfer.tasks.finetune")

EVIL = "<script>alert('&')</script> \"quoted\" \x00\x1b end"
BAD = "<script>alert(1)</script>"       # a label
QUICK = {"progress": False, "precision": "fp32", "log_every": 1}


# ---- the page ----------------------------------------------------------------------------------------------------------------------------------

def test_everything_given_as_text_is_escaped():
    html = page(EVIL, paragraph(EVIL), table([[EVIL, "n"], [EVIL, 3]]), confusion([(EVIL, EVIL), (EVIL, "no")]), facts({EVIL: EVIL}),
                fold(EVIL, EVIL), manifest({EVIL: {EVIL: EVIL}}), attention([EVIL, "no"], np.full((1, 1, 2, 2), 0.5), [False, False]),
                token_rows([[Token(EVIL, "", EVIL)]], [EVIL]), section(EVIL, prediction_case(EVIL, EVIL, "no", 0.5)),
                line_chart(EVIL, {EVIL: [(0, 1)]}, EVIL), interval_chart(EVIL, [(EVIL, 1.0, 0.5, 2.0)], EVIL), element("p", "x", title=EVIL))
    root = tree(html)
    assert html.count("<script") == len(list(root.iter("script"))) == 1
    shown = "<script>alert('&')</script> \"quoted\"    end"
    assert root.find("head/title").text == shown and words(root.find("body/main/p")) == shown
    assert table_of(root.find("body/main/table")) == [[shown, "n"], [shown, "3"]]
    assert [words(node) for node in root.iter("span") if "token" in node.get("class", "")] == [shown, "no", shown + shown]
    self_contained(html)


def test_only_html_is_taken_over():
    assert text("<b>") == "&lt;b&gt;" and text(Html("<b>")) == "<b>" and text("\ud800") == "?"
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
    assert (plane.across(0), plane.across(8), plane.across(2)) == (37, 390, round(37 + 353 / 4, 1))      # three digits need 37
    assert (plane.down(50), plane.down(100), plane.down(60)) == (224, 10, 224 - 214 / 5)          # up is more
    series = {"empty": [], "rising": [(0, 1.0), (4, 2.0), (8, 3.0)], "flat": [(0, 2.0), (8, 2.0)]}
    root = part(line_chart("loss", series, "epoch"))
    rising, flat = ([tuple(map(float, pair.split(","))) for pair in line.get("points").split()] for line in root.iter("polyline"))
    assert [x for x, _ in rising] == [37, 183.5, 330] and rising[0][1] > rising[1][1] > rising[2][1]
    assert flat[0][1] == flat[1][1] == rising[1][1]
    assert [line.get("style") for line in root.iter("polyline")] == ["stroke:var(--c1)", "stroke:var(--c2)"]     # the empty one keeps its colour
    assert words(part(key(series))) == "risingflat"
    shown = [words(part(line_chart("loss", {"a": [(2, 0.1), (last, 0.2)]}, "step"))).split("0.2")[1] for last in (4, 4.0)]
    assert shown == ["234step", "22.533.54step"]                                                   # of whole steps there are no halves
    assert "nothing was recorded" in line_chart("loss", {"a": []}, "epoch")


def test_one_point_and_equal_numbers_can_be_drawn():
    for points in ([(3, 0.5)], [(1, 7), (2, 7)], [(0, 0)]):
        for place in re.findall(r' c?[xy][12]?="([^"]+)"', line_chart("t", {"a": points}, "x")):
            assert math.isfinite(float(place))
    assert bounds([0.0]) == (-1.0, 1.0)


def test_intervals_lie_around_their_dots():
    root = part(interval_chart("accuracy", [("a", 60.0, 50.0, 70.0), ("b", 80.0, 75.0, 84.0)], "%"))
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter("circle")]
    bars = [(float(c.get("x1")), float(c.get("x2")), float(c.get("y1"))) for c in root.iter("line") if c.get("class") == "curve"]
    assert all(x1 < cx < x2 and cy == y for (cx, cy), (x1, x2, y) in zip(dots, bars, strict=True))
    assert dots[0][0] < dots[1][0] and dots[0][1] < dots[1][1]                     # more is to the right; rows from the top
    assert (dots[0][0] - bars[0][0]) == pytest.approx(bars[0][1] - dots[0][0], abs=0.2)


def test_a_page_is_written_whole(tmp_path):
    write_page(tmp_path / "new/report.html", page("one"))
    assert write_page(tmp_path / "new/report.html", page("two", "ünï")).read_text(encoding="utf-8") == page("two", "ünï")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]




# ---- tables, curves, confusions, examples ------------------------------------------------------------------------------------------------------

def test_a_table_is_the_same_in_columns_and_as_markup():
    cells = [("group", "n", "where", "rate"), ("embed", "1,250", "below", "frozen"), ("head", "87", "on top", "-2e-04")]
    assert in_columns(cells) == "group      n  where     rate\nembed  1,250  below   frozen\nhead      87  on top  -2e-04"
    root = part(table(cells))
    assert table_of(root) == [list(row) for row in cells]
    assert [cell.get("class") for cell in list(root.iter("tr"))[1]] == ["text", None, "text", None]          # a number is right of its column, words are left
    named = [one for n in (18, 19) for one in (table([cells[0], ["x" * n, 1, "", ""]]), confusion([("x" * n, "y")]))]
    assert [next(part(one).iter("table")).get("class") for one in named] == [None, None, "long", "long"]
    assert mt.trainable_report(mt.Model(mt.ModelConfig(11, 6, 1, 2, 5, 7), "masked"))._repr_html_().startswith("<table>")


def test_confusions_are_counted_and_shaded_by_their_share_of_the_row():
    pairs = [("a", "a")] * 3 + [("a", "b")] + [("b", "a")] * 2
    root = part(confusion(pairs))
    assert table_of(root) == [["true label", "a", "b"], ["a", "3", "1"], ["b", "2", "0"]]
    assert [cell.get("style") for cell in root.iter("td")] == ["--w:0.75", "--w:0.25", "--w:1.00", "--w:0.00"]
    many = [(str(i), str(i)) for i in range(40)] + [("3", "4")] * 5 + [("7", "1")] * 2
    assert table_of(part(confusion(many))) == [["true label", "answered with", "times"], ["3", "4", "5"], ["7", "1", "2"]]


def test_curves_are_those_of_the_log():
    history = [{"step": 2, "loss": 3.0, "lr": 1e-3}, {"step": 4, "evaluation": {"accuracy": 0.5, "f1": 0.4, "loss": 2.0, "n": 9.0}}, {"step": 4, "loss": 1.0, "lr": 5e-4},
               {"step": 6, "evaluation": {"accuracy": 0.75, "f1": 0.8, "loss": None, "n": 9.0}}]
    root = part(curves(history, "f1"))
    assert [svg.get("aria-label") for svg in root.iter("svg") if svg.get("role")] == ["Loss", "Held-out f1", "Learning rate"]
    assert [len(line.get("points").split()) for line in root.iter("polyline")] == [2, 1, 2, 2]         # the evaluation without a loss has no point
    assert [svg.get("aria-label") for svg in part(curves(history)).iter("svg") if svg.get("role")][1] == "Held-out accuracy"
    assert "Held-out" not in curves(history[:1])


def test_examples_are_the_surest_mistakes_and_both_ends_of_the_right_ones():
    def sequence(i: int, answer: str, p: float):
        return cases_of(SequenceTask(pair="more"), {"text": f"text {i}", "more": "b", "label": 1.0}, Prediction(answer, p, {}))
    cases = [case for i, p in enumerate((0.6, 0.9, 0.7, 0.8, 0.65, 0.95, 0.99)) for case in sequence(i, "0" if i in (1, 6) else "1", p)]
    shown = [[words(case) for case in part(one).iter("div") if "case" in case.get("class", "")] for one in examples(cases)]
    assert shown[0] == ["text 6 / b0, 99% is wrong: the label is 1", "text 1 / b0, 90% is wrong: the label is 1"]
    assert shown[1] == [f"text {i} / b1, {p}% is right" for i, p in ((5, 95), (3, 80), (4, 65), (0, 60))]
    assert "none" in examples(cases[1:2])[1]


def test_each_task_says_what_was_true_and_what_was_answered():
    def told(task, row, answer):
        return [(case.words, case.truth, case.answer, round(case.probability, 6), case.asked) for case in cases_of(task, row, answer)]
    tagged = [WordPrediction("Ann", "B-PER", 0.9), WordPrediction("Lee", "O", 0.6), WordPrediction("cut", None, 0.0)]
    assert told(TokenTask(), {"words": ["Ann", "Lee", "cut"], "tags": ["I-PER", "I-PER", "O"]}, tagged) == [
        ("[Ann] Lee cut", "B-PER", "B-PER", 0.9, ("Ann Lee cut", None)), ("Ann [Lee] cut", "I-PER", "O", 0.6, ("Ann Lee cut", None))]      # I- at the start is read as B-
    span = {"question": "who?", "context": "It was Ann Lee.", "answers": {"text": ["Ann", "Ann Lee"], "answer_start": [7, 7]}}
    assert told(SpanTask(), span, AnswerPrediction("Ann Lee.", 7, 15, 0.8)) == [("who?", "Ann Lee", "Ann Lee", 0.8, ("who?", "It was Ann Lee."))]
    assert told(SpanTask(), span | {"answers": {"text": [], "answer_start": []}}, AnswerPrediction("Ann", 7, 10, 0.8))[0][1:3] == ("no answer", "Ann")
    many = LabelsPrediction(["x", "y"], {"x": 0.9, "y": 0.8, "z": 0.25})
    assert told(MultiLabelTask(), {"text": "t", "label": ["y", "x"]}, many) == [("t", "x, y", "x, y", 0.54, ("t", None))]                  # .9 x .8 x .75
    assert told(MultiLabelTask(), {"text": "t", "label": []}, many)[0][1:3] == ("none", "x, y")


# ---- what a notebook shows -------------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def tok(tiny) -> Tokenizer:
    return Tokenizer.from_pretrained(tiny / "mini-bert")


@pytest.fixture(scope="module")
def model(tiny) -> mt.Model:
    return mt.Model.from_pretrained(tiny / "mini-bert")


def shown_tokens(html: str) -> list[list[tuple[str, str]]]:
    """(class, text) of each token and border, row by row."""
    return [[(span.get("class"), words(span)) for span in row] for row in part(html).iter("div") if row.get("class") == "tokens"]


def test_a_batch_shows_tokens_padding_pairs_and_labels(tok):
    batch = tok(["the river", "a"], ["was old", "b"]) | {"labels": torch.tensor([1, 0])}
    view = mt.show(batch, tok, ["bad", BAD])
    rows = shown_tokens(view.html)
    assert [text for _, text in rows[0]] == tok.tokens(batch["input_ids"][0]) and [len(row) for row in rows] == [batch["input_ids"].shape[1]] * 2
    kinds = [[kind.removeprefix("token").strip() for kind, _ in row] for row in rows]
    for row in range(2):
        for i, kind in enumerate(kinds[row]):
            special = int(batch["input_ids"][row, i]) in (tok.cls_id, tok.sep_id)
            assert kind == ("padding" if not batch["attention_mask"][row, i] else "special" if special else "second" if batch["token_type_ids"][row, i] else "")
    assert {"special", "second", "padding", ""} == set(kinds[1]) | set(kinds[0])
    assert "label: bad" in view.html and "&lt;script&gt;" in view.html and BAD not in view.html
    assert view._repr_html_().startswith('<div class="mt"><style>') and repr(view).splitlines()[0] == f"2 rows of {batch['input_ids'].shape[1]}: {', '.join(batch)}"
    assert "label: 0.5" in mt.show(tok(["a"]) | {"labels": torch.tensor([0.5])}, tok).html
    assert "label: x, z" in mt.show(tok(["a"]) | {"labels": torch.tensor([[1.0, 0.0, 1.0]])}, tok, ["x", "y", "z"]).html
    assert len(shown_tokens(mt.show(tok(["a"] * 9), tok).html)) == 8 and len(shown_tokens(mt.show(tok(["a"] * 9), tok, rows=2).html)) == 2
    with pytest.raises(KeyError, match=r"a batch of 'attention_mask'; tokens are shown from input_ids: pass what tok\(texts\) gives"):
        mt.show({"attention_mask": batch["attention_mask"]}, tok)


def test_a_packed_batch_shows_documents_and_what_is_hidden(tok, tmp_path):
    packed = PackedBatches(tokenize_corpus(tok, ["the river was old", "he sat down", "a long way to the bank"], cache=tmp_path), tok, 40, 1, seed=0)[0]
    ids, labels = packed["input_ids"].clone(), torch.full_like(packed["input_ids"], -100)
    labels[0, 2] = ids[0, 2]
    ids[0, 2] = tok.mask_id
    row = shown_tokens(mt.show({**packed, "input_ids": ids, "labels": labels}, tok).html)[0]
    starts = [i for i, (kind, _) in enumerate(row) if kind == "border"]
    assert [row[i][1] for i in starts] == ["document 1", "document 2", "document 3"] and all(row[i + 1][1] == "[CLS]" for i in starts)
    assert row[3] == ("token hidden", f"[MASK]{tok.tokens(labels[0, 2:3])[0]}")                                  # one border is before it
    assert sum(kind == "token padding" for kind, _ in row) == int((packed["document_ids"] < 0).sum()) > 0
    tags = mt.show(tok(["the river"]) | {"labels": torch.tensor([[-100, 1, 0] + [-100] * (tok(["the river"])["input_ids"].shape[1] - 3)])}, tok, ["O", "B-X"])
    assert [words(small) for small in part(tags.html).iter("small")] == ["B-X", "O"]


def test_a_model_shows_body_and_head_with_shapes_and_what_is_frozen(tiny):
    model = mt.Model.from_pretrained(tiny / "mini-bert", head="sequence", labels=["good", BAD])
    mt.freeze(model, "embed, blocks.0")
    root = part(model._repr_html_())
    body, head = root.iter("section")
    assert [words(one.find("h2")) for one in (body, head)] == ["body", f"head: sequence (good, {BAD})"]
    groups = {words(one.find("summary")): table_of(one)[1:] for one in root.iter("details")}
    parameters = dict(model.named_parameters())
    assert [name.partition(":")[0] for name in groups] == ["embed", "blocks.0", "blocks.1", "pooler", "head"]
    assert len(list(body.iter("details"))) == 3 and sum(map(len, groups.values())) == len(parameters)
    for title, rows in groups.items():
        group = title.partition(":")[0]
        assert title == f"{group}: {sum(p.numel() for name, p in parameters.items() if name.startswith(group + '.')):,} parameters, " + (
            "frozen" if group in ("embed", "blocks.0") else "all train")
        for name, shape, numbers, now in rows:
            p = parameters[f"{group}.{name}"]
            assert (shape, numbers, now) == (" x ".join(map(str, p.shape)), f"{p.numel():,}", "trains" if p.requires_grad else "frozen")


def weights_of(html: str, n: int) -> np.ndarray:
    """(L, H, T, T) as the page holds them."""
    node = next(one for one in part(html).iter("div") if one.get("class") == "attention")
    return np.frombuffer(base64.b64decode(node.get("data-weights")), np.uint8).reshape(-1, int(node.get("data-heads")), n, n) / 255


@pytest.mark.parametrize("change", [None, "prefix"])
def test_the_attention_view_holds_the_attention_of_the_model(tiny, tok, change):
    model = mt.Model.from_pretrained(tiny / "mini-bert").train()
    if change:
        mt.transfer.strategy(change).apply(model)
    batch = tok("the river was old", "he sat")
    want = torch.stack(model.eval()(**batch, output_attentions=True).attentions)[:, 0].detach().numpy()       # (L, H, T, S)
    n = batch["input_ids"].shape[1]
    view = mt.attention_view(model.train(), tok, "the river was old", "he sat")
    assert np.abs(weights_of(view.html, n) - want[..., -n:]).max() <= 0.5 / 255 + 1e-6 and model.training
    assert [text for _, text in shown_tokens(view.html)[0]] == tok.tokens(batch["input_ids"][0]) and repr(view) == f"attention: 2 layers, 3 heads, {n} tokens"
    assert weights_of(mt.attention_view(model, tok, "the river was old " * 20, max_length=12).html, 12).shape == (2, 3, 12, 12)


def test_a_body_without_attention_says_so(tok):
    recurrent = RecurrentModel(mt.RecurrentConfig(tok.vocab_size, 8, 8, 1, d_hidden=8), "none")
    with pytest.raises(ValueError, match="attentions of a recurrent body; it has none"):
        mt.attention_view(recurrent.train(), tok, "a")
    assert recurrent.training and part(recurrent._repr_html_()).find("div/p").text.startswith("RecurrentModel: ")


# ---- the pages of runs -----------------------------------------------------------------------------------------------------------------------------

def rows(n: int, seed: int) -> list[dict]:
    draw = random.Random(seed)
    return [{"text": " ".join(draw.choices("the river old man went sat room table long way".split(), k=draw.randint(3, 9))) + (f" {BAD}" if i % 5 == 0 else ""),
             "label": BAD if i % 2 else "fine"} for i in range(n)]


@pytest.fixture(scope="module")
def tuned(tiny, tok, tmp_path_factory):
    """A run of `finetune` with its page, on texts and labels that would be markup."""
    out = tmp_path_factory.mktemp("runs") / "tuned"
    result = finetune(mt.Model.from_pretrained(tiny / "mini-bert", head="none"), tok, train=rows(24, 1), validation=rows(40, 2), strategy="lora", epochs=2, batch_size=8, out=out,
                      lr=1e-2, **QUICK)
    return result, (out / "report.html").read_text(encoding="utf-8")


def sections(root) -> dict:
    return {words(one.find("h2")): one for one in root.iter("section")}


def test_the_page_of_a_tuned_model(tuned, tok):
    result, html = tuned
    self_contained(html)
    root, held_out = tree(html), rows(40, 2)
    assert words(root.find("head/title")) == "Fine-tuning: sequence, strategy lora" and BAD not in html
    metrics = dict(row[:2] for row in table_of(next(root.iter("table")))[1:])
    assert metrics == {name: f"{value:.4g}" for name, value in result.metrics.items() if not name.endswith(("_low", "_high"))}
    points = {svg.get("aria-label"): [len(line.get("points").split()) for line in svg.iter("polyline")] for svg in root.iter("svg") if svg.get("role")}
    assert points == {"Loss": [6, 2], "Held-out accuracy": [2], "Learning rate": [6]}
    found = sections(root)
    assert list(found) == ["What trained", "Confusions", "The surest mistakes", "Right: the two surest and the two least sure", "Where the model looks", "The run"]
    assert table_of(found["What trained"])[1:] == [list(row) for row in result.report.cells()[1:]]
    answers = predict(result.model, tok, [row["text"] for row in held_out])
    counts = {(row["label"], answer.label): 0 for row in held_out for answer in answers}
    for row, answer in zip(held_out, answers, strict=True):
        counts[row["label"], answer.label] += 1
    (_, *labels), *body = table_of(found["Confusions"])
    assert sorted(labels) == sorted({BAD, "fine"}) and sum(counts.values()) == 40
    assert {(truth, label): int(n) for truth, *cells in body for label, n in zip(labels, cells, strict=True)} == {(a, b): counts.get((a, b), 0) for a in labels for b in labels}
    wrong = sorted(((answer.probability, row) for row, answer in zip(held_out, answers, strict=True) if answer.label != row["label"]), key=lambda both: -both[0])[:5]
    cases = [words(case.find("p")) for case in found["The surest mistakes"].iter("div")]
    assert cases == [row["text"] for _, row in wrong] and len(cases) > 1
    tokens = [words(one) for one in found["Where the model looks"].iter("span")]
    assert tokens == tok.tokens(tok(wrong[0][1]["text"])["input_ids"][0])
    told = words(found["The run"])
    assert "lr0.01" in told and "fp32" in told and "lora" in told and "torch" in told
    steps = next(table_of(one) for one in root.iter("details") if words(one.find("summary")) == "Learning rates by step")
    assert steps[0][2:] == [f"step {i}" for i in range(1, 7)] and steps[1][0].startswith("embed") and set(steps[1][2:]) == {"frozen"}
    assert steps[-1][2:] == [f"{one['lr']:.2e}" for one in result.history if "lr" in one]


def test_results_show_themselves_in_a_notebook(tuned):
    result, _ = tuned
    root = part(result._repr_html_())
    assert table_of(root)[0] == ["held-out metric", "value", "95 % interval"] and result.cost in words(root) and result.report.cells()[1][0] in words(root)
    assert part(result.training._repr_html_()).find("div/p").text == str(result.training) and BAD not in result._repr_html_()


def test_numbers_are_drawn_and_the_furthest_are_listed(tiny, tok):
    model = mt.Model.from_pretrained(tiny / "mini-bert", head="none")
    scored = [{"text": row["text"], "label": float(i % 7)} for i, row in enumerate(rows(20, 3))]
    result = finetune(model, tok, "regression", train=scored[:12], validation=scored[12:], steps=2, batch_size=6, **QUICK)
    found = sections(part("".join(judged(RegressionTask(), result.model, tok, scored[12:], None))))
    answers = [one.value for one in predict(result.model, tok, [row["text"] for row in scored[12:]])]
    far = sorted(zip(scored[12:], answers, strict=True), key=lambda both: -abs(both[0]["label"] - both[1]))[:5]
    assert table_of(found["Furthest apart"])[1:] == [[row["text"], f"{row['label']:.3g}", f"{value:.3g}"] for row, value in far]
    assert len(list(found["Given and predicted"].iter("circle"))) == 8 and "Where the model looks" in found
    assert judged(RegressionTask(), result.model, tok, [], None) == []


def test_the_pages_of_pretraining_and_adapting(tiny, tok, tmp_path):
    texts = [f"the old man went to the river {i}" for i in range(60)]
    model = mt.Model.from_pretrained(tiny / "mini-bert")
    first = mt.pretrain(model, tok, texts, length=16, batch_size=4, steps=2, out=tmp_path / "a", **QUICK)
    second = mt.adapt(model, tok, texts, length=16, batch_size=4, steps=2, out=tmp_path / "b", strategy="last:1", **QUICK)
    pages = [(tmp_path / name / "report.html").read_text(encoding="utf-8") for name in "ab"]
    for html in pages:
        self_contained(html)
        assert list(sections(tree(html))) == ["What trained", "Where the model looks", "The run"]
    assert words(tree(pages[0]).find("body/main/p")) == str(first) and "Learning rates by step" in pages[1]
    moved = {name: [f"{second.before[name]:.6g}", f"{second.after[name]:.6g}"] for name in ("loss", "perplexity")}
    assert {name: values for name, *values in table_of(next(tree(pages[1]).iter("table")))[1:]} == moved


def test_a_page_of_a_study_has_tables_and_figures():
    from matplotlib.figure import Figure

    class Rows(Table):
        note = "a & b"

        def cells(self):
            return [("layer", "accuracy"), (BAD, "0.9")]
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().plot([0, 1])
    html = study_page("Probe", {"By layer": Rows()}, {"drawn": figure, "ours": line_chart("c", {"a": [(0, 1), (1, 2)]}, "x")}, {"seed": 3}, [section("More", "b")])
    self_contained(html)
    root = tree(html)
    assert list(sections(root)) == ["By layer", "More", "How it was measured"]
    assert table_of(sections(root)["By layer"]) == [["layer", "accuracy"], [BAD, "0.9"]] and "a & b" in words(root)
    png = base64.b64decode(next(root.iter("img")).get("src").partition(",")[2])
    assert png.startswith(b"\x89PNG") and len(list(root.iter("polyline"))) == 1 and "seed3" in words(root).replace("\n", "")


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_computed(tmp_path, monkeypatch, tiny, tok):
    def never(*given, **named):
        raise AssertionError("work was done")
    (tmp_path / "file").touch()
    model = mt.Model.from_pretrained(tiny / "mini-bert", head="none")
    for module, name in ((tuning, "head_alone"), (tuning, "tune"), (pretraining, "Corpus"), (demo, "fill_lines")):
        monkeypatch.setattr(module, name, never)
    monkeypatch.setattr("os.access", lambda path, mode: "closed" not in str(path))
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr("minitransfer.weights.sources.bundled", lambda: tiny)
    calls = (lambda out: finetune(model, tok, train=rows(8, 1), validation=rows(8, 2), baseline=True, out=out), lambda out: mt.pretrain(model, tok, ["a text"], out=out),
             lambda out: mt.adapt(model, tok, ["a text"], out=out), lambda out: demo.run(out=out))
    for out, why in (("file/run", "file is a file, a folder is needed"), ("closed/run", "closed may not be written"), ("closed", "closed may not be written")):
        for call in calls:
            with pytest.raises(SaveError, match=rf"the folder .* cannot be made or written \(.*{why}\); a run needs a folder it may write to: choose another out"):
                call(tmp_path / out)
    assert not (tmp_path / "closed/run").exists()


def test_a_page_that_cannot_be_written_does_not_lose_the_model(tiny, tok, tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.warns(UserWarning, match=r"report.html could not be written \(Is a directory\); the model is saved in .*model all the same: make room"):
        finetune(mt.Model.from_pretrained(tiny / "mini-bert", head="none"), tok, train=rows(8, 1), steps=1, out=tmp_path, **QUICK)
    assert (tmp_path / "model/task.json").is_file()
    (tmp_path / "report.html").rmdir()
    finetune(mt.Model.from_pretrained(tiny / "mini-bert", head="none"), tok, train=rows(8, 1), steps=1, out=tmp_path, resume=True, **QUICK)
    self_contained((tmp_path / "report.html").read_text(encoding="utf-8"))


# ---- in a browser -------------------------------------------------------------------------------------------------------------------------------------

# The contrast of every text with what is painted behind it, by WCAG 2.2: (L1 + .05) / (L2 + .05); the least is 4.5. Colours are read as the canvas paints them.
CONTRASTS = """(() => {
  const pen = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d", {willReadFrequently: true}), known = new Map();
  const rgba = colour => {
    if (known.has(colour)) return known.get(colour);
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    known.set(colour, [...pen.getImageData(0, 0, 1, 1).data].map(v => v / 255));
    return known.get(colour);
  };
  const behind = node => {
    const [r, g, b, a] = rgba(getComputedStyle(node).backgroundColor);
    if (a === 1 || !node.parentElement) return a === 1 ? [r, g, b] : [1, 1, 1];
    return behind(node.parentElement).map((under, i) => a * [r, g, b][i] + (1 - a) * under);
  };
  const light = rgb => rgb.slice(0, 3).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || ["SCRIPT", "STYLE", "OPTION"].includes(node.tagName) || !node.getClientRects().length) continue;
    const style = getComputedStyle(node), [a, b] = [light(rgba(node.ownerSVGElement ? style.fill : style.color)), light(behind(node))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), walk.currentNode.data.trim().slice(0, 40)]);
  }
  return found;
})()"""
OUTSIDE = """[...document.body.querySelectorAll("*")].filter(node => !node.closest(".wide > *") && node.getBoundingClientRect().right > WIDTH + 0.5)
  .map(node => `${node.tagName} ends at ${node.getBoundingClientRect().right}`)"""
chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")


def faults(window: Browser, width: int) -> list[str]:
    """What a reader of the open page would stumble over: a page wider than the screen, text that is hard to read, something asked for from elsewhere."""
    window.ask("document.querySelectorAll('details').forEach(one => one.open = true)")
    wide = window.ask("document.documentElement.scrollWidth")                   # not compared with innerWidth: a phone zooms out until a page fits
    told = [f"the page is {wide} wide on a screen of {width}"] if wide > width else []
    contrasts = window.ask(CONTRASTS)
    assert contrasts
    told += [f"contrast {ratio:.2f}: {text}" for ratio, text in contrasts if ratio < 4.5]
    return [*told, *window.ask(OUTSIDE.replace("WIDTH", str(width))), *(f"asks for {url}" for url in window.requests if not url.startswith(("file:", "data:")))]


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.fixture(scope="module")
def site(tuned, tok, model, tiny, tmp_path_factory):
    """Pages to open: a tuned model's, the demo's, a probe's, a study's with a table that no phone is wide enough for, and what notebooks show."""
    folder = tmp_path_factory.mktemp("site")
    cases = [{"text": row["text"], "label": row["label"]} for row in rows(6, 4)]
    answers = [Prediction(row["label"] if i else "fine", 0.9, {}) for i, row in enumerate(cases)]
    ways = [demo.Outcome(name, 10, 100, 1.0, None, i + 2, 6, [(0, 1.0), (8, 0.5)], [(1, 50.0), (8, 80.0)], answers, [True] * (i + 2) + [False] * (4 - i))
            for i, name in enumerate(("TF-IDF + logistic", "random start, full", "LoRA", "full"))]
    result = demo.DemoResult(ways, {"seed": 0, "command": "minitransfer demo " + "x" * 300}, [("She opened the [MASK].", "“door” 40%")], [("The old man", "y" * 200)])

    class Rows(Table):
        def cells(self):
            return [["layer", *(f"accuracy {i}" for i in range(40))], *([BAD + "w" * 60, *["0.123"] * 40] for _ in range(3))]
    batch = tok(["the river was old " * 9, "a"], ["he sat", "b"]) | {"labels": torch.tensor([1, 0])}
    shown = [mt.show(batch, tok, ["fine", BAD * 9]), *(mt.attention_view(model, tok, one) for one in ("the river was old", "he sat")), model, tuned[0], tuned[0].training]
    head = '<!DOCTYPE html><meta charset="utf-8" /><meta name="viewport" content="width=device-width, initial-scale=1" />'
    texts = {"tuned": tuned[1], "demo": demo.demo_page(result, demo.Split(cases, cases, cases)),
             "study": study_page("Probe " + "z" * 200, {"By layer": Rows()}, {}, {"key" * 30: BAD * 30}), "notebook": head + "".join(one._repr_html_() for one in shown)}
    for name, html in texts.items():
        (folder / f"{name}.html").write_text(html, encoding="utf-8")
    asked = ["probe", str(tiny / "mini-bert"), "samples/tagged.conll", *"--task ner --sentences 12 --folds 2".split()]
    assert cli.main([*asked, "--out", str(folder / "probe"), "--cache", str(folder / "cache")]) == 0
    (folder / "probe/report.html").rename(folder / "probe.html")
    return folder


@chromium
@pytest.mark.parametrize("name", ["tuned", "demo", "probe", "study", "notebook"])
def test_a_page_is_readable_on_a_phone_and_a_desk_by_day_and_by_night(window, site, name):
    papers = {False: (255, 255, 255), True: (20, 23, 27)}
    for width in (390, 1280):
        for dark, paper in papers.items():
            window.open(site / f"{name}.html", width, dark)
            pixels = matplotlib.image.imread(io.BytesIO(window.screenshot()), "png")[..., :3]      # (height, width, 3)
            assert pixels.shape[1] == width
            page_is = np.abs(255 * pixels - np.array(paper)).max(-1) < 2
            assert 0.5 < page_is[:, 20:-20].mean() < 0.99                          # it is mostly paper of the right colour, and something is on it
            assert faults(window, width) == [], (width, dark)


@chromium
def test_planted_faults_of_a_page_are_found(window, site):
    html = page("t", Html('<p style="color:#999">pale</p><p style="width:700px">broad</p><img src="http://localhost:9/x.png" alt="" />'))
    (site / "bad.html").write_text(html, encoding="utf-8")
    window.open(site / "bad.html", 390, False)
    told = faults(window, 390)
    assert [one.partition(" ends")[0] for one in told] == ["the page is 716 wide on a screen of 390", "contrast 2.85: pale", "P", "asks for http://localhost:9/x.png"]


@chromium
def test_a_token_that_is_hovered_says_where_it_looks(window, site, tiny, tok, model):
    window.open(site / "notebook.html", 1280, False)
    tokens = tok.tokens(tok("the river was old")["input_ids"][0])
    probabilities = torch.stack(model(**tok("the river was old"), output_attentions=True).attentions)[:, 0].detach()      # (L, H, T, T)

    def look(code: str) -> str:
        return window.ask("(() => { const view = document.querySelector('.attention'), [layer, head] = view.querySelectorAll('select');"
                          f"{code}; return view.querySelector('.said').textContent; }})()")

    def want(seen, i: int) -> tuple[str, list[str]]:
        order = (-seen[i]).argsort(stable=True)[:4].tolist()
        return tokens[i], [f"{tokens[k]} {100 * float(seen[i, k]):.0f} %" for k in order]
    for code, seen, i in (("view.querySelectorAll('.token')[2].dispatchEvent(new PointerEvent('pointerover'))", probabilities[-1].mean(0), 2),
                          ("layer.value = '0'; head.value = '1'; layer.dispatchEvent(new Event('change'))", probabilities[0, 1], 2),
                          ("view.querySelectorAll('.token')[4].focus()", probabilities[0, 1], 4)):
        token, most = want(seen, i)
        said = look(code)
        assert said.startswith(f"“{token}” looks at ")
        numbers = [[re.sub(r" \d+ %$", "", one), int(re.search(r"(\d+) %$", one)[1])] for one in said.partition(" looks at ")[2].split(", ")]
        assert [name for name, _ in numbers][:2] == [re.sub(r" \d+ %$", "", one) for one in most][:2]
        assert all(abs(n - int(re.search(r"(\d+) %$", one)[1])) <= 1 for (_, n), one in zip(numbers, most, strict=True))      # bytes and roundings
    both = window.ask("[...document.querySelectorAll('.attention .said')].map(one => one.textContent.slice(0, 3))")
    assert len(both) == 2 and all(one.startswith("“") for one in both)                # two views in one notebook, each its own


# ---- as it looked before -----------------------------------------------------------------------------------------------------------------------------

REFERENCE = Path(__file__).with_name("pictures.json")
VIEWS = {f"{width} {'dark' if dark else 'light'}": (width, dark) for width in (390, 1280) for dark in (False, True)}
OTHER_FONTS = ("*{font-family:serif!important}", "*{letter-spacing:-.05em}", "*{letter-spacing:.03em}")
FAULTS = [("390 light", "figure:nth-of-type(2){visibility:hidden}", "figure: 0.99"), ("1280 dark", ".charts>figure{display:none}", "parts h1, p, "),
          ("1280 light", "img{visibility:hidden}", "figure: 0.9"), ("390 dark", ".wide{width:5rem}", "div.wide: 80 x"), ("390 light", "td{font-size:0}", "div.wide: 0."),
          ("390 light", "td.cell{background:none!important}", "div.wide: 0."), ("1280 light", ".charts{display:block!important}", "div.key: "),
          ("1280 dark", ".case{background:none!important;border:0!important;padding:0!important}", "div.case.bad: 0."), ("390 dark", "img{filter:none!important}", "figure: 0.3"),
          ("390 dark", ".mt{--paper:#fff!important;--ink:#000!important}", "paper 255"), ("1280 light", ".mt{--ink:#ccc!important}", "h1: 0.")]


@pytest.fixture(scope="module")
def specimen(tmp_path_factory) -> str:
    """The page of a run whose numbers are given: on every machine the same."""
    out = tmp_path_factory.mktemp("specimen")
    history = [{"step": 2 * i, "loss": 0.7 * 0.9**i, "lr": 1e-4 * (1 - i / 20)} for i in range(1, 20)]
    history += [{"step": i, "evaluation": {"accuracy": 0.5 + i / 90, "loss": 0.7 - i / 99}} for i in (10, 20, 30)]
    write_json(out / "manifest.json", {"precision": "fp32", "settings": {"lr": 1e-4, "epochs": 3}, "versions": {"torch": "2.0"}})
    result = TrainResult(38, 9_600, 12.5, "epochs", history, None, {"accuracy": 0.83}, 768.0, 50_000_000, 10_000_000, "fp32", out)
    groups = TrainableReport(tuple(ReportRow(name, n, n if name == "head" else 0) for name, n in (("embed", 2_130_944), ("blocks.0", 789_760), ("head", 514))))
    axes = new_axes(5, 3.4)[0, 0]
    axes.plot(range(7), [0.8, 0.9, 0.94, 0.93, 0.92, 0.91, 0.9], marker=".")
    axes.fill_between(range(7), 0.6, 0.7, alpha=0.4)
    look, tokens = np.random.default_rng(0).random((2, 2, 9, 9)) ** 4, "[CLS] the old man went to river . [SEP]".split()
    case = "The steak was cooked well enough, but the waiter spoiled the whole evening.", "negative"
    parts = [section("Confusions", confusion([("negative", "negative")] * 30 + [("negative", "positive")] * 9 + [("positive", "positive")] * 25)),
             section("Examples", prediction_case(*case, "positive", 0.9), prediction_case(*case, "negative", 0.8)),
             section("Where the model looks", attention(tokens, look, [one[0] == "[" for one in tokens])), section("Layers", drawn("Accuracy", axes.figure))]
    summary = [paragraph("A page of which every number is given, so that it is the same wherever it is made."),
               metric_table({"accuracy": 0.83, "accuracy_low": 0.7, "accuracy_high": 0.9, "loss": 0.4})]
    write_report("Fine-tuning: sequence, strategy head", result, groups, lambda: parts, summary)
    return (out / "report.html").read_text(encoding="utf-8")


def look(window: Browser, html: str, folder: Path, view: str, style: str = "") -> dict:
    (folder / "page.html").write_text(html.replace("</style>", f"{style}</style>", 1), encoding="utf-8")
    return picture(window, folder / "page.html", *VIEWS[view])


@chromium
def test_a_report_looks_as_it_did(window, specimen, tmp_path):
    seen = {view: look(window, specimen, tmp_path, view) for view in VIEWS}
    (new := tmp_path / "pictures.json").write_text(json.dumps(seen, separators=(",", ":")).replace("],", "],\n") + "\n", encoding="utf-8")
    kept = json.loads(REFERENCE.read_text(encoding="utf-8"))
    told = {view: found for view, one in seen.items() if (found := differences(one, kept[view], VIEWS[view][0]))}
    assert told == {}, f"if it is to look like this from now on: cp {new} {REFERENCE}"


@chromium
def test_other_fonts_make_no_difference(window, specimen, tmp_path):
    kept = json.loads(REFERENCE.read_text(encoding="utf-8"))
    for style, view in zip(OTHER_FONTS * 2, [*VIEWS] * 2, strict=False):
        assert differences(look(window, specimen, tmp_path, view, style), kept[view], VIEWS[view][0]) == [], (style, view)


@chromium
def test_planted_faults_make_a_difference(window, specimen, tmp_path):
    kept = json.loads(REFERENCE.read_text(encoding="utf-8"))
    for view, style, fault in FAULTS:
        told = differences(look(window, specimen, tmp_path, view, style), kept[view], VIEWS[view][0])
        assert any(fault in one for one in told), (view, style, told)
