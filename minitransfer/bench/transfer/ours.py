"""Our side: every way to adapt, on any of the sets."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...nn.model import Model
from ...study.ways import Ground
from ...tasks import FinetuneResult, baseline, finetune
from ...tasks.metrics import Confusion
from ...text import Tokenizer
from ...training.evaluate import measure
from ...training.precision import Precision
from ...transfer import l2sp, mixout
from .sets import Set, body

STRATEGIES = ("head", "features", "last:2", "full", "discriminative", "ulmfit", "lora", "bitfit", "ia3", "prefix", "soft_prompt", "adapter", "compacter")
KEEPS = {"l2sp": l2sp, "mixout": lambda: mixout(0.7)}
BASELINES = ("logistic",)
ESTIMATED = "features, mean, logistic"
NEVER = 10**9               # steps between two evaluations: only the end is measured, the weights are the last ones


def start(one: Set, labels: Sequence[str], seed: int, random: bool = False, source: Any = None) -> Model:
    """The pretrained body with a new head; or, `random`, the same architecture without any pretraining."""
    model = Model.from_pretrained(source or body(), head=one.task.head, labels=list(labels) or None, seed=seed)
    return Model(model.config, head=one.task.head, labels=list(labels) or None, seed=seed) if random else model


def tune(one: Set, model: Model, rows: Sequence[dict], held_out: Sequence[dict] | None, seed: int, strategy: Any = "full", **settings: Any) -> FinetuneResult:
    """`finetune` with the settings of the set; a strategy other than full brings its own learning rate, and ulmfit its own climb."""
    own = {"full": {"lr": one.lr, "warmup": one.warmup(len(rows))}, "ulmfit": {}}.get(strategy, {"warmup": one.warmup(len(rows))})
    return finetune(model, Tokenizer.from_pretrained(body()), one.task, train=rows, validation=held_out, strategy=strategy, batch_size=one.batch_size, max_length=one.max_length,
                    **{"epochs": one.epochs, "best": None, "eval_every": NEVER, "weight_decay": 0.0, "seed": seed, "progress": False, **own, **settings})


def read(one: Set, result: FinetuneResult) -> dict[str, Any]:
    """What a run leaves: the set's metric in percent with its interval, and what it cost."""
    return of_metrics(one, result.metrics) | {"seconds": result.seconds, "trainable": result.report.trainable, "precision": result.training.precision,
                                              "epochs": one.epochs}


def of_metrics(one: Set, metrics: dict[str, float]) -> dict[str, Any]:
    found: dict[str, Any] = {"value": 100 * metrics[one.metric]}
    if f"{one.metric}_low" in metrics:
        found["interval"] = [100 * metrics[f"{one.metric}_low"], 100 * metrics[f"{one.metric}_high"]]
    return found | {"also": {name: value for name, value in metrics.items() if name in ("accuracy", "f1", "exact", "entity_f1_lenient", "pearson", "loss")}}


def estimated(one: Set, rows: Sequence[dict], held_out: Sequence[dict]) -> dict[str, Any]:
    """The mean of the last states, once for each text, and scikit-learn's logistic regression on them."""
    ground = Ground(Model.from_pretrained(body(), head="none"), Tokenizer.from_pretrained(body()), one.task, list(rows), list(held_out))
    learned, names, confusion = ground.estimate(rows, one.max_length), ground.names, Confusion(len(ground.names))
    confusion.add(*(torch.tensor([names.index(name) for name in many]) for many in (ground.truth, learned.answers)))
    return of_metrics(one, confusion.metrics()) | {"seconds": learned.seconds + learned.answering, "trainable": learned.trained}


def run(one: Set, method: str, seed: int, quick: bool) -> dict[str, Any]:
    """One run by the name of its method: a strategy, with +l2sp or another pull behind it, "random" (full, without pretraining), "zero-shot" or a baseline."""
    if method == "zero-shot":
        return zero_shot(one, quick)
    rows, held_out = one.read(quick)
    if method in BASELINES:
        found = baseline(method, rows, held_out, text=one.task.text, label=one.task.label)
        return of_metrics(one, found.metrics) | {"seconds": found.seconds, "trainable": found.parameters}
    if method == ESTIMATED:
        return estimated(one, rows, held_out)
    strategy, _, keep = method.partition("+")
    random = strategy == "random"
    more: dict[str, Any] = {"epochs": 1} if quick else {}
    model = start(one, one.task.labels(rows, held_out), seed, random)
    return read(one, tune(one, model, rows, held_out, seed, "full" if random else strategy, keep=KEEPS[keep]() if keep else None, **more))


def zero_shot(one: Set, quick: bool) -> dict[str, Any]:
    """A similarity without any training."""
    tok, (_, held_out) = Tokenizer.from_pretrained(body()), one.read(quick)
    model = Model.from_pretrained(body())
    batches = one.task.batches(held_out, tok, [], one.batch_size, None, one.max_length, 0)
    return of_metrics(one, measure(model, one.task.evaluation(batches), Precision("auto", model))) | {"trainable": 0}
