"""Raw text in, a trained body out: pretraining from scratch, and going on from a pretrained body on the text of a domain."""
from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..nn.model import Model
from ..objectives import Causal, Denoising, Masked, Objective, Replaced, Span
from ..objectives.replaced import smaller
from ..objectives.span import SENTINEL
from ..text import PackedBatches, TokenCache, Tokenizer, tokenize_corpus
from ..transfer.base import Strategy, nothing_else
from ..transfer.forgetting import Keep, check_keep
from ..transfer.groups import trainable_report
from ..transfer.strategies import strategy as strategy_of
from ..weights.files import read_json, write_json
from ..weights.save import config_json
from . import ranks
from .batches import Batches, Mixture, Rows
from .diagnose import check_weights
from .evaluate import Evaluation, held_out_loss, held_out_replaced, measure, refuse_test_split
from .loop import train
from .page import looks, rates, write_report
from .precision import Precision
from .run import TrainResult, check_place
from .settings import TrainSettings, epochs_or
from .tune import as_it_is, tune

HEADS = {"masked": "masked", "causal": "causal", "replaced": "replaced", "span": "seq2seq", "denoise": "seq2seq"}      # objective -> the head it trains
HELD_OUT_SHARE, HELD_OUT_MOST = 0.01, 2000   # of the rows, when no validation text is given
HELD_OUT_SEED = 20                           # the same rows are held out whatever the seed of the run, so that runs can be compared


def check_pairing(model: Model, tok: Tokenizer, objective: Objective, length: int, ahead: int = 0) -> None:
    """Raises: ValueError if the tokenizer, the head, the direction of the body or its length does not suit, before anything is computed."""
    rows = model.config.vocab_size
    if tok.vocab_size > rows:
        raise ValueError(f"a tokenizer of {tok.vocab_size} tokens and a model with {rows} rows in its token table; every token needs a row: "
                         f"use the tokenizer the model was made with, or model.resize_vocabulary({tok.vocab_size})")
    if length > (most := model.longest - ahead):
        raise ValueError(f"length={length}; this model reads at most {most} tokens: choose a length up to that")
    head = HEADS.get(getattr(objective, "name", ""), "masked")
    if not model.head_name.startswith(head):
        raise ValueError(f'a model with head="{model.head_name}"; this objective trains a {head} head: model.set_head("{head}"), '
                         f'or load the checkpoint with head="{head}"')
    if head != "causal" and model.config.causal:
        raise ValueError(f"the {head} objective for a body with causal=True; hidden tokens are to be guessed from both sides: "
                         "use a bidirectional body, or the causal objective")


def own_objective(model: Model, tok: Tokenizer) -> str:
    """The name of the objective that a body like this is pretrained with; of an encoder-decoder its tokenizer tells."""
    if model.config.n_decoder_layers:
        return "span" if SENTINEL.format(0) in tok.vocab else "denoise"
    return "causal" if model.config.causal else "masked"


def make_objective(objective: str | Objective, tok: Tokenizer, model: Model, seed: int) -> Objective:
    """An objective by its name, or as it is."""
    if not isinstance(objective, str):
        return objective
    makers: dict[str, Callable[[], Objective]] = {
        "masked": lambda: Masked(tok), "causal": Causal, "span": lambda: Span(tok), "denoise": lambda: Denoising(tok),
        "replaced": lambda: Replaced(tok, Model(smaller(model.config), "masked", seed=seed))}
    if objective not in makers:
        raise ValueError(f'objective={objective!r}; it is one of {", ".join(makers)}, or an object such as Masked(tok, whole_word=True): choose one')
    return makers[objective]()


def hold_out(packed: PackedBatches) -> tuple[Rows, Rows]:
    """The rows to train on and the rows to measure on: one in a hundred, at most 2,000, chosen by a fixed seed.

    Raises: ValueError if there are not two rows.
    """
    n = packed.n_rows
    if n < 2:
        raise ValueError(f"a corpus that fills {n} row of {packed.length} tokens; two are needed, one to train on and one to measure on: "
                         "give more text, or a smaller length")
    order = np.random.default_rng(HELD_OUT_SEED).permutation(n)
    held = max(1, min(HELD_OUT_MOST, math.floor(HELD_OUT_SHARE * n)))
    return Rows(packed, np.sort(order[held:])), Rows(packed, np.sort(order[:held]))


def unigram_entropy(cache: TokenCache, vocab_size: int, chunk: int = 1 << 22) -> float:
    """-sum p log p over the frequencies of tokens, in nats: the loss of a model that knows how common each token is and nothing else.

    A masked model started from scratch often stays near this line for a while; one that never falls below it has learned nothing from context.
    """
    counts = np.zeros(vocab_size, np.int64)
    for start in range(0, cache.n_tokens, chunk):
        counts += np.bincount(cache.ids[start:start + chunk], minlength=vocab_size)
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


