"""NVIDIA's run-time compiler: CUDA C++ text to machine code, without nvcc, a host compiler or a GPU.

Every CUDA build of PyTorch installs the library. Machine code (cubin) and not PTX is made: PTX of a newer toolkit does not load on an older driver.
"""
from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path

import torch


@cache
def library() -> ctypes.CDLL:
    """libnvrtc: of the wheels beside PyTorch, else wherever the loader looks. Raises: OSError that says where was looked."""
    major = (torch.version.cuda or "13").split(".")[0]
    name = f"nvrtc64_{major}0_0.dll" if sys.platform == "win32" else f"libnvrtc.so.{major}"
    for root in map(Path, sys.path):
        for path in [*root.glob(f"nvidia/*/lib/{name}"), *root.glob(f"torch/lib/{name}")]:
            for part in path.parent.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(part))                       # the wheel of 13.0 does not find this file by itself
            return ctypes.CDLL(str(path))
    for known in (name, f"/usr/local/cuda/lib64/{name}"):
        try:
            return ctypes.CDLL(known)
        except OSError:
            continue
    raise OSError(f"{name} is neither beside PyTorch, nor where the loader looks, nor in /usr/local/cuda; it compiles the kernels: install a CUDA build of PyTorch")


def version() -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def architectures() -> list[int]:
    """The compute capabilities this compiler knows, as 10 x major + minor, ascending."""
    n = ctypes.c_int()
    library().nvrtcGetNumSupportedArchs(ctypes.byref(n))
    known = (ctypes.c_int * n.value)()
    library().nvrtcGetSupportedArchs(known)
    return sorted(known)


def c_strings(texts: list[str]) -> ctypes.Array:
    return (ctypes.c_char_p * len(texts))(*[text.encode() for text in texts])


def compiled(source: str, name: str, capability: int, defines: list[str], headers: dict[str, str]) -> bytes:
    """Machine code for a compute capability; for one that this compiler is too old for, PTX of the highest below, which the driver translates.

    Raises: RuntimeError with the compiler's log.
    """
    lib, program, size = library(), ctypes.c_void_p(), ctypes.c_size_t()
    lib.nvrtcGetErrorString.restype = ctypes.c_char_p

    def check(code: int) -> None:
        if code:
            lib.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(max(1, size.value))
            lib.nvrtcGetProgramLog(program, log)
            raise RuntimeError(f"{name} does not compile: {lib.nvrtcGetErrorString(code).decode()}\n{log.value.decode()}")

    best = max(known for known in architectures() if known <= capability)
    kind, form = ("sm", "CUBIN") if best == capability else ("compute", "PTX")
    check(lib.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), len(headers), c_strings(list(headers.values())), c_strings(list(headers))))
    options = [f"--gpu-architecture={kind}_{best}", "--std=c++17", *defines]
    check(lib.nvrtcCompileProgram(program, len(options), c_strings(options)))
    check(getattr(lib, f"nvrtcGet{form}Size")(program, ctypes.byref(size)))
    code = ctypes.create_string_buffer(size.value)
    check(getattr(lib, f"nvrtcGet{form}")(program, code))
    lib.nvrtcDestroyProgram(ctypes.byref(program))
    return code.raw
