"""Devices that a plan can be for: vendors' figures, without sparsity. What is reached of them is an assumption of the plan."""
from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace

import torch

from ..config_parts import meant
from ..training.precision import DTYPES
from ..training.throughput import cpu_name, peak_flops

GIB, TERA, GIGA = 2**30, 10**12, 10**9
RESERVE = GIB // 2                      # of a GPU: PyTorch, the driver, and gaps between blocks


@dataclass(frozen=True)
class Card:
    """Memory in bytes; rates of matrix products by precision, in operations a second; bytes a second."""

    name: str
    memory: int
    rates: dict[str, int | float]
    bandwidth: int | float
    source: str
    products: float = 0.5               # shares of these that a step reaches, in its products and in what it reads and writes otherwise: assumed
    streams: float = 0.7

    @property
    def device(self) -> str:
        return "cpu" if self.name.startswith("cpu") else "cuda"

    @property
    def half(self) -> str | None:
        """The 16-bit precision to train in."""
        return next((one for one in ("bf16", "fp16") if one in self.rates), None)

    @property
    def reserve(self) -> int:
        return RESERVE if self.device == "cuda" else 0


def gpu(name: str, gib: int, fp32: int | float, half: int | float, gigabytes: int | float, source: str, bf16: bool = True) -> Card:
    return Card(name, gib * GIB, {"fp32": fp32 * TERA, "fp16": half * TERA, **({"bf16": half * TERA} if bf16 else {})}, gigabytes * GIGA, source)


CARDS = {card.name: card for card in (
    gpu("RTX 2060", 6, 6.5, 26, 336, "NVIDIA Turing architecture whitepaper, by the rates of its SM (half with float32 sums)", bf16=False),
    gpu("RTX 3070", 8, 20.3, 40.6, 448, "NVIDIA Ampere GA102 whitepaper, appendix A"),
    gpu("RTX 3060", 12, 12.7, 25.5, 360, "NVIDIA Ampere GA102 whitepaper, by the rates of its SM"),
    gpu("T4", 16, 8.1, 65, 320, "NVIDIA T4 data sheet", bf16=False),
    gpu("L4", 24, 30.3, 121, 300, "NVIDIA L4 data sheet"),
    gpu("RTX 4090", 24, 82.6, 165, 1008, "NVIDIA Ada whitepaper, appendix A"),
    gpu("A100", 80, 19.5, 312, 2039, "NVIDIA A100 80GB data sheet"),
    gpu("H100", 80, 67, 989, 3350, "NVIDIA H100 SXM data sheet"),
    gpu("H200", 141, 67, 989, 4800, "NVIDIA H200 SXM data sheet"))}
SIZES = {6: "RTX 2060", 8: "RTX 3070", 12: "RTX 3060", 16: "T4", 24: "L4", 80: "A100"}       # GiB -> the card that stands for all of this size


def this_cpu() -> Card:
    """The machine this runs on: its rates are measured now, in about a second."""
    block, other, best = torch.ones(16 * 2**20), torch.ones(16 * 2**20), 0.0    # both touched: a first touch is a page fault
    for _ in range(3):
        start = time.perf_counter()
        other.copy_(block)
        best = max(best, 2 * block.nbytes / (time.perf_counter() - start))
    rates = {"fp32": peak_flops(torch.device("cpu"), DTYPES["fp32"])}
    return Card(f"cpu ({cpu_name()})", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), rates, best, "measured now", 0.9, 0.9)


def card_of(wanted: str | int | Card) -> Card:
    """A card by its name, by its memory in GiB (8, "8 GB") or "cpu".

    Raises: ValueError for another, with the nearest.
    """
    if isinstance(wanted, Card):
        return wanted
    if wanted == "cpu":
        return this_cpu()
    word = str(wanted).upper().removesuffix("GB").strip()
    if word.isdigit():
        if int(word) not in SIZES:
            raise ValueError(f"a card of {word} GB; cards of {', '.join(map(str, SIZES))} GB are known: choose one, one of {', '.join(CARDS)}, or give a Card of your own")
        model = CARDS[SIZES[int(word)]]
        return replace(model, name=f"a card of {int(word)} GB", source=f"the figures of an {model.name}: {model.source}")
    if word not in CARDS:
        raise ValueError(f"no card is called {wanted!r}{meant(word, CARDS)}; there are {', '.join(CARDS)}, a memory of "
                         f"{', '.join(map(str, SIZES))} GB, and cpu: choose one, or give a Card of your own")
    return CARDS[word]
