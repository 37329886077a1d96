"""One .cu file, built and launched: on a GPU through NVRTC and the driver, on a CPU through the emulator. ctypes only: no nvcc, no Triton.

    norm = kernels("norm.cu", SCALAR="bf16", VECTOR=8, PER_THREAD=1)
    norm("norm_forward", grid, block, y, h, mean, rstd, x, residual, weight, bias, random, 768, 0.1, 1e-5)

Types are read from the kernel's own declaration: a tensor of another dtype or device is an error here and not a wrong number later. What was compiled
is kept in $XDG_CACHE_HOME/minitransfer/kernels (default ~/.cache), under the hash of all it was made of.
"""
from __future__ import annotations

import ctypes
import hashlib
import os
import re
import struct
import subprocess
import tempfile
from collections.abc import Callable
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import nvrtc
from .driver import Module

SCALARS = {torch.float32: "float", torch.float16: "fp16", torch.bfloat16: "bf16"}            # as -D SCALAR spells them
TENSORS = {name: dtype for dtype, name in SCALARS.items()} | {"int": torch.int32, "i64": torch.int64, "u64": torch.int64, "u8": torch.uint8, "double": torch.float64}
ADDRESSES = 480                                                                              # tensors of a list that is passed by value, as in common.cuh
NUMBERS = {"int": "i", "float": "f", "u64": "Q", "i64": "q", "Addresses": f"{ADDRESSES}Q"}
INCLUDE = re.compile(r'#include "(\w+\.cuh)"')
DECLARATION = re.compile(r'extern "C" __global__ void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(([^)]*)\)')
TRAPS = ("-fsanitize=alignment,bounds,shift,integer-divide-by-zero", "-fsanitize-undefined-trap-on-error")     # what a GPU would punish, or hide
Size = tuple[int, int, int]
rehearsed: ContextVar[Any] = ContextVar("rehearsed", default=None)      # of training/rehearsal.py, while it runs a step on tensors without numbers


def folder() -> Path:
    """Where the .cu files are: in the package when it is installed, else at the root of the checkout."""
    package = Path(__file__).parents[1]
    return next(place for place in (package / "kernels", package.parent / "kernels") if place.is_dir())


@cache
def text_of(name: str) -> str:
    return (folder() / name).read_text(encoding="utf-8")


def headers_of(text: str) -> dict[str, str]:
    """The .cuh files that a text includes, and those that they include."""
    found = {name: text_of(name) for name in INCLUDE.findall(text)}
    return found | {name: more for one in found.values() for name, more in headers_of(one).items()}


def inlined(text: str, name: str) -> str:
    """The text with the headers in it; compilers go on naming the file and line that they came from."""
    def header(m: re.Match) -> str:
        return f'\n#line 1 "{m[1]}"\n{inlined(text_of(m[1]), m[1])}\n#line {text[: m.start()].count(chr(10)) + 1} "{name}"'
    return INCLUDE.sub(header, text)


def cached(made_of: object, suffix: str, make: Callable[[Path], object]) -> Path:
    """A file of the cache, made by make(path) if it is not there; two processes may race and both are right."""
    place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minitransfer" / "kernels"
    path = place / (hashlib.sha256(repr(made_of).encode()).hexdigest()[:32] + suffix)
    if not path.exists():
        place.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=place, suffix=".part")
        os.close(handle)
        make(Path(part))
        os.replace(part, path)
    return path


class Signature:
    """The parameters of one kernel, and how their values lie one after another in memory; types: what SCALAR and the like stand for."""

    def __init__(self, name: str, parameters: str, types: dict[str, str]):
        self.name, found = name, [self.parameter(one) for one in parameters.split(",")]
        kinds = [(name, types["SCALAR"] if kind == "Addresses" else types.get(kind, kind), pointer or kind == "Addresses") for name, kind, pointer in found]
        self.parameters = [(name, tensors, TENSORS.get(kind)) for name, kind, tensors in kinds]
        self.layout = struct.Struct("@" + "".join("P" if pointer else NUMBERS[kind] for _, kind, pointer in found))

    @staticmethod
    def parameter(text: str) -> tuple[str, str, bool]:
        """(name, type, is it a pointer) of e.g. "const float* __restrict__ x"."""
        words = text.replace("*", " * ").replace("const", "").replace("__restrict__", "").split()
        return words[-1], words[0], "*" in words

    def pack(self, values: tuple, device: torch.device) -> ctypes.Array:
        """The values as the kernel reads them; None is a null pointer, a list of tensors of SCALAR is `Addresses`.

        A fresh buffer each time: forward and backward run on different threads.

        Raises: TypeError for a number of values, a dtype, a device or strides that do not fit.
        """
        if len(values) != len(self.parameters):
            raise TypeError(f"{self.name} takes {len(self.parameters)} values, got {len(values)}")
        plain: list[Any] = []
        for value, (name, tensors, dtype) in zip(values, self.parameters, strict=True):
            if not tensors:
                plain.append(value)
            elif isinstance(value, list):
                plain += [self.address(one, name, dtype, device) for one in value] + [0] * (ADDRESSES - len(value))
            else:
                plain.append(self.address(value, name, dtype, device))
        buffer = ctypes.create_string_buffer(self.layout.size)
        self.layout.pack_into(buffer, 0, *plain)
        return buffer

    def address(self, value: Tensor | None, name: str, wanted: torch.dtype | None, device: torch.device) -> int:
        if value is None:
            return 0
        if value.dtype is not wanted or value.device != device or not value.is_contiguous():
            raise TypeError(f"{self.name}: {name} is a {'' if value.is_contiguous() else 'strided '}{value.dtype} tensor on {value.device}; "
                            f"a contiguous {wanted} tensor on {device} is needed")
        return value.data_ptr()


