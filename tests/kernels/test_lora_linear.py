"""LoRA linear: kernels against fp64, one adapter and several in a batch, dropout by Philox; planted faults are noticed."""
import pytest
import torch
from torch.nn.functional import linear

from minitransfer.ops import lora_linear
from minitransfer.ops.dispatch import why_not
from minitransfer.ops.lora_linear import reference

from .harness import FLOATS, barriers, guarded, guards, judge, keep_mask, planted, took_kernel, turns

RANDOM = torch.tensor([4321, 5])
NAMES = ("x", "weight", "bias", "A", "B")
SCALE = 0.7


def inputs(shape, columns, rank, dtype, adapters=None, device="cpu"):
    """x, weight, bias, A, B, dy; A and B in float32, with several adapters stacked."""
    (*rows, inner), new = shape, torch.Generator().manual_seed(columns)
    many = [] if adapters is None else [adapters]
    sizes = [(*rows, inner), (columns, inner), (columns,), (*many, rank, inner), (*many, columns, rank), (*rows, columns)]
    wide = [torch.randn(size, generator=new) for size in sizes]
    return [guarded((t if i in (3, 4) else t.to(dtype)).to(device)) for i, t in enumerate(wide)]


def formula(x, weight, bias, A, B, rate=0.0, adapter=None):
    """Row by row where each has its own adapter."""
    dropped = x * keep_mask(RANDOM, x.shape, rate).to(x.dtype) / (1 - rate) if rate else x
    y = linear(x, weight, bias)
    if adapter is None:
        return y + SCALE * linear(linear(dropped, A), B)
    own = [SCALE * linear(linear(row, A[a]), B[a]) if a >= 0 else torch.zeros_like(one)
           for row, one, a in zip(dropped.flatten(0, -2), y.flatten(0, -2), adapter.flatten().tolist(), strict=True)]
    return y + torch.stack(own).view_as(y)


def both_ways(forward, given):
    leaves = [t.detach().requires_grad_() for t in given[:5]]
    y = forward(*leaves)
    with guards():
        return dict(zip(("y", *NAMES), [y, *torch.autograd.grad(y, leaves, given[5].to(y.dtype))], strict=True))


def run(shape, columns, rank, dtype, rate=0.0, adapter=None, device="cpu"):
    given = inputs(shape, columns, rank, dtype, None if adapter is None else 3, device)

    def kernel(*leaves):
        with guards():
            return lora_linear(*leaves, SCALE, rate, None if adapter is None else guarded(adapter.to(device)), guarded(RANDOM.clone().to(device)))
    on_cpu = [t.cpu() for t in given]
    return both_ways(kernel, given), *(both_ways(lambda *leaves: formula(*leaves, rate, adapter), [t.to(wide) for t in on_cpu]) for wide in (dtype, torch.float64))


def judge_all(ours, plain, truth):
    for name, value in ours.items():
        judge(value, plain[name].to(value.dtype), truth[name], name)


def mixed(*rows):
    """An adapter for each row: runs of one, single rows, rows without, and an adapter that no row has."""
    n = torch.Size(rows).numel()
    return (torch.tensor([0, 0, 0, 2, -1, 0, 2, 2, 2, 2, -1])[torch.arange(n) % 11]).int().view(rows)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape, columns, rank, rate", [((2, 37, 96), 136, 8, 0.0), ((71, 96), 136, 8, 0.4), ((5, 131), 67, 13, 0.0)])
def test_one_adapter(shape, columns, rank, rate, dtype, device):
    judge_all(*run(shape, columns, rank, dtype, rate, device=device))
    assert took_kernel("lora_linear")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_an_adapter_for_each_row(rate, dtype, device):
    adapter = mixed(3, 29)
    ours, plain, truth = run((3, 29, 96), 136, 8, dtype, rate, adapter, device)
    judge_all(ours, plain, truth)
    assert not ours["A"][1].any() and not ours["B"][1].any()
    x, weight, bias = inputs((3, 29, 96), 136, 8, dtype, 3, device)[:3]
    none = adapter < 0
    assert torch.equal(ours["y"][none.to(device)], linear(x, weight, bias)[none.to(device)])


