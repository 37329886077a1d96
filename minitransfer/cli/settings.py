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
    "objective": Key("str", "masked", "masked (a bidirectional model), causal, replaced (as ELECTRA: a generator beside it), span (an encoder-decoder as T5), denoise (as BART)"),
    "generator": Key("float", 0.25, "replaced: the width of the generator, as a share of the model's"),
    "tokenizer": Key("str | None", None, f"a folder, name or hub id, or one to train: {', '.join(KINDS)}; none: wordpiece, or byte_bpe if causal or span"),
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
    "objective": Key("str | None", None, "masked, causal, span or denoise; none: that of the model"),
    "mix": Key("float", 0.0, "the share of the rows that come from `general`, from 0 (it is only measured) to below 1"),
    "strategy": Key("str | None", None, "what trains: full (as none), last:2, discriminative, bitfit, lora, lora:16 (of rank 16), ia3, adapter, prefix; out/model "
                                        "is then the adapter if there is one"),
    **RUN}
FINETUNE = {
    **MODEL,
    "train": Key("str | None", None, "rows with labels: .tsv, .csv, .jsonl, .conll, .conllu or SQuAD's .json (also .gz)"),
    "validation": Key("str | None", None, "rows to measure on during training; the weights that do best on them are kept"),
    "columns": Key("list[str] | None", None, "names for a .tsv or .csv whose first line is no line of names: columns=text,label"),
    "task": Key("str", "sequence", "sequence (one label a text), multilabel (a list of labels), regression (a number), token (one label a word), span (an answer in a "
                                   "text) or similarity (how alike two texts are)"),
    "strategy": Key("str", "full", "what trains: full, head, features (as head, the body runs once), last:2 (the head and the top 2 blocks), discriminative, ulmfit, "
                                   "ulmfit:1 (after one pass of language modelling over the texts), bitfit, lora, lora:16 (of rank 16), ia3, adapter, prefix, soft_prompt"),
    "text": Key("str | None", None, "the column of the text, the words or the question; none: text, words or question, as the task calls it"),
    "pair": Key("str | None", None, "the column of a second text, or of the context; none: pair (similarity), context (span), else there is none"),
    "label": Key("str | None", None, "the column of the label, the number, the tags or the answers; none: label, tags or answers"),
    "batch_size": Key("int | None", None, "rows per batch; none: 32, or as `max_tokens` allows"),
    "max_tokens": Key("int | None", None, "tokens per batch, padding included, instead of batch_size"),
    "max_length": Key("int | None", None, "longer texts are cut after so many tokens; none: what the model can read"),
    "seeds": Key("int | None", None, "so many runs, each with a seed of its own, in out/seed-0, out/seed-1, ...; reports mean and deviation"),
    "against": Key("str | None", None, "with seeds: the out folder of such runs of another configuration, for a paired test"),
    **RUN}
OF_TASKS = {
    "threshold": Key("float | None", None, "multilabel: the probability from which a label is answered [0.5]; span: what no answer has to be ahead by [0]"),
    "highest": Key("float | None", None, "similarity: the score that means the same, 5 for scores from 0 to 5 [1]"),
    "pieces": Key("str | None", None, "token: a word's label stands at its first piece, or at all [first]"),
    "broken": Key("str | None", None, "token: tags that break IOB2: repair or refuse [repair]"),
    "no_answer": Key("bool | None", None, "span: some questions have no answer, as in SQuAD 2.0 [no]"),
    "missing": Key("str | None", None, "span: rows whose answer is not in the context where it says: refuse or skip [refuse]"),
    "stride": Key("int | None", None, "span: tokens that two windows of a long context share [128]")}
TRAINING = {
    "pretrain": training(epochs=1, eval_every=500, best="loss lower"),
    "adapt": training(epochs=1, eval_every=500, best="loss lower", lr=1e-4),
    "finetune": training(epochs=3, best="accuracy higher", lr=5e-5)}
