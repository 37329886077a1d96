"""Answers to the exercises of 08_what_layers_know: minitransfer check 08 notebooks/solutions/08_what_layers_know.py"""
import random
import re

import numpy as np
import torch


def separation(x, senses):
    sense = np.array(senses)
    distance = np.linalg.norm(x[:, None] - x[None], axis=-1)
    pair = np.triu(np.ones(distance.shape, bool), 1)
    same = sense[:, None] == sense[None]
    return distance[pair & ~same].mean() / (distance[pair & same].mean() + 1e-8)


def places_of_word(text, word, offsets):
    begin, end = re.search(rf"\b{re.escape(word)}\b", text).span()
    return [i for i, (a, b) in enumerate(offsets) if a < end and b > begin and b > a]


def control_task(words, n, seed):
    draw, labels = random.Random(seed), {}
    return [labels.setdefault(word, draw.randrange(n)) if word not in labels else labels[word] for word in words]


def pseudo_likelihood(ids, special, mask_id, logits_of):
    places = (~special).nonzero()[:, 0]
    rows = ids.repeat(len(places), 1)
    rows[torch.arange(len(places)), places] = mask_id
    log_p = logits_of(rows)[torch.arange(len(places)), places].log_softmax(-1)
    return log_p.gather(1, ids[places][:, None]).sum()
