"""The doctor: each planted fault is found and named, healthy setups raise no alarm, and nothing of the user's is touched."""
from __future__ import annotations

import copy
import re
from dataclasses import replace
from inspect import unwrap

import numpy as np
import pytest
import torch
from torch import nn

import minitransfer as mt
from minitransfer.checks.doctor.rows import normal
from minitransfer.nn.heads import IGNORE
from minitransfer.nn.model import Model
from minitransfer.objectives import Causal, Masked
from minitransfer.tasks import SpanTask, TokenTask
from minitransfer.tasks.base import supervised
from minitransfer.text import Tokenizer, read_rows
from minitransfer.training import param_groups
from minitransfer.transfer import add_lora, freeze, lora
from minitransfer.weights.report import LoadReport
from tests.adapt.small import HELD_OUT, TRAIN, bert, gpt, rows, tokenizer

TOK = tokenizer()
TEXTS = [row["text"] for row in TRAIN]
TAGGED = [{"words": row["text"].split(), "tags": ["B-X" if word in ("film", "book") else "O" for word in row["text"].split()]} for row in TRAIN]
ANSWERED = [{"question": "what film was it", "context": row["text"], "answers": {"text": [row["text"].split()[-1]], "answer_start": [row["text"].rindex(" ") + 1]}}
            for row in TRAIN]


def named(found, result="wrong"):
    return {one.check for one in found.findings if one.result == result}


def as_kind(model, kind):
    model.__class__ = kind
    return model


# ---- faults of a model -----------------------------------------------------------------------------------------------------------------------------------

class SeesPadding(Model):
    def forward(self, input_ids, attention_mask=None, **more):
        return super().forward(input_ids, attention_mask=None, **more)


class CountsColumns(Model):
    """Positions by column, whatever the mask says."""

    def body(self, input_ids, attention_mask=None, token_type_ids=None, position_ids=None, *more, **others):
        return super().body(input_ids, attention_mask, token_type_ids, torch.arange(input_ids.shape[1])[None], *more, **others)


class MixesRows(Model):
    def body(self, *given, **named):
        out = super().body(*given, **named)
        return replace(out, x=out.x + 0.1 * out.x.mean((0, 1)))


class PacksBlindly(Model):
    """Documents of one row are one text."""

    def body(self, input_ids, attention_mask=None, token_type_ids=None, position_ids=None, document_ids=None, *more, **named):
        return super().body(input_ids, attention_mask, token_type_ids, position_ids, None, *more, **named)


class LooksAhead(Model):
    def body(self, *given, **named):
        out = super().body(*given, **named)
        return replace(out, x=out.x + 0.1 * out.x.roll(-1, 1))


@pytest.mark.parametrize("make, kind, head, check, fine", [
    (bert, SeesPadding, "masked", "padding", {"packing", "batch composition"}),
    (bert, CountsColumns, "masked", "padding side", {"padding", "batch composition"}),
    (gpt, CountsColumns, "causal", "padding side", {"padding", "causal leak"}),
    (bert, MixesRows, "masked", "batch composition", set()),
    (bert, PacksBlindly, "masked", "packing", {"padding", "padding side", "batch composition"}),
    (gpt, LooksAhead, "causal", "causal leak", {"batch composition"})])
def test_a_model_that_reads_wrongly(make, kind, head, check, fine):
    found = mt.doctor(as_kind(make(TOK, head), kind), TOK, TEXTS)
    assert check in named(found) and not found.ok
    assert fine <= named(found, "ok") and not fine & named(found)


def test_positions_of_columns_are_wrong_in_packed_rows_too():
    assert named(mt.doctor(as_kind(bert(TOK, "masked"), CountsColumns), TOK, TEXTS)) == {"padding side", "packing"}


def untied(model, tok):
    table = nn.Embedding.from_pretrained(model.embed.tokens.weight.detach().clone(), freeze=False)
    model.embed.tokens = table                                                  # by hand: the head still holds the old one
    return model, tok


def damaged(model, tok):
    with torch.no_grad():
        model.blocks[1].attn.q_proj.weight[2, 3] = float("nan")
    return model, tok


def moved_ids(model, tok):
    """Saved beside a tokenizer of other texts that has as many tokens."""
    return model, Tokenizer.train(["zzz yyy xxx"] * 9, vocab_size=tok.vocab_size, max_len=29, min_count=1)


def other_special(model, tok):
    model.source_config = {"pad_token_id": tok.pad_id, "eos_token_id": None, "mask_token_id": tok.mask_id + 1}
    return model, tok


