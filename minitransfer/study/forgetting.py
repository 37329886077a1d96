"""What tuning does to what was there before: the loss on general text while a task is learned, and how far weights and states move, layer by layer.

    rise     mean loss on general text after - before, in nats a token, asked of the vocabulary head that the model came with
    drift    ||W - W0||_F / ||W0||_F                            of each layer group, W: the weight as the forward pass sees it
    CKA      ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F)          X, Y (N, D): states of the same N tokens before and after, columns centred

Source: Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited", equation 3 with a linear kernel; Goodfellow et al. 2014 and McCloskey & Cohen 1989
(catastrophic forgetting).
"""
from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..nn.evaluating import evaluating
from ..nn.given import need_vocabulary
from ..nn.model import Model
from ..nn.trace import Trace
from ..objectives import Causal, Objective
from ..objectives.base import inputs_of, tokens_of
from ..tasks import Task, finetune
from ..tasks.intervals import Bootstrap
from ..tasks.named import task_of
from ..text import Batches, PackedBatches, TokenCache, Tokenizer, read_rows, tokenize_corpus
from ..training import TrainSettings
from ..training.batches import Rows
from ..training.evaluate import losses_of
from ..training.precision import Precision
from ..training.pretrain import make_objective, own_objective
from ..transfer import copy_of_head, ewc, fisher, l2sp, layer_groups, mixout, replay, strategy
from ..transfer.forgetting import seen
from ..transfer.groups import Table
from ..transfer.replay import answering_with
from .tables import Interval, draw_line, interval, jackknife, new_axes, signed

TOKENS = 4096           # whose states are compared: several for each dimension, or every CKA would be near one
GROUPS = 10             # parts of the tokens, each left out once
FISHER_TEXTS, EWC_STRENGTH = 64, 1000.0
RATE = "lr "            # begins the names of runs that differ in their rate
Losses = Float[np.ndarray, "N 2"]       # of each batch the sum over its targets, and their number
Way = Mapping[str, Any] | Callable[[Model], Mapping[str, Any]]       # settings of `finetune`, or what gives them for a model
Ways = Mapping[str, Way]


def batch_losses(model: Model, batches: Batches, objective: Objective) -> Losses:
    """Each time with the same masks."""
    with evaluating(model), torch.no_grad(), Precision("auto", model).autocast():
        return np.array(list(losses_of(model, batches, objective)), float)


class OldTask:
    """What a model could do before: batches of general text, and a copy of the head that is asked about them."""

    def __init__(self, model: Model, batches: Batches, objective: Objective):
        self.head: nn.Module = copy_of_head(model)
        self.batches, self.objective = batches, objective

    def losses(self, model: Model) -> Losses:
        with answering_with(model, self.head):
            return batch_losses(model, self.batches, self.objective)

    def watch(self, model: Model, steps: int, found: dict[int, Losses]) -> Callable[[dict], None]:
        """For `on_step`: the losses go into `found` after every so many steps."""
        def note(record: dict) -> None:
            if record["step"] % steps == 0:
                found[record["step"]] = self.losses(model)
        return note


def mean_loss(losses: Losses) -> float:
    return float(losses[:, 0].sum() / losses[:, 1].sum())


def rise(before: Losses, after: Losses) -> Interval:
    """How much the mean loss rose on the same targets. Bootstrap over batches."""
    sums = Bootstrap(3)
    sums.add(np.column_stack([after[:, 0], before[:, 0], before[:, 1]]))
    return interval(sums, lambda s: (s[..., 0] - s[..., 1]) / s[..., 2].clip(1))


def drift(before: Model, after: nn.Module) -> dict[str, float]:
    """How far the weights of each layer group moved, the head left out; the change that LoRA or (IA)^3 makes to a weight counts."""
    start, now = dict(before.named_parameters()), seen(after)
    found = {}
    for group, names in layer_groups(before).items():
        kept = [name for name in names if name in now and group != "head"]
        if kept:
            moved, size = (sum(float(t.square().sum()) for t in many) for many in ((now[n].detach() - start[n].detach() for n in kept), (start[n].detach() for n in kept)))
            found[group] = (moved / max(size, 1e-30)) ** 0.5
    return found


