"""What a run does beside its steps: it reads meters, evaluates, keeps the best weights, saves, and goes on from a save."""
from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..report import fragment
from ..weights.files import check_writable, read_json, recover, write_aside, write_json
from . import ranks
from .diagnose import NonFiniteError, check_trained
from .evaluate import Evaluation, measure
from .log import RunLog, finish_manifest, weights_of, write_manifest
from .memory import Kept, peak_memory, reset_peak
from .page import learned
from .precision import Precision
from .rehearsal import StepShape
from .schedule import Horizon
from .settings import TrainSettings
from .state import Progress, Save, SaveError, differences, explained_save, identity, load_parameters, load_state, moments_of, save_parameters, save_state, trained_parameters
from .throughput import Meter


@dataclass(frozen=True, repr=False)
class TrainResult:
    """What came out of a run; prints as a sentence. `stopped` is the limit that ended it: "steps", "epochs", "tokens", "minutes", "patience" or "interrupted"."""

    steps: int
    tokens: int
    seconds: float
    stopped: str
    history: list[dict]                 # the records of log.jsonl
    best: dict | None                   # step, metric, direction and value of the kept weights
    metrics: dict[str, float]           # of the last evaluation
    tokens_per_second: float            # over all steps but the first
    peak_memory: int                    # bytes
    kept_memory: int                    # bytes that were kept for the backward pass at most
    precision: str
    out: Path | None
    before: dict[str, float] = field(default_factory=dict)   # metrics of the model as it came; `adapt` measures them
    after: dict[str, float] = field(default_factory=dict)    # and of the model as it left

    @property
    def memory(self) -> str:
        return f"{self.peak_memory / 1e6:,.0f} MB at the peak, {self.kept_memory / 1e6:,.0f} of them kept for the backward pass"

    def __str__(self) -> str:
        told = {name: f"{value:.6g}" for name, value in self.metrics.items()} | {
            name: f"{self.before[name]:.6g} -> {value:.6g}" for name, value in self.after.items() if value != self.before.get(name, value)}
        held_out = ", ".join(f"{name} {value}" for name, value in told.items()) or "no evaluation"
        return f"{held_out}; {self.steps} steps, {self.tokens:,} tokens, {self.seconds:.1f} s, {self.memory}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return fragment(*learned(self))


def check_place(out: str | Path | None) -> None:
    """Raises: SaveError for a place where no folder can be made or written: said before anything is computed. Makes nothing."""
    if out is None:
        return
    place = Path(out).absolute()
    try:
        check_writable(next(path for path in (place, *place.parents) if path.exists()))
    except OSError as why:
        raise SaveError(f"the folder {out} cannot be made or written ({why.strerror or why}); a run needs a folder it may write to: choose another out") from None


