"""One operation beside PyTorch's: seconds of a call on the device, and how near to the rate of a plain copy that is."""
from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, dropout, gelu, layer_norm, pad, scaled_dot_product_attention, silu

from ..ops import activation, adamw, attention_packed, attention_padded, norm, why_not
from ..ops.dispatch import pick
from ..ops.linear_cross_entropy import rows_in_kernel, rows_in_torch, up_to_tile
from .rows import Row
from .sides import Given

WARM_UP, RATE, HEADS, WIDTH = 3, 0.1, 12, 64
Call = Callable[[], object]


def rows_of(row: Row) -> int:
    return 32_768 if row.device == "cuda" else 61


def drawn(row: Row, *shape: int) -> Tensor:
    dtype = torch.bfloat16 if row.device == "cuda" else torch.float32
    return torch.randn(*shape, device=row.device, dtype=dtype).requires_grad_()


def there_and_back(function: Callable[..., Tensor], *inputs: Tensor) -> Call:
    toward = torch.randn_like(function(*inputs))
    return lambda: torch.autograd.grad(function(*inputs), inputs, toward)


def norm_call(row: Row, ours: bool) -> Call:
    inputs = drawn(row, rows_of(row), row.length), drawn(row, rows_of(row), row.length), drawn(row, row.length), drawn(row, row.length)
    if ours:
        return there_and_back(lambda x, stream, weight, bias: norm.layer_norm_residual(x, stream, weight, bias, 1e-5, RATE)[0], *inputs)
    return there_and_back(lambda x, stream, weight, bias: layer_norm(stream + dropout(x, RATE), (row.length,), weight, bias), *inputs)


def gelu_call(row: Row, ours: bool) -> Call:
    return there_and_back(activation.bias_gelu if ours else lambda x, bias: gelu(x + bias), drawn(row, rows_of(row), row.length), drawn(row, row.length))


def swiglu_call(row: Row, ours: bool) -> Call:
    return there_and_back(activation.gated if ours else lambda gate, up: silu(gate) * up, *(drawn(row, rows_of(row), row.length) for _ in range(2)))


def cross_entropy_call(row: Row, ours: bool) -> Call:
    logits, targets = drawn(row, row.batch, row.length), torch.randint(row.length, (row.batch,), device=row.device)
    if not ours:
        return there_and_back(lambda logits: cross_entropy(logits.float(), targets, reduction="sum"), logits)
    k, plain = pick("linear_cross_entropy", "cross_entropy.cu", logits, targets), logits.detach()
    if k is None:
        return lambda: rows_in_torch(plain, targets)
    rows = pad(plain, (0, up_to_tile(row.length) - row.length))
    return lambda: rows_in_kernel(k, rows, targets, row.length, True)


def adamw_call(row: Row, ours: bool) -> Call:
    weight = torch.nn.Parameter(torch.randn(rows_of(row), row.length, device=row.device))
    weight.grad = torch.randn_like(weight)
    return (adamw.AdamW([weight]) if ours else torch.optim.AdamW([weight], fused=True, capturable=row.device == "cuda")).step


def flash(row: Row) -> Any:
    return sdpa_kernel(SDPBackend.FLASH_ATTENTION) if row.device == "cuda" else nullcontext()


def attention_call(row: Row, ours: bool) -> Call:
    """Forward, or of rows named so the backward pass alone."""
    q, k, v = (drawn(row, row.batch, row.length, HEADS, WIDTH).detach().transpose(1, 2).requires_grad_() for _ in range(3))

    def forward() -> Tensor:
        if ours:
            return attention_padded(q, k, v, causal=True)
        with flash(row):
            return scaled_dot_product_attention(q, k, v, is_causal=True)
    if not row.name.endswith("-backward"):
        return torch.no_grad()(forward)
    out = forward()
    toward = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, (q, k, v), toward, retain_graph=True)


def packed_call(row: Row, ours: bool) -> Call:
    lengths = Given.lengths_of(row, torch.Generator().manual_seed(0)).long().to(row.device)
    keep = torch.arange(row.length, device=row.device) < lengths[:, None]
    if not ours:
        inputs = [drawn(row, row.batch, row.length, HEADS, WIDTH).detach().transpose(1, 2).requires_grad_() for _ in range(3)]
        return there_and_back(lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=keep[:, None, None]), *inputs)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()
    inputs = [drawn(row, int(lengths.sum()), HEADS, WIDTH) for _ in range(3)]
    return there_and_back(lambda q, k, v: attention_packed(q, k, v, offsets, row.length), *inputs)


def both(cost: dict[str, int]) -> int:
    return cost["bytes_forward"] + cost["bytes_backward"]


CALLS: dict[str, tuple[str, Callable[[Row, bool], Call]]] = {          # row -> name of the operation, what makes its call
    "op-norm": ("layer_norm_residual", norm_call), "op-gelu": ("bias_gelu", gelu_call), "op-swiglu": ("gated", swiglu_call),
    "op-cross-entropy": ("linear_cross_entropy", cross_entropy_call), "op-adamw": ("adamw", adamw_call), "op-attention-packed": ("attention_packed", packed_call)}
BYTES: dict[str, Callable[[Row], int]] = {
    "op-norm": lambda row: both(norm.cost(rows_of(row), row.length, 2)), "op-gelu": lambda row: both(activation.cost(rows_of(row), row.length, False, 2)),
    "op-swiglu": lambda row: both(activation.cost(rows_of(row), row.length, True, 2)), "op-cross-entropy": lambda row: 2 * row.batch * row.length * 2,
    "op-adamw": lambda row: adamw.cost(rows_of(row) * row.length)["bytes_step"]}


def recorded(make: Callable[[], Call]) -> Call:
    """The call as a CUDA graph, for the device's time without the host's launches; what it needs is made on the stream of the capture, as autograd wants it."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        call = make()
        for _ in range(WARM_UP):
            call()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        call()
    return graph.replay


def seconds(row: Row, make: Callable[[], Call], repeats: int) -> list[float]:
    """Of each call after the warm-up; on a GPU of its replays, between two events."""
    call, found = make() if row.device == "cpu" else recorded(make), []
    for _ in range(WARM_UP + repeats):
        if row.device == "cpu":
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
            continue
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end) / 1000)
    return found[WARM_UP:]


def copy_rate(row: Row, size: int) -> float:
    """Bytes a second that a plain copy reads and writes, for a tensor of `size` bytes."""
    source = torch.empty(max(size, 1), dtype=torch.uint8, device=row.device)
    target = torch.empty_like(source)
    return 2 * source.numel() / statistics.median(seconds(row, lambda: partial(target.copy_, source), 10))


def measured(row: Row, repeats: int, ours: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    operation, make = CALLS.get(row.name, ("attention_padded", attention_call))
    found = seconds(row, partial(make, row, ours), repeats)
    said: dict[str, Any] = {"readings": found, "dtype": str(drawn(row, 1).dtype).removeprefix("torch.")}
    if row.name in BYTES:
        said["copy_share"] = BYTES[row.name](row) / statistics.median(found) / copy_rate(row, BYTES[row.name](row) // 4)
    return said | ({"took_kernel": why_not(operation) or "yes"} if ours else {})


def ours(row: Row, repeats: int) -> dict[str, Any]:
    return measured(row, repeats, True)


def peer(row: Row, repeats: int) -> dict[str, Any]:
    return measured(row, repeats, False)