class Kernels:
    """The kernels of one .cu file for one set of -D constants."""

    order = 0       # in which the emulator's threads and blocks take turns: 0 forward, 1 backward, else a seed

    def __init__(self, cu: str, text: str | None = None, **defines: object):
        self.cu, self.text = cu, text or text_of(cu)
        self.defines = [f"-D{name}={value}" for name, value in defines.items()]
        self.types = {"SCALAR": "float"} | {name: str(value) for name, value in defines.items()}
        self.signatures = {name: Signature(name, parameters, self.types) for name, parameters in DECLARATION.findall(self.text)}
        self.loaded: dict[int, Module] = {}
        self.emulator: ctypes.CDLL | None = None

    def __call__(self, name: str, grid: Size, block: Size, *values: object, shared: int = 0) -> None:
        """Launch a kernel on the device of its first tensor; shared: bytes of dynamic shared memory."""
        device = next(value.device for value in values if isinstance(value, Tensor))
        packed = self.signatures[name].pack(values, device)
        if device.type == "cuda":
            self.on_gpu(device).launch(name, grid, block, packed, shared)
        elif getattr(self.on_cpu(), f"emu_{name}")((ctypes.c_uint * 6)(*grid, *block), shared, packed, self.order):
            raise RuntimeError(f"{self.cu}: {self.on_cpu().emu_error().decode()}")

    def build(self, device: torch.device) -> None:
        """Compile and load for this device, unless that was done. Raises: RuntimeError with the compiler's log; OSError without a compiler."""
        self.on_gpu(device) if device.type == "cuda" else self.on_cpu()

    def machine_code(self, capability: int) -> bytes:
        """For 10 x major + minor of a compute capability."""
        headers = headers_of(self.text)
        made_of = self.text, headers, self.defines, capability, nvrtc.version()
        return cached(made_of, ".cubin", lambda path: path.write_bytes(nvrtc.compiled(self.text, self.cu, capability, self.defines, headers))).read_bytes()

    def on_gpu(self, device: torch.device) -> Module:
        index = torch.cuda.current_device() if device.index is None else device.index
        if index not in self.loaded:
            major, minor = torch.cuda.get_device_capability(index)
            with torch.cuda.device(index):
                self.loaded[index] = Module(self.machine_code(10 * major + minor), index)
        return self.loaded[index]

    def on_cpu(self) -> ctypes.CDLL:
        if self.emulator is None:
            entries = "".join(f'extern "C" int emu_{name}(const unsigned* dims, unsigned shared, const char* args, unsigned order)'
                              f" {{ return emu::launch({name}, dims, shared, args, order); }}\n" for name in self.signatures)
            source = f'{inlined(self.text, self.cu)}\n{entries}extern "C" const char* emu_error() {{ return emu::B.error; }}\n'
            command = ["g++", "-std=c++17", "-O2", *TRAPS, "-fPIC", "-shared", "-w", "-DCUDA_EMU", "-I", str(folder()), *self.defines]
            command += ["-mf16c"] if os.uname().machine == "x86_64" else []
            made_of = source, [word for word in command if word != str(folder())], text_of("cuda_emu.h")
            self.emulator = ctypes.CDLL(str(cached(made_of, ".so", lambda path: host_compile([*command, "-x", "c++", "-", "-o", str(path)], source, self.cu))))
            self.emulator.emu_error.restype = ctypes.c_char_p
        return self.emulator


def host_compile(command: list[str], source: str, name: str) -> None:
    done = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} does not compile for the emulator:\n{done.stderr}")


@cache
def kernels(cu: str, **defines: object) -> Kernels:
    """The one `Kernels` of these constants in this process."""
    return Kernels(cu, None, **defines)


def vector(columns: int, *tensors: Tensor) -> int:
    """How many neighbours one load of at most 16 bytes can take: rows of `columns` numbers have to split into such pieces."""
    widest = 16 // max(t.element_size() for t in tensors)
    return next(n for n in (8, 4, 2, 1) if n <= widest and columns % n == 0)


def whole(t: Tensor) -> Tensor:
    """The tensor where loads of 16 bytes can read it: contiguous, and starting at a multiple of 16 bytes unless its rows are odd."""
    t = t.contiguous()
    return t.clone() if t.shape[-1] % 2 == 0 and rehearsed.get() is None and t.data_ptr() % 16 else t
