"""The verbs that train: pretrain, adapt, finetune. All their settings may stand in a file, as key=value words, or both."""
from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from ..config import ModelConfig, choose
from ..nn.model import Model
from ..tasks import finetune as tune
from ..tasks import load_tuned, predict
from ..text import TokenCache, Tokenizer, read_rows, read_texts, sample_rows, tokenize_corpus
from ..training import TrainResult, TrainSettings
from ..training import adapt as go_on
from ..training import pretrain as start
from .keys import Key, gather, keys_of
from .texts import bundled_sample, device_of, model_source, print_json
from .verb import UsageError, Verb

KINDS = ("wordpiece", "byte_bpe", "bpe", "unigram", "character")
# what a causal model chooses; the defaults of ModelConfig are those of a bidirectional one
CAUSAL = {"norm_position": "pre", "norm_eps": 1e-5, "activation": "gelu_tanh", "causal": True, "n_token_types": 0, "embed_norm": False, "final_norm": True, "pooler": False}
DRY = {"steps": 2, "epochs": None, "tokens": None, "minutes": None, "eval_every": 1, "save_every": 1, "log_every": 1, "tensorboard": False}
DRY_DOCUMENTS, DRY_CHARACTERS, DRY_ROWS = 500, 200_000, 64

RUN_KEYS = {
    "out": Key("str | None", None, "the folder of the run; out/model is then the result"),
    "resume": Key("bool", False, "go on from the last save in `out`"),
    "device": Key("str", "auto", "cpu, cuda, or auto: a GPU if there is one"),
}
CORPUS_KEYS = {
    "validation": Key("str | None", None, "a corpus to measure on; none: 1 % of the rows is held out"),
    "general": Key("str | None", None, "other text whose loss is reported beside"),
    "field": Key("str", "text", "of JSON lines and data sets: where the text is"),
    "documents": Key("str", "blank_line", "what one document of a .txt file is: blank_line, line or file"),
    "length": Key("int", 128, "tokens per row"),
    "batch_size": Key("int", 32, "rows per batch"),
}
PRETRAIN_KEYS = {
    "corpus": Key("str | None", None, "a .txt or .jsonl file (also .gz), a folder of them, pydoc, samples/general.txt, or a data set of the hub"),
    "objective": Key("str", "masked", "masked (a bidirectional model) or causal"),
    "tokenizer": Key("str | None", None, f"a folder, name or hub id; or a kind to train on the corpus: {', '.join(KINDS)}; none: wordpiece, or byte_bpe if causal"),
    **CORPUS_KEYS, **RUN_KEYS}
SHAPE_KEYS = {
    "vocab_size": Key("int", 8192, "tokens of a tokenizer that is trained"), "d_model": Key("int", 256, "width"), "n_layers": Key("int", 4, "blocks"),
    "n_heads": Key("int", 4, "attention heads"), "d_ff": Key("int | None", None, "width inside a block; none: 4 times d_model"),
    "max_len": Key("int | None", None, "tokens the model can read at most; none: as `length`"), "dropout": Key("float", 0.1, "on the output of every sub-layer")}
ADAPT_KEYS = {
    "model": Key("str | None", None, "the pretrained model: a folder, a bundled name or a hub id"), "corpus": PRETRAIN_KEYS["corpus"],
    "objective": Key("str | None", None, "masked or causal; none: that of the model's head"), **CORPUS_KEYS, **RUN_KEYS}
FINETUNE_KEYS = {
    "model": ADAPT_KEYS["model"],
    "train": Key("str | None", None, "rows with labels: .tsv, .csv, .jsonl or .conll (also .gz)"),
    "validation": Key("str | None", None, "rows to measure on during training"),
    "task": Key("str", "sequence", "sequence (one label a text) or token (one label a word)"),
    "strategy": Key("str", "full", "what trains: full, head, last:2 (the head and the top 2 blocks), lora, lora:16 (of rank 16)"),
    "text": Key("str", "text", "the column of the text"), "pair": Key("str | None", None, "the column of a second text"), "label": Key("str", "label", "the column of the label"),
    "batch_size": Key("int | None", None, "rows per batch; none: 32, or as `max_tokens` allows"),
    "max_tokens": Key("int | None", None, "tokens per batch, padding included, instead of batch_size"),
    "max_length": Key("int | None", None, "longer texts are cut after so many tokens; none: what the model can read"), **RUN_KEYS}
TRAIN_KEYS = keys_of(TrainSettings)


