"""What learners write in 03, and what the verdict has to say: name -> (answer, pattern) ..."""
import math

import torch

from minitransfer.nn.attention import attend


def scores(q, k):
    return q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])


def unscaled(q, k, v, mask):
    return attend(q * math.sqrt(q.shape[-1]), k, v, mask)[:2]


def over_queries(q, k, v, mask):
    weights = scores(q, k).masked_fill(~mask, -1e9).softmax(-2)
    return weights @ v, weights


def not_a_number(q, k, v, mask):
    weights = scores(q, k).masked_fill(~mask, -math.inf).softmax(-1)
    return weights @ v, weights


def overflowing(q, k, v, mask):
    p = torch.exp(scores(q, k)) * mask
    weights = p / p.sum(-1, keepdim=True).clamp(min=1e-30)
    return weights @ v, weights


def repeated(q, k, v, mask):
    return attend(q, *(t.repeat(1, q.shape[1] // k.shape[1], 1, 1) for t in (k, v)), mask)[0]    # 0, 1, 2, 0, 1, 2


def ahead(T, window):
    i, j = torch.arange(T)[:, None], torch.arange(T)[None]
    return (i - j).abs() < window


WRONG = {
    "attention": [(unscaled, "the weights: a diff"), (over_queries, "the weights: a diff"), (not_a_number, "has a NaN"), (overflowing, "NaN|a difference of")],
    "window_mask": [(ahead, "a difference of"), (lambda T, window: ahead(T, window).tril().float(), "torch.bool")],
    "grouped_attention": [(repeated, "head 1")],
    "combine": [(lambda m1, z1, o1, m2, z2, o2: (o1 + o2) / (z1 + z2), "a difference of")],
    "orders_and_depth": [(lambda: ([0, 1, 2, 3, 4], [3, 1, 0, 2, 4], 1), "still equal"), (lambda: ([0, 1, 2, 3, 4], [4, 1, 0, 2, 3], 2), "not two orders")],
}
