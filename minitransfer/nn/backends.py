"""Which of several ways to the same numbers is the quickest on this GPU: measured in the first call of each kind, and remembered.

What was found is kept beside the compiled kernels too: a run that goes on after a stop takes the ways it took before, and gives the same bits.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ..ops.dispatch import mode
from ..ops.kernels import cached, folder

Way = Callable[[Tensor, Tensor, Tensor], Tensor]    # q, k and v to the mixed values
MEASURED = ("cuda",)                                # where: a CPU is shared, and its ways are known
ROUNDS = 5                                          # of which the median counts; one more, for compilers, does not
found: dict[tuple, str] = {}


def quickest(ways: dict[str, Way], q: Tensor, k: Tensor, v: Tensor, longest: int, *facts: object) -> Way:
    """The way to take for q, k and v: the first where nothing is measured, on a CPU and while a CUDA graph is captured.

    Args: longest: the length of the longest text; calls are of one kind up to the next power of two; facts: what else the speed depends on.
    """
    first = next(iter(ways))
    if len(ways) == 1 or q.device.type not in MEASURED:
        return ways[first]
    trained = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
    kind = *ways, q.dtype, q.shape[1], k.shape[1], q.shape[-1], (longest - 1).bit_length(), trained, *facts, torch.cuda.get_device_name(q.device), mode()
    if kind not in found:
        if torch.cuda.is_current_stream_capturing():
            return ways[first]
        kernels = [path.read_text(encoding="utf-8") for path in sorted(folder().glob("attention*"))]
        made_of = kind, torch.__version__, torch.get_float32_matmul_precision(), kernels
        found[kind] = cached(made_of, ".way", lambda path: path.write_text(fastest(ways, (q, k, v), trained))).read_text()
    return ways[found[kind]]


def fastest(ways: dict[str, Way], given: tuple[Tensor, Tensor, Tensor], trained: bool) -> str:
    """The name of the way with the least median time, in rounds in which each has its turn; random numbers and what autograd saves stay as they were."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    with torch.random.fork_rng([t.device for t in given[:1] if t.is_cuda]), saved_tensors_hooks(lambda t: t, lambda t: t):
        for _ in range(1 + ROUNDS):
            for name, way in ways.items():
                times[name].append(seconds(way, given, trained))
    return min(times, key=lambda name: median(times[name][1:]))


def seconds(way: Way, given: tuple[Tensor, Tensor, Tensor], trained: bool) -> float:
    """Of one call, with its gradients if it is trained; infinite where memory does not suffice."""
    leaves = [t.detach().requires_grad_(trained) for t in given]
    torch.cuda.synchronize(given[0].device)
    start = perf_counter()
    try:
        out = way(*leaves)
        if trained:
            torch.autograd.grad(out, leaves, torch.ones_like(out))
        torch.cuda.synchronize(given[0].device)
    except torch.OutOfMemoryError:
        return math.inf
    return perf_counter() - start
