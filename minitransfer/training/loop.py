"""The loop. One for every objective and every strategy: an objective maps (model, batch) to a sum of losses and the number of targets in it."""
from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import torch

from ..nn.model import Model
from ..objectives import Objective
from ..weights.save import check_names, family_of
from . import ranks
from .batches import Batches, Feed, fingerprint
from .captured import Captured, widened
from .diagnose import check_weights, explain_non_finite
from .evaluate import Evaluation
from .interrupt import Interrupt, interruptible
from .memory import explained_out_of_memory, keep_freed_memory
from .optim import check_groups, make_optimizer, muon_groups, param_groups, set_lr
from .precision import Precision
from .run import Run, TrainResult
from .savings import advice
from .schedule import Horizon, lr_at
from .seeds import own_randomness, seed_batch
from .settings import TrainSettings
from .state import Save
from .step import Step


def steps(run: Run, feed: Feed, objective: Objective, ask: ranks.Ask, ctrl_c: Interrupt, on_step: Callable[[dict], None] | None) -> str:
    """Step after step until something says stop. Returns: what did."""
    model, settings, done = run.model, run.settings, run.progress
    step = Captured(run, objective, ask) if settings.graphs else Step(run, objective, ask)
    late = settings.graphs and on_step is None and settings.minutes is None     # nobody asks for numbers until they are logged: the host goes on without them

    def check(mean_loss: float, grad_norm: float, number: int) -> None:
        if not math.isfinite(run.precision.must_be_finite(mean_loss, grad_norm)):
            raise explain_non_finite(model, lambda: replay(run, feed, objective, ask, number - 1), mean_loss, number, run.saved)

    model.train()
    while (stopped := run.reason_to_stop(ctrl_c.asked)) is None:
        total = run.horizon.total_steps(*done.used())
        model.progress, lr = done.step / total, lr_at(done.step, total, settings)
        set_lr(run.optimizer, lr)
        loss_sum, counted, tokens, length = torch.zeros((), device=model.device), torch.zeros((), dtype=torch.long), 0, 0
        for k, batch, n_tokens in feed.step(done.step):
            loss, n = step(batch, seed_batch(settings.seed, k, model.device), feed.is_last(k))
            loss_sum, counted, tokens, length = loss_sum + loss, counted + n, tokens + n_tokens, batch["input_ids"].shape[1]
        loss_sum, counted, tokens, ctrl_c.agreed = ranks.total(model.device, loss_sum, counted, tokens, ctrl_c.pressed)
        run.count(step.update(loss_sum, counted), lr, int(tokens), length)
        evaluation_due, save_due, log_due = run.due(feed.epoch_steps)
        if not late or evaluation_due or save_due or log_due:
            run.read(check, on_step)
        if evaluation_due:
            run.evaluate()
        if save_due:
            run.save()
    run.read(check, on_step)
    run.optimizer.zero_grad()                                                    # graphs leave gradients where they are
    return stopped


def replay(run: Run, feed: Feed, objective: Objective, ask: ranks.Ask, step: int) -> None:
    """The forward passes of a step once more, with the same random numbers."""
    for k, batch, _ in feed.step(step):
        with run.precision.autocast():
            ask(objective, run.model, batch, seed_batch(run.settings.seed, k, run.model.device))


def train(model: Model, batches: Batches, objective: Objective, settings: TrainSettings, *, out: str | Path | None = None,
          evaluate: Evaluation | None = None, groups: list[dict] | None = None, resume: bool = False,
          on_step: Callable[[dict], None] | None = None, save: Save | None = None, data: dict[str, str] | None = None) -> TrainResult:
    """Train the parameters of `model` that are in `groups` (default: all that require a gradient) until the first limit of `settings`.

    Everything random is drawn from (seed, number of the batch): on a CPU, a run that was stopped or killed and went on with `resume` ends with the same bits as one
    that never stopped. Exceptions: a limit in minutes (weights and optimizer go on exactly, the learning rate follows the clock), and another number
    of threads or processes (sums are taken in another order). Under `torchrun` every process calls this alike, see the README beside this file.

    Args:    out: the run's folder: manifest.json, log.jsonl, last/ (to resume from), best/, model/ (the result). None: nothing is written.
             evaluate: model -> metrics, called in evaluation mode without gradients.
             groups: see `param_groups`; resume: go on from out/last if there is one; on_step: sees the record of each step.
             save: writes the model into a folder for its user (default: `model.save_pretrained`).
             data: names and hashes of the data, compared on resume.
    Returns: the model keeps the last weights, or the best if `settings.best` names a metric; it is left in evaluation mode.
    Raises:  NonFiniteError (a ValueError) for weights, losses or gradients that are NaN or infinite; SaveError for a save that failed; ValueError for a
             resumption that differs from the run, groups that do not fit, or a folder that holds another run. No error touches an earlier save.
    """
    if resume and out is None:
        raise ValueError("resume=True without a run folder; a run goes on from what is saved there: give out=")
    if settings.best and evaluate is None:
        raise ValueError(f"best={settings.best!r} without an evaluation; held-out data picks the best weights: give some (validation=, here evaluate=), or leave best out")
    if out is not None:
        check_names(model) if save is None else family_of(model)                 # what no standard file can hold is refused now and not at the first save
    ranks.join(model)
    precision = Precision(settings.precision, model)
    ranks.check_shares(settings, objective, precision.name)
    check_weights(model)
    keep_freed_memory()
    model.checkpointing = settings.checkpointing
    groups = param_groups(model, settings.weight_decay) if groups is None else groups
    check_groups(model, groups)
    groups = muon_groups(model, groups) if settings.optimizer == "muon" else groups
    with ranks.shared(model, groups, settings.shard) as held:
        run = Run(held, make_optimizer(held.groups, settings), precision, settings, Horizon.of(settings, len(batches)),
                  {"batches": fingerprint(batches)} | (data or {}), None if out is None else Path(out), evaluate, save or Model.save_pretrained)
        run.open(resume)
        feed = Feed(batches, settings.micro_batches, model.device, partial(widened, model) if settings.graphs else dict)
        with closing(run), closing(feed), interruptible() as ctrl_c, own_randomness(model.device), explained_out_of_memory(lambda: advice(model, run.largest_step(), model.device)):
            return run.finish(steps(run, feed, objective, held.ask, ctrl_c, on_step))
