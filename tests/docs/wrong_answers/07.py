"""What learners write in 07, and what the verdict has to say: name -> (answer, pattern) ..."""
import math

import torch


def drawn(ids, ordinary, probability, mask_id, others, generator, shares=(0.8, 0.9), everywhere=False, fixed=False):
    if fixed:
        generator = torch.Generator().manual_seed(5)
    chosen = (ordinary | everywhere) & (torch.rand(ids.shape, generator=generator) < probability)
    fate = torch.rand(ids.shape, generator=generator)
    other = others[torch.randint(len(others), ids.shape, generator=generator)]
    inputs = torch.where(chosen & (fate < shares[0]), mask_id, ids)
    return torch.where(chosen & (fate >= shares[0]) & (fate < shares[1]), other, inputs), torch.where(chosen, ids, -100)


def in_place(ids, ordinary, probability, mask_id, others, generator):
    inputs, labels = drawn(ids, ordinary, probability, mask_id, others, generator)
    ids.copy_(inputs)
    return inputs, labels


def asks_everything(*given):
    return drawn(*given)[0], given[0]


def global_draw(ids, ordinary, probability, mask_id, others, generator):
    return drawn(ids, ordinary, probability, mask_id, others, None)


def unshifted(logits, ids, keep):
    losses = -logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    return losses[keep].sum(), keep.sum()


def without_mask(logits, ids, keep):
    losses = -logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return losses.sum(), losses.numel()


def asks_from_padding(logits, ids, keep):
    losses = -logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return losses[keep[:, 1:]].sum(), keep[:, 1:].sum()


def mean(logits, ids, keep):
    asked = keep[:, :-1] & keep[:, 1:]
    losses = -logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return losses[asked].mean(), asked.sum()


WRONG = {
    "draw": [(lambda *given: drawn(*given, shares=(1.0, 1.0)), "are masked"), (lambda *given: drawn(*given, shares=(0.8, 1.0)), "left as they are"),
             (lambda *given: drawn(*given, everywhere=True), "not ordinary"), (lambda *given: drawn(*given, fixed=True), "another generator"), (in_place, "have changed"),
             (asks_everything, "not ordinary"), (global_draw, "draw with it only"), (lambda ids, ordinary, probability, *more: drawn(ids, ordinary, 0.3, *more), "are chosen")],
    "causal_loss": [(unshifted, "targets with"), (without_mask, "targets with"), (asks_from_padding, "padding on the left"), (mean, "the sum with")],
    "perplexity": [(lambda batches: math.exp(sum(s / max(n, 1) for s, n in batches) / len(batches)), "it is"),
                   (lambda batches: sum(math.exp(s / max(n, 1)) for s, n in batches) / len(batches), "it is"),
                   (lambda batches: 2 ** (sum(s for s, _ in batches) / sum(n for _, n in batches)), "it is")],
    "learning_rate": [(lambda step, total, lr, warmup: lr * step / warmup if step < warmup else lr * (total - step) / max(total - warmup, 1), "at step 0"),
                      (lambda step, total, lr, warmup: lr * (step + 1) / warmup if step < warmup else lr * (total - step) / total, "it is")],
}
