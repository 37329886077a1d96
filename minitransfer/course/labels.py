"""12, how many labels pretraining is worth."""
from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..nn.model import Model
from ..study import TransferGain
from ..study.ways import Ground, random_twin
from ..text import Tokenizer
from .exercise import demand, exercise, gap, in_engine, same_in_engine
from .models import padded

SIZES = (16, 64, 256, 1024)
ROWS = [{"text": f"They {verb} the {noun} {when}.", "label": label}
        for noun, label in (("king", "living"), ("house", "thing"), ("dog", "living"), ("river", "thing"), ("table", "thing"))
        for verb in ("saw", "found", "left") for when in ("again", "today")]


def drawn(*chances: tuple[float, ...]) -> TransferGain:
    """Answers of two methods that are right so often at each size: three seeds, 90 texts."""
    right = np.random.default_rng(5).random((2, len(SIZES), 3, 90)) < np.array(chances)[..., None, None]
    return TransferGain(("random", "full"), SIZES, (0, 1, 2), right, np.zeros((2, len(SIZES), 3)), (0, 0))


@exercise("12", "labels_needed(curve, sizes, wanted) -> with how many labels the curve first reaches an accuracy; 0.0 or math.inf beyond the sizes")
def labels_needed(answer: Callable) -> str:
    cases: list[tuple[tuple[float, ...], float, float]] = [((0.5, 0.6, 0.8, 0.9), 0.7, 128.0), ((0.5, 0.6, 0.8, 0.9), 0.6, 64.0), ((0.5, 0.6, 0.8, 0.9), 0.5, 0.0),
                                                           ((0.5, 0.6, 0.8, 0.9), 0.95, math.inf), ((0.6, 0.8, 0.5, 0.9), 0.7, 32.0), ((0.5, 0.7, 0.7, 0.9), 0.7, 64.0),
                                                           ((0.5, 0.7, 0.6, 0.9), 0.8, 512.0)]
    for curve, wanted, truth in cases:
        found = float(answer(curve, SIZES, wanted))
        demand(math.isclose(found, truth, rel_tol=1e-9, abs_tol=1e-9), f"{found:g} labels for {wanted} on the curve {curve} at {SIZES}, it is {truth:g}")
    measured = [drawn((0.5, 0.6, 0.7, 0.8), (0.65, 0.7, 0.8, 0.85)), drawn((0.6, 0.7, 0.85, 0.9), (0.5, 0.6, 0.8, 0.95))]
    own = [one.worth() for one in measured]

    def as_array(curve: np.ndarray, sizes: Sequence[int], wanted: np.ndarray) -> np.ndarray:
        return np.array([float(answer(tuple(row), tuple(sizes), float(one))) for row, one in zip(curve, wanted, strict=True)])
    with in_engine("study.gain:labels_needed", as_array):
        found_there = [one.worth() for one in measured]
    for truths, many in zip(own, found_there, strict=True):
        for n, worth, other in zip(SIZES, truths, many, strict=True):
            demand(np.allclose(worth, other, rtol=1e-9), f"in the engine, pretraining is worth {other} at {n} labels; it is {worth}")
    return f"{len(cases)} curves, and the worth with its intervals in two tables"


@exercise("12", "twin(model, seed) -> a body of the same architecture, its weights drawn anew with seed")
def twin(answer: Callable) -> str:
    model, tok = Model(Model.from_pretrained("mini-bert").config, seed=1), Tokenizer.from_pretrained("mini-bert")
    before = copy.deepcopy(model.state_dict())
    for seed in (3, 8):
        found, truth = answer(model, seed), random_twin(model, seed)
        demand(isinstance(found, Model) and found is not model, f"a {type(found).__name__} came back; a new model is needed")
        changed = [name for name, w in model.state_dict().items() if not torch.equal(w, before[name])]
        demand(not changed, f"{changed[:1]} of the model that was given has changed")
        demand(found.config == model.config, "the twin has another architecture")
        own = dict(truth.named_parameters())
        demand(dict(found.named_parameters()).keys() == own.keys(), "the twin has other parameters; it is a body without a head, as the model that was given")
        for name, w in found.named_parameters():
            gap(f"with seed {seed}, {name}", w, own[name], within=0.0)
    ground, batch = Ground.of(model, tok, "sequence", ROWS[:24], ROWS[24:]), padded(model)
    keep = batch["attention_mask"][..., None]
    worst = same_in_engine("study.ways:random_twin", answer, lambda: {"the states of a twin after two steps": tuned_twin(ground)(**batch).last_hidden_state.detach() * keep})
    return f"the same bits with two seeds, and after two steps of a transfer_gain within {worst:.0e}"