def make_folder(out: Path) -> None:
    """Raises: SaveError for a place where no folder can be."""
    check_place(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as why:
        raise SaveError(f"the folder {out} cannot be made ({why.strerror}); a run needs a folder it may write to: choose another out") from None


def refuse_another_run(out: Path) -> None:
    """Raises: ValueError for a folder that holds a run already."""
    if recover(out / "last").exists():
        raise ValueError(f"{out} already holds a run; a new one would write over it: pass resume=True to go on, or another out")


class Run:
    """The state of a run and its folder."""

    def __init__(self, held: ranks.Shared, optimizer: torch.optim.Optimizer, precision: Precision, settings: TrainSettings, horizon: Horizon,
                 data: dict[str, str], out: Path | None, evaluate: Evaluation | None, save: Save):
        self.held, self.model, self.optimizer, self.precision, self.settings, self.horizon = held, held.model, optimizer, precision, settings, horizon
        self.out, self.evaluation, self.save_model, self.data = out, evaluate, save, data
        self.trained = trained_parameters(held.model, optimizer.param_groups)
        self.whole = {} if out is None and ranks.world() == 1 else identity(held.model, self.trained, settings, precision.name, data)
        self.progress = Progress()
        self.for_backward = Kept(held.model)
        self.saved: int | None = None
        self.best_weights: dict[str, Tensor] = {}
        self.metrics: dict[str, float] = {}
        self.record: dict = {}
        self.unread: list[tuple[Tensor, float, int, int, int, int]] = []
        self.steps_here, self.timed_tokens, self.timed_seconds = 0, 0, 0.0

    def open(self, resume: bool) -> None:
        """Begin, or go on where the folder's last save was made."""
        self.check_ranks()
        if self.out is not None:
            ranks.from_first(lambda: self.claim(resume))
            weights = weights_of(self.model)
            if (found := load_state(self.out / "last", self.trained, self.optimizer, self.precision.scaler, self.whole)) is not None:
                self.progress, self.saved = found, found.step
            elif ranks.first():
                with explained_save(self.out, 0):
                    write_manifest(self.out, self.model, self.settings, self.precision.name, self.data, weights)
        self.log = RunLog(self.out if ranks.first() else None, self.progress.step, self.settings.tensorboard and ranks.first())
        self.log.records = ranks.from_first(lambda: self.log.records)
        self.metrics = next((one["evaluation"] for one in reversed(self.log.records) if "evaluation" in one), {})
        self.meter = Meter(self.model, self.precision.dtype)
        reset_peak(self.model.device)
        self.began = time.perf_counter() - self.progress.seconds
        self.step_began = time.perf_counter()
        total = self.horizon.total_steps(*self.progress.used())
        self.bar = tqdm(total=int(total) if total < float("inf") else None, initial=self.progress.step, desc="training", unit="step", mininterval=0.5,
                        disable=not (self.settings.progress and ranks.first()))
        if self.settings.best:
            self.say(f"keeping the weights with the best held-out {self.settings.best.replace(' ', ', ')} is better")

    def claim(self, resume: bool) -> None:
        """Make the run's folder. Raises: ValueError for one that holds another run."""
        assert self.out is not None
        make_folder(self.out)
        if not resume:
            refuse_another_run(self.out)

    def check_ranks(self) -> None:
        """Raises: ValueError that lists what this rank has otherwise than the first."""
        if faults := differences(ranks.from_first(lambda: self.whole), self.whole):
            raise ValueError("this rank was given another run than the first; all train one model on the same data, of which each takes its part: give all the same\n  "
                             + "\n  ".join(fault.replace(" then, ", " there, ").replace(" now", " here") for fault in faults))

    def clock(self) -> float:
        """Seconds since the run began; where they decide something, by the clock of the first rank."""
        seconds = time.perf_counter() - self.began
        return ranks.from_first(lambda: seconds) if self.settings.minutes else seconds

    def reason_to_stop(self, interrupted: bool) -> str | None:
        if reason := self.horizon.reached(*self.progress.used()):
            return reason
        if self.settings.patience and self.progress.waited >= self.settings.patience:
            return "patience"
        return "interrupted" if interrupted else None

    def count(self, numbers: Tensor, lr: float, tokens: int, length: int) -> None:
        """A step was launched; its numbers (loss, norm, targets) may still be on their way."""
        done = self.progress
        done.step, done.tokens = done.step + 1, done.tokens + tokens
        self.unread.append((numbers, lr, tokens, length, done.step, done.tokens))

    def read(self, check: Callable[[float, float, int], object], on_step: Callable[[dict], object] | None) -> None:
        """Wait for the numbers of the steps since the last reading: each is checked (loss, norm, number of the step), shown, and every `log_every` steps logged."""
        unread, self.unread = self.unread, []
        if not unread:
            return
        values = torch.stack([numbers for numbers, *_ in unread]).tolist()
        seconds, self.progress.seconds = (time.perf_counter() - self.step_began) / len(unread), self.clock()
        for (loss, grad_norm, targets), (_, lr, tokens, length, step, read_so_far) in zip(values, unread, strict=True):
            check(loss, grad_norm, step)
            self.meter.add(tokens, int(targets), length, seconds, loss)
            self.steps_here += 1
            if self.steps_here > 1:                                              # the first step also warms caches up
                self.timed_tokens, self.timed_seconds = self.timed_tokens + tokens, self.timed_seconds + seconds
            self.record = {"step": step, "loss": loss, "lr": lr, "grad_norm": grad_norm, "targets": int(targets), "tokens": read_so_far,
                           "seconds": self.progress.seconds}
            self.bar.update()
            if step % self.settings.log_every == 0:
                self.write_record()
            self.step_began = time.perf_counter()
            if on_step is not None:
                on_step(self.record)

    def write_record(self) -> None:
        rates = self.meter.read()
        self.write_log({**self.record, **rates, "memory": peak_memory(self.model.device), "kept": self.for_backward.bytes})
        self.bar.set_postfix_str(f"loss {rates['loss']:.3f}, {rates['tokens_per_second']:,.0f} tokens/s", refresh=False)

    def write_log(self, record: dict) -> None:
        with explained_save(Path() if self.out is None else self.out / "last", self.progress.step):
            self.log.write(record)

    def largest_step(self) -> StepShape | None:
        """The step of the largest batch so far, for a rehearsal; None if there was none, or other processes hold a part of it."""
        (B, T), settings = self.for_backward.shape, self.settings
        return StepShape(B, T, self.precision.name, settings.checkpointing, settings.micro_batches) if B and ranks.world() == 1 else None

    def say(self, line: str) -> None:
        if not self.bar.disable:
            self.bar.write(line, file=sys.stderr)                                # where the bar is: the standard output is for results

    def due(self, epoch_steps: float) -> tuple[bool, bool, bool]:
        """Is it time to evaluate, to save, to log? Epochs end where the step passes a multiple of their length."""
        step, every = self.progress.step, self.settings.eval_every
        epoch_ends = step // epoch_steps > (step - 1) // epoch_steps
        return self.evaluation is not None and (step % every == 0 if every else epoch_ends), step % self.settings.save_every == 0, step % self.settings.log_every == 0

    def evaluate(self) -> None:
        """Measure, compare with the best so far and keep the weights if they are better."""
        if self.evaluation is None or self.progress.evaluated == self.progress.step:
            return
        self.metrics = measure(self.model, lambda model: self.held.ask(self.evaluation, model), self.precision)
        self.model.train()
        if not math.isfinite(self.metrics.get("loss", 0.0)):
            raise NonFiniteError(f"step {self.progress.step}: the held-out loss is {self.metrics['loss']:g}; finite weights of a usual size are needed, the last "
                                 f"steps were too large, and {self.kept()}: lower lr, or lengthen warmup")
        self.progress.evaluated, self.progress.seconds = self.progress.step, self.clock()
        self.write_log({"step": self.progress.step, "tokens": self.progress.tokens, "seconds": self.progress.seconds, "evaluation": self.metrics})
        if self.settings.best:
            self.keep_if_best(*self.settings.best.split())
        self.step_began = time.perf_counter()

    def keep_if_best(self, metric: str, direction: str) -> None:
        if metric not in self.metrics:
            raise ValueError(f"best={self.settings.best!r}, and there is no {metric!r}; the evaluation gives {', '.join(self.metrics)}: name one")
        value, done = self.metrics[metric], self.progress
        done.waited += 1
        if done.best is not None and not (value < done.best["value"] if direction == "lower" else value > done.best["value"]):
            return
        done.waited, done.best = 0, {"step": done.step, "metric": metric, "better": direction, "value": value}
        if self.out is None:
            self.best_weights = {name: p.detach().clone() for name, p in self.trained.items()}
            return
        values, best = ranks.on_first(self.trained), done.best

        def beside(aside: Path) -> None:
            save_parameters(values, aside)
            write_json(aside / "best.json", best)
        self.write(self.out / "best", beside)

    def write(self, folder: Path, beside: Callable[[Path], object] = bool) -> None:
        """The first rank writes the model, and what stands beside it, in the place of what was in the folder before; the others wait."""
        def write() -> None:
            with explained_save(folder, self.progress.step), write_aside(folder) as aside:
                self.save_model(model, aside)
                beside(aside)
        with self.held.whole() as model:
            ranks.from_first(write)

    def kept(self) -> str:
        return "nothing was saved yet" if self.saved is None else f"the save of step {self.saved} is intact"

    def save(self) -> None:
        check_trained(self.trained, self.progress.step, self.kept())             # a step that went wrong must not take the place of a good save
        if self.out is not None and self.saved != self.progress.step:
            values, moments = ranks.on_first(self.trained), ranks.on_first(moments_of(self.trained, self.optimizer))
            self.write(self.out / "last", lambda aside: save_state(values, moments, self.precision.scaler, self.progress, self.whole, aside))
            self.saved = self.progress.step
        self.step_began = time.perf_counter()

    def restore_best(self) -> None:
        """Give the model the weights that were kept."""
        if self.out is not None:
            best = self.out / "best"
            load_parameters(self.trained, recover(best) if ranks.first() else best)
            self.progress.best = ranks.from_first(lambda: read_json(best / "best.json"))
        else:
            with torch.no_grad():
                for name, value in self.best_weights.items():
                    self.trained[name].copy_(value)

    def finish(self, stopped: str) -> TrainResult:
        """The end: the last evaluation and save, the best weights back in the model, the model for its user. An interrupted run is only saved."""
        if stopped != "interrupted":
            if self.meter.targets:
                self.write_record()
            self.evaluate()
        self.save()
        if stopped != "interrupted" and self.progress.best is not None:
            self.restore_best()
            self.say("kept the weights of step {step}: held-out {metric} {value:.4f} ({better} is better)".format(**self.progress.best))
        self.model.eval()
        done = self.progress
        result = TrainResult(done.step, done.tokens, done.seconds, stopped, self.log.records, done.best, self.metrics,
                             self.timed_tokens / max(self.timed_seconds, 1e-9), peak_memory(self.model.device), self.for_backward.bytes, self.precision.name, self.out)
        if self.out is not None:
            if stopped != "interrupted":
                self.write(self.out / "model")
            if ranks.first():
                finish_manifest(self.out, {name: value for name, value in asdict(result).items() if name not in ("history", "out", "before", "after")})
        return result

    def close(self) -> None:
        self.bar.close()
        self.log.close()
