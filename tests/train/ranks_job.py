"""What one process and the processes of `torchrun` do alike: `torchrun --nproc-per-node 2 -m tests.train.ranks_job FOLDER case case ...`.

Each case leaves FOLDER/case-W.safetensors and FOLDER/case-W.json, W being the number of processes.
"""
from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from safetensors.torch import save_file

import minitransfer as mt
from minitransfer.cli import main
from minitransfer.nn.encoder_decoder import EncoderDecoder
from minitransfer.nn.model import Model
from minitransfer.objectives import Causal, Masked, Replaced, Span, with_sentinels
from minitransfer.objectives.replaced import smaller
from minitransfer.tasks.base import supervised
from minitransfer.tasks.named import named_task
from minitransfer.text import EncodedBatches, Tokenizer
from minitransfer.training import ranks, train

from ..adapt.small import HELD_OUT, TRAIN, rows
from ..adapt.small import bert as classifier
from .small import batches, bert, gpt, settings

TOK = Tokenizer.train([row["text"] for row in TRAIN], vocab_size=120, max_len=29, min_count=1)
TEXTS = [row["text"] for row in rows(150, 7)]                                    # of 4 to 18 words
QUICK = {"progress": False, "precision": "fp32", "micro_batches": 4, "lr": 1e-3, "log_every": 1}
STEPS = 12


def norms(history: list[dict]) -> dict[str, float]:
    """What Adam hides, which divides by the size of gradients."""
    return {f"{name} {one['step']}": one[name] for one in history for name in ("grad_norm", "loss", "targets", "tokens") if name in one}


def pretrained(folder: Path, **given) -> tuple[Model, dict]:
    """Dropout, masks drawn anew, rows with padding, four micro-batches a step with unequal numbers of targets, evaluations, the best weights."""
    model = bert(vocab_size=TOK.vocab_size)
    result = mt.pretrain(model, TOK, TEXTS, Masked(TOK, 0.3), length=17, batch_size=3, **(QUICK | {"steps": 7, "eval_every": 3} | given))
    return model, result.metrics | norms(result.history)


def finetuned(strategy: str, **given) -> tuple[Model, dict]:
    """59 rows in 20 batches: epochs end inside steps."""
    model = classifier(TOK, dropout=0.1)
    result = mt.finetune(model, TOK, train=TRAIN[:59], validation=HELD_OUT, strategy=strategy, batch_size=3, epochs=1.3, **(QUICK | given))
    return model, result.metrics | norms(result.history) | {"best": result.training.best["step"]}


def replaced(folder: Path) -> tuple[Model, dict]:
    model = bert(vocab_size=TOK.vocab_size, pooler=False, head_activation="gelu", classifier="dense", classifier_activation="gelu")
    model.set_head("replaced")
    objective = Replaced(TOK, Model(smaller(model.config, 0.4), "masked", seed=3))
    result = mt.pretrain(model, TOK, TEXTS, objective, length=17, batch_size=3, steps=3, **QUICK)
    return model, result.metrics


def corrupted(folder: Path) -> tuple[Model, dict]:
    tok = with_sentinels(Tokenizer.train(TEXTS, "byte_bpe", 300), 9)
    c = mt.ModelConfig(vocab_size=tok.vocab_size, d_model=20, n_layers=2, n_decoder_layers=1, n_heads=5, d_ff=29, max_len=31, n_token_types=0, pooler=False)
    model = EncoderDecoder(c, "seq2seq", seed=1)
    return model, mt.pretrain(model, tok, TEXTS, Span(tok), length=23, batch_size=3, steps=3, **QUICK).metrics


def measured(folder: Path) -> tuple[Model, dict]:
    """Held-out metrics of the same weights, of tasks that count in different ways."""
    words = [{"words": row["text"].split(), "tags": ["B-X" if word in ("good", "awful") else "O" for word in row["text"].split()]} for row in HELD_OUT]
    asked = [{"question": "what", "context": row["text"], "answers": [row["text"].split()[1]]} for row in HELD_OUT]
    asked = [row | {"answers": {"text": row["answers"], "answer_start": [row["context"].index(row["answers"][0])]}} for row in asked]
    pairs = [{"text": one["text"], "pair": other["text"], "label": i / 19} for i, (one, other) in enumerate(zip(HELD_OUT, TRAIN, strict=False))]
    found = {}
    for name, head, some in (("sequence", "sequence", HELD_OUT), ("token", "token", words), ("span", "span", asked), ("similarity", "embedding", pairs)):
        task, model = named_task(name, {}), classifier(TOK, head)
        labels = task.labels(some, [])
        model.set_head(head, labels or None, seed=1)
        if task.problem:
            model.head.use(task.problem)
        evaluate = task.evaluation(task.batches(some, TOK, labels, 3, None, 29, 0))
        with torch.no_grad():
            found |= {f"{name} {metric}": value for metric, value in evaluate(model.eval()).items()}
    return model, found


