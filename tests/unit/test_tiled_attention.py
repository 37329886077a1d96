"""Tiled attention: many small tiles against the whole matrix, gradients by finite differences, dropout that is drawn twice alike, and no T x S tensor."""
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from minitransfer.nn.masks import Mask
from minitransfer.ops import tiled_attention as op
from minitransfer.ops.tiled_attention import cost, reference, tiled_attention
from tests.unit.test_attention import NAMES, facts

B, H, Dh = 3, 2, 5


def qkv(T, S, dtype=torch.float64, scale=1.0):
    return [(torch.randn(B, H, n, Dh, dtype=dtype) * scale).requires_grad_() for n in (T, S, S)]


def parts(mask: Mask):
    return lambda queries, keys: mask.part(queries, keys, torch.device("cpu"))


@pytest.mark.parametrize("T, S", [(23, 23), (7, 23)])
@pytest.mark.parametrize("tile", [1, 5, 16, 128])
@pytest.mark.parametrize("name", NAMES)
def test_any_tile_size_equals_the_whole_matrix(name, tile, T, S):
    mask = Mask(**facts(name, S))
    ours, theirs = qkv(T, S), None
    theirs = [t.detach().clone().requires_grad_() for t in ours]
    out, truth = tiled_attention(*ours, parts(mask), tile), reference(*theirs, mask.dense(T, S, torch.device("cpu")))
    weights = torch.randn_like(out)
    (out * weights).sum().backward()
    (truth * weights).sum().backward()
    assert (out - truth).abs().max() < 1e-12
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.grad - other.grad).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["plain", "causal+padding", "window", "documents", "empty rows", "nothing at all"])
def test_gradients_by_finite_differences(name):
    mask, (q, k, v) = Mask(**facts(name, 7)), qkv(5, 7)
    small = [t.detach()[:, :1, :, :3].requires_grad_() for t in (q, k, v)]
    assert torch.autograd.gradcheck(lambda *t: tiled_attention(*t, parts(mask), tile=3), small, eps=1e-6, atol=1e-7, fast_mode=name != "causal+padding")


def seeded(*tensors, rate=0.4, tile=3):
    torch.manual_seed(5)
    return tiled_attention(*tensors, tile=tile, dropout=rate)


def test_dropout_is_the_same_in_backward():
    """Were the mask of a tile drawn anew in backward, finite differences of the fixed-seed function would say so."""
    assert torch.autograd.gradcheck(seeded, [t.detach()[:1, :, :, :3].requires_grad_() for t in qkv(5, 7)], eps=1e-6, atol=1e-7)


def test_dropout_zeroes_and_rescales_probabilities():
    """With v = I the output is the dropped probability matrix itself."""
    S, rate = 97, 0.3
    q, k = torch.randn(B, H, S, S), torch.randn(B, H, S, S)
    v = torch.eye(S).expand(B, H, S, S)
    torch.manual_seed(3)
    dropped = tiled_attention(q, k, v, tile=16, dropout=rate)
    ratio = dropped / (q @ k.transpose(-2, -1) / math.sqrt(S)).softmax(-1)
    kept = ratio > 0.5
    assert torch.allclose(ratio[kept], torch.tensor(1 / (1 - rate)), atol=1e-3) and torch.equal(ratio[~kept], torch.zeros(int((~kept).sum())))
    n = ratio.numel()
    assert abs(kept.float().mean() - (1 - rate)) < 4 * math.sqrt(rate * (1 - rate) / n)
    tiles = [kept[..., i : i + 16, j : j + 16] for i in range(0, 96, 16) for j in range(0, 96, 16)]
    assert all(not torch.equal(a, b) for n, a in enumerate(tiles) for b in tiles[:n])       # no two tiles share a mask
    torch.manual_seed(4)
    assert not torch.equal(dropped, tiled_attention(q, k, v, tile=16, dropout=rate))        # nor do two calls


