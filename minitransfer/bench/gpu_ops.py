"""One operation beside PyTorch's: seconds of a forward and backward pass, and how near to the rate of a plain copy that is."""
from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout, layer_norm

from ..ops import norm, why_not
from .rows import Row

WARM_UP, RATE = 3, 0.1
Call = tuple[Callable[..., Tensor], list[Tensor]]           # a function and what it is a function of


def rows_of(row: Row) -> int:
    return 32_768 if row.device == "cuda" else 61


def drawn(row: Row, *shape: int) -> Tensor:
    dtype = torch.bfloat16 if row.device == "cuda" else torch.float32
    return torch.randn(*shape, device=row.device, dtype=dtype).requires_grad_()


def norm_call(row: Row, ours: bool) -> Call:
    x, stream, weight, bias = drawn(row, rows_of(row), row.length), drawn(row, rows_of(row), row.length), drawn(row, row.length), drawn(row, row.length)
    if ours:
        return lambda x, stream, weight, bias: norm.layer_norm_residual(x, stream, weight, bias, 1e-5, RATE)[0], [x, stream, weight, bias]
    return lambda x, stream, weight, bias: layer_norm(stream + dropout(x, RATE), (row.length,), weight, bias), [x, stream, weight, bias]


CALLS: dict[str, Callable[[Row, bool], Call]] = {"op-norm": norm_call}
BYTES: dict[str, Callable[[Row], int]] = {"op-norm": lambda row: sum(norm.cost(rows_of(row), row.length, 2)[one] for one in ("bytes_forward", "bytes_backward"))}
KERNELS = {"op-norm": "layer_norm_residual"}


def seconds(row: Row, call: Callable[[], object], repeats: int) -> list[float]:
    """Of each call after the warm-up; on a GPU between two events."""
    found = []
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
    """Bytes a second that a plain copy reads and writes, for a tensor of `size` / 2 bytes."""
    source = torch.empty(max(size // 2, 1), dtype=torch.uint8, device=row.device)
    target = torch.empty_like(source)
    return 2 * source.numel() / statistics.median(seconds(row, lambda: target.copy_(source), 10))


def measured(row: Row, repeats: int, ours: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    function, inputs = CALLS[row.name](row, ours)
    toward = torch.randn_like(function(*inputs))
    found = seconds(row, lambda: torch.autograd.grad(function(*inputs), inputs, toward), repeats)
    said: dict[str, Any] = {"readings": found, "dtype": str(inputs[0].dtype).removeprefix("torch.")}
    if row.name in BYTES:
        said["copy_share"] = BYTES[row.name](row) / statistics.median(found) / copy_rate(row, BYTES[row.name](row) // 4)
    return said | ({"took_kernel": why_not(KERNELS[row.name]) or "yes"} if ours else {})


def ours(row: Row, repeats: int) -> dict[str, Any]:
    return measured(row, repeats, True)


def peer(row: Row, repeats: int) -> dict[str, Any]:
    return measured(row, repeats, False)
