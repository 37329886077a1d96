"""Rows about real sentences, and about weights of few bits, whose peer is our own model in fp32."""
from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from .. import samples
from ..generate import embed, quick
from ..nn.model import Model
from ..text import Tokenizer
from ..training.memory import peak_memory, reset_peak
from ..training.precision import cpu_computes_bf16
from ..transfer import lora
from .rows import Row
from .sides import Given, ours_generate
from .transfer import speed
from .transfer.sets import SETS, body

SENTENCES, TUNED = 1000, 640           # sentences of sst2: made into vectors, tuned on
CPU = torch.device("cpu")


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

def vectors(repeats: int, dtype: str, encode: Callable[[list[str]], Any]) -> dict[str, Any]:
    """Seconds for 1,000 sentences of sst2; and percent right of a logistic regression on the vectors of 2,000."""
    from sklearn.linear_model import LogisticRegression
    train, held_out = SETS["sst2"].read()
    texts, readings = [one["sentence"] for one in train[:SENTENCES]], []
    for _ in range(1 + repeats):                                                 # the first one is a warm-up
        start = time.perf_counter()
        encode(texts)
        readings.append(time.perf_counter() - start)
    x, held = (encode([one["sentence"] for one in rows]) for rows in (train, held_out))
    known, asked = ([one["label"] for one in rows] for rows in (train, held_out))
    return {"readings": readings[1:], "dtype": dtype, "accuracy": 100 * LogisticRegression(max_iter=1000).fit(x, known).score(held, asked)}


def ours_embed(row: Row, repeats: int) -> dict[str, Any]:
    model, tok = Model.from_pretrained(body()), Tokenizer.from_pretrained(body())
    return vectors(repeats, row.precision, lambda texts: embed(model, tok, texts, precision=row.precision))


def peer_embed(row: Row, repeats: int) -> dict[str, Any]:
    from sentence_transformers import SentenceTransformer
    peer = SentenceTransformer(str(body()), device="cpu")
    return vectors(repeats, "fp32", lambda texts: peer.encode(texts, show_progress_bar=False))


# ---- tuning ---------------------------------------------------------------------------------------------------------------------------------------

def finetune(side: str, row: Row, repeats: int) -> dict[str, Any]:
    """side: "default" or "twin"."""
    return {"readings": [speed.epoch("sst2", side, TUNED) for _ in range(repeats)], "dtype": "bf16" if side == "default" and cpu_computes_bf16() else "fp32"}


# ---- the memory of a LoRA step --------------------------------------------------------------------------------------------------------------------

def lora_memory(row: Row, repeats: int) -> dict[str, Any]:
    """The peak over LoRA steps with checkpointing and AdamW over a base in the row's precision, less what the process had before there was a model."""
    assert row.config is not None
    base = None if row.precision == "fp32" else row.precision
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
    return {"readings": [peak_memory(CPU) - empty], "dtype": row.precision}
