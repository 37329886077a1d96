"""Kernel or plain PyTorch? Every operation asks here, and here it is told why not.

MINITRANSFER_KERNELS says what is wanted: "auto" (default) takes kernels for CUDA tensors and falls back to PyTorch, with one warning, where one does not
compile; "off" never takes one; "on" makes it an error if a CUDA tensor cannot have its kernel; "emulate" also sends CPU tensors through the emulator.
"""
from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from .kernels import SCALARS, Kernels, kernels, rehearsed

MODES = ("auto", "off", "on", "emulate")
broken: dict[tuple[Kernels, torch.device], str] = {}     # why kernels could not be built for a device, so that it is tried once; "" if they were
reasons: dict[str, str] = {}             # operation -> why its last call did not take a kernel; "" if it did


def device_of(t: Tensor) -> str:
    """The type of a tensor's device; in a rehearsal that of the device it is for."""
    stage = rehearsed.get()
    return t.device.type if stage is None else stage.device


def mode() -> str:
    """Raises: ValueError for a word that is none of MODES."""
    wanted = os.environ.get("MINITRANSFER_KERNELS", "auto")
    if wanted not in MODES:
        raise ValueError(f"MINITRANSFER_KERNELS={wanted}; it is one of {', '.join(MODES)}: set one of them, or unset it")
    return wanted


def why_not(operation: str) -> str:
    """Why the last call of this operation ran in plain PyTorch; "" if it ran in its kernel. Raises: KeyError for one that was not called."""
    if operation not in reasons:
        raise KeyError(f"{operation!r} was not called in this process; called so far: {', '.join(reasons) or 'nothing'}")
    return reasons[operation]


@cache
def elsewhere(device: torch.device) -> str:
    """Why a tensor of this device has no kernel; asked in every step, so it is put into words once."""
    return f"a tensor on {device}; kernels run on CUDA devices (MINITRANSFER_KERNELS=emulate runs them on a CPU, slowly)"


def obstacle(tensors: list[Tensor], limit: str) -> str:
    """What keeps these tensors from any kernel, apart from building it."""
    first, wanted = tensors[0], mode()
    if wanted == "off":
        return "MINITRANSFER_KERNELS=off"
    if device_of(first) != "cuda" and not (first.device.type == "cpu" and wanted == "emulate"):
        return elsewhere(first.device)
    if any(t.device != first.device for t in tensors):
        return f"tensors on {', '.join(sorted({str(t.device) for t in tensors}))}; a kernel reads one device"
    if first.is_floating_point() and first.dtype not in SCALARS:
        return f"{first.dtype}; kernels compute {', '.join(str(dtype) for dtype in SCALARS)}"
    return limit


def within_reach(operation: str, x: Tensor, limit: Callable[[], str]) -> bool:
    """Whether a kernel can take what a caller has, for one who computes it in other steps if not; `why_not` says why not.

    Args: limit: says what else keeps this call from its kernel, and is asked where there are kernels.
    """
    reasons[operation] = obstacle([x], "") or limit()
    return not reasons[operation]


def pick(operation: str, cu: str, *tensors: Tensor | None, limit: str = "", **defines: object) -> Kernels | None:
    """The built kernels of a file for the dtype of the first tensor (if that is of whole numbers: of a file without SCALAR), or None where plain PyTorch has to do it.

    Args:   limit: what else keeps this call from its kernel ("" if nothing does); defines: -D constants besides SCALAR.
    Raises: ValueError if MINITRANSFER_KERNELS=on and a CUDA tensor cannot have its kernel.
    """
    present = [t for t in tensors if t is not None]
    reason = obstacle(present, limit)
    found = None
    if not reason and rehearsed.get() is not None:
        return rehearsed.get().kernels                                           # which are counted and compute nothing
    if not reason:
        scalar = {"SCALAR": SCALARS[present[0].dtype]} if present[0].is_floating_point() else {}
        found = kernels(cu, **scalar, **defines)
        reason = fault_of(found, present[0].device)
    if reason and mode() == "on" and present[0].device.type == "cuda":
        raise ValueError(f"{operation}: {reason}. MINITRANSFER_KERNELS=on forbids plain PyTorch: set it to auto")
    reasons[operation] = reason
    return None if reason else found


def check_shapes(operation: str, rate: float = 0.0, **given: tuple[Tensor | None, tuple[int, ...]]) -> None:
    """Refuse what a kernel would read beyond its end: it trusts the sizes that it is told, where plain PyTorch looks for itself.

    Args:   given: name -> a tensor, or None, and the shape it has to have; rate: of dropout.
    Raises: ValueError for another shape, and for a rate outside [0, 1).
    """
    for name, (t, shape) in given.items():
        if t is not None and t.shape != torch.Size(shape):
            raise ValueError(f"{operation}: {name} of shape {tuple(t.shape)}; the other tensors make it {tuple(shape)}: give one of that shape")
    if not 0 <= rate < 1:
        raise ValueError(f"{operation}: rate={rate}; it is a probability in [0, 1): 0 switches dropout off")


def fault_of(built: Kernels, device: torch.device) -> str:
    """Why these kernels cannot be built for a device ("" if they can); warns the first time. MINITRANSFER_KERNELS=emulate makes it an error."""
    key = built, device
    if key not in broken:
        try:
            built.build(device)
            broken[key] = ""
        except (RuntimeError, OSError) as e:
            if mode() == "emulate":
                raise
            broken[key] = f"{built.cu} could not be built: {e}"
            warnings.warn(f"{broken[key]}\nplain PyTorch does its work, more slowly", RuntimeWarning, stacklevel=4)
    return broken[key]


def draw(device: torch.device) -> Tensor:
    """(seed, step) for the dropout of one call, on the device: it follows torch.manual_seed, and a CUDA graph draws anew at each replay."""
    return torch.randint(0, 2**62, (2,), device=device)
