"""Which way to adapt a model: the "when to use what" tables of articles on transfer learning as data, and a run of the best two that says whether they are right."""
from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..config_parts import meant
from ..nn.model import Model
from ..tasks import finetune, predict
from ..tasks.metrics import mcnemar
from ..tasks.named import TASKS, named_task
from ..text import Tokenizer, read_rows, sample_rows
from ..text.readers import column

SIZES, SIZES_TOO = "strategies by data size, first table", "strategies by data size, second table"      # two tables of one article, which do not agree
SHOTS = "zero-shot to full fine-tuning, table"
OURS = "measured: minitransfer bench transfer"
FULL_BYTES, LORA_BYTES = 16, 4      # a parameter in fp32: weight, gradient and two moments; the weight alone
ROOM = 0.7                          # of a card: activations take the rest
HELD_OUT = 5                        # one row in so many, if no validation rows are given


@dataclass(frozen=True)
class Row:
    """A strategy, the numbers of labelled rows it is said to be for, [low, high), why, and who says so."""

    strategy: str
    low: int
    high: int | float
    why: str
    source: str


# of equal standing, what stands first is recommended first; no figure in here was measured by this project unless it says so
TABLE = (
    Row("zero_shot", 0, 2, "labels are scored as words, nothing is trained: 70 to 85 % of what fine-tuning reaches", SHOTS),
    Row("in_context", 2, 10, "2 to 10 examples in the prompt, nothing is trained: 80 to 90 % of what fine-tuning reaches", SHOTS),
    Row("features", 2, 500, "below 500 labels a frozen body cannot be overfitted, and it has to run only once. Look at baseline(\"logistic\", ...) first: on 2,000 rows of sst2 a "
        f"head on the first token came to 61.0 %, the mean of the tokens (extract_features) to 75.3 and TF-IDF to 74.5 ({OURS})", SIZES),
    Row("features", 2, 1000, "below 1,000 labels train a head on a frozen body", SIZES_TOO),
    Row("last:2", 500, 5000, "from 500 to 5,000 labels tune the top blocks with the head", SIZES),
    Row("discriminative", 1000, 10000, "between, let every layer train at a rate of its own, lower layers slower", SIZES_TOO),
    Row("full", 5000, math.inf, "from 5,000 labels on everything can train", SIZES),
    Row("full", 10000, math.inf, "from 10,000 labels on everything can train", SIZES_TOO),
    Row("ulmfit", 10, 1000, f"gradual unfreezing with a rate for each layer was made for 100 labels and more; on 100 rows of imdb it came to 59.9 %, TF-IDF to 68.4 ({OURS})",
        "Howard & Ruder 2018"),
    Row("lora", 100, math.inf, "low-rank changes train a hundredth of the weights and came as far as full tuning on 2,000 rows of sst2, 81.8 % and 81.4; on 100 rows of imdb to "
        f"52.3 %, and TF-IDF to 68.4 ({OURS})", "Hu et al. 2021"))
EVERYTHING = ("full", "discriminative", "ulmfit")       # strategies with a gradient and two moments for every weight

# task -> the body, the head, and settings that are not those of `finetune`
WRITES = {"generation": ("a decoder", "causal"), "summarisation": ("an encoder-decoder", "seq2seq"), "translation": ("an encoder-decoder", "seq2seq")}
BODIES = {"similarity": "a sentence encoder", "token": "an encoder with cased tokens", **dict.fromkeys(("sequence", "multilabel", "regression", "span"), "an encoder")}
SETTINGS: dict[str, dict[str, Any]] = {"token": {"lr": 3e-5, "batch_size": 32, "epochs": 4}}      # of full tuning, as the articles give them
USUAL = {"lr": 3e-5, "batch_size": 32, "epochs": 3}                                                # 2e-5 to 5e-5, 16 to 32, 3 to 4


@dataclass(frozen=True)
class Advice:
    """A strategy by the name that `finetune` takes ("zero_shot" and "in_context" are `label_scores`), settings that go with it, and why."""

    strategy: str
    settings: dict[str, Any]
    why: tuple[str, ...]

    def __str__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        return f"{self.strategy}{f' ({given})' if given else ''}\n" + "\n".join(f"     {one}" for one in self.why)


