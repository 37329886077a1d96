"""Attention: the written-out path against one softmax at a time in fp64, and every backend against the written-out path."""
import math

import pytest
import torch

from minitransfer.nn.attention import BACKENDS, Attention, attend
from minitransfer.nn.cache import LayerCache
from minitransfer.nn.masks import Mask
from minitransfer.ops.dense_attention import dense_attention
from tests.unit.tiny import bert

B, H, Dh = 3, 4, 7


def row_by_row(q, k, v, allowed):
    """The definition in fp64: for each query the weighted mean of the values it may see; nothing to see: zeros."""
    q, k, v = q.double(), k.double(), v.double()
    out, probs = torch.zeros(*q.shape[:3], v.shape[3], dtype=torch.float64), torch.zeros(*q.shape[:3], k.shape[2], dtype=torch.float64)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for t in range(q.shape[2]):
                seen = [j for j in range(k.shape[2]) if allowed[min(b, len(allowed) - 1), 0, t, j]]
                weights = [math.exp(float(q[b, h, t] @ k[b, h, j]) / math.sqrt(q.shape[3])) for j in seen]
                for j, weight in zip(seen, weights, strict=True):
                    probs[b, h, t, j] = weight / sum(weights)
                    out[b, h, t] += probs[b, h, t, j] * v[b, h, j]
    return out, probs