@torch.no_grad()
def states(model: Model, batches: Batches, most: int = TOKENS) -> list[Float[Tensor, "N D"]]:
    """The states of the first `most` tokens of the batches after the embeddings and each block."""
    found: list[list[Tensor]] = []
    with evaluating(model):
        for k in range(len(batches)):
            batch, trace = {name: t.to(model.device) for name, t in batches[k].items()}, Trace(False)
            model.body(**inputs_of(batch, batch["input_ids"]), trace=trace)
            found.append([one[tokens_of(batch)].float().cpu() for one in trace.states])
            if sum(len(one[0]) for one in found) >= most:
                break
    return [torch.cat(layer)[:most] for layer in zip(*found, strict=True)]


def alignment(products: Float[Tensor, "W W"], D: int) -> float:
    """Linear CKA from the sums Z^T Z over tokens, Z = (x, y, 1)."""
    n, sums = products[-1, -1], products[-1, :-1]
    centred = products[:-1, :-1] - sums[:, None] * sums / n
    xx, xy, yy = centred[:D, :D], centred[:D, D:], centred[D:, D:]
    return float(xy.square().sum() / (xx.norm() * yy.norm()).clamp(min=1e-30))


def cka(x: Float[Tensor, "N D"], y: Float[Tensor, "N E"], groups: int = GROUPS) -> Interval:
    """Linear centred kernel alignment: 1 for states that are the same but for a rotation and a scale.

    The interval is that of a jackknife over consecutive parts of the tokens. With few tokens for each dimension the value is too near one: N should be several times D.
    """
    z = torch.cat([x - x.mean(0), y - y.mean(0), x.new_ones(len(x), 1)], 1)     # centred beforehand too: the sums stay small
    products = torch.stack([part.T @ part for part in z.chunk(groups)])
    whole, D = products.sum(0), x.shape[1]
    return jackknife(alignment(whole, D), [alignment(whole - one, D) for one in products], 0.0, 1.0)


@dataclass(frozen=True)
class EpochRow:
    """The end of an epoch: the task's metric on the held-out rows, the loss on general text, and how much it rose."""

    epoch: int
    train_loss: float
    score: float
    loss: float
    rise: Interval


@dataclass(frozen=True)
class RunRow:
    """One way to tune: what it gave and what it cost in what was there before."""

    name: str
    lr: float
    trained: int
    score: Interval
    rise: Interval
    epochs: tuple[EpochRow, ...]
    drift: dict[str, float]
    cka: tuple[Interval, ...]               # of the embeddings and of each block


