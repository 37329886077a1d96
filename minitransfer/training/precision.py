"""In which numbers a step is computed. Weights, gradients and moments stay float32; this is about the products in the forward and backward pass."""
from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

A = TypeVar("A", float, Tensor)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FIRST_SCALE = 128.0  # losses are sums over targets, hundreds of times larger than the means that the usual first scale (65536) is made for

CPU_BF16_FROM = 500_000  # parameters


def cpu_computes_bf16() -> bool:
    """Does this CPU multiply bfloat16 matrices in hardware (AVX512-BF16, AMX, or the ARM extension)?

    Asked of the CPU and not of a stopwatch: two runs on one machine have to choose the same, or they would not give the same bits.
    """
    flags = {name for name, there in getattr(torch.cpu, "get_capabilities", dict)().items() if there is True}
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        line = next((line for line in cpuinfo.read_text().splitlines() if line.startswith(("flags", "Features"))), ":")
        flags |= set(line.partition(":")[2].split())
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def gpu_computes_bf16(device: torch.device) -> bool:
    """Compute capability 8.0 (Ampere) and above; older cards only imitate it, slowly."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def choose_precision(wanted: str, device: torch.device, parameters: int) -> str:
    """What "auto" means here: bf16 where the hardware has it, fp16 on older GPUs, otherwise fp32.

    On a CPU a model below half a million parameters stays in fp32: its products are so small that casting costs what bf16 saves.

    Raises: ValueError for fp16 on a CPU.
    """
    if wanted == "fp16" and device.type != "cuda":
        raise ValueError(f'precision="fp16" on {device.type}; half precision with a loss scale needs an NVIDIA GPU: use "auto", "bf16" or "fp32"')
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if gpu_computes_bf16(device) else "fp16"
    return "bf16" if device.type == "cpu" and parameters >= CPU_BF16_FROM and cpu_computes_bf16() else "fp32"


class Precision:
    """Autocast for the forward pass, and for fp16 the loss scale that keeps small gradients from vanishing.

    Source: Micikevicius et al. 2018, "Mixed Precision Training".
    """

    def __init__(self, wanted: str, model: nn.Module):
        device = next(model.parameters()).device
        self.name, self.device = choose_precision(wanted, device, sum(p.numel() for p in model.parameters())), device
        self.dtype = DTYPES[self.name]
        self.scaler = torch.amp.GradScaler(device.type, init_scale=FIRST_SCALE, enabled=self.scaled)

    def autocast(self) -> AbstractContextManager:
        return nullcontext() if self.name == "fp32" else torch.autocast(self.device.type, self.dtype)

    @property
    def scaled(self) -> bool:
        return self.name == "fp16"

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        self.scaler.unscale_(optimizer)

    def must_be_finite(self, loss: A, norm: A) -> A:
        """A number that is not finite if something went wrong. A loss scale makes overflows of the gradient ordinary: the step is skipped."""
        return loss if self.scaled else loss + norm

    def step(self, optimizer: torch.optim.Optimizer, **given: Any) -> None:
        """The optimizer's step; with fp16 it is skipped, and the scale halved, if a gradient overflowed. Nothing here waits for a GPU."""
        self.scaler.step(optimizer, **given)
        self.scaler.update()
