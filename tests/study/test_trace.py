"""A trace reads what the model itself reports, and a change is what the same change of the weights would do; afterwards nothing is left of it."""
from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import minitransfer as mt

from ..unit.tiny import bert, gpt2, moved

IDS = torch.randint(3, 101, (3, 13), generator=torch.Generator().manual_seed(0))
OTHER = torch.randint(3, 101, (3, 13), generator=torch.Generator().manual_seed(1))


def encoder(**changes) -> mt.Model:
    return moved(mt.Model(bert(n_layers=3, **changes), "masked"))


def decoder(**changes) -> mt.Model:
    return moved(mt.Model(gpt2(n_layers=3, **changes), "causal"))


@pytest.mark.parametrize("make", [encoder, decoder])
@torch.no_grad()
def test_what_is_read_is_what_the_model_reports(make):
    model = make()
    out = model(IDS, output_hidden_states=True, output_attentions=True)
    with mt.trace(model, "embed", "blocks.*.attn.probs", "blocks.0-1, blocks.2.attn.scores", "head") as t:
        assert len(t) == 0 and list(t) == []
        model(OTHER)
        model(IDS)
    assert torch.equal(t["embed"], out.hidden_states[0]) and torch.equal(t["head"], out.logits)
    assert all(torch.equal(t[f"blocks.{i}"], out.hidden_states[i + 1]) for i in (0, 1))
    assert all(torch.equal(t[f"blocks.{i}.attn.probs"], out.attentions[i]) for i in range(3)) and torch.equal(t["blocks.2.attn.scores"], out.scores[2])
    assert len(t) == 8 and dict(t).keys() == {"embed", "head", "blocks.0", "blocks.1", "blocks.2.attn.scores", *(f"blocks.{i}.attn.probs" for i in range(3))}


@torch.no_grad()
def test_nothing_is_left_afterwards():
    model = decoder()
    before, model.packs = model(IDS).logits, True
    with pytest.raises(RuntimeError), mt.trace(model, "blocks.0.attn.probs") as t:
        t.patch("blocks.1", lambda x: x * 0.5)
        t.ablate("blocks.0.attn", heads=[1])
        assert model.packs is False and not torch.equal(model(IDS).logits, before)
        raise RuntimeError
    assert torch.equal(model(IDS).logits, before) and model.packs is True
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@torch.no_grad()
def test_padding_stays_where_it_is_in_a_body_that_would_drop_it():
    model, keep = encoder(), torch.ones(3, 13, dtype=torch.bool)
    keep[1, 7:] = False
    model.packs = True
    with mt.trace(model, "blocks.1") as t:
        model(IDS, keep)
    assert t["blocks.1"].shape == (3, 13, 28)


@pytest.mark.parametrize("make", [encoder, decoder])
@torch.no_grad()
def test_a_patched_block_makes_one_text_out_of_another(make):
    """From a block's output on nothing remembers the ids."""
    model = make()
    with mt.trace(model, "blocks.1") as t:
        wanted = model(OTHER).logits
    kept = t["blocks.1"]
    with mt.trace(model, "blocks.1") as t:
        t.patch("blocks.1", kept)
        assert torch.equal(model(IDS).logits, wanted) and torch.equal(t["blocks.1"], kept)
        t.patch("blocks.1", lambda x: x * 2)                                     # in the order they were asked for
        model(IDS)
        assert torch.equal(t["blocks.1"], kept * 2)
        t.patch("blocks.0.mlp", kept[:, :-1])
        with pytest.raises(ValueError, match=r"a patch of shape \(3, 12, 28\) for blocks.0.mlp, which has \(3, 13, 28\)"):
            model(IDS)


@pytest.mark.parametrize("make", [encoder, decoder])
@torch.no_grad()
def test_ablated_heads_are_columns_of_the_output_matrix(make):
    model = make()
    twin = copy.deepcopy(model)
    twin.blocks[1].attn.o_proj.weight[:, 7:21] = 0                               # heads 1 and 2 of 4, each 7 wide
    twin.blocks[2].attn.o_proj.weight[:] = 0
    twin.blocks[2].attn.o_proj.bias[:] = 0
    with mt.trace(model) as t:
        t.ablate("blocks.1.attn", heads=[1, 2])
        t.ablate("blocks.2.attn")
        torch.testing.assert_close(model(IDS).logits, twin(IDS).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [encoder, decoder])
@torch.no_grad()
def test_an_ablated_block_is_no_block(make):
    model = make()
    twin = copy.deepcopy(model)
    twin.blocks = nn.ModuleList([twin.blocks[0], twin.blocks[2]])
    twin.config = type(twin.config)(**(twin.config.to_dict() | {"n_layers": 2}))
    with mt.trace(model) as t:
        t.ablate("blocks.1")
        assert torch.equal(model(IDS).logits, twin(IDS).logits)


