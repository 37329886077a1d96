"""Answers to the exercises of 02_text_to_ids: minitransfer check 02 notebooks/solutions/02_text_to_ids.py"""
from collections import Counter

import torch


def wordpiece(word, vocab):
    pieces, start = [], 0
    while start < len(word):
        candidates = (("##" if start else "") + word[start:end] for end in range(len(word), start, -1))
        piece = next((one for one in candidates if one in vocab), None)
        if piece is None:
            return ["[UNK]"]
        pieces.append(piece)
        start += len(piece.removeprefix("##")) if start else len(piece)
    return pieces


def merge(words):
    pairs = Counter()
    for pieces, count in words.items():
        for pair in zip(pieces, pieces[1:], strict=False):
            pairs[pair] += count
    best, merged = max(pairs, key=lambda pair: (pairs[pair], pair)), Counter()
    for pieces, count in words.items():
        new, i = [], 0
        while i < len(pieces):
            both = pieces[i:i + 2] == best
            new.append("".join(best) if both else pieces[i])
            i += 1 + both
        merged[tuple(new)] += count
    return best, merged


def align(word_ids, labels):
    before = [None, *word_ids]
    return [labels[word] if word is not None and word != last else -100 for last, word in zip(before, word_ids, strict=False)]


def collate(rows, pad_id, padding_side):
    width = max(map(len, rows))
    input_ids, mask = torch.full((len(rows), width), pad_id), torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if padding_side == "right" else slice(width - len(row), width)
        input_ids[i, where], mask[i, where] = torch.tensor(row), True
    return input_ids, mask
