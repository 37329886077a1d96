"""The model around its parts: fresh weights, randomness, ties, heads that come and go, checkpointing, and clear errors."""
import copy
import io
import math
import pickle

import pytest
import torch

import minitransfer as mt
from tests.unit.tiny import bert, gpt2, gradients, moved

LABELS = ["bad", "fair", "good"]
HEADS = [(bert(), "none", None), (bert(), "masked", None), (bert(), "masked+next", None), (bert(), "sequence", LABELS), (bert(), "token", LABELS),
         (bert(), "span", None), (bert(), "embedding", None), (gpt2(), "none", None), (gpt2(), "causal", None), (gpt2(), "sequence", LABELS)]
IDS = [f"{'gpt2' if config.causal else 'bert'}-{head}" for config, head, _ in HEADS]


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# ---- fresh weights -------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("config, head, labels", HEADS, ids=IDS)
def test_same_seed_same_weights_and_the_global_generator_is_left_alone(config, head, labels):
    before = torch.get_rng_state()
    one, two, other = (mt.Model(config, head, labels, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert same(one, two) and same(one, mt.Model(config, head, labels, seed=3)) and not same(one, other)
    assert all(p.device.type == "cpu" and torch.isfinite(p).all() for p in one.parameters())


@pytest.mark.parametrize("config", [bert(d_model=64, d_ff=256), gpt2(d_model=64, d_ff=256)], ids=["bert", "gpt2"])
def test_fresh_weights_are_as_published(config):
    """N(0, 0.02), biases 0, norms 1; with pre-norm the two matrices that write into the stream are smaller by sqrt(2 L)."""
    for name, p in mt.Model(config, "causal" if config.causal else "masked+next").named_parameters():
        if p.ndim == 1:
            assert torch.equal(p, torch.ones_like(p) if "norm" in name and name.endswith("weight") else torch.zeros_like(p)), name
        else:
            std = 0.02 / (math.sqrt(4) if config.causal and name.endswith(("o_proj.weight", "down_proj.weight")) else 1)
            slack = 5 * std / math.sqrt(2 * p.numel())                          # five standard errors of a standard deviation
            assert abs(p.std() - std) < slack and abs(p.mean()) < 5 * std / math.sqrt(p.numel()), name


# ---- ties and copies -----------------------------------------------------------------------------------------------------------------------------

def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_a_file(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_a_file, lambda m: copy.deepcopy(m).to(torch.float64)],
                         ids=["deepcopy", "pickle", "torch.save", "cast"])
@pytest.mark.parametrize("config, head", [(bert(), "masked"), (gpt2(), "causal")], ids=["bert", "gpt2"])
def test_copies_keep_the_tie_and_share_nothing(config, head, copied):
    model, ids = moved(mt.Model(config, head)), torch.randint(101, (2, 5))
    twin = copied(model)
    assert twin.head.tokens[0] is twin.embed.tokens and twin.embed.tokens is not model.embed.tokens
    assert torch.allclose(twin(ids).logits.float(), model(ids).logits, atol=1e-5)
    before = model(ids).logits
    with torch.no_grad():
        twin.embed.tokens.weight.add_(1.0)
    assert torch.equal(model(ids).logits, before) and not torch.allclose(twin(ids).logits.float(), before)
    assert torch.equal(twin.head.logits(twin.body(ids).x), twin(ids).logits)


@pytest.mark.parametrize("config, head", [(bert(), "masked"), (gpt2(), "causal")], ids=["bert", "gpt2"])
def test_the_tied_table_is_one_parameter_with_both_gradients(config, head):
    model, ids = moved(mt.Model(config, head)), torch.randint(101, (2, 5))
    assert sum(p is model.embed.tokens.weight for p in model.parameters()) == 1
    assert not [name for name, p in model.named_parameters() if name.startswith("head.") and p.shape == (101, 28)]
    model(ids, labels=ids).loss.backward()
    absent = [i for i in range(101) if i not in ids]
    assert (model.embed.tokens.weight.grad[absent].abs().sum(1) > 0).all()        # tokens that were not read learn from the output side


# ---- heads ---------------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("config, head, labels", HEADS, ids=IDS)
def test_set_head_leaves_the_body_and_equals_building_anew(config, head, labels):
    model, before = moved(mt.Model(config, "sequence", LABELS)), torch.get_rng_state()
    body = {name: p.clone() for name, p in model.named_parameters() if not name.startswith(("head.", "pooler."))}
    pooler = None if model.pooler is None else model.pooler.weight.clone()
    assert model.set_head(head, labels, seed=5) is model
    assert torch.equal(torch.get_rng_state(), before)
    assert (model.head_name, model.labels) == (head, labels)
    fresh = mt.Model(config, head, labels)
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in fresh.named_parameters()}
    assert all(torch.equal(p, body[name]) for name, p in model.named_parameters() if name in body)
    assert model.pooler is None or torch.equal(model.pooler.weight, pooler)        # a pooler that is still read was trained: it stays
    again = moved(mt.Model(config, "sequence", LABELS)).set_head(head, labels, seed=5)
    assert same(model, again)
    assert not any(module.training for module in model.modules())