def tuned_twin(ground: Ground) -> Model:
    """The twin that `transfer_gain` has tuned."""
    kept: list[Model] = []
    own: Any = ground.task.predict

    def predict(self: Any, model: Model, *given: Any) -> Any:
        kept.append(model)
        return own(model, *given)
    with in_engine("tasks.sequence:SequenceTask.predict", predict):
        ground.learn("random", ground.train, 3, steps=2, batch_size=8, precision="fp32")
    return kept[0].eval()


@exercise("12", "fair_draw(labels, n, seed) -> n places, growing: the labels keep their shares, and larger draws hold the smaller ones")
def fair_draw(answer: Callable) -> str:
    for labels in (["a"] * 30 + ["b"] * 60 + ["c"] * 10, ["a", "b"] * 23, list("abcab")):
        counts = Counter(labels)
        for seed in (0, 1):
            inside: set[int] = set()
            for n in range(1, len(labels) + 1):
                places = list(answer(list(labels), n, seed))
                demand(len(places) == n and places == sorted(set(places)) and 0 <= places[0] and places[-1] < len(labels),
                       f"{places[:8]} for {n} of {len(labels)} rows; {n} different places in growing order are needed")
                demand(inside <= set(places), f"the draw of {n} rows does not hold the one of {n - 1}; with one seed larger draws hold the smaller ones")
                inside = set(places)
                for label, k in Counter(labels[i] for i in places).items():
                    demand(abs(k - n * counts[label] / len(labels)) < 1 + 1e-9, f"{k} of {n} rows are {label!r}, of all {counts[label]} of {len(labels)}")
    labels = ["a", "b"] * 250
    first, again, other = (list(answer(labels, 100, seed)) for seed in (5, 5, 6))
    demand(first == again, "the same seed gives another draw")
    demand(len({*first} & {*other}) < 60 and len({*first} & {*range(100)}) < 60, "the draw does not hang on the seed, or prefers the first rows")
    tok, model = Tokenizer.from_pretrained("mini-bert"), Model.from_pretrained("mini-bert", head="none")
    ground = Ground.of(model, tok, "sequence", ROWS[:24], ROWS[24:])
    with in_engine("text.readers:sample_rows", lambda rows, n, seed=0, by=None: [rows[i] for i in answer([row[by] for row in rows], n, seed)]):
        for n in (4, 12):
            shares = Counter(row["label"] for row in ground.draw(n, 1))
            demand(shares == {"living": n // 2, "thing": n - n // 2}, f"in the engine {n} of 24 rows are {dict(shares)}")
    return "three sets with every size, and the draws of a transfer_gain"


@exercise("12", "paired_gain(a, b) -> the gain of a over b, and half of its 95 % interval over the texts")
def paired_gain(answer: Callable) -> str:
    draw = np.random.default_rng(0)
    for S, V in ((1, 211), (3, 400), (5, 97)):
        easy, helped = draw.random((2, V)) < [[0.6], [0.3]]
        a, b = (easy | helped) ^ (draw.random((S, V)) < 0.1), easy ^ (draw.random((S, V)) < 0.1)
        gain, half = (float(one) for one in answer(a, b))
        each = [sum(int(a[s, v]) - int(b[s, v]) for s in range(S)) / S for v in range(V)]
        mean = math.fsum(each) / V
        truth = 1.96 * math.sqrt(math.fsum((x - mean) ** 2 for x in each) / V / V)
        demand(math.isclose(gain, mean, abs_tol=1e-9), f"a gain of {gain:.4f} with {S} seeds and {V} texts, it is {mean:.4f}")
        demand(math.isclose(half, truth, rel_tol=0.01), f"half an interval of {half:.4f} with {S} seeds and {V} texts, it is {truth:.4f}")
    table = drawn((0.5,) * 4, (0.7,) * 4)
    one = TransferGain(table.methods, SIZES, (0,), table.right[:, :, :1], table.seconds[:, :, :1], table.trained)
    for z, found in enumerate(one.gain()):
        gain, half = answer(one.right[1, z], one.right[0, z])
        demand(abs(gain - found.value) < 1e-9 and abs(half - (found.high - found.low) / 2) < 0.15 * half,
               f"{gain:.3f} +- {half:.3f} at {SIZES[z]} labels; transfer_gain has {found}")
    return "three hand calculations, and as the bootstrap of transfer_gain with one seed"
