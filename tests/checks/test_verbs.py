"""doctor, why and recommend from a shell: exit codes, and that they pass on what was said."""
from __future__ import annotations

import json
import shutil

import pytest

from minitransfer import samples
from minitransfer.cli import main
from tests.adapt.small import TRAIN, bert, tokenizer


def said(capsys, *words, code=0):
    assert main(list(map(str, words))) == code
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place, tok = tmp_path_factory.mktemp("model"), tokenizer()
    bert(tok).save_pretrained(place)
    tok.save_pretrained(place)
    return place


def tsv(path, rows, head="text\tlabel"):
    path.write_text(head + "\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in rows))
    return path


def test_doctor_ends_with_1_if_something_is_wrong(capsys, tmp_path, folder):
    train, leaked = tsv(tmp_path / "train.tsv", TRAIN, "said\tmood"), tsv(tmp_path / "held.tsv", TRAIN[:5], "said\tmood")
    assert "0 wrong" not in said(capsys, "doctor", folder)
    told = json.loads(said(capsys, "doctor", folder, train, "--text", "said", "--label", "mood", "--strategy", "lora:2", "--json"))
    assert told["ok"] and {one["check"] for one in told["findings"]} >= {"label set", "frozen", "truncation"}
    out = said(capsys, "doctor", folder, train, "--validation", leaked, "--text", "said", "--label", "mood", "--max-length", 7, code=1)
    assert "5 of 5 validation rows" in out and "longer than 7 tokens" in out


def test_why_and_recommend(capsys, tmp_path):
    for name, seed in (("a", 0), ("b", 3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps({"settings": {"seed": seed, "progress": bool(seed)}}))
    assert "cause: seed of the run: 0 and 3" in said(capsys, "why", tmp_path / "a", tmp_path / "b")
    assert json.loads(said(capsys, "why", tmp_path / "a", tmp_path / "b", "--json"))["causes"] == [{"kind": "seed", "name": "of the run", "a": 0, "b": 3}]
    shutil.rmtree(tmp_path / "b")
    assert main(["why", str(tmp_path / "a"), str(tmp_path / "b")]) == 1 and "holds no manifest.json" in capsys.readouterr().err
    assert "1. last:2\n" in said(capsys, "recommend", 2000)
    told = json.loads(said(capsys, "recommend", "--train", samples.path("reviews.train.tsv"), "--unlabelled", 3, "--json"))
    assert told["labels"] == 591 and told["advice"][0]["strategy"] == "features" and told["before"]
