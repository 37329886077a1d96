"""Answers to the exercises of 03_attention_by_hand: minitransfer check 03 notebooks/solutions/03_attention_by_hand.py"""
import math

import torch


def attention(q, k, v, mask):
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    some = mask.any(-1, keepdim=True)
    weights = scores.masked_fill(~(mask | ~some), -math.inf).softmax(-1) * some
    return weights @ v, weights


def window_mask(T, window):
    i, j = torch.arange(T)[:, None], torch.arange(T)[None]
    return (j <= i) & (i - j < window)


def grouped_attention(q, k, v, mask):
    shared = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(shared, dim=1) for t in (k, v))    # 0, 0, 1, 1, ...; repeat would give 0, 1, ..., 0, 1, ...
    return attention(q, k, v, mask)[0]


def combine(m1, z1, o1, m2, z2, o2):
    m = torch.maximum(m1, m2)
    a, b = torch.exp(m1 - m), torch.exp(m2 - m)
    return (a * o1 + b * o2) / (a * z1 + b * z2)


def orders_and_depth():
    # one layer: the last row averages over the same set; two layers: what it averages has seen different prefixes
    return [0, 1, 2, 3, 4], [3, 1, 0, 2, 4], 2