def test_set_head_follows_dtype_and_mode():
    model = mt.Model(bert(), "masked").to(torch.bfloat16).train()
    model.set_head("sequence", LABELS)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16} and all(module.training for module in model.modules())
    assert model(torch.randint(101, (2, 5))).logits.shape == (2, 3)


def test_set_head_gives_a_new_pooler_where_one_is_read():
    model = moved(mt.Model(bert(), "masked"))
    assert model.pooler is None
    model.set_head("sequence", LABELS)
    assert model.pooler.weight.std() > 0.01 and not model.pooler.bias.any()


# ---- vocabulary ----------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("n", [107, 101, 89])
@pytest.mark.parametrize("config, head", [(bert(), "masked"), (gpt2(), "causal")], ids=["bert", "gpt2"])
def test_resize_vocabulary(config, head, n):
    model, ids = moved(mt.Model(config, head)), torch.randint(min(n, 101), (2, 5))
    before, table = model(ids), model.embed.tokens.weight.detach().clone()
    assert model.resize_vocabulary(n) is model
    after, kept = model(ids), min(n, 101)
    assert model.config.vocab_size == n == after.logits.shape[-1] == model.embed.tokens.num_embeddings
    assert torch.equal(after.last_hidden_state, before.last_hidden_state)
    assert torch.allclose(after.logits[..., :kept], before.logits[..., :kept], atol=1e-6)
    assert torch.equal(model.embed.tokens.weight[:kept], table[:kept])
    assert torch.allclose(model.embed.tokens.weight[kept:], table.mean(0).expand(n - kept, -1))
    if head == "masked":
        assert model.head.bias.shape == (n,) and not model.head.bias[kept:].any()
    model(ids, labels=ids).loss.backward()
    assert model.embed.tokens.weight.grad.shape == (n, 28) and model.head.tokens[0] is model.embed.tokens


def test_resize_keeps_frozen_what_was_frozen():
    model = mt.Model(bert(), "masked")
    model.embed.tokens.weight.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    model.resize_vocabulary(107)
    assert not model.embed.tokens.weight.requires_grad and not model.head.bias.requires_grad


# ---- checkpointing -------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("backend", ["auto", "reference", "tiled"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "dropout"])
@pytest.mark.parametrize("config, head", [(bert(), "masked"), (gpt2(), "causal")], ids=["bert", "gpt2"])
def test_checkpointing_changes_no_bit(config, head, training, backend):
    """The same dropout masks are drawn again in backward: loss and gradients are bit-equal."""
    ids, keep, results = torch.randint(101, (3, 11)), torch.ones(3, 11, dtype=torch.bool), []
    keep[1, :4] = False
    for checkpointing in (False, True, "attention", "mlp", "blocks:2"):
        model = moved(mt.Model(config, head)).train(training)
        model.attention, model.checkpointing = backend, checkpointing
        torch.manual_seed(11)
        loss = model(ids, keep, labels=ids).loss
        loss.backward()
        results.append((loss.detach(), gradients(model)))
    for loss, found in results[1:]:
        assert torch.equal(results[0][0], loss)
        assert results[0][1].keys() == found.keys() and all(torch.equal(g, found[name]) for name, g in results[0][1].items())


@pytest.mark.parametrize("choice, attention, mlp", [(True, [2, 2], [2, 2]), ("blocks", [2, 2], [2, 2]), ("blocks:2", [2, 1], [2, 1]), ("attention", [2, 2], [1, 1]),
                                                    ("mlp", [1, 1], [2, 2])])
def test_what_was_chosen_runs_twice(choice, attention, mlp):
    model, ids, runs = mt.Model(bert(), "masked"), torch.randint(101, (2, 5)), []
    for i, block in enumerate(model.blocks):
        block.attn.register_forward_pre_hook(lambda *_, i=i: runs.append(("attention", i)))
        block.mlp.register_forward_pre_hook(lambda *_, i=i: runs.append(("mlp", i)))
    model.checkpointing = choice
    model(ids, labels=ids).loss.backward()
    assert ([runs.count(("attention", i)) for i in (0, 1)], [runs.count(("mlp", i)) for i in (0, 1)]) == (attention, mlp)


@pytest.mark.parametrize("choice", ["block", "blocks:0", "blocks:x", "mlp:2"])
def test_another_choice_is_refused(choice):
    model = mt.Model(bert(), "none")
    model.checkpointing = choice
    with pytest.raises(ValueError, match=f"checkpointing='{choice}'; .*: choose one"):
        model(torch.randint(101, (2, 5)))


def test_checkpointing_runs_each_block_twice():
    model, ids, runs = mt.Model(bert(), "masked"), torch.randint(101, (2, 5)), []
    model.blocks[1].mlp.register_forward_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    model.checkpointing = True
    model(ids, labels=ids).loss.backward()
    assert len(runs) == 2
    with torch.no_grad():
        model(ids)
    assert len(runs) == 3


# ---- outputs -------------------------------------------------------------------------------------------------------------------------------------