def add_words(*places: str) -> Callable[[argparse.ArgumentParser], None]:
    """The words of a verb that trains: `places` in order, then settings."""
    def add(parser: argparse.ArgumentParser) -> None:
        parser.usage = f"{parser.prog} {' '.join(map(str.upper, places))} [--out FOLDER] [--config FILE] [--resume] [--dry-run] [key=value ...]"
        parser.add_argument("words", nargs="*", metavar="word", help=f"{' and '.join(map(str.upper, places))}, and settings as key=value")
        parser.add_argument("--out", metavar="FOLDER", help=RUN_KEYS["out"].about)
        parser.add_argument("--resume", action="store_const", const="true", help=RUN_KEYS["resume"].about)
        parser.add_argument("--dry-run", action="store_true", help="everything once on a little of the data: two steps, evaluation, saving, loading; nothing is kept")
    return add


class Job:
    """The settings of one run as the user gave them, and what a dry run puts in their place."""

    def __init__(self, args: argparse.Namespace, places: tuple[str, ...], needed: tuple[str, ...], keys: dict[str, Key], stack: ExitStack):
        self.keys, self.dry = keys, bool(args.dry_run)
        self.given = gather(args.words, places, {"out": args.out, "resume": args.resume}, args.config, keys)
        if absent := [name for name in needed if self.given.get(name) is None]:
            raise UsageError(f"no {absent[0]} given; it is needed: add {absent[0]}=... (--help says what it is)")
        self.folder = None
        if self.dry:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="minitransfer-dry-")))
            self.given = {name: value for name, value in self.given.items() if name not in DRY} | {name: value for name, value in DRY.items() if value is not None}
            self.given |= {"out": str(self.folder / "run"), "resume": False}

    def __getitem__(self, name: str) -> Any:
        return self.given.get(name, self.keys[name].default)

    def only(self, *names: str) -> dict[str, Any]:
        """Those of the settings `names` that were given."""
        return {name: self.given[name] for name in names if name in self.given}

    @property
    def training(self) -> dict[str, Any]:
        return self.only(*TRAIN_KEYS)

    def corpus(self, tok: Tokenizer, name: str) -> TokenCache | None:
        """The corpus under a name, as ids; of a dry run its first documents."""
        if self[name] is None:
            return None
        if self.dry:
            return tokenize_corpus(tok, self.first_documents(name), cache=self.folder)
        return tokenize_corpus(tok, bundled_sample(self[name]), self["field"], documents=self["documents"])

    def documents(self, name: str) -> Iterator[str]:
        return read_texts(bundled_sample(self[name]), self["field"], self["documents"])

    def first_documents(self, name: str) -> list[str]:
        texts: list[str] = []
        characters = 0
        for text in islice(self.documents(name), DRY_DOCUMENTS):
            texts.append(text[:DRY_CHARACTERS])
            if (characters := characters + len(text)) >= DRY_CHARACTERS:
                break
        return texts

    def finished(self, result: TrainResult, more: dict[str, Any] | None = None) -> int:
        """Print what came out; of a dry run, that everything worked."""
        wanted = ("steps", "tokens", "seconds", "stopped", "metrics", "before", "after", "best", "precision", "tokens_per_second", "peak_memory")
        line = {name: value for name in wanted if (value := getattr(result, name)) not in (None, {})} | (more or {})
        if self.dry:
            print("minitransfer: dry run: training, evaluation, saving and loading work; nothing was kept", file=sys.stderr)
            print_json({"dry_run": True, **line})
            return 0
        print_json({"out": self["out"], "model": str(Path(self["out"]) / "model"), **line})
        if result.stopped == "interrupted":
            print(f"minitransfer: interrupted; saved in {self['out']}, the same command with --resume goes on", file=sys.stderr)
            return 130
        return 0

    def check_saved(self) -> None:
        """What a dry run saved can be loaded."""
        Model.from_pretrained(Path(self["out"]) / "model")
        Tokenizer.from_pretrained(Path(self["out"]) / "model")


def make_tokenizer(job: Job) -> Tokenizer:
    """The tokenizer of a pretraining run: that of the run it goes on with, a finished one, or a new one for the corpus."""
    if job["resume"] and job["out"] and (Path(job["out"]) / "last").is_dir():
        return Tokenizer.from_pretrained(Path(job["out"]) / "last")
    choose("objective", job["objective"], ("masked", "causal"))
    kind = job["tokenizer"] or ("wordpiece" if job["objective"] == "masked" else "byte_bpe")
    if kind not in KINDS:
        return Tokenizer.from_pretrained(kind)
    print(f"minitransfer: training a {kind} tokenizer of at most {job['vocab_size']:,} tokens", file=sys.stderr)
    texts = job.first_documents("corpus") if job.dry else job.documents("corpus")
    return Tokenizer.train(texts, kind, job["vocab_size"], max_len=job["max_len"] or job["length"])


