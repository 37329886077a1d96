"""Answers to the exercises of 13_domain: minitransfer check 13 notebooks/solutions/13_domain.py"""
from collections import Counter
from fractions import Fraction

import numpy as np


def divergence(p_counts, q_counts):
    def entropy(p):
        return -(p[p > 0] * np.log2(p[p > 0])).sum()
    p, q = p_counts / p_counts.sum(), q_counts / q_counts.sum()
    return entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2


def common_words(a, b, k):
    counts = Counter(a), Counter(b)
    k = min(k, *map(len, counts))
    first, second = ({word for word, _ in sorted(one.items(), key=lambda item: (-item[1], item[0]))[:k]} for one in counts)
    return len(first & second) / k if k else 0.0


def loss_rise(before, after):
    def mean(losses):
        return sum(s for s, _ in losses) / sum(n for _, n in losses)
    return mean(after) - mean(before)


def old_rows(k, B, share):
    before, after = (int(Fraction(share) * B * n) for n in (k, k + 1))
    return after - before
