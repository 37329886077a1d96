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

import torch

from ..config import ModelConfig, choose
from ..nn.encoder_decoder import make_model
from ..nn.model import Model
from ..objectives import Replaced, with_sentinels
from ..objectives.replaced import smaller
from ..tasks import FinetuneResult, Seeds, compare_seeds, finetune_seeds, load_tuned, predict
from ..tasks import finetune as tune
from ..tasks.named import named_task
from ..text import TokenCache, Tokenizer, read_rows, read_texts, sample_rows, tokenize_corpus
from ..training import TrainResult, TrainSettings, ranks
from ..training import adapt as go_on
from ..training import pretrain as start
from ..training.captured import check_device
from ..training.evaluate import refuse_test_split
from ..training.pretrain import HEADS
from ..training.run import check_place, refuse_another_run
from ..transfer import load_adapter, strategy
from ..transfer.peft_files import CONFIG as ADAPTER
from . import settings
from .keys import Key, gather
from .texts import bundled_sample, device_of, model_source, print_json
from .verb import UsageError, Verb

# what a causal model chooses, and one that is to be saved as ELECTRA; the defaults of ModelConfig are BERT's
CAUSAL = {"norm_position": "pre", "norm_eps": 1e-5, "activation": "gelu_tanh", "causal": True, "n_token_types": 0, "embed_norm": False,
          "final_norm": True, "pooler": False}
REPLACED = {"pooler": False, "head_activation": "gelu", "classifier": "dense", "classifier_activation": "gelu"}
SPAN = {"n_token_types": 0, "positions": "none", "relative_buckets": 32, "norm_position": "pre", "norm": "rms", "norm_eps": 1e-6, "qkv_bias": False, "o_bias": False,
        "mlp_bias": False, "attn_scale": 1.0, "activation": "relu", "wide_stream": True, "embed_norm": False, "final_norm": True, "pooler": False, "classifier": "dense",
        "head_dropout": 0.0}                                                    # T5's maths
DENOISE = {"n_token_types": 0, "position_offset": 2, "norm_eps": 1e-5, "pooler": False, "classifier": "dense", "output_bias": True}      # BART's
CHOSEN: dict[str, dict[str, Any]] = {"masked": {}, "causal": CAUSAL, "replaced": REPLACED, "span": SPAN, "denoise": DENOISE}    # objective -> what its model chooses
DRY = {"steps": 2, "epochs": None, "tokens": None, "minutes": None, "eval_every": 1, "save_every": 1, "log_every": 1, "tensorboard": False}
DRY_DOCUMENTS, DRY_CHARACTERS, DRY_ROWS = 500, 200_000, 64
RESULT = ("steps", "tokens", "seconds", "stopped", "metrics", "before", "after", "best", "precision", "tokens_per_second", "peak_memory", "kept_memory")


def add_words(*places: str, sentence: bool = False) -> Callable[[argparse.ArgumentParser], None]:
    """The words of a verb that trains: `places` in order, then settings. sentence: whether its result is one, unless --json is given."""
    names = " ".join(map(str.upper, places))

    def add(parser: argparse.ArgumentParser) -> None:
        parser.usage = f"{parser.prog} {names} [--out FOLDER] [--config FILE] [--resume] [--dry-run] [key=value ...]"
        parser.add_argument("words", nargs="*", metavar=names, help="in this order, or as settings; all settings are written key=value")
        parser.add_argument("--out", metavar="FOLDER", help=settings.RUN["out"].about)
        parser.add_argument("--resume", action="store_const", const="true", help=settings.RUN["resume"].about)
        parser.add_argument("--dry-run", action="store_true",
                            help="everything once on a little of the data: two steps, evaluation, saving, loading; nothing is kept")
        if sentence:
            parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return add


