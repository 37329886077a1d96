"""Answers to the exercises of 12_how_many_labels: minitransfer check 12 notebooks/solutions/12_how_many_labels.py"""
import math
import random

import numpy as np


def labels_needed(curve, sizes, wanted):
    if curve[0] >= wanted:
        return 0.0
    for i in range(1, len(sizes)):
        if curve[i] >= wanted:
            below = max(curve[:i])
            share = (wanted - below) / (curve[i] - below)
            return math.exp(math.log(sizes[i - 1]) + share * (math.log(sizes[i]) - math.log(sizes[i - 1])))
    return math.inf


def twin(model, seed):
    return type(model)(model.config, seed=seed)


def fair_draw(labels, n, seed):
    draw, keys = random.Random(seed), {}
    for label in sorted(set(labels)):
        places = [i for i, one in enumerate(labels) if one == label]
        draw.shuffle(places)
        keys |= {i: (k + 0.5) / len(places) for k, i in enumerate(places)}
    return sorted(sorted(keys, key=keys.get)[:n])


def paired_gain(a, b):
    each = (a.astype(float) - b).mean(0)                                # (V,)
    return each.mean(), 1.96 * each.std() / np.sqrt(len(each))
