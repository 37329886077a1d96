"""Memory: how much was used at most, and how to keep what the allocator got."""
from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's <malloc.h>


@functools.cache
def keep_freed_memory() -> bool:
    """Tell glibc to keep freed blocks for the next tensor instead of handing them back to the kernel. Returns whether it listened.

    By default every large tensor is a fresh mapping, and touching it for the first time costs a page fault per 4 KiB: for large activations more time
    than the arithmetic. The process then stays as large as it once was, which is why this is called when training starts and not on import.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # a C library other than glibc
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


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
def explained_out_of_memory() -> Iterator[None]:
    """Answer a GPU that ran out of memory with what to change, the cheapest change first."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(
            "the GPU has too little memory for this step. What helps, in this order: (1) half the batch_size with twice the micro_batches, for "
            "the same gradient; (2) checkpointing=True, which keeps one activation per block and recomputes the rest; (3) a shorter length; "
            "(4) precision=\"auto\" if it was fp32; (5) training less: strategy=\"lora\", or freezing the lower blocks. "
            f"With resume=True a run goes on from its last save. PyTorch said: {error}") from error
