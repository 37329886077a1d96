"""Answers to the exercises of 14_tasks: minitransfer check 14 notebooks/solutions/14_tasks.py"""
import re
import string
from collections import Counter

import torch


def entities(tags):
    found, kind, start = [], None, 0
    for i, tag in enumerate([*tags, "O"]):
        goes_on = kind is not None and tag == f"I-{kind}"
        if kind is not None and not goes_on:
            found.append((kind, start, i))
            kind = None
        if tag != "O" and not goes_on:
            kind, start = tag[2:], i
    return found


def best_span(start, end, allowed, longest):
    both = start[:, None] + end[None]
    possible = torch.ones_like(both, dtype=torch.bool).triu().tril(longest - 1) & allowed[:, None] & allowed[None]
    return divmod(int(both.masked_fill(~possible, -torch.inf).argmax()), len(start))


def answer_f1(answer, truth):
    def words(text):
        kept = "".join(c for c in text.lower() if c not in string.punctuation)
        return re.sub(r"\b(a|an|the)\b", " ", kept).split()
    said, there = words(answer), words(truth)
    both = (Counter(said) & Counter(there)).total()
    return 2 * both / (len(said) + len(there)) if both else 0.0


def pair_loss(a, b, scale):
    return -(scale * a @ b.T).log_softmax(-1).diagonal().sum()
