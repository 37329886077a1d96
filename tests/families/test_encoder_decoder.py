"""What only an encoder-decoder has: one table for both stacks, two addresses, labels a position later, a cache for what was read, a stream too wide for float16."""
import peft
import pytest
import torch
import transformers

import minitransfer as mt
from minitransfer.checks.parity import batch
from minitransfer.families import read_config
from minitransfer.nn.encoder_decoder import EncoderDecoder, shifted
from minitransfer.transfer import add_lora, freeze, merge_lora

from .cases import CASES

T5 = next(case for case in CASES if case.name == "t5")
NAME = "T5ForConditionalGeneration"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    T5.reference(NAME).save_pretrained(folder)
    return folder


@pytest.fixture
def model(folder):
    return mt.Model.from_pretrained(folder)


def test_what_the_decoder_reads():
    labels = torch.tensor([[5, 6, -100, 7], [8, 9, -100, -100]])
    assert shifted(labels, 2, 1).tolist() == [[2, 5, 6, 1], [2, 8, 9, 1]]
    keep = torch.tensor([[False, False, True, True], [True, True, False, False]])
    moved = shifted(torch.tensor([[0, 0, 5, 6], [7, 8, 0, 0]]), 2, 1, keep)
    assert moved[0, 2:].tolist() == [2, 5] and moved[1, :2].tolist() == [2, 7]


def test_one_table_under_one_name(model):
    names = [name for name, _ in model.named_parameters()]
    assert [name for name in names if "tokens" in name] == ["encoder.embed.tokens.weight"]
    assert model.decoder.embed.tokens.weight is model.embed.tokens.weight is model.head.matrix
    assert list(mt.layer_groups(model)) == ["encoder.embed", "encoder.relative", "encoder.blocks.0", "encoder.blocks.1", "encoder.blocks.2", "encoder.norm",
                                            "decoder.relative", "decoder.blocks.0", "decoder.blocks.1", "decoder.norm"]
    model.resize_vocabulary(107)
    out = model(torch.randint(3, 107, (2, 5)), labels=torch.full((2, 3), 106))
    assert out.logits.shape == (2, 3, 107) and model.decoder.embed.tokens.weight is model.embed.tokens.weight
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in mt.EncoderDecoder(model.config, "seq2seq").parameters())


def test_freezing_and_lora_by_address(model):
    ids, keep = batch(T5.vocab, [9, 4], left=False)
    before = model(ids, keep, labels=ids).logits
    freeze(model, "encoder, decoder.blocks.0")
    assert {name.split(".blocks")[0] for name, p in model.named_parameters() if p.requires_grad} == {"decoder.relative.table.weight", "decoder", "decoder.norm.weight"}
    add_lora(model, r=2, targets="decoder.blocks.0-1.cross_attn.q_proj, v")
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert any("decoder.blocks.1.cross_attn.q_proj" in name for name in trained) and any("encoder.blocks.2.attn.v_proj" in name for name in trained)
    assert torch.allclose(model(ids, keep, labels=ids).logits, before, atol=1e-5)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1)
    changed = model(ids, keep, labels=ids).logits
    merge_lora(model)
    assert not torch.allclose(changed, before, atol=1e-3) and torch.allclose(model(ids, keep, labels=ids).logits, changed, atol=1e-5)


@pytest.mark.parametrize("head, labels, alone", [("token", ["a", "b"], True), ("embedding", None, True), ("sequence", ["a", "b"], False), ("span", None, False),
                                                 ("none", None, False)])
def test_heads_and_the_stacks_they_need(folder, tmp_path, head, labels, alone):
    """A token or embedding head is on the encoder alone, whose files have no decoder; the reference reads them."""
    model = mt.Model.from_pretrained(folder, head=head, labels=labels)
    assert isinstance(model, EncoderDecoder) != alone
    ids, keep = batch(T5.vocab, [9, 4], left=True)
    if alone:
        want = transformers.T5EncoderModel.from_pretrained(folder)(ids, keep).last_hidden_state
        assert torch.allclose(model(ids, keep).last_hidden_state[keep], want[keep], atol=1e-5)
    model.save_pretrained(tmp_path)
    again = mt.Model.from_pretrained(tmp_path, head=head)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    wrong, message = ("seq2seq", "on a body that is one stack") if alone else ("masked", "on an encoder-decoder, which carries none, seq2seq, sequence, span")
    with pytest.raises(ValueError, match=f'head="{wrong}" {message}'):
        model.set_head(wrong)


