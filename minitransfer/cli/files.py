"""The verbs that look at files or show and measure the engine: convert, inspect, plan, verify, check, demo, bench."""
from __future__ import annotations

import argparse
from pathlib import Path

from .. import demo as show
from ..checks import CARDS
from ..checks import inspect as look
from ..checks import plan as foresee
from ..checks import verify as certify
from ..course import check as grade
from ..course import exercises
from ..training.settings import PRECISIONS
from ..transfer import lora
from ..weights.convert import convert as convert_files
from .keys import typed
from .settings import STRATEGIES, TRAIN
from .texts import model_source, positive, tell
from .verb import Verb

DRY = {"rows": 24, "epochs": 1}


def convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a folder with pytorch_model.bin (or its shards and their index), one .bin or .pt file, or a hub id; or weights of "
                        "llama2.c, with tok512.bin or tokenizer.bin beside them")
    parser.add_argument("out", nargs="?", help="the folder to write to [the folder of the source; the old file stays]")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def convert(args: argparse.Namespace) -> int:
    done = convert_files(args.source, args.out)
    tell(args.json, {"folder": str(done.folder), "files": list(done.files), "tensors": done.tensors, "bytes": done.bytes, "tied": done.tied}, done)
    return 0


def inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a folder, a bundled name such as mini-bert, or a hub id")
    parser.add_argument("--revision", help="a branch, tag or commit of the hub")
    parser.add_argument("--all", action="store_true", help="list every field of the config, those too that are as usual")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")


def inspect(args: argparse.Namespace) -> int:
    found = look(args.source, args.revision)
    tell(args.json, {"source": found.source, "folder": str(found.folder), **found.found}, found.listed(args.all))
    return 0


def plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a folder, a bundled name such as mini-bert, or a hub id; only its config.json is read")
    parser.add_argument("--strategy", default="full", metavar="NAME", help=f"{STRATEGIES}; or generate: no step, but a prompt read into a KV cache [full]")
    parser.add_argument("--base", choices=("int8", "nf4"), help="with lora: how the frozen matrices are held [as they are]")
    parser.add_argument("--card", default="T4", metavar="NAME", help=f"{', '.join(CARDS)}; a memory in GB, such as 8GB; or cpu, this machine [T4]")
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="rows of a batch, all full [32]")
    parser.add_argument("--length", type=positive, default=128, metavar="N", help="tokens of a row [128]")
    parser.add_argument("--micro-batches", type=positive, default=1, metavar="N", help="batches of an optimizer step [1]")
    parser.add_argument("--head", metavar="NAME", help="the head that is trained: sequence, token, span, masked, causal, ... [causal of a decoder, else sequence]")
    parser.add_argument("--precision", default="auto", choices=PRECISIONS, help="numbers to compute in [auto]")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16", "fp16"), help="of the weights as they are loaded; what trains is fp32 [fp32]")
    parser.add_argument("--checkpointing", default="false", metavar="WHAT", help=TRAIN["checkpointing"].about + " [false]")
    parser.add_argument("--short", action="store_true", help="leave out the largest batch and what would make the step smaller, which take several rehearsals")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def plan(args: argparse.Namespace) -> int:
    if args.base is not None and args.strategy.partition(":")[0] != "lora":
        raise ValueError(f"--base {args.base} with --strategy {args.strategy}; codes are the base of LoRA: add --strategy lora, or leave --base out")
    wanted = args.strategy if args.base is None else lora(int(args.strategy.partition(":")[2] or 8), base=args.base)
    found = foresee(model_source(args.model), wanted, card=args.card, batch_size=args.batch_size, length=args.length, head=args.head, precision=args.precision,
                    checkpointing=typed("checkpointing", args.checkpointing, TRAIN["checkpointing"].kind), micro_batches=args.micro_batches, dtype=args.dtype,
                    look_further=not args.short)
    tell(args.json, found.to_dict(), found)
    return 0 if found.fits else 1