class Corpus:
    """A corpus as a run needs it: batches to train on, an evaluation, and what identifies the data."""

    def __init__(self, model: Model, tok: Tokenizer, corpus: Any, objective: str | Objective, validation: Any, length: int, batch_size: int,
                 seed: int, general: Any = None, mix: int | float = 0.0, ahead: int = 0):
        self.tok, self.objective = tok, make_objective(objective, tok, model, seed)
        self.name = getattr(self.objective, "name", "an objective of its own")
        check_pairing(model, tok, self.objective, length, ahead)
        causal = isinstance(self.objective, Causal | Span)                       # documents of these rows end with eos

        def pack(source: Any) -> PackedBatches:
            with ranks.first_alone():
                cache = source if isinstance(source, TokenCache) else tokenize_corpus(tok, source)
            return PackedBatches(cache, tok, length, batch_size, seed=seed, causal=causal)

        packed = pack(corpus)
        self.held_out: Batches
        self.general: Batches | None = None
        if validation is None:
            text, self.held_out = hold_out(packed)
            held = f"{len(self.held_out.numbers)} rows of the corpus"
        else:
            text, self.held_out = Rows(packed, np.arange(packed.n_rows)), (other := pack(validation))
            held = other.cache.content[:16]
        self.train: Batches = text if validation is None else packed
        self.unigram = unigram_entropy(packed.cache, tok.vocab_size)
        self.data = {"corpus": packed.cache.content[:16], "tokens": str(packed.cache.n_tokens), "tokenizer": tok.fingerprint[:16],
                     "held out": held}
        if general is not None:
            self.general = around = pack(general)
            if mix:
                trained, self.general = hold_out(around)
                self.train = Mixture(text, trained, mix)
                self.data |= {"general": around.cache.content[:16], "mix": str(mix)}

    def example(self) -> str:
        """The first text that was held out."""
        batch = self.held_out[0]
        return self.tok.decode(batch["input_ids"][0][batch["document_ids"][0] == 0])

    def evaluation(self) -> Evaluation:
        """Held-out loss and perplexity beside the loss of token frequencies alone; `general_loss` on the general text, if there is some."""
        def held_out(batches: Batches) -> Evaluation:
            return held_out_replaced(batches, self.objective) if isinstance(self.objective, Replaced) else held_out_loss(batches, self.objective)
        domain, general = held_out(self.held_out), None if self.general is None else held_out(self.general)

        def evaluate(model: Model) -> dict[str, float]:
            return domain(model) | {"unigram_loss": self.unigram} | ({} if general is None else {"general_loss": general(model)["loss"]})
        return evaluate


