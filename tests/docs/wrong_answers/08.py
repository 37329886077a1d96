"""What learners write in 08, and what the verdict has to say: name -> (answer, pattern) ..."""
import random

import numpy as np
import torch


def with_itself(x, senses):
    sense, distance = np.array(senses), np.linalg.norm(x[:, None] - x[None], axis=-1)
    same = sense[:, None] == sense[None]
    return distance[~same].mean() / (distance[same].mean() + 1e-8)          # the distance of each to itself, zero, counts as within


def squared(x, senses):
    sense, distance = np.array(senses), ((x[:, None] - x[None]) ** 2).sum(-1)
    pair, same = np.triu(np.ones(distance.shape, bool), 1), sense[:, None] == sense[None]
    return distance[pair & ~same].mean() / (distance[pair & same].mean() + 1e-8)


def by_substring(text, word, offsets):
    begin = text.index(word)
    return [i for i, (a, b) in enumerate(offsets) if a < begin + len(word) and b > begin and b > a]


def only_the_first(text, word, offsets):
    begin = text.rindex(word)
    return [i for i, (a, b) in enumerate(offsets) if a == begin and b > a][:1]


def each_anew(words, n, seed):
    draw = random.Random(seed)
    return [draw.randrange(n) for _ in words]


def all_hidden_at_once(ids, special, mask_id, logits_of):
    hidden = torch.where(special, ids, mask_id)
    log_p = logits_of(hidden[None])[0].log_softmax(-1).gather(1, ids[:, None])[:, 0]
    return log_p[~special].sum()


def nothing_hidden(ids, special, mask_id, logits_of):
    return logits_of(ids[None])[0].log_softmax(-1).gather(1, ids[:, None])[:, 0][~special].sum()


WRONG = {
    "separation": [(with_itself, "the ratio of layer"), (squared, "the ratio of layer")],
    "places_of_word": [(by_substring, "A banker sat"), (only_the_first, "unbelievable")],
    "control_task": [(each_anew, "two labels"), (lambda words, n, seed: [hash(word) % 2 for word in words], "chances are not equal"),
                     (lambda words, n, seed: [int(word[1:]) % n for word in words], "the seed decides")],
    "pseudo_likelihood": [(all_hidden_at_once, "a difference of"), (nothing_hidden, "a difference of")],
}
