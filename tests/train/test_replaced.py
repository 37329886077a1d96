"""Replaced tokens: labels by hand, the reference library's losses and gradients on the same batch, resuming, and what is refused."""
from __future__ import annotations

import pytest
import torch
import transformers

import minitransfer as mt
from minitransfer.nn.heads import IGNORE
from minitransfer.objectives import Masked, Replaced, replaced
from minitransfer.text import Tokenizer
from minitransfer.training import adapt, pretrain

from .small import bert, gpt, same, weights
from .test_pretrain import QUICK, TEXTS

ELECTRA = {"pooler": False, "head_activation": "gelu", "classifier": "dense", "classifier_activation": "gelu"}


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return Tokenizer.train(TEXTS, kind="wordpiece", vocab_size=60)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def discriminator(tok: Tokenizer, **changes) -> mt.Model:
    return bert(vocab_size=tok.vocab_size, **(ELECTRA | changes)).set_head("replaced")


def pair(tok: Tokenizer, share: float = 0.4, **settings) -> tuple[mt.Model, Replaced]:
    model = discriminator(tok)
    return model, Replaced(tok, mt.Model(replaced.smaller(model.config, share), "masked", seed=1), **settings)


def test_the_generator_is_a_share_of_the_model_with_its_embeddings(tok):
    model, objective = pair(tok)
    c = objective.generator.config
    assert (c.d_model, c.n_heads, c.d_head, c.d_ff, c.embed_width, c.n_layers, c.max_len) == (8, 2, 4, 12, 20, 3, 31)
    assert replaced.smaller(model.config, 1) == model.config
    before = sum(p.numel() for p in model.parameters())
    with objective.inside(model):
        names = dict(model.named_parameters())
        tables = {name: p.numel() for name, p in objective.generator.embed.named_parameters() if "norm" not in name and "widen" not in name}
        assert objective.generator.embed.tokens is model.embed.tokens and not any(name.startswith("generator.embed.t") for name in names)
        assert sum(p.numel() for p in names.values()) == before + sum(p.numel() for p in objective.generator.parameters()) - sum(tables.values())
        assert set(tables) == {"tokens.weight", "positions.weight", "types.weight"}
    assert not hasattr(model, "generator") and sum(p.numel() for p in model.parameters()) == before


def test_labels_by_hand_on_a_planted_sample(tok, monkeypatch):
    """Three positions are hidden; the generator gets the second one right."""
    model, objective = pair(tok)
    ids, seen = torch.tensor([[2, 10, 11, 12, 3], [2, 13, 14, 15, 3]]), {}
    targets = torch.full_like(ids, IGNORE)
    for row, t in ((0, 1), (0, 3), (1, 2)):
        targets[row, t] = ids[row, t]
    monkeypatch.setattr(Masked, "draw", lambda *_: ("not read", targets))
    monkeypatch.setattr(replaced, "sample", lambda logits, draws: torch.tensor([20, 12, 21]))
    monkeypatch.setattr(replaced, "ask_head", lambda model, batch, filled, labels: seen.update(filled=filled, labels=labels) or (torch.ones(()), 10))
    body = objective.generator.body
    monkeypatch.setattr(objective.generator, "body", lambda input_ids: seen.update(hidden=input_ids) or body(input_ids))
    (_, m), (_, n) = objective.terms(model, {"input_ids": ids}, torch.Generator())
    assert (m, n) == (3, 10)
    hide = tok.mask_id
    assert seen["hidden"].tolist() == [[2, hide, 11, hide, 3], [2, 13, hide, 15, 3]]
    assert seen["filled"].tolist() == [[2, 20, 11, 12, 3], [2, 13, 21, 15, 3]]
    assert seen["labels"].tolist() == [[0, 1, 0, 0, 0], [0, 0, 1, 0, 0]]


def test_a_sample_follows_the_softmax():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    drawn = replaced.sample(logits.expand(40_000, -1), torch.Generator().manual_seed(0)).bincount(minlength=4) / 40_000
    assert (drawn - logits.softmax(-1)).abs().max() < 0.01


