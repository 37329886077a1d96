"""Raw text to a trained body: what is held out, what is refused, what is saved, what adaptation reports."""
from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import minitransfer as mt
from minitransfer.objectives import Masked
from minitransfer.text import PackedBatches, Tokenizer, tokenize_corpus
from minitransfer.training import adapt, pretrain
from minitransfer.training.pretrain import hold_out, unigram_entropy

from .small import bert, gpt, same, weights

WORDS = "river stone cloud bread wheel night paper green glass horse table light".split()
TEXTS = [" ".join([WORDS[i % 7]] * (5 + i % 9)) for i in range(400)]              # each text says one word again and again
GENERAL = [" ".join([WORDS[5 + i % 7]] * (5 + i % 9)) for i in range(60)]          # the same about other words, two of them shared
QUICK = {"progress": False, "precision": "fp32", "length": 16, "batch_size": 8}


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return Tokenizer.train(TEXTS + GENERAL, kind="wordpiece", vocab_size=60)


@pytest.fixture(scope="module")
def decoder_tok() -> Tokenizer:
    return Tokenizer.train(TEXTS + GENERAL, kind="byte_bpe", vocab_size=330)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_a_body_learns_what_frequencies_do_not_tell_and_is_saved_whole(kind, tok, decoder_tok, tmp_path):
    model = bert(vocab_size=tok.vocab_size) if kind == "masked" else gpt(vocab_size=decoder_tok.vocab_size)
    tok = tok if kind == "masked" else decoder_tok
    objective = Masked(tok, 0.3) if kind == "masked" else "causal"
    result = pretrain(model, tok, TEXTS, objective, out=tmp_path / "run", steps=120, lr=1e-2, **QUICK)
    assert result.metrics["loss"] < 0.9 * result.metrics["unigram_loss"]
    assert result.metrics["perplexity"] == pytest.approx(math.exp(result.metrics["loss"]))
    for folder in ("model", "best", "last"):
        again, its_tok = mt.Model.from_pretrained(tmp_path / "run" / folder), Tokenizer.from_pretrained(tmp_path / "run" / folder)
        assert same(weights(again), weights(model)) and again.head_name == kind and its_tok.fingerprint == tok.fingerprint


