"""Answers to the exercises of 07_pretraining: minitransfer check 07 notebooks/solutions/07_pretraining.py"""
import math

import torch


def draw(ids, ordinary, probability, mask_id, others, generator):
    chosen = ordinary & (torch.rand(ids.shape, generator=generator) < probability)
    fate = torch.rand(ids.shape, generator=generator)
    other = others[torch.randint(len(others), ids.shape, generator=generator)]
    inputs = torch.where(chosen & (fate < 0.8), mask_id, ids)
    inputs = torch.where(chosen & (fate >= 0.8) & (fate < 0.9), other, inputs)
    return inputs, torch.where(chosen, ids, -100)


def causal_loss(logits, ids, keep):
    asked = keep[:, :-1] & keep[:, 1:]              # a token that predicts, and one that is predicted
    log_p = logits[:, :-1].log_softmax(-1)
    losses = -log_p.gather(-1, ids[:, 1:, None])[..., 0]
    return losses[asked].sum(), asked.sum()


def perplexity(batches):
    return math.exp(sum(total for total, _ in batches) / sum(count for _, count in batches))


def learning_rate(step, total, lr, warmup):
    return lr * (step + 1) / warmup if step < warmup else lr * (total - step) / max(total - warmup, 1)