@dataclass(frozen=True)
class Proof:
    """What the two did on the same rows: a metric with the ends of its 95 % interval each, and how likely so much of a difference is between equals."""

    metric: str
    trained: int
    held_out: int
    found: dict[str, tuple[float, float, float]]        # strategy -> value, low, high
    p: float | None                                      # McNemar's, where each row is right or wrong

    @property
    def better(self) -> str | None:
        """The strategy that did better; None: the difference may be luck. Without p it takes intervals that do not overlap."""
        (a, one), (b, other) = self.found.items()
        apart = one[1] > other[2] or other[1] > one[2] if self.p is None else self.p < 0.05
        return None if not apart or one[0] == other[0] else a if one[0] > other[0] else b

    def __str__(self) -> str:
        readings = "; ".join(f"{name} {value:.4f} (95 %: {low:.4f} to {high:.4f})" for name, (value, low, high) in self.found.items())
        why = "" if self.p is None else f", p = {self.p:.2g}"
        return (f"tried on {self.trained} rows, {self.metric} of {self.held_out} held-out rows: {readings}\n"
                + (f"{self.better} was better here{why}" if self.better else f"no difference can be told from so few rows{why}"))


@dataclass(frozen=True)
class Recommendation:
    """What to do, best first; prints as a list with its reasons. `before`: what comes ahead of the task."""

    task: str
    labels: int
    body: str
    head: str
    advice: tuple[Advice, ...]
    before: str = ""
    proof: Proof | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"better": None if self.proof is None else self.proof.better}

    def __str__(self) -> str:
        lines = [f"{self.task}, {self.labels:,} labels: {self.body}, head={self.head!r}", *([f"first: {self.before}"] if self.before else []),
                 *(f"{i}. {one}" for i, one in enumerate(self.advice, 1)), *([str(self.proof)] if self.proof is not None else [])]
        return "\n".join(lines)


def recommend(task: str = "sequence", labels: int | None = None, *, unlabelled_mb: int | float = 0, gpu_gb: int | float | None = None, parameters: int | None = None,
              prove: bool = False, model: Model | None = None, tok: Tokenizer | None = None, train: Any = None, validation: Any = None, rows: int = 200, seed: int = 0,
              **settings: Any) -> Recommendation:
    """Which strategy the articles would choose, with their reasons, and whether it is the better one on the user's rows.

    A strategy stands the higher the more tables name it for so many labels; where two tables disagree the answer has both.

    Args:    task: of `finetune`, or "generation", "summarisation", "translation". labels: labelled rows; None: those of train.
             unlabelled_mb: megabytes of text of the domain. gpu_gb: of the card; parameters: of the model, None: those of `model`.
             prove: tune the first two on `rows` rows of train (each on a copy of the model) and measure both on validation, or on a fifth of them; settings: of
             `finetune`, for both.
    Raises:  ValueError for a task or a number that does not exist, and for a proof without model, tok and train, or of what is not trained.
    """
    data = None if train is None else read_rows(train)
    labels = len(data) if labels is None and data is not None else labels
    body, head = place_of(task)
    for name, value in (("labels", labels), ("unlabelled_mb", unlabelled_mb), ("gpu_gb", gpu_gb), ("parameters", parameters)):
        counts = name in ("labels", "parameters")
        fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf and not (counts and value != int(value))
        if value is not None and not fits:
            raise ValueError(f"{name}={value!r}; it is a {'whole ' if counts else ''}number, 0 or more: give one, or leave it out")
    if labels is None:
        raise ValueError(f"labels={labels}, unlabelled_mb={unlabelled_mb}; advice depends on how many rows have a label: give labels=, 0 or more, or train=")
    parameters = sum(p.numel() for p in model.parameters()) if parameters is None and model is not None else parameters
    found = Recommendation(task, labels, body, head, tuple(chosen(task, labels, gpu_gb, parameters)), adapting(unlabelled_mb))
    if not prove:
        return found
    if model is None or tok is None or data is None:
        raise ValueError("prove=True without model, tok or train; the strategies are tried on rows: give all three")
    return replace(found, proof=proved(found, model, tok, data, None if validation is None else read_rows(validation), rows, seed, settings))


