"""How fast a run is, in tokens and as a fraction of what the machine can do."""
from __future__ import annotations

import functools
import os
import platform
import time
from pathlib import Path

import torch
from torch import nn

from ..nn.encoder_decoder import EncoderDecoder
from ..nn.heads import VocabularyHead
from ..nn.model import Model
from . import ranks


def operations(module: nn.Module) -> int:
    """Floating-point operations per row that goes through the matrices of `module`, forward and backward.

    Two for each weight forward, two for the gradient of its input, two for its own gradient; a frozen matrix saves the last two.
    """
    return sum((6 if p.requires_grad else 4) * p.numel() for p in module.parameters() if p.dim() > 1)


def flops(model: Model, tokens: int, targets: int, length: float) -> float:
    """Floating-point operations to read `tokens` tokens in rows of `length`, predict `targets` of them, and go back.

    tokens (6 N + 12 L D length) + targets 6 N_head

    N counts the matrices of the blocks, 6 N their products and 12 L D length the attention scores and sums, over whole rows even where a mask makes a
    part of them needless. N_head counts the matrices of the head with the vocabulary; only targets reach it.
    Source: Chowdhery et al. 2022 (PaLM), appendix B. Deviations: embeddings are looked up, not multiplied, and are not counted; the head is counted
            per target, and so is a decoder beside an encoder; frozen matrices count 4 instead of 6, even below the last trainable block, where backward stops.
    """
    def stack(one: Model) -> float:
        c = one.config
        return operations(one.blocks) * (c.n_layers if c.shared_blocks else 1) + 12 * c.n_layers * c.n_heads * c.d_head * length
    head = 0 if model.head is None else operations(model.head)
    if isinstance(model.head, VocabularyHead) and model.head.unembed is None:
        head += operations(model.embed.tokens)
    if isinstance(model, EncoderDecoder):
        return float(tokens * stack(model.encoder) + targets * (stack(model.decoder) + head))
    return float(tokens * stack(model) + targets * head)


@functools.cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The best rate, in operations per second, of this device on a square matrix product in `dtype`; measured once per process."""
    n, tries = (8192, 5) if device.type == "cuda" else (1024, 3)
    a = torch.ones(n, n, device=device, dtype=dtype)
    best = 0.0
    for _ in range(tries):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


class Meter:
    """Adds up the steps since the last reading."""

    def __init__(self, model: Model, dtype: torch.dtype):
        self.model, self.peak = model, ranks.world() * peak_flops(model.device, dtype)
        self.clear()

    def clear(self) -> None:
        self.tokens, self.targets, self.lengths, self.seconds, self.loss = 0, 0, 0, 0.0, 0.0

    def add(self, tokens: int, targets: int, length: int, seconds: float, loss: float) -> None:
        self.tokens, self.targets, self.lengths = self.tokens + tokens, self.targets + targets, self.lengths + tokens * length
        self.seconds, self.loss = self.seconds + seconds, self.loss + loss * targets

    def read(self) -> dict[str, float]:
        """loss per target, tokens per second, and MFU: the share of the measured peak that went into the model."""
        seconds, done = max(self.seconds, 1e-9), flops(self.model, self.tokens, self.targets, self.lengths / max(self.tokens, 1))
        rates = {"loss": self.loss / max(self.targets, 1), "tokens_per_second": self.tokens / seconds, "mfu": done / seconds / self.peak}
        self.clear()
        return rates


def cpu_name() -> str:
    """The processor as the system calls it, and how many of its cores this process may use."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor() or platform.machine())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores"