def pretrain(args: argparse.Namespace) -> int:
    with ExitStack() as stack:
        job = Job(args, ("corpus",), ("corpus", "out"), PRETRAIN_KEYS | SHAPE_KEYS | TRAIN_KEYS, stack)
        tok = make_tokenizer(job)
        config = ModelConfig(vocab_size=tok.vocab_size, d_model=job["d_model"], n_layers=job["n_layers"], n_heads=job["n_heads"], d_ff=job["d_ff"] or 4 * job["d_model"],
                             max_len=job["max_len"] or job["length"], dropout=job["dropout"], **(CAUSAL if job["objective"] == "causal" else {}))
        model = Model(config, job["objective"], seed=job["seed"]).to(device_of(job["device"]))
        result = start(model, tok, job.corpus(tok, "corpus"), job["objective"], job.corpus(tok, "validation"), job["out"], job["resume"],
                       general=job.corpus(tok, "general"), **job.only("length", "batch_size"), **job.training)
        if job.dry:
            job.check_saved()
        return job.finished(result)


def adapt(args: argparse.Namespace) -> int:
    with ExitStack() as stack:
        job = Job(args, ("model", "corpus"), ("model", "corpus", "out"), ADAPT_KEYS | TRAIN_KEYS, stack)
        source = model_source(job["model"])
        model, tok = Model.from_pretrained(source).to(device_of(job["device"])), Tokenizer.from_pretrained(source)
        result = go_on(model, tok, job.corpus(tok, "corpus"), job["objective"], job.corpus(tok, "validation"), job["out"], job["resume"],
                       general=job.corpus(tok, "general"), **job.only("length", "batch_size"), **job.training)
        if job.dry:
            job.check_saved()
        return job.finished(result)


def finetune(args: argparse.Namespace) -> int:
    with ExitStack() as stack:
        job = Job(args, ("model", "train"), ("model", "train", "out"), FINETUNE_KEYS | TRAIN_KEYS, stack)
        source = model_source(job["model"])
        model, tok = Model.from_pretrained(source).to(device_of(job["device"])), Tokenizer.from_pretrained(source)
        train = read_rows(bundled_sample(job["train"]))
        validation = None if job["validation"] is None else read_rows(bundled_sample(job["validation"]))
        if job.dry and validation is not None:
            validation = sample_rows(validation, min(DRY_ROWS, len(validation)))
        chosen = job.only("task", "strategy", "text", "pair", "label", "out", "resume", "batch_size", "max_tokens", "max_length")
        result = tune(model, tok, train=train, validation=validation, **chosen, **job.training)
        print(result.report, file=sys.stderr)
        if job.dry:
            loaded, its_tok = load_tuned(job["out"])
            predict(loaded, its_tok, ["a text"], ["another"] if job["pair"] else None)
        return job.finished(result.training, {"metrics": result.metrics})


PRETRAIN = Verb("pretrain", "Train a model from scratch on raw text, with a tokenizer of its own unless one is given.",
                "minitransfer pretrain pydoc --out runs/pydoc steps=200 d_model=128 n_layers=2\n"
                "minitransfer pretrain samples/general.txt --out runs/general documents=line objective=causal length=64 d_model=64 epochs=3 lr=1e-3\n"
                "minitransfer pretrain pydoc --out runs/pydoc --dry-run", add_words("corpus"), pretrain,
                {"settings": PRETRAIN_KEYS, "the model": SHAPE_KEYS, "training (the first limit reached ends the run; here: epochs=1 unless one is given)": TRAIN_KEYS})
ADAPT = Verb("adapt", "Go on pretraining a pretrained model on the text of a domain, and report what that changed.",
             "minitransfer adapt mini-bert pydoc --out runs/adapted steps=100\nminitransfer adapt mini-bert pydoc --out runs/adapted general=samples/general.txt minutes=2 --dry-run",
             add_words("model", "corpus"), adapt,
             {"settings": ADAPT_KEYS, "training (here: lr=1e-4, and epochs=1 unless a limit is given)": TRAIN_KEYS})
FINETUNE = Verb("finetune", "Train a pretrained model to label texts.",
                "minitransfer finetune mini-bert samples/reviews.train.tsv --out runs/reviews validation=samples/reviews.validation.tsv strategy=lora epochs=4\n"
                "minitransfer finetune mini-bert samples/tagged.conll --out runs/names task=token lr=3e-4 epochs=8\n"
                "minitransfer finetune --config reviews.yaml lr=1e-4 seed=1\n"
                "minitransfer finetune mini-bert pairs.tsv --out runs/pairs text=premise pair=hypothesis label=relation --dry-run",
                add_words("model", "train"), finetune, {"settings": FINETUNE_KEYS, "training": TRAIN_KEYS})