@pytest.mark.slow
def test_one_epoch_unless_told_otherwise(tok):
    result = pretrain(bert(vocab_size=tok.vocab_size), tok, TEXTS, **QUICK)
    rows = PackedBatches(tokenize_corpus(tok, TEXTS), tok, 16, 8).n_rows
    assert result.stopped == "epochs" and result.steps == math.ceil((rows - rows // 100) / 8)


def test_held_out_rows_are_one_in_a_hundred_never_trained_on_and_always_the_same(tok):
    cache = tokenize_corpus(tok, TEXTS)
    splits = []
    for seed in (0, 1):
        packed = PackedBatches(cache, tok, 16, 8, seed=seed)
        training, held = hold_out(packed)
        seen = np.sort(np.concatenate([training.numbers, held.numbers]))
        assert np.array_equal(seen, np.arange(packed.n_rows)) and len(held.numbers) == packed.n_rows // 100 > 1
        assert sum(len(training[k]["input_ids"]) for k in range(len(training))) == len(training.numbers)
        epochs = [torch.cat([training[e * len(training) + k]["input_ids"] for k in range(len(training))]) for e in (0, 1)]
        rows = [sorted(map(tuple, epoch.tolist())) for epoch in epochs]
        wanted = sorted(map(tuple, packed.rows(training.numbers)["input_ids"].tolist()))
        assert rows[0] == rows[1] == wanted and not torch.equal(*epochs)              # every row once an epoch, in another order
        splits.append(held.numbers)
    assert np.array_equal(*splits)


def test_held_out_rows_are_at_most_two_thousand(tok):
    packed = PackedBatches(tokenize_corpus(tok, TEXTS), tok, 16, 8)
    packed.plan = np.zeros((300_001, 2), np.int64)
    training, held = hold_out(packed)
    assert len(held.numbers) == 2000 and len(training.numbers) == 298_001


def test_the_unigram_loss_is_the_entropy_of_the_frequencies(tok):
    cache = tokenize_corpus(tok, TEXTS)
    ids = [i for text in TEXTS for i in tok.encode(text, specials=False)]
    wanted = -sum(n / len(ids) * math.log(n / len(ids)) for n in np.unique(ids, return_counts=True)[1])
    assert unigram_entropy(cache, tok.vocab_size, chunk=101) == pytest.approx(wanted, abs=1e-12)


def test_the_same_masks_at_every_evaluation_and_a_given_validation_text(tok):
    settings = QUICK | {"steps": 4, "lr": 1e-12, "eval_every": 2, "best": None}
    result = pretrain(bert(vocab_size=tok.vocab_size, dropout=0.5), tok, TEXTS, validation=GENERAL, **settings)
    first, second = [one["evaluation"] for one in result.history if "evaluation" in one]
    assert first["targets"] == second["targets"] and first["loss"] == pytest.approx(second["loss"], abs=1e-6)
    rows = PackedBatches(tokenize_corpus(tok, GENERAL), tok, 16, 8).n_rows
    assert abs(first["targets"] / (rows * 13) - 0.15) < 0.05                        # all of the given text is asked


def test_what_does_not_fit_is_refused_before_training(tok, decoder_tok, tmp_path):
    def message(model, tokenizer, corpus=TEXTS, objective="masked", **settings) -> str:
        with pytest.raises((ValueError, KeyError)) as error:
            pretrain(model, tokenizer, corpus, objective, out=tmp_path / "run", **(QUICK | {"steps": 1} | settings))
        assert not (tmp_path / "run").exists()
        return str(error.value)

    fits = bert(vocab_size=tok.vocab_size)
    assert f"a tokenizer of {tok.vocab_size} tokens and a model with 43 rows" in message(bert(), tok)
    assert f"model.resize_vocabulary({tok.vocab_size})" in message(bert(), tok)
    assert "length=32; this model reads at most 31 tokens" in message(fits, tok, length=32)
    assert 'a model with head="masked"; this objective trains a causal head' in message(fits, tok, objective="causal")
    assert 'a model with head="sequence"; this objective trains a masked head' in message(bert(vocab_size=tok.vocab_size).set_head("sequence", ["a", "b"]), tok)
    assert "the masked objective for a body with causal=True" in message(gpt(vocab_size=tok.vocab_size).set_head("masked"), tok)
    assert "objective='next'; it is one of masked, causal, span, denoise, replaced, or an object" in message(fits, tok, objective="next")
    assert "a tokenizer without a mask token" in message(bert(vocab_size=decoder_tok.vocab_size), decoder_tok)
    assert "a corpus that fills 1 row of 16 tokens; two are needed" in message(fits, tok, TEXTS[:1])
    assert "holds no text" in message(fits, tok, [])
    assert "was tokenised by another tokenizer" in message(fits, tok, tokenize_corpus(decoder_tok, TEXTS))
    assert "no setting is called 'learning_rate'" in message(fits, tok, learning_rate=1.0)


def test_a_binary_corpus_is_refused(tok, tmp_path):
    path = tmp_path / "binary.txt"
    path.write_bytes(bytes(range(256)) * 4)
    with pytest.raises(ValueError, match="binary data"):
        pretrain(bert(vocab_size=tok.vocab_size), tok, path, steps=1, **QUICK)


def test_pretraining_goes_on_after_ctrl_c_and_notices_another_corpus(tok, tmp_path, ctrl_c):
    whole, model, again = (bert(vocab_size=tok.vocab_size) for _ in range(3))
    settings = QUICK | {"steps": 8, "eval_every": 3}
    pretrain(whole, tok, TEXTS, **settings)
    objective, steps = Masked(tok), []

    def pressed(model, batch, generator):
        steps.append(model.training)
        if sum(steps) == 4:                                                      # evaluations ask the objective too
            ctrl_c()
        return objective(model, batch, generator)

    assert pretrain(model, tok, TEXTS, pressed, out=tmp_path / "run", **settings).steps == 4
    with pytest.raises(ValueError, match=r"(?s)data batches: .*data corpus: .* then"):
        pretrain(bert(vocab_size=tok.vocab_size), tok, TEXTS[::-1], out=tmp_path / "run", resume=True, **settings)
    assert pretrain(again, tok, TEXTS, out=tmp_path / "run", resume=True, **settings).stopped == "steps"
    assert same(weights(whole), weights(again))


@pytest.mark.slow
def test_adaptation_reports_the_domain_and_the_general_text_before_and_after(tok, tmp_path):
    model = bert(vocab_size=tok.vocab_size)
    general = pretrain(model, tok, GENERAL * 5, Masked(tok, 0.3), steps=80, lr=1e-2, **QUICK)
    result = adapt(model, tok, TEXTS, Masked(tok, 0.3), general=GENERAL, out=tmp_path / "run", steps=80, lr=5e-3, **QUICK)
    assert result.before.keys() == result.after.keys() == {"loss", "perplexity", "targets", "unigram_loss", "general_loss"}
    assert result.after["loss"] < result.before["loss"] - 0.3 and result.after["general_loss"] > result.before["general_loss"] + 0.3
    assert str(general).startswith(f"loss {general.metrics['loss']:.6g}, perplexity ") and f"; 80 steps, {general.tokens:,} tokens, " in str(general)
    assert f"general_loss {result.before['general_loss']:.6g} -> {result.after['general_loss']:.6g};" in str(result) and repr(result) == str(result)
    assert general.before == {} and result.after["loss"] == pytest.approx(result.best["value"])
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["before"] == result.before and manifest["after"] == result.after


def test_adaptation_is_slow_and_takes_the_objective_of_the_head(decoder_tok):
    model = gpt(vocab_size=decoder_tok.vocab_size)
    result = adapt(model, decoder_tok, TEXTS, steps=5, log_every=1, warmup=0, schedule="constant", **QUICK)
    assert [one["lr"] for one in result.history if "lr" in one] == [1e-4] * 5
    assert result.after["loss"] < result.before["loss"]
