"""Dropout with 16 random bits: the rate it claims, the mean it keeps, one mask for both directions; and attention that uses it."""
import pytest
import torch

from minitransfer.ops.dense_attention import dense_attention
from minitransfer.ops.dense_attention import reference as attention_reference
from minitransfer.ops.dropout import Dropout, draw_keep, dropout, rounded

N = 1_000_003


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9, 1e-4])
def test_rate_and_mean(rate):
    y = dropout(torch.ones(N, dtype=torch.float64), rate)
    dropped, scale = rounded(rate)
    assert abs(dropped / 65536 - rate) <= 0.5 / 65536
    assert set(y.unique().tolist()) == {0.0, scale}
    tolerance = 5 * (rate * (1 - rate) / N) ** 0.5
    assert abs(float((y == 0).double().mean()) - dropped / 65536) < tolerance
    assert abs(float(y.mean()) - 1) < tolerance / (1 - rate)


def test_bits_are_independent_of_their_place_in_a_draw():
    """Four elements share one draw of 64 bits: each of the four, and each pair of neighbours, has to look the same."""
    keep = draw_keep(torch.empty(4 * 250_007), rounded(0.5)[0]).view(-1, 4).double()
    assert (keep.mean(0) - 0.5).abs().max() < 0.005
    assert (torch.corrcoef(keep.T) - torch.eye(4)).abs().max() < 0.01


def test_backward_uses_the_mask_of_forward():
    x = torch.randn(7, 11, 13, dtype=torch.float64, requires_grad=True)
    y = dropout(x, 0.3)
    y.backward(torch.ones_like(y))
    torch.testing.assert_close(x.grad, (y / x).detach())
    assert (x.grad == 0).any() and (x.grad > 1).any()


def test_seed_governs_and_evaluation_is_untouched():
    x, module = torch.randn(5, 7), Dropout(0.4)
    torch.manual_seed(3)
    first = module(x)
    torch.manual_seed(3)
    assert torch.equal(module(x), first)
    assert not torch.equal(module(x), first)
    assert module.eval()(x) is x and dropout(x, 0.0) is x
    with pytest.raises(ValueError, match=r"rate=1\.0; it is a probability"):
        dropout(x, 1.0)


def qkv():
    return [torch.randn(2, 3, n, 5, dtype=torch.float64, requires_grad=True) for n in (7, 11, 11)]


def sight():
    mask = torch.rand(2, 1, 7, 11) > 0.4
    mask[0, 0, 3] = False
    return mask


def test_dense_attention_equals_its_reference_and_its_gradients_finite_differences():
    inputs, mask = qkv(), sight()
    out = dense_attention(*inputs, mask)
    torch.testing.assert_close(out, attention_reference(*inputs, mask))
    assert torch.equal(out[0, :, 3], torch.zeros_like(out[0, :, 3]))
    assert torch.autograd.gradcheck(lambda *t: dense_attention(*t, mask), inputs)
    assert torch.autograd.gradcheck(lambda *t: dense_attention(*t), inputs)


@pytest.mark.slow
def test_dense_attention_with_dropout():
    """With the draw held fixed the gradients are those of finite differences; over many draws the mean is the output without dropout."""
    inputs, mask = qkv(), sight()

    def fixed(*tensors):
        torch.manual_seed(5)
        return dense_attention(*tensors, mask, 0.3)
    assert torch.autograd.gradcheck(fixed, inputs)
    with torch.no_grad():
        q, k, v = inputs
        many = dense_attention(q.repeat(4001, 1, 1, 1), k.repeat(4001, 1, 1, 1), v.repeat(4001, 1, 1, 1), mask.repeat(4001, 1, 1, 1), 0.3).view(4001, *q.shape)
    spread = many.std(0) / 4001 ** 0.5
    assert ((many.mean(0) - dense_attention(*inputs, mask)).abs() <= 5 * spread + 1e-12).all()
