"""What learners write in 12, and what the verdict has to say: name -> (answer, pattern) ..."""
import copy
import math
import random

import numpy as np


def linear(curve, sizes, wanted):
    best = np.maximum.accumulate(curve)
    return 0.0 if best[0] >= wanted else math.inf if best[-1] < wanted else float(np.interp(wanted, best, sizes))


def at_a_size(curve, sizes, wanted):
    return next((0.0 if n == sizes[0] else float(n) for n, a in zip(sizes, curve, strict=True) if a >= wanted), math.inf)


def last_crossing(curve, sizes, wanted):
    if wanted <= curve[0]:
        return 0.0
    return math.inf if wanted > max(curve) else float(np.exp(np.interp(wanted, sorted(curve), np.log(sizes))))


def beyond(curve, sizes, wanted):
    return float(np.exp(np.interp(wanted, np.maximum.accumulate(curve), np.log(sizes))))


def one_seed(model, seed):
    return type(model)(model.config, seed=3)


def reset(model, seed):
    fresh = type(model)(model.config, seed=seed)
    model.load_state_dict(fresh.state_dict())
    return fresh


def shuffled(model, seed):
    found = copy.deepcopy(model)
    for p in found.parameters():
        p.data = p.data.flatten().flip(0).view_as(p)
    return found


def plain(labels, n, seed):
    return sorted(random.Random(seed).sample(range(len(labels)), n))


def not_nested(labels, n, seed):
    keys = {}
    for label in sorted(set(labels)):
        places = [i for i, one in enumerate(labels) if one == label]
        random.Random(seed + n).shuffle(places)
        keys |= {i: (k + 0.5) / len(places) for k, i in enumerate(places)}
    return sorted(sorted(keys, key=keys.get)[:n])


def without_seed(labels, n, seed):
    keys = {}
    for label in sorted(set(labels)):
        places = [i for i, one in enumerate(labels) if one == label]
        keys |= {i: (k + 0.5) / len(places) for k, i in enumerate(places)}
    return sorted(sorted(keys, key=keys.get)[:n])


def as_on_other_texts(a, b):
    return a.mean() - b.mean(), 1.96 * math.sqrt((a.mean(0).var() + b.mean(0).var()) / a.shape[1])


def seeds_as_texts(a, b):
    each = (a.astype(float) - b).ravel()
    return each.mean(), 1.96 * each.std() / math.sqrt(len(each))


def bits(a, b):
    each = (a ^ b).mean(0)
    return each.mean(), 1.96 * each.std() / math.sqrt(len(each))


WRONG = {
    "labels_needed": [(linear, "it is 128"), (at_a_size, "it is 128"), (last_crossing, "on the curve \\(0.6, 0.8, 0.5"), (beyond, "it is 0")],
    "twin": [(lambda model, seed: copy.deepcopy(model), "with seed 3"), (one_seed, "with seed 8"), (reset, "has changed"), (shuffled, "with seed 3"),
             (lambda model, seed: model, "a new model is needed")],
    "fair_draw": [(plain, "of all|does not hold"), (not_nested, "does not hold"), (without_seed, "does not hang on the seed"), (lambda labels, n, seed: list(range(n)), "of all")],
    "paired_gain": [(as_on_other_texts, "half an interval"), (seeds_as_texts, "half an interval"), (bits, "a gain of"),
                    (lambda a, b: (a.mean() - b.mean(), (a.mean(0) - b.mean(0)).std() / math.sqrt(a.shape[1])), "half an interval")],
}
