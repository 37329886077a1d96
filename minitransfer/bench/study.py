"""What the layers of two encoders say of parts of speech, and what the bundled models prefer on BLiMP; each beside the same computation on transformers."""
from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from ..nn.model import Model
from ..study import Probe, log_likelihoods, minimal_pairs, probe, read_treebank
from ..study.probe import default_classifier, fitted
from ..text import Tokenizer, read_rows
from ..training.throughput import cpu_name
from ..weights.sources import resolve
from .compare import RESULTS, chosen, kept
from .transfer.sets import body, data_folder

TABLE = RESULTS / "study.json"
TREEBANK, PAIRS = "ud/en_ewt/train.conllu.gz", "blimp_10"
SENTENCES, COMPARED, SEED = 1000, 60, 0
EXACT = {"logisticregression__tol": 1e-8, "logisticregression__max_iter": 20_000}      # a looser end leaves words near a border to the last digit of a state


def load(source: Path) -> tuple[Model, Tokenizer]:
    return Model.from_pretrained(source), Tokenizer.from_pretrained(source)


@contextmanager
def reference(model: Model, tok: Tokenizer, kind: str) -> Iterator[tuple[Any, Any]]:
    """The same weights and tokenizer in transformers."""
    import transformers
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tok.save_pretrained(folder)
        yield getattr(transformers, kind).from_pretrained(folder).eval(), transformers.AutoTokenizer.from_pretrained(folder)


def plain_accuracy(found: Probe, sentences: Sequence[Any], theirs: Any, tokenizer: Any) -> np.ndarray:
    """(L + 1,): scikit-learn on the hidden states of transformers, sentence by sentence, on the same folds."""
    states = []
    for one in sentences:
        batch = tokenizer(" ".join(one.words), return_offsets_mapping=True, return_tensors="pt", truncation=True, max_length=theirs.config.max_position_embeddings)
        offsets = batch.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            hidden = torch.stack(theirs(**batch, output_hidden_states=True).hidden_states)[:, 0]       # (L + 1, T, D)
        start = 0
        for word in one.words:
            inside = [i for i, (a, b) in enumerate(offsets) if b > a and start <= b - 1 < start + len(word)]
            if inside:
                states.append(hidden[:, inside].mean(1).numpy())
            start += len(word) + 1
    x, right = np.stack(states, 1).astype(float), np.zeros((len(states[0]), len(states)))
    for fold in np.unique(found.fold):
        test = found.fold == fold
        for layer in range(len(x)):
            right[layer, test] = fitted(default_classifier().set_params(**EXACT), x[layer, ~test], found.y[~test]).predict(x[layer, test]) == found.y[test]
    return right.mean(1)


def parts_of_speech(source: Path, quick: bool) -> dict[str, Any]:
    """A linear probe on every layer."""
    with TemporaryDirectory() as cache:
        found = probe(*load(source), data_folder() / TREEBANK, "pos", sentences=20 if quick else SENTENCES, seed=SEED, cache=cache)
    print(found, file=sys.stderr)
    return found.to_dict() | {"treebank": TREEBANK, "seed": SEED, "folds": 3}


def same(source: Path, quick: bool) -> dict[str, Any]:
    """The accuracies of a linear probe on fewer sentences, and those of plain scikit-learn on the hidden states of transformers, both learned to the end."""
    model, tok = load(source)
    sentences = read_treebank(data_folder() / TREEBANK, 12 if quick else COMPARED, SEED)
    with TemporaryDirectory() as cache:
        found = probe(model, tok, sentences, "pos", sentences=None, classifier=default_classifier().set_params(**EXACT), seed=SEED, cache=cache)
    with reference(model.set_head("none"), tok, "AutoModel") as (theirs, tokenizer):
        plain = plain_accuracy(found, sentences, theirs, tokenizer)
    ours = found.scores["task"].mean(1)
    return {"words": len(found.words), "ours": ours.round(6).tolist(), "plain": plain.round(6).tolist(), "difference": float(np.abs(ours - plain).max())}


def blimp(source: Path, quick: bool) -> dict[str, Any]:
    """Accuracy on ten paradigms, and the largest difference of scores from transformers on the first 20 pairs of each."""
    model, tok = load(source)
    found = minimal_pairs(model, tok, data_folder() / PAIRS, n=3 if quick else None)
    texts = [row["sentence_good"] for path in sorted((data_folder() / PAIRS).glob("*.jsonl.gz")) for row in read_rows(path)[: 2 if quick else 20]]
    causal = bool(model.config.causal)
    with reference(model, tok, "AutoModelForCausalLM" if causal else "AutoModelForMaskedLM") as (theirs, tokenizer):
        plain = np.array([(plain_causal if causal else plain_masked)(theirs, tokenizer, text) for text in texts])
    print(found, file=sys.stderr)
    return {"pairs": found.to_dict(), "difference": float(np.abs(log_likelihoods(model, tok, texts) - plain).max()), "compared": len(texts)}


@torch.no_grad()
def plain_causal(model: Any, tokenizer: Any, text: str) -> float:
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]])
    return float(model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).sum())


@torch.no_grad()
def plain_masked(model: Any, tokenizer: Any, text: str) -> float:
    batch = tokenizer(text, return_tensors="pt")
    ids, total = batch["input_ids"][0], 0.0
    for i in range(1, len(ids) - 1):
        masked = ids.clone()
        masked[i] = tokenizer.mask_token_id
        total += float(model(masked[None], attention_mask=batch["attention_mask"]).logits[0, i].log_softmax(-1)[ids[i]])
    return total


ROWS: dict[str, tuple[Callable[[Path, bool], dict[str, Any]], Callable[[], Path]]] = {
    "pos-minilm": (parts_of_speech, body), "pos-mini-bert": (parts_of_speech, lambda: resolve("mini-bert")),
    "same-minilm": (same, body), "same-mini-bert": (same, lambda: resolve("mini-bert")),
    "blimp-mini-bert": (blimp, lambda: resolve("mini-bert")), "blimp-mini-gpt": (blimp, lambda: resolve("mini-gpt"))}


def run(names: Sequence[str] | None = None, quick: bool = False, save: bool = False) -> dict[str, Any]:
    """Measure, and print a JSON line for each row.

    Args:    names: of ROWS, default all; quick: a few sentences; save: also write bench/results/study.json (rows not measured now stay).
    Raises:  KeyError for a row that does not exist; ValueError without the data, and for saving a quick run.
    """
    if quick and save:
        raise ValueError("a quick run, to be saved; a few sentences are no measurement: run without quick, or do not save")
    found: dict[str, Any] = {}
    for name in chosen(names, ROWS):
        measure, source = ROWS[name]
        found[name] = measure(source(), quick) | {"cpu": cpu_name(), "date": datetime.date.today().isoformat()}
        print(json.dumps({"name": name} | found[name]), flush=True)
        if save:
            kept(TABLE, {name: found[name]})
    return found