def test_a_cache_gives_the_same_and_reads_once(model, monkeypatch):
    ids, keep = batch(T5.vocab, [9, 4], left=True)
    written, _ = batch(T5.vocab, [7, 7], left=False, seed=1)
    whole = model(ids, keep, decoder_input_ids=written).logits
    memory, cache, parts, asked = model.read(ids, keep), mt.Cache(2), [], []
    first = model.decoder.blocks[0].cross_attn.k_proj
    first.register_forward_hook(lambda *_: asked.append(1))
    for start, end in ((0, 3), (3, 4), (4, 7)):
        parts.append(model.head.logits(model.body(ids, keep, written[:, start:end], cache=cache, memory=memory).x))
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5) and len(asked) == 1


@pytest.mark.parametrize("form", ["relu", "gated-gelu"])
def test_float16_stays_finite(tmp_path, form):
    """Weights that drive the stream far beyond 65,504: finite, and no further from the fp64 truth than the reference, which keeps the same matrices in float32."""
    reference = T5.reference("T5EncoderModel", feed_forward_proj=form)
    with torch.no_grad():
        for name, p in reference.named_parameters():
            if name.endswith("wo.weight"):
                p.mul_(3e4)
    reference.half().float().save_pretrained(tmp_path)
    ids = torch.randint(3, T5.vocab, (5, 23), generator=torch.Generator().manual_seed(0))

    def theirs(dtype):
        return transformers.T5EncoderModel.from_pretrained(tmp_path, dtype=dtype, attn_implementation="eager")(ids, output_hidden_states=True)
    with torch.no_grad():
        truth = theirs(torch.float64)
        assert max(state.abs().max() for state in truth.hidden_states) > 2 * torch.finfo(torch.float16).max
        model = mt.Model.from_pretrained(tmp_path, dtype=torch.float16)
        ours = model(ids).last_hidden_state
        assert ours.dtype == torch.float16 and ours.isfinite().all()
        want = (theirs(torch.float16).last_hidden_state.double() - truth.last_hidden_state).abs().mean()
        assert (ours.double() - truth.last_hidden_state).abs().mean() <= 1.1 * want


@pytest.mark.parametrize("change, message", [
    ({"feed_forward_proj": "gated-silu-x", "dense_act_fn": None}, "feed_forward_proj='gated-silu-x' in config.json; it is the name of an activation, or gated- and one"),
    ({"feed_forward_proj": "mish", "dense_act_fn": "mish"}, "feed_forward_proj='mish' in config.json; we compute"),
    ({"dense_act_fn": "mish"}, "dense_act_fn='mish' in config.json; we compute"),
    ({"is_decoder": True}, "is_decoder=True in config.json; our t5 computes is_decoder=False only"),
])
def test_wrong_configs(change, message):
    with pytest.raises(ValueError, match=message):
        read_config(T5.config(NAME).to_dict() | change)


def test_errors(model):
    ids = torch.full((1, 4), 5)
    with pytest.raises(ValueError, match=r'no decoder_input_ids for a model with head="seq2seq"; the decoder goes on from what was written so far: pass it'):
        model(ids)
    with pytest.raises(ValueError, match=r"a decoder with cross-attention on its own; it looks at what an encoder has read: run the encoder-decoder"):
        model.decoder(ids)
    with pytest.raises(ValueError, match=r"n_decoder_layers=2 for a Model, which is one stack; an encoder-decoder is two: make an EncoderDecoder"):
        mt.Model(model.config)
    with pytest.raises(ValueError, match=r"the blocks of an encoder-decoder; it has two stacks of them"):
        _ = model.blocks


def test_an_adapter_is_read_by_us_and_by_peft(folder, model, tmp_path):
    ids, labels = torch.randint(3, T5.vocab, (2, 9)), torch.randint(3, T5.vocab, (2, 5))
    add_lora(model, r=2, targets="q,v,down")
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.1)
    mt.save_adapter(model, tmp_path)
    want = model.eval()(ids, labels=labels).logits
    again = mt.Model.from_pretrained(folder)
    mt.load_adapter(again, tmp_path)
    assert torch.equal(again.eval()(ids, labels=labels).logits, want)
    theirs = peft.PeftModel.from_pretrained(transformers.T5ForConditionalGeneration.from_pretrained(folder), tmp_path)
    assert torch.allclose(theirs(input_ids=ids, labels=labels).logits, want, atol=1e-5 * float(want.detach().abs().max()))


@torch.no_grad()
def test_token_types_are_not_read(model):
    ids, keep = batch(T5.vocab, [7, 4], left=False)
    types = torch.randint(2, ids.shape)
    assert torch.equal(model(ids, keep, labels=ids, token_type_ids=types).logits, model(ids, keep, labels=ids).logits)
    assert torch.equal(model.body(ids, keep, ids, token_type_ids=types).x, model.body(ids, keep, ids).x)
