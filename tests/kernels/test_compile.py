"""The same text as machine code for GPUs: it compiles for every architecture, by both compilers, and keeps everything in registers."""
import re
import shutil
import subprocess

import pytest

from minitransfer.ops import nvrtc
from minitransfer.ops.kernels import Kernels, folder, headers_of, text_of

from .builds import BUILDS

ARCHITECTURES = (75, 80, 90)
TENSOR_CORES_BF16 = 80      # the first architecture whose tensor cores take bf16


def name(cu, constants):
    return f"{cu}-{'-'.join(map(str, constants.values()))}"


def suits(cu, constants, capability):
    """What a GPU of this capability is given."""
    if capability < 80 and (constants.get("STRIPS") == 2 or (cu == "attention_backward.cu" and constants["HEAD_DIM"] > 112 and not constants["LEAN"])):
        return False                                         # too few registers; too little shared memory
    return capability >= TENSOR_CORES_BF16 or constants.get("SCALAR") != "bf16" or "attention.cuh" not in headers_of(text_of(cu))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc")
@pytest.mark.parametrize("cu, constants", BUILDS, ids=[name(*build) for build in BUILDS])
def test_nothing_spills(cu, constants, tmp_path):
    for capability in ARCHITECTURES:
        if suits(cu, constants, capability):
            defines = [f"-D{key}={value}" for key, value in constants.items()]
            done = subprocess.run(["nvcc", "-std=c++17", "-cubin", f"-arch=sm_{capability}", *defines, "-Xptxas", "-v", "-o", tmp_path / "out", folder() / cu],
                                  capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
            assert len(frames) == len(Kernels(cu).signatures) and set(frames) == {("0", "0", "0")}, f"sm_{capability}: {done.stderr}"


@pytest.fixture(scope="session")
def compiler():
    try:
        return nvrtc.library()
    except OSError:
        pytest.skip("no NVRTC")


@pytest.mark.parametrize("cu", sorted({cu for cu, _ in BUILDS}))
def test_the_compiler_that_users_have(cu, compiler):
    constants = next(one for name, one in BUILDS if name == cu)
    for capability in (75, 90, 120):                                             # the oldest and the newest that we promise
        if suits(cu, constants, capability):
            code = nvrtc.compiled(text_of(cu), cu, capability, [f"-D{key}={value}" for key, value in constants.items()], headers_of(text_of(cu)))
            assert code.startswith(b"\x7fELF") and all(kernel.encode() in code for kernel in Kernels(cu).signatures)


def test_a_gpu_newer_than_the_compiler_gets_ptx(compiler):
    newest = nvrtc.architectures()[-1]
    code = nvrtc.compiled(text_of("norm.cu"), "norm.cu", newest + 1, [], headers_of(text_of("norm.cu")))
    assert f".target sm_{newest}".encode() in code and b"norm_forward" in code


def test_what_does_not_compile_says_what_the_compiler_said(compiler):
    with pytest.raises(RuntimeError, match=r"broken\.cu does not compile: NVRTC_ERROR_COMPILATION(?s:.*)identifier \"nonsense\" is undefined"):
        nvrtc.compiled('extern "C" __global__ void k(int* p) { *p = nonsense; }', "broken.cu", 80, [], {})
