"""What the backward pass computes again rather than find it kept: less memory, more time, the same bits."""
from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

PARTS = ("blocks", "attention", "mlp")


def recomputed(choice: bool | str, i: int = 0) -> str:
    """Which part of block i is computed again: one of PARTS, or "" for none.

    Args:   choice: False; True or "blocks"; "blocks:2" for every second block; "attention" or "mlp" for that part of every block.
    Raises: ValueError for another.
    Source: Chen et al. 2016, section 4; parts of a layer: Korthikanti et al. 2022, section 5.
    """
    part, colon, every = ("blocks" if choice is True else "" if choice is False or choice == "" else str(choice)).partition(":")
    if part not in ("", *PARTS) or (colon and (part != "blocks" or not (every.isascii() and every.isdigit()) or int(every) < 1)):
        raise ValueError(f'checkpointing={choice!r}; what is computed again is nothing (false), every block (true), every second block ("blocks:2"), or of each block '
                         'its "attention" or its "mlp": choose one')
    return part if i % int(every or 1) == 0 else ""


def again_in_backward(wanted: bool, module: nn.Module, *args: Any) -> Any:
    """module(*args), of which only the arguments are kept if it is `wanted` and there will be a backward pass."""
    return checkpoint(module, *args, use_reentrant=False) if wanted and torch.is_grad_enabled() else module(*args)
