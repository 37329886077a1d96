"""Answers to the exercises of 09_head_to_full: minitransfer check 09 notebooks/solutions/09_head_to_full.py"""
import math


def rates(groups, lr, decay):
    return {name: lr / decay ** (len(groups) - 1 - i) for i, name in enumerate(groups)}


def slanted(t, T, lr, cut_frac, ratio):
    cut = math.floor(T * cut_frac)
    p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / cut_frac - 1))
    return lr * (1 + max(p, 0) * (ratio - 1)) / ratio       # where floor cut off a part, p would end below zero


def thawed(groups, epoch):
    return groups[-(1 + epoch):]


def freeze_below(model, n):
    first = len(model.blocks) - n
    for name, p in model.named_parameters():
        part, _, rest = name.partition(".")
        p.requires_grad_(int(rest.split(".")[0]) >= first if part == "blocks" else part != "embed")
