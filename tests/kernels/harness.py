"""What the tests of kernels share: tensors with forbidden pages around them, Philox in plain PyTorch, the judgement of errors, planted faults."""
import ctypes
import mmap
from contextlib import contextmanager
from unittest.mock import patch

import torch

from minitransfer.ops import dispatch, kernels

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PAGE, READ_WRITE, PRIVATE_ANONYMOUS = mmap.PAGESIZE, 3, 0x22
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
EMPTY, EMPTY_LIKE = torch.empty, torch.empty_like


def guarded(t):
    """A copy of a CPU tensor between two forbidden pages, its end against the second: one number too far is a fault. Tensors of other devices stay."""
    if t is None or t.device.type != "cpu" or t.numel() == 0:
        return t
    size = t.numel() * t.element_size()
    pages = -(-size // PAGE)
    base = libc.mmap(None, (pages + 2) * PAGE, READ_WRITE, PRIVATE_ANONYMOUS, -1, 0)
    libc.mprotect(base, PAGE, 0)
    libc.mprotect(base + (pages + 1) * PAGE, PAGE, 0)
    place = (ctypes.c_char * size).from_address(base + (pages + 1) * PAGE - size)
    return torch.frombuffer(place, dtype=t.dtype).view(t.shape).copy_(t)


@contextmanager
def guards():
    """Inside, what torch.empty and torch.empty_like return is guarded, and full of NaN (or of a large number): a kernel's outputs."""
    def filled(t):
        return guarded(t.fill_(float("nan") if t.is_floating_point() else torch.iinfo(t.dtype).max))
    with patch.object(torch, "empty", lambda *a, **k: filled(EMPTY(*a, **k))), patch.object(torch, "empty_like", lambda *a, **k: filled(EMPTY_LIKE(*a, **k))):
        yield


@contextmanager
def turns(order):
    """Inside, the emulator's threads and blocks take turns backwards (1) or in a random order (a larger seed)."""
    with patch.object(kernels.Kernels, "order", order):
        yield


@contextmanager
def planted(cu, old, new, nth=0):
    """Inside, the nth `old` in the source `cu` is `new`."""
    parts = kernels.text_of(cu).split(old)
    assert len(parts) > nth + 1, f"{cu} has {len(parts) - 1} times {old!r}"
    text, original = old.join(parts[:nth + 1]) + new + old.join(parts[nth + 1:]), kernels.text_of
    kernels.kernels.cache_clear()
    try:
        with patch.object(kernels, "text_of", lambda name: text if name == cu else original(name)):
            yield
    finally:
        kernels.kernels.cache_clear()


def barriers(cu):
    """How many block barriers the text of a kernel file has of its own (common.cuh's stand in common.cuh)."""
    return kernels.text_of(cu).count("__syncthreads();")


def philox(seed, counter, stream):
    """Philox 4x32-10 (Salmon et al. 2011) in int64 arithmetic: (*counter.shape, 4)."""
    low = 0xFFFFFFFF
    counter = torch.as_tensor(counter, dtype=torch.int64)
    c = [counter & low, counter >> 32 & low, torch.full_like(counter, stream & low), torch.full_like(counter, stream >> 32 & low)]
    k = [seed & low, seed >> 32 & low]

    def times(a, b):
        """32 x 32 bits -> (high, low) without leaving signed 64."""
        first = (a & 0xFFFF) * b
        rest = (a >> 16) * b + (first >> 16)
        return rest >> 16 & low, (rest << 16 | first & 0xFFFF) & low

    for _ in range(10):
        (high0, low0), (high1, low1) = times(0xD2511F53, c[0]), times(0xCD9E8D57, c[2])
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
    return torch.stack(c, -1)


def keep_mask(random, shape, rate):
    """Which of a tensor's numbers the kernels' dropout keeps, for (seed, step)."""
    n = torch.Size(shape).numel()
    drawn = philox(int(random[0]), torch.arange(-(-n // 4)), int(random[1])).reshape(-1)[:n]
    return ((drawn >> 8).float() / 2**24 >= rate).view(shape)


def judge(ours, plain, truth, what):
    """Our error against the fp64 truth is at most twice that of plain PyTorch in the same dtype; one rounding of the largest number is free."""
    assert ours.shape == truth.shape, f"{what}: {tuple(ours.shape)}, the truth has {tuple(truth.shape)}"
    ours, plain, eps = ours.detach().cpu(), plain.detach().cpu(), torch.finfo(ours.dtype).eps
    error, allowed = ((t.double() - truth).abs().max().item() for t in (ours, plain))
    assert error <= 2 * allowed + eps * truth.abs().max().item(), f"{what}: {error:.2e} from the truth, plain PyTorch {allowed:.2e}"


def took_kernel(operation):
    """The last call of the operation ran in its kernel and not in plain PyTorch."""
    return dispatch.why_not(operation) == ""
