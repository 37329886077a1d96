"""Residual + dropout + norm: kernels against fp64, whatever the order of threads; planted faults are noticed."""
import pytest
import torch

from minitransfer.nn.block import Block
from minitransfer.nn.masks import Mask
from minitransfer.ops.dispatch import why_not
from minitransfer.ops.norm import WIDEST, layer_norm_residual, norm_residual, reference

from ..unit.tiny import bert, moved
from .harness import FLOATS, barriers, guarded, guards, judge, keep_mask, planted, took_kernel, turns

RANDOM = torch.tensor([1234, 7])
NAMES = ("y", "h", "dx", "dresidual", "dweight", "dbias")


def inputs(rows, columns, dtype, device="cpu"):
    """x, residual, weight, bias, dy, dh."""
    new = torch.Generator().manual_seed(rows * columns)
    wide = [torch.randn(rows, columns, generator=new) for _ in range(2)] + [1 + torch.randn(columns, generator=new) / 3, torch.randn(columns, generator=new)]
    wide += [torch.randn(rows, columns, generator=new) for _ in range(2)]
    return [guarded((t if t.dim() == 1 else t.to(dtype)).to(device)) for t in wide]


def both_ways(forward, x, residual, weight, bias, dy, dh):
    """Outputs and gradients by NAMES; no residual: without its gradient, no bias: without its."""
    leaves = {name: t.detach().requires_grad_() for name, t in {"dx": x, "dresidual": residual, "dweight": weight, "dbias": bias}.items() if t is not None}
    y, h = forward(*(leaves.get(name) for name in NAMES[2:]))
    with guards():
        gradients = torch.autograd.grad([y, h], list(leaves.values()), [dy.to(y.dtype), dh.to(h.dtype)])
    return {"y": y, "h": h} | dict(zip(leaves, gradients, strict=True))


def kernel(rms, rate, wide=False):
    def forward(x, residual, weight, bias):
        with guards():
            return norm_residual(x, residual, weight, bias, 1e-5, rate, RANDOM.to(x.device), rms, wide)
    return forward


def plain(rms, rate, dtype):
    """The formula in one dtype, dropout by the mask that Philox gives."""
    def forward(x, residual, weight, bias):
        x, residual, weight, bias = (None if t is None else t.to(dtype) for t in (x, residual, weight, bias))
        dropped = x if rate == 0 else x * keep_mask(RANDOM, x.shape, rate).to(dtype) / (1 - rate)
        return reference(dropped, residual, weight, bias, 1e-5, 0.0, rms)
    return forward


def run(rows, columns, dtype, rms, rate, residual=True, bias=True, device="cpu"):
    x, r, weight, b, dy, dh = inputs(rows, columns, dtype, device)
    given = [x, r if residual else None, weight, b if bias and not rms else None, dy, dh]
    ours = both_ways(kernel(rms, rate), *given)
    on_cpu = [None if t is None else t.cpu() for t in given]
    return ours, both_ways(plain(rms, rate, dtype), *on_cpu), both_ways(plain(rms, rate, torch.float64), *[None if t is None else t.double() for t in on_cpu])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("rms", [False, True], ids=["layer", "rms"])
@pytest.mark.parametrize("rows, columns, rate, residual, bias", [(3, 97, 0.0, True, True), (7, 768, 0.5, True, True), (5, 131, 0.1, False, False), (1061, 8, 0.0, False, True)])
def test_numbers(rows, columns, rate, residual, bias, rms, dtype, device):
    ours, plainly, truth = run(rows, columns, dtype, rms, rate, residual, bias, device)
    assert took_kernel("rms_norm_residual" if rms else "layer_norm_residual")
    for name, value in ours.items():
        judge(value, plainly[name], truth[name], name)


@pytest.mark.parametrize("rows, columns, rms, rate, bias", [(7, 97, False, 0.0, True), (5, 768, True, 0.1, False), (3, 768, False, 0.0, False)])
@pytest.mark.parametrize("dtype, wide", [(torch.bfloat16, False), (torch.bfloat16, True), (torch.float16, False)], ids=str)
def test_a_stream_of_float32_and_x_of_16_bits(rows, columns, rms, rate, bias, dtype, wide, device):
    """As under autocast, where plain PyTorch gives y in float32 and the next product rounds it."""
    x, _, weight, b, dy, _ = inputs(rows, columns, dtype, device)
    _, residual, *_, dh = inputs(rows, columns, torch.float32, device)
    given = [x, residual, weight, b if bias else None, dy.float() if wide else dy, dh]
    ours = both_ways(kernel(rms, rate, wide), *given)
    assert took_kernel("rms_norm_residual" if rms else "layer_norm_residual")
    kinds = dict.fromkeys(("h", "dresidual", "dweight", "dbias"), torch.float32) | {"y": torch.float32 if wide else dtype, "dx": dtype}
    assert {name: value.dtype for name, value in ours.items()} == {name: kinds[name] for name in ours}
    on_cpu = [None if t is None else t.cpu() for t in given]
    mixed = both_ways(lambda *leaves: [a.to(kinds[name]) for a, name in zip(plain(rms, rate, torch.float32)(*leaves), ("y", "h"), strict=True)], *on_cpu)
    truth = both_ways(plain(rms, rate, torch.float64), *[None if t is None else t.double() for t in on_cpu])
    for name, value in ours.items():
        judge(value, mixed[name], truth[name], name)


