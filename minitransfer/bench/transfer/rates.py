"""Which learning rate a strategy brings: `python -m minitransfer.bench.transfer.rates` tries some for each on training rows of sst2 that no figure uses, one seed.

What was found is in results/transfer_rates.json. Rows 2,000 to 2,800 of the shuffled training file teach, rows 4,000 to 4,600 judge; batch 16, 3 epochs.
"""
from __future__ import annotations

import json
import random
from dataclasses import replace

from ...text import read_rows
from . import ours
from .sets import DRAWN, SETS, data_folder

GRID = {"features": (5e-3, 1e-2, 2e-2), "bitfit": (1e-3, 3e-3, 1e-2), "ia3": (3e-3, 1e-2, 3e-2), "prefix": (3e-3, 1e-2, 3e-2), "soft_prompt": (3e-2, 1e-1), "adapter": (1e-3, 2e-3),
        "compacter": (3e-3, 1e-2), "discriminative": (3e-4, 1e-3), "ulmfit": (1e-3, 3e-3), "lora": (1e-3, 2e-3), "full": (5e-5,)}


def main() -> None:
    one = replace(SETS["sst2"], batch_size=16)
    rows = read_rows(data_folder() / one.train)
    random.Random(DRAWN).shuffle(rows)
    train, judges = rows[2000:2800], rows[4000:4600]
    for method, rates in GRID.items():
        for lr in rates:
            found = ours.tune(one, ours.start(one, ["0", "1"], 0), train, judges, 0, method, lr=lr)
            print(json.dumps({"strategy": method, "lr": lr, "accuracy": found.metrics["accuracy"], "loss": found.metrics["loss"]}), flush=True)


if __name__ == "__main__":
    main()
