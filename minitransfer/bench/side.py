"""One side of one row, in this process: `python -m minitransfer.bench.side ROW ours|peer THREADS [--quick] [--nanogpt FOLDER]`. Prints one JSON line.

A quick run of a GPU's row on a machine without one takes a tiny model on the CPU.
"""
from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from . import characters, gpu_ops, gpu_rows, gpu_sides, sentences, sides
from .rows import ROWS, Row

Measure = Callable[[Row, int], dict]
QUICK = {"characters": 20, "memory": 2, "base-memory": 1}             # readings (steps) of a quick run; of the others 1


def versions(side: str) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("torch", "minitransfer" if side == "ours" else "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def in_fp32(measure: Measure) -> Measure:
    return lambda row, repeats: measure(replace(row, precision="fp32"), repeats)


def measures(row: Row, nanogpt: Any) -> tuple[Measure, Measure]:
    """The pair of functions for a kind of row: our side, the peer's."""
    sides_of: dict[str, tuple[Measure, Measure]] = {
        "step": (sides.ours_step, sides.peer_step),
        "memory": (sides.with_memory(sides.ours_step), sides.with_memory(sides.peer_step)),
        "generate": (sides.ours_generate, sides.peer_generate),
        "generate-int8": (sentences.generate_int8, sides.peer_generate),
        "finetune": (partial(sentences.finetune, "default"), partial(sentences.finetune, "twin")),
        "embed": (sentences.ours_embed, sentences.peer_embed),
        "embed-int8": (sentences.ours_embed, in_fp32(sentences.ours_embed)),
        "base-memory": (sentences.lora_memory, in_fp32(sentences.lora_memory)),
        "imports": (partial(sides.import_time, "minitransfer"), partial(sides.import_time, "torch")),
        "characters": (characters.ours_characters, lambda row, repeats: characters.peer_characters(row, repeats, nanogpt)),
        "compiled": (sides.ours_step, lambda row, repeats: gpu_sides.peer_compiled(row, repeats, nanogpt)),
        "lora": (gpu_sides.ours_lora, gpu_sides.peer_lora),
        "lora-memory": (sides.with_memory(gpu_sides.ours_lora), sides.with_memory(gpu_sides.peer_lora)),
        "op": (gpu_ops.ours, gpu_ops.peer),
    }
    return sides_of[row.kind]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    rows = ROWS | gpu_rows.ROWS
    parser.add_argument("row", choices=rows)
    parser.add_argument("side", choices=("ours", "peer"))
    parser.add_argument("threads", type=int)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--nanogpt", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    row = rows[args.row]
    if args.quick and row.device == "cuda" and not torch.cuda.is_available():
        row = gpu_rows.tiny(row)
    repeats = QUICK.get(row.kind, 1) if args.quick else row.repeats
    found = measures(row, args.nanogpt)[args.side == "peer"](row, repeats)
    print(json.dumps(found | {"threads": torch.get_num_threads(), "versions": versions(args.side)}))


if __name__ == "__main__":
    main()
