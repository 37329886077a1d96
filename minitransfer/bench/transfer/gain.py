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
from ...study.gain import METHODS, Grid, TransferGain, grid
from ...text import Tokenizer, read_rows
from ...training.throughput import cpu_name
from ...weights.files import write_json
from ..compare import RESULTS
from .sets import QUICK_HELD_OUT, SETS, body, data_folder

SIZES, SEEDS = (16, 64, 256, 1024, 4096), 3
NAME = "transfer_gain"
DOCS = Path(__file__).parents[3] / "docs"


def runs(folder: Path, quick: bool) -> Grid:
    """All runs. Raises: ValueError without the data or the body."""
    one = SETS["sst2"]
    train, held_out = (read_rows(data_folder() / name) for name in (one.train, one.validation))
    few: dict[str, Any] = {"sizes": (16, 32), "seeds": 1, "steps": 2} if quick else {"sizes": SIZES, "seeds": SEEDS}
    return grid(Model.from_pretrained(body(), head="none"), Tokenizer.from_pretrained(body()), one.task, train=train, validation=held_out[:QUICK_HELD_OUT] if quick else held_out,
                methods=METHODS, out=folder, max_length=one.max_length, **few)


def collect(these: Grid, minutes: float | None) -> list[dict[str, Any]]:
    """The lines of all runs, or of as many as the minutes allowed; a run that began is finished."""
    found, began = [], time.perf_counter()
    for line in these.lines():
        found.append(line)
        print(json.dumps({name: line[name] for name in ("method", "n", "seed", "accuracy", "seconds")}), flush=True)
        if minutes is not None and time.perf_counter() - began > 60 * minutes:
            break
    return found


def keep(found: TransferGain, these: Grid, results: Path, pictures: Path) -> None:
    about = {"set": "sst2", "cpu": cpu_name(), "threads": torch.get_num_threads(), "date": datetime.date.today().isoformat(), "settings": these.settings,
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
    these = runs(args.folder / ("quick" if args.quick else "full"), args.quick)
    found, wanted = collect(these, args.minutes), len(these.methods) * len(these.sizes) * len(these.seeds)
    if len(found) < wanted:
        print(f"{len(found)} of {wanted} runs are there; the same command goes on", file=sys.stderr)
        return
    gain = TransferGain.of(found)
    print(gain)
    places = (these.file.parent,) * 2 if args.quick and these.file is not None else (RESULTS, DOCS)
    keep(gain, these, *places)


if __name__ == "__main__":
    main()
