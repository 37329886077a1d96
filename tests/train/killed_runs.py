"""Runs that are killed with signal 9, each in a process of its own. A script: `python -m tests.train.killed_runs FOLDER steps full` prints one JSON line.

Processes are forked before any thread exists (one thread for everything), so that each costs milliseconds.
"""
from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
import torch._dynamo  # the first optimizer imports it; here, so that no child has to

from minitransfer.objectives import Masked
from minitransfer.training import TrainSettings, held_out_loss, train
from minitransfer.training.throughput import peak_flops
from minitransfer.weights.files import recover

from .small import V, batches, bert

STEPS, SAVE_EVERY = 12, 4
TOK = SimpleNamespace(mask_id=4, vocab_size=V, special_ids=frozenset(range(5)))


def run(out: Path, on_step: Callable[[dict], None] | None = None, save_every: int = SAVE_EVERY) -> None:
    """Dropout, masks drawn anew, two micro-batches a step, epochs that end inside steps, evaluations, best weights: all that a resumption could get wrong."""
    settings = TrainSettings(steps=STEPS, lr=1e-2, micro_batches=2, eval_every=4, best="loss lower", save_every=save_every, log_every=2,
                             precision="fp32", progress=False)
    objective = Masked(TOK, 0.3)
    fresh = not recover(out / "last").exists()       # else other weights, so that every bit has to come from the save
    train(bert(seed=0 if fresh else os.getpid(), n_layers=1), batches(n=7), objective, settings, out=out, resume=True, on_step=on_step,
          evaluate=held_out_loss(batches(n=2, seed=9), objective))


def forked(work: Callable[[], None], after: float | None = None) -> int:
    """Run `work` in a process of its own, which is killed `after` seconds if given. Returns: its exit code, or minus the signal."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if after is not None:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die(condition: bool = True) -> None:
    if condition:
        os.kill(os.getpid(), signal.SIGKILL)


def die_at(step: int, record: dict) -> None:
    die(record["step"] == step)


def die_in_save(out: Path, operation: int) -> None:
    """Die at file operation number `operation` in the folder from step 8 on, where a save and an evaluation are due."""
    state = {"armed": False, "count": 0}

    def watch(event: str, args: tuple) -> None:
        if state["armed"] and event in ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.scandir") and str(out) in str(args[0]):
            die(state["count"] == operation)
            state["count"] += 1

    def arm(record: dict) -> None:
        state["armed"] = record["step"] == 2 * SAVE_EVERY

    sys.addaudithook(watch)
    run(out, arm)


def files(out: Path) -> dict[str, bytes]:
    """The bits that have to be equal: weights, moments, best weights, and the log without its times."""
    log = [{k: v for k, v in json.loads(line).items() if k in ("step", "loss", "lr", "grad_norm", "tokens", "evaluation")}
           for line in (out / "log.jsonl").read_text().splitlines()]
    return {name: (out / name).read_bytes() for name in ("model/model.safetensors", "last/parameters.safetensors", "last/optimizer.safetensors",
                                                        "best/parameters.safetensors", "best/best.json")} | {"log": json.dumps(log).encode()}


def saved_step(out: Path) -> int:
    last = recover(out / "last")
    return json.loads((last / "train_state.json").read_text())["progress"]["step"] if last.exists() else 0


def outcome(out: Path, wanted: dict[str, bytes], killed: int, at: object) -> dict:
    """Resume a run that was killed, and compare."""
    step = saved_step(out)
    ended = forked(partial(run, out))
    got = files(out) if ended == 0 else {}
    # the loss of a window that was cut in two by the kill is a mean over its second half
    return {"at": at, "killed": killed, "saved": step, "ended": ended, "differs": [name for name in wanted if name != "log" and got.get(name) != wanted[name]],
            "log": [one["step"] for one in json.loads(got.get("log", b"[]"))]}


def at_steps(folder: Path, wanted: dict[str, bytes]) -> list[dict]:
    """Killed after five random steps."""
    found = []
    for n, step in enumerate(random.Random(0).sample(range(1, STEPS), 5)):
        out = folder / f"step{n}"
        killed = forked(partial(run, out, partial(die_at, step)))
        found.append(outcome(out, wanted, killed, step))
    return found


def in_a_save(folder: Path, wanted: dict[str, bytes]) -> list[dict]:
    """Killed at every single file operation of the second save, and of the evaluation before it, which keeps the best weights."""
    found: list[dict] = []
    while not found or found[-1]["killed"]:
        out = folder / f"save{len(found)}"
        found.append(outcome(out, wanted, forked(partial(die_in_save, out, len(found))), len(found)))
    return found


def at_moments(folder: Path, wanted: dict[str, bytes]) -> list[dict]:
    """Killed again and again at random moments while every step saves, until it has come to its end."""
    found, chance = [], random.Random(0)
    began = time.perf_counter()
    forked(partial(run, folder / "timed", save_every=1))
    whole = time.perf_counter() - began
    for n in range(3):
        out, lives = folder / f"moment{n}", 0
        while lives < 20 and forked(partial(run, out, save_every=1), after=whole * chance.uniform(0.3, 0.7)) != 0:
            lives += 1
        found.append(outcome(out, wanted, lives, n))
    return found


def full_disk(folder: Path, wanted: dict[str, bytes]) -> dict:
    """No file may grow beyond 20 kB from step 5 on: the second save does not fit."""
    out = folder / "full"

    def work() -> None:
        try:
            run(out, lambda record: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)) if record["step"] == 5 else None)
        except Exception as error:
            os.write(1, json.dumps({"kind": type(error).__name__, "message": str(error)}).encode())
            os._exit(3)

    read, write = os.pipe()

    def piped() -> None:
        os.dup2(write, 1)
        work()

    killed = forked(piped)
    os.close(write)
    error = json.loads(os.read(read, 65536) or b"{}")
    leftovers = [path.name for path in out.iterdir() if path.name.startswith(".")]
    return {**outcome(out, wanted, killed, 5), "error": error, "leftovers": leftovers}


if __name__ == "__main__":
    torch.set_num_threads(1)
    peak_flops(torch.device("cpu"), torch.float32)   # measured here, so that no child has to
    root = Path(sys.argv[1])
    assert forked(lambda: run(root / "whole")) == 0
    truth = files(root / "whole")
    parts = {"steps": at_steps, "save": in_a_save, "moments": at_moments, "full": full_disk}
    print(json.dumps({name: parts[name](root, truth) for name in sys.argv[2:]} | {"log": [one["step"] for one in json.loads(truth["log"])]}))