def defaults(settings: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The settings of a call over those of pretraining."""
    return {"eval_every": 500, "best": "loss lower", **epochs_or(settings, 1), **more, **settings}


def pretrain(model: Model, tok: Tokenizer, corpus: Any, objective: str | Objective = "masked", validation: Any = None, out: str | Path | None = None,
             resume: bool = False, length: int = 128, batch_size: int = 32, general: Any = None, **settings: Any) -> TrainResult:
    """Train `model` on raw text; it is changed in place.

    Args:    corpus, validation: anything `read_texts` reads, or a TokenCache. Without validation a fixed 1 % of the rows, at most 2,000, is held out:
             never trained on, and the same whatever the seed.
             objective: "masked", "causal", "span", "denoise", "replaced", or an objective object. "replaced" trains a generator beside the model, a
             quarter as wide unless it is given, as in Replaced(tok, generator); it is saved in `generator`, a folder inside the model's.
             out: the run's folder; `out/model` is then the result in the standard layout, with its tokenizer,
             and `out/report.html` shows the run. resume: go on from its last save.
             length: tokens per row; batch_size: rows per batch, of which an optimizer step takes `micro_batches`.
             general: other text whose loss is reported beside, as general_loss.
             settings: of TrainSettings. Defaults here: one epoch if no limit is given, an evaluation every 500 steps, best="loss lower".
    Returns: the TrainResult; metrics are loss (nats per target), perplexity, and unigram_loss, what token frequencies alone would give.
    Raises:  ValueError for a vocabulary, head, length or corpus that does not fit, before training starts; and what `train` raises.
    """
    ranks.join(model)
    ranks.from_first(lambda: check_place(out))
    chosen = TrainSettings.from_dict(defaults(settings))
    ranks.check_shares(chosen)
    refuse_test_split(validation, chosen.best)
    texts = Corpus(model, tok, corpus, objective, validation, length, batch_size, chosen.seed, general)
    pair = texts.objective if isinstance(texts.objective, Replaced) else None

    def save(trained: Model, folder: Path) -> None:
        with nullcontext() if pair is None else pair.apart(trained):
            trained.save_pretrained(folder)
        tok.save_pretrained(folder)
        if pair is not None:
            pair.generator.save_pretrained(folder / "generator")
            tok.save_pretrained(folder / "generator")
    if out is not None:
        for one in (model,) if pair is None else (model, pair.generator):
            config_json(one, None)                                               # what no file can describe is refused now and not at the first save
    with nullcontext() if pair is None else pair.inside(model):
        result = train(model, texts.train, texts.objective, chosen, out=out, evaluate=texts.evaluation(), resume=resume, save=save,
                       data=texts.data | ({} if pair is None else {"replaced": str(pair)}))
    write_report(f"Pretraining: {texts.name}", result, trainable_report(model), lambda: looks(model, tok, texts.example()))
    return result


def put_vocabulary_head(model: Model, tok: Tokenizer, seed: int) -> None:
    """On a model without a head, or with one that has no weights to lose, a fresh one that predicts tokens, tied to the token table.

    Warns: that it was put on.
    """
    if (was := model.head_name) not in ("none", "embedding"):
        return
    head = HEADS[own_objective(model, tok)]
    model.set_head(head, seed=seed)
    dropped = model.load_report.dropped if model.load_report is not None else []
    own = f" (the checkpoint has a head of its own, {', '.join(dropped[:2])}: if that is one, load it with head=\"{head}\")" if dropped else ""
    warnings.warn(f'adapt put a fresh {head} head, tied to the token table, in the place of head="{was}"; it is trained with the body{own}; '
                  f'afterwards model.set_head("{was}") takes it off', UserWarning, stacklevel=3)


def adapt(model: Model, tok: Tokenizer, corpus: Any, objective: str | Objective | None = None, validation: Any = None, out: str | Path | None = None,
          resume: bool = False, length: int = 128, batch_size: int = 32, general: Any = None, mix: int | float = 0.0, strategy: str | Strategy | None = None,
          keep: Keep | None = None, **settings: Any) -> TrainResult:
    """Go on pretraining a pretrained model on the text of a domain or task; it is changed in place.

    A model with head="none" or "embedding" gets a fresh vocabulary head first, and a warning says so.

    Args:    as for `pretrain`, with lr=1e-4 by default, or the strategy's own; objective: None: that of the body.
             general: other text whose loss is reported beside, as general_loss. mix: the share of the rows that come from it, in [0, 1); above 0 its
             loss is that of 1 % of its rows, which are held out as those of the corpus are.
             strategy: as for `finetune`; out/model is then the adapter, which `load_adapter` reads. None: what trains in the model now, which is all of one
             that was just loaded, or the adapter it carries. keep: as for `finetune`.
    Returns: the TrainResult with `before` and `after`: the metrics, on the domain and on the `general` text, of the model as it came and as it left.
    Raises:  what `pretrain` raises, and ValueError for a mix out of range or without general text, or a strategy that does not fit.
    Source:  Gururangan et al. 2020, "Don't Stop Pretraining".
    """
    ranks.join(model)
    ranks.from_first(lambda: check_place(out))
    plan = as_it_is(model) if strategy is None else strategy_of(strategy)
    check_keep(keep)
    check_mix(mix, general)
    check_reading(plan)
    chosen = TrainSettings.from_dict(defaults({"lr": 1e-4, **plan.settings, **settings}))
    ranks.check_shares(chosen)
    refuse_test_split(validation, chosen.best)
    check_weights(model)
    put_vocabulary_head(model, tok, chosen.seed)
    if objective is None:
        objective = own_objective(model, tok)
    if objective == "replaced" or isinstance(objective, Replaced):
        raise ValueError('objective="replaced" in adapt; it trains a generator beside the model, and adapt trains the model alone: '
                         'use pretrain(model, ..., objective="replaced"), which goes on from the weights the model has')
    texts = Corpus(model, tok, corpus, objective, validation, length, batch_size, chosen.seed, general, mix, plan.ahead)
    evaluate, precision = texts.evaluation(), Precision(chosen.precision, model)
    before = measure(model, evaluate, precision)
    trained, followed, result = tune(model, texts.train, texts.objective, chosen, plan, beside=lambda _, folder: tok.save_pretrained(folder), data=texts.data, keep=keep,
                                     out=out, evaluate=evaluate, resume=resume)
    result = replace(result, before=before, after=measure(model, evaluate, precision))
    if result.out is not None and ranks.first():
        write_json(result.out / "manifest.json", {**read_json(result.out / "manifest.json"), "before": result.before, "after": result.after})
    write_report(f"Adapting: {texts.name}, strategy {plan.name}", result, trained, lambda: [rates(followed), *looks(model, tok, texts.example())])
    return result


def check_mix(mix: int | float, general: Any) -> None:
    """Raises: ValueError for a share that is none, or for one of a text that is not there."""
    if not 0 <= mix < 1:
        raise ValueError(f"mix={mix}; it is the share of the rows that come from the general text, at least 0 and below 1: 0.1 to 0.5 are usual")
    if mix and general is None:
        raise ValueError(f"mix={mix} without general text; that share of the rows is to come from it: give general=, or leave mix out")


def check_reading(plan: Strategy) -> None:
    """Raises: ValueError for a strategy that computes something from every batch beforehand."""
    if plan.during is not nothing_else:
        raise ValueError(f"strategy {plan.name!r} for raw text; it lets the body read every row once, and here other tokens are hidden each time: "
                         "choose full, lora or another one that trains the body")