def test_outputs_that_were_asked_for():
    model, ids = moved(mt.Model(bert(), "sequence", LABELS)), torch.randint(101, (2, 5))
    plain, full = model(ids), model(ids, output_hidden_states=True, output_attentions=True)
    assert plain.hidden_states is plain.attentions is plain.scores is plain.loss is plain.cache is plain.embeddings is None
    assert [s.shape for s in full.hidden_states] == [(2, 5, 28)] * 3 and [a.shape for a in full.attentions] == [(2, 4, 5, 5)] * 2
    assert torch.equal(full.hidden_states[-1], full.last_hidden_state)
    assert torch.allclose(full.scores[1].softmax(-1), full.attentions[1], atol=1e-6)
    assert torch.allclose(plain.logits, full.logits, atol=1e-6)


def test_left_and_right_padding_and_alone_are_one():
    for model in (moved(mt.Model(bert(), "none")), moved(mt.Model(gpt2(), "none"))):
        text, filler = torch.randint(101, (1, 7)), torch.randint(101, (1, 4))
        alone = model(text).last_hidden_state
        here = torch.tensor([[True] * 7 + [False] * 4])
        right = model(torch.cat([text, filler], 1), here).last_hidden_state[:, :7]
        left = model(torch.cat([filler, text], 1), here.flip(1)).last_hidden_state[:, 4:]
        assert torch.allclose(alone, right, atol=1e-5) and torch.allclose(alone, left, atol=1e-5)


def test_token_types_absent_are_zeros():
    model, ids = moved(mt.Model(bert())), torch.randint(101, (2, 5))
    zeros = torch.zeros_like(ids)
    assert torch.allclose(model(ids).last_hidden_state, model(ids, token_type_ids=zeros).last_hidden_state, atol=1e-6)
    assert not torch.allclose(model(ids).last_hidden_state, model(ids, token_type_ids=zeros + 1).last_hidden_state, atol=1e-3)


# ---- errors --------------------------------------------------------------------------------------------------------------------------------------

TEXT = torch.tensor([[1, 2, 3]])


@pytest.mark.parametrize("given, message", [
    ({"input_ids": torch.tensor([[1, 101]])}, "a token id of 101; this model has 101 of them, numbered from 0: use the tokenizer the model was trained with"),
    ({"input_ids": torch.tensor([[-1, 5]])}, "a token id of -1"),
    ({"input_ids": TEXT, "token_type_ids": torch.tensor([[0, 1, 2]])}, "a token type id of 2; this model has 2 of them"),
    ({"input_ids": TEXT, "position_ids": torch.tensor([[0, 1, 37]])}, "a position id of 37; this model has 37 of them"),
    ({"input_ids": torch.ones(1, 38, dtype=torch.long)}, "a text of 38 tokens; this model reads at most 37: truncate it"),
    ({"input_ids": TEXT, "attention_mask": torch.ones(1, 4)}, r"attention_mask of shape \(1, 4\) for ids of shape \(1, 3\); it says something of each id"),
    ({"input_ids": TEXT, "attention_mask": torch.ones(1, 3, 3)}, r"attention_mask of shape \(1, 3, 3\) for ids of shape \(1, 3\)"),
    ({"input_ids": TEXT, "labels": TEXT}, 'labels for a model with head="none"; a loss comes from a head: put one on the body with set_head'),
])
def test_refused(given, message):
    with pytest.raises(ValueError, match=message):
        mt.Model(bert())(**given)


def test_next_labels_without_the_question():
    with pytest.raises(ValueError, match=r'next_labels for head="masked"; only head="masked\+next" asks whether b follows a: leave them out'):
        mt.Model(bert(), "masked")(TEXT, next_labels=torch.tensor([1]))


def test_a_vocabulary_of_nothing():
    with pytest.raises(ValueError, match=r"resize_vocabulary\(0\); a vocabulary has at least one token: give the size of the tokenizer"):
        mt.Model(bert()).resize_vocabulary(0)


def test_an_unknown_attention():
    model = mt.Model(bert())
    with pytest.raises(ValueError, match="attention='flash'; it is one of 'auto'"):
        model.attention = "flash"
    assert model.attention == "auto"


@pytest.mark.parametrize("changes", [{}, {"norm": "rms", "n_layers": 3}], ids=["gpt2", "rms"])
def test_a_sum_left_to_the_next_norm_is_that_sum(changes, monkeypatch):
    """Where a kernel adds and norms in one pass, blocks leave their last sum to it: the same bits, dropout included; where a hook listens they do not."""
    ids, found, seen = torch.randint(101, (5, 11)), [], []
    for device in ("cpu", "cuda", "cuda, and somebody listens"):
        model = moved(mt.Model(gpt2(dropout=0.1, **changes), "causal")).train()
        monkeypatch.setattr("minitransfer.nn.block.device_of", lambda t, device=device: device[:4])
        if "listens" in device:
            model.blocks[1].register_forward_hook(lambda module, given, output: seen.append(output[0]))
        torch.manual_seed(3)
        out = model(ids, labels=ids)
        out.loss.backward()
        found.append([out.loss.detach(), out.logits.detach(), *(p.grad for p in model.parameters())])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    assert isinstance(seen[0], torch.Tensor)
