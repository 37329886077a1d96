"""Wall clock of one epoch on real sentence lengths, beside the twin's: `python -m minitransfer.bench.transfer.speed SET SIDE ROWS` prints the seconds of one."""
from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import replace
from typing import Any

import torch

from ...nn.model import Model
from ...tasks.base import supervised
from ...training.memory import saved_for_backward
from ...training.precision import cpu_computes_bf16
from ...transfer import strategy
from ..compare import last_line
from . import ours, twin
from .sets import QUICK_ROWS, SETS, body

PACES = ("sst2", "ud_en_ewt")
DEPTHS, STEPS = ("full", "last:2", "head"), 7
ROUNDS = 3
BARS = {"fp32": 1.3, "default": 2.0}


def epoch(name: str, side: str, rows: int | None) -> float:
    """Seconds of an epoch of full fine-tuning: steps only, no reading, no evaluation."""
    one = replace(SETS[name], epochs=1, seeds=1)
    train, held_out = one.read()
    train = train[:rows]
    if side == "twin":
        return twin.run_rows(one, train, held_out[:32], "full", 0, 1)["seconds"]
    model = ours.start(one, one.task.labels(train, []), 0)
    return ours.tune(one, model, train, None, 0, precision="fp32" if side == "fp32" else "auto").seconds


def pace(name: str, quick: bool) -> dict[str, Any]:
    """Processes of each side in turns, all cores; medians, and how much longer the twin takes. Without bf16 in the processor our default is fp32."""
    sides = ["fp32", *(["default"] if cpu_computes_bf16() else []), "twin"]
    found: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(1 if quick else ROUNDS):
        for side in sides:
            found[side].append(last_line("transfer.speed", name, side, QUICK_ROWS if quick else 0))
    median = {side: statistics.median(many) for side, many in found.items()}
    return {"set": name, "seconds": median, "readings": found, "threads": torch.get_num_threads(), "rows": SETS[name].rows, "batch_size": SETS[name].batch_size,
            "ratio": {side: median["twin"] / median[side] for side in sides if side != "twin"}, "bars": BARS}


def depth(quick: bool = False) -> list[dict[str, Any]]:
    """What stopping the backward pass early saves: a step of the body, 16 x 128, in fp32, by strategy: seconds, and bytes kept for the backward pass."""
    ids = torch.randint(1000, 30_000, (16, 128), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(16) % 2}
    models = {name: Model.from_pretrained(body(), head="sequence", labels=["0", "1"]).train() for name in DEPTHS}
    readings: dict[str, list[float]] = {name: [] for name in DEPTHS}
    kept: dict[str, int] = {}
    trained = {name: strategy(name).apply(model).trainable for name, model in models.items()}
    for name, model in models.items():
        with saved_for_backward(model) as saved:
            supervised(model, batch, torch.Generator().manual_seed(0))
        kept[name] = sum(saved.values())
    for k in range(1 + (1 if quick else STEPS)):
        for name, model in models.items():
            start = time.perf_counter()
            loss, _ = supervised(model, batch, torch.Generator().manual_seed(k))
            loss.backward()
            readings[name].append(time.perf_counter() - start)
            model.zero_grad(set_to_none=True)
    return [{"strategy": name, "trainable": trained[name], "seconds": statistics.median(readings[name][1:]), "kept_bytes": kept[name],
             "threads": torch.get_num_threads()} for name in DEPTHS]


if __name__ == "__main__":
    print(json.dumps(epoch(sys.argv[1], sys.argv[2], int(sys.argv[3]) or None)))
