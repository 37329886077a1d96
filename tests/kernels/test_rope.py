"""Rotary positions: the kernel against complex products in fp64; in place forward, backward by the negative angle; planted faults are noticed."""
import pytest
import torch

from minitransfer.ops.dispatch import why_not
from minitransfer.ops.rope import reference, rope, rope_tables

from .harness import FLOATS, barriers, guarded, guards, judge, planted, took_kernel, turns

LENGTH = 13


def inputs(shape, H, K, width, half, dtype, device="cpu"):
    """q, k, their gradients; positions of packed texts; tables."""
    new = torch.Generator().manual_seed(width * half)
    positions = torch.randint(LENGTH, shape, generator=new)
    tensors = [torch.randn(*shape, heads, width, generator=new).to(dtype) for heads in (H, K, H, K)]
    tables = rope_tables(0.7 / 3.0 ** torch.arange(half), LENGTH)
    return [guarded(t.to(device)) for t in tensors], positions.to(device), [guarded(t.to(device)) for t in tables]


class Product(torch.autograd.Function):
    """A guarded copy that has a gradient, as what a product gives: it may be overwritten."""

    @staticmethod
    def forward(ctx, x):
        return guarded(x.clone())

    @staticmethod
    def backward(ctx, dy):
        return dy


def both_ways(forward, q, k, dq, dk):
    leaves = [t.detach().requires_grad_() for t in (q, k)]
    turned = forward(*map(Product.apply, leaves))
    with guards():
        return [*(t.detach() for t in turned), *torch.autograd.grad(turned, leaves, (dq, dk))]


def truth_of(q, k, dq, dk, positions, half):
    """(x_j + i x_{j + half}) e^(i position w_j); gradients by the conjugate."""
    angles = positions.cpu()[..., None, None].double() * (0.7 / 3.0 ** torch.arange(half)).double()
    e = torch.polar(torch.ones_like(angles), angles)

    def turned(x, e):
        x = x.cpu().double()
        z = torch.complex(x[..., :half], x[..., half:2 * half]) * e
        return torch.cat([z.real, z.imag, x[..., 2 * half:]], -1)
    return [turned(x, e) for x in (q, k)] + [turned(x, e.conj()) for x in (dq, dk)]


def run(shape, H, K, width, half, dtype, device="cpu"):
    tensors, positions, tables = inputs(shape, H, K, width, half, dtype, device)
    ours = both_ways(lambda q, k: rope(q, k, positions, *tables), *tensors)
    on_cpu = [t.cpu() for t in tables]
    plainly = both_ways(lambda q, k: reference(q, k, positions.cpu(), *on_cpu), *(t.cpu() for t in tensors))
    return ours, plainly, truth_of(*tensors, positions, half)


def judge_all(ours, plainly, truth):
    for name, mine, other, true in zip(("q", "k", "dq", "dk"), ours, plainly, truth, strict=True):
        judge(mine, other, true, name)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape, H, K, width, half", [((8,), 3, 1, 10, 3), ((2, 5), 4, 2, 32, 16), ((11,), 5, 5, 40, 8), ((3,), 37, 19, 11, 5)],
                         ids=["odd, partial", "grouped", "partial", "many heads"])
def test_numbers(shape, H, K, width, half, dtype, device):
    judge_all(*run(shape, H, K, width, half, dtype, device))
    assert took_kernel("rope")


def test_in_place(device):
    """The memory that came in holds the result, what does not turn stays, and who kept the old numbers for backward is told."""
    (q, k, *_), positions, tables = inputs((7,), 3, 1, 10, 3, torch.float32, device)
    given = [q.requires_grad_() * 1, k * 1]
    kept = given[0].square()
    turned = rope(*given, positions, *tables)
    assert [t.data_ptr() for t in turned] == [t.data_ptr() for t in given] and torch.equal(turned[0][..., 6:], q[..., 6:]) and not torch.equal(turned[0], q)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.sum().backward()