def seen(folder: Path) -> tuple[Model, dict]:
    """Which rows were trained on in which epoch, and how often gradients travelled: the model is smaller than a message."""
    ids, types = TOK.encode_rows([row["text"] for row in TRAIN[:31]], None, 29)
    stream, met = EncodedBatches(ids, types, torch.arange(31), TOK, 3), []

    class Numbered:
        def __len__(self) -> int:
            return len(stream)

        def __getitem__(self, k: int) -> dict:
            return stream[k] | {"epoch": torch.tensor(k // len(stream))}

    def objective(model: Model, batch: dict, generator: torch.Generator):
        met.extend((int(batch["epoch"]), row) for row in batch["labels"].tolist())
        return supervised(model, batch | {"labels": batch["labels"] % 2}, generator)

    model, own, sent = classifier(TOK), ranks.summed, []

    def counted(state, bucket):
        sent.append(bucket.index())
        return own(state, bucket)

    with patch.object(ranks, "summed", counted):
        train(model, Numbered(), objective, settings(6, micro_batches=4))
    return model, {"messages": len(sent), "seen": [one for all_of_rank in ranks.each(range(ranks.world()), lambda _: met) for one in all_of_rank]}


def interrupted(folder: Path, at: int, seed: int = 0, **changes) -> tuple[Model, dict]:
    """A run of 12 steps in FOLDER/run that the first rank is told to stop during step `at`."""
    model = gpt(seed)

    def stop(record: dict) -> None:
        if record["step"] == at and ranks.first():
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)            # it is heard, whatever the shell that started this says
    result = train(model, batches(11), Causal(), settings(STEPS, micro_batches=4, lr=1e-3, eval_every=3, best="loss lower", log_every=1, **changes),
                   out=folder / "run", resume=True, on_step=stop, evaluate=mt.training.held_out_loss(batches(3, seed=9), Causal()))
    signal.signal(signal.SIGINT, before)
    return model, {"stopped": result.stopped, "step": result.steps, "log": [one["step"] for one in result.history if "evaluation" not in one],
                   "evaluated": [one["evaluation"]["loss"] for one in result.history if "evaluation" in one]}


def sharded(folder: Path) -> tuple[Model, dict]:
    """Stopped in shards, and gone on with in replicas, from other weights."""
    place = folder / f"sharded-{ranks.world()}"
    if ranks.world() > 1:
        _, found = interrupted(place, 4, shard=True, checkpointing=True)
        assert found["stopped"] == "interrupted"
    return interrupted(place, 0, seed=5 if ranks.world() > 1 else 0)


def failing(folder: Path) -> tuple[Model, dict]:
    """The third batch of the second rank cannot be read."""
    class Broken(type(batches())):
        def __getitem__(self, k: int) -> dict:
            if k == 5:
                raise OSError("the disk of this machine is gone")
            return super().__getitem__(k)
    train(gpt(), Broken(batches(11).batches), Causal(), settings(STEPS, micro_batches=2))
    raise AssertionError("a batch that cannot be read was trained on")


def unequal(folder: Path) -> tuple[Model, dict]:
    train(gpt(), batches(11, seed=ranks.rank()), Causal(), settings(STEPS, micro_batches=2))
    raise AssertionError("two processes trained on two sets of data")


def slow(folder: Path) -> tuple[Model, dict]:
    """Steps that leave time for a signal from outside."""
    def wait(record: dict) -> None:
        (folder / f"rank{ranks.rank()}-{record['step']}").touch()
        time.sleep(0.2)
    train(gpt(), batches(11), Causal(), settings(300, micro_batches=2), out=folder / "run", on_step=wait)
    return gpt(), {}


def spoken(folder: Path) -> tuple[Model, dict]:
    """The command line: a run that works, then one with a mistake."""
    corpus = folder / "corpus.txt"
    if ranks.first():
        corpus.write_text("\n\n".join(TEXTS))
    words = ["pretrain", str(corpus), "d_model=8", "n_layers=1", "n_heads=2", "vocab_size=90", "length=16", "batch_size=4", "steps=2", "device=cpu", "log_every=1"]
    assert main([*words, "--out", str(folder / "verb"), "micro_batches=2"]) == 0
    assert main([*words, "--out", str(folder / "none"), "micro_batches=3"]) == 1
    ranks.failed.clear()                                                         # a verb ends its process with that; here other cases follow
    return gpt(), {}


CASES: dict[str, Callable[[Path], tuple[Model, dict]]] = {
    "masked": pretrained, "masked in shards": lambda folder: pretrained(folder, shard=True, out=folder / f"shards-{ranks.world()}", checkpointing=True),
    "full": lambda folder: finetuned("full"), "lora": lambda folder: finetuned("lora", checkpointing=True), "lora in shards": lambda folder: finetuned("lora", shard=True),
    "ulmfit": lambda folder: finetuned("ulmfit"), "replaced": replaced, "span": corrupted, "measured": measured, "seen": seen,
    "first leg": lambda folder: interrupted(folder, 4), "second leg": lambda folder: interrupted(folder, 7, seed=1), "third leg": lambda folder: interrupted(folder, 0, seed=2),
    "sharded": sharded, "failing": failing, "unequal": unequal, "slow": slow, "spoken": spoken}


def run(folder: Path, name: str) -> None:
    """One case on all processes there are, which all have to end with the same weights."""
    model, found = CASES[name](folder)
    weights = {key: p.detach().clone() for key, p in model.named_parameters()}
    for key, p in weights.items():
        if ranks.world() > 1:
            first = p.clone()
            dist.broadcast(first, 0)
            assert torch.equal(first, p), (name, key)
    if ranks.first():
        save_file({key: p.contiguous() for key, p in weights.items()}, folder / f"{name}-{ranks.world()}.safetensors")
        (folder / f"{name}-{ranks.world()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    ranks.join()
    for case in sys.argv[2:]:
        began = time.perf_counter()
        run(Path(sys.argv[1]), case)
        print(f"{case}: {time.perf_counter() - began:.1f} s", file=sys.stderr)
