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
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from . import samples
from .generate import fill, generate
from .nn.model import Model
from .report import (
    Html,
    Points,
    confusion,
    element,
    facts,
    in_columns,
    interval_chart,
    key,
    line_chart,
    page,
    paragraph,
    prediction_case,
    section,
    side_by_side,
    table,
    wide,
    write_page,
)
from .tasks import Prediction, finetune, predict
from .tasks.metrics import mcnemar, wilson
from .text import Tokenizer, read_rows, sample_rows
from .training.log import package_versions
from .training.memory import peak_memory, reset_peak
from .training.page import looks
from .training.run import make_folder
from .weights.files import read_json, write_json

FILLS = ("She opened the [MASK] and went in.", "He was born in the [MASK] of London.", "They sat down at the [MASK] to eat.")
PROMPTS = ("The old man", "In the morning", "The city is")
EPOCHS, BATCH, NEW_TOKENS = 8, 16, 24
BASELINE, TOOK = "TF-IDF + logistic", "took.json"
COLUMNS = ("strategy", "trainable", "share", "training", "memory", "accuracy on test (95 % interval)")


@dataclass(frozen=True)
class Way:
    """One way to get a classifier."""

    name: str
    strategy: str
    lr: float                           # usual for this way and a model of this size; chosen on the validation split, never on the test one
    pretrained: bool = True


WAYS = (Way("random start, full", "full", 5e-4, pretrained=False), Way("head only", "head", 5e-3), Way("LoRA", "lora", 2e-3), Way("full", "full", 1e-4))


@dataclass(frozen=True)
class Split:
    train: list[dict]
    validation: list[dict]
    test: list[dict]


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
    right: Sequence[bool] = ()          # row by row of the test
    looks: Sequence[Html] = ()          # where the model looks in the first row that it gets wrong

    @property
    def percent(self) -> tuple[float, float, float]:
        """Accuracy on the test rows with the ends of its 95 % interval."""
        low, high = wilson(self.correct, self.rows)
        return 100 * self.correct / self.rows, 100 * low, 100 * high

    def cells(self) -> tuple[str, ...]:
        memory = "?" if self.memory is None else f"{self.memory / 1e6:,.0f} MB"
        return (self.name, f"{self.trainable:,}", f"{100 * self.trainable / self.total:.3g} %", f"{self.seconds:.1f} s", memory,
                "{:.1f} % ({:.1f} to {:.1f})".format(*self.percent))


@dataclass(frozen=True)
class DemoResult:
    """Everything the demo measured. Prints as its table and lines."""

    outcomes: list[Outcome]
    setting: dict[str, object]
    filled: list[tuple[str, str]] = field(default_factory=list)
    generated: list[tuple[str, str]] = field(default_factory=list)
    report: Path | None = None

    def __str__(self) -> str:
        lines = [in_columns([COLUMNS, *(one.cells() for one in self.outcomes)])]
        for title, pairs in (("fill", self.filled), ("generate", self.generated)):
            lines += [f"\n{title}:", *(f"  {a}  ->  {b}" for a, b in pairs)] if pairs else []
        return "\n".join([*lines, "", conclusion(self.outcomes), *([f"\nreport: {self.report}"] if self.report else [])])


def conclusion(outcomes: Sequence[Outcome]) -> str:
    """What the table allows to say of tuning against the two ways without pretraining: one sentence.

    With k comparisons a difference counts if its p is below 0.05 / k (Bonferroni), so that all that is said is right in 95 % of such runs.
    """
    by_name = {one.name: one for one in outcomes}
    pairs = [(by_name[a], by_name[b]) for a in ("LoRA", "full") for b in (BASELINE, "random start, full") if a in by_name and b in by_name]
    tested = [(a, b, mcnemar(a.right, b.right)) for a, b in pairs]
    certain = [f"{a.name} is {'better' if a.correct > b.correct else 'worse'} than {b.name} (p = {p:.2g})" for a, b, p in tested if p < 0.05 / len(tested)]
    found = "; ".join(certain) or f"nothing is certain: no way is shown to be better (the smallest p is {min((p for *_, p in tested), default=1.0):.2g})"
    return (f"On the same {outcomes[-1].rows} test reviews {found}; {'all other differences between tuned and not pretrained' if certain else 'these differences'} may be chance "
            f"(McNemar's exact test, {len(tested)} comparisons).")