class Largest(TorchDispatchMode):
    """The most numbers any tensor made inside had."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(t.numel() for t in tree_flatten(out)[0] if isinstance(t, torch.Tensor))])
        return out


@pytest.mark.parametrize("mask", [Mask(), Mask(causal=True), Mask(torch.ones(1, 256, dtype=torch.bool), True, 99, torch.arange(256)[None] // 100)],
                         ids=["plain", "causal", "everything"])
def test_no_tensor_has_the_size_of_the_matrix(mask):
    T, tile = 256, 32
    q, k, v = (torch.randn(1, 1, T, 8, requires_grad=True) for _ in range(3))
    with Largest() as seen:
        tiled_attention(q, k, v, parts(mask), tile, dropout=0.1).sum().backward()
    assert seen.numbers == T * 8                                               # q itself; a tile has 1,024, the matrix 65,536
    with Largest() as seen:
        reference(q, k, v, mask.dense(T, T, torch.device("cpu"))).sum().backward()
    assert seen.numbers == T * T


def test_extreme_scores_stay_finite():
    q, k, v = qkv(13, 13, torch.float32, scale=40.0)
    out = tiled_attention(q, k, v, parts(Mask(causal=True)), tile=4)
    truth = reference(*(t.double() for t in (q, k, v)), Mask(causal=True).dense(13, 13, torch.device("cpu")))
    out.sum().backward()
    assert (out - truth).abs().max() < 1e-3 and all(torch.isfinite(t.grad).all() for t in (q, k, v))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_no_worse_than_the_whole_matrix(dtype):
    wide = qkv(61, 61)
    narrow = [t.detach().to(dtype).requires_grad_() for t in wide]
    again = [t.detach().clone().requires_grad_() for t in narrow]
    truth = [t.detach().double().requires_grad_() for t in narrow]
    mask, dout = Mask(causal=True).dense(61, 61, torch.device("cpu")), torch.randn(B, H, 61, Dh, dtype=torch.float64)
    outs = tiled_attention(*narrow, parts(Mask(causal=True)), tile=16), reference(*again, mask), reference(*truth, mask)
    for out in outs:
        out.backward(dout.to(out.dtype))
    for ours, plain, true in zip((outs[0], *(t.grad for t in narrow)), (outs[1], *(t.grad for t in again)), (outs[2], *(t.grad for t in truth)), strict=True):
        assert ours.dtype == dtype
        assert (ours.double() - true).abs().mean() <= 2 * (plain.double() - true).abs().mean()


def test_strided_input():
    q, k, v = (torch.randn(B, 11, H, Dh).transpose(1, 2) for _ in range(3))
    assert not q.is_contiguous()
    assert torch.allclose(tiled_attention(q, k, v, tile=4), reference(q, k, v), atol=1e-6)


def test_cost_counts_the_four_products():
    """Forward: two products of T x S x Dh, two operations each; backward: five."""
    assert cost(2, 3, 5, 7, 11)["flop_forward"] == 2 * 2 * (2 * 3) * 5 * 7 * 11
    assert cost(2, 3, 5, 7, 11)["flop_backward"] == 5 * 2 * (2 * 3) * 5 * 7 * 11
    assert cost(2, 3, 5, 7, 11)["bytes_forward"] == 4 * 2 * 3 * (5 + 7 + 7 + 5) * 11         # q, k, v in, out out


def test_refused():
    with pytest.raises(ValueError, match="tile=0; a tile holds at least one token: give 1 or more"):
        tiled_attention(*qkv(3, 3), tile=0)


def test_no_second_derivatives_rather_than_wrong_ones():
    q, k, v = qkv(3, 3)
    (dq,) = torch.autograd.grad(tiled_attention(q, k, v).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        dq.sum().backward()


def test_tiles_cover_every_row_once():
    assert [i for part in op.tiles(23, 5) for i in part] == list(range(23))