def test_views_of_one_product(device):
    """q and k by unflattening two products, as attention has them."""
    (q, k, dq, dk), positions, tables = inputs((11,), 5, 5, 40, 8, torch.float32, device)
    flat = [t.flatten(1).clone().requires_grad_() for t in (q, k)]
    turned = rope(*((t * 1).unflatten(-1, (5, 40)) for t in flat), positions, *tables)
    for mine, true in zip([*turned, *(t.unflatten(-1, (5, 40)) for t in torch.autograd.grad(turned, flat, (dq, dk)))], truth_of(q, k, dq, dk, positions, 8), strict=True):
        assert (mine.cpu() - true).abs().max() < 1e-5


@pytest.mark.parametrize("texts", [1, 2])
def test_tables_with_a_row_for_each_token(texts, device):
    """Without positions: of every token, or of those of one text, which all texts share."""
    tensors, positions, tables = inputs((2, 5), 4, 2, 40, 8, torch.float32, device)
    positions = positions[:texts]
    own = [t[positions] for t in tables]
    ours = both_ways(lambda q, k: rope(q, k, None, *own), *tensors)
    plainly = both_ways(lambda q, k: reference(q, k, None, *(t.cpu() for t in own)), *(t.cpu() for t in tensors))
    judge_all(ours, plainly, truth_of(*tensors, positions.expand(2, 5), 8))
    assert took_kernel("rope")


def test_a_position_outside_the_tables_is_nan(device):
    (q, k, *_), _, tables = inputs((3,), 3, 1, 10, 3, torch.float32, device)
    turned = rope(q, k, torch.tensor([0, -1, LENGTH], device=device), *tables)[0]
    assert turned[1:, :, :6].isnan().all() and turned[0].isfinite().all() and turned[..., 6:].isfinite().all()


def test_the_order_of_threads_and_blocks_changes_no_bit(emulator):
    first = run((3,), 37, 19, 11, 5, torch.float32)[0]
    for order in (1, 2, 3):
        with turns(order):
            assert all(torch.equal(a, b) for a, b in zip(run((3,), 37, 19, 11, 5, torch.float32)[0], first, strict=True)), order


def test_there_is_no_barrier_to_remove():
    assert barriers("rope.cu") == 0


@pytest.mark.parametrize("old, new, fault, message", [
    ("i < (q_heads + k_heads) * pieces", "i < (q_heads + k_heads + 9) * pieces", RuntimeError, "bad memory access"),
    ("position < n_positions", "true", RuntimeError, "bad memory access"),
    ("head - q_heads", "head", RuntimeError, "bad memory access"),
    ("direction * sine.v[j]", "sine.v[j]", AssertionError, "dq: .* from the truth"),
    ("x * u - y * v", "x * u + y * v", AssertionError, "q: .* from the truth"),
    ("(pairs + piece) * VECTOR", "piece * VECTOR", AssertionError, "dq: "),
])
def test_planted_faults_are_noticed(old, new, fault, message, emulator):
    with planted("rope.cu", old, new), pytest.raises(fault, match=message):
        judge_all(*run((8,), 3, 1, 10, 3, torch.float32))
        (q, k, *_), _, tables = inputs((4,), 3, 1, 10, 3, torch.float32)
        rope(q, k, torch.tensor([0, 1, 2, LENGTH]), *tables)


def test_what_has_no_kernel_runs_in_pytorch_and_says_why(emulator):
    (q, k, *_), positions, tables = inputs((7,), 3, 1, 10, 3, torch.float32)
    mixed = rope(q, k.double(), positions, *tables)
    assert torch.equal(mixed[0], reference(q, k.double(), positions, *tables)[0]) and why_not("rope") == "q is torch.float32 and k torch.float64; a kernel reads one dtype"
    with pytest.raises(ValueError, match="tables of 3 angles; a head of 4 numbers has 2 pairs"):
        rope(q[..., :4], k[..., :4], positions, *tables)
    with pytest.raises(ValueError, match=r"tables of \(13,\) rows for \(7,\) tokens; without positions each token has its row"):
        rope(q, k, None, *tables)
    with pytest.raises(ValueError, match="a leaf that requires a gradient; it would be overwritten"):
        rope(q.requires_grad_(), k, positions, *tables)