class Job:
    """The settings of one run as the user gave them, and what a dry run puts in their place."""

    def __init__(self, args: argparse.Namespace, places: tuple[str, ...], keys: dict[str, Key], stack: ExitStack):
        self.keys, self.dry, self.sentence = keys, bool(args.dry_run), not getattr(args, "json", True)
        self.given = gather(args.words, places, {"out": args.out, "resume": args.resume}, args.config, keys)
        needed = places if self.dry else (*places, "out")
        if absent := [name for name in needed if self.given.get(name) is None]:
            raise UsageError(f"no {absent[0]} given, and it is needed: {keys[absent[0]].about} (--help says more)")
        self.folder = None
        if self.dry:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="minitransfer-dry-"))
            self.folder = Path(ranks.from_first(lambda: folder))
            for name, value in {**DRY, "out": str(self.folder / "run"), "resume": False}.items():
                self.given.pop(name, None)
                self.given |= {} if value is None else {name: value}

    def __getitem__(self, name: str) -> Any:
        return self.given.get(name, self.keys[name].default)

    def only(self, *names: str) -> dict[str, Any]:
        """Those of the settings `names` that were given."""
        return {name: self.given[name] for name in names if name in self.given}

    @property
    def training(self) -> dict[str, Any]:
        return self.only(*settings.TRAIN)

    def ready(self) -> torch.device:
        """Everything that can be known to be wrong before a corpus is read. Returns: the device.

        Raises: ValueError for settings that cannot be, a device that is not there, or a folder that holds another run.
        """
        ranks.check_shares(TrainSettings.from_dict({name: self[name] for name in settings.TRAIN}))
        ranks.from_first(lambda: check_place(self["out"]))
        if self["out"] and not self["resume"]:
            ranks.from_first(lambda: refuse_another_run(Path(self["out"])))
        device = device_of(self["device"])
        if self["graphs"]:
            check_device(device)
        return device

    def corpus(self, tok: Tokenizer, name: str) -> TokenCache | None:
        """The corpus under a name, as ids; of a dry run its first documents."""
        if self[name] is None:
            return None
        with ranks.first_alone():
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

    def show(self, line: dict[str, Any], sentence: object) -> None:
        """Print what came out, as JSON or as the sentence that it prints as in Python."""
        if self.sentence and sentence is not None:
            print(sentence)
        else:
            print_json({"dry_run": True, **line} if self.dry else line)

    def finished(self, result: TrainResult, more: dict[str, Any] | None = None, sentence: object = None) -> int:
        """Print what came out; of a dry run, that everything worked."""
        line = {name: value for name in RESULT if (value := getattr(result, name)) not in (None, {})} | (more or {})
        if self.dry:
            print("minitransfer: dry run: training, evaluation, saving and loading work; nothing was kept", file=sys.stderr)
            self.show(line, sentence)
            return 0
        interrupted = result.stopped == "interrupted"           # there is no result yet
        place = {} if interrupted else {"model": str(Path(self["out"]) / "model")}
        self.show({"out": self["out"], **place, **line}, sentence if sentence is None or interrupted else f"{sentence}\nsaved in {place['model']}")
        if interrupted:
            print(f"minitransfer: interrupted; saved in {self['out']}, the same command with --resume goes on", file=sys.stderr)
            return 130
        return 0

    def check_saved(self, base: str = "", head: str = "auto") -> None:
        """What a dry run saved can be loaded; an adapter into its base."""
        folder = Path(self["out"]) / "model"
        if (folder / ADAPTER).is_file():
            load_adapter(Model.from_pretrained(base, head=head), folder)
        else:
            Model.from_pretrained(folder)
        Tokenizer.from_pretrained(folder)


def make_tokenizer(job: Job) -> Tokenizer:
    """The tokenizer of a pretraining run: that of the run it goes on with, a finished one, or a new one for the corpus."""
    if job["resume"] and job["out"] and (Path(job["out"]) / "last").is_dir():
        return Tokenizer.from_pretrained(Path(job["out"]) / "last")
    kind = job["tokenizer"] or ("byte_bpe" if job["objective"] in ("causal", "span") else "wordpiece")
    if kind not in settings.KINDS:
        return Tokenizer.from_pretrained(kind)
    print(f"minitransfer: training a {kind} tokenizer of at most {job['vocab_size']:,} tokens", file=sys.stderr)
    texts = job.first_documents("corpus") if job.dry else job.documents("corpus")
    return Tokenizer.train(texts, kind, job["vocab_size"], max_len=longest(job))