def facts(name: str, S: int) -> dict:
    keep = torch.ones(B, S, dtype=torch.bool)
    keep[1, : S // 3], keep[2, S - S // 4 :] = False, False
    documents = torch.arange(S).div(5, rounding_mode="floor").expand(B, S)
    return {"plain": {}, "padding": {"keep": keep}, "causal": {"causal": True}, "causal+padding": {"causal": True, "keep": keep},
            "window": {"window": 3}, "causal+window": {"causal": True, "window": 4, "keep": keep}, "documents": {"documents": documents},
            "causal+documents": {"causal": True, "documents": documents}, "empty rows": {"keep": keep & (torch.arange(B) != 1)[:, None]},
            "nothing at all": {"keep": torch.zeros(B, S, dtype=torch.bool)}}[name]


NAMES = ["plain", "padding", "causal", "causal+padding", "window", "causal+window", "documents", "causal+documents", "empty rows", "nothing at all"]


@pytest.mark.parametrize("T", [13, 5, 1], ids="T{}".format)
@pytest.mark.parametrize("name", NAMES)
def test_written_out_is_the_definition(name, T):
    q, k, v = (torch.randn(B, H, n, Dh) for n in (T, 13, 13))
    allowed = Mask(**facts(name, 13)).dense(T, 13, q.device)
    out, probs, scores = attend(q, k, v, allowed)
    true_out, true_probs = row_by_row(q, k, v, allowed)
    assert (out - true_out).abs().max() < 1e-6 and (probs - true_probs).abs().max() < 1e-6
    assert torch.equal(scores == -math.inf, ~allowed.expand_as(scores))


def run(attention, backend, x, mask, past):
    """Outputs, and the gradients of x, of the cached states and of every parameter."""
    attention.use(backend)
    attention.zero_grad()
    x, cache = x.clone().requires_grad_(), None
    leaves = [x]
    if past is not None:
        past = past.clone().requires_grad_()
        leaves += [past]
        cache = LayerCache()
        cache.append(attention.heads(attention.k_proj(past)), attention.heads(attention.v_proj(past)))
    out, _, _ = attention(x, mask, cache)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return out.detach(), *(leaf.grad for leaf in leaves), *(p.grad.clone() for p in attention.parameters() if p.grad is not None)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
@pytest.mark.parametrize("n_kv_heads", [None, 2, 1], ids="kv{}".format)
@pytest.mark.parametrize("T, S", [(29, 29), (3, 29), (1, 29)], ids="T{}".format)
@pytest.mark.parametrize("name", NAMES)
def test_backends_agree(name, T, S, n_kv_heads, backend):
    attention = Attention(bert(n_kv_heads=n_kv_heads, n_heads=4, dropout=0.0)).eval()
    x, past = torch.randn(B, T, 28), torch.randn(B, S - T, 28) if T < S else None
    mask = Mask(**facts(name, S))
    truth = run(attention, "reference", x, mask, past)
    for mine, theirs in zip(run(attention, backend, x, mask, past), truth, strict=True):
        assert torch.isfinite(mine).all()
        assert (mine - theirs).abs().max() <= 1e-5 * max(1, theirs.abs().max())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_query_with_nothing_to_see_gives_zeros(backend):
    attention = Attention(bert(dropout=0.0)).eval()
    attention.use(backend)
    keep = torch.ones(B, 13, dtype=torch.bool)
    keep[1] = False
    x = torch.randn(B, 13, 28, requires_grad=True)
    out, _, _ = attention(x, Mask(keep))
    out.square().sum().backward()
    assert torch.equal(out[1], attention.o_proj.bias.expand(13, -1)) and not torch.equal(out[0], out[1])
    assert torch.equal(x.grad[1], torch.zeros(13, 28)) and torch.isfinite(x.grad).all()


def test_shared_heads_are_repeated_heads():
    """Two key/value heads that serve two queries each = four heads of which two and two are equal."""
    few, many = Attention(bert(n_kv_heads=2)).eval(), Attention(bert()).eval()
    state = few.state_dict()
    for name in ("k_proj", "v_proj"):
        for part in ("weight", "bias"):
            state[f"{name}.{part}"] = state[f"{name}.{part}"].unflatten(0, (2, 7)).repeat_interleave(2, 0).flatten(0, 1)
    many.load_state_dict(state)
    x = torch.randn(B, 13, 28)
    assert torch.allclose(few(x, Mask(causal=True))[0], many(x, Mask(causal=True))[0], atol=1e-6)


def test_show_gives_probabilities_and_scores_on_any_backend():
    attention = Attention(bert()).eval()
    for backend in BACKENDS:
        attention.use(backend)
        _, probs, scores = attention(torch.randn(B, 5, 28), Mask(causal=True), show=True)
        assert torch.allclose(probs.sum(-1), torch.ones(B, H, 5)) and torch.equal(probs > 0, torch.isfinite(scores))
        assert attention(torch.randn(B, 5, 28), Mask())[1:] == (None, None) or backend == "reference"


@pytest.mark.parametrize("backend", ["auto", "tiled", "sdpa"])
@pytest.mark.parametrize("name", ["plain", "causal+padding", "empty rows"])
def test_bf16_is_at_most_twice_the_written_out_path_from_the_truth(name, backend):
    """Judged against fp64 on the same rounded weights and input, for the output and every gradient."""
    attention, mask, results = Attention(bert(dropout=0.0)).eval().bfloat16(), Mask(**facts(name, 61)), []
    x = torch.randn(B, 61, 28).bfloat16()
    for kind, dtype in ((backend, torch.bfloat16), ("reference", torch.bfloat16), ("reference", torch.float64)):
        results.append(run(attention.to(dtype), kind, x.to(dtype), mask, None))
    judged = [errors for errors in zip(*results, strict=True) if errors[2].abs().max() > 1e-9]     # the key bias has no gradient, only noise
    assert len(judged) == len(results[0]) - 1
    for ours, plain, truth in judged:
        assert (ours - truth).abs().mean() <= 2 * (plain - truth).abs().mean() + 1e-9


def test_the_dense_path_has_no_second_derivatives_rather_than_wrong_ones():
    q, k, v = (torch.randn(1, 2, 3, 5, requires_grad=True) for _ in range(3))
    (dq,) = torch.autograd.grad(dense_attention(q, k, v).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        dq.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_of_probabilities_is_unbiased_and_absent_in_eval(backend):
    attention = Attention(bert(dropout=0.5))
    attention.use(backend)
    x = torch.randn(1, 11, 28).expand(2000, -1, -1)                             # one text, 2,000 draws
    plain = attention.eval()(x, Mask())[0]
    assert torch.equal(plain, attention(x, Mask())[0])
    draws = attention.train()(x, Mask())[0]
    error = (draws.mean(0) - plain[0]).abs() / (draws.std(0) / 2000**0.5)      # in standard errors of the mean
    assert draws.std(0).min() > 0 and error.max() < 5


def test_an_unknown_backend():
    with pytest.raises(ValueError, match="attention='flash'; it is one of 'auto', 'reference', 'tiled', 'sdpa': choose one of these"):
        Attention(bert()).use("flash")
