"""Why two runs differ: the planted cause is the one that is named, at the step where it first shows."""
from __future__ import annotations

import json
import shutil

import pytest
import torch

import minitransfer as mt
from tests.adapt.small import HELD_OUT, QUICK, TRAIN, bert, rows, tokenizer

TOK = tokenizer()


def run(out, model=None, train=TRAIN, **settings):
    mt.finetune(bert(TOK, "none", dropout=0.1) if model is None else model, TOK, train=train, validation=HELD_OUT, out=out, **{**QUICK, "steps": 4, "batch_size": 8, **settings})
    return out


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs") / "a")


def other_weights():
    model = bert(TOK, "none", dropout=0.1)
    with torch.no_grad():
        model.blocks[0].mlp.up_proj.weight.mul_(1.01)
    return model


@pytest.mark.parametrize("changes, kind, name, step, number", [
    ({"seed": 1}, "seed", "of the run", 1, "loss"), ({"model": other_weights}, "weights", "body", 1, "loss"), ({"train": rows(60, 5)}, "data", "train", 1, "tokens"),
    ({"lr": 1e-3}, "setting", "lr", 1, "lr"), ({"steps": 6}, "setting", "steps", 3, "lr"),
    ({"batch_size": 9}, "batches", "(of other sizes or lengths, unless rows or seed differ)", 1, "tokens")])
def test_the_cause_and_the_first_step(first, tmp_path, changes, kind, name, step, number):
    made = {key: value() if callable(value) else value for key, value in changes.items()}
    found = mt.why(first, run(tmp_path / "b", **made))
    assert (found.step, found.agreed) == (step, step - 1) and number in {one.name for one in found.numbers}
    assert (found.causes[0].kind, found.causes[0].name) == (kind, name), found
    assert found.cause in str(found) and f"differ at step {step}:" in str(found)


def test_the_same_run_twice(first, tmp_path):
    """Not one of their numbers differs, and what the machine decides does not count."""
    found = mt.why(first, run(tmp_path / "b", progress=False, save_every=3))
    assert found.step is None and found.agreed == 4 and found.causes == () and "are the same up to step 4" in str(found)


def test_a_number_without_a_cause(first, tmp_path):
    shutil.copytree(first, tmp_path / "b")
    records = [json.loads(line) for line in (first / "log.jsonl").read_text().splitlines()]
    records[2]["loss"] += 1e-9
    (tmp_path / "b/log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records[:3]))
    found = mt.why(first, tmp_path / "b")
    assert (found.step, [one.name for one in found.numbers]) == (3, ["loss"]) and found.cause.startswith("a number: ") and found.ended == (4, 3)


def test_a_run_that_ended_earlier(first, tmp_path):
    shutil.copytree(first, tmp_path / "b")
    (tmp_path / "b/log.jsonl").write_text("".join(f"{line}\n" for line in (first / "log.jsonl").read_text().splitlines()[:2]))
    assert "then one ends, at step 2, and the other goes on to 4" in str(mt.why(first, tmp_path / "b"))


def test_a_folder_of_no_run(first, tmp_path):
    with pytest.raises(ValueError, match=r"holds no manifest\.json"):
        mt.why(first, tmp_path)


def test_runs_that_share_no_step(first, tmp_path):
    shutil.copytree(first, tmp_path / "b")
    records = [json.loads(line) for line in (first / "log.jsonl").read_text().splitlines()]
    (tmp_path / "b/log.jsonl").write_text("".join(json.dumps({**one, "step": 100 + one["step"]}) + "\n" for one in records))
    found = mt.why(first, tmp_path / "b")
    assert found.step is None and "logged no step in common" in str(found) and "the same up to" not in str(found)


def test_another_number_of_processes(first, tmp_path):
    shutil.copytree(first, tmp_path / "b")
    manifest = json.loads((first / "manifest.json").read_text())
    assert manifest["machine"]["processes"] == 1
    manifest["machine"]["processes"] = 2
    (tmp_path / "b/manifest.json").write_text(json.dumps(manifest))
    assert str(mt.why(first, tmp_path / "b").causes[0]) == "machine processes: 1 and 2"


@pytest.mark.parametrize("name, text, message", [
    ("log.jsonl", b"3\n{}\n", "line 1 of .*log.jsonl is no record; .*: give the log as the run left it"), ("log.jsonl", b'{"loss": 1.0}\n', "line 1 of"),
    ("log.jsonl", b'\xff\xfe\n{"step": 1}\n', "line 1 of"), ("log.jsonl", b'{"step": 1, "evaluation": 3}\n', "line 1 of"),
    ("manifest.json", b'{"settings": [1]}', r"settings=\[1\] in .*manifest.json; it is an object of names and values: give the folder as the run left it")])
def test_files_that_a_run_never_wrote(first, tmp_path, name, text, message):
    shutil.copytree(first, tmp_path / "b")
    (tmp_path / "b" / name).write_bytes(text)
    with pytest.raises(ValueError, match=message):
        mt.why(first, tmp_path / "b")