@torch.no_grad()
def test_blocks_that_share_their_weights_are_told_apart_by_their_turn():
    model = encoder(shared_blocks=True)
    out = model(IDS, output_hidden_states=True, output_attentions=True)
    unshared = copy.deepcopy(model)
    unshared.blocks = nn.ModuleList(copy.deepcopy(model.blocks[0]) for _ in range(3))
    unshared.config = type(model.config)(**(model.config.to_dict() | {"shared_blocks": False}))
    unshared.blocks[1].attn.o_proj.weight[:, :7] = 0
    with mt.trace(model, "blocks.*", "blocks.1.attn.probs") as t:
        model(IDS)
        assert all(torch.equal(t[f"blocks.{i}"], out.hidden_states[i + 1]) for i in range(3)) and torch.equal(t["blocks.1.attn.probs"], out.attentions[1])
        t.ablate("blocks.1.attn", heads=[0])
        torch.testing.assert_close(model(IDS).logits, unshared(IDS).logits, rtol=0, atol=1e-6)


@torch.no_grad()
def test_an_encoder_decoder_has_both_sides():
    model = moved(mt.EncoderDecoder(bert(n_decoder_layers=2, n_token_types=0, pooler=False), "seq2seq"))
    out = model(IDS, decoder_input_ids=OTHER[:, :5], output_hidden_states=True, output_attentions=True)
    with mt.trace(model, "encoder.blocks.1", "decoder.blocks.*.cross_attn.probs", "decoder.blocks.0.cross_attn") as t:
        model(IDS, decoder_input_ids=OTHER[:, :5])
        for address, wanted in (("encoder.blocks.1", out.encoder_hidden_states[2]), ("decoder.blocks.0.cross_attn.probs", out.cross_attentions[0]),
                                ("decoder.blocks.1.cross_attn.probs", out.cross_attentions[1])):
            torch.testing.assert_close(t[address], wanted, rtol=0, atol=1e-6)   # those of `out` come from the written-out path of every attention
        t.ablate("decoder.blocks.0.cross_attn", heads=[0, 1, 2, 3])
        model(IDS, decoder_input_ids=OTHER[:, :5])
        torch.testing.assert_close(t["decoder.blocks.0.cross_attn"], model.decoder.blocks[0].cross_attn.o_proj.bias.expand(3, 5, 28))


@torch.no_grad()
def test_generated_text_hears_the_changes_and_forgets_them():
    """generate() writes with a packed copy of the model, made before or after."""
    model = decoder()
    plain = mt.generate(model, IDS, max_new_tokens=4)
    twin = copy.deepcopy(model)
    twin.blocks[1].attn.o_proj.weight[:, :14] = 0
    twin.blocks[2].mlp.down_proj.weight[:] = 0
    twin.blocks[2].mlp.down_proj.bias[:] = 0
    with mt.trace(model) as t:
        t.ablate("blocks.1.attn", heads=[0, 1])
        t.ablate("blocks.2.mlp")
        changed = mt.generate(model, IDS, max_new_tokens=4, precision="fp32")
        with pytest.raises(ValueError, match='precision="int8" for a model whose modules have hooks'):
            mt.generate(model, IDS, max_new_tokens=1, precision="int8")
    assert torch.equal(changed, mt.generate(twin, IDS, max_new_tokens=4, precision="fp32")) and not torch.equal(changed, plain)
    assert torch.equal(mt.generate(model, IDS, max_new_tokens=4), plain)


@pytest.mark.parametrize("call, message", [
    (lambda t: t.patch("blocks.7", lambda x: x), "the address 'blocks.7' names nothing in this model; its layer groups are embed, blocks.0-2, pooler, head: did you mean"),
    (lambda t: t.ablate("blocks.0.attn", heads=[4]), "head 4 of blocks.0.attn, which has 4; they are counted from 0: give 0 to 3"),
    (lambda t: t.ablate("blocks.0", heads=[0]), "heads of blocks.0, a Block; an attention has heads"),
    (lambda t: t.patch("blocks.0.attn.probs", lambda x: x), "a change of blocks.0.attn.probs; it can be read"),
])
def test_mistakes(call, message):
    model = moved(mt.Model(bert(n_layers=3), "sequence", ["a", "b"]))
    with mt.trace(model) as t, pytest.raises(ValueError, match=message):
        call(t)


def test_what_was_not_traced_or_not_computed():
    with mt.trace(encoder(), "blocks.1") as t:
        with pytest.raises(KeyError, match=r"'blocks.0' was not traced; this trace reads blocks.1"):
            t["blocks.0"]
        with pytest.raises(KeyError, match=r"nothing was computed at 'blocks.1' so far"):
            t["blocks.1"]
    with pytest.raises(ValueError, match=r"'block.\*' names nothing"), mt.trace(encoder(), "block.*"):
        pass
    with pytest.raises(ValueError, match="trace with 'mini-bert' in the place of the model"), mt.trace("mini-bert"):
        pass