def references(model: mt.Model, objective: Replaced, folder):
    """The reference library's generator and discriminator with these weights, the tables shared."""
    model.save_pretrained(folder / "d")
    objective.generator.save_pretrained(folder / "g")
    d = transformers.ElectraForPreTraining.from_pretrained(folder / "d", attn_implementation="eager")
    g = transformers.ElectraForMaskedLM.from_pretrained(folder / "g", attn_implementation="eager")
    for table in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        setattr(g.electra.embeddings, table, getattr(d.electra.embeddings, table))
    g.generator_lm_head.weight = d.electra.embeddings.word_embeddings.weight
    return d.eval(), g.eval()


def test_loss_and_gradients_are_the_sum_of_the_reference_s_two(tok, tmp_path, monkeypatch):
    model, objective = pair(tok, probability=0.3)
    objective.share_tables(model)
    noise = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in dict.fromkeys([*model.parameters(), *objective.generator.parameters()]):
            p.add_(torch.empty_like(p).normal_(0, 0.1, generator=noise))
    d, g = references(model, objective, tmp_path)
    ids = torch.randint(5, tok.vocab_size, (3, 23), generator=noise)
    keep = torch.arange(23) < torch.tensor([[23], [11], [17]])
    seen, ask, draw = {}, replaced.ask_head, Masked.draw
    monkeypatch.setattr(replaced, "ask_head", lambda model, batch, filled, labels: seen.update(filled=filled, labels=labels) or ask(model, batch, filled, labels))
    monkeypatch.setattr(Masked, "draw", lambda *given: seen.setdefault("drawn", draw(*given)))
    model.eval()
    with objective.inside(model):
        total, n = objective(model, {"input_ids": ids, "attention_mask": keep.long()}, torch.Generator().manual_seed(3))
    targets = seen["drawn"][1]
    hidden = ids.masked_fill(targets != IGNORE, tok.mask_id)
    assert n == int(keep.sum()) and 0 < int(seen["labels"].sum()) < int((targets != IGNORE).sum()) + 1
    want = g(hidden, attention_mask=keep, labels=targets).loss + 50 * d(seen["filled"], attention_mask=keep, labels=seen["labels"]).loss
    assert abs(total.item() / n - want.item()) <= 1e-5 * max(1, want.item())
    (total / n).backward()
    want.backward()
    for ours, theirs in ((model.embed.tokens, d.electra.embeddings.word_embeddings), (model.embed.positions, d.electra.embeddings.position_embeddings),
                         (model.embed.types, d.electra.embeddings.token_type_embeddings), (objective.generator.embed.widen, g.electra.embeddings_project),
                         (objective.generator.head.transform.dense, g.generator_predictions.dense), (model.head.answer, d.discriminator_predictions.dense_prediction)):
        grad = theirs.weight.grad
        assert (ours.weight.grad - grad).abs().max() <= 1e-5 * max(1, float(grad.abs().max())) and grad.abs().max() > 0


def test_gradients_reach_the_shared_table_from_both_and_the_sampling_passes_none(tok):
    model, objective = pair(tok, probability=0.3)
    ids = torch.randint(5, tok.vocab_size, (3, 17), generator=torch.Generator().manual_seed(0))
    objective.share_tables(model.eval())
    objective.generator.eval()
    table, own = model.embed.tokens.weight, [p for name, p in objective.generator.named_parameters() if name.startswith("blocks.")]

    def gradients(weigh):
        """Of the table and the generator's blocks; the same draws every time."""
        (masked, _), (found, _) = objective.terms(model, {"input_ids": ids}, torch.Generator().manual_seed(0))
        return torch.autograd.grad(weigh(masked, found), [table, *own], allow_unused=True)
    masked, found, both = gradients(lambda m, r: m), gradients(lambda m, r: r), gradients(lambda m, r: m + r)
    assert bool((masked[0] != 0).any()) and bool((found[0] != 0).any()) and torch.allclose(both[0], masked[0] + found[0], atol=1e-6)
    assert all(grad is None for grad in found[1:]) and all(grad is not None for grad in masked[1:])


