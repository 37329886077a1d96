"""`minitransfer demo`: what pretraining is worth, and what each way to tune costs, measured on this machine in a few minutes.

The same reviews, the same number of passes over them and the same test rows for every way; only what trains and its learning rate differ.
"""
from __future__ import annotations

import ctypes
import gc
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from . import samples
from .generate import fill, generate
from .nn.model import Model
from .report import Html, Points, element, facts, interval_chart, key, line_chart, page, paragraph, prediction_case, section, table, write_page
from .tasks import Prediction, finetune, predict
from .tasks.metrics import wilson
from .text import Tokenizer, read_rows, sample_rows
from .training.log import package_versions
from .training.memory import peak_memory, reset_peak

FILLS = ("She opened the [MASK] and went in.", "The food was [MASK] and we will come back.", "He was born in the [MASK] of London.")
PROMPTS = ("The old man", "In the morning", "The city is")
BATCH, NEW_TOKENS = 16, 24


@dataclass(frozen=True)
class Way:
    """One way to get a classifier."""

    name: str
    strategy: str
    lr: float
    pretrained: bool = True


# learning rates: the usual ones for each way at this size; chosen on the validation split, never on the test split
WAYS = (Way("random start, full", "full", 5e-4, pretrained=False), Way("head only", "head", 5e-3), Way("LoRA", "lora", 2e-3), Way("full", "full", 2e-4))


@dataclass(frozen=True)
class Outcome:
    """What one way gave. `memory`: bytes at the peak above what the process held before (None: cannot be measured here)."""

    name: str
    trainable: int
    total: int
    seconds: float
    memory: int | None
    correct: int
    rows: int
    losses: Points = ()                 # (epoch, training loss)
    validation: Points = ()             # (epoch, accuracy in %)
    predictions: Sequence[Prediction] = ()

    @property
    def accuracy(self) -> float:
        return self.correct / self.rows

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.correct, self.rows)

    def cells(self) -> tuple[str, ...]:
        low, high = self.interval
        memory = "?" if self.memory is None else f"{self.memory / 1e6:,.0f} MB"
        return (self.name, f"{self.trainable:,}", f"{100 * self.trainable / self.total:.2f} %", f"{self.seconds:.1f} s", memory,
                f"{100 * self.accuracy:.1f} % ({100 * low:.1f} to {100 * high:.1f})")


COLUMNS = ("strategy", "trainable", "share", "training", "memory", "accuracy on test (95 % interval)")


@dataclass(frozen=True)
class DemoResult:
    """Everything the demo measured. Prints as its table and lines."""

    outcomes: list[Outcome]
    setting: dict[str, object]
    filled: list[tuple[str, str]] = field(default_factory=list)
    generated: list[tuple[str, str]] = field(default_factory=list)
    report: Path | None = None

    def __str__(self) -> str:
        rows = [COLUMNS, *(one.cells() for one in self.outcomes)]
        width = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
        lines = ["  ".join([f"{row[0]:<{width[0]}}", *(f"{cell:>{w}}" for cell, w in zip(row[1:], width[1:], strict=True))]) for row in rows]
        for title, pairs in (("fill", self.filled), ("generate", self.generated)):
            lines += [f"\n{title}:", *(f"  {a}  ->  {b}" for a, b in pairs)] if pairs else []
        return "\n".join([*lines, *([f"\nreport: {self.report}"] if self.report else [])])