def longest(job: Job) -> int:
    """Tokens that the model can read at most."""
    return job["length"] if job["max_len"] is None else job["max_len"]


def make_config(job: Job, vocab_size: int, tok: Tokenizer | None = None) -> ModelConfig:
    shape: dict[str, Any] = {"vocab_size": vocab_size, "d_ff": 4 * job["d_model"] if job["d_ff"] is None else job["d_ff"], "max_len": longest(job),
                             **{name: job[name] for name in ("d_model", "n_layers", "n_heads", "dropout")}}
    if job["objective"] == "span":
        shape |= {"n_decoder_layers": job["n_layers"], "logit_scale": job["d_model"] ** -0.5, "mlp_dropout": job["dropout"]}
    if job["objective"] == "denoise":
        shape |= {"n_decoder_layers": job["n_layers"]} | ({} if tok is None else {"start_id": tok.sep_id, "pad_id": tok.filler})
    return ModelConfig.from_dict(shape | CHOSEN[job["objective"]])


def make_objective(job: Job, tok: Tokenizer, model: Model) -> str | Replaced:
    if job["objective"] != "replaced":
        return job["objective"]
    return Replaced(tok, Model(smaller(model.config, job["generator"]), "masked", seed=job["seed"]))


def pretrain(args: argparse.Namespace) -> int:
    with ExitStack() as stack:
        job = Job(args, ("corpus",), settings.PRETRAIN | settings.SHAPE | settings.TRAINING["pretrain"], stack)
        choose("objective", job["objective"], tuple(CHOSEN))
        if job["objective"] != "replaced" and "generator" in job.given:
            raise ValueError(f"generator={job['generator']} with objective={job['objective']}; only objective=replaced has one: leave it out, or choose that objective")
        device = job.ready()
        smaller(make_config(job, job["vocab_size"]), job["generator"])      # a tokenizer may take minutes: what is wrong with the rest is said before
        tok = ranks.from_first(lambda: make_tokenizer(job))
        tok = with_sentinels(tok) if job["objective"] == "span" else tok
        model = make_model(make_config(job, tok.vocab_size, tok), HEADS[job["objective"]], seed=job["seed"]).to(device)
        result = start(model, tok, job.corpus(tok, "corpus"), make_objective(job, tok, model), job.corpus(tok, "validation"), job["out"], job["resume"],
                       general=job.corpus(tok, "general"), **job.only("length", "batch_size"), **job.training)
        if job.dry:
            ranks.from_first(job.check_saved)
        return job.finished(result)


def adapt(args: argparse.Namespace) -> int:
    with ExitStack() as stack:
        job = Job(args, ("model", "corpus"), settings.ADAPT | settings.TRAINING["adapt"], stack)
        if job["strategy"] is not None:
            strategy(job["strategy"])                       # a corpus may take minutes: a name that does not exist is said before
        device, source = job.ready(), model_source(job["model"])
        model, tok = Model.from_pretrained(source).to(device), Tokenizer.from_pretrained(source)
        result = go_on(model, tok, job.corpus(tok, "corpus"), job["objective"], job.corpus(tok, "validation"), job["out"], job["resume"],
                       general=job.corpus(tok, "general"), **job.only("length", "batch_size", "mix", "strategy"), **job.training)
        if job.dry:
            ranks.from_first(lambda: job.check_saved(source, model.head_name))
        return job.finished(result)


