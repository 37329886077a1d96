"""The verb that asks what a model has learned: probe."""
from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path
from typing import Any

from ..nn.model import Model
from ..report import Html, section, study_page, table, wide, write_page
from ..study import Probe, Sentence, centre_of_gravity, head_accuracy, read_treebank
from ..study import probe as probed
from ..study.tables import new_axes
from ..text import Tokenizer
from ..training.log import package_versions
from ..training.page import REPORT, looks
from ..training.run import check_place
from .texts import add_model, bundled_sample, load, positive, print_json
from .verb import UsageError, Verb

KINDS = {"linear": "Accuracy of each layer, with 95 % intervals", "mdl": "Bits a word of each layer, with 95 % intervals", "mix": "Share of each layer, and their centre",
         "heads": "How often an attention head looks at a word's head"}


def probe_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("treebank", help="a .conllu file, or .conll for --task ner (or these with .gz)")
    parser.add_argument("--task", metavar="NAME", help="pos, relation, distance, depth, ner, or a feature of the treebank such as Number or Tense [pos]")
    parser.add_argument("--kind", default="linear", choices=tuple(KINDS), help="linear: accuracy of a linear classifier; mdl: bits a word of an online code; mix: the centre "
                        "of gravity of the layers that a classifier mixes; heads: how often attention heads look at a word's head [linear]")
    parser.add_argument("--sentences", type=positive, default=500, metavar="N", help="so many are drawn from the treebank [500]")
    parser.add_argument("--folds", type=positive, metavar="N", help="each is tested by what was learned from the others (mix: learned alone) [3; mix: 5]")
    parser.add_argument("--seed", type=int, default=0, help="of the sentences, the folds, the control task and the random weights [0]")
    parser.add_argument("--cache", metavar="FOLDER", help="where the states of all layers are kept [the cache of features]")
    parser.add_argument("--out", metavar="FOLDER", help=f"write a page with the figure, the table and the settings: FOLDER/{REPORT}")
    parser.add_argument("--figure", metavar="FILE.png", help="draw it there (or .svg, .pdf)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON (linear and mdl)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: a GPU if there is one [auto]")


def check_words(args: argparse.Namespace) -> None:
    """Raises: UsageError for words that do not go together; ValueError and ImportError for a page or a figure that cannot be written, before time is spent on it."""
    if args.kind == "heads" and (idle := [name for name in ("folds", "cache", "task") if getattr(args, name) is not None]):
        raise UsageError(f"--kind heads with --{idle[0]}; attention heads are compared with the tree itself, nothing is learned: leave it out")
    if args.json and args.kind not in ("linear", "mdl"):
        raise UsageError(f"--json with --kind {args.kind}; it is printed as a table only: leave --json out")
    if args.figure and not os.access(Path(args.figure).parent, os.W_OK):
        raise ValueError(f"--figure {args.figure}, whose folder is not there or not writable; the figure is the last thing that is made: give a folder that takes it")
    check_place(args.out)
    if args.figure or args.out:
        new_axes(1, 1)


def page_of(found: Any, model: Model, tok: Tokenizer, one: Sentence, about: dict[str, Any]) -> Html:
    """Figure, tables, where the model looks in one of the sentences, and what was asked."""
    axes = None if about["kind"] == "heads" else new_axes(5, 3.4)[0, 0]          # its letters are read on a phone
    more = [section("Label by label", wide(table(found.by_label())))] if isinstance(found, Probe) else []
    title = f"Probe of {about['model']}: {', '.join(filter(None, (about['kind'], getattr(found, 'task', None))))}"
    return study_page(title, {f"{found.cells()[0][0].capitalize()} by {found.cells()[0][0]}": found}, {KINDS[about["kind"]]: found.draw(axes).figure},
                      about | {"versions": package_versions()}, [*more, *looks(model, tok, " ".join(one.words))])


def probe(args: argparse.Namespace) -> int:
    check_words(args)
    model, tok = load(args, head="none")
    given = {name: value for name in ("task", "sentences", "folds", "seed", "cache") if (value := getattr(args, name)) is not None}
    treebank = read_treebank(bundled_sample(args.treebank), args.sentences, args.seed)
    ask: Any = {"heads": head_accuracy, "mix": centre_of_gravity}.get(args.kind) or partial(probed, kind=args.kind)
    found = ask(model, tok, treebank, **given)
    place = {}
    if args.out:
        about = {"model": args.model, "treebank": args.treebank, "kind": args.kind, **given}
        place["report"] = str(write_page(Path(args.out) / REPORT, page_of(found, model, tok, treebank[0], about)))
    if args.figure:
        found.draw().figure.savefig(args.figure, dpi=150)
    if args.json:
        print_json(found.to_dict() | place)
    else:
        print(found, *(f"report: {path}" for path in place.values()), sep="\n")
    return 0


PROBE = Verb(
    "probe", "What each layer of a frozen model says of words: linear and MDL probes with a control task, a twin of random weights and intervals; attention heads.",
    ("minitransfer probe mini-bert samples/tagged.conll --task ner --out runs/names", "minitransfer probe mini-bert en_ewt-ud-dev.conllu --task relation --kind mdl",
     "minitransfer probe mini-bert en_ewt-ud-dev.conllu --kind heads"), probe_arguments, probe)
