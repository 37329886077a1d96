"""How the bundled checkpoints were made: python checkpoints/pretrain.py mini-bert DATA

DATA is a folder with gutenberg/, wikipedia_en/ and wikitext2/ (train and validation files). Trains the tokenizer, then the model, and leaves a run folder;
`--finish` turns the run's best weights into checkpoints/NAME, in 16-bit floats and with the dropout that fine-tuning wants.
"""
from __future__ import annotations

import argparse
import dataclasses
import gzip
import hashlib
import json
from pathlib import Path

import torch

import minitransfer as mt
from minitransfer.objectives import Causal, Masked
from minitransfer.text import Tokenizer, read_texts
from minitransfer.training import pretrain

SIZES = {"vocab_size": 8192, "d_model": 256, "n_layers": 4, "n_heads": 4, "d_ff": 1024, "max_len": 128, "dropout": 0.0}
DECODER = {"norm_position": "pre", "norm_eps": 1e-5, "activation": "gelu_tanh", "causal": True, "n_token_types": 0, "embed_norm": False, "final_norm": True, "pooler": False}
MODELS = {"mini-bert": ("masked", "wordpiece", {}), "mini-gpt": ("causal", "byte_bpe", DECODER)}
# Short rows first: a masked model learns from its neighbours sooner when there are few of them. Long rows last, for the positions.
PHASES = {"mini-bert": [{"length": 32, "batch_size": 512, "lr": 1e-3, "minutes": 0.6}, {"length": 128, "batch_size": 128, "lr": 1e-3, "minutes": 3.5}],
          "mini-gpt": [{"length": 128, "batch_size": 128, "lr": 1e-3, "minutes": 4.1}]}
MASKED = 0.3                                            # of the tokens: more to learn from in each of few steps (Wettig et al. 2023)
HERE = Path(__file__).parent


def sources(data: Path) -> list[Path]:
    return [data / "gutenberg/train.jsonl.gz", data / "wikipedia_en/train.jsonl.gz", data / "wikitext2/train.txt.gz"]


def held_out(data: Path) -> list[str]:
    """The beginning of each validation book, and every third validation article."""
    def rows(name: str) -> list[str]:
        with gzip.open(data / name, "rt", encoding="utf-8") as file:
            return [json.loads(line)["text"] for line in file]
    return [book[:20_000] for book in rows("gutenberg/validation.jsonl.gz")] + rows("wikipedia_en/validation.jsonl.gz")[::3]


def run(name: str, data: Path, out: Path, first: int) -> None:
    head, kind, changes = MODELS[name]
    if not (out / "tokenizer").exists():
        Tokenizer.train(read_texts(sources(data)), kind, vocab_size=SIZES["vocab_size"], max_len=SIZES["max_len"]).save_pretrained(out / "tokenizer")
    tok = Tokenizer.from_pretrained(out / "tokenizer")
    if first:
        model = mt.Model.from_pretrained(out / f"phase{first - 1}" / "last")
    else:
        model = mt.Model(mt.ModelConfig(**{**SIZES, **changes}), head, seed=0)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    objective = Masked(tok, probability=MASKED) if head == "masked" else Causal()
    for number, phase in enumerate(PHASES[name][first:], first):
        pretrain(model, tok, sources(data), objective, validation=held_out(data), out=out / f"phase{number}", warmup=0.04, beta2=0.98, weight_decay=0.01,
                 eval_every=4000, save_every=4000, log_every=100, seed=number, progress=False, graphs=model.device.type == "cuda", **phase)


def finish(name: str, out: Path) -> None:
    """The run's result as a bundled checkpoint: float16 holds these weights in 11 bits of mantissa, in half the bytes."""
    last = len(PHASES[name]) - 1
    model, tok = mt.Model.from_pretrained(out / f"phase{last}" / "model"), Tokenizer.from_pretrained(out / "tokenizer")
    model.config = dataclasses.replace(model.config, dropout=0.1, attn_dropout=0.1, embed_dropout=0.1)
    model.save_pretrained(HERE / name, dtype=torch.float16)
    tok.save_pretrained(HERE / name)
    (HERE / name / "README.md").write_text(card(name, out), encoding="utf-8")


def card(name: str, out: Path) -> str:
    """The model card, from what the run wrote down."""
    done = [json.loads((out / f"phase{number}/last/train_state.json").read_text())["progress"] for number in range(len(PHASES[name]))]
    manifest = json.loads((out / f"phase{len(done) - 1}/manifest.json").read_text())
    found, facts, head = manifest["result"]["metrics"], manifest["model"], MODELS[name][0]
    sha = hashlib.sha256((HERE / name / "model.safetensors").read_bytes()).hexdigest()
    rows = [(phase["length"], phase["batch_size"], f"{phase['lr']:g}", f"{p['step']:,}", f"{p['tokens']:,}", f"{p['seconds'] / 60:.1f}")
            for phase, p in zip(PHASES[name], done, strict=True)]
    phases = "\n".join("| " + " | ".join(map(str, (number, *row))) + " |" for number, row in enumerate(rows, 1))
    guess = f"hides {MASKED:.0%} of the tokens" if head == "masked" else "predicts the next token"
    shape, read, minutes = facts["config"], sum(p["tokens"] for p in done) / 1e6, sum(p["seconds"] for p in done) / 60
    device = manifest["machine"]["device"]
    return f"""# {name}

A small {'encoder in BERT' if head == 'masked' else 'decoder in GPT-2'} layout, pretrained with minitransfer in {minutes:.0f} minutes on one {device}. It {guess}.
It is here so that everything can be tried offline in seconds. It is a small language model and not a good one:
it has read {read:.0f} million tokens, where BERT read 3.3 billion words about 40 times (Devlin et al. 2019, A.2).

| | |
|---|---|
| shape | {shape['n_layers']} blocks, width {shape['d_model']}, {shape['n_heads']} heads, vocabulary {shape['vocab_size']:,}, at most {shape['max_len']} tokens |
| size | {facts['parameters']:,} parameters, saved in float16 |
| text | gutenberg (English fiction, public domain), wikipedia_en (articles, CC BY-SA 3.0), wikitext2 (CC BY-SA 3.0) |
| of it | {int(manifest['data']['tokens']):,} tokens, read {read * 1e6 / int(manifest['data']['tokens']):.1f} times |
| held-out loss | {found['loss']:.3f} nats a target, perplexity {found['perplexity']:.0f}, on {found['targets']:,.0f} targets of validation books and articles |
| loss of token frequencies alone | {found['unigram_loss']:.3f} |
| precision | {manifest['result']['precision']} products, float32 weights |
| sha256 of model.safetensors | `{sha}` |
| command | `python checkpoints/pretrain.py {name} DATA`, then the same with `--finish` |

| phase | tokens a row | rows a batch | peak learning rate | steps | tokens read | minutes |
|---|---|---|---|---|---|---|
{phases}

Fiction before 1930 and encyclopaedia articles: it repeats their views and their errors. Weights: Apache-2.0; the texts keep their licences.
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--first", type=int, default=0, help="the phase to begin with, from the last save of the one before")
    parser.add_argument("--finish", action="store_true")
    arguments = parser.parse_args()
    folder = arguments.out or Path("runs") / arguments.name
    finish(arguments.name, folder) if arguments.finish else run(arguments.name, arguments.data, folder, arguments.first)
