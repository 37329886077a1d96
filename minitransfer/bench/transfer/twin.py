"""The twin: the same rows and settings through the Trainer of transformers, the adapters of peft, the trainer of sentence-transformers.

Its own defaults everywhere else: fp32, batches in random order padded to their longest row, AdamW with clipping at 1.0, linear decay.
"""
from __future__ import annotations

import tempfile
from typing import Any

import numpy as np

from ...tasks.squad import SpanScores
from .sets import Set, body

RATES = {"lora": 1e-3}


def run(one: Set, method: str, seed: int, quick: bool) -> dict[str, Any]:
    """One run of the twin; the metric is in percent."""
    rows, held_out = one.read(quick)
    return run_rows(one, rows, held_out, method, seed, 1 if quick else one.epochs)


def run_rows(one: Set, rows: list[dict], held_out: list[dict], method: str, seed: int, epochs: int) -> dict[str, Any]:
    import transformers
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    transformers.set_seed(seed)
    kind = {"sequence": sequence, "token": token, "span": span, "similarity": similarity}[one.task.name]
    return kind(one, rows, held_out, method, seed, epochs)


def arguments(one: Set, folder: str, rows: int, lr: float, seed: int, epochs: int, **more: Any) -> dict[str, Any]:
    return {"output_dir": folder, "num_train_epochs": epochs, "per_device_train_batch_size": one.batch_size, "per_device_eval_batch_size": 32, "learning_rate": lr,
            "warmup_steps": one.warmup(rows), "seed": seed, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no", "use_cpu": True, **more}


def trained(one: Set, model: Any, tok: Any, train: Any, seed: int, epochs: int, lr: float, collator: Any = None, **more: Any) -> tuple[Any, dict[str, Any]]:
    """The Trainer after training, and what it cost."""
    import transformers
    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(**arguments(one, folder, len(train), lr, seed, epochs, **more))
        trainer = transformers.Trainer(model, settings, train_dataset=train, processing_class=tok, data_collator=collator)
        seconds = trainer.train().metrics["train_runtime"]
    return trainer, {"seconds": seconds, "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad), "precision": "fp32"}


def adapted(model: Any, method: str, head: str) -> Any:
    """The model with what the method inserts and freezes: LoRA on every linear layer of the blocks, as our strategy has it."""
    import peft
    if method == "full":
        return model
    return peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules=r".*encoder\.layer\.\d+\..*(query|key|value|dense)", modules_to_save=[head]))


def sequence(one: Set, rows: list[dict], held_out: list[dict], method: str, seed: int, epochs: int) -> dict[str, Any]:
    import transformers
    from datasets import Dataset
    from sklearn.metrics import accuracy_score, f1_score
    labels = one.task.labels(rows, held_out)
    tok = transformers.AutoTokenizer.from_pretrained(body())
    model = transformers.AutoModelForSequenceClassification.from_pretrained(body(), num_labels=len(labels))

    def encoded(part: list[dict]) -> Dataset:
        columns = tok([row[one.task.text] for row in part], truncation=True, max_length=one.max_length)
        return Dataset.from_dict({**columns, "label": [labels.index(str(row[one.task.label])) for row in part]})
    trainer, cost = trained(one, adapted(model, method, "classifier"), tok, encoded(rows), seed, epochs, RATES.get(method, one.lr))
    found = trainer.predict(encoded(held_out))
    answers = found.predictions.argmax(-1)
    scores = {"accuracy": accuracy_score(found.label_ids, answers), "f1": f1_score(found.label_ids, answers, average="macro")}
    return {"value": 100 * scores[one.metric], "also": scores} | cost


def token(one: Set, rows: list[dict], held_out: list[dict], method: str, seed: int, epochs: int) -> dict[str, Any]:
    """Labels at the first piece of each word; strict entity F1 by seqeval, or accuracy over words."""
    import transformers
    from datasets import Dataset
    from seqeval.metrics import f1_score
    from seqeval.scheme import IOB2
    labels = one.task.labels(rows, held_out)
    tok = transformers.AutoTokenizer.from_pretrained(body())
    model = transformers.AutoModelForTokenClassification.from_pretrained(body(), num_labels=len(labels))

    def encoded(part: list[dict]) -> Dataset:
        columns = tok([row["words"] for row in part], is_split_into_words=True, truncation=True, max_length=one.max_length)
        first = []
        for i, row in enumerate(part):
            words = columns.word_ids(i)
            first.append([labels.index(row["tags"][w]) if w is not None and w != before else -100 for before, w in zip([None, *words], words, strict=False)])
        return Dataset.from_dict({**columns, "labels": first})
    trainer, cost = trained(one, adapted(model, method, "classifier"), tok, encoded(rows), seed, epochs, RATES.get(method, one.lr),
                            transformers.DataCollatorForTokenClassification(tok))
    found = trainer.predict(encoded(held_out))
    truth = [[labels[t] for t in row if t != -100] for row in found.label_ids]
    answer = [[labels[a] for a, t in zip(many, row, strict=True) if t != -100] for many, row in zip(found.predictions.argmax(-1), found.label_ids, strict=True)]
    right = [t == a for many, row in zip(truth, answer, strict=True) for t, a in zip(many, row, strict=True)]
    value = float(np.mean(right)) if one.metric == "accuracy" else f1_score(truth, answer, mode="strict", scheme=IOB2)
    return {"value": 100 * value} | cost


