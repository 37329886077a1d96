"""One side of one row, in this process: `python -m minitransfer.bench.side ROW ours|peer THREADS [--quick] [--nanogpt FOLDER]`. Prints one JSON line."""
from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from . import characters, quantized, sides
from .rows import ROWS

QUICK = {"characters": 20, "memory": 2, "lora_memory": 1}             # readings (steps) of a quick run; of the others 1


def versions(side: str) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("torch", "minitransfer" if side == "ours" else "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("side", choices=("ours", "peer"))
    parser.add_argument("threads", type=int)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--nanogpt", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    row = ROWS[args.row]
    repeats = QUICK.get(row.kind, 1) if args.quick else row.repeats
    measure = {"step": (sides.ours_step, sides.peer_step),
               "memory": (sides.with_memory(sides.ours_step), sides.with_memory(sides.peer_step)),
               "generate": (sides.ours_generate, sides.peer_generate),
               "generate_int8": (quantized.generate_int8, sides.peer_generate),
               "embed": (quantized.ours_embed, quantized.fp32_embed),
               "lora_memory": (quantized.ours_lora_memory, quantized.fp32_lora_memory),
               "imports": (sides.ours_imports, sides.peer_imports),
               "characters": (characters.ours_characters, lambda row, repeats: characters.peer_characters(row, repeats, args.nanogpt))}[row.kind][args.side == "peer"]
    print(json.dumps(measure(row, repeats) | {"threads": torch.get_num_threads(), "versions": versions(args.side)}))


if __name__ == "__main__":
    main()
