"""What the verbs that train can be told, by name. The settings of a run come from TrainSettings itself."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..training import TrainSettings
from .keys import Key, keys_of

KINDS = ("wordpiece", "byte_bpe", "bpe", "unigram", "character")        # of tokenizers that can be trained
TRAIN = keys_of(TrainSettings)


def training(**defaults: Any) -> dict[str, Key]:
    """The settings of TrainSettings with the defaults that a verb's function puts in their place."""
    return TRAIN | {name: replace(TRAIN[name], default=value) for name, value in defaults.items()}


MODEL = {"model": Key("str | None", None, "the pretrained model: a folder, a bundled name or a hub id")}
RUN = {
    "out": Key("str | None", None, "the folder of the run; out/model is then the result"),
    "resume": Key("bool", False, "go on from the last save in `out`"),
    "device": Key("str", "auto", "cpu, cuda, or auto: a GPU if there is one")}
CORPUS = {
    "corpus": Key("str | None", None, "a .txt or .jsonl file (also .gz), a folder of them, pydoc, samples/general.txt, or a data set of the hub"),
    "validation": Key("str | None", None, "a corpus to measure on; none: 1 % of the rows is held out"),
    "general": Key("str | None", None, "other text whose loss is reported beside"),
    "field": Key("str", "text", "of JSON lines and data sets: where the text is"),
    "documents": Key("str", "blank_line", "what one document of a .txt file is: blank_line, line or file"),
    "length": Key("int", 128, "tokens per row"),
    "batch_size": Key("int", 32, "rows per batch")}
STRATEGIES = ("full, head, features (as head, the body runs once), last:2 (the head and the top 2 blocks), discriminative, ulmfit, bitfit, lora, "
              "lora:16 (of rank 16), ia3, adapter, prefix, soft_prompt")
PRETRAIN = {
    **CORPUS,
    "objective": Key("str", "masked", "masked (a bidirectional model) or causal"),
    "tokenizer": Key("str | None", None, f"a folder, name or hub id, or one to train: {', '.join(KINDS)}; none: wordpiece, or byte_bpe if causal"),
    **RUN}
SHAPE = {
    "vocab_size": Key("int", 8192, "tokens of a tokenizer that is trained"),
    "d_model": Key("int", 256, "width"),
    "n_layers": Key("int", 4, "blocks"),
    "n_heads": Key("int", 4, "attention heads"),
    "d_ff": Key("int | None", None, "width inside a block; none: 4 times d_model"),
    "max_len": Key("int | None", None, "tokens the model can read at most; none: as `length`"),
    "dropout": Key("float", 0.1, "on the output of every sub-layer")}
ADAPT = {
    **MODEL, **CORPUS,
    "objective": Key("str | None", None, "masked or causal; none: that of the model"),
    "mix": Key("float", 0.0, "the share of the rows that come from `general`, from 0 (it is only measured) to below 1"),
    "strategy": Key("str | None", None, "what trains: full (as none), last:2, discriminative, bitfit, lora, lora:16 (of rank 16), ia3, adapter, prefix; out/model "
                                        "is then the adapter if there is one"),
    **RUN}
FINETUNE = {
    **MODEL,
    "train": Key("str | None", None, "rows with labels: .tsv, .csv, .jsonl, .conll, .conllu or SQuAD's .json (also .gz)"),
    "validation": Key("str | None", None, "rows to measure on during training"),
    "task": Key("str", "sequence", "sequence (one label a text), multilabel (a list of labels), regression (a number), token (one label a word) or span (an answer in a text)"),
    "strategy": Key("str", "full", f"what trains: {STRATEGIES}"),
    "text": Key("str", "text", "the column of the text"),
    "pair": Key("str | None", None, "the column of a second text"),
    "label": Key("str", "label", "the column of the label"),
    "batch_size": Key("int | None", None, "rows per batch; none: 32, or as `max_tokens` allows"),
    "max_tokens": Key("int | None", None, "tokens per batch, padding included, instead of batch_size"),
    "max_length": Key("int | None", None, "longer texts are cut after so many tokens; none: what the model can read"),
    **RUN}
TRAINING = {
    "pretrain": training(epochs=1, eval_every=500, best="loss lower"),
    "adapt": training(epochs=1, eval_every=500, best="loss lower", lr=1e-4),
    "finetune": training(epochs=3, best="accuracy higher", lr=5e-5)}
