"""How a run is trained, as data."""
from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..config import choose
from ..nn.recompute import recomputed

SCHEDULES = ("linear", "cosine", "constant", "slanted")
OPTIMIZERS = ("adamw", "muon")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
LIMITS = ("steps", "epochs", "tokens", "minutes")
TRAINERS = {"learning_rate": "lr", "num_train_epochs": "epochs", "per_device_train_batch_size": "batch_size", "gradient_accumulation_steps": "micro_batches",
            "warmup_steps": "warmup", "warmup_ratio": "warmup", "max_length": "length", "max_seq_length": "max_length"}     # what transformers' Trainer calls them
Number = int | float
WHOLE = ("steps", "tokens", "micro_batches", "eval_every", "save_every", "log_every", "patience")
MAY_BE_NONE = (*LIMITS, "max_grad_norm", "eval_every", "patience")
FREE = ("checkpointing", "save_every", "log_every", "progress", "tensorboard", "shard")  # may change between a run and its resumption: they move no number


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The setting that somebody meant who called it by another library's name, or nearly right."""
    return TRAINERS.get(name) or next(iter(difflib.get_close_matches(name, list(known), 1)), None)


def epochs_or(given: Mapping[str, Any], epochs: int) -> dict[str, int]:
    """So many epochs, unless a limit is given."""
    return {} if any(given.get(name) is not None for name in LIMITS) else {"epochs": epochs}


@dataclass(frozen=True)
class TrainSettings:
    """How long, how fast, how precise, and what is watched.

    Raises: ValueError naming the field, its value and what it may be; KeyError from `from_dict` for a field that does not exist.
    """

    # how long: whichever limit comes first ends the run, and the schedule anneals to the end of that one
    steps: int | None = None            # optimizer steps
    epochs: Number | None = None        # passes over the batches
    tokens: int | None = None           # tokens read, padding not counted
    minutes: Number | None = None       # of the clock, evaluation and saving included
    # the learning rate
    lr: Number = 5e-4                   # at the peak
    schedule: str = "linear"            # "linear" | "cosine" | "constant" | "slanted"
    warmup: Number = 0.1                # steps if >= 1, a fraction of the run if < 1
    min_lr: Number = 0.0                # where the schedule ends, as a fraction of lr
    # the step
    optimizer: str = "adamw"            # "adamw" | "muon": it moves the matrices of the blocks, at AdamW's usual rates, and AdamW the rest
    micro_batches: int = 1              # batches per optimizer step, of all processes together
    max_grad_norm: Number | None = 1.0  # None: gradients are not clipped
    weight_decay: Number = 0.01         # of matrices; biases and norms do not decay
    beta1: Number = 0.9
    beta2: Number = 0.999
    eps: Number = 1e-8
    seed: int = 0                       # of dropout, masks and everything else drawn during the run
    # the machine
    precision: str = "auto"             # "auto" | "fp32" | "bf16" | "fp16"
    checkpointing: bool | str = False   # compute again in the backward pass, for less memory and more time: true (blocks), blocks:2 (every second), attention or mlp
    graphs: bool = False                # on an NVIDIA GPU: replay steps as CUDA graphs, one for each shape of batch and one for the update
    shard: bool = False                 # under torchrun, each process holds a part of the weights, gradients and moments (FSDP2); else a copy of all
    # what is watched and kept
    eval_every: int | None = None       # steps; None: at the end of each epoch. The end of the run is always evaluated
    save_every: int = 500               # steps
    log_every: int = 10                 # steps
    best: str | None = None             # the metric that picks the weights to keep, and its direction: "loss lower", "accuracy higher"
    patience: int | None = None         # stop after this many evaluations in a row that were not the best
    progress: bool = True               # a progress bar
    tensorboard: bool = False           # also write event files into the run folder; needs the tensorboard package

    def __post_init__(self) -> None:
        if all(getattr(self, name) is None for name in LIMITS):
            raise ValueError("no limit for this run; it needs to know when to stop: give steps, epochs, tokens or minutes (of several, the first "
                             "that is reached counts)")
        for name in (*LIMITS, "lr", "min_lr", "warmup", "weight_decay", "beta1", "beta2", *WHOLE[2:]):
            value = getattr(self, name)
            if not (value is None and name in MAY_BE_NONE) and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ValueError(f"{name}={value!r}; it is a number: give one" + (", or leave it out" if name in MAY_BE_NONE else ""))
        for name in (*LIMITS, "lr", "eps", "micro_batches", "max_grad_norm", "eval_every", "save_every", "log_every", "patience"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}={value}; it has to be above zero, and finite: give a positive number" + (", or leave it out" if name in LIMITS else ""))
        for name in WHOLE:
            if (value := getattr(self, name)) is not None and value != int(value):
                raise ValueError(f"{name}={value}; it counts whole ones: give a whole number")
        for name in ("beta1", "beta2", "min_lr"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; it is a fraction: give a number from 0 to below 1")
        if not (0 <= self.warmup < math.inf and 0 <= self.weight_decay < math.inf):
            raise ValueError(f"warmup={self.warmup}, weight_decay={self.weight_decay}; neither can be negative or infinite: 0 switches it off")
        choose("schedule", self.schedule, SCHEDULES)
        choose("optimizer", self.optimizer, OPTIMIZERS)
        choose("precision", self.precision, PRECISIONS)
        recomputed(self.checkpointing)
        if self.optimizer == "muon" and self.shard:
            raise ValueError('optimizer="muon" with shard=True; Muon steps a matrix as a whole, and each process holds a part of it: leave shard out, or give optimizer="adamw"')
        if self.best is not None and (len(self.best.split()) != 2 or self.best.split()[1] not in ("lower", "higher")):
            raise ValueError(f'best={self.best!r}; it is a metric and the better direction: write for example "loss lower" or "accuracy higher"')
        if self.patience is not None and self.best is None:
            raise ValueError(f'patience={self.patience} without best; stopping early needs a metric to watch: add for example best="loss lower"')

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def for_tuning(cls, of_strategy: Mapping[str, Any], given: Mapping[str, Any], best: str | None = None) -> TrainSettings:
        """The caller's settings over the strategy's over the usual ones of tuning: lr=5e-5, a tenth of warm-up, and 3 epochs if no limit is given."""
        return cls.from_dict({"lr": 5e-5, "warmup": 0.1, "best": best, **epochs_or(given, 3), **of_strategy, **given})

    @classmethod
    def from_dict(cls, values: dict) -> TrainSettings:
        """The settings in `values`; an unknown name is an error that offers the nearest known one."""
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                near = nearest(name, known)
                hint = f"did you mean {near!r}?" if near else "leave it out, or take one of these"
                raise KeyError(f"no setting is called {name!r}; the settings are {', '.join(known)}: {hint}")
        return cls(**values)
