"""What is pretraining worth? The same rows learned with it and without, at several training sizes.

    gain(n)   = accuracy(method, n) - accuracy(other, n)                       on the same held-out rows, seed by seed
    worth(n)  = m / n        m: the labels with which the other method first reaches accuracy(method, n), between two sizes by a line over log m

A negative gain whose interval lies below zero is negative transfer, and is called that.
"""
from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ..nn.model import Model
from ..text import Tokenizer
from ..training.run import make_folder
from ..training.state import SaveError
from ..transfer.features import body_hash
from ..transfer.groups import Table
from .tables import Interval, draw_line, new_axes, signed
from .ways import BASELINES, Ground, Resampled

METHODS = ("logistic", "vectors", "random", "features", "lora", "full")
WITHOUT = {"logistic": "TF-IDF", "random": "random twin"}       # what pretraining is compared with
SHOWN = {**WITHOUT, "vectors": "static vectors"}
LINES = "lines.jsonl"


class Worth(NamedTuple):
    """How many times as many labels another method needs; infinite: more than there were rows, 0: no more than the smallest size."""

    value: float
    low: float
    high: float
    least: float        # what the smallest and the largest size allow to see
    most: float

    def shown(self, value: float) -> str:
        return f"> {self.most:.3g}x" if value == math.inf else f"< {self.least:.3g}x" if value == 0 else f"{value:.3g}x"

    def __str__(self) -> str:
        return f"{self.shown(self.value)} [{self.shown(self.low)}, {self.shown(self.high)}]"


def labels_needed(curve: Float[np.ndarray, "R Z"], sizes: Sequence[int], wanted: Float[np.ndarray, "R"]) -> Float[np.ndarray, "R"]:
    """With how many labels each curve first reaches the accuracy that is wanted: infinite where it never does, 0 where the smallest size reaches it."""
    best, x = np.maximum.accumulate(curve, 1), np.log(np.asarray(sizes, float))
    reached = best >= wanted[:, None] - 1e-12
    first = reached.argmax(1)
    i, rows = np.minimum(np.maximum(first, 1), len(sizes) - 1), np.arange(len(curve))
    low, high = best[rows, i - 1], best[rows, i]
    share = (wanted - low) / np.where(high > low, high - low, 1.0)
    m = np.exp(x[i - 1] + share.clip(0, 1) * (x[i] - x[i - 1]))
    return np.where(~reached.any(1), np.inf, np.where(first == 0, 0.0, m))


