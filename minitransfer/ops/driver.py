"""The CUDA driver through ctypes: machine code into PyTorch's context, kernels onto PyTorch's current stream."""
from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from functools import cache, partial

import torch

MAX_DYNAMIC_SHARED = 8          # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
SHARED_FOR_ALL = 48 * 1024      # bytes of shared memory a block gets without asking
BUFFER, SIZE, END = 1, 2, 0     # CU_LAUNCH_PARAM_BUFFER_POINTER, CU_LAUNCH_PARAM_BUFFER_SIZE, CU_LAUNCH_PARAM_END


@cache
def library() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


class Module:
    """Machine code that was loaded onto one device."""

    def __init__(self, code: bytes, device: int, driver: ctypes.CDLL | None = None, stream: Callable[[], int] | None = None):
        self.driver = driver or library()
        self.functions: dict[tuple[str, int], ctypes.c_void_p] = {}
        self.stream = stream or partial(torch._C._cuda_getCurrentRawStream, device)
        self.launch_kernel = self.driver.cuLaunchKernel
        self.launch_kernel.argtypes = [ctypes.c_void_p] + [ctypes.c_uint] * 7 + [ctypes.c_void_p] * 3
        self.context, self.bound, self.handle = ctypes.c_void_p(), threading.local(), ctypes.c_void_p()
        self.check(self.driver.cuCtxGetCurrent(ctypes.byref(self.context)))
        self.check(self.driver.cuModuleLoadData(ctypes.byref(self.handle), code))

    def check(self, code: int) -> None:
        if code:
            text = ctypes.c_char_p()
            self.driver.cuGetErrorString(code, ctypes.byref(text))
            raise RuntimeError(f"CUDA error {code}: {(text.value or b'unknown').decode()}")

    def function(self, name: str, shared: int) -> ctypes.c_void_p:
        """The kernel of that name, with leave for `shared` bytes of dynamic shared memory."""
        key = name, shared if shared > SHARED_FOR_ALL else 0
        if key not in self.functions:
            found = ctypes.c_void_p()
            self.check(self.driver.cuModuleGetFunction(ctypes.byref(found), self.handle, name.encode()))
            if key[1]:
                self.check(self.driver.cuFuncSetAttribute(found, MAX_DYNAMIC_SHARED, ctypes.c_int(shared)))
            self.functions[key] = found
        return self.functions[key]

    def launch(self, name: str, grid: tuple[int, int, int], block: tuple[int, int, int], packed: ctypes.Array, shared: int = 0) -> None:
        """Queue a kernel; `packed` holds its arguments as a C struct of them would."""
        if not hasattr(self.bound, "here"):                  # autograd's backward thread has no current context until PyTorch launches something there
            self.check(self.driver.cuCtxSetCurrent(self.context))
            self.bound.here = True
        size = ctypes.c_size_t(len(packed))
        arguments = (ctypes.c_void_p * 5)(BUFFER, ctypes.addressof(packed), SIZE, ctypes.addressof(size), END)
        self.check(self.launch_kernel(self.function(name, shared), *grid, *block, shared, self.stream(), None, arguments))