@pytest.mark.slow
@pytest.mark.parametrize("shape, columns, rank", [((1061, 64), 1032, 8), ((67, 2056), 40, 16), ((9, 48), 56, 64)])
def test_larger(shape, columns, rank, device):
    """More rows than slices, more columns than a block, and the highest rank."""
    judge_all(*run(shape, columns, rank, torch.float32, 0.1, device=device))


def test_a_frozen_base_gets_no_gradient(device):
    x, weight, bias, A, B, _ = inputs((5, 96), 136, 8, torch.float32, device=device)
    lora_linear(x, weight, bias, A.requires_grad_(), B.requires_grad_(), SCALE).sum().backward()
    assert took_kernel("lora_linear") and weight.grad is None and x.grad is None and A.grad.any() and B.grad.any()


def test_under_autocast_it_is_a_linear(device):
    x, weight, bias, A, B, dy = inputs((5, 96), 136, 8, torch.float32, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        y = lora_linear(x, weight.requires_grad_(), bias, A, B, SCALE)
        base = linear(x, weight, bias)
    y.backward(dy.bfloat16())
    assert took_kernel("lora_linear") and y.dtype == base.dtype == torch.bfloat16 and weight.grad.dtype == torch.float32
    low = [t.cpu().bfloat16() for t in (x, weight.detach(), bias)]
    judge(y, formula(*low, A.cpu().bfloat16(), B.cpu().bfloat16()), formula(*(t.double() for t in (*low, A.cpu(), B.cpu()))), "y")


def test_the_reference_is_the_formula():
    """In fp64, of one adapter and of several; rows without one are the base's, bit for bit."""
    for adapter in (None, mixed(3, 5)):
        given = [t.double() for t in inputs((3, 5, 7), 11, 2, torch.float32, None if adapter is None else 3)]
        ours, truth = both_ways(lambda *leaves, a=adapter: reference(*leaves, SCALE, 0.0, a), given), both_ways(lambda *leaves, a=adapter: formula(*leaves, 0.0, a), given)
        assert all(torch.allclose(ours[name], truth[name], rtol=1e-12, atol=1e-12) for name in ours)
        if adapter is not None:
            assert torch.equal(ours["y"][adapter < 0], linear(*given[:3])[adapter < 0])


def test_the_order_of_threads_and_blocks_changes_no_bit(emulator):
    first = run((2, 37, 96), 136, 8, torch.float32, 0.4, mixed(2, 37))[0]
    for order in (1, 2):
        with turns(order):
            again = run((2, 37, 96), 136, 8, torch.float32, 0.4, mixed(2, 37))[0]
            assert all(torch.equal(again[name], first[name]) for name in first), order


def test_no_barrier_of_its_own():
    assert barriers("lora.cu") == 0


@pytest.mark.parametrize("old, new, nth, message", [
    ("row >= end ? -1", "row > end ? -1", 0, "bad memory access"),
    ("if (c >= columns) return;", "", 1, "bad memory access"),
    ("narrow[(u64)(first + k) * RANK + group + r] = total * scale", "narrow[(u64)(first + k) * RANK + group + r] = total", 0, "from the truth"),
    ("own[k] != loaded", "loaded < 0", 0, "from the truth"),
    ("own[k] != summed) {", "over) {", 0, "from the truth"),
    ("* factor[j]);", ");", 0, "from the truth"),
])
def test_planted_faults_are_noticed(old, new, nth, message, emulator):
    with planted("lora.cu", old, new, nth), pytest.raises((RuntimeError, AssertionError), match=message):
        judge_all(*run((37, 96), 136, 8, torch.float32, 0.4, mixed(37)))


def test_what_has_no_kernel_says_why(emulator):
    x, weight, bias, A, B, _ = inputs((5, 7), 11, 65, torch.float32)
    assert torch.allclose(lora_linear(x, weight, bias, A, B, SCALE), formula(x, weight, bias, A, B), atol=1e-4)
    assert why_not("lora_linear") == "rank 65; a kernel takes ranks to 64"
    with pytest.raises(ValueError, match=r"A of shape \(65, 7\) with an adapter for each row; several adapters are \(K, R, D\) with `adapter`"):
        lora_linear(x, weight, bias, A, B, SCALE, adapter=torch.zeros(5, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"adapter of shape \(4,\) for x of shape \(5, 7\); every row of x has a number: expand it to \(5,\)"):
        lora_linear(x, weight, bias, A[None], B[None], SCALE, adapter=torch.zeros(4, dtype=torch.int32))
