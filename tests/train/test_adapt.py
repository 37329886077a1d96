"""Going on from a pretrained body: general text mixed in, strategies, heads that are missing, adapters stacked, runs broken off."""
from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import minitransfer as mt
from minitransfer.objectives import Masked
from minitransfer.tasks.predict import load_tuned
from minitransfer.text import PackedBatches, tokenize_corpus
from minitransfer.training import adapt, pretrain
from minitransfer.training.batches import Mixture, Rows
from minitransfer.training.pretrain import Corpus, hold_out
from minitransfer.transfer import lora, replay

from .small import bert, gpt, same, weights
from .test_pretrain import GENERAL, QUICK, TEXTS, decoder_tok, own_cache, tok  # noqa: F401

AROUND = GENERAL * 5                                                             # 300 texts


@pytest.fixture
def base(tok, tmp_path):  # noqa: F811
    """A saved checkpoint with a masked head, away from its init."""
    model = bert(vocab_size=tok.vocab_size, dropout=0.1)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    model.save_pretrained(tmp_path / "base")
    tok.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def rows_of(batch: dict[str, torch.Tensor]) -> list[tuple[int, ...]]:
    return [tuple(row) for row in batch["input_ids"].tolist()]


# ---- the mixture ---------------------------------------------------------------------------------------------------------------------------------

def numbered(n: int, first: int, batch_size: int, seed: int) -> Rows:
    """n rows that can be told apart: row i is the one document that says word first + i."""
    class Stand(PackedBatches):
        def __init__(self):
            self.seed, self.batch_size = seed, batch_size

        def rows(self, indices):
            ids = torch.tensor([[first + int(i)] * 3 for i in indices], dtype=torch.long).view(-1, 3)
            return {"input_ids": ids, "document_ids": torch.zeros_like(ids)}
    return Rows(Stand(), np.arange(n))


@pytest.mark.parametrize("share", [0.25, 0.1, 1 / 3, 0.9])
def test_every_window_of_batches_has_the_exact_share(share):
    mixture = Mixture(numbered(53, 0, 7, 1), numbered(19, 1000, 7, 2), share)
    order = np.random.default_rng(0).permutation(60)                             # asked in any order: batch k is a function of k alone
    batches = {int(k): mixture[int(k)]["input_ids"][:, 0] for k in order}
    counts = np.array([int((batches[k] >= 1000).sum()) for k in range(60)])
    assert all(len(batches[k]) == 7 for k in range(60))
    for start in range(60):
        for end in range(start + 1, 61):
            assert abs(counts[start:end].sum() - share * 7 * (end - start)) < 1 + 1e-9
    for first, n in ((0, 53), (1000, 19)):                                       # each text epoch by epoch: every row once before one comes again
        read = [i for k in range(60) for i in batches[k].tolist() if (i >= 1000) == (first >= 1000)]
        epochs = [read[at:at + n] for at in range(0, len(read) - n + 1, n)]
        assert all(sorted(one) == list(range(first, first + n)) for one in epochs)
        assert len(epochs) < 2 or epochs[0] != epochs[1]
        assert len(set(read)) == min(n, len(read))


def test_a_quarter_of_four_is_one_in_every_batch_and_an_epoch_reads_the_text_once():
    mixture = Mixture(numbered(30, 0, 4, 0), numbered(9, 1000, 4, 0), 0.25)
    assert len(mixture) == 10
    assert [int((mixture[k]["input_ids"][:, 0] >= 1000).sum()) for k in range(25)] == [1] * 25
    assert sorted(i for k in range(10) for i in mixture[k]["input_ids"][:, 0].tolist() if i < 1000) == list(range(30))


def test_rows_with_and_without_padding_stand_in_one_batch(tok):  # noqa: F811
    texts = [Rows(packed, np.arange(packed.n_rows)) for packed in
             (PackedBatches(tokenize_corpus(tok, [" ".join(["river"] * n)]), tok, 16, 4) for n in (14 * 3, 14 * 2 + 5))]
    mixture = Mixture(texts[0], texts[1], 0.5)
    masks = [(mixture[k]["document_ids"] >= 0, mixture[k].get("attention_mask")) for k in range(6)]
    assert any(not places.all() for places, _ in masks) and any(places.all() for places, _ in masks)
    assert all(torch.equal(places, mask) if mask is not None else places.all() for places, mask in masks)