def test_a_stopped_run_goes_on_to_the_same_bits_and_both_models_are_saved(tok, tmp_path, ctrl_c):
    settings = QUICK | {"steps": 6, "eval_every": 3, "best": None}
    (whole, first), (model, second), (again, third) = (pair(tok) for _ in range(3))
    pretrain(whole, tok, TEXTS, first, **settings)
    steps, ask = [], model.body

    def counted(*args, **kwargs):
        steps.append(model.training)
        if sum(steps) == 4:                                                      # evaluations ask the model too
            ctrl_c()
        return ask(*args, **kwargs)
    model.body = counted
    assert pretrain(model, tok, TEXTS, second, out=tmp_path / "run", **settings).steps == 4
    other = discriminator(tok)
    with pytest.raises(ValueError, match=r"data replaced: 0\.15 masked, weight 50, .* then, 0\.15 masked, weight 25, .* now"):
        pretrain(other, tok, TEXTS, Replaced(tok, pair(tok)[1].generator, weight=25), out=tmp_path / "run", resume=True, **settings)
    result = pretrain(again, tok, TEXTS, third, out=tmp_path / "run", resume=True, **settings)
    assert result.steps == 6 and set(result.metrics) == {"loss", "masked_loss", "replaced_loss", "perplexity", "targets", "unigram_loss"}
    assert result.metrics["loss"] == pytest.approx(result.metrics["masked_loss"] + 50 * result.metrics["replaced_loss"])
    assert same(weights(whole), weights(again)) and same(weights(first.generator), weights(third.generator))
    assert not same(weights(first.generator), weights(pair(tok)[1].generator))
    folder = tmp_path / "run" / "model"
    for made, kept in ((mt.Model.from_pretrained(folder), again), (mt.Model.from_pretrained(folder / "generator"), third.generator)):
        assert same(weights(made), weights(kept)) and made.head_name == kept.head_name
    assert transformers.ElectraForPreTraining.from_pretrained(folder).num_parameters() == sum(p.numel() for p in again.parameters())
    assert Tokenizer.from_pretrained(folder / "generator").fingerprint == tok.fingerprint


@pytest.mark.slow
def test_both_learn(tok):
    model, objective = pair(tok, share=1, probability=0.3)
    result = pretrain(model, tok, TEXTS, objective, steps=120, lr=1e-2, best=None, **QUICK)
    assert result.metrics["masked_loss"] < 0.9 * result.metrics["unigram_loss"]
    assert result.metrics["replaced_loss"] < 0.5 < result.history[0]["loss"] / 50


def test_the_name_alone_makes_a_generator(tok):
    result = pretrain(discriminator(tok), tok, TEXTS[:40], "replaced", steps=1, **QUICK)
    assert result.metrics["masked_loss"] > 1 and 0 < result.metrics["replaced_loss"] < 1


def test_what_does_not_fit_is_refused_before_training(tok, tmp_path):
    def message(model, objective="replaced", **settings) -> str:
        with pytest.raises(ValueError) as error:
            pretrain(model, tok, TEXTS, objective, **(QUICK | {"steps": 1, "out": tmp_path / "run"} | settings))
        assert not (tmp_path / "run").exists() and not hasattr(model, "generator")
        return str(error.value)

    model, objective = pair(tok)
    assert 'a model with head="masked"; this objective trains a replaced head' in message(bert(vocab_size=tok.vocab_size))
    assert "the replaced objective for a body with causal=True" in message(gpt(vocab_size=tok.vocab_size).set_head("replaced"))
    plain = bert(vocab_size=tok.vocab_size).set_head("replaced")
    assert 'a bert with head="replaced"; its files know' in (said := message(plain)) and "use a family whose files have it (electra)" in said
    narrow = mt.Model(replaced.smaller(bert(vocab_size=tok.vocab_size, d_model=10, **ELECTRA).config), "masked")
    assert ", 10) in the generator and " in (said := message(model, Replaced(tok, narrow))) and "make the generator with smaller(model.config)" in said
    with pytest.raises(ValueError, match='a generator with head="replaced"; it fills in masked tokens'):
        Replaced(tok, model)
    with pytest.raises(ValueError, match="weight=-1; the discriminator's loss counts"):
        Replaced(tok, objective.generator, weight=-1)
    with pytest.raises(ValueError, match="a generator of 0 times the model's width"):
        replaced.smaller(model.config, 0)
    with pytest.raises(ValueError, match="a model that its generator is no part of"):
        objective(model, {"input_ids": torch.tensor([[5, 6]])}, torch.Generator())
    with pytest.raises(ValueError, match='objective="replaced" in adapt; it trains a generator beside the model'):
        adapt(model, tok, TEXTS, "replaced", steps=1, **QUICK)