@dataclass(frozen=True, repr=False)
class Forgetting(Table):
    """Ways to tune beside one another. Prints as a table; `draw` gives the figure: loss by epoch, score over forgetting, drift and CKA by layer."""

    metric: str
    before: float                           # the loss on general text, in nats a token
    runs: tuple[RunRow, ...]

    def cells(self) -> list[tuple[str, ...]]:
        head = ("run", "lr", "trained", self.metric, f"rise of the loss on general text (from {self.before:.3f})", "drift, lowest and highest block", "CKA of the last state")
        return [head, *((r.name, f"{r.lr:g}", f"{r.trained:,}", str(r.score), signed(r.rise), " ".join(f"{d:.4f}" for d in lowest_and_highest(r)), str(r.cka[-1]))
                        for r in self.runs)]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"metric": self.metric, "before": self.before, "runs": [asdict(one) for one in self.runs]}

    def draw(self, axes: Any = None) -> Any:
        """Returns: (2, 2) of matplotlib's axes."""
        axes = new_axes(12, 8, 2, 2) if axes is None else axes
        (by_epoch, trade), (moved, alike) = axes
        for run in self.runs:
            line, = by_epoch.plot([0, *(one.epoch for one in run.epochs)], [self.before, *(one.loss for one in run.epochs)], marker=".", label=run.name)
            trade.errorbar(run.rise.value, run.score.value, [[run.score.value - run.score.low], [run.score.high - run.score.value]],
                           [[run.rise.value - run.rise.low], [run.rise.high - run.rise.value]], marker="o", capsize=3, color=line.get_color(), label=run.name)
            moved.plot(list(run.drift), list(run.drift.values()), marker=".", label=run.name)
            draw_line(alike, np.arange(len(run.cka)), list(run.cka), run.name)
        rates = sorted((one for one in self.runs if one.name.startswith(RATE)), key=lambda one: one.lr)
        trade.plot([one.rise.value for one in rates], [one.score.value for one in rates], color="grey", linewidth=1, zorder=0)
        by_epoch.set(xlabel="epoch", ylabel="nats a token", title="loss on general text")
        trade.set(xlabel="rise of the loss on general text", ylabel=self.metric, title="what was learned and what was forgotten")
        by_epoch.xaxis.get_major_locator().set_params(integer=True)
        moved.set(ylabel="|W - W0| / |W0|", title="how far the weights moved")
        moved.tick_params(axis="x", rotation=90)
        alike.set(xlabel="layer (0: embeddings)", ylabel="linear CKA", xticks=range(len(self.runs[0].cka)), title="how alike the states are to those before")
        by_epoch.legend(fontsize="small")
        return axes


def lowest_and_highest(run: RunRow) -> tuple[float, ...]:
    """The drift of the lowest and of the highest block."""
    blocks = [value for group, value in run.drift.items() if "blocks." in group]
    return (blocks[0], blocks[-1]) if blocks else ()


def usual_ways(rehearsal: Batches, objective: Objective) -> Ways:
    """Full tuning, and what is there against forgetting: by their names, settings of `finetune`, or a function of the model that gives them."""
    return {"full": {}, "lora": {"strategy": "lora"}, "l2sp": {"keep": l2sp()}, "mixout": {"keep": mixout()},
            "ewc": lambda model: {"keep": ewc(fisher(model, rehearsal, objective, FISHER_TEXTS), EWC_STRENGTH)},
            "replay": lambda model: {"keep": replay(rehearsal, objective, share=0.2, head=copy_of_head(model))}}


def chosen(runs: Sequence[str] | Ways, rates: Sequence[float], usual: Ways) -> Ways:
    """Raises: ValueError for no run, and KeyError for a name that is none of the usual ones."""
    if not isinstance(runs, Mapping):
        if strangers := [name for name in runs if name not in usual]:
            raise KeyError(f"no run {strangers[0]!r}; there are {', '.join(usual)}: name some of these, or give a dict of name -> settings of finetune")
        runs = {name: usual[name] for name in runs}
    found = {**runs, **{f"{RATE}{rate:g}": {"lr": rate} for rate in rates}}
    if not found:
        raise ValueError("no runs and no rates; there must be something that may forget: name some of " + ", ".join(usual))
    return found


def packed(tok: Tokenizer, text: Any, length: int, rows: int, objective: Objective) -> PackedBatches:
    return PackedBatches(text if isinstance(text, TokenCache) else tokenize_corpus(tok, text), tok, length, rows, causal=isinstance(objective, Causal))


