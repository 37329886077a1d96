"""The verbs that ask a model: predict, generate, fill, embed."""
from __future__ import annotations

import argparse
from dataclasses import asdict

import torch

from ..generate import embed as vectors_of
from ..generate import fill as fill_masks
from ..generate import generate as continued
from ..nn.model import Model
from ..tasks import AnswerPrediction, LabelsPrediction, NumberPrediction, Prediction, load_tuned
from ..tasks import predict as answers_of
from ..tasks.predict import saved_task
from ..tasks.token import Tagged
from ..text import Tokenizer
from ..training.settings import PRECISIONS
from .texts import add_model, add_texts, chunks, device_of, load, positive, print_json, print_tabbed, rows, tell
from .verb import UsageError, Verb

VERB_OF = {"causal": "generate", "seq2seq": "generate", "masked": "fill", "masked+next": "fill", **dict.fromkeys(("sequence", "token", "span"), "predict")}
NEEDS = {"generate": "continues texts (a decoder, such as mini-gpt)", "fill": "fills masks (an encoder, such as mini-bert)"}


def load_for(verb: str, args: argparse.Namespace) -> tuple[Model, Tokenizer]:
    """As `load`. Raises: ValueError that names the verb for this model, if it is another one."""
    model, tok = load(args)
    if (fits := VERB_OF.get(model.head_name, "embed")) != verb:
        raise ValueError(f'{args.model} has the head "{model.head_name}"; minitransfer {verb} needs one that {NEEDS[verb]}: use minitransfer {fits} {args.model}, or '
                         f"another model for {verb}")
    return model, tok


def predict_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_texts(parser)
    parser.add_argument("--columns", metavar="NAMES", help="names, with commas between, for a .tsv or .csv whose first line is no line of names")
    parser.add_argument("--text", metavar="COLUMN", help="the column of --file that holds the text, the words or the question [as in training]")
    parser.add_argument("--pair", metavar="COLUMN",
                        help="the column of the second text [as in training]; in words and lines it follows the first after a tab")


def predict(args: argparse.Namespace) -> int:
    model, tok = load_tuned(args.model)
    model.to(device_of(args.device))
    task, length = saved_task(args.model)
    asks = task.asks if task is not None else ["text"]
    pair = args.pair or (asks[1] if len(asks) > 1 else None)
    columns = (args.text or asks[0], *([pair] if pair else []))
    for part in chunks(rows(args, columns), args.batch_size):
        pairs = [row[1] for row in part] if len(columns) > 1 else None
        answers = answers_of(model, tok, [row[0] for row in part], pairs, args.batch_size, length, task)
        for row, answer in zip(part, answers, strict=True):
            print_words(row, answer, args.json) if isinstance(answer, Tagged) else print_answer(row, answer, args.json)
    return 0


def print_answer(row: tuple, one: Prediction | LabelsPrediction | NumberPrediction | AnswerPrediction, as_json: bool) -> None:
    """A text with what was predicted of it; several labels are joined by commas."""
    if as_json:
        print_json(dict(zip(("question", "context") if isinstance(one, AnswerPrediction) else ("text", "pair"), row, strict=False)) | asdict(one))
    elif isinstance(one, NumberPrediction):
        print_tabbed(f"{one.value:.4f}", *row)
    elif isinstance(one, LabelsPrediction):
        print_tabbed(",".join(one.labels), ",".join(f"{one.probabilities[name]:.4f}" for name in one.labels), *row)
    else:
        print_tabbed(one.text if isinstance(one, AnswerPrediction) else one.label, f"{one.probability:.4f}", *row)


def print_words(row: tuple, words: Tagged, as_json: bool) -> None:
    """The words of a text with their labels, one a line, and an empty line after them."""
    if as_json:
        print_json({"text": row[0], "words": [asdict(one) for one in words], "entities": [asdict(one) for one in words.entities]})
        return
    for one in words:
        print_tabbed(one.word, one.label or "", f"{one.probability:.4f}")
    print(flush=True)


def add_precision(parser: argparse.ArgumentParser, usual: str) -> None:
    parser.add_argument("--precision", default=usual, choices=(*PRECISIONS, "int8"),
                        help=f"numbers to compute in; int8: matrices in 8 bits, on a CPU, quicker and less exact [{usual}]")


def generate_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_texts(parser, "prompt")
    parser.add_argument("--max-new-tokens", type=positive, default=50, metavar="N", help="tokens to add at most [50]")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0: always the likeliest token; 1: as the model says [0]")
    parser.add_argument("--top-k", type=positive, metavar="K", help="sample among the K likeliest tokens only")
    parser.add_argument("--top-p", type=float, metavar="P", help="sample among the fewest tokens whose probabilities reach P only")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R", help="above 1: what the text has becomes unlikelier [1]")
    parser.add_argument("--samples", type=positive, default=1, metavar="N", help="continuations of each prompt; with temperature 0 all the same [1]")
    parser.add_argument("--seed", type=int, default=0, help="of the samples [0]")
    add_precision(parser, "auto")


