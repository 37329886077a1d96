"""The two sides of each kind of row. Every function is called in a process of its own and returns what it read there."""
from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..config import ModelConfig
from ..families import written_as
from ..generate import generate
from ..nn.heads import IGNORE
from ..nn.model import Model
from ..objectives.base import ask_head
from ..training import TrainSettings, train
from ..training.memory import peak_memory, reset_peak
from ..training.precision import Precision
from .rows import Row

WARM_UP = 2                             # steps; the first ones also allocate, and choose kernels
LATE = 5                                # steps of a reading where graphs are replayed, which the host does not wait for
WARM_UP_OF_LENGTHS = 9 * LATE           # where batches differ in their number of tokens: each common one has its graph by then
FIRST_ID, MASK_ID, MASKED = 1000, 103, 0.15


class Given:
    """The same batches for both sides: random ids, of which a masked row hides 15 %. The k-th batch is drawn from the seed k."""

    def __init__(self, row: Row):
        assert row.config is not None
        self.row, self.vocab_size = row, row.config.vocab_size

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(k)
        ids = torch.randint(FIRST_ID, self.vocab_size, (self.row.batch, self.row.length), generator=generator)
        if self.row.head == "causal":
            return {"input_ids": ids, "labels": ids}
        hidden = torch.rand(ids.shape, generator=generator) < MASKED
        if self.row.deciles is None:
            return {"input_ids": ids.masked_fill(hidden, MASK_ID), "labels": ids.masked_fill(~hidden, IGNORE)}
        keep = torch.arange(self.row.length) < self.lengths_of(self.row, generator)[:, None]
        return {"input_ids": ids.masked_fill(hidden, MASK_ID) * keep, "labels": ids.masked_fill(~(hidden & keep), IGNORE), "attention_mask": keep.long()}

    @staticmethod
    def lengths_of(row: Row, generator: torch.Generator) -> Tensor:
        """One for each text, drawn from the deciles; between two of them all lengths are as likely."""
        deciles = torch.tensor(row.deciles, dtype=torch.float32)
        place = torch.rand(row.batch, generator=generator) * (len(deciles) - 1)
        low = place.long().clamp(max=len(deciles) - 2)
        return (deciles[low] + (place - low) * (deciles[low + 1] - deciles[low])).round()


class AsGiven:
    """The objective of rows whose batches bring their labels."""

    def __init__(self, row: Row):
        self.share = 1.0 if row.head == "causal" else MASKED + 0.05              # of positions, with a target

    def most_targets(self, n: int) -> int:
        return math.ceil(self.share * n)

    def __call__(self, model: Model, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, int | Tensor]:
        return ask_head(model, batch, batch["input_ids"], batch["labels"])


# ---- a training step ------------------------------------------------------------------------------------------------------------------------------

def ours_step(row: Row, repeats: int, prepare: Callable[[Model], Any] = lambda model: None) -> dict[str, Any]:
    """Steps of the engine's own loop, everything it does between two steps included; `prepare` changes the model first."""
    assert row.config is not None
    model = Model(row.config, row.head).to(row.device)
    prepare(model)
    every = LATE if row.graphs and row.device != "cpu" else 1                    # steps as graphs are read where they are logged
    warm_up = WARM_UP if every == 1 else every if row.deciles is None else WARM_UP_OF_LENGTHS
    settings = TrainSettings(steps=warm_up + repeats, lr=1e-4, schedule="constant", warmup=0, precision=row.precision, progress=False, log_every=every,
                             graphs=every > 1)
    result = train(model, Given(row), AsGiven(row), settings)
    ends = [record["seconds"] for record in result.history if record["step"] >= warm_up]
    return {"readings": [(b - a) / every for a, b in pairwise(ends)], "dtype": result.precision} | of_device(row)


def of_device(row: Row) -> dict[str, Any]:
    """On a GPU also the memory that tensors took at most, in bytes."""
    return {} if row.device == "cpu" else {"peak_memory": peak_memory(torch.device(row.device))}


