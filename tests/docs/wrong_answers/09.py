"""What learners write in 09, and what the verdict has to say: name -> (answer, pattern) ..."""
import math


def slanted(t, T, lr, cut_frac, ratio, short=False):
    cut = math.floor(T * cut_frac)
    p = t / cut if t < cut else 1 - (t - cut) / (T if short else cut * (1 / cut_frac - 1))
    return lr * p if not short else lr * (1 + p * (ratio - 1)) / ratio


def also_the_embeddings(model, n):
    first = len(model.blocks) - n
    for name, p in model.named_parameters():
        p.requires_grad_(not name.startswith("blocks.") or int(name.split(".")[1]) >= first)


def only_the_blocks(model, n):
    first = len(model.blocks) - n
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith("blocks.") and int(name.split(".")[1]) >= first)


WRONG = {
    "rates": [(lambda groups, lr, decay: {name: lr / decay**i for i, name in enumerate(groups)}, "the highest is the last"),
              (lambda groups, lr, decay: {name: lr * (i + 1) / len(groups) for i, name in enumerate(groups)}, "the highest is the last")],
    "slanted": [(slanted, "at step 0"), (lambda *given: slanted(*given, short=True), "it is")],
    "thawed": [(lambda groups, epoch: groups[-epoch:], "in epoch 0"), (lambda groups, epoch: groups[:1 + epoch], "in epoch 0"),
               (lambda groups, epoch: groups[-(1 + epoch):][::-1], "in epoch 1")],
    "freeze_below": [(also_the_embeddings, "embed.* learns, and should not"), (only_the_blocks, "is frozen, and should not")],
}
