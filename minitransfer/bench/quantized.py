"""Rows about weights of few bits. Of vectors and of LoRA the peer is our own model in fp32."""
from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from .. import samples
from ..generate import embed, quick
from ..nn.model import Model
from ..text import Tokenizer
from ..training.memory import peak_memory, reset_peak
from ..transfer import lora
from .rows import Row
from .sides import CPU, Given, ours_generate
from .transfer.sets import SETS, body

SENTENCES, DRAWS = 1000, 10


# ---- generation -----------------------------------------------------------------------------------------------------------------------------------

def perplexity(precision: str) -> float:
    """Of the bundled decoder on the bundled text, in rows as long as it reads: the timed model has random weights."""
    model, tok = Model.from_pretrained("mini-gpt").eval(), Tokenizer.from_pretrained("mini-gpt")
    ids = tok([samples.path("general.txt").read_text(encoding="utf-8")], max_length=10**9)["input_ids"][0]
    rows = ids[: len(ids) // model.longest * model.longest].view(-1, model.longest)
    with torch.no_grad(), quick(model, precision) as fast:
        return float(fast(rows, labels=rows).loss.exp())


def generate_int8(row: Row, repeats: int) -> dict[str, Any]:
    return ours_generate(row, repeats) | {"perplexity": {precision: perplexity(precision) for precision in ("fp32", row.precision)}}


# ---- vectors --------------------------------------------------------------------------------------------------------------------------------------

def vectors(row: Row, repeats: int, precision: str) -> dict[str, Any]:
    model, tok = Model.from_pretrained(body()), Tokenizer.from_pretrained(body())
    train, held_out = SETS["sst2"].read()
    texts, readings = [one["sentence"] for one in train[:SENTENCES]], []
    for _ in range(1 + repeats):                                                 # the first one is a warm-up
        start = time.perf_counter()
        embed(model, tok, texts, precision=precision)
        readings.append(time.perf_counter() - start)
    x, held = (embed(model, tok, [one["sentence"] for one in rows], precision=precision) for rows in (train, held_out))
    right, other = (torch.tensor([float(one["label"]) for one in rows]) for rows in (train, held_out))
    return {"readings": readings[1:], "dtype": precision, "accuracy": resampled(x, right, held, other)}


def ours_embed(row: Row, repeats: int) -> dict[str, Any]:
    return vectors(row, repeats, row.precision)


def fp32_embed(row: Row, repeats: int) -> dict[str, Any]:
    return vectors(row, repeats, "fp32")


def resampled(x: Tensor, y: Tensor, held: Tensor, other: Tensor) -> float:
    """Percent right of a logistic regression on the vectors, a mean over training rows drawn with replacement: one fit moves by a point when a few rows do."""
    dice, found = torch.Generator().manual_seed(0), []
    for _ in range(DRAWS):
        drawn = torch.randint(len(x), (len(x),), generator=dice)
        w = logistic(x[drawn], y[drawn])
        found.append(((with_one(held) @ w > 0).float() == other).float().mean())
    return 100 * float(torch.stack(found).mean())


def with_one(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones(len(x), 1)], dim=1)


def logistic(x: Tensor, y: Tensor) -> Tensor:
    """argmin_w sum_n cross entropy + |w|^2 / 2, the bias at the end and free."""
    w = x.new_zeros(x.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = binary_cross_entropy_with_logits(with_one(x) @ w, y, reduction="sum") + w[:-1].square().sum() / 2
        total.backward()
        return total
    optimizer.step(loss)
    return w.detach()


# ---- the memory of a LoRA step --------------------------------------------------------------------------------------------------------------------

def lora_memory(row: Row, repeats: int, base: str | None) -> dict[str, Any]:
    """The peak over LoRA steps with checkpointing and AdamW, less what the process had before there was a model."""
    assert row.config is not None
    reset_peak(CPU)
    empty = peak_memory(CPU)
    model, batches = Model(row.config, row.head), Given(row)
    lora(base=base).apply(model)
    model.checkpointing = True
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    reset_peak(CPU)
    for k in range(repeats):
        model.train()(**batches[k]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"readings": [peak_memory(CPU) - empty], "dtype": base or "fp32"}


def ours_lora_memory(row: Row, repeats: int) -> dict[str, Any]:
    return lora_memory(row, repeats, row.precision)


def fp32_lora_memory(row: Row, repeats: int) -> dict[str, Any]:
    return lora_memory(row, repeats, None)