@pytest.mark.parametrize("kind", [{}, {"norm_position": "pre"}, {"norm_position": "pre", "norm": "rms"}], ids=["post", "pre", "pre, rms"])
def test_a_block_under_autocast_takes_the_kernel(kind, emulator, monkeypatch):
    """With a float32 stream, and as near to the fp64 truth as plain PyTorch under autocast is."""
    block, made = moved(Block(bert(d_model=96, n_heads=2, **kind))), {}
    x, dy = (torch.randn(3, 13, 96, generator=torch.Generator().manual_seed(n)) for n in range(2))
    operation = "rms_norm_residual" if kind.get("norm") else "layer_norm_residual"
    for kernels in ("emulate", "off", None):
        monkeypatch.setenv("MINITRANSFER_KERNELS", kernels or "off")
        wide = torch.float32 if kernels else torch.float64
        leaves = [(leaf := x.to(wide).requires_grad_()), *block.to(wide).parameters()]
        with torch.autocast("cpu", torch.bfloat16, enabled=kernels is not None):
            out, _ = block(leaf, Mask())
        made[kernels] = [out, *torch.autograd.grad(out, leaves, dy.to(wide))]
        assert out.dtype == wide and (why_not(operation) == "") == (kernels == "emulate")
    for value, plainly, truth, name in zip(*made.values(), ["out", "dx", *(name for name, _ in block.named_parameters())], strict=True):
        judge(value, plainly, truth, name)


def test_a_row_as_wide_as_allowed(device):
    for name, value in (ours := run(2, WIDEST, torch.float32, False, 0.1, device=device))[0].items():
        judge(value, ours[1][name], ours[2][name], name)


def test_the_order_of_threads_and_blocks_changes_no_bit(emulator):
    first = run(9, 131, torch.float32, False, 0.1)[0]
    for order in (1, 2, 3):
        with turns(order):
            for name, value in run(9, 131, torch.float32, False, 0.1)[0].items():
                assert torch.equal(value, first[name]), (order, name)


@pytest.mark.parametrize("cu, old, new, nth", [("common.cuh", "__syncthreads();", "", n) for n in range(barriers("common.cuh"))])
def test_each_missing_barrier_is_noticed(cu, old, new, nth, emulator):
    with planted(cu, old, new, nth), pytest.raises(AssertionError):
        for rms in (False, True):
            for order in (0, 1, 2):
                with turns(order):
                    ours, plainly, truth = run(3, 257, torch.float32, rms, 0.0)
                    for name, value in ours.items():
                        judge(value, plainly[name], truth[name], name)


@pytest.mark.parametrize("old, new, columns, dtype, message", [
    ("c < columns)", "c < columns + 8)", 97, torch.float32, "bad memory access"),
    ("rstd[row] = inv;", "rstd[row + 1] = inv;", 97, torch.float32, "bad memory access"),
    ("(threadIdx.x + i * blockDim.x) * VECTOR", "(threadIdx.x + i * blockDim.x) * VECTOR + 1", 768, torch.bfloat16, "misaligned access"),
])
def test_access_past_the_end_is_noticed(old, new, columns, dtype, message, emulator):
    with planted("norm.cu", old, new), pytest.raises(RuntimeError, match=message):
        run(7, columns, dtype, False, 0.0)


def test_what_has_no_kernel_runs_in_pytorch_and_says_why(emulator, monkeypatch):
    x = torch.randn(2, 5, dtype=torch.float64)
    y, h = layer_norm_residual(x, x, torch.ones(5, dtype=torch.float64), None)
    assert torch.allclose(y, (2 * x - 2 * x.mean(-1, keepdim=True)) / (4 * x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()) and torch.equal(h, 2 * x)
    assert why_not("layer_norm_residual").startswith("torch.float64; kernels compute torch.float32")
    layer_norm_residual(x.float(), x.half(), torch.ones(5), None)
    assert why_not("layer_norm_residual") == "x is torch.float32 and residual torch.float16; a kernel reads one dtype, or a residual of float32"
    monkeypatch.setenv("MINITRANSFER_KERNELS", "off")
    layer_norm_residual(x.float(), None, torch.ones(5), None)
    assert why_not("layer_norm_residual") == "MINITRANSFER_KERNELS=off"
    monkeypatch.setenv("MINITRANSFER_KERNELS", "auto")
    layer_norm_residual(x.float(), None, torch.ones(5), None)
    assert why_not("layer_norm_residual").startswith("a tensor on cpu; kernels run on CUDA devices")
    monkeypatch.setenv("MINITRANSFER_KERNELS", "yes")
    with pytest.raises(ValueError, match="MINITRANSFER_KERNELS=yes; it is one of auto, off, on, emulate"):
        layer_norm_residual(x.float(), None, torch.ones(5), None)
