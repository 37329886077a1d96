"""`minitransfer probe` prints what the functions give, and says in one line what was wrong."""
from __future__ import annotations

import json
import re
import sys

import pytest

from minitransfer.bench import study as bench
from minitransfer.cli import main
from minitransfer.study import centre_of_gravity, head_accuracy, heads, probe

from ..docs.pages import self_contained, table_of, tree, words

TREES = "1\tThe\t_\tDET\t_\t_\t2\tdet\t_\t_\n2\tdog\t_\tNOUN\t_\t_\t3\tnsubj\t_\t_\n3\tran\t_\tVERB\t_\t_\t0\troot\t_\t_\n\n"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trees.conllu").write_text(TREES * 4 + TREES.replace("dog", "old man"))
    return tmp_path


def said(capsys, words: str, code: int = 0) -> str:
    assert main(["probe", "mini-bert", *words.split()]) == code
    out, err = capsys.readouterr()
    assert (err.count("\n"), out) == (1, "") if code else not err
    return out or err


def test_what_it_prints_is_what_the_function_gives(place, capsys, ours):
    found = probe(*ours("mini-bert"), "trees.conllu", "relation", cache="cache", folds=2, seed=1)
    assert said(capsys, "trees.conllu --task relation --folds 2 --seed 1 --cache cache --figure a.png") == f"{found}\n"
    assert (place / "a.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(said(capsys, "trees.conllu --task relation --folds 2 --seed 1 --cache cache --json"))["layers"][2]["score"] == found.rows[2].score.rounded()
    assert said(capsys, "trees.conllu --kind mdl --cache cache").split()[1:4] == ["bits", "a", "word"]
    assert said(capsys, "trees.conllu --kind mix --folds 2 --cache cache").splitlines()[-1].startswith("centre")
    assert said(capsys, "trees.conllu --kind heads").split()[:3] == ["relation", "words", "head"]


def test_its_page_shows_what_the_functions_give(place, capsys, ours, monkeypatch):
    monkeypatch.setattr(heads, "RARE", 1)
    given = {"cache": "cache", "folds": 2, "seed": 1}
    asked = {"linear": probe(*ours("mini-bert"), "trees.conllu", "relation", **given), "mdl": probe(*ours("mini-bert"), "trees.conllu", "relation", "mdl", **given),
             "mix": centre_of_gravity(*ours("mini-bert"), "trees.conllu", "relation", **given), "heads": head_accuracy(*ours("mini-bert"), "trees.conllu", seed=1)}
    for kind, found in asked.items():
        more = "" if kind == "heads" else " --task relation --folds 2 --cache cache"
        assert said(capsys, f"trees.conllu --kind {kind} --seed 1 --out pages/{kind}{more}") == f"{found}\nreport: pages/{kind}/report.html\n"
        self_contained(html := (place / f"pages/{kind}/report.html").read_text())
        root = tree(html)
        shown = {words(one.find("h2")): one for one in root.iter("section")}
        first, *others = list(shown)
        assert table_of(shown[first]) == [list(row) for row in found.cells()] and found.note in words(shown[first]) and len(list(root.iter("img"))) == 1
        assert others == ["Label by label"] * (kind in ("linear", "mdl")) + ["Where the model looks", "How it was measured"]
        told = [words(one) for one in shown["How it was measured"].iter("dd")]
        assert told[:3] == ["mini-bert", "trees.conllu", kind] and ("relation" in told) == (kind != "heads")
        assert words(root.find("head/title")) == f"Probe of mini-bert: {kind}" + ("" if kind == "heads" else ", relation")
    found = asked["linear"]
    labels = [found.names[k] for k in found.y]
    for label, n, *scores in table_of({words(one.find("h2")): one for one in tree((place / "pages/linear/report.html").read_text()).iter("section")}["Label by label"])[1:]:
        of_label = [i for i, one in enumerate(labels) if one == label]
        assert int(n) == len(of_label) and scores == [f"{sum(layer[i] for i in of_label) / len(of_label):.3f}" for layer in found.scores["task"]]
    assert json.loads(said(capsys, "trees.conllu --task relation --folds 2 --seed 1 --cache cache --json --out pages"))["report"] == "pages/report.html"


@pytest.mark.parametrize("option, message", [
    ("--out file/run", "the folder file/run cannot be made or written (.*file is a file, a folder is needed); a run needs a folder it may write to: choose another out"),
    ("--out closed", "the folder closed cannot be made or written (.*closed may not be written); a run needs a folder it may write to: choose another out"),
    ("--figure closed/a.png", "--figure closed/a.png, whose folder is not there or not writable; "),
])
def test_a_place_that_cannot_be_written_is_refused_before_the_model_is_read(place, capsys, monkeypatch, option, message):
    monkeypatch.delattr("minitransfer.cli.study.load")
    (place / "file").touch()
    (place / "closed").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: "closed" not in str(path))
    assert re.search(message.replace("(", r"\(").replace(")", r"\)"), said(capsys, f"trees.conllu {option}", 1))


