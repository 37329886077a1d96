"""What pretraining is worth on sst2, by the number of labels: `python -m minitransfer.bench.transfer.gain [--minutes N] [--quick]`.

Prints a JSON line for each run and keeps it in the folder; a command that was cut off, or whose minutes are over, goes on from there. When every run is there it prints the table
and writes results/transfer_gain.json and docs/transfer_gain.svg. A quick run takes a few rows, and writes the same two into its folder.
"""
from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ...nn.model import Model
from ...study.gain import TransferGain, transfer_gain
from ...study.ways import LEAST_STEPS, SETTINGS
from ...text import Tokenizer, read_rows
from ...training.throughput import cpu_name
from ...weights.files import write_json
from ..compare import RESULTS
from .sets import QUICK_HELD_OUT, SETS, body, data_folder

SIZES, SEEDS = (16, 64, 256, 1024, 4096), 3
NAME = "transfer_gain"
DOCS = Path(__file__).parents[3] / "docs"


class Over(Exception):
    """The minutes are over."""


class Clock:
    """Prints what each run gave, and says when it is time to stop."""

    def __init__(self, minutes: int | float | None):
        self.minutes, self.began, self.seen = minutes, time.perf_counter(), 0

    def __call__(self, line: dict[str, Any]) -> None:
        self.seen += 1
        print(json.dumps({name: line[name] for name in ("method", "n", "seed", "accuracy", "seconds")}), flush=True)
        if self.minutes is not None and time.perf_counter() - self.began > 60 * self.minutes:
            raise Over


def measure(folder: Path, quick: bool, clock: Clock) -> TransferGain:
    """Raises: ValueError without the data or the body; Over."""
    one = SETS["sst2"]
    train, held_out = (read_rows(data_folder() / name) for name in (one.train, one.validation))
    few: dict[str, Any] = {"sizes": (16, 32), "seeds": 1, "steps": 2} if quick else {"sizes": SIZES, "seeds": SEEDS}
    return transfer_gain(Model.from_pretrained(body(), head="none"), Tokenizer.from_pretrained(body()), one.task, train=train,
                         validation=held_out[:QUICK_HELD_OUT] if quick else held_out, out=folder, max_length=one.max_length, on_run=clock, **few)


def keep(found: TransferGain, results: Path, pictures: Path) -> None:
    about = {"set": "sst2", "cpu": cpu_name(), "threads": torch.get_num_threads(), "date": datetime.date.today().isoformat(), "settings": {**SETTINGS, "least_steps": LEAST_STEPS},
             "note": "accuracies are shares of the validation file; intervals 95 %; seconds are of single runs and no comparison"}
    write_json(results / f"{NAME}.json", about | found.to_dict())
    found.draw().figure.savefig(pictures / f"{NAME}.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-gain"), help="keeps the line of each run [runs/bench-gain]")
    parser.add_argument("--minutes", type=float, help="begin no run after so many")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a few rows and two steps: does it run here?")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder, clock = args.folder / ("quick" if args.quick else "full"), Clock(args.minutes)
    try:
        found = measure(folder, args.quick, clock)
    except Over:
        print(f"{clock.seen} runs are there; the same command goes on", file=sys.stderr)
        return
    print(found)
    keep(found, *((folder, folder) if args.quick else (RESULTS, DOCS)))


if __name__ == "__main__":
    main()