def halves(tok: Tokenizer, general: Any, rehearsal: Any, length: int, rows: int, objective: Objective) -> tuple[Batches, Batches]:
    """The general text that is measured, and that which EWC and replay may use: the second and the first half of it, unless the latter is given.

    Raises: ValueError for text that fills fewer than four rows.
    """
    measured = packed(tok, general, length, rows, objective)
    if (n := measured.n_rows) < 4:
        raise ValueError(f"general text that fills {n} rows of {length} tokens; some are measured and others rehearsed: give more of it, or a smaller length")
    if rehearsal is not None:
        return measured, packed(tok, rehearsal, length, rows, objective)
    return Rows(measured, np.arange(n // 2, n)), Rows(measured, np.arange(n // 2))


def tuned(name: str, model: Model, tok: Tokenizer, task: Task, way: Way, old: Batches, objective: Objective, batch_size: int, arguments: dict[str, Any]) -> tuple[Losses, RunRow]:
    """Tune a copy of the model in one way, watching. Returns: the losses before, too."""
    twin = copy.deepcopy(model)
    old_task, found, steps = OldTask(twin, old, objective), dict[int, Losses](), -(-len(arguments["train"]) // batch_size)
    before, first = old_task.losses(twin), states(twin, old)
    given = {**arguments, **(way(twin) if callable(way) else way)}
    result = finetune(twin, tok, task, batch_size=batch_size, on_step=old_task.watch(twin, steps, found), best=None, progress=False, log_every=steps, **given)
    if result.training.stopped == "interrupted":
        raise KeyboardInterrupt
    metric, losses = task.best.split()[0], {one["step"]: one["loss"] for one in result.history if "lr" in one}
    scores = {one["step"]: one["evaluation"][metric] for one in result.history if "evaluation" in one}
    epochs = tuple(EpochRow(step // steps, losses[step], scores[step], mean_loss(then), rise(before, then)) for step, then in found.items() if step in scores)
    score = Interval(*(result.metrics[f"{metric}{end}"] for end in ("", "_low", "_high")))
    lr = TrainSettings.for_tuning(strategy(given.get("strategy", "full")).settings, {"lr": given["lr"]} if "lr" in given else {}).lr
    alike = tuple(cka(a, b) for a, b in zip(first, states(twin, old), strict=True))
    return before, RunRow(name, lr, result.report.trainable, score, rise(before, old_task.losses(twin)), epochs, drift(model, twin), alike)


def forgetting(model: Model, tok: Tokenizer, task: str | Task = "sequence", *, train: Any, validation: Any, general: Any,
               runs: Sequence[str] | Ways = ("full", "lora", "l2sp", "ewc", "replay"), rates: Sequence[float] = (), rehearsal: Any = None, length: int = 64, rows: int = 8,
               batch_size: int = 32, text: str | None = None, pair: str | None = None, label: str | None = None, **settings: Any) -> Forgetting:
    """Tune copies of a model in several ways, and measure what each learned of the task and what it forgot of general text.

        found = forgetting(model, tok, train=rows, validation=held_out, general="general.txt", rates=(1e-5, 5e-5, 2e-4))
        print(found); found.draw()

    Args:   model: with the vocabulary head it was pretrained with. train, validation, text, pair, label: as in `finetune`.
            general: text, as for `pretrain`, that is not learned from; rehearsal: the text that EWC and replay use; None: the first half of the general text, and
            the second is measured. runs: of "full", "lora", "l2sp", "mixout", "ewc", "replay"; or name -> settings of `finetune` (or a function of the model that
            gives them). rates: full tuning at each of these, the rate-versus-forgetting curve.
            length, rows: tokens of a row and rows of a batch of general text, which is what the bootstrap redraws. settings: of `finetune`, for all runs.
    Returns: the table of runs. A soft prompt cannot be asked about packed rows.
    Raises: ValueError for a model without a vocabulary head, too little general text, no runs, and what `finetune` raises; KeyError for an unknown run.
    """
    need_vocabulary(model, "forgetting")
    objective = make_objective(own_objective(model, tok), tok, model, 0)
    measured, rehearsed = halves(tok, general, rehearsal, length, rows, objective)
    ways = chosen(runs, rates, usual_ways(rehearsed, objective))
    task = task_of(task, {"text": text, "pair": pair, "label": label})
    arguments = {"train": read_rows(train), "validation": read_rows(validation), **settings}
    found = [tuned(name, model, tok, task, way, measured, objective, batch_size, arguments) for name, way in ways.items()]
    return Forgetting(task.best.split()[0], mean_loss(found[0][0]), tuple(run for _, run in found))