# ---- measuring ---------------------------------------------------------------------------------------------------------------------------------

def start_measuring(device: torch.device) -> int | None:
    """Give freed memory back, start the peak anew, and return what is held: bytes of tensors on a GPU, of the process on a CPU (None: not Linux)."""
    gc.collect()
    if device.type == "cuda":
        reset_peak(device)
        return torch.cuda.memory_allocated(device)
    if not (status := Path("/proc/self/status")).exists():
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)      # of glibc: training told it to keep what is freed, and every way starts from the same
    if trim is not None:
        trim(0)
    reset_peak(device)
    return next((1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS")), None)


def used_since(before: int | None, device: torch.device) -> int | None:
    return None if before is None else max(0, peak_memory(device) - before)


def tf_idf(split: Split) -> Outcome | None:
    """The baseline without a network: weighted counts of words and word pairs, and logistic regression. None without scikit-learn."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    except ImportError:
        return None
    cpu = torch.device("cpu")
    before, began = start_measuring(cpu), time.perf_counter()
    classifier = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10.0, max_iter=1000))
    classifier.fit([row["text"] for row in split.train], [row["label"] for row in split.train])
    seconds, memory = time.perf_counter() - began, used_since(before, cpu)
    answers = classifier.predict([row["text"] for row in split.test])
    right = [answer == row["label"] for answer, row in zip(answers, split.test, strict=True)]
    n = classifier[-1].coef_.size + classifier[-1].intercept_.size
    return Outcome(BASELINE, n, n, seconds, memory, sum(right), len(right), right=right)


def tune(way: Way, source: str, tok: Tokenizer, split: Split, epochs: int, seed: int, device: torch.device) -> Outcome:
    """Train one way and ask it for the test rows. Seconds are those of training, the evaluations on the validation split included."""
    labels = sorted({row["label"] for row in split.train})
    before = start_measuring(device)
    model = Model.from_pretrained(source, head="sequence", labels=labels, seed=seed)
    if not way.pretrained:
        model = Model(model.config, "sequence", labels, seed=seed)
    result = finetune(model.to(device), tok, train=split.train, validation=split.validation, strategy=way.strategy, epochs=epochs, lr=way.lr,
                      seed=seed, batch_size=BATCH, best=None, log_every=4, progress=False)
    if result.training.stopped == "interrupted":
        raise KeyboardInterrupt
    memory = used_since(before, device)
    answers = predict(result.model, tok, [row["text"] for row in split.test])
    right = [answer.label == row["label"] for answer, row in zip(answers, split.test, strict=True)]
    per_epoch, first = result.training.steps / epochs, split.test[right.index(False) if False in right else 0]["text"]
    return Outcome(way.name, result.report.trainable, result.report.total.parameters, result.seconds, memory, sum(right), len(right),
                   [(one["step"] / per_epoch, one["loss"]) for one in result.history if "loss" in one],
                   [(one["step"] / per_epoch, 100 * one["evaluation"]["accuracy"]) for one in result.history if "evaluation" in one], answers, right,
                   looks(result.model, tok, first))


def warm_up(source: str, tok: Tokenizer, split: Split, device: torch.device) -> None:
    """A little of everything, unmeasured: what a process pays once is not the first way's cost."""
    little = Split(*(sample_rows(rows, min(2 * BATCH, len(rows)), by="label") for rows in (split.train, split.validation, split.test)))
    tune(WAYS[-1], source, tok, little, 1, 0, device)


def machine() -> str:
    """The processor by its name, and how many threads compute."""
    name = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        name = next((line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")), name)
    return f"{name}, threads: {torch.get_num_threads()}" + (f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "")


# ---- showing -----------------------------------------------------------------------------------------------------------------------------------

def fill_lines(source: str, device: torch.device) -> list[tuple[str, str]]:
    """Three texts and what the encoder would put at their masks; none if it has no masked head."""
    model, tok = Model.from_pretrained(source).to(device), Tokenizer.from_pretrained(source)
    if not model.head_name.startswith("masked") or tok.mask_id is None:
        return []
    mask = tok.tokens([tok.mask_id])[0]
    best = {text: fill(model, tok, text.replace("[MASK]", mask), 4)[0] for text in FILLS}
    return [(text, ", ".join(f"“{token}” {p:.0%}" for token, p in tokens)) for text, tokens in best.items()]


def generate_lines(source: str, seed: int, device: torch.device) -> list[tuple[str, str]]:
    """Three beginnings and how the decoder goes on."""
    model, tok = Model.from_pretrained(source).to(device), Tokenizer.from_pretrained(source)
    dice, stop, lines = torch.Generator(device).manual_seed(seed), () if tok.eos_id is None else (tok.eos_id,), []
    for prompt in PROMPTS:
        ids = tok(prompt)["input_ids"].to(device)
        out = generate(model, ids, max_new_tokens=NEW_TOKENS, temperature=0.7, top_p=0.9, stop=stop, generator=dice)
        lines.append((prompt, " ".join(tok.decode(out[0, ids.shape[1]:]).split())))
    return lines


def five_cases(test: list[dict], predictions: Sequence[Prediction]) -> list[Html]:
    """The two surest right answers, the least sure right one, and the two surest wrong ones."""
    both = sorted(zip(test, predictions, strict=True), key=lambda pair: -pair[1].probability)
    right, wrong = ([pair for pair in both if (pair[0]["label"] == pair[1].label) is truth] for truth in (True, False))
    chosen = [*right[:2], *right[2:][-1:], *wrong[:2]]
    return [prediction_case(row["text"], row["label"], answer.label, answer.probability) for row, answer in chosen]


def demo_page(result: DemoResult, split: Split) -> Html:
    outcomes, n = result.outcomes, len(split.test)
    losses, validation = {one.name: one.losses for one in outcomes}, {one.name: one.validation for one in outcomes}
    answers = [(row["label"], one.label) for row, one in zip(split.test, outcomes[-1].predictions, strict=True)]
    label, most = Counter(row["label"] for row in split.test).most_common(1)[0]
    parts = [
        paragraph(f"{len(outcomes)} ways to learn which reviews are positive, from the same {len(split.train)} reviews, judged on {n} others. "
                  f"Always answering “{label}” would be right for {most / n:.0%}. All numbers were measured in the run that wrote this page."),
        section("The ways compared", wide(table([COLUMNS, *(one.cells() for one in outcomes)])),
                paragraph("Share: of the model's parameters, how many train. Memory: the peak during training above what the process held before. "
                          "The interval is Wilson's; ways whose intervals overlap may be equally good.", class_="soft"), paragraph(conclusion(outcomes)),
                interval_chart("Accuracy on the test split, %, with 95 % intervals", [(one.name, *one.percent) for one in outcomes], "accuracy, %")),
        section("Learning curves", key(losses), side_by_side(line_chart("Training loss", losses, "epoch"),
                                                             line_chart("Accuracy on the validation split, %", validation, "epoch"))),
        section(f"Confusions of “{outcomes[-1].name}” on the test split", confusion(answers)),
        section(f"Five predictions of “{outcomes[-1].name}” on the test split", *five_cases(split.test, outcomes[-1].predictions)), *outcomes[-1].looks]
    for title, pairs in (("The pretrained encoder fills masks", result.filled), ("The pretrained decoder goes on", result.generated)):
        parts += [section(title, *(paragraph(element("b", a), " → ", b) for a, b in pairs))] if pairs else []
    return page("minitransfer demo: what pretraining is worth", *parts, section("How it was measured", facts(result.setting)))


def setting_of(split: Split, epochs: int, seed: int, models: list[str], baseline: bool) -> dict[str, object]:
    """What somebody needs to judge the comparison and to run it again."""
    called = Path(sys.argv[0]).stem in ("minitransfer", "__main__")
    return {
        "the same for all": f"{len(split.train)} training reviews, {epochs} epochs, {BATCH} reviews a step; AdamW, 10 % warm-up, linear to zero; "
                            f"the weights after the last step; {len(split.validation)} validation and {len(split.test)} test reviews",
        "learning rates": ", ".join(f"{way.name} {way.lr:g}" for way in WAYS) + "; chosen on the validation split",
        "TF-IDF": "words and word pairs, logarithmic counts, C = 10" if baseline else "left out: scikit-learn is not installed",
        "models": ", ".join(models), "seed": seed, "machine": machine(),
        "versions": ", ".join(f"{name} {version}" for name, version in package_versions().items()),
        "command": shlex.join(["minitransfer", *sys.argv[1:]]) if called else "minitransfer.demo.run(...)"}


def took(out: Path, amount: dict[str, object]) -> str:
    """How long as much work took the last time, if it was done here before."""
    last = read_json(out / TOOK) if (out / TOOK).is_file() else {}
    return f"about {last['seconds']:.0f} s, as the last time" if last.get("amount") == amount else "a few minutes of CPU, less on a GPU"


def run(model: str = "mini-bert", generator: str | None = "mini-gpt", out: str | Path = "runs/demo", rows: int | None = None, epochs: int = EPOCHS,
        seed: int = 0) -> DemoResult:
    """Compare the ways on the bundled reviews and write `out`/report.html.

    Args:   model: a pretrained encoder; generator: a pretrained decoder, None leaves its lines out; rows: train on so many reviews (default: all).
    Raises: ValueError if a checkpoint cannot be found.
    """
    split = Split(*(read_rows(samples.path(f"reviews.{name}.tsv")) for name in ("train", "validation", "test")))
    if rows is not None:
        split = replace(split, train=sample_rows(split.train, rows, seed, by="label"))
    device, tok, began = torch.device("cuda" if torch.cuda.is_available() else "cpu"), Tokenizer.from_pretrained(model), time.perf_counter()
    make_folder(Path(out))                                  # one that cannot be written is better known now than after the work
    filled, generated = fill_lines(model, device), [] if generator is None else generate_lines(generator, seed, device)
    amount: dict[str, object] = {"model": model, "reviews": len(split.train), "epochs": epochs, "device": device.type}
    print(f"minitransfer: {len(split.train)} reviews, {epochs} epochs, {len(WAYS)} ways: {took(Path(out), amount)}; --rows 100 or --epochs 2 is quicker, "
          "--dry-run takes seconds", file=sys.stderr, flush=True)
    baseline = tf_idf(split)
    outcomes = [] if baseline is None else [baseline]
    warm_up(model, tok, split, device)
    for way in WAYS:
        print(f"minitransfer: training {way.name!r} (learning rate {way.lr:g}, epochs {epochs})", file=sys.stderr, flush=True)
        outcomes.append(tune(way, model, tok, split, epochs, seed, device))
    setting = setting_of(split, epochs, seed, [model, *([generator] if generator else [])], baseline is not None)
    seconds = time.perf_counter() - began
    setting["whole demo"] = f"{seconds:.0f} s"
    write_json(Path(out) / TOOK, {"seconds": round(seconds, 1), "amount": amount})
    result = DemoResult(outcomes, setting, filled, generated, Path(out) / "report.html")
    write_page(Path(out) / "report.html", demo_page(result, split))
    return result