def place_of(task: str) -> tuple[str, str]:
    """The kind of body and the head of a task. Source: table of tasks, architectures and heads."""
    if task in WRITES:
        return WRITES[task]
    if task not in TASKS:
        raise ValueError(f"task={task!r}{meant(task, (*TASKS, *WRITES))}; there are {', '.join((*TASKS, *WRITES))}: choose one")
    return BODIES[task], TASKS[task].head


def chosen(task: str, labels: int, gpu_gb: int | float | None, parameters: int | None) -> list[Advice]:
    """Every strategy whose rows hold for so many labels, those that more tables name first."""
    rows = [row for row in TABLE if row.low <= labels < row.high]
    if task in WRITES:
        rows = [row for row in rows if row.strategy in ("zero_shot", "in_context", "full", "lora")] or [row for row in TABLE if row.strategy == "lora"]
    elif task != "sequence":
        rows = [row for row in rows if row.strategy not in ("zero_shot", "in_context")] or [row for row in TABLE if row.strategy == "features"]
    short = gpu_gb is not None and parameters is not None and FULL_BYTES * parameters > ROOM * gpu_gb * 1e9
    note = "" if not short else (f"training all of {parameters:,} weights takes {FULL_BYTES} bytes each, more than {ROOM:.0%} of {gpu_gb:g} GB"
                                 + ("; even the weights alone need lora(base=\"nf4\")" if LORA_BYTES * (parameters or 0) > ROOM * (gpu_gb or 0) * 1e9 else ""))
    if short:
        rows = [row for row in rows if row.strategy not in EVERYTHING] or [row for row in TABLE if row.strategy == "lora"]
        rows.sort(key=lambda row: row.strategy != "lora")
    names = list(dict.fromkeys(row.strategy for row in rows))
    if not short:
        names.sort(key=lambda name: -sum(row.strategy == name for row in rows))
    return [Advice(name, SETTINGS.get(task, USUAL) if name == "full" else {}, (*(f"{row.why} [{row.source}]" for row in rows if row.strategy == name),
                                                                              *([note] if note and name == "lora" else []))) for name in names]


def adapting(mb: int | float) -> str:
    """What to do with text of the domain that has no labels."""
    if mb >= 100:
        return (f"adapt(model, tok, corpus, lr=1e-4, epochs=1) on the {mb:g} MB of text: from 100 MB on it is said to bring 3 to 8 points [Gururangan et al. 2020; how-to on "
                "domain-adaptive pretraining]")
    return f"adapt(model, tok, texts) on the {mb:g} MB of text, if they are texts of the task itself [Gururangan et al. 2020, task-adaptive]" if mb else ""


def proved(found: Recommendation, model: Model, tok: Tokenizer, data: list[dict], validation: list[dict] | None, rows: int, seed: int, settings: dict[str, Any]) -> Proof:
    """The first two strategies that train, on the same rows from the same weights."""
    names = [one.strategy for one in found.advice if one.strategy not in ("zero_shot", "in_context")][:2]
    if found.task in WRITES or len(names) < 2:
        raise ValueError(f"prove=True for task {found.task!r} and {found.labels} labels; two strategies are compared by tuning them: give more rows with labels, and a task of "
                         f"finetune ({', '.join(TASKS)})")
    task = named_task(found.task, {})
    by = "label" if found.task == "sequence" else None
    some = sample_rows(data, min(rows, len(data)), seed, by)
    if validation is None:
        held = sample_rows(some, max(1, len(some) // HELD_OUT), seed, by)
        some, validation = [row for row in some if all(row is not one for one in held)], held
    metric, results, right = task.best.split()[0], {}, []
    for name in names:
        tuned = copy.deepcopy(model)
        results[name] = finetune(tuned, tok, task, train=some, validation=validation, strategy=name, seed=seed, **settings).metrics
        if found.task == "sequence":
            answers = predict(tuned, tok, column(validation, "text"))
            right.append([one.label == str(row["label"]) for one, row in zip(answers, validation, strict=True)])
    found_by = {name: (one[metric], one[f"{metric}_low"], one[f"{metric}_high"]) for name, one in results.items()}
    return Proof(metric, len(some), len(validation), found_by, mcnemar(*right) if right else None)