def test_general_text_that_is_trained_on_is_measured_on_rows_held_out(tok):  # noqa: F811
    model = bert(vocab_size=tok.vocab_size)
    texts = Corpus(model, tok, TEXTS, "masked", None, 16, 8, 0, [f"{text} {i % 7}" for i, text in enumerate(AROUND)], 0.5)
    packed = texts.general.packed
    _, held = hold_out(packed)
    assert np.array_equal(texts.general.numbers, held.numbers) and len(held.numbers) == packed.n_rows // 100 > 0
    trained = texts.train.other.numbers
    assert sorted([*trained, *held.numbers]) == list(range(packed.n_rows))
    general = {row for k in range(60) for row in rows_of(texts.train[k])[-4:]}
    assert general <= set(rows_of(packed.rows(trained)))
    unmixed = Corpus(model, tok, TEXTS, "masked", None, 16, 8, 0, AROUND)
    assert len(unmixed.general) == -(-unmixed.general.n_rows // 8) and not isinstance(unmixed.train, Mixture)


@pytest.mark.slow
def test_text_that_is_mixed_in_is_not_forgotten(tok):  # noqa: F811
    model = bert(vocab_size=tok.vocab_size)
    pretrain(model, tok, AROUND, Masked(tok, 0.3), steps=80, lr=1e-2, **QUICK)
    learned = weights(model)

    def after(mix, **given):
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(learned[name])
        return adapt(model, tok, TEXTS, Masked(tok, 0.3), general=AROUND, mix=mix, steps=80, lr=5e-3, **given, **QUICK).after

    alone, mixed = after(0.0), after(0.25)
    assert mixed["general_loss"] < alone["general_loss"] - 0.5
    assert mixed["loss"] < alone["loss"] + 0.2
    kept = after(0.0, keep=replay(PackedBatches(tokenize_corpus(tok, AROUND), tok, 16, 8), Masked(tok, 0.3), share=0.25))
    assert kept["general_loss"] < alone["general_loss"] - 0.5


# ---- heads -----------------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("head", ["none", "embedding"])
def test_a_body_without_a_vocabulary_head_gets_one_and_a_warning(head, base, tok):  # noqa: F811
    mt.Model.from_pretrained(base, head="none").save_pretrained(base)            # the checkpoint has no head either
    model = mt.Model.from_pretrained(base, head=head)
    body = weights(model)
    with pytest.warns(UserWarning, match=f'adapt put a fresh masked head, tied to the token table, in the place of head="{head}"; it is trained with the body; '):
        result = adapt(model, tok, TEXTS, steps=15, lr=5e-3, **QUICK)
    assert model.head_name == "masked" and model.head.tokens[0] is model.embed.tokens
    assert all(p.requires_grad for p in model.head.parameters()) and model.head.bias.any()
    assert result.after["loss"] < result.before["loss"] and not torch.equal(model.blocks[0].attn.q_proj.weight, body["blocks.0.attn.q_proj.weight"])


def test_the_warning_names_a_head_that_was_left_in_the_checkpoint(base, tok):  # noqa: F811
    with pytest.warns(UserWarning, match=r'the checkpoint has a head of its own, cls\.\S+, cls\.\S+: if that is one, load it with head="masked"'):
        adapt(mt.Model.from_pretrained(base, head="none"), tok, TEXTS, steps=1, **QUICK)


def test_a_decoder_without_a_head_gets_a_causal_one(decoder_tok):  # noqa: F811
    model = gpt(vocab_size=decoder_tok.vocab_size).set_head("none")
    with pytest.warns(UserWarning, match="adapt put a fresh causal head"):
        adapt(model, decoder_tok, TEXTS, steps=1, **QUICK)
    assert model.head_name == "causal"


def test_a_fresh_head_trains_whatever_the_checkpoint_had(base, tok):  # noqa: F811
    """A head put on in the place of a loaded one has the same names, and was not loaded."""
    model = mt.Model.from_pretrained(base).set_head("embedding")
    with pytest.warns(UserWarning, match="fresh masked head"):
        adapt(model, tok, TEXTS, strategy="lora", steps=1, **QUICK)
    assert all(p.requires_grad for p in model.head.parameters()) and not model.embed.tokens.weight.requires_grad
    assert "head.bias" in model.load_report.new and "head.bias" not in model.load_report.loaded


def test_a_head_with_weights_of_a_task_is_not_thrown_away(base, tok):  # noqa: F811
    model = mt.Model.from_pretrained(base, head="sequence", labels=["a", "b"])
    with pytest.raises(ValueError, match=r'a model with head="sequence"; this objective trains a masked head: model.set_head\("masked"\)'):
        adapt(model, tok, TEXTS, steps=1, **QUICK)
    assert model.head_name == "sequence"


# ---- strategies ------------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_through_lora_the_result_is_an_adapter_on_which_a_task_adapter_stands(base, tok, tmp_path):  # noqa: F811
    """Domain adapter, saved apart; merged into the body; a task's LoRA on top, whose folder alone is enough to predict."""
    model = mt.Model.from_pretrained(base)
    body = weights(model)
    result = adapt(model, tok, TEXTS, Masked(tok, 0.3), strategy=lora(r=4), out=tmp_path / "domain", steps=30, lr=1e-2, **QUICK)
    assert result.after["loss"] < result.before["loss"] - 0.2
    assert all(torch.equal(model.get_parameter(name), p) for name, p in body.items())                  # the body was not touched
    files = {path.name for path in (tmp_path / "domain/model").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= files and "model.safetensors" not in files

    again, ids = mt.Model.from_pretrained(base), torch.randint(5, tok.vocab_size, (3, 11))
    mt.load_adapter(again, tmp_path / "domain/model")
    assert torch.equal(again(ids).logits, model(ids).logits) and not torch.equal(again(ids).logits, mt.Model.from_pretrained(base)(ids).logits)

    mt.merge_lora(again)
    again.save_pretrained(tmp_path / "merged")
    tok.save_pretrained(tmp_path / "merged")
    stacked = mt.Model.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(stacked(ids).logits, model(ids).logits, atol=1e-5, rtol=0)
    rows = [{"text": text, "label": text.split()[0]} for text in TEXTS if text.split()[0] in ("river", "stone")]
    mt.finetune(stacked, tok, train=rows, strategy=lora(r=3), out=tmp_path / "task", steps=20, lr=2e-2, progress=False, precision="fp32", max_length=16)
    whole, _ = load_tuned(tmp_path / "task")
    assert json.loads((tmp_path / "task/model/adapter_config.json").read_text())["base_model_name_or_path"] == str(tmp_path / "merged")
    assert torch.equal(whole(ids).logits, stacked.eval()(ids).logits)
    merged = mt.Model.from_pretrained(tmp_path / "merged")
    assert all(torch.equal(whole.get_parameter(name), p) for name, p in merged.named_parameters() if name.startswith("blocks."))


def test_a_model_that_carries_lora_goes_on_with_it(base, tok, tmp_path):  # noqa: F811
    model = mt.Model.from_pretrained(base)
    mt.add_lora(model, r=2)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    adapt(model, tok, TEXTS, out=tmp_path / "run", steps=3, lr=1e-2, **QUICK)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained and all("lora_" in name for name in trained)
    again = mt.Model.from_pretrained(base)
    mt.load_adapter(again, tmp_path / "run/model")
    assert same(weights(again), weights(model))


def test_what_could_not_be_saved_is_refused_before_it_is_trained(base, tok, tmp_path):  # noqa: F811
    model = mt.Model.from_pretrained(base)
    mt.add_lora(model, r=2)
    with pytest.raises(ValueError, match="have no name in bert files"):
        adapt(model, tok, TEXTS, strategy="full", out=tmp_path / "run", steps=3, **QUICK)
    mt.unfreeze(model)
    with pytest.raises(ValueError, match=r"train beside the LoRA; an adapter file holds the LoRA and the head only"):
        adapt(model, tok, TEXTS, out=tmp_path / "run", steps=3, **QUICK)
    assert not (tmp_path / "run").exists()


def test_what_was_frozen_stays_frozen_unless_a_strategy_says_otherwise(base, tok):  # noqa: F811
    model = mt.Model.from_pretrained(base)
    mt.freeze(model, "embed, blocks.0")
    before = weights(model)
    adapt(model, tok, TEXTS, steps=2, lr=1e-2, **QUICK)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and not any(name.startswith(("embed.", "blocks.0.")) for name in moved)
    adapt(model, tok, TEXTS, strategy="full", steps=2, lr=1e-2, **QUICK)
    assert not torch.equal(model.embed.tokens.weight, before["embed.tokens.weight"])


def test_a_strategy_brings_its_learning_rate(base, tok):  # noqa: F811
    def rates(**given):
        result = adapt(mt.Model.from_pretrained(base), tok, TEXTS, steps=2, warmup=0, schedule="constant", log_every=1, **given, **QUICK)
        return [one["lr"] for one in result.history if "lr" in one]

    assert (rates(), rates(strategy="lora"), rates(strategy="lora", lr=3e-3)) == ([1e-4] * 2, [1e-3] * 2, [3e-3] * 2)


def test_an_adapter_names_the_body_that_was_adapted_and_not_the_one_it_came_from(base, tok, tmp_path):  # noqa: F811
    model = mt.Model.from_pretrained(base)
    adapt(model, tok, TEXTS, out=tmp_path / "run", steps=1, **QUICK)
    mt.add_lora(model)
    mt.save_adapter(model, tmp_path / "adapter")
    named = json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(tmp_path / "run/model")
    mt.remove_adapters(model)
    mt.unfreeze(model)
    adapt(model, tok, TEXTS, steps=1, **QUICK)                                   # and now it is saved nowhere
    mt.add_lora(model)
    mt.save_adapter(model, tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] is None


# ---- runs ------------------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.filterwarnings("ignore:adapt put a fresh")
@pytest.mark.parametrize("strategy, head", [("full", "auto"), ("lora", "auto"), ("lora", "none")])
def test_a_broken_run_goes_on_bit_for_bit(strategy, head, base, tok, tmp_path, ctrl_c):  # noqa: F811
    """With dropout, general text, a strategy and perhaps a fresh head."""
    settings = QUICK | {"steps": 6, "lr": 1e-2, "general": AROUND, "mix": 0.3, "strategy": strategy, "best": None}
    whole = mt.Model.from_pretrained(base, head=head)
    expected = adapt(whole, tok, TEXTS, **settings)
    objective, steps = Masked(tok), []

    def pressed(model, batch, generator):
        steps.append(model.training)
        if model.training and sum(steps) == 3:                                   # evaluations ask the objective too
            ctrl_c()
        return objective(model, batch, generator)

    assert adapt(mt.Model.from_pretrained(base, head=head), tok, TEXTS, pressed, out=tmp_path / "run", **settings).steps == 3
    for other in ({"mix": 0.5}, {"general": AROUND[::-1]}):
        with pytest.raises(ValueError, match=f"(?s)data {next(iter(other))}: .* then"):
            adapt(mt.Model.from_pretrained(base, head=head), tok, TEXTS, out=tmp_path / "run", resume=True, **(settings | other))
    again = mt.Model.from_pretrained(base, head=head)
    result = adapt(again, tok, TEXTS, out=tmp_path / "run", resume=True, **settings)
    assert result.steps == 6 and same(weights(whole), weights(again))
    assert (result.before, result.after) == (expected.before, expected.after)


def test_refused(base, tok):  # noqa: F811
    def message(**given) -> str:
        with pytest.raises(ValueError) as error:
            adapt(mt.Model.from_pretrained(base), tok, TEXTS, **(QUICK | {"steps": 1} | given))
        return str(error.value)

    assert "mix=1; it is the share of the rows that come from the general text, at least 0 and below 1" in message(mix=1, general=GENERAL)
    assert "mix=0.2 without general text" in message(mix=0.2)
    assert "strategy 'features' for raw text" in message(strategy="features")
    assert "no strategy is called 'lorra' (did you mean 'lora'?)" in message(strategy="lorra")
    assert "strategy 'head' leaves nothing to train" in message(strategy="head")
    assert "length=31; this model reads at most 11 tokens" in message(strategy="prefix:20", length=31)
