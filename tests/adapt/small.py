"""Labelled rows and small bodies for the tests of strategies. No two sizes are equal, so that no two axes can be confused."""
from __future__ import annotations

import random

from torch import nn

from minitransfer.config import ModelConfig
from minitransfer.nn.model import Model
from minitransfer.text import Tokenizer

WORDS = "the a this that film book song place was is felt seemed very quite rather not too long short old new loud quiet and but with of in".split()
QUICK = {"progress": False, "precision": "fp32", "log_every": 1, "best": None}


def rows(n: int, seed: int) -> list[dict]:
    draw = random.Random(seed)
    return [{"text": " ".join([*draw.choices(WORDS, k=draw.randint(3, 17)), draw.choice(["good", "lovely"] if i % 2 else ["awful", "dull"])]),
             "label": "pos" if i % 2 else "neg"} for i in range(n)]


TRAIN, HELD_OUT = rows(60, 1), rows(20, 2)


def tokenizer() -> Tokenizer:
    return Tokenizer.train([row["text"] for row in TRAIN], vocab_size=120, max_len=29, min_count=1)


def bert(tok: Tokenizer, head: str = "sequence", **changes) -> Model:
    sizes = {"vocab_size": tok.vocab_size, "d_model": 36, "n_layers": 3, "n_heads": 4, "d_ff": 59, "max_len": 29, "n_token_types": 2, "pooler": True, "dropout": 0.0}
    return Model(ModelConfig(**(sizes | changes)), head=head, labels=["neg", "pos"] if head in ("sequence", "token") else None, seed=1)


def gpt(tok: Tokenizer, head: str = "sequence", **changes) -> Model:
    decoder = {"causal": True, "norm_position": "pre", "embed_norm": False, "final_norm": True, "pooler": False, "n_token_types": 0}
    return bert(tok, head, **(decoder | changes))


def without_biases(model: Model) -> Model:
    """The same architecture with no bias below the head."""
    for name, module in model.named_modules():
        if not name.startswith("head") and isinstance(getattr(module, "bias", None), nn.Parameter):
            module.bias = None
    return model