@pytest.mark.parametrize("plant, check, words", [
    (untied, "tied weights", "two tensors"), (damaged, "weights", "blocks.1.attn.q_proj.weight"), (moved_ids, "vocabulary", "have another id"),
    (other_special, "vocabulary", "mask is "), (lambda m, t: (m, Tokenizer.train(TEXTS, vocab_size=300, max_len=29, min_count=1)), "vocabulary", "rows")])
def test_a_model_and_a_tokenizer_that_do_not_fit(tmp_path, plant, check, words):
    TOK.save_pretrained(tmp_path)
    model, tok = plant(bert(TOK, "masked"), TOK)
    model.load_report = LoadReport(str(tmp_path))
    found = mt.doctor(model, tok, TEXTS)
    assert check in named(found) and any(words in one.seen for one in found.problems if one.check == check), found


# ---- faults of training ----------------------------------------------------------------------------------------------------------------------------------

def frozen_adapter():
    model = bert(TOK)
    add_lora(model, 3)
    freeze(model, "blocks")
    return {"model": model}


def silent_adapter():
    model = bert(TOK)
    add_lora(model, 3)
    for module in model.modules():
        if hasattr(module, "active"):
            module.active = False
    return {"model": model}


def frozen_in_optimizer():
    model = bert(TOK)
    groups = param_groups(model, 0.01)
    freeze(model, "embed")
    return {"model": model, "groups": groups}


def stale_gradient():
    """Frozen after a backward pass, and in the optimizer: its gradient moves it at every step."""
    given = frozen_in_optimizer()
    table = given["model"].embed.tokens.weight
    table.grad = torch.ones_like(table)
    return given


def frozen_by_word():
    model = bert(TOK)
    model.blocks[0].requires_grad = False
    return {"model": model}


def stray_in_optimizer():
    model = bert(TOK)
    groups = param_groups(model, 0.01)
    model.set_head("sequence", ["neg", "pos"], seed=3)                          # the optimizer still holds the head from before
    return {"model": model, "groups": groups}


def mean_loss(model, batch, generator):
    loss, n = Causal()(model, batch, generator)
    return loss / n, n


def dead_loss(model, batch, generator):
    loss, n = supervised(model, batch, generator)
    return loss.detach() + 0 * model.embed.tokens.weight.sum(), n


@pytest.mark.parametrize("plant, data, checks", [
    (frozen_adapter, TRAIN, {"gradients"}), (silent_adapter, TRAIN, {"gradients"}), (frozen_in_optimizer, TRAIN, {"optimizer"}),
    (stale_gradient, TRAIN, {"optimizer", "frozen"}), (frozen_by_word, TRAIN, {"frozen"}), (stray_in_optimizer, TRAIN, {"optimizer"}),
    (lambda: {"model": gpt(TOK, "causal"), "objective": mean_loss}, TEXTS, {"accumulation"}),
    (lambda: {"model": bert(TOK), "objective": dead_loss}, TRAIN, {"gradients"})])
def test_training_that_is_wrong(plant, data, checks):
    given = plant()
    found = mt.doctor(given.pop("model"), TOK, data, **given)
    assert named(found) == checks, found


class HidesMore(Masked):
    def draw(self, ids, keep, generator):
        self.probability = 0.3
        found = super().draw(ids, keep, generator)
        self.probability = 0.15
        return found


class HidesAll(Masked):
    """Never a random token, none left as it is."""

    def draw(self, ids, keep, generator):
        inputs, labels = super().draw(ids, keep, generator)
        return inputs.masked_fill(labels != IGNORE, self.mask_id), labels


class HidesSpecial(Masked):
    def __init__(self, tok):
        super().__init__(tok)
        self.special[:] = False


class AsksOthers(Masked):
    def draw(self, ids, keep, generator):
        inputs, labels = super().draw(ids, keep, generator)
        return inputs, labels.where(labels == IGNORE, (labels + 1) % len(self.special))


@pytest.mark.parametrize("kind, words", [(HidesMore, "15.0% are meant"), (HidesAll, "80.0% are meant"), (HidesSpecial, "special tokens or padding"),
                                         (AsksOthers, "hold another id")])
def test_masks_that_are_drawn_wrongly(kind, words):
    found = mt.doctor(bert(TOK, "masked"), TOK, TEXTS, objective=kind(TOK))
    assert named(found) == {"mask statistics"} and words in found.problems[0].seen