def peer_step(row: Row, repeats: int, model: Any = None) -> dict[str, Any]:
    """Steps as the peer's users write them; on a GPU under bf16 autocast. model: instead of the one of transformers."""
    assert row.config is not None
    model = (peer_model(row.config, row.head) if model is None else model).to(row.device).train()
    batches, readings, on_gpu = Given(row), [], row.device != "cpu"
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.0, fused=True)
    for k in range(WARM_UP + repeats):
        start = time.perf_counter()
        batch = {name: t.to(row.device) for name, t in batches[k].items()}
        with torch.autocast("cuda", torch.bfloat16) if on_gpu else nullcontext():
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if on_gpu:
            torch.cuda.synchronize()
        readings.append(time.perf_counter() - start)
    attention = getattr(getattr(model, "config", None), "_attn_implementation", "flash")
    return {"readings": readings[WARM_UP:], "dtype": "bf16" if on_gpu else "fp32", "optimizer": "AdamW(fused=True)", "attention": attention} | of_device(row)


def peer_model(config: ModelConfig, head: str) -> Any:
    """The peer's model of the same architecture, from the config.json we would write."""
    import transformers
    from transformers.utils import logging
    logging.set_verbosity_error()
    torch.manual_seed(0)
    described = transformers.AutoConfig.for_model(**written_as(config).write(config))
    return (transformers.AutoModelForCausalLM if head == "causal" else transformers.AutoModelForMaskedLM).from_config(described)


# ---- the memory of a training step ----------------------------------------------------------------------------------------------------------------

def with_memory(step: Callable[[Row, int], dict[str, Any]]) -> Callable[[Row, int], dict[str, Any]]:
    """The peak of the process over its steps instead of their time; `state` is what weights, gradients and the two moments of AdamW take of it."""
    def measured(row: Row, repeats: int) -> dict[str, Any]:
        assert row.config is not None
        state = 4 * 4 * sum(p.numel() for p in Model(row.config, row.head, seed=None).parameters())
        reset_peak(torch.device(row.device))
        found = step(row, max(repeats - WARM_UP, 1))
        return found | {"readings": [peak_memory(torch.device(row.device))], "state": state}
    return measured


# ---- text generation ------------------------------------------------------------------------------------------------------------------------------

NEW_TOKENS = 64


def prompt(row: Row) -> Tensor:
    return Given(row)[0]["input_ids"].to(row.device)


def timed(row: Row, call: Callable[[], Tensor], repeats: int) -> list[float]:
    call()
    readings = []
    for _ in range(repeats):
        start = time.perf_counter()
        made = call()
        made.cpu()                                                               # a GPU has finished when its result is here
        readings.append(time.perf_counter() - start)
    assert made.shape[1] == row.length + NEW_TOKENS, made.shape
    return readings


def ours_generate(row: Row, repeats: int) -> dict[str, Any]:
    assert row.config is not None
    model, ids = Model(row.config, row.head).to(row.device).eval(), prompt(row)
    readings = timed(row, lambda: generate(model, ids, max_new_tokens=NEW_TOKENS, precision=row.precision), repeats)
    return {"readings": readings, "dtype": row.precision if row.precision == "int8" else Precision(row.precision, model).name}


def peer_generate(row: Row, repeats: int) -> dict[str, Any]:
    assert row.config is not None
    dtype = torch.float32 if row.device == "cpu" else torch.bfloat16
    model, ids = peer_model(row.config, row.head).to(row.device, dtype).eval(), prompt(row)
    model.generation_config.eos_token_id = None
    keep = torch.ones_like(ids)
    readings = timed(row, lambda: model.generate(ids, attention_mask=keep, max_new_tokens=NEW_TOKENS, do_sample=False), repeats)
    return {"readings": readings, "dtype": str(dtype).removeprefix("torch.")}


# ---- starting -------------------------------------------------------------------------------------------------------------------------------------

def import_time(package: str, row: Row, repeats: int) -> dict[str, Any]:
    code = f"import time; start = time.perf_counter(); import {package}; print(time.perf_counter() - start)"
    compiled = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}      # as pip leaves both: without, ours alone is compiled each time
    found = [subprocess.run([sys.executable, "-c", code], env=compiled, capture_output=True, text=True, check=True).stdout for _ in range(repeats + 1)]
    return {"readings": [float(seconds) for seconds in found[1:]], "dtype": None}     # the first one also reads the files from the disk, and compiles them