def tf_idf(train: list[dict], validation: list[dict], test: list[dict]) -> Outcome | None:
    """The baseline without a network: weighted counts of words and word pairs, and logistic regression. None without scikit-learn."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    except ImportError:
        return None
    before = start_measuring(torch.device("cpu"))
    began = time.perf_counter()
    classifier = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10.0, max_iter=1000))
    classifier.fit([row["text"] for row in train], [row["label"] for row in train])
    seconds = time.perf_counter() - began
    answers = classifier.predict([row["text"] for row in test])
    n = classifier[-1].coef_.size + classifier[-1].intercept_.size
    return Outcome("TF-IDF + logistic", n, n, seconds, used_since(before, torch.device("cpu")), sum(a == row["label"] for a, row in zip(answers, test, strict=True)), len(test))


def start_measuring(device: torch.device) -> int | None:
    """Give freed memory back, start the peak anew, and return what is held: bytes of tensors on a GPU, of the process on a CPU (None: not Linux)."""
    gc.collect()
    if device.type == "cuda":
        reset_peak(device)
        return torch.cuda.memory_allocated(device)
    if not (status := Path("/proc/self/status")).exists():
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)      # glibc's; training told it to keep what is freed, and each way shall start from the same
    if trim is not None:
        trim(0)
    reset_peak(device)
    return next((1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS")), None)


def used_since(before: int | None, device: torch.device) -> int | None:
    return None if before is None else max(0, peak_memory(device) - before)


def tune(way: Way, source: str, tok: Tokenizer, train: list[dict], validation: list[dict], test: list[dict], epochs: int, seed: int, device: torch.device) -> Outcome:
    labels = sorted({row["label"] for row in train})
    before = start_measuring(device)
    model = Model.from_pretrained(source, head="sequence", labels=labels, seed=seed)
    if not way.pretrained:
        model = Model(model.config, "sequence", labels, seed=seed)
    result = finetune(model.to(device), tok, "sequence", train=train, validation=validation, strategy=way.strategy, epochs=epochs, lr=way.lr, seed=seed, batch_size=BATCH,
                      best=None, log_every=4, progress=False)
    memory = used_since(before, device)
    answers = predict(result.model, tok, [row["text"] for row in test])
    per_epoch = max(one["step"] for one in result.history) / epochs
    return Outcome(way.name, result.report.total.trainable, result.report.total.parameters, result.seconds, memory,
                   sum(a.label == row["label"] for a, row in zip(answers, test, strict=True)), len(test),
                   [(one["step"] / per_epoch, one["loss"]) for one in result.history if "loss" in one],
                   [(one["step"] / per_epoch, 100 * one["evaluation"]["accuracy"]) for one in result.history if "evaluation" in one], answers)


def fill_lines(source: str, device: torch.device) -> list[tuple[str, str]]:
    model, tok = Model.from_pretrained(source).to(device), Tokenizer.from_pretrained(source)
    if not model.head_name.startswith("masked") or tok.mask_id is None:
        return []
    mask = tok.tokens([tok.mask_id])[0]
    return [(text, ", ".join(f"“{token}” {p:.0%}" for token, p in fill(model, tok, text.replace("[MASK]", mask), 4)[0])) for text in FILLS]


def generate_lines(source: str, seed: int, device: torch.device) -> list[tuple[str, str]]:
    model, tok = Model.from_pretrained(source).to(device), Tokenizer.from_pretrained(source)
    dice, lines = torch.Generator(device).manual_seed(seed), []
    for prompt in PROMPTS:
        ids = tok(prompt)["input_ids"].to(device)
        out = generate(model, ids, max_new_tokens=NEW_TOKENS, temperature=0.7, top_p=0.9, stop=() if tok.eos_id is None else (tok.eos_id,), generator=dice)
        lines.append((prompt, " ".join(tok.decode(out[0, ids.shape[1]:]).split())))
    return lines


def machine() -> str:
    """The processor by its name, and how many threads compute."""
    name = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        name = next((line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")), name)
    return f"{name}, {torch.get_num_threads()} threads" + (f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "")


def five_cases(test: list[dict], predictions: Sequence[Prediction]) -> list[Html]:
    """The two surest right answers, the least sure right one, and the two surest wrong ones."""
    both = sorted(zip(test, predictions, strict=True), key=lambda pair: -pair[1].probability)
    right, wrong = ([pair for pair in both if (pair[0]["label"] == pair[1].label) is truth] for truth in (True, False))
    chosen = [*right[:2], *right[2:][-1:], *wrong[:2]]
    return [prediction_case(row["text"], row["label"], answer.label, answer.probability) for row, answer in chosen]


def demo_page(result: DemoResult, test: list[dict]) -> Html:
    outcomes = result.outcomes
    losses, validation = ({one.name: getattr(one, what) for one in outcomes} for what in ("losses", "validation"))
    best = outcomes[-1]
    intervals = [(one.name, 100 * one.accuracy, *(100 * bound for bound in one.interval)) for one in outcomes]
    lines = [section(title, *(paragraph(element("b", a), " → ", b) for a, b in pairs)) for title, pairs in
             (("The pretrained encoder fills masks", result.filled), ("The pretrained decoder goes on", result.generated)) if pairs]
    return page(
        "minitransfer demo: what pretraining is worth",
        paragraph(f"Five ways to learn which reviews are positive, from the same {result.setting['training rows']} reviews, judged on {len(test)} others. "
                  "All numbers were measured in the run that wrote this page."),
        section("The ways compared", table(COLUMNS, [one.cells() for one in outcomes]),
                paragraph("Share: of the model's parameters, how many train. Memory: the peak during training above what the process held before. "
                          "The interval is Wilson's; ways whose intervals overlap may be equally good.", class_="soft"),
                interval_chart("Accuracy on the test split, %, with 95 % intervals", intervals, "accuracy, %")),
        section("Learning curves", key(losses), element("div", line_chart("Training loss", losses, "epoch"), line_chart("Accuracy on the validation split, %", validation, "epoch"), class_="charts")),
        section(f"Five predictions of “{best.name}” on the test split", *five_cases(test, best.predictions)),
        *lines,
        section("How it was measured", facts(result.setting)))


def run(model: str = "mini-bert", generator: str | None = "mini-gpt", out: str | Path = "runs/demo", rows: int | None = None, epochs: int = 8, seed: int = 0) -> DemoResult:
    """Compare the ways on the bundled reviews and write `out`/report.html.

    Args:   model: a pretrained encoder; generator: a pretrained decoder, None leaves its lines out; rows: train on so many of the reviews (default: all).
    Raises: ValueError if a checkpoint cannot be found.
    """
    train, validation, test = (read_rows(samples.path(f"reviews.{split}.tsv")) for split in ("train", "validation", "test"))
    train = train if rows is None else sample_rows(train, rows, seed, by="label")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tok = Tokenizer.from_pretrained(model)
    began = time.perf_counter()
    outcomes = [] if (baseline := tf_idf(train, validation, test)) is None else [baseline]
    for way in WAYS:
        print(f"minitransfer: {way.name} ({way.strategy}, learning rate {way.lr:g}, {epochs} epochs)", file=sys.stderr)
        outcomes.append(tune(way, model, tok, train, validation, test, epochs, seed, device))
    setting: dict[str, object] = {
        "training rows": len(train), "validation rows": len(validation), "test rows": len(test), "epochs": epochs, "reviews per step": BATCH,
        "learning rates": ", ".join(f"{way.name} {way.lr:g}" for way in WAYS), "schedule": "10 % warm-up, then linear to zero; AdamW; weights after the last step",
        "TF-IDF": "words and word pairs, logarithmic counts, C = 10" if baseline else "left out: scikit-learn is not installed",
        "models": model + (f", {generator}" if generator else ""), "seed": seed, "machine": machine(), "versions": ", ".join(f"{name} {v}" for name, v in package_versions().items()),
        "command": shlex.join(["minitransfer", *sys.argv[1:]] if Path(sys.argv[0]).stem in ("minitransfer", "__main__") else ["minitransfer.demo.run()"])}
    filled, generated = fill_lines(model, device), [] if generator is None else generate_lines(generator, seed, device)
    setting["whole demo"] = f"{time.perf_counter() - began:.0f} s"
    path = Path(out) / "report.html"
    result = DemoResult(outcomes, setting, filled, generated, path)
    write_page(path, demo_page(result, test))
    return result