@dataclass(frozen=True, repr=False)
class TransferGain(Table):
    """Accuracies by method and training size, what pretraining adds, and how many labels that is worth. Prints as a table; `draw` gives the curves.

    right: (methods, sizes, seeds, held-out rows), bool. seconds: (methods, sizes, seeds). trained: (methods,), how many numbers learn.
    """

    methods: tuple[str, ...]
    sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    right: Bool[np.ndarray, "M Z S V"]
    seconds: Float[np.ndarray, "M Z S"]
    trained: tuple[int, ...]

    @cached_property
    def shares(self) -> Resampled:
        return Resampled.of(self.right)

    @property
    def compared(self) -> tuple[str, ...]:
        """The methods that start from the pretrained body."""
        return tuple(name for name in self.methods if name not in (*BASELINES, "random"))

    def at(self, method: str) -> int:
        """Raises: KeyError for a method that was not run."""
        if method not in self.methods:
            raise KeyError(f"no method {method!r} here; there are {', '.join(self.methods)}: name one of these")
        return self.methods.index(method)

    def accuracy(self, method: str) -> list[Interval]:
        """At each size."""
        shares, m = self.shares, self.at(method)
        return [shares.interval(m, z) for z in range(len(self.sizes))]

    def gain(self, method: str = "full", other: str = "random") -> list[Interval]:
        """At each size, how much better `method` is than `other` on the same rows."""
        shares, (m, o) = self.shares, (self.at(method), self.at(other))
        paired = Resampled(shares.values[m] - shares.values[o], shares.draws[:, m] - shares.draws[:, o])
        return [paired.interval(z) for z in range(len(self.sizes))]

    def worth(self, method: str = "full", other: str = "random") -> list[Worth]:
        """At each size, how many times as many labels `other` needs to be as accurate as `method`."""
        shares, (m, o), found = self.shares, (self.at(method), self.at(other)), []
        for z, n in enumerate(self.sizes):
            value = labels_needed(shares.values[None, o], self.sizes, shares.values[None, m, z])[0]
            low, high = np.quantile(labels_needed(shares.draws[:, o], self.sizes, shares.draws[:, m, z]), (0.025, 0.975), method="inverted_cdf")
            found.append(Worth(value / n, low / n, high / n, self.sizes[0] / n, self.sizes[-1] / n))
        return found

    def verdicts(self, method: str = "full", other: str = "random") -> list[str]:
        """At each size: "positive" or "negative transfer", if the interval of the gain says so."""
        return ["positive" if one.low > 0 else "negative transfer" if one.high < 0 else "not shown" for one in self.gain(method, other)]

    def cells(self) -> list[tuple[str, ...]]:
        rows = [("", *(f"{n:,} rows" for n in self.sizes))]
        rows += [(SHOWN.get(name, name), *map(str, self.accuracy(name))) for name in self.methods]
        for method in self.compared:
            for other in (name for name in WITHOUT if name in self.methods):
                gains = zip(self.gain(method, other), self.verdicts(method, other), strict=True)
                rows.append((f"{method} - {WITHOUT[other]}", *(f"{signed(one)} {verdict}" for one, verdict in gains)))
                rows.append(("  worth, in labels", *map(str, self.worth(method, other))))
        return rows

    def to_dict(self) -> dict[str, Any]:
        """For JSON: without single rows."""
        pairs = [(method, other) for method in self.compared for other in WITHOUT if other in self.methods]
        return {"sizes": list(self.sizes), "seeds": list(self.seeds), "held_out": self.right.shape[-1],
                "accuracy": {name: {"intervals": [list(one) for one in self.accuracy(name)], "seeds": self.right[i].mean(-1).tolist(),
                                    "seconds": self.seconds[i].mean(-1).tolist(), "trained": self.trained[i]} for i, name in enumerate(self.methods)},
                "gain": {f"{method} - {other}": {"intervals": [list(one) for one in self.gain(method, other)], "verdicts": self.verdicts(method, other),
                                                 "worth": [str(one) for one in self.worth(method, other)],
                                                 "bounds": [[x if x < math.inf else None for x in one[:3]] for one in self.worth(method, other)]} for method, other in pairs}}

    def draw(self, axes: Any = None) -> Any:
        """Accuracy over the number of labels, with intervals. Returns: matplotlib's axes."""
        axes = new_axes(7, 4.5)[0, 0] if axes is None else axes
        for name in self.methods:
            draw_line(axes, np.array(self.sizes), self.accuracy(name), SHOWN.get(name, name), linestyle="--" if name in SHOWN else "-")
        axes.set(xscale="log", xlabel="labelled rows", ylabel="accuracy", xticks=self.sizes, xticklabels=[f"{n:,}" for n in self.sizes],
                 title=f"{self.right.shape[-1]:,} held-out rows, {len(self.seeds)} draws of the training rows")
        axes.minorticks_off()
        axes.legend(fontsize="small")
        return axes

    @classmethod
    def of(cls, lines: Sequence[Mapping[str, Any]]) -> TransferGain:
        """What the lines of all runs say."""
        methods, sizes, seeds = (tuple(dict.fromkeys(line[name] for line in lines)) for name in ("method", "n", "seed"))
        found = {(line["method"], line["n"], line["seed"]): line for line in lines}

        def table(read: Any) -> np.ndarray:
            return np.array([[[read(found[m, n, s]) for s in seeds] for n in sizes] for m in methods])
        return cls(methods, sizes, seeds, table(lambda line: [c == "1" for c in line["right"]]), table(lambda line: line["seconds"]),
                   tuple(found[m, sizes[-1], seeds[0]]["trained"] for m in methods))


