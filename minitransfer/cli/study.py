"""The verb that asks what a model has learned: probe."""
from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from ..study import centre_of_gravity, head_accuracy
from ..study import probe as probed
from .texts import add_model, bundled_sample, load, positive, print_json
from .verb import UsageError, Verb

KINDS = ("linear", "mdl", "mix", "heads")


def probe_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("treebank", help="a .conllu file, or .conll for --task ner (or these with .gz)")
    parser.add_argument("--task", default="pos", metavar="NAME", help="pos, relation, distance, depth, ner, or a feature of the treebank such as Number or Tense [pos]")
    parser.add_argument("--kind", default="linear", choices=KINDS, help="linear: accuracy of a linear classifier; mdl: bits a word of an online code; mix: the centre of gravity "
                        "of the layers that a classifier mixes; heads: how often attention heads look at a word's head [linear]")
    parser.add_argument("--sentences", type=positive, metavar="N", help="so many are drawn from the treebank [500]")
    parser.add_argument("--folds", type=positive, metavar="N", help="each is tested by what was learned from the others (mix: learned alone) [3; mix: 5]")
    parser.add_argument("--seed", type=int, default=0, help="of the sentences, the folds, the control task and the random weights [0]")
    parser.add_argument("--cache", metavar="FOLDER", help="where the states of all layers are kept [the cache of features]")
    parser.add_argument("--figure", metavar="FILE.png", help="draw it there (or .svg, .pdf)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON (linear and mdl)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: a GPU if there is one [auto]")


def check_words(args: argparse.Namespace) -> None:
    """Raises: UsageError for words that do not go together; ValueError for a figure that cannot be written, before time is spent on it."""
    if args.kind == "heads" and (idle := [name for name in ("folds", "cache", "task") if getattr(args, name) not in (None, "pos")]):
        raise UsageError(f"--kind heads with --{idle[0]}; attention heads are compared with the tree itself, nothing is learned: leave it out")
    if args.json and args.kind not in ("linear", "mdl"):
        raise UsageError(f"--json with --kind {args.kind}; it is printed as a table only: leave --json out")
    if args.figure and not os.access(Path(args.figure).parent, os.W_OK):
        raise ValueError(f"--figure {args.figure}, whose folder is not there or not writable; the figure is the last thing that is made: give a folder that takes it")


def probe(args: argparse.Namespace) -> int:
    check_words(args)
    model, tok = load(args, head="none")
    given: dict[str, Any] = {name: value for name in ("sentences", "folds") if (value := getattr(args, name)) is not None} | {"seed": args.seed}
    treebank = bundled_sample(args.treebank)
    if args.kind == "heads":
        found: Any = head_accuracy(model, tok, treebank, **given)
    elif args.kind == "mix":
        found = centre_of_gravity(model, tok, treebank, args.task, cache=args.cache, **given)
    else:
        found = probed(model, tok, treebank, args.task, args.kind, cache=args.cache, **given)
    if args.json:
        print_json(found.to_dict())
    else:
        print(found)
    if args.figure:
        found.draw().figure.savefig(args.figure, dpi=150)
    return 0


PROBE = Verb(
    "probe", "What each layer of a frozen model says of words: linear and MDL probes with a control task, a twin of random weights and intervals; attention heads.",
    ("minitransfer probe mini-bert samples/tagged.conll --task ner --figure ner.png", "minitransfer probe mini-bert en_ewt-ud-dev.conllu --task relation --kind mdl",
     "minitransfer probe mini-bert en_ewt-ud-dev.conllu --kind heads"), probe_arguments, probe)