def span(one: Set, rows: list[dict], held_out: list[dict], method: str, seed: int, epochs: int) -> dict[str, Any]:
    """Overlapping windows of the tokenizer's own, the best span of all windows; EM and F1 are the task's own, which tests compare with the official definitions."""
    import transformers
    from datasets import Dataset
    tok = transformers.AutoTokenizer.from_pretrained(body())
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(body())

    def encoded(part: list[dict], targets: bool) -> tuple[Dataset, list[dict[str, Any]]]:
        e = tok([row["question"] for row in part], [row["context"] for row in part], truncation="only_second", max_length=one.max_length, stride=one.task.stride,
                return_overflowing_tokens=True, return_offsets_mapping=True)
        columns: dict[str, list] = {"input_ids": e["input_ids"], "attention_mask": e["attention_mask"], "token_type_ids": e["token_type_ids"]}
        about, starts, ends = [], [], []
        for i, number in enumerate(e["overflow_to_sample_mapping"]):
            here = [k for k, text in enumerate(e.sequence_ids(i)) if text == 1]
            offsets = e["offset_mapping"][i]
            about.append({"row": number, "first": here[0], "offsets": [offsets[k] for k in here]})
            begin = part[number]["answers"]["answer_start"][0]
            inside = [k for k in here if offsets[k][1] > begin and offsets[k][0] < begin + len(part[number]["answers"]["text"][0])]
            whole = inside and offsets[inside[0]][0] <= begin and offsets[inside[-1]][1] >= begin + len(part[number]["answers"]["text"][0])
            starts.append(inside[0] if whole else 0)
            ends.append(inside[-1] if whole else 0)
        return Dataset.from_dict({**columns, **({"start_positions": starts, "end_positions": ends} if targets else {})}), about
    train, _ = encoded(rows, True)
    trainer, cost = trained(one, adapted(model, method, "qa_outputs"), tok, train, seed, epochs, RATES.get(method, one.lr), transformers.DataCollatorWithPadding(tok))
    asked, about = encoded(held_out, False)
    start, end = (np.asarray(part) for part in trainer.predict(asked).predictions[:2])
    best: dict[int, tuple[float, str]] = {}
    for i, window in enumerate(about):
        n, first = len(window["offsets"]), window["first"]
        both = start[i, first:first + n, None] + end[i, None, first:first + n]
        allowed = np.tril(np.triu(np.ones((n, n), bool)), one.task.max_answer - 1)
        a, b = np.unravel_index(np.where(allowed, both, -np.inf).argmax(), both.shape)
        text = held_out[window["row"]]["context"][window["offsets"][a][0]:window["offsets"][b][1]]
        best[window["row"]] = max(best.get(window["row"], (-np.inf, "")), (float(both[a, b]), text))
    sums = SpanScores(no_answer=False)
    for i, row in enumerate(held_out):
        sums.add(best[i][1], row["answers"]["text"])
    found = sums.metrics()
    return {"value": 100 * found["f1"], "also": {"f1": found["f1"], "exact": found["exact"]}} | cost


def similarity(one: Set, rows: list[dict], held_out: list[dict], method: str, seed: int, epochs: int) -> dict[str, Any]:
    """sentence-transformers: CosineSimilarityLoss, Spearman of the cosines."""
    import transformers
    from datasets import Dataset
    from scipy.stats import spearmanr
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.losses import CosineSimilarityLoss
    from sentence_transformers.util import pairwise_cos_sim
    model, cost = SentenceTransformer(str(body()), device="cpu"), {}
    model.max_seq_length = one.max_length
    names = one.task.text, one.task.pair
    if method != "zero-shot":
        train = Dataset.from_dict({**{name: [row[name] for row in rows] for name in names}, "label": [float(row[one.task.label]) / one.task.highest for row in rows]})
        with tempfile.TemporaryDirectory() as folder:
            settings = SentenceTransformerTrainingArguments(**arguments(one, folder, len(rows), one.lr, seed, epochs))
            trainer = SentenceTransformerTrainer(model, settings, train_dataset=train, loss=CosineSimilarityLoss(model))
            trainer.remove_callback(transformers.PrinterCallback)
            seconds = trainer.train().metrics["train_runtime"]
        cost = {"seconds": seconds, "trainable": sum(p.numel() for p in model.parameters()), "precision": "fp32"}
    first, second = (model.encode([row[name] for row in held_out], convert_to_tensor=True, show_progress_bar=False) for name in names)
    return {"value": 100 * float(spearmanr(pairwise_cos_sim(first, second).cpu(), [float(row[one.task.label]) for row in held_out]).statistic)} | cost
