"""The character row: the whole training of a small model on tinyshakespeare, ours and that of nanoGPT."""
from __future__ import annotations

import importlib
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..nn.model import Model
from ..objectives import Causal
from ..training import RandomWindows, TrainSettings, held_out_loss, train
from .rows import Row

EVALUATE_EVERY, EVALUATION_BATCHES = 250, 20
CLOCK, HELD_OUT = re.compile(r"^iter \d+: .*time ([\d.]+)ms", re.MULTILINE), re.compile(r"^step \d+: .*val loss ([\d.]+)", re.MULTILINE)
FILES = ("train.py", "model.py", "configurator.py", "config/train_shakespeare_char.py")


def check_clone(folder: Path) -> None:
    """Raises: ValueError for a folder that is not a clone of nanoGPT."""
    if absent := [name for name in FILES if not (folder / name).is_file()]:
        raise ValueError(f"{folder} has no {', '.join(absent)}; the peer of the row characters is nanoGPT's own code: give the folder of a clone with --nanogpt")


def tinyshakespeare() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Ids of the first nine tenths and the last tenth, and the characters they number."""
    text = (Path(os.environ["MINITRANSFER_DATA"]) / "tinyshakespeare/input.txt").read_text(encoding="utf-8")
    characters = sorted(set(text))
    number = {character: i for i, character in enumerate(characters)}
    ids, cut = np.array([number[character] for character in text], dtype=np.uint16), int(0.9 * len(text))
    return ids[:cut], ids[cut:], characters


class Windows:
    """Windows side by side over a whole stream, each with the token after it: every token is predicted once."""

    def __init__(self, ids: np.ndarray, length: int, batch_size: int):
        starts = np.arange(0, len(ids) - length - 1, length)
        self.rows, self.batch_size = ids[starts[:, None] + np.arange(length + 1)].astype(np.int64), batch_size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        return {"input_ids": torch.from_numpy(self.rows[k * self.batch_size:(k + 1) * self.batch_size])}


class First:
    """The first batches of a stream, as an epoch."""

    def __init__(self, batches: RandomWindows, n: int):
        self.batches, self.n = batches, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        return self.batches[k]


def ours_characters(row: Row, repeats: int) -> dict[str, Any]:
    """The engine's loop with a run folder, at the peer's settings; the clock includes evaluations and saves.

    `loss` is over the whole held-out tenth, of the weights with the best evaluation, taken after the clock has stopped.
    """
    assert row.config is not None
    training, held_out, characters = tinyshakespeare()
    assert len(characters) == row.config.vocab_size, len(characters)
    model, length = Model(row.config, row.head, seed=1337), row.length + 1
    streams = [First(RandomWindows(ids, length, row.batch, seed=1), EVALUATION_BATCHES) for ids in (training, held_out)]
    measures = [held_out_loss(stream, Causal()) for stream in streams]

    def evaluate(model: Model) -> dict[str, float]:
        return {"train": measures[0](model)["loss"], "loss": measures[1](model)["loss"]}

    start = time.perf_counter()
    with torch.no_grad():
        evaluate(model.eval())                                                   # the peer also begins with one
    settings = TrainSettings(steps=repeats, lr=1e-3, min_lr=0.1, schedule="cosine", warmup=min(100, repeats // 2), beta2=0.99, weight_decay=0.1, seed=1337,
                             precision=row.precision, eval_every=EVALUATE_EVERY, save_every=10**9, best="loss lower", progress=False)
    with tempfile.TemporaryDirectory() as folder:
        result = train(model, RandomWindows(training, length, row.batch, seed=1337), Causal(), settings, out=Path(folder) / "run", evaluate=evaluate)
        seconds = time.perf_counter() - start
    with torch.no_grad():
        whole = held_out_loss(Windows(held_out, row.length, 100), Causal())(model)["loss"]
    return {"readings": [seconds], "dtype": result.precision, "loss": whole, "steps": result.steps}


def peer_characters(row: Row, repeats: int, folder: Path) -> dict[str, Any]:
    """nanoGPT's own script in a copy of its folder; `loss` is over the whole held-out tenth, of the weights it kept, as ours."""
    training, held_out, characters = tinyshakespeare()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for file in FILES:
            (place / file).parent.mkdir(exist_ok=True)
            (place / file).symlink_to((folder / file).resolve())
        data = place / "data/shakespeare_char"
        data.mkdir(parents=True)
        training.tofile(data / "train.bin")
        held_out.tofile(data / "val.bin")
        (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(characters), "stoi": {}, "itos": {}}))
        settings = {"device": "cpu", "compile": False, "eval_iters": EVALUATION_BATCHES, "log_interval": 1, "block_size": row.length, "batch_size": row.batch,
                    "n_layer": 4, "n_head": 4, "n_embd": 128, "max_iters": repeats, "lr_decay_iters": repeats, "dropout": 0.0}
        words = [f"--{key}={value}" for key, value in settings.items()]
        done = subprocess.run([sys.executable, "train.py", "config/train_shakespeare_char.py", *words], cwd=place, capture_output=True, text=True, check=True,
                              env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())})
        whole = their_loss(place, held_out, row)
    times = [float(ms) / 1000 for ms in CLOCK.findall(done.stdout)]
    return {"readings": [sum(times)], "dtype": "fp32", "loss": whole, "loss_printed": min(map(float, HELD_OUT.findall(done.stdout))), "steps": len(times)}


@torch.no_grad()
def their_loss(place: Path, held_out: np.ndarray, row: Row) -> float:
    """nats per character of the checkpoint that nanoGPT left, by its own model: what it prints is an estimate from 20 batches, 0.02 to either side."""
    sys.path.insert(0, str(place))
    theirs, kept = importlib.import_module("model"), torch.load(next(place.rglob("ckpt.pt")), weights_only=True)
    model = theirs.GPT(theirs.GPTConfig(**kept["model_args"])).eval()
    model.load_state_dict(kept["model"])
    windows, total, n = Windows(held_out, row.length, 100), 0.0, 0
    for k in range(len(windows)):
        ids = windows[k]["input_ids"]
        total += float(model(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())[1]) * ids[:, 1:].numel()
        n += ids[:, 1:].numel()
    return total / n