def check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("notebook", help="its number, as in 03_attention_by_hand")
    parser.add_argument("file", nargs="?", help="a Python file with functions named like the exercises; it is run [list the exercises]")


def check(args: argparse.Namespace) -> int:
    if args.file is None:
        print("\n".join(one.asks for one in exercises(args.notebook).values()))
        return 0
    verdicts = grade(args.notebook, file=args.file)
    print(verdicts)
    return 0 if verdicts.right else 1


def verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a folder, a bundled name such as mini-bert, or a hub id")
    parser.add_argument("--revision", help="a branch, tag or commit of the hub")
    parser.add_argument("--texts", nargs="+", metavar="TEXT", help="through the tokenizer of the folder [random ids]")
    parser.add_argument("--lengths", nargs="+", type=positive, metavar="N", help="of the longest row, in tokens, each with left and right padding [two]")
    parser.add_argument("--dtypes", nargs="+", default=["fp32"], choices=("fp32", "bf16", "fp16"),
                        help="fp32 is always compared module by module; the others by their distance from the fp64 truth [fp32]")
    parser.add_argument("--perturb", type=float, default=0.0, metavar="S", help="add N(0, S) to every parameter first; 0.1 shows swapped tensors that are still constant [0]")
    parser.add_argument("--bar", type=float, default=1e-5, metavar="E", help="the largest relative error that holds in fp32 [1e-5]")
    parser.add_argument("--no-gradients", action="store_true", help="leave out the loss and the gradients, which take memory")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed forward passes of either side, in turns; 0: no times and no memory [5]")
    parser.add_argument("--seed", type=int, default=0, help="of the ids and of --perturb [0]")
    parser.add_argument("--modules", action="store_true", help="print a line for every module too")
    parser.add_argument("--out", metavar="FILE.json", help="write the certificate there")
    parser.add_argument("--json", action="store_true", help="print the certificate as JSON")


def verify(args: argparse.Namespace) -> int:
    found = certify(args.source, texts=args.texts, lengths=args.lengths, dtypes=args.dtypes, perturb=args.perturb, bar=args.bar, gradients=not args.no_gradients,
                    repeats=args.repeats, seed=args.seed, out=args.out, revision=args.revision)
    tell(args.json, found.to_dict(), f"{found.modules}\n\n{found}" if args.modules else found)
    return 0 if found.holds else 1


def demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="mini-bert", metavar="NAME", help="the pretrained encoder: a bundled name, a folder or a hub id [mini-bert]")
    parser.add_argument("--generator", default="mini-gpt", metavar="NAME", help="the pretrained decoder for the last lines; none leaves them out [mini-gpt]")
    parser.add_argument("--out", default="runs/demo", metavar="FOLDER", help="where report.html is written [runs/demo]")
    parser.add_argument("--rows", type=positive, metavar="N", help="train on N of the reviews only, as many of each label [all]")
    parser.add_argument("--epochs", type=positive, metavar="N", help=f"passes over the reviews, the same for every strategy [{show.EPOCHS}]")
    parser.add_argument("--seed", type=int, default=0, help="of fresh weights, order and dropout [0]")
    parser.add_argument("--dry-run", action="store_true", help=f"everything once with {DRY['rows']} reviews and one epoch: does it run here?")


def demo(args: argparse.Namespace) -> int:
    given = {name: value for name in ("rows", "epochs") if (value := getattr(args, name)) is not None}
    chosen = DRY if args.dry_run else given
    print(show.run(args.model, None if args.generator == "none" else args.generator, Path(args.out), seed=args.seed, **chosen))
    return 0