def test_a_picture_without_matplotlib_is_refused_before_the_model_is_read(place, capsys, monkeypatch):
    monkeypatch.delattr("minitransfer.cli.study.load")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for option in ("--out pages", "--figure a.png"):
        assert "a figure is drawn with matplotlib, which is not installed" in said(capsys, f"trees.conllu {option}", 1)


@pytest.mark.parametrize("words, message, code", [
    ("trees.conllu --folds 6 --cache cache", "folds=6 of 5 sentences; each fold is tested once and needs one", 1),
    ("trees.conllu --task Number --cache cache", "task='Number', for which these 5 sentences have 0 labels", 1),
    ("none.conllu", "no file none.conllu", 1), ("trees.conllu --figure none/a.png", "--figure none/a.png, whose folder is not there or not writable", 1),
    ("trees.conllu --cache trees.conllu", "trees.conllu: File exists; this file or folder has to be there and open to you", 1),
    ("trees.conllu --kind heads --folds 3", "--kind heads with --folds; attention heads are compared with the tree itself", 2),
    ("trees.conllu --kind heads --task pos", "--kind heads with --task; attention heads are compared with the tree itself", 2),
    ("trees.conllu --kind mix --json", "--json with --kind mix", 2),
])
def test_mistakes_are_one_line(place, capsys, words, message, code):
    assert message in said(capsys, words, code)


def test_the_bench_is_the_same_beside_transformers(data, capsys, monkeypatch, tmp_path):
    """Two rows with a few sentences each: nothing differs, and only whole measurements are kept."""
    monkeypatch.setattr(bench, "COMPARED", 4)
    monkeypatch.setattr(bench, "TREEBANK", "ud/en_ewt/validation.conllu.gz")
    monkeypatch.setattr(bench, "TABLE", tmp_path / "study.json")
    found = bench.run(["same-mini-bert"], save=True)["same-mini-bert"]
    assert found["difference"] <= 1e-6 and found["plain"] == found["ours"] and min(found["ours"]) > 0.3
    assert json.loads((tmp_path / "study.json").read_text())["same-mini-bert"] == found
    pairs = bench.run(["blimp-mini-gpt"], quick=True)["blimp-mini-gpt"]
    assert pairs["difference"] < 1e-4 and pairs["compared"] == 20 and len(pairs["pairs"]) == 11
    with pytest.raises(KeyError, match=r"no row 'pos'.*; there are pos-minilm, "):
        bench.run(["pos"])
    with pytest.raises(ValueError, match="a quick run, to be saved"):
        bench.run(quick=True, save=True)


def test_the_committed_figures_are_whole():
    """Layers, pairs and the differences from transformers of what `minitransfer bench study --save` wrote."""
    table = json.loads((bench.RESULTS / "study.json").read_text())
    assert table.keys() == bench.ROWS.keys()
    for name, row in table.items():
        if name.startswith("pos"):
            assert row["sentences"] == bench.SENTENCES and [layer["layer"] for layer in row["layers"]] == list(range(7 if name == "pos-minilm" else 5))
            assert all(max(layer["twin"][2], layer["control"][2]) < layer["score"][1] for layer in row["layers"])
        elif name.startswith("same"):
            assert row["difference"] <= 1e-6 and row["words"] > 700
        else:
            assert row["pairs"]["all"]["pairs"] == 10_000 and row["difference"] <= 1e-4 and row["compared"] == 200
