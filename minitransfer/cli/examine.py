"""The verbs that look for what is wrong, and advise: doctor, why, recommend."""
from __future__ import annotations

import argparse

from ..checks import doctor as examine
from ..checks import recommend as advise
from ..checks import why as compare
from ..tasks import load_tuned
from ..tasks.named import named_task
from ..tasks.predict import saved_task
from .texts import add_model, bundled_sample, device_of, positive, tell
from .verb import Verb


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="?", help="training rows (.tsv, .csv, .jsonl, .conll, .conllu, SQuAD's .json), or raw text (.txt, .jsonl, a folder, pydoc); "
                        "samples/NAME is a file that comes with the package")
    parser.add_argument("--validation", metavar="FILE", help="held-out rows")
    parser.add_argument("--task", metavar="NAME", help="of the rows: sequence, multilabel, regression, similarity, token, span [that of the model's head, else sequence]")
    for name in ("text", "pair", "label"):
        parser.add_argument(f"--{name}", metavar="COLUMN", help=f"the column of the {name}, where it is not called as in the task")


def doctor_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_data(parser)
    parser.add_argument("--test", metavar="FILE", help="the rows of the last measurement")
    parser.add_argument("--strategy", metavar="NAME", help="how it is to train, as in finetune [what trains in the model as it is loaded]")
    parser.add_argument("--max-length", type=positive, metavar="N", help="tokens after which texts are cut [what the model reads]")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: a GPU if there is one [auto]")
    parser.add_argument("--seed", type=int, default=0, help="of fresh heads, masks and dropout [0]")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")


def doctor(args: argparse.Namespace) -> int:
    model, tok = load_tuned(args.model)
    task, length = saved_task(args.model)
    columns = {name: column for name in ("text", "pair", "label") if (column := getattr(args, name)) is not None}
    if args.task or columns or args.data is None:
        task = named_task(args.task or "sequence", columns) if args.task or columns else None
    data, validation, test = (None if source is None else bundled_sample(source) for source in (args.data, args.validation, args.test))
    found = examine(model.to(device_of(args.device)), tok, data, validation, test, task=task, strategy=args.strategy, max_length=args.max_length or length, seed=args.seed)
    tell(args.json, found.to_dict(), found)
    return 0 if found.ok else 1


def why_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="RUN", help="the folder of a run")
    parser.add_argument("b", metavar="OTHER", help="the folder of another")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")


def why(args: argparse.Namespace) -> int:
    found = compare(args.a, args.b)
    tell(args.json, found.to_dict(), found)
    return 0


def recommend_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("labels", nargs="?", type=int, help="how many rows have a label [those of --train]")
    parser.add_argument("--task", default="sequence", metavar="NAME", help="of finetune, or generation, summarisation, translation [sequence]")
    parser.add_argument("--unlabelled", type=float, default=0, metavar="MB", help="megabytes of text of the domain without labels [0]")
    parser.add_argument("--gpu", type=float, metavar="GB", help="memory of the card [not looked at]")
    parser.add_argument("--model", metavar="NAME", help="a folder, a bundled name or a hub id; needed to look at the card, and for --prove")
    parser.add_argument("--train", metavar="FILE", help="rows with labels")
    parser.add_argument("--validation", metavar="FILE", help="held-out rows [a fifth of --rows]")
    parser.add_argument("--prove", action="store_true", help="tune the first two on some of the rows, and say which was better")
    parser.add_argument("--rows", type=positive, default=200, metavar="N", help="rows that --prove trains on [200]")
    parser.add_argument("--seed", type=int, default=0, help="of --prove [0]")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")


def recommend(args: argparse.Namespace) -> int:
    model, tok = (None, None) if args.model is None else load_tuned(args.model)
    train, validation = (None if source is None else bundled_sample(source) for source in (args.train, args.validation))
    found = advise(args.task, args.labels, unlabelled_mb=args.unlabelled, gpu_gb=args.gpu, prove=args.prove, model=model, tok=tok, train=train, validation=validation,
                   rows=args.rows, seed=args.seed)
    tell(args.json, found.to_dict(), found)
    return 0


DOCTOR = Verb(
    "doctor", "Look for what goes wrong in silence when a model is trained on data: padding, leaks, masks, frozen weights, labels. Exit code 1 if something is wrong.",
    ("minitransfer doctor mini-bert", "minitransfer doctor mini-gpt samples/general.txt",
     "minitransfer doctor mini-bert samples/reviews.train.tsv --validation samples/reviews.validation.tsv --strategy lora",
     "minitransfer doctor mini-bert samples/tagged.conll --task token --json"), doctor_arguments, doctor)
WHY = Verb(
    "why", "Say at which step two runs began to differ, and why: seed, weights, data, settings, versions or a number.",
    ("minitransfer why runs/reviews runs/again",), why_arguments, why)
RECOMMEND = Verb(
    "recommend", "Say which way to adapt a model suits so many labels, with reasons and sources; --prove tries the first two on the rows.",
    ("minitransfer recommend 800 --task token --unlabelled 120", "minitransfer recommend --model mini-bert --train samples/reviews.train.tsv --prove --rows 40"),
    recommend_arguments, recommend)
