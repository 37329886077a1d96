"""Embedding sum + LayerNorm + dropout: kernels against fp64; gradients of tables in one order; planted faults are noticed."""
import pytest
import torch

from minitransfer.ops.embedding import RUN, embedding_sum, reference

from .harness import FLOATS, barriers, guarded, guards, judge, keep_mask, planted, took_kernel, turns

RANDOM = torch.tensor([1234, 7])
SIZES = (41, 67, 2)


def inputs(B, T, D, dtype, device="cpu"):
    """Ids and tables of tokens (half of them token 5), positions (the second text is packed: it restarts) and types; weight, bias, dy."""
    new = torch.Generator().manual_seed(B * T * D)
    ids, positions = torch.randint(SIZES[0], (B, T), generator=new), torch.arange(T)[None] % max(T - 3, 1)
    ids[torch.rand(B, T, generator=new) < 0.5] = 5
    types = (torch.arange(T)[None] >= T // 2).long().expand(B, T)
    tables = [guarded(torch.randn(n, D, generator=new).to(dtype).to(device)) for n in SIZES]
    weight, bias = 1 + torch.randn(D, generator=new) / 3, torch.randn(D, generator=new)
    return [t.to(device) for t in (ids, positions, types)], tables, [t.to(device) for t in (weight, bias)], torch.randn(B, T, D, generator=new).to(dtype).to(device)


def both_ways(forward, ids, tables, norm, dy):
    leaves = [t.detach().requires_grad_() for t in (*tables, *norm)]
    with guards():
        y = forward(list(zip(ids, leaves[: len(tables)], strict=True)), *leaves[len(tables):])
        return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def run(B, T, D, dtype, device="cpu", tables=3, norm=2, rate=0.0, scale=1.0):
    """Ours, plain PyTorch's and the truth: y, the gradients of the tables, of weight and bias."""
    ids, weights, normal, dy = inputs(B, T, D, dtype, device)
    given = ids[:tables], weights[:tables], normal[:norm], dy

    def kernel(lookups, weight=None, bias=None):
        return embedding_sum(lookups, weight, bias, 1e-5, scale, rate, RANDOM.to(device))

    def plainly(lookups, weight=None, bias=None):
        y = reference(lookups, weight, bias, 1e-5, scale)
        return y if rate == 0 else y * keep_mask(RANDOM, y.shape, rate).to(y.dtype) / (1 - rate)

    def on_cpu(to):
        ids, *rest, dy = given
        return both_ways(plainly, [t.cpu() for t in ids], *([t.cpu().to(to) for t in ts] for ts in rest), dy.cpu().to(to))
    return both_ways(kernel, *given), on_cpu(dtype), on_cpu(torch.float64)


def judge_all(ours, plainly, truth):
    for n, (mine, other, true) in enumerate(zip(ours, plainly, truth, strict=True)):
        judge(mine, other, true, "y" if n == 0 else f"gradient {n}")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("B, T, D, tables, norm, rate, scale", [(3, 67, 97, 3, 2, 0.0, 1.0), (2, 7, 97, 1, 0, 0.0, 3.5), (3, 67, 97, 2, 1, 0.3, 2.0),
                                                                (5, 67, 264, 3, 2, 0.1, 1.0), (5, 67, 264, 2, 0, 0.5, 1.0)])
def test_numbers(B, T, D, tables, norm, rate, scale, dtype, device):
    judge_all(*run(B, T, D, dtype, device, tables, norm, rate, scale))
    assert took_kernel("embedding_sum")


@pytest.mark.parametrize("n", [1, RUN - 1, RUN, RUN + 1, 2 * RUN, 2 * RUN + 1, 32 * RUN + 1])
@pytest.mark.parametrize("kind", ["one id", "all different", "blocks", "runs of 100"])
def test_runs_of_equal_ids(n, kind, device):
    """Integers, so that every order of adding is exact: runs that fill a block, end with it, cross it; three launches for the longest."""
    k = torch.arange(n)
    ids = {"one id": k * 0 + 3, "all different": (k * 7 + 1) % n if n % 7 else k, "blocks": k // RUN, "runs of 100": k // 100}[kind]
    ids = ids[torch.randperm(n, generator=torch.Generator().manual_seed(n))].to(device)
    table = torch.zeros(max(n, 5), 3, device=device, requires_grad=True)
    dy = torch.randint(-9, 10, (n, 3), generator=torch.Generator().manual_seed(n)).float().to(device)
    with guards():
        (ours,) = torch.autograd.grad(embedding_sum([(ids, table)]), table, dy)
    assert took_kernel("embedding_sum") and torch.equal(ours.cpu(), torch.zeros(table.shape).index_add(0, ids.cpu(), dy.cpu()))


def outside(device):
    """y and the table's gradient for ids of which two are no row of it."""
    table = guarded(torch.randn(5, 97)).to(device).requires_grad_()
    y = embedding_sum([(torch.tensor([0, 5, -1, 4], device=device), table)])
    with guards():
        return table, y, torch.autograd.grad(y, table, torch.ones_like(y))[0]


def test_an_id_outside_its_table_is_nan(device):
    """And writes no gradient outside."""
    table, y, gradient = outside(device)
    assert torch.equal(y[[0, 3]], table[[0, 4]]) and y[1:3].isnan().all()
    assert torch.equal(gradient.cpu(), torch.zeros(5, 97).index_fill(0, torch.tensor([0, 4]), 1.0))


def test_only_wanted_gradients(device):
    """Frozen embeddings: the norm alone."""
    ids, tables, (weight, bias), dy = inputs(3, 67, 97, torch.float32, device)
    y = embedding_sum(list(zip(ids, tables, strict=True)), weight.requires_grad_(), bias)
    (dweight,) = torch.autograd.grad(y, weight, dy)
    judge(dweight, *(one[4] for one in run(3, 67, 97, torch.float32, device)[1:]), "dweight")


def test_the_order_of_threads_and_blocks_changes_no_bit(emulator):
    first = run(3, 67, 97, torch.float32)[0]
    for order in (1, 2, 3):
        with turns(order):
            assert all(torch.equal(a, b) for a, b in zip(run(3, 67, 97, torch.float32)[0], first, strict=True)), order


def test_there_is_no_barrier_of_its_own():
    """Those of the sums are in common.cuh, and removed in turn in test_norm.py."""
    assert barriers("embedding.cu") == 0


@pytest.mark.parametrize("old, new, fault, message", [
    ("c < columns)", "c < columns + 8)", RuntimeError, "bad memory access"),
    ("id < table.size", "true", RuntimeError, "bad memory access"),
    ("ids[at] < size", "ids[at] < 9999", RuntimeError, "bad memory access"),
    ("if (fills) store", "if (false) store", AssertionError, "from the truth"),
    ("bool began_before = begin > 0 && ids[begin - 1] == ids[begin]", "bool began_before = false", AssertionError, "from the truth"),
    ("scale * sum[j]", "sum[j]", AssertionError, "from the truth"),
])
def test_planted_faults_are_noticed(old, new, fault, message, emulator):
    with planted("embedding.cu", old, new), pytest.raises(fault, match=message):
        judge_all(*run(3, 67, 97, torch.float32, scale=2.0))
        outside(torch.device("cpu"))