def generate(args: argparse.Namespace) -> int:
    model, tok = load_for("generate", args)
    dice = torch.Generator(model.device).manual_seed(args.seed)
    for part in chunks((row[0] for row in rows(args) for _ in range(args.samples)), args.batch_size):
        batch = tok(part, padding_side="left")
        ids, keep = batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)
        out = continued(model, ids, keep, args.max_new_tokens, args.temperature, args.top_k, args.top_p, args.repetition_penalty,
                        stop=() if tok.eos_id is None else (tok.eos_id,), generator=dice, precision=args.precision)
        for prompt, row, n in zip(part, out, keep.sum(1), strict=True):
            start = ids.shape[1] - int(n)                                          # padding is on the left: the prompt starts here
            text = tok.decode(row if model.head_name == "seq2seq" else row[start:])
            tell(args.json, {"prompt": prompt, "text": text}, text)
    return 0


def fill_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_texts(parser)
    parser.add_argument("--top", type=positive, default=5, metavar="K", help="tokens per mask [5]")


def fill(args: argparse.Namespace) -> int:
    model, tok = load_for("fill", args)
    for number, (text,) in enumerate(rows(args), 1):
        masks = fill_masks(model, tok, text, args.top)
        if args.json:
            print_json({"text": text, "masks": [[{"token": token, "probability": p} for token, p in best] for best in masks]})
            continue
        for mask, best in enumerate(masks, 1):
            for token, p in best:
                print_tabbed(number, mask, token, f"{p:.4f}")
    return 0


def embed_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_texts(parser)
    parser.add_argument("--text", default="text", metavar="COLUMN", help="the column of --file that holds the text [text]")
    parser.add_argument("--out", metavar="FILE.npy", help="write one float32 array (texts, width) instead of printing")
    parser.add_argument("--prompt", metavar="NAME", help="the kind of these texts, such as query or passage, if the model has a prompt for each [the model's default]")
    add_precision(parser, "fp32")


def embed(args: argparse.Namespace) -> int:
    if args.out and not args.out.endswith(".npy"):
        raise UsageError(f"--out {args.out}; the vectors are written as a NumPy array: give a name that ends in .npy")
    model, tok = load(args, head="embedding")
    kept = []
    for part in chunks((row[0] for row in rows(args, (args.text,))), args.batch_size):
        vectors = vectors_of(model, tok, part, args.batch_size, prompt=args.prompt, precision=args.precision)
        if args.out:
            kept.append(vectors)
            continue
        for text, vector in zip(part, vectors.tolist(), strict=True):
            if args.json:
                print_json({"text": text, "embedding": vector})
            else:
                print_tabbed(*(f"{x:.7g}" for x in vector))
    if args.out:
        import numpy as np
        np.save(args.out, torch.cat(kept or [vectors_of(model, tok, [])]).numpy())
    return 0


PREDICT = Verb(
    "predict", "Label texts with a tuned model. Prints label, probability and text, tab-separated; of a token task a line for each word, with its label and\n"
    "probability; of a span task the answer, its probability, question and context; of a regression or similarity the number and the text.",
    ("minitransfer predict runs/reviews \"I would not buy it again.\" \"We will be back.\"",
     "minitransfer predict runs/reviews --file samples/reviews.test.tsv --json",
     "cut -f1 reviews.tsv | minitransfer predict runs/reviews | cut -f1 | sort | uniq -c"), predict_arguments, predict)
GENERATE = Verb(
    "generate", "Continue texts with a causal model. Prints each text with its continuation.",
    ("minitransfer generate mini-gpt \"The old man\" --max-new-tokens 30",
     "minitransfer generate mini-gpt \"The old man\" --temperature 0.8 --top-p 0.9 --samples 3"), generate_arguments, generate)
FILL = Verb(
    "fill", "Fill the masks of texts with a masked model. Prints the numbers of text and mask, a token and its probability, tab-separated.",
    ("minitransfer fill mini-bert \"She opened the [MASK] and went in.\"",
     "minitransfer fill mini-bert \"A [MASK] in the [MASK].\" --top 3 --json"), fill_arguments, fill)
EMBED = Verb(
    "embed", "One vector per text. Prints its numbers, tab-separated, one text a line.",
    ("minitransfer embed mini-bert \"a text\" \"another\"",
     "minitransfer embed mini-bert --file samples/general.txt --out vectors.npy"), embed_arguments, embed)
