"""16, one kernel."""
from __future__ import annotations

import math
import shutil
from collections.abc import Callable

import torch

from ..nn.model import Model
from ..ops.kernels import Kernels
from ..transfer import add_lora
from .exercise import demand, exercise, gap

ORDERS = (0, 1, 7)          # in which the emulator's threads take turns: forward, backward, drawn


@exercise("16", "shortest(bytes, flop, bandwidth, rate) -> seconds at best")
def shortest(answer: Callable) -> str:
    for given, truth in (((8e9, 1e9, 2e12, 1e14), 4e-3), ((8e6, 4e12, 2e12, 1e14), 4e-2), ((0, 1e12, 1e12, 1e13), 0.1)):
        demand(math.isclose(found := float(answer(*given)), truth), f"{found:.3g} s for {given}, it is {truth:.3g} s")
    return "limited by memory, by arithmetic, and without a byte"


@exercise("16", "state_bytes(n, trained) -> bytes of weights, gradients and AdamW's moments in 32 bits")
def state_bytes(answer: Callable) -> str:
    for lora in (False, True):
        model = Model.from_pretrained("mini-bert")
        if lora:
            add_lora(model, r=3)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=0.0, fused=True)
        for p in trained:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        held = [*model.parameters(), *(p.grad for p in trained if p.grad is not None), *(t for state in optimizer.state.values() for t in state.values() if t.dim())]
        truth, found = sum(t.nbytes for t in held), answer(sum(p.numel() for p in model.parameters()), sum(p.numel() for p in trained))
        demand(found == truth, f"{found:,} {'with LoRA' if lora else 'for full tuning'}, a step of mini-bert holds {truth:,}")
    return "as a step of mini-bert holds them, in full and with LoRA"


def fragment_of_a(lane: int) -> list[tuple[int, int]]:
    return [(lane // 4 + 8 * (i // 2 % 2), 2 * (lane % 4) + i % 2 + 8 * (i // 4)) for i in range(8)]


@exercise("16", "fragment_of_b(lane) -> the (row, column) of the four numbers of B that a thread holds")
def fragment_of_b(answer: Callable) -> str:
    a, b = torch.randn(16, 16), torch.randn(16, 8)
    held = {lane: [tuple(place) for place in answer(lane)] for lane in range(32)}
    places = [place for many in held.values() for place in many]
    demand(sorted(places) == [(row, column) for row in range(16) for column in range(8)], f"{len(set(places))} of 128 numbers are held, {len(places) - len(set(places))} twice")
    product = torch.zeros(16, 8)
    for giver in range(32):                                                      # the unit brings together what threads of one quarter t hold
        for taker in range(giver % 4, 32, 4):
            for i, (row, inner) in enumerate(fragment_of_a(giver)):
                other, column = held[taker][i % 2 + 2 * (i // 4)]
                product[row, column] += a[row, inner] * b[other, column] if other == inner else float("nan")
    gap("the product, thread by thread", product, a @ b)
    return "a 16 x 16 times a 16 x 8 matrix, thread by thread"


@exercise("16", "rms_kernel() -> the source of a kernel rms(y, x, weight, columns, eps), a block for each row")
def rms_kernel(answer: Callable) -> str:
    source = answer()
    demand(shutil.which("g++"), "there is no g++ here, which the emulator needs: install one, or run this where there is one")
    worst = 0.0
    for rows, columns, threads in ((3, 97, 32), (2, 300, 128), (5, 7, 96)):
        x, weight = torch.randn(rows, columns), torch.randn(columns)
        truth = (x.double() * torch.rsqrt(x.double().square().mean(-1, keepdim=True) + 1e-5) * weight.double()).float()
        for order in ORDERS:
            kernel, y = Kernels("answer.cu", text=source), torch.full((rows + 2, columns), 3.0)
            kernel.order = order
            kernel("rms", (rows, 1, 1), (threads, 1, 1), y, x, weight, columns, 1e-5)
            worst = max(worst, gap(f"{rows} rows of {columns} with {threads} threads in order {order}", y[:rows], truth))
            demand(bool((y[rows:] == 3.0).all()), "numbers behind the last row were written")
    return f"three shapes, three orders of threads, within {worst:.0e}"
