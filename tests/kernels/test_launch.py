"""The launcher: what is read from a declaration, what the driver gets, what the emulator notices."""
import ctypes
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from minitransfer.ops.driver import Module
from minitransfer.ops.kernels import Kernels, Signature

from .harness import guarded, philox

DRIVER = r"""
#include <string.h>
static __thread void* context;
int cuCtxGetCurrent(void** c) { *c = (void*)5; return 0; }
int cuCtxSetCurrent(void* c) { context = c; return 0; }
int cuModuleLoadData(void** m, const void* image) { *m = (void*)7; return memcmp(image, "CUBIN", 5); }
int cuModuleGetFunction(void** f, void* m, const char* name) { *f = (void*)9; return m != (void*)7 || strcmp(name, "k"); }
int cuFuncSetAttribute(void* f, int what, int value) { return what != 8 || value != 65536; }
int cuGetErrorString(int code, const char** text) { *text = "as planted"; return 0; }
int cuLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void* stream, void** params, void** extra) {
  struct { float* p; int n; unsigned long long u; float s; void* q; }* given = extra[1];
  return !(context == (void*)5 && f == (void*)9 && gx == 3 && gy == 1 && bx == 64 && shared == 65536 && stream == (void*)42 && !params &&
           extra[0] == (void*)1 && extra[2] == (void*)2 && *(size_t*)extra[3] == sizeof(*given) && !extra[4] &&
           *given->p == 2.0f && given->n == -5 && given->u == 1ull << 40 && given->s == 0.5f && given->q == 0);
}"""
DECLARED = "const float* __restrict__ p, int n, u64 u, float s, SCALAR* q"


def test_the_driver_gets_what_it_should(tmp_path):
    """A stand-in for the driver checks every value; autograd's backward thread has its context too."""
    (tmp_path / "driver.c").write_text(DRIVER)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "driver.so", tmp_path / "driver.c"], check=True)
    module = Module(b"CUBIN", 0, ctypes.CDLL(str(tmp_path / "driver.so")), lambda: 42)
    signature, two = Signature("k", DECLARED, {"SCALAR": "bf16"}), torch.tensor([2.0])

    def launch(n):
        module.launch("k", (3, 1, 1), (64, 1, 1), signature.pack((two, n, 1 << 40, 0.5, None), torch.device("cpu")), 65536)
        return True
    assert launch(-5)
    with ThreadPoolExecutor(1) as other:
        assert other.submit(launch, -5).result()
    with pytest.raises(RuntimeError, match="CUDA error 1: as planted"):
        launch(-6)


@pytest.mark.parametrize("values, message", [
    ((torch.zeros(3), 1, 2, 0.5), "k takes 5 values, got 4"),
    ((torch.zeros(3, dtype=torch.float64), 1, 2, 0.5, None), r"k: p is a torch\.float64 tensor on cpu; a contiguous torch\.float32 tensor on cpu is needed"),
    ((torch.zeros(3, 2).t(), 1, 2, 0.5, None), r"k: p is a strided torch\.float32 tensor on cpu"),
    ((torch.zeros(3), 1, 2, 0.5, torch.zeros(3)), r"k: q is a torch\.float32 tensor on cpu; a contiguous torch\.bfloat16 tensor"),
    ((torch.zeros(3, device="meta"), 1, 2, 0.5, None), r"k: p is a torch\.float32 tensor on meta"),
])
def test_values_that_do_not_fit_the_declaration(values, message):
    with pytest.raises(TypeError, match=message):
        Signature("k", DECLARED, {"SCALAR": "bf16"}).pack(values, torch.device("cpu"))


def launched(body, threads=64):
    """A kernel of that body over a guarded tensor of one float a thread, in the emulator."""
    out = guarded(torch.zeros(threads))
    Kernels("planted.cu", f'#include "common.cuh"\nextern "C" __global__ void k(float* out) {{ {body} }}')("k", (1, 1, 1), (threads, 1, 1), out)
    return out


@pytest.mark.parametrize("body, message", [
    ("if (threadIdx.x < 40) __syncthreads(); else warp_sum(1.0f);", "deadlock in block .*: 40 threads wait in __syncthreads"),
    ("out[threadIdx.x] = __shfl_sync(1u, 1.0f, 0);", "a thread called a warp operation whose mask leaves it out"),
    ("if (threadIdx.x & 1) return; out[threadIdx.x] = __shfl_sync(0x55555555u, 1.0f, 1);", "a shuffle read a lane that took no part in it"),
    ("out[threadIdx.x + 1] = 1.0f;", r"bad memory access at .*thread \(63,0,0\)"),
    ("*(float4*)(out + 1) = float4{0, 0, 0, 0};", "misaligned access, array bound or other undefined behaviour"),
])
def test_what_the_emulator_notices(body, message, emulator):
    with pytest.raises(RuntimeError, match=message):
        launched(body)


def test_shared_memory_starts_as_nan(emulator):
    assert launched("__shared__ float s[64]; out[threadIdx.x] = s[threadIdx.x];").isnan().all()


def test_philox_known_answers(emulator):
    """Random123's known answers for philox4x32-10: of our reference, and of common.cuh by the reference."""
    assert philox(0, 0, 0).tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox(-1, -1, -1).tolist() == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    seed, step = 0x1234567890ABCDE, 0x7654321FEDCBA98
    ours = launched(f"out[threadIdx.x] = philox({seed}ull, threadIdx.x, {step}ull).v[3] >> 8;")
    assert torch.equal(ours, (philox(seed, torch.arange(64), step)[:, 3] >> 8).float())


def test_what_does_not_compile_for_the_emulator(emulator):
    with pytest.raises(RuntimeError, match=r"planted\.cu does not compile for the emulator:(?s:.*)nonsense"):
        launched("nonsense();")


OVERRUNS = """
import torch
from minitransfer.ops import bias_gelu, gated, layer_norm_residual, lora_linear, rms_norm_residual
x, one = torch.randn(5, 97), torch.ones(97)
for said, call in {
        "weight of shape (96,)": lambda: layer_norm_residual(x, x, torch.ones(96), None), "residual of shape (4, 97)": lambda: layer_norm_residual(x, x[:4], one, None),
        "bias of shape (98,)": lambda: layer_norm_residual(x, x, one, torch.ones(98)), "rate=1.0": lambda: rms_norm_residual(x, x, one, rate=1.0),
        "bias of shape (96,)": lambda: bias_gelu(x, torch.ones(96)), "up of shape (5, 96)": lambda: gated(x, torch.ones(5, 96)),
        "B of shape (31, 3)": lambda: lora_linear(x, torch.randn(31, 97), None, torch.randn(4, 97), torch.randn(31, 3), 1.0),
        "A of shape (4, 96)": lambda: lora_linear(x, torch.randn(31, 97), None, torch.randn(4, 96), torch.randn(31, 4), 1.0)}.items():
    try:
        call()
    except ValueError as error:
        assert said in str(error), error
    else:
        raise AssertionError(said)
y = lora_linear(x, torch.randn(31, 97), None, torch.randn(2, 4, 97), torch.randn(2, 31, 4), 1.0, adapter=torch.tensor([0, 1, -1, 0, 1]))      # int64 as well
assert y.shape == (5, 31) and y.isfinite().all()
"""


def test_a_kernel_refuses_shapes_that_it_would_overrun():
    """In a process of its own: the type checks of the tests would refuse them first, and users do not have them."""
    done = subprocess.run([sys.executable, "-c", OVERRUNS], capture_output=True, text=True, env=os.environ | {"MINITRANSFER_KERNELS": "emulate"})
    assert done.returncode == 0, done.stderr[-1500:]
