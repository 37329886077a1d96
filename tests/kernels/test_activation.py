"""Bias + activation and gated units: kernels against fp64, whatever the order of threads; planted faults are noticed."""
import pytest
import torch

from minitransfer.ops.activation import ACTIVATIONS, IN_KERNEL, SHARES, bias_gelu, bias_reference, gated, gated_reference
from minitransfer.ops.dispatch import why_not

from .harness import FLOATS, barriers, guarded, guards, judge, planted, took_kernel, turns


def inputs(rows, columns, dtype, device="cpu", joined=False):
    """x (or gate), bias in float32, up, dy; joined: gate and up in one tensor."""
    new = torch.Generator().manual_seed(rows * columns)
    x, up, dy = (2 * torch.randn(rows, columns, generator=new) for _ in range(3))
    x, up = (torch.cat([x, up], -1), None) if joined else (x, up)
    tensors = [t if t is None else t.to(dtype) for t in (x, up, dy)]
    return [None if t is None else guarded(t.to(device)) for t in (tensors[0], torch.randn(columns, generator=new), *tensors[1:])]


def both_ways(forward, dy, *leaves):
    """The output, and the gradient of each leaf that is not None."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in leaves]
    with guards():
        y = forward(*leaves)
        return [y, *torch.autograd.grad(y, [t for t in leaves if t is not None], dy.to(y.dtype))]


def plain(reference, dtype, dy, *leaves):
    return both_ways(reference, *(None if t is None else t.cpu().to(dtype) for t in (dy, *leaves)))


def run_bias(rows, columns, dtype, activation, device="cpu", bias=True):
    x, b, _, dy = inputs(rows, columns, dtype, device)
    leaves = dy, x, b if bias else None

    def by_reference(x, bias):
        return bias_reference(x, bias, activation)
    return (both_ways(lambda x, b: bias_gelu(x, b, activation), *leaves), plain(by_reference, dtype, *leaves), plain(by_reference, torch.float64, *leaves))


def run_gated(rows, columns, dtype, activation, device="cpu", joined=False):
    gate, _, up, dy = inputs(rows, columns, dtype, device, joined)

    def by_reference(gate, up):
        return gated_reference(gate, up, activation)
    return (both_ways(lambda g, u: gated(g, u, activation), dy, gate, up), plain(by_reference, dtype, dy, gate, up),
            plain(by_reference, torch.float64, dy, gate, up))


def judge_all(ours, plainly, truth):
    for name, mine, other, true in zip(("y", "first gradient", "second gradient"), ours, plainly, truth, strict=False):
        judge(mine, other, true, name)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize("rows, columns, bias", [(7, 131, True), (1, 131, False), (6, 1048, True)])
def test_bias(rows, columns, bias, activation, dtype, device):
    judge_all(*run_bias(rows, columns, dtype, activation, device, bias))
    assert took_kernel("bias_gelu")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("joined", [False, True], ids=["two", "joined"])
@pytest.mark.parametrize("rows, columns, activation", [(5, 131, "gelu"), (6, 1048, "gelu_tanh"), (3, 264, "silu")])
def test_gated(rows, columns, activation, joined, dtype, device):
    judge_all(*run_gated(rows, columns, dtype, activation, device, joined))
    assert took_kernel("gated")


@pytest.mark.parametrize("rows", [4 * SHARES, 4 * SHARES + 3])
def test_more_rows_than_blocks_begin_with(rows, device):
    judge_all(*run_bias(rows, 3, torch.float32, "gelu", device))
    judge_all(*run_gated(rows, 3, torch.float32, "gelu", device))


@pytest.mark.parametrize("activation", IN_KERNEL)
def test_values_and_slopes_on_a_line(activation, device):
    """-12 ... 12 and what lies far outside: nothing overflows, and the tails are as small as they should be."""
    x = torch.cat([torch.linspace(-12, 12, 4801), torch.tensor([-1e4, -100.0, -88.0, -0.0, 88.0, 1e4])]).double()
    ours, truth = ([t.detach() for t in both_ways(forward, torch.ones_like(z), z)] for forward, z in (
        (lambda z: bias_gelu(z, None, activation), x.float().to(device)), (lambda z: ACTIVATIONS[activation](z), x)))
    for mine, true in zip(ours, truth, strict=True):
        assert ((mine.cpu().double() - true).abs() / (true.abs() + 1e-3)).max() < 1e-4
        assert (mine.cpu().double() - true).abs()[x.abs() <= 12].max() < 2e-6
    assert took_kernel("bias_gelu")


def test_only_wanted_gradients(device):
    """A frozen bias costs no shares, and gets nothing."""
    x, bias, _, dy = inputs(7, 131, torch.float32, device)
    y = bias_gelu(x.requires_grad_(), bias)
    (dx,) = torch.autograd.grad(y, x, dy)
    assert not bias.requires_grad and torch.equal(dx, run_bias(7, 131, torch.float32, "gelu", device)[0][1])


def test_the_order_of_threads_and_blocks_changes_no_bit(emulator):
    def results():
        return [*run_bias(9, 131, torch.float32, "gelu")[0], *run_gated(9, 131, torch.float32, "gelu")[0]]
    first = results()
    for order in (1, 2, 3):
        with turns(order):
            assert all(torch.equal(a, b) for a, b in zip(results(), first, strict=True)), order


def test_there_is_no_barrier_to_remove():
    """A thread reads and writes its own columns alone."""
    assert barriers("activation.cu") == 0


@pytest.mark.parametrize("old, new, columns, message", [
    ("c >= columns", "c >= columns + 8", 131, "bad memory access"),
    ("first + r < rows", "first + r <= rows", 131, "bad memory access"),
    ("threadIdx.x) * VECTOR", "threadIdx.x) * VECTOR + 1", 264, "misaligned access"),
])
def test_access_past_the_end_is_noticed(old, new, columns, message, emulator):
    with planted("activation.cu", old, new), pytest.raises(RuntimeError, match=message):
        run_bias(5, columns, torch.bfloat16, "gelu")


@pytest.mark.parametrize("old, new", [("1.330274429f", "1.330174429f"), ("below + z * phi", "below - z * phi"), ("dbias[j] += dz", "dbias[j] = dz"),
                                      ("0.2316419f", "0.2316519f")])
def test_a_wrong_formula_is_noticed(old, new, emulator):
    with planted("activation.cu", old, new), pytest.raises(AssertionError, match="from the truth"):
        judge_all(*run_bias(7, 131, torch.float32, "gelu"))


def test_what_has_no_kernel_runs_in_pytorch_and_says_why(emulator):
    x = torch.randn(2, 5)
    assert torch.equal(gated(x, x, "tanh"), x.tanh() * x) and why_not("gated") == "activation=tanh; kernels know gelu, gelu_tanh, relu, silu, quick_gelu"
    assert torch.equal(gated(x, x.double()), torch.nn.functional.silu(x) * x.double())
    assert why_not("gated") == "gate is torch.float32 and up torch.float64; a kernel reads one dtype"
    assert bias_gelu(x[:0], None).shape == (0, 5) and why_not("bias_gelu") == "an empty batch"
    with pytest.raises(ValueError, match="activation='swish'; it is one of 'gelu', 'gelu_tanh', 'relu'"):
        gated(x, x, "swish")
    with pytest.raises(ValueError, match="rows of 5 numbers; without `up` a row is gate and up, two halves"):
        gated(x)