@dataclass(frozen=True)
class Grid:
    """All runs of a study of transfer gain, and the file that keeps the line of each."""

    ground: Ground
    sizes: tuple[int, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: dict[str, Any]
    own: Mapping[str, Mapping[str, Any]]
    file: Path | None

    def check(self) -> None:
        """Raises: ValueError, before anything is trained, for sizes, methods or draws that cannot be, or a file of other rows; SaveError for a folder that cannot be made."""
        if not self.sizes or list(self.sizes) != sorted(set(self.sizes)) or not self.methods or not self.seeds:
            raise ValueError(f"sizes={self.sizes}, methods={self.methods}, seeds={self.seeds}; a curve is drawn through growing sizes, for some method and seed: "
                             "give each at least once, sizes in order")
        for n in reversed(self.sizes):
            for seed in self.seeds:
                self.ground.draw(n, seed)
        if self.file is not None:
            make_folder(self.file.parent)
            try:
                self.file.open("a").close()
            except OSError as why:
                raise SaveError(f"{self.file} cannot be written ({why.strerror}); it keeps what each run gave: choose another out") from None
            if strangers := {line["data"] for line in self.known().values()} - {self.data}:
                raise ValueError(f"{self.file} holds runs of other rows, another body or other settings ({', '.join(sorted(strangers))}); curves are of one kind: give another out")

    @property
    def data(self) -> str:
        """What identifies rows, model and settings."""
        vectors = self.ground.vectors
        said = json.dumps([self.settings, {name: dict(one) for name, one in self.own.items()}, vectors if isinstance(vectors, str | Path) else vectors is not None],
                          sort_keys=True, default=str)
        return f"{self.ground.fingerprint} {body_hash(self.ground.model)[:12]} {said}"

    def known(self) -> dict[tuple[str, int, int], dict[str, Any]]:
        lines = [] if self.file is None or not self.file.exists() else [json.loads(line) for line in self.file.read_text(encoding="utf-8").splitlines()]
        return {(line["method"], line["n"], line["seed"]): line for line in lines}

    def lines(self) -> Iterator[dict[str, Any]]:
        """A line for each run, all methods and sizes of a seed before the next seed; what the file holds is not run again."""
        known, data = self.known(), self.data
        for seed in self.seeds:
            for n in self.sizes:
                rows = self.ground.draw(n, seed)
                for method in self.methods:
                    if (line := known.get((method, n, seed))) is None:
                        learned = self.ground.learn(method, rows, seed, **{**self.settings, **self.own.get(method, {})})
                        right = self.ground.right(learned)
                        line = {"method": method, "n": n, "seed": seed, "accuracy": float(right.mean()), "seconds": learned.seconds, "trained": learned.trained,
                                "right": "".join("01"[one] for one in right.tolist()), "data": data}
                        if self.file is not None:
                            with self.file.open("a", encoding="utf-8") as file:
                                file.write(json.dumps(line) + "\n")
                    yield line


def transfer_gain(model: Model, tok: Tokenizer, task: Any = "sequence", *, train: Any, validation: Any, sizes: Sequence[int] = (16, 64, 256),
                  methods: Sequence[str] = METHODS, seeds: int | Sequence[int] = 3, vectors: Any = None, out: str | Path | None = None,
                  own: Mapping[str, Mapping[str, Any]] | None = None, on_run: Callable[[dict[str, Any]], object] | None = None, text: str | None = None,
                  pair: str | None = None, label: str | None = None, **settings: Any) -> TransferGain:
    """What pretraining is worth on a task: the same rows learned by TF-IDF, static vectors, a twin with random weights, and from the pretrained body in several ways.

        found = transfer_gain(model, tok, train="reviews.train.tsv", validation="reviews.validation.tsv", sizes=(16, 64, 256))
        print(found); found.draw()

    Each seed draws rows of its own, which keep the shares of the labels, and the larger sizes hold the smaller ones. The twin is tuned with the settings of "full".

    Args:   train, validation, text, pair, label: as in `finetune`; of a task with one label a text. sizes: numbers of training rows, growing.
            methods: baselines of tasks.baselines, "random", "features" (mean states and a logistic regression), and strategies of `finetune`.
            seeds: how many, or which. vectors: for "vectors", as in `baseline`; None: the rows of the model's own token table.
            out: a folder that keeps the line of each run; called again with the same, it goes on where it stopped. on_run: sees each line, before the next run.
            own: method -> settings of its own. settings: of `finetune`; by default 3 epochs, and no fewer than 150 steps, with batches of 16.
    Source: label equivalence: how Howard & Ruder 2018, section 4, read their figure 3. Intervals: bootstrap over held-out rows and seeds.
    Raises: ValueError, before anything is trained, for fewer rows than the largest size, a draw without one of the labels, another kind of task, or an `out` of
            other rows or settings; SaveError for an `out` that cannot be written; ImportError without scikit-learn.
    """
    grid = Grid(Ground.of(model, tok, task, train, validation, text, pair, label, vectors), tuple(sizes), tuple(methods),
                tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds), settings, own or {}, None if out is None else Path(out) / LINES)
    grid.check()
    lines = []
    for line in grid.lines():
        lines.append(line)
        if on_run is not None:
            on_run(line)
    return TransferGain.of(lines)
