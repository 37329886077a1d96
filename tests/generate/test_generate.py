"""Generation against the reference library's: greedy ids, caches, padding, and the distributions that are sampled from."""
import sys

import pytest
import torch
import transformers
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import minitransfer as mt
from minitransfer.generate import filtered_probs, left_padded, packed_copy, penalised, quick
from minitransfer.ops.packed_linear import PackedLinear
from tests.reference import pair


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return pair("GPT2LMHeadModel", tmp_path_factory.mktemp("gpt2"), scale=0.3, n_positions=97)


def prompts():
    ids, keep = torch.randint(2, 100, (5, 11)), torch.ones(5, 11, dtype=torch.bool)
    for row, n in enumerate((0, 3, 7, 10, 1)):
        keep[row, :n] = False
    return ids, keep


def theirs(reference, ids, keep, n, **more):
    return reference.generate(ids, attention_mask=keep.long(), max_new_tokens=n, do_sample=False, pad_token_id=0, eos_token_id=None, **more)


@pytest.mark.parametrize("precision", ["fp32"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_ids_of_64_tokens(models, use_cache, precision):
    reference, ours = models
    ids, keep = prompts()
    got = mt.generate(ours, ids, keep, max_new_tokens=64, use_cache=use_cache, precision=precision)
    assert got.shape == (5, 75)
    for row in range(5):                                        # each row alone is the truth for the padded batch
        want = theirs(reference, ids[row][keep[row]][None], torch.ones(1, int(keep[row].sum())), 64)
        assert got[row, -want.shape[1]:].tolist() == want[0].tolist()
    assert len(set(got[:, -20:].flatten().tolist())) > 3        # not one token for ever, which any model could agree on


def test_the_whole_batch_equals_theirs(models):
    reference, ours = models
    ids, keep = prompts()
    want = theirs(reference, ids, keep, 64)
    assert torch.equal(mt.generate(ours, ids, keep, max_new_tokens=64, precision="fp32")[:, 11:], want[:, 11:])


def test_right_padding_is_the_same_text(models):
    _, ours = models
    ids, keep = prompts()
    flipped = torch.stack([torch.cat([row[here], row[~here]]) for row, here in zip(ids, keep, strict=True)])
    right = torch.arange(11)[None] < keep.sum(1, keepdim=True)
    assert torch.equal(left_padded(flipped, right)[1], keep)
    assert torch.equal(mt.generate(ours, flipped, right, max_new_tokens=9)[:, 11:], mt.generate(ours, ids, keep, max_new_tokens=9)[:, 11:])


def test_repetition_penalty_ids(models):
    reference, ours = models
    ids, _ = prompts()
    want = theirs(reference, ids, torch.ones_like(ids), 40, repetition_penalty=1.7)
    assert torch.equal(mt.generate(ours, ids, max_new_tokens=40, repetition_penalty=1.7, precision="fp32"), want)
    assert not torch.equal(want, theirs(reference, ids, torch.ones_like(ids), 40))


@pytest.mark.parametrize("temperature, top_k, top_p", [(0.7, None, None), (1.0, 5, None), (1.0, None, 0.8), (1.3, 17, 0.6), (0.5, 1, None), (1.0, None, 1e-6), (1.0, 500, 1.0)])
def test_filtered_distributions(temperature, top_k, top_p):
    logits, ids = torch.randn(7, 101) * 3, torch.randint(0, 101, (7, 13))
    want = TemperatureLogitsWarper(temperature)(ids, logits)
    want = want if top_k is None else TopKLogitsWarper(top_k)(ids, want)
    want = want if top_p is None or top_p == 1 else TopPLogitsWarper(top_p)(ids, want)
    torch.testing.assert_close(filtered_probs(logits, temperature, top_k, top_p), want.softmax(-1), atol=1e-6, rtol=0)


def test_penalty_equals_theirs_and_forgets_padding():
    logits, ids = torch.randn(7, 101), torch.randint(0, 100, (7, 13))
    keep = torch.ones_like(ids, dtype=torch.bool)
    torch.testing.assert_close(penalised(logits, ids, keep, 1.4), RepetitionPenaltyLogitsProcessor(1.4)(ids, logits.clone()))
    ids[:, 0], keep[:, 0] = 100, False
    ids[3, 5], keep[3, 5] = 100, True
    got = penalised(logits, ids, keep, 1.4)
    assert got[0, 100] == logits[0, 100] and got[3, 100] != logits[3, 100]


def test_samples_follow_the_distribution(models):
    _, ours = models
    ids = torch.randint(2, 100, (1, 7)).expand(4001, 7)
    got = mt.generate(ours, ids, max_new_tokens=1, temperature=0.9, top_k=4, generator=torch.Generator().manual_seed(1), precision="fp32")[:, -1]
    want = filtered_probs(ours(ids[:1]).logits[:, -1], 0.9, 4)[0]
    seen = torch.bincount(got, minlength=103) / 4001
    assert (seen - want).abs().max() < 4 * (want * (1 - want) / 4001).max().sqrt()
    assert bool(((want > 0) | (seen == 0)).all())


def test_stop_tokens_fill_the_row(models):
    _, ours = models
    ids, keep = prompts()
    free = mt.generate(ours, ids, keep, max_new_tokens=30, precision="fp32")
    stop = int(free[0, 11 + 4])
    got = mt.generate(ours, ids, keep, max_new_tokens=30, stop=[stop], precision="fp32")
    for row in range(5):
        new = free[row, 11:].tolist()
        end = new.index(stop) if stop in new else len(new)
        expected = (new[: end + 1] + [stop] * 30)[: got.shape[1] - 11]
        assert got[row, 11:].tolist() == expected


def test_default_precision_stays_close(models):
    """bf16 products move logits by its rounding; the packed copy must not do worse than plain bf16 does."""
    _, ours = models
    ids = torch.randint(2, 100, (3, 29))
    with torch.no_grad():
        exact, plain = ours(ids).logits, mt.Model.from_pretrained(ours.load_report.source, dtype=torch.bfloat16)(ids).logits
        with quick(ours, "bf16") as fast:                                        # packed, or under autocast where the CPU cannot
            packed = fast(ids).logits
    assert (packed - exact).abs().mean() <= (plain.float() - exact).abs().mean()
    assert (packed - exact).abs().max() > 0


def test_int8_stays_close_and_leaves_the_model_alone(models):
    """Weights within 1/128 of their row's largest, inputs within 1/510 of their range: a few percent of the logits' size, and not nothing."""
    _, ours = models
    before = {name: p.clone() for name, p in ours.named_parameters()}
    ids = torch.randint(2, 100, (3, 29))
    exact = ours(ids).logits
    with torch.no_grad(), quick(ours, "int8") as fast:
        got = fast(ids).logits
        held = [m.dtype for m in fast.modules() if isinstance(m, PackedLinear)]
    assert held == [torch.int8] * len(held) and len(held) == 4 * len(ours.blocks) + 1      # q, k and v in one; o; up; down; and the output
    assert 0 < (got - exact).std() <= 0.06 * exact.std()
    assert mt.generate(ours, ids, max_new_tokens=9, precision="int8").shape == (3, 38)
    assert dict(ours.named_parameters()).keys() == before.keys() and all(torch.equal(p, before[name]) for name, p in ours.named_parameters())


def test_int8_changes_the_perplexity_of_the_bundled_decoder_by_less_than_one_percent():
    model, tok = mt.Model.from_pretrained("mini-gpt"), mt.Tokenizer.from_pretrained("mini-gpt")
    ids = tok([mt.samples.path("general.txt").read_text(encoding="utf-8")[:5000]], max_length=10**6)["input_ids"][0]
    ids = ids[: len(ids) // 97 * 97].view(-1, 97)
    losses = {}
    for precision in ("fp32", "int8"):
        with torch.no_grad(), quick(model, precision) as fast:
            losses[precision] = fast(ids, labels=ids).loss
    assert len(ids) > 5 and 0 < (losses["int8"] - losses["fp32"]).abs().expm1() <= 0.01


def test_vectors_in_int8():
    model, tok = mt.Model.from_pretrained("mini-bert", head="embedding"), mt.Tokenizer.from_pretrained("mini-bert")
    texts = [line for line in mt.samples.path("general.txt").read_text(encoding="utf-8").splitlines() if line][:17]
    exact, got = (mt.embed(model, tok, texts, batch_size=5, precision=precision) for precision in ("fp32", "int8"))
    cosines = (exact * got).sum(1)
    assert bool((cosines > 0.98).all()) and bool((cosines < 1 - 1e-6).all())
    assert torch.equal((got @ exact.T).argmax(1), torch.arange(17))              # each is nearest to itself


def test_precisions_that_are_not_there(models, monkeypatch):
    with pytest.raises(ValueError, match="precision='int7'; it is one of 'auto', 'fp32', 'bf16', 'fp16', 'int8'"):
        mt.generate(models[1], torch.ones(1, 3, dtype=torch.long), precision="int7")
    monkeypatch.setattr(sys.modules["minitransfer.generate"], "available", lambda dtype: dtype != torch.int8)
    with pytest.raises(ValueError, match=r'precision="int8" on cpu with the quantised engine .*: use "auto"'):
        mt.generate(models[1], torch.ones(1, 3, dtype=torch.long), precision="int8")


def test_packed_copy_follows_the_weights(models):
    _, ours = models
    ids = torch.randint(2, 100, (1, 5))
    first = mt.generate(ours, ids, max_new_tokens=8, precision="fp32")
    assert packed_copy(ours, torch.float32) is packed_copy(ours, torch.float32)
    with torch.no_grad():
        kept = ours.blocks[1].mlp.up_proj.weight.clone()
        ours.blocks[1].mlp.up_proj.weight.mul_(-2)
        changed = mt.generate(ours, ids, max_new_tokens=8, precision="fp32")
        ours.blocks[1].mlp.up_proj.weight.copy_(kept)
    assert not torch.equal(first, changed)
    assert torch.equal(first, mt.generate(ours, ids, max_new_tokens=8, precision="fp32"))


@pytest.mark.parametrize("settings, message", [
    ({"max_new_tokens": 200}, "at most 97"), ({"temperature": -1.0}, "temperature=-1.0"), ({"top_p": 1.5}, "top_p=1.5"), ({"top_k": 0}, "top_k=0"),
    ({"max_new_tokens": 0}, "max_new_tokens=0"), ({"repetition_penalty": 0.0}, "repetition_penalty=0.0"),
])
def test_errors(models, settings, message):
    with pytest.raises(ValueError, match=message):
        mt.generate(models[1], torch.ones(1, 3, dtype=torch.long), **settings)


def test_wrong_heads():
    tok = mt.Tokenizer.train(["a b c", "a c b"], kind="wordpiece", vocab_size=20)
    bert = mt.Model(mt.ModelConfig(vocab_size=31, d_model=12, n_layers=1, n_heads=2, d_ff=17, max_len=13))
    with pytest.raises(ValueError, match='load it with head="causal"'):
        mt.generate(bert, torch.ones(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match='load it with head="masked"'):
        mt.fill(bert, tok, "a [MASK]")
    with pytest.raises(ValueError, match="embedding head"):
        mt.embed(bert, tok, ["a"])
    gpt2 = mt.Model(mt.families.gpt2.config_from_hf(transformers.GPT2Config(n_embd=12, n_head=2, n_layer=1, vocab_size=31).to_dict()), "causal")
    gpt2.set_head("embedding", pooling="last")
    with pytest.raises(ValueError, match=r"text 1 has no token; .*: leave empty texts out"):
        mt.embed(gpt2, mt.Tokenizer.train(["a b c", "a c b"], kind="byte_bpe", vocab_size=300), ["a", ""])
    gpt2.set_head("causal")
    with pytest.raises(ValueError, match="a text of no tokens"):
        mt.generate(gpt2, torch.ones(1, 0, dtype=torch.long))


@pytest.mark.parametrize("settings, said", [({"batch_size": 0}, "batch_size=0; so many texts"), ({"batch_size": -1}, "give 1 or more"),
                                            ({"max_length": 0}, "max_length=0 leaves no room")])
def test_vectors_of_no_texts_at_a_time(settings, said):
    model, tok = mt.Model.from_pretrained("mini-bert", head="embedding"), mt.Tokenizer.from_pretrained("mini-bert")
    with pytest.raises(ValueError, match=said):
        mt.embed(model, tok, ["a text"], **settings)