# ---- faults of data --------------------------------------------------------------------------------------------------------------------------------------

def loud(row):
    return row | {"text": "  " + row["text"].upper().replace(" ", "  ")}


def shifted(self, *given):
    batches = TokenTask.batches(self, *given)
    batches.targets = [[(place + 1, label) for place, label in row] for row in batches.targets]
    return batches


ShiftedTask = type("ShiftedTask", (TokenTask,), {"batches": shifted})
ShiftedSpans = type("ShiftedSpans", (SpanTask,), {"target": lambda self, row, window: tuple(place - 1 for place in SpanTask.target(self, row, window))})
HALF = [row for row in TRAIN if row["label"] == "pos"]


@pytest.mark.parametrize("task, data, held_out, checks, words", [
    (None, TRAIN, [loud(row) for row in TRAIN[:3]] + HELD_OUT[:9], {"leak"}, "3 of 12 validation rows are also training rows"),
    (None, TRAIN + [loud(row) for row in TRAIN[:20]], None, {"duplicates"}, "20 of 80 training rows repeat"),
    (None, TRAIN + [loud(row) | {"label": "neg"} for row in HALF[:6]], None, {"contradictions"}, "6 texts have several rows"),
    (None, HALF, None, {"classes"}, "all training decisions have the label 'pos'"),
    (None, TRAIN, [*HELD_OUT, {"text": "a new one", "label": "mixed"}], {"classes", "label set"}, "validation has 'mixed'"),
    (None, [row | {"label": row["label"].upper()} for row in TRAIN], None, {"label set"}, "no 'NEG', 'POS'"),
    (None, [*TRAIN, {"text": "one more", "label": None}], None, {"labels"}, "has no label"),
    (None, [*TRAIN, {"text": None, "label": "pos"}], [*HELD_OUT, {"text": float("nan"), "label": "neg"}], {"texts"}, "1 of 21 validation rows have none (first row 20)"),
    (None, [row | {"text": " ".join([row["text"]] * 3)} for row in TRAIN], None, {"truncation"}, "longer than 29 tokens"),
    (None, [row | {"text": "жд " + row["text"].replace("a", "ж")} for row in TRAIN], None, {"unknown tokens"}, "are unknown"),
    ("regression", [row | {"label": 3.0} for row in TRAIN], None, {"targets"}, "100% of the training numbers are 3"),
    ("regression", [row | {"label": 1000 + i / 99} for i, row in enumerate(TRAIN)], None, {"targets"}, "their deviation is"),
    ("token", [row | {"tags": row["tags"][:-1]} for row in TAGGED], None, {"labels"}, "tags"),
    (ShiftedTask(), TAGGED, None, {"label alignment"}, "do not stand at the first piece"),
    (ShiftedSpans(), ANSWERED, None, {"label alignment"}, "read otherwise, such as"),
    ("token", [row | {"words": [*row["words"], "\u200b"], "tags": [*row["tags"], "O"]} for row in TAGGED], None, {"label alignment"}, "have no piece"),
    ("span", [row | {"answers": {"text": row["answers"]["text"], "answer_start": [0]}} for row in ANSWERED], None, {"labels"}, "not in the context where it says")])
def test_data_that_is_wrong(task, data, held_out, checks, words):
    model = bert(TOK, "sequence" if task is None else "masked")
    found = mt.doctor(model, TOK, data, held_out, task=task)
    assert named(found) == checks and any(words in one.seen for one in found.problems), found
    assert all(one.do and one.tried for one in found.problems)


def test_copies_are_told_by_their_letters_and_digits():
    assert normal("  Café,\tau-lait (2)! ") == normal("CAFE AU LAIT 2") == "cafe au lait 2" and normal("?!") == ""


def test_test_rows_among_training_and_validation_rows():
    found = mt.doctor(bert(TOK), TOK, TRAIN, HELD_OUT, [*rows(9, 7), loud(TRAIN[4]), loud(HELD_OUT[2])])
    assert [one.seen.split(" (")[0] for one in found.problems] == ["1 of 11 test rows are also training rows", "1 of 11 test rows are also validation rows"]


# ---- health ----------------------------------------------------------------------------------------------------------------------------------------------

BERT, GPT = ((lambda name=name: (Model.from_pretrained(name), Tokenizer.from_pretrained(name))) for name in ("mini-bert", "mini-gpt"))
REVIEWS = [mt.samples.path(f"reviews.{split}.tsv") for split in ("train", "validation", "test")]


