"""The tables as a function: each cell of them, where they disagree, and a proof on real rows."""
from __future__ import annotations

import math
from inspect import unwrap
from pathlib import Path

import pytest

import minitransfer as mt
from minitransfer.checks.recommend import TABLE, Proof
from minitransfer.text import sample_rows
from minitransfer.transfer.strategies import strategy
from tests.adapt.small import HELD_OUT, QUICK, TRAIN, bert, tokenizer

RESULTS = Path(__file__).parents[2] / "docs/results.md"


def names(labels, **given):
    return [one.strategy for one in mt.recommend(given.pop("task", "sequence"), labels, **given).advice]


@pytest.mark.parametrize("labels, first, second", [
    (0, "zero_shot", None), (1, "zero_shot", None), (2, "features", "in_context"), (9, "features", "in_context"), (50, "features", "ulmfit"), (499, "features", "ulmfit"),
    (500, "features", "last:2"), (999, "features", "last:2"), (1000, "last:2", "discriminative"), (4999, "last:2", "discriminative"),
    (5000, "discriminative", "full"), (9999, "discriminative", "full"), (10000, "full", "lora"), (10**6, "full", "lora")])
def test_every_cell_of_the_tables(labels, first, second):
    """Two tables that agree come before one: at 700 and at 7,000 labels they do not, and both are named."""
    assert [*names(labels), None][:2] == [first, second]


def test_every_row_of_the_table_is_reached_with_its_reason_and_source():
    for row in TABLE:
        for labels in (row.low, row.low if row.high == math.inf else int(row.high) - 1):
            advice = next(one for one in mt.recommend("sequence", labels).advice if one.strategy == row.strategy)
            assert f"{row.why} [{row.source}]" in advice.why
        assert row.high == math.inf or row.strategy in ("features", "full") or row.strategy not in names(int(row.high))
        if row.strategy not in ("zero_shot", "in_context"):
            strategy(row.strategy)                                               # `finetune` takes it


@pytest.mark.parametrize("labels, name, table, measured", [
    (200, "features", "sst2", {"features": "61.0", "features, mean, logistic": "75.3", "logistic": "74.5"}), (200, "ulmfit", "imdb_100", {"ulmfit": "59.9", "logistic": "68.4"}),
    (2000, "lora", "sst2", {"lora": "81.8", "full": "81.4"}), (100, "lora", "imdb_100", {"lora": "52.3", "logistic": "68.4"})])
def test_its_reasons_are_what_was_measured(labels, name, table, measured):
    (lines,) = [part.splitlines() for part in RESULTS.read_text(encoding="utf-8").split("\n\n") if part.startswith(f"| {table} | trained")]
    found = {cells[1]: cells[3].split()[0] for line in lines[2:] if (cells := [cell.strip() for cell in line.split("|")])}
    told = " ".join(next(one for one in mt.recommend("sequence", labels).advice if one.strategy == name).why)
    assert {row: found[row] for row in measured} == measured and all(figure in told for figure in measured.values())


def test_what_a_task_and_a_card_change():
    told = mt.recommend("token", 20_000)
    assert (told.head, told.advice[0].settings) == ("token", {"lr": 3e-5, "batch_size": 32, "epochs": 4}) and names(0, task="token") == ["features"]
    assert mt.recommend("summarisation", 5000).head == "seq2seq" and names(5000, task="generation") == ["full", "lora"] and names(50, task="generation") == ["lora"]
    small = mt.recommend("sequence", 20_000, gpu_gb=8, parameters=1_000_000_000)
    assert [one.strategy for one in small.advice] == ["lora"] and "more than 70% of 8 GB" in small.advice[0].why[-1] and "nf4" not in str(small)
    assert "nf4" in str(mt.recommend("sequence", 20_000, gpu_gb=8, parameters=7_000_000_000)) and names(20_000, gpu_gb=80, parameters=1_000_000_000)[0] == "full"
    assert "from 100 MB on" in mt.recommend("sequence", 700, unlabelled_mb=120).before and "task-adaptive" in mt.recommend("sequence", 700, unlabelled_mb=3).before


def test_a_proof_trains_both_and_says_what_can_be_said(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tok = tokenizer()
    model = bert(tok, "none")
    before = {name: p.clone() for name, p in model.named_parameters()}
    found = mt.recommend(labels=700, prove=True, model=model, tok=tok, train=TRAIN, validation=HELD_OUT, rows=40, **{**QUICK, "epochs": 2})
    proof = found.proof
    assert list(proof.found) == ["features", "last:2"] and (proof.trained, proof.held_out, proof.metric) == (40, 20, "accuracy") and 0 <= proof.p <= 1
    alone = mt.finetune(bert(tok, "none"), tok, train=sample_rows(TRAIN, 40, 0, "label"), validation=HELD_OUT, strategy="last:2", **{**QUICK, "epochs": 2}).metrics
    assert proof.found["last:2"] == (alone["accuracy"], alone["accuracy_low"], alone["accuracy_high"])
    assert all((before[name] == p).all() for name, p in model.named_parameters()) and "tried on 40 rows" in str(found)
    held = mt.recommend(train=TRAIN, prove=True, model=model, tok=tok, rows=30, labels=700, **{**QUICK, "steps": 1}).proof
    assert (held.trained, held.held_out) == (24, 6)


@pytest.mark.parametrize("found, p, better", [
    ({"a": (0.9, 0.85, 0.95), "b": (0.7, 0.6, 0.8)}, None, "a"), ({"a": (0.8, 0.7, 0.9), "b": (0.95, 0.89, 0.99)}, None, None),
    ({"a": (0.8, 0.7, 0.9), "b": (0.95, 0.89, 0.99)}, 0.01, "b"), ({"a": (0.9, 0.85, 0.95), "b": (0.7, 0.6, 0.8)}, 0.2, None)])
def test_what_a_proof_says(found, p, better):
    proof = Proof("accuracy", 10, 10, found, p)
    assert proof.better == better and (f"{better} was better here" if better else "no difference can be told") in str(proof)


@pytest.mark.parametrize("given, message", [
    ({"task": "sequnce", "labels": 3}, "did you mean 'sequence'"), ({}, "give labels="), ({"labels": -1}, "0 or more"), ({"labels": 1.5}, "whole number"),
    ({"labels": float("nan")}, "whole number"), ({"labels": 3, "gpu_gb": -1}, "gpu_gb=-1"), 
    ({"labels": 700, "prove": True}, "give all three"), ({"labels": 0, "prove": True, "model": None}, "give all three")])
def test_mistakes_of_the_caller(given, message):
    with pytest.raises(ValueError, match=message):
        unwrap(mt.recommend)(**given)
