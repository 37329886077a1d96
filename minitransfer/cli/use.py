"""The verbs that ask a model: predict, generate, fill, embed."""
from __future__ import annotations

import argparse

import torch

from ..generate import embed as vectors_of
from ..generate import fill as fill_masks
from ..generate import generate as continued
from .texts import add_model, add_texts, chunks, load, print_json, print_tabbed, rows
from .verb import UsageError, Verb


def predict_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_texts(parser)
    parser.add_argument("--text", default="text", metavar="COLUMN", help="the column of --file that holds the text [text]")
    parser.add_argument("--pair", metavar="COLUMN", help="the column of the second text; in words and lines it follows the first after a tab")


def predict(args: argparse.Namespace) -> int:
    from ..tasks import predict as answer
    model, tok = load(args)
    for part in chunks(rows(args, (args.text, args.pair) if args.pair else (args.text,)), args.batch_size):
        texts = [row[0] for row in part]
        for row, one in zip(part, answer(model, tok, texts, pairs=[row[1] for row in part] if args.pair else None, batch_size=args.batch_size), strict=True):
            if args.json:
                names = {"text": row[0]} | ({"pair": row[1]} if args.pair else {})
                print_json(names | {"label": one.label, "probability": round(one.probability, 6), "probabilities": {k: round(p, 6) for k, p in one.probabilities.items()}})
            else:
                print_tabbed(one.label, f"{one.probability:.4f}", *row)
    return 0


def generate_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_texts(parser, "prompt")
    parser.add_argument("--max-new-tokens", type=int, default=50, metavar="N", help="tokens to add at most [50]")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0: always the likeliest token; 1: as often as the model expects it [0]")
    parser.add_argument("--top-k", type=int, metavar="K", help="sample among the K likeliest tokens only")
    parser.add_argument("--top-p", type=float, metavar="P", help="sample among the fewest tokens whose probabilities reach P only")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R", help="above 1: tokens already in the text become less likely [1]")
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="continuations of each prompt; with temperature 0 they are all the same [1]")
    parser.add_argument("--seed", type=int, default=0, help="of the samples [0]")


def generate(args: argparse.Namespace) -> int:
    model, tok = load(args)
    dice = torch.Generator(model.device).manual_seed(args.seed)
    for part in chunks((row[0] for row in rows(args) for _ in range(args.samples)), args.batch_size):
        batch = tok(part, padding_side="left")
        ids, keep = batch["input_ids"].to(model.device), batch["attention_mask"].to(model.device)
        out = continued(model, ids, keep, args.max_new_tokens, args.temperature, args.top_k, args.top_p, args.repetition_penalty,
                        stop=() if tok.eos_id is None else (tok.eos_id,), generator=dice)
        for prompt, row, n in zip(part, out, keep.sum(1), strict=True):
            start = ids.shape[1]                                                   # padding is on the left: what is new starts here in every row
            text = tok.decode(row[start - int(n):])
            if args.json:
                print_json({"prompt": prompt, "text": text})
            else:
                print(text, flush=True)
    return 0


def fill_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_texts(parser)
    parser.add_argument("--top", type=int, default=5, metavar="K", help="tokens per mask [5]")


def fill(args: argparse.Namespace) -> int:
    model, tok = load(args)
    for number, (text,) in enumerate(rows(args), 1):
        masks = fill_masks(model, tok, text, args.top)
        if args.json:
            print_json({"text": text, "masks": [[{"token": token, "probability": round(p, 6)} for token, p in best] for best in masks]})
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


def embed(args: argparse.Namespace) -> int:
    if args.out and not args.out.endswith(".npy"):
        raise UsageError(f"--out {args.out}; the vectors are written as a NumPy array: give a name that ends in .npy")
    model, tok = load(args, head="embedding")
    kept = []
    for part in chunks((row[0] for row in rows(args, (args.text,))), args.batch_size):
        vectors = vectors_of(model, tok, part, args.batch_size)
        if args.out:
            kept.append(vectors)
            continue
        for text, vector in zip(part, vectors.tolist(), strict=True):
            if args.json:
                print_json({"text": text, "embedding": [round(x, 7) for x in vector]})
            else:
                print_tabbed(*(f"{x:.7g}" for x in vector))
    if args.out:
        import numpy as np
        np.save(args.out, torch.cat(kept or [torch.empty(0, model.config.d_model)]).numpy())
    return 0


PREDICT = Verb("predict", "Label texts with a tuned model. Prints label, probability and text, tab-separated.",
               "minitransfer predict runs/reviews \"I would not buy it again.\"\nminitransfer predict runs/reviews --file reviews.tsv --json\ncut -f1 reviews.tsv | minitransfer predict runs/reviews | cut -f1",
               predict_arguments, predict)
GENERATE = Verb("generate", "Continue texts with a causal model. Prints each text with its continuation.",
                "minitransfer generate mini-gpt \"The old man\" --max-new-tokens 30\nminitransfer generate mini-gpt \"The old man\" --temperature 0.8 --top-p 0.9 --samples 3",
                generate_arguments, generate)
FILL = Verb("fill", "Fill the masks of texts with a masked model. Prints the numbers of text and mask, a token and its probability, tab-separated.",
            "minitransfer fill mini-bert \"She opened the [MASK] and went in.\"\nminitransfer fill mini-bert \"A [MASK] in the [MASK].\" --top 3 --json", fill_arguments, fill)
EMBED = Verb("embed", "One vector per text. Prints its numbers, tab-separated, one text a line.",
             "minitransfer embed mini-bert \"a text\" \"another\"\nminitransfer embed mini-bert --file texts.txt --out vectors.npy", embed_arguments, embed)
