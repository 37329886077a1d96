"""Runs of one set and side, in this process: `python -m minitransfer.bench.transfer.job SET ours|twin THREADS FOLDER [--quick]`. Prints a JSON line per run.

What `FOLDER/lines.jsonl` holds already is not run again.
"""
from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..side import versions
from . import ours, twin
from .sets import SETS, Set
from .studies import STUDIES

METHODS = {                                 # ours, the twin's
    "sst2": (("logistic", ours.ESTIMATED, *ours.STRATEGIES, *(f"full+{keep}" for keep in ours.KEEPS), "random"), ("full", "lora")),
    "stsb": (("zero-shot", "full"), ("zero-shot", "full")),
    **dict.fromkeys(("trec", "ag_news", "sms_spam"), (("logistic", "full", "random"), ())),
}
ONCE = ("logistic", "zero-shot", ours.ESTIMATED)            # no seed moves them


def runs(one: Set, side: str, quick: bool) -> list[tuple[str, int]]:
    """The method and the seed of every run, all methods of a seed before the next seed."""
    methods = METHODS.get(one.name, (("full",), ("full",)))[side == "twin"]
    return [(method, seed) for seed in range(1 if quick else one.seeds) for method in methods if seed == 0 or method not in ONCE]


def lines(one: Set, side: str, done: set[tuple[str, int]], folder: Path, quick: bool) -> Iterator[dict[str, Any]]:
    if one.name in STUDIES:
        yield from (line for line in STUDIES[one.name](one, folder, quick, done) if (line["method"], line["seed"]) not in done)
    for method, seed in [] if one.name in STUDIES else runs(one, side, quick):
        if (method, seed) not in done:
            yield {"method": method, "seed": seed, **(ours if side == "ours" else twin).run(one, method, seed, quick)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("side", choices=("ours", "twin"))
    parser.add_argument("threads", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    kept = args.folder / "lines.jsonl"
    known = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {(line["method"], line["seed"]) for line in known if (line["set"], line["side"]) == (args.set, args.side)}
    for line in lines(SETS[args.set], args.side, done, args.folder, args.quick):
        print(json.dumps({"set": args.set, "side": args.side, **line, "threads": args.threads, "versions": versions(args.side)}), flush=True)


if __name__ == "__main__":
    main()
