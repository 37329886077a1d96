"""Memory: how much was used at most, and how to keep what the allocator got."""
from __future__ import annotations

import ctypes
import functools
import math
import os
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's <malloc.h>
MADV_HUGEPAGE, HUGE_PAGE = 14, 2**21    # of Linux's <asm-generic/mman-common.h>; bytes


@functools.cache
def keep_freed_memory() -> bool:
    """Tell glibc to keep freed blocks for the next tensor instead of handing them back to the kernel. Returns whether it listened.

    By default every large tensor is a fresh mapping, and touching it for the first time costs a page fault per 4 KiB: for large activations more time
    than the arithmetic. The process then stays as large as it once was, which is why this is called when training or generation starts and not on import.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL(None)
        listened = bool(libc.mallopt(M_MMAP_MAX, 0)) and bool(libc.mallopt(M_TRIM_THRESHOLD, -1))
    except (OSError, AttributeError):  # a C library other than glibc
        return False
    if listened:
        ask_for_huge_pages(libc)
    return listened


def ask_for_huge_pages(libc: ctypes.CDLL) -> None:
    """Mark the addresses into which the heap will grow: the kernel then backs them with pages of 2 MiB, and the CPU looks up fewer addresses.

    It saves a seventh of the time of products with one row, which are bound by reading weights, and 1-2 % of a training step. A block of half the
    machine's memory is taken, marked and given back: nothing of it is touched, so nothing of it is used. A kernel may refuse; then nothing changes.
    """
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes, libc.madvise.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if block := libc.malloc(size):
        first = -(-block // HUGE_PAGE) * HUGE_PAGE
        libc.madvise(first, (block + size - first) // HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE)
        libc.free(block)


def reset_peak(device: torch.device) -> None:
    """Start measuring the peak anew. Where the system cannot (a CPU that is not Linux), the peak is that of the whole process so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (clear := Path("/proc/self/clear_refs")).exists():
        try:
            clear.write_text("5")
        except OSError:  # a container may forbid it
            return


def peak_memory(device: torch.device) -> int:
    """The most memory used at one time since `reset_peak`, in bytes: tensors on a GPU, the resident process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if (status := Path("/proc/self/status")).exists():
        return next((1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")), 0)
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def saved_for_backward(model: nn.Module) -> Iterator[dict[int, int]]:
    """Inside, what autograd keeps for the backward pass is written down, parameters left out. Yields: storage -> bytes, of those that are still there."""
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    saved: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage._cdata not in own and storage._cdata not in saved:
            saved[storage._cdata] = storage.nbytes()
            weakref.finalize(storage, saved.pop, storage._cdata, None)           # a frozen part hands nothing on
        return t
    with saved_tensors_hooks(note, lambda t: t):
        yield saved


class Kept:
    """What was kept for the backward pass at most, in bytes: counted at each batch that is larger than all before it, which are few."""

    def __init__(self, model: nn.Module):
        self.model, self.shape, self.bytes = model, (0, 0), 0

    @contextmanager
    def watched(self, shape: Sequence[int]) -> Iterator[None]:
        """Around the forward pass of a batch of this shape."""
        if math.prod(shape) <= math.prod(self.shape):
            yield
            return
        self.shape = shape[0], shape[1]
        with saved_for_backward(self.model) as saved:
            yield
        self.bytes = max(self.bytes, sum(saved.values()))


@contextmanager
def explained_out_of_memory(helps: Callable[[], str]) -> Iterator[None]:
    """Answer a GPU that ran out of memory with what to change, the cheapest change first."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(f"the GPU has too little memory for this step. What helps, in this order: {helps()}. "
                                     f"With resume=True a run goes on from its last save. PyTorch said: {error}") from error