def bench_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("cpu", "gpu", "transfer", "families", "sizes", "plan", "study"),
                        help="cpu: training steps, generation and memory beside those of other libraries; gpu: the same and single operations on an NVIDIA GPU; "
                        "transfer: what tuning gives on real labelled sets (of the folder that MINITRANSFER_DATA names) beside the same runs with other libraries, an hour or two; "
                        "families: how far every class of every family is from transformers, on the tiny models of the tests; "
                        "sizes: full-size shapes with random weights, their errors, load times and memory; plan: the predicted and the measured peak memory of training steps; "
                        "study: parts of speech by layer and minimal pairs, beside transformers and scikit-learn")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="measure these only [all]")
    parser.add_argument("--quick", "--dry-run", action="store_true", help="one reading per side, or a few rows of each set: does it run here? gpu then runs without one too")
    parser.add_argument("--nanogpt", metavar="FOLDER", help="a clone of nanoGPT, the peer of a row of cpu and of one of gpu")
    parser.add_argument("--save", action="store_true", help="also keep the results in the project, under this machine's name")


def bench(args: argparse.Namespace) -> int:
    from ..bench import families, plan, run, sizes, study, transfer
    if args.what == "families":
        families.run(args.rows, args.quick, args.save)
    elif args.what == "sizes":
        sizes.run(args.rows, args.save)
    elif args.what == "plan":
        plan.run(args.rows, args.save)
    elif args.what == "study":
        study.run(args.rows, args.quick, args.save)
    elif args.what == "transfer":
        transfer.run(args.rows, args.quick, args.save)
    else:
        run(args.rows, args.quick, args.nanogpt, args.save, gpu=args.what == "gpu")
    return 0


CONVERT = Verb(
    "convert", "Turn an old checkpoint (pytorch_model.bin) into safetensors, the only form the engine reads; or a model of llama2.c into the standard layout.",
    ("minitransfer convert downloads/bert-base-uncased", "minitransfer convert downloads/bert-base-uncased models/bert-base-uncased",
     "minitransfer convert downloads/stories260K.bin models/stories260K"),
    convert_arguments, convert)
INSPECT = Verb(
    "inspect", "Describe a checkpoint without loading it: family, architecture, parameters by layer group, files, head, labels, tokenizer, adapter.",
    ("minitransfer inspect mini-bert", "minitransfer inspect runs/reviews --json"), inspect_arguments, inspect)
PLAN = Verb(
    "plan", "Predict the memory, by component, and the time of a training step from the config alone, and what would make it smaller. Exit code 1 if it does not fit.",
    ("minitransfer plan bert-base-uncased --card T4 --batch-size 32", "minitransfer plan gpt2 --strategy lora --card 8GB --length 1024 --checkpointing true",
     "minitransfer plan mini-gpt --strategy generate --card cpu --batch-size 1"), plan_arguments, plan)
VERIFY = Verb(
    "verify", "Run a checkpoint through transformers and through this engine, compare every module, and name the first that differs. Exit code 1 if one does.",
    ("minitransfer verify mini-bert --out certificate.json", "minitransfer verify mini-gpt --perturb 0.1 --dtypes fp32 bf16",
     "minitransfer verify runs/reviews --texts \"I would not buy it again.\" \"We will be back.\" --modules"), verify_arguments, verify)
CHECK = Verb(
    "check", "Put answers to the exercises of a notebook into the engine and say which are right. Exit code 1 if one is not.",
    ("minitransfer check 03", "minitransfer check 03 my_answers.py"), check_arguments, check)
DEMO = Verb(
    "demo", "Compare ways to tune a small pretrained model on reviews, and write a report. Needs no network and no GPU.",
    ("minitransfer demo", "minitransfer demo --rows 100 --seed 1 --out runs/demo-100"), demo_arguments, demo)
BENCH = Verb(
    "bench", "Compare speed, memory and accuracy with other libraries, each side in a process of its own. Prints one JSON line per comparison or run.",
    ("minitransfer bench cpu", "minitransfer bench cpu --rows masked-small --quick", "minitransfer bench gpu --rows small-step --dry-run",
     "minitransfer bench transfer --rows sst2 --quick", "minitransfer bench families --save"), bench_arguments, bench)
