"""Where kernels run in tests: in the emulator always, on a GPU where there is one."""
import shutil

import pytest
import torch


@pytest.fixture(params=["emulator", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    if request.param == "emulator" and not shutil.which("g++"):
        pytest.skip("no g++ for the emulator")
    monkeypatch.setenv("MINITRANSFER_KERNELS", "emulate" if request.param == "emulator" else "on")
    return torch.device("cpu" if request.param == "emulator" else "cuda")


@pytest.fixture
def emulator(monkeypatch):
    if not shutil.which("g++"):
        pytest.skip("no g++ for the emulator")
    monkeypatch.setenv("MINITRANSFER_KERNELS", "emulate")