def finetune(args: argparse.Namespace) -> int:
    with ExitStack() as stack:
        job = Job(args, ("model", "train"), settings.FINETUNE | settings.OF_TASKS | settings.TRAINING["finetune"], stack)
        task = named_task(job["task"], job.only("text", "pair", "label"), **job.only(*settings.OF_TASKS))
        other = None if job["against"] is None else Seeds.of_folder(job["against"])
        if other is not None and other.seeds != list(range(job["seeds"] or 0)):
            raise ValueError(f"against={job['against']}, whose seeds are {other.seeds}, and seeds={job['seeds']}; a paired test needs the same seeds: "
                             f"give seeds={len(other.seeds)}")
        refuse_test_split(job["validation"], job.given.get("best", task.best))
        source = model_source(job["model"])
        model, tok = Model.from_pretrained(source).to(device_of(job["device"])), Tokenizer.from_pretrained(source)
        train = read_rows(bundled_sample(job["train"]), job["columns"])
        validation = None if job["validation"] is None else read_rows(bundled_sample(job["validation"]), job["columns"])
        if job.dry and validation is not None:
            validation = sample_rows(validation, min(DRY_ROWS, len(validation)))
        chosen = job.only("strategy", "out", "resume", "batch_size", "max_tokens", "max_length")
        if job["seeds"] is not None:
            return several(job, other, finetune_seeds(model, tok, task, seeds=job["seeds"], train=train, validation=validation, on_run=said, **chosen, **job.training))
        result = tune(model, tok, task, train=train, validation=validation, **chosen, **job.training)
        print(result.report, file=sys.stderr)
        if job.dry:
            ranks.from_first(lambda: bool(predict(*load_tuned(job["out"]), ["a text"], ["another"] if len(task.asks) > 1 else None)))
        return job.finished(result.training, {"metrics": result.metrics}, result)


def said(result: FinetuneResult) -> None:
    print(f"minitransfer: {result}", file=sys.stderr)


def several(job: Job, other: Seeds | None, found: Seeds) -> int:
    """Print what several seeds gave, and whether it differs from what another configuration gave."""
    line, told = {"out": job["out"], **found.spread}, str(found)
    if other is not None:
        paired = compare_seeds(other, found)
        told += f"\nagainst {job['against']}: {paired}"
        line |= {"against": job["against"], "difference": paired.mean, "p": paired.p}
    job.show(line, told)
    return 0


PRETRAIN = Verb(
    "pretrain", "Train a model from scratch on raw text, with a tokenizer of its own unless one is given.",
    ("minitransfer pretrain pydoc --out runs/pydoc steps=200 d_model=128 n_layers=2",
     "minitransfer pretrain samples/general.txt --out runs/general documents=line objective=causal length=64 d_model=64 epochs=3",
     "minitransfer pretrain pydoc --dry-run"), add_words("corpus"), pretrain,
    {"settings": settings.PRETRAIN, "the model": settings.SHAPE,
     "training (of steps, epochs, tokens and minutes the first that is reached ends the run)": settings.TRAINING["pretrain"]})
ADAPT = Verb(
    "adapt", "Go on pretraining a pretrained model on the text of a domain, and report what that changed.",
    ("minitransfer adapt mini-bert pydoc --out runs/adapted steps=100",
     "minitransfer adapt mini-bert pydoc --out runs/lora strategy=lora steps=100",
     "minitransfer adapt mini-bert pydoc general=samples/general.txt mix=0.25 documents=line minutes=2 --dry-run"), add_words("model", "corpus"), adapt,
    {"settings": settings.ADAPT, "training (of steps, epochs, tokens and minutes the first that is reached ends the run)": settings.TRAINING["adapt"]})
FINETUNE = Verb(
    "finetune", "Train a pretrained model to label texts or the words of texts, to find answers in them, or to say how alike two are.",
    ("minitransfer finetune mini-bert samples/reviews.train.tsv --out runs/reviews validation=samples/reviews.validation.tsv lr=2e-4 epochs=4",
     "minitransfer finetune mini-bert samples/reviews.train.tsv --out runs/lora strategy=lora",
     "minitransfer finetune mini-bert samples/tagged.conll --out runs/names task=token lr=3e-4 epochs=8",
     "minitransfer finetune --config reviews.yaml lr=1e-4 seed=1 --dry-run"), add_words("model", "train", sentence=True), finetune,
    {"settings": settings.FINETUNE, "settings of single tasks": settings.OF_TASKS,
     "training (strategies have settings of their own: head and lora lr=1e-3; `best` is a metric of the task)": settings.TRAINING["finetune"]})
