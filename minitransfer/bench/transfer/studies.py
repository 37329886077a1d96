"""Three questions that are more than one call of finetune: few labels, going on pretraining first, and what a long run forgets.

The body has no vocabulary head of its own. One is trained on encyclopaedia text with the body frozen, so that the body stays what it was, bit for bit.
"""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...nn.model import Model
from ...objectives import Masked
from ...study.forgetting import Losses, OldTask, mean_loss
from ...tasks import baseline
from ...text import PackedBatches, Tokenizer, read_rows, tokenize_corpus
from ...training import adapt, pretrain
from ...transfer import freeze
from ...weights.files import read_json
from .ours import NEVER, of_metrics, read, start, tune
from .sets import Set, body, data_folder

Done = set[tuple[str, int]]                         # method and seed of what was measured before
GENERAL, GENERAL_HELD_OUT = "wikipedia_en/train.jsonl.gz", "wikipedia_en/validation.jsonl.gz"
LENGTH, HEAD_ROWS, GENERAL_TEXTS = 64, 32, 40      # tokens a row; rows a step; articles of general text whose loss is measured


def texts(file: str, column: str = "text", most: int | None = None) -> list[str]:
    return [row[column] for row in read_rows(data_folder() / file)[:most]]


def with_vocabulary_head(folder: Path, quick: bool) -> Path:
    """The body with a masked head trained on it while frozen; made once, in `folder`."""
    out = folder / "general"
    if not (out / "model").is_dir():
        tok, model = Tokenizer.from_pretrained(body()), Model.from_pretrained(body(), head="masked+next")      # the head that keeps the pooler
        freeze(model, f"embed, blocks.0-{len(model.blocks) - 1}, pooler")
        pretrain(model, tok, texts(GENERAL, most=100 if quick else 3000), "masked", validation=texts(GENERAL_HELD_OUT, most=5 if quick else GENERAL_TEXTS), out=out, resume=True,
                 length=LENGTH, batch_size=HEAD_ROWS, steps=3 if quick else 200, lr=1e-3, best=None, eval_every=NEVER, progress=False)
    return out / "model"


def adapted(folder: Path, name: str, domain: list[str], quick: bool) -> tuple[Path, dict[str, Any]]:
    """The body after masked pretraining on a domain's text, and its losses before and after; made once."""
    out, start = folder / name, with_vocabulary_head(folder, quick)
    if not (out / "model").is_dir():
        tok, model = Tokenizer.from_pretrained(body()), Model.from_pretrained(start)
        adapt(model, tok, domain, out=out, resume=True, general=texts(GENERAL_HELD_OUT, most=5 if quick else GENERAL_TEXTS), length=LENGTH, batch_size=16,
              steps=3 if quick else 150, best=None, eval_every=NEVER, progress=False)
    kept = read_json(out / "manifest.json")
    return out / "model", {when: {loss: kept[when][loss] for loss in ("loss", "general_loss")} for when in ("before", "after")}


def few_labels(one: Set, folder: Path, quick: bool, done: Done) -> Iterator[dict[str, Any]]:
    """100 labels and 3,000 reviews without: everything at once, ULMFiT, going on pretraining and then LoRA, a bag of words."""
    domain = texts("imdb/unlabelled.jsonl.gz", most=60 if quick else None)
    source, losses = adapted(folder, "imdb", domain, quick)
    yield {"method": "adapt", "seed": 0, **losses}
    for seed in range(1 if quick else one.seeds):
        rows, held_out = one.read(quick, drawn=seed)                             # which rows are labelled is part of the luck
        labels = one.task.labels(rows, held_out)
        found = baseline("logistic", rows, held_out)
        yield {"method": "logistic", "seed": seed, **of_metrics(one, found.metrics)}
        for method, strategy, of in (("full", "full", None), ("lora", "lora", None), ("ulmfit", "ulmfit", source), ("adapt + lora", "lora", source)):
            if (method, seed) not in done:
                yield {"method": method, "seed": seed, **read(one, tune(one, start(one, labels, seed, source=of), rows, held_out, seed, strategy, **few(quick)))}


def domain_first(one: Set, folder: Path, quick: bool, done: Done) -> Iterator[dict[str, Any]]:
    """Directly, or after masked pretraining on the answers of the whole set."""
    rows, held_out = one.read(quick)
    source, losses = adapted(folder, "medquad", texts(one.train, one.task.text, 60 if quick else None), quick)
    yield {"method": "adapt", "seed": 0, **losses}
    found = baseline("logistic", rows, held_out, text=one.task.text, label=one.task.label)
    yield {"method": "logistic", "seed": 0, **of_metrics(one, found.metrics)}
    for seed in range(1 if quick else one.seeds):
        for method, of in (("direct", None), ("adapt first", source)):
            if (method, seed) not in done:
                yield {"method": method, "seed": seed, **read(one, tune(one, start(one, one.task.labels(rows, held_out), seed, source=of), rows, held_out, seed, **few(quick)))}


def long_run(one: Set, folder: Path, quick: bool, done: Done) -> Iterator[dict[str, Any]]:
    """Many epochs at a high rate against a few at a low one: after each, training loss, validation accuracy, and the masked loss on general text.

    The head that is asked for the masked loss is the one trained on the frozen body; only the body moves.
    """
    rows, held_out = one.read(quick)
    source, tok = with_vocabulary_head(folder, quick), Tokenizer.from_pretrained(body())
    general = PackedBatches(tokenize_corpus(tok, texts(GENERAL_HELD_OUT, most=5 if quick else GENERAL_TEXTS)), tok, LENGTH, HEAD_ROWS, causal=False)
    for method, epochs, lr in (("20 epochs", one.epochs, one.lr), ("3 epochs", 3, one.lr / 10)):
        if (method, 0) in done:
            continue
        model, steps = Model.from_pretrained(source), -(-len(rows) // one.batch_size)
        old, at_end = OldTask(model, general, Masked(tok)), dict[int, Losses]()
        before = mean_loss(old.losses(model))
        result = tune(one, model, rows, held_out, 0, lr=lr, log_every=steps, on_step=old.watch(model, steps, at_end), **{"eval_every": None, "epochs": epochs, **few(quick)})
        losses, accuracies = ([one for one in result.history if name in one] for name in ("lr", "evaluation"))
        table = [{"epoch": i + 1, "train_loss": a["loss"], "accuracy": 100 * b["evaluation"]["accuracy"], "masked_loss": mean_loss(m)}
                 for i, (a, b, m) in enumerate(zip(losses, accuracies, at_end.values(), strict=True))]
        yield {"method": method, "seed": 0, "lr": lr, "masked_loss_before": before, "table": table, **read(one, result)}


def few(quick: bool) -> dict[str, int]:
    return {"epochs": 1} if quick else {}


STUDIES = {"imdb_100": few_labels, "imdb_long": long_run, "medquad": domain_first}