@pytest.mark.parametrize("load, given, settings, tried", [
    (BERT, REVIEWS, {}, {"duplicates", "leak", "classes", "truncation", "accumulation", "gradients"}),
    (GPT, [mt.samples.path("general.txt")], {}, {"causal leak", "packing", "accumulation", "tied weights"}),
    (BERT, [mt.samples.path("tagged.conll")], {"task": "token"}, {"label alignment", "classes", "accumulation"}),
    (BERT, REVIEWS[:2], {"strategy": "lora"}, {"frozen", "gradients"}),
    (BERT, [[row | {"label": len(row["text"]) / 9} for row in read_rows(REVIEWS[0])]], {"task": "regression"}, {"targets", "accumulation"})],
    ids=["sequence", "causal", "token", "lora", "regression"])
def test_no_alarm_on_what_is_healthy(load, given, settings, tried):
    found = mt.doctor(*load(), *given, **settings)
    assert found.ok and named(found, "note") == set(), found
    assert tried <= named(found, "ok")


@pytest.mark.parametrize("task, data", [(None, TRAIN), ("token", TAGGED), (SpanTask(max_question=9, stride=4), ANSWERED), 
                                        ("multilabel", [row | {"label": [row["label"]] if i % 3 else []} for i, row in enumerate(TRAIN)]),
                                        ("similarity", [row | {"pair": other["text"], "label": i / 60} for i, (row, other) in enumerate(zip(TRAIN, rows(60, 9), strict=True))])])
def test_no_alarm_on_any_task(task, data):
    """Also where a decoder is tuned, which reads a text at its end, and with an adapter that starts as nothing."""
    found = mt.doctor((gpt if task is None else bert)(TOK, "none"), TOK, data, task=task, strategy="adapter")
    assert found.ok and "gradients" in named(found, "ok"), found


def test_nothing_of_the_users_is_touched():
    model = bert(TOK, dropout=0.1).train()
    add_lora(model, 3)
    freeze(model, "embed")
    model.blocks[0].eval()
    batch = TOK(TEXTS[:3])
    model(**batch, labels=torch.tensor([0, 1, 1])).loss.backward()
    objective = Masked(TOK)
    before = copy.deepcopy(model.state_dict()), {n: (p.requires_grad, None if p.grad is None else p.grad.clone(), p.data_ptr()) for n, p in model.named_parameters()}
    modes, state, labels = [m.training for m in model.modules()], (torch.get_rng_state(), np.random.get_state()[1].copy()), list(model.labels)
    mt.doctor(model, TOK, TRAIN, HELD_OUT)
    mt.doctor(model, TOK, TRAIN, task="sequence", strategy=lora(2, name="other"))
    mt.doctor(bert(TOK, "masked"), TOK, TEXTS, objective=objective)
    assert all(torch.equal(a, b) for a, b in zip(before[0].values(), model.state_dict().values(), strict=True))
    for name, p in model.named_parameters():
        trains, grad, at = before[1][name]
        assert p.requires_grad == trains and p.data_ptr() == at and (p.grad is None if grad is None else torch.equal(p.grad, grad))
    assert [m.training for m in model.modules()] == modes and model.labels == labels
    assert torch.equal(torch.get_rng_state(), state[0]) and np.array_equal(np.random.get_state()[1], state[1])


# ---- what it says ----------------------------------------------------------------------------------------------------------------------------------------

def test_it_prints_the_worst_first_and_what_to_do():
    found = mt.doctor(bert(TOK), TOK, HALF)
    lines = str(found).splitlines()
    assert lines[0].startswith("wrong  classes") and lines[1].strip().startswith("-> the rows may be the top") and lines[-1].startswith("1 wrong, ")
    assert found.to_dict()["ok"] is False and re.search(r"<t[dh][^>]*>classes<", found._repr_html_())


@pytest.mark.parametrize("given, message", [
    ({"model": "mini-bert"}, "give mt.Model.from_pretrained"), ({"strategy": "lora", "groups": []}, "give one of the two"),
    ({"data": TEXTS, "validation": HELD_OUT, "model": bert(TOK, "masked")}, "give data as rows"), ({"data": TRAIN, "strategy": "lroa"}, "did you mean 'lora'")])
def test_mistakes_of_the_caller(given, message):
    with pytest.raises(ValueError, match=message):
        unwrap(mt.doctor)(**{"model": bert(TOK), "tok": TOK} | given)
